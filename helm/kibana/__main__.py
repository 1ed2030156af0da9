"""`python -m helm.kibana`: writes what Kibana imports."""

from helm.kibana.objects import FILE, text

if __name__ == "__main__":
    FILE.write_text(text())

"""`python -m helm.dashboards`: writes the dashboards."""

from helm.dashboards.all import FOLDER, dashboards, text

if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in FOLDER.glob("*.json"):
        path.unlink()
    for name, made in dashboards().items():
        (FOLDER / f"{name}.json").write_text(text(made))

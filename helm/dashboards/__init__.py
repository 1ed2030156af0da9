"""Grafana's dashboards as code. `make dashboards` writes them to helm/propositions/files/grafana/dashboards/.

There are four, by the question that somebody comes with: are users hurt (`service_health`), is what they get good
(`ranking`), what does it earn (`business`), does what they do arrive (`events`).
"""

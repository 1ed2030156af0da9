"""Renews what is derived: the chart's golden renders, its table of values, and the settings in its schema.

python -m tests.chart.renew
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.chart.helm import CHART, Helm, Manifest, build_helm, scenarios
from tests.chart.settings_schema import secret_settings_schema, settings_schema

GOLDEN = Path(__file__).parent / "golden"
_BEGIN, _END = "<!-- values -->\n", "<!-- end of values -->\n"
_LINE = re.compile(r"(?P<indent> *)(?:(?P<key>[\w-]+):(?: (?P<value>.+))?|# (?P<comment>.+)|.*)")


def main() -> None:
    helm = Helm(build_helm())
    for path, renewed in (
        (CHART / "values.schema.json", renewed_schema),
        (CHART / "README.md", renewed_readme),
    ):
        path.write_text(renewed(path.read_text()))
    for name, values in scenarios().items():
        (GOLDEN / f"{name}.yaml").write_text(golden_text(helm.template(values)))


def golden_text(release: Sequence[Manifest]) -> str:
    """A release to be reviewed. What it takes from files as it is, is reviewed there."""
    return yaml.dump_all(map(_without_files, release), Dumper=yaml.CSafeDumper, sort_keys=False, width=110)


def _without_files(manifest: Manifest) -> Manifest:
    taken = {"ConfigMap": "data", "PrometheusRule": "spec"}.get(manifest["kind"])
    return {name: part for name, part in manifest.items() if name != taken}


def renewed_schema(text: str) -> str:
    schema = json.loads(text)
    schema["properties"]["settings"] = settings_schema()
    schema["properties"]["secretSettings"] = secret_settings_schema()
    return json.dumps(schema, indent=2) + "\n"


def renewed_readme(text: str) -> str:
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    rows = "".join(
        f"| `{path}` | `{default}` | {comment} |\n"
        for path, default, comment in described_values((CHART / "values.yaml").read_text())
    )
    return f"{before}{_BEGIN}| value | default | |\n|---|---|---|\n{rows}{_END}{after}"


def described_values(text: str) -> Iterator[tuple[str, str, str]]:
    """(path, default as JSON, comment above it) of each value that has a line of its own."""
    values, path, comments = yaml.safe_load(text), [], []
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match["comment"]:
            comments.append(match["comment"])
            continue
        if match["key"] is None:
            comments = []
            continue
        path = [*path[: len(match["indent"]) // 2], match["key"]]
        default = _at(values, path)
        if _is_shown(default, match["value"]) or comments:
            shown = "..." if isinstance(default, dict) and not match["value"] else json.dumps(default)
            yield ".".join(path), shown, " ".join(comments)
        comments = []


def _is_shown(default: Any, written: str | None) -> bool:
    """Values; of groups of values only the members are."""
    return written is not None or not isinstance(default, dict)


def _at(values: Any, path: Sequence[str]) -> Any:
    for key in path:
        values = values[key]
    return values


if __name__ == "__main__":
    main()

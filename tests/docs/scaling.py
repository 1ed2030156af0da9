"""What docs/scaling.md says of docs/scaling-costs.json; run as a program, it is written into the page."""

import re
import shlex
from contextlib import chdir
from pathlib import Path

from typer.testing import CliRunner

from app.capacity.costs import read_costs
from app.capacity.sheet import number
from app.cli import app

ROOT = Path(__file__).parents[2]
DOCUMENT, COSTS = ROOT / "docs/scaling.md", ROOT / "docs/scaling-costs.json"
CALL = re.compile(r"(```console\n\$ propositions (capacity (?:[^\n]*\\\n)*[^\n]*)\n).*?(```)", re.DOTALL)
COST = re.compile(r"^\| `(\w+)` \| [^|]* \|(?= `(\w+)` \| .+ \|$)", re.MULTILINE)


def renewed(text: str) -> str:
    """The page with the outputs of its calls, and the values of its costs, as they are now."""
    costs = read_costs(COSTS)
    text = CALL.sub(lambda found: found[1] + _output(found[2]) + found[3], text)
    return COST.sub(lambda found: f"| `{found[1]}` | {number(getattr(costs, found[1]))} |", text)


def _output(call: str) -> str:
    with chdir(ROOT):
        done = CliRunner().invoke(app, shlex.split(call.replace("\\\n", " ")))
    if done.exit_code:
        raise RuntimeError(f"propositions {call} failed: {done.output}{done.exception or ''}")
    return done.stdout


if __name__ == "__main__":
    DOCUMENT.write_text(renewed(DOCUMENT.read_text()))

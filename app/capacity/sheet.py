"""Arithmetic that is shown: each number beside how it came about."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One line: `arithmetic` has the numbers that `value` was computed from, each with its unit."""

    part: str
    name: str
    arithmetic: str
    value: float
    unit: str


class Sheet:
    """The lines of one part after another."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._part = ""

    @property
    def steps(self) -> Sequence[Step]:
        return tuple(self._steps)

    def begin(self, part: str) -> None:
        self._part = part

    def add(self, name: str, arithmetic: str, value: float, unit: str) -> float:
        """Writes a line, and returns its value."""
        self._steps.append(Step(self._part, name, arithmetic, value, unit))
        return value


def number(value: float) -> str:
    """A number as a reader wants it, with three digits that count.

    >>> number(1234567.8), number(100), number(0.012345), number(1.0)
    ('1,234,568', '100', '0.0123', '1')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

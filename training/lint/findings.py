"""What is found, and from where on something is wrong."""

from dataclasses import dataclass
from enum import StrEnum

MAX_EXAMPLES = 5


class Severity(StrEnum):
    """An error makes what is learned wrong; a warning may."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """`count` of what is named by `message`, and its `share` of all of that kind; a few `examples` by id or name."""

    name: str
    severity: Severity
    count: int
    share: float
    message: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LintLimits:
    """From where on something is wrong.

    `max_orphan_share` of clicks and conversions without an impression, `max_unknown_share` of events whose proposition is
    not in the catalog, and `max_skewed_share` of events with an impossible time: beyond these they are errors, below
    warnings. `max_ahead_s`: how far a client's clock may run ahead of the receipt. `max_late_s`: how late an event may
    arrive. `min_bot_impressions`: of a user who is judged by clicking everything, or nothing although that has a
    probability below `max_chance`. `jump_errors` and `jump_factor`: a label rate jumps if it differs from that of the
    bucket of time before by as many standard errors and by that factor. `buckets` of equally many slates.
    `max_column_auc` of one column alone over all impressions; `max_auc_lead` of one column over the model within slates.
    `min_cases`: with fewer clicked or not clicked impressions no column is judged. `max_missing_share` of a column.
    """

    max_orphan_share: float = 0.2
    max_unknown_share: float = 0.05
    max_skewed_share: float = 0.05
    max_ahead_s: float = 60.0
    max_late_s: float = 7 * 86_400.0
    min_bot_impressions: int = 50
    max_chance: float = 1e-6
    buckets: int = 20
    jump_errors: float = 4.0
    jump_factor: float = 2.0
    max_column_auc: float = 0.95
    max_auc_lead: float = 0.03
    min_cases: int = 50
    max_missing_share: float = 0.995
    min_slates: int = 100

"""What counts as good: slates with labels, from the decisions and the events.

The SQL here is what PostgreSQL and DuckDB both understand; a `Dialect` holds what they say differently. Times are whole
microseconds since the epoch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from app.domain.errors import ConfigurationError

_US = 1_000_000
_DAY_US = 86_400 * _US


class Label(StrEnum):
    """What relevance means.

    CLICK: 1 for what was clicked, 2 for what was converted on. ENGAGEMENT: 1 for what was clicked or converted on in the
    session, which begins with the slate. RETENTION: 1 for what was clicked or converted on by a user who came back, which
    is any event of the user between one day and `return_days` days after the slate. Slates of which that is not known
    yet, because the log ends earlier, are left out.
    """

    CLICK = "click"
    ENGAGEMENT = "engagement"
    RETENTION = "retention"


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """How slates are labelled.

    Outcomes later than `attribution_window_s` after the impression do not count, nor do those before it. What was shown
    and led to nothing is negative. Where a source logs outcomes only, there is nothing of that kind: with
    `sampled_negatives` above 0, as many propositions that were known then are drawn with the `seed` per positive,
    and those slates are marked as sampled. Draws that hit a positive, or the same proposition again, are dropped.

    Raises:
        ConfigurationError: a value makes no sense.
    """

    label: Label = Label.CLICK
    attribution_window_s: float = 86_400.0
    session_s: float = 1_800.0
    return_days: float = 7.0
    sampled_negatives: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "label", Label(self.label))
        except ValueError as error:
            raise ConfigurationError(f"{error}: choose one of {', '.join(Label)}") from error
        if self.attribution_window_s <= 0 or self.session_s <= 0:
            raise ConfigurationError("attribution_window_s and session_s must be more than 0 seconds")
        if self.return_days <= 1:
            raise ConfigurationError(
                "return_days must be more than 1: a user comes back after a day at the earliest"
            )
        if self.sampled_negatives < 0:
            raise ConfigurationError("sampled_negatives must not be negative")


@dataclass(frozen=True, slots=True)
class Dialect:
    """What databases say differently, as functions from SQL to SQL.

    `microseconds`: of a time, since the epoch. `binary`: a text, to be ordered by its bytes. `least`: the first of some
    texts in that order, as texts usually are: compared to a column of another collation PostgreSQL uses no index.
    `hash`: of a text, at least 0 and below 2^60. `ranks`: rows (request_id, proposition_id, rank) of the slates in those
    decisions, given as an item of FROM.
    """

    microseconds: Callable[[str], str]
    binary: Callable[[str], str]
    least: Callable[[str], str]
    hash: Callable[[str], str]
    ranks: Callable[[str], str]


POSTGRES = Dialect(
    microseconds=lambda time: f"CAST(extract(epoch FROM {time}) * {_US} AS bigint)",
    binary=lambda text: f'{text} COLLATE "C"',
    least=lambda text: f'min({text} COLLATE "C") COLLATE "default"',
    hash=lambda text: f"CAST(CAST('x' || substr(md5({text}), 1, 15) AS bit(60)) AS bigint)",
    ranks=lambda decisions: (
        f"""
        SELECT request_id, item ->> 'proposition_id' AS proposition_id, CAST(item ->> 'rank' AS float8) AS rank
        FROM {decisions}, jsonb_array_elements(slate) AS item"""
    ),
)
DUCKDB = Dialect(
    microseconds=lambda time: f"epoch_us({time})",
    binary=lambda text: text,
    least=lambda text: f"min({text})",
    hash=lambda text: f"CAST('0x' || substr(md5({text}), 1, 15) AS bigint)",
    ranks=lambda decisions: (
        f"""
        SELECT request_id, item ->> '$.proposition_id' AS proposition_id, CAST(item ->> '$.rank' AS float8) AS rank
        FROM (SELECT request_id, unnest(CAST(slate AS json[])) AS item FROM {decisions})"""
    ),
)


def labelled_impressions(options: LabelOptions, dialect: Dialect) -> str:
    """SQL of all labelled impressions, in no order.

    Columns: slate_id, user_id, context_key, proposition_id, category, position (float8), relevance (bigint), decided_us
    (bigint), is_sampled.

    A slate is what shares a request_id; impressions without one count as one slate per user and hour. It was decided when,
    for whom and where the decision log says, else as its first impression says. A proposition counts once per slate.
    Outcomes belong to the slate that they name; without a name to the last impression of their proposition to
    their user. Decisions that nobody saw do not count.
    """
    binary, least = dialect.binary, dialect.least
    window_us = round(options.attribution_window_s * _US)
    parts = [
        _logged(dialect),
        _decided(dialect),
        *(_invented(options, dialect) if options.sampled_negatives else _SHOWN_ONLY),
        # Users and contexts of a slate: the one decision's, else the first of what its impressions say.
        f"""slates AS (
            SELECT s.slate_id, coalesce(min(d.decided_us), min(s.shown_us)) AS decided_us,
                   coalesce({least("d.user_id")}, {least("s.user_id")}) AS user_id,
                   coalesce({least("d.context_key")}, {least("s.context_key")}) AS context_key
            FROM shown s LEFT JOIN decided d ON d.request_id = s.slate_id GROUP BY s.slate_id
        )""",
        """impressions AS (
            SELECT s.slate_id, l.user_id, l.context_key, l.decided_us, s.proposition_id, s.category, s.position,
                   s.shown_us, s.is_sampled
            FROM shown s JOIN slates l ON l.slate_id = s.slate_id
        )""",
        f"""named AS (
            SELECT slate_id, proposition_id, event_type, at_us FROM logged
            WHERE event_type <> 'impression' AND request_id IS NOT NULL
            UNION ALL
            SELECT slate_id, proposition_id, event_type, at_us FROM (
                SELECT i.slate_id, o.proposition_id, o.event_type, o.at_us, row_number() OVER (
                    PARTITION BY o.seq ORDER BY i.shown_us DESC, {binary("i.slate_id")}) AS recency
                FROM logged o JOIN impressions i ON i.user_id = o.user_id AND i.proposition_id = o.proposition_id
                    AND i.shown_us BETWEEN o.at_us - {window_us} AND o.at_us
                WHERE o.event_type <> 'impression' AND o.request_id IS NULL
            ) AS candidates WHERE recency = 1
        )""",
        *_labels(options, dialect, window_us),
        f"""ranked AS (
            SELECT request_id, proposition_id, min(rank) AS rank
            FROM ({dialect.ranks("unplaced")}) AS ranks GROUP BY request_id, proposition_id
        )""",
    ]
    return f"""
        WITH {", ".join(parts)}
        SELECT i.slate_id, i.user_id, i.context_key, i.proposition_id, i.category,
               coalesce(CAST(i.position AS float8), r.rank) AS position,
               CAST(coalesce(l.relevance, 0) AS bigint) AS relevance, i.decided_us, i.is_sampled
        FROM impressions i
        LEFT JOIN labels l ON l.slate_id = i.slate_id AND l.proposition_id = i.proposition_id
        LEFT JOIN ranked r ON r.request_id = i.slate_id AND r.proposition_id = i.proposition_id
        {_KNOWN_BY_NOW if options.label is Label.RETENTION else ""}"""


def _logged(dialect: Dialect) -> str:
    us = dialect.microseconds
    return f"""logged AS (
        SELECT seq, event_type, user_id, proposition_id, category, context_key, request_id, position,
               {us("least(occurred_at, received_at)")} AS at_us,
               coalesce(request_id, user_id || chr(31) ||
                   CAST(CAST(floor({us("occurred_at")} / {3_600 * _US}.0) AS bigint) AS text)) AS slate_id
        FROM events WHERE event_type IN ('impression', 'click', 'conversion')
    ), seen AS (
        SELECT slate_id, proposition_id, {_first(dialect, "user_id", "context_key", "category")},
               min(position) AS position, min(at_us) AS shown_us, false AS is_sampled
        FROM logged WHERE event_type = 'impression' AND slate_id IS NOT NULL
        GROUP BY slate_id, proposition_id
    )"""


def _decided(dialect: Dialect) -> str:
    return f"""decided AS (
        SELECT request_id, min({dialect.microseconds("decided_at")}) AS decided_us,
               {_first(dialect, "user_id", "context_key")}
        FROM decisions GROUP BY request_id
    ), unplaced AS (
        SELECT request_id, slate FROM decisions
        WHERE request_id IN (SELECT slate_id FROM seen WHERE position IS NULL)
    )"""


def _first(dialect: Dialect, *columns: str, of: str = "") -> str:
    return ", ".join(f"{dialect.least(of + column)} AS {column}" for column in columns)


_SHOWN_ONLY = ["shown AS (SELECT * FROM seen)"]


def _invented(options: LabelOptions, dialect: Dialect) -> list[str]:
    """What was shown, and in slates of which only outcomes are known those and what is drawn beside them."""
    us, binary = dialect.microseconds, dialect.binary
    draw = f"'{options.seed}' || chr(31) || p.slate_id || chr(31) || p.proposition_id || chr(31) || CAST(draw AS text)"
    return [
        f"""orphans AS (
            SELECT slate_id, proposition_id, {_first(dialect, "user_id", "context_key", "category")},
                   CAST(NULL AS integer) AS position, min(at_us) AS shown_us, true AS is_sampled
            FROM logged o
            WHERE event_type <> 'impression' AND slate_id IS NOT NULL
              AND NOT EXISTS (SELECT 1 FROM seen s WHERE s.slate_id = o.slate_id)
              AND (request_id IS NOT NULL OR NOT EXISTS (
                  SELECT 1 FROM seen s WHERE s.user_id = o.user_id AND s.proposition_id = o.proposition_id))
            GROUP BY slate_id, proposition_id
        )""",
        f"""orphaned_slates AS (
            SELECT o.slate_id, coalesce(min(d.decided_us), min(o.shown_us)) AS decided_us,
                   {_first(dialect, "user_id", "context_key", of="o.")}
            FROM orphans o LEFT JOIN decided d ON d.request_id = o.slate_id GROUP BY o.slate_id
        )""",
        f"""known AS (
            SELECT proposition_id, known_us,
                   row_number() OVER (ORDER BY known_us, {binary("proposition_id")}) - 1 AS number
            FROM (SELECT proposition_id, min({us("event_timestamp")}) AS known_us
                  FROM proposition_catalog GROUP BY proposition_id) AS firsts
        )""",
        # How many propositions were known before each slate.
        """counted AS (
            SELECT slate_id, known_count FROM (
                SELECT slate_id, sum(is_known) OVER (ORDER BY at_us, is_known ROWS UNBOUNDED PRECEDING) AS known_count
                FROM (SELECT slate_id, decided_us AS at_us, 0 AS is_known FROM orphaned_slates
                      UNION ALL SELECT NULL, known_us, 1 FROM known) AS moments
            ) AS counts WHERE slate_id IS NOT NULL AND known_count > 0
        )""",
        f"""drawn AS (
            SELECT DISTINCT p.slate_id, k.proposition_id
            FROM orphans p JOIN counted c ON c.slate_id = p.slate_id
            CROSS JOIN generate_series(1, {options.sampled_negatives}) AS draws(draw)
            JOIN known k ON k.number =
                {dialect.hash(draw)} % CAST(c.known_count AS bigint)
            WHERE NOT EXISTS (
                SELECT 1 FROM orphans o WHERE o.slate_id = p.slate_id AND o.proposition_id = k.proposition_id)
        )""",
        f"""shown AS (
            SELECT * FROM seen UNION ALL SELECT * FROM orphans UNION ALL
            SELECT slate_id, proposition_id, user_id, context_key, category, NULL, decided_us, true FROM (
                SELECT n.slate_id, n.proposition_id, s.user_id, s.context_key, v.category, s.decided_us,
                       row_number() OVER (PARTITION BY n.slate_id, n.proposition_id
                                          ORDER BY v.event_timestamp DESC) AS recency
                FROM drawn n JOIN orphaned_slates s ON s.slate_id = n.slate_id
                JOIN proposition_catalog v ON v.proposition_id = n.proposition_id
                    AND {us("v.event_timestamp")} < s.decided_us
            ) AS versions WHERE recency = 1
        )""",
    ]


def _labels(options: LabelOptions, dialect: Dialect, window_us: int) -> list[str]:
    relevance, condition, further = "1", "", []
    if options.label is Label.CLICK:
        relevance = "CASE event_type WHEN 'conversion' THEN 2 ELSE 1 END"
    elif options.label is Label.ENGAGEMENT:
        condition = f"AND o.at_us <= i.decided_us + {round(options.session_s * _US)}"
    else:
        condition = "AND i.slate_id IN (SELECT slate_id FROM returned)"
        further = _returned(round(options.return_days * _DAY_US), dialect)
    return [
        *further,
        f"""labels AS (
            SELECT i.slate_id, i.proposition_id, max({relevance}) AS relevance
            FROM named o JOIN impressions i ON i.slate_id = o.slate_id AND i.proposition_id = o.proposition_id
            WHERE o.at_us BETWEEN i.shown_us AND i.shown_us + {window_us} {condition}
            GROUP BY i.slate_id, i.proposition_id
        )""",
    ]


def _returned(return_us: int, dialect: Dialect) -> list[str]:
    """Slates whose user came back: each user's first event from a day after the slate on, found in one pass."""
    return [
        f"""activity AS (
            SELECT user_id, {dialect.microseconds("least(occurred_at, received_at)")} AS at_us
            FROM events WHERE user_id IS NOT NULL
        ), known_until AS (
            SELECT max({dialect.microseconds("least(occurred_at, received_at)")}) - {return_us} AS last_us FROM events
        ), returned AS (
            SELECT slate_id FROM (
                SELECT slate_id, from_us, min(event_us) OVER (
                    PARTITION BY user_id ORDER BY from_us, event_us NULLS FIRST
                    ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) AS next_us
                FROM (SELECT slate_id, user_id, decided_us + {_DAY_US} AS from_us, CAST(NULL AS bigint) AS event_us
                      FROM slates WHERE user_id IS NOT NULL
                      UNION ALL SELECT NULL, user_id, at_us, at_us FROM activity) AS moments
            ) AS nexts WHERE slate_id IS NOT NULL AND next_us <= from_us - {_DAY_US} + {return_us}
        )"""
    ]


_KNOWN_BY_NOW = "WHERE i.decided_us <= (SELECT last_us FROM known_until)"

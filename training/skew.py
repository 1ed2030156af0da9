"""Whether serving read what training would have read: logged features against point-in-time ones, column by column.

A small share of the decisions is logged with the rows of the model's matrix (`DECISION_FEATURES_SHARE`). Here the same
rows are made again by the joins of training, as of the moment at which serving read them, and compared.

Serving may lag behind by design, which is no skew. The candidates' own columns lack events for up to
`CANDIDATE_FEATURES_MAX_AGE_S`, and are kept for six times that while nothing happens: the decision says as of when they are, and they are
compared as of then. Events of the last seconds before that may not have got through the projector and into the snapshot
of the catalog: a value that is right without some of the events of that time is counted as lagging, apart from mismatches.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from feast import FeatureStore
from sqlalchemy import text

from app.adapters.database import Database
from app.adapters.model_store import ModelStore
from app.domain.errors import ModelRefused, PropositionsError
from app.features.assembly import MatrixSpec
from app.features.schema import EntityName, FeatureSchema
from training.dataset import Dataset
from training.joins import join_features
from training.matrix import matrix

METRIC = "propositions_feature_skew_mismatch_share"
# Of entities whose columns serving keeps for a while.
_OF_CANDIDATES = (EntityName.PROPOSITION, EntityName.CONTEXT_PROPOSITION)
_MAX_EXAMPLES = 3

# The propositions of the sample, each at several moments; their categories as they were then.
_IMPRESSIONS = """
    SELECT k.slate_id, k.user_id, k.context_key, k.proposition_id, v.category, k.position, 0::bigint AS relevance,
           k.decided_us, false AS is_sampled
    FROM jsonb_to_recordset({keys}) AS k (
        slate_id text, user_id text, context_key text, proposition_id text, position float8, decided_us bigint)
    LEFT JOIN LATERAL (
        SELECT category FROM proposition_catalog
        WHERE proposition_id = k.proposition_id
          AND event_timestamp < timestamptz 'epoch' + k.decided_us * interval '1 microsecond'
        ORDER BY event_timestamp DESC, created_timestamp DESC LIMIT 1
    ) v ON true"""


class NothingToAudit(PropositionsError):
    """No decision holds the features that it was made with."""


@dataclass(frozen=True, slots=True)
class SkewOptions:
    """`sample` decisions are drawn with the `seed` from those since `since`.

    Values differ if they are further apart than `absolute` plus `relative` times the recomputed one. `lag_s` and
    `candidate_lag_s`: for how long events may be on their way to what serving reads of users and contexts, and of
    candidates.
    """

    since: datetime
    sample: int = 200
    seed: int = 0
    relative: float = 1e-3
    absolute: float = 1e-4
    lag_s: float = 5.0
    candidate_lag_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Example:
    """A value that was served, and the one that training would have read; None where there is none."""

    request_id: str
    proposition_id: str
    served: float | None
    recomputed: float | None


@dataclass(frozen=True, slots=True)
class ColumnSkew:
    """`examples` are those that are furthest apart."""

    name: str
    compared_count: int
    mismatch_share: float
    lagging_share: float
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class SkewReport:
    """`decision_count` were compared; `skipped` says how many were not, by reason. `columns` by falling mismatch share."""

    decision_count: int
    skipped: Mapping[str, int]
    columns: tuple[ColumnSkew, ...]

    @property
    def worst_share(self) -> float:
        """The largest mismatch share of a column."""
        return max((column.mismatch_share for column in self.columns), default=0.0)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "worst_share": self.worst_share}

    def to_metrics(self) -> str:
        """The mismatch shares in the format of Prometheus' text files."""
        lines = [
            f"# HELP {METRIC} Share of logged values that differ from what training would have read.",
            f"# TYPE {METRIC} gauge",
        ]
        lines += [
            f'{METRIC}{{feature="{_escaped(column.name)}"}} {column.mismatch_share:g}'
            for column in sorted(self.columns, key=lambda column: column.name)
        ]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class LoggedDecision:
    """A decision by a model with what it read: `rows` float32 (propositions, columns)."""

    request_id: str
    user_id: str | None
    context_key: str
    model_version: str
    decided_at_s: float
    candidates_as_of_s: float
    proposition_ids: tuple[str, ...]
    columns: tuple[str, ...]
    rows: np.ndarray


@dataclass(frozen=True, slots=True)
class _Moment:
    """When features are looked up, and to when they decay, both in seconds since the epoch."""

    name: str
    known_at_s: float
    decayed_to_s: float


def audit(
    store: FeatureStore,
    schema: FeatureSchema,
    database: Database,
    models: ModelStore,
    half_lives_s: Sequence[float],
    options: SkewOptions,
) -> SkewReport:
    """Compares a sample of the logged decisions. Those whose model is not here, or reads other features, are skipped.

    `half_lives_s` are those of the counters that are kept.

    Raises:
        NothingToAudit: no decision since then holds features.
        StoreUnavailable: PostgreSQL does not answer.
    """
    decisions = logged_decisions(database, options)
    if not decisions:
        raise NothingToAudit(
            f"no decision since {options.since:%Y-%m-%d %H:%M} holds features: is DECISION_FEATURES_SHARE above 0, and "
            "does a model serve?"
        )
    specs, skipped = _specs(decisions, models, schema, half_lives_s)
    decisions = [decision for decision in decisions if decision.model_version in specs]
    if not decisions:
        return SkewReport(0, skipped, ())
    sql = _IMPRESSIONS.format(keys=_literal(list(_keys(decisions, options))))
    dataset = join_features(store, schema, len(half_lives_s), sql, database)
    comparison = _Comparison(options)
    for version, spec in specs.items():
        of_version = [decision for decision in decisions if decision.model_version == version]
        recomputed = _Recomputed.of(spec, dataset, of_version, options)
        for decision in of_version:
            comparison.add(spec, decision, recomputed)
    return SkewReport(len(decisions), skipped, comparison.columns())


def logged_decisions(database: Database, options: SkewOptions) -> list[LoggedDecision]:
    """The sample: the same one for the same seed while no further decisions are logged."""
    with database.transaction() as connection:
        rows = connection.execute(
            text("""
                SELECT request_id, user_id, context_key, model_version,
                       extract(epoch FROM decided_at)::float8 AS decided_at_s, slate, features
                FROM decisions
                WHERE features IS NOT NULL AND decided_at >= :since AND jsonb_array_length(slate) > 0
                ORDER BY md5(CAST(:seed AS text) || request_id), request_id LIMIT :sample"""),
            {"since": options.since, "seed": options.seed, "sample": options.sample},
        ).mappings()
        return [_decision(row) for row in rows]


def _decision(row: Mapping[str, Any]) -> LoggedDecision:
    features = row["features"]
    return LoggedDecision(
        request_id=row["request_id"],
        user_id=row["user_id"],
        context_key=row["context_key"],
        model_version=row["model_version"],
        decided_at_s=row["decided_at_s"],
        candidates_as_of_s=features["candidates_as_of_s"],
        proposition_ids=tuple(place["proposition_id"] for place in row["slate"]),
        columns=tuple(features["columns"]),
        rows=np.array(features["rows"], dtype=np.float32),  # null becomes NaN
    )


def _specs(
    decisions: Sequence[LoggedDecision],
    models: ModelStore,
    schema: FeatureSchema,
    half_lives_s: Sequence[float],
) -> tuple[dict[str, MatrixSpec], dict[str, int]]:
    """The specs of the models whose features can be made again, and how many decisions were by others, by reason."""
    specs: dict[str, MatrixSpec] = {}
    skipped: dict[str, int] = {}
    for decision in decisions:
        version = decision.model_version
        if version in specs:
            continue
        try:
            spec = MatrixSpec.from_json(models.manifest(version)["matrix"])
        except ModelRefused:
            reason = f"model {version} is not on this machine"
        else:
            is_same = spec.schema.hash() == schema.hash() and spec.half_lives_s == tuple(half_lives_s)
            if is_same and spec.columns == decision.columns:
                specs[version] = spec
                continue
            reason = f"model {version} reads other features than the feature repo declares"
        skipped[reason] = skipped.get(reason, 0) + 1
    return specs, skipped


def _moments(decision: LoggedDecision, options: SkewOptions) -> tuple[_Moment, ...]:
    at_s, candidates_s = decision.decided_at_s, decision.candidates_as_of_s
    return (
        _Moment("request", at_s, at_s),
        _Moment("request before", at_s - options.lag_s, at_s),
        _Moment("candidates", candidates_s, candidates_s),
        _Moment("candidates before", candidates_s - options.candidate_lag_s, candidates_s),
    )


def _slate_id(decision: LoggedDecision, moment: _Moment) -> str:
    return f"{decision.request_id}/{moment.name}"


def _keys(decisions: Sequence[LoggedDecision], options: SkewOptions) -> Iterator[dict[str, Any]]:
    for decision in decisions:
        for moment in _moments(decision, options):
            for position, proposition_id in enumerate(decision.proposition_ids, start=1):
                yield {
                    "slate_id": _slate_id(decision, moment),
                    "user_id": decision.user_id,
                    "context_key": decision.context_key,
                    "proposition_id": proposition_id,
                    "position": position,
                    "decided_us": round(moment.known_at_s * 1_000_000),
                }


def _literal(value: Any) -> str:
    """A value as SQL of its JSON."""
    return "'" + json.dumps(value).replace("'", "''") + "'::jsonb"


@dataclass(frozen=True)
class _Recomputed:
    """What training reads of the propositions of some slates, by the slates' ids."""

    rows: np.ndarray
    row_of: Mapping[tuple[str, str], int]

    @classmethod
    def of(
        cls,
        spec: MatrixSpec,
        dataset: Dataset,
        decisions: Sequence[LoggedDecision],
        options: SkewOptions,
    ) -> "_Recomputed":
        decayed_to_s = {
            _slate_id(decision, moment): moment.decayed_to_s
            for decision in decisions
            for moment in _moments(decision, options)
        }
        chosen = dataset.select(np.flatnonzero(np.isin(dataset.slates.ids, list(decayed_to_s))))
        moments_s = np.array([decayed_to_s[slate_id] for slate_id in chosen.slates.ids.tolist()])
        chosen = replace(chosen, slates=replace(chosen.slates, decided_at_s=moments_s))
        slate_ids = chosen.slates.ids[chosen.slate_of_row].tolist()
        names = zip(slate_ids, chosen.proposition_ids.tolist(), strict=True)
        return cls(matrix(spec, chosen), {name: row for row, name in enumerate(names)})

    def at(self, decision: LoggedDecision, moment: _Moment) -> np.ndarray:
        """float32 (propositions, columns), in the order of the slate."""
        slate_id = _slate_id(decision, moment)
        return self.rows[
            [self.row_of[slate_id, proposition_id] for proposition_id in decision.proposition_ids]
        ]


class _Tally:
    def __init__(self) -> None:
        self.compared = self.mismatches = self.lagging = 0
        self.worst: list[tuple[float, Example]] = []


class _Comparison:
    """Counts per column what differs."""

    def __init__(self, options: SkewOptions) -> None:
        self._options = options
        self._tallies: dict[str, _Tally] = {}

    def add(self, spec: MatrixSpec, decision: LoggedDecision, recomputed: _Recomputed) -> None:
        request, request_before, candidates, candidates_before = (
            recomputed.at(decision, moment) for moment in _moments(decision, self._options)
        )
        is_of_candidates = np.zeros(len(spec.columns), dtype=bool)
        for view in spec.views:
            columns = spec.columns_of[view.name]
            is_of_candidates[columns.start : columns.stop] = view.entity in _OF_CANDIDATES
        now = np.where(is_of_candidates, candidates, request).astype(np.float64)
        before = np.where(is_of_candidates, candidates_before, request_before).astype(np.float64)
        served = decision.rows.astype(np.float64)
        is_right = self._is_equal(served, now)
        is_number = ~np.isin(spec.columns, spec.category_columns)
        is_lagging = ~is_right & (
            self._is_equal(served, before) | (is_number & self._is_between(served, before, now))
        )
        is_wrong = ~is_right & ~is_lagging
        for number, name in enumerate(spec.columns):
            tally = self._tallies.setdefault(name, _Tally())
            tally.compared += len(served)
            tally.lagging += int(is_lagging[:, number].sum())
            for row in np.flatnonzero(is_wrong[:, number]).tolist():
                tally.mismatches += 1
                self._note(tally, decision, row, float(served[row, number]), float(now[row, number]))

    def _tolerance(self, values: np.ndarray) -> np.ndarray:
        return self._options.absolute + self._options.relative * np.abs(values)

    def _is_equal(self, served: np.ndarray, expected: np.ndarray) -> np.ndarray:
        both_missing = np.isnan(served) & np.isnan(expected)
        return both_missing | (np.abs(served - expected) <= self._tolerance(expected))

    def _is_between(self, served: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        low, high = np.minimum(one, other), np.maximum(one, other)
        return (served >= low - self._tolerance(low)) & (served <= high + self._tolerance(high))

    def _note(
        self, tally: _Tally, decision: LoggedDecision, row: int, served: float, recomputed: float
    ) -> None:
        distance = abs(served - recomputed)
        example = Example(
            decision.request_id,
            decision.proposition_ids[row],
            None if np.isnan(served) else served,
            None if np.isnan(recomputed) else recomputed,
        )
        tally.worst.append((np.inf if np.isnan(distance) else distance, example))
        tally.worst.sort(key=lambda worst: -worst[0])
        del tally.worst[_MAX_EXAMPLES:]

    def columns(self) -> tuple[ColumnSkew, ...]:
        columns = [
            ColumnSkew(
                name,
                tally.compared,
                tally.mismatches / tally.compared,
                tally.lagging / tally.compared,
                tuple(example for _, example in tally.worst),
            )
            for name, tally in self._tallies.items()
        ]
        return tuple(sorted(columns, key=lambda column: (-column.mismatch_share, -column.lagging_share)))


def write_metrics(report: SkewReport, path: Path) -> None:
    """Writes the file for Prometheus' textfile collector, which must never see half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(report.to_metrics())
    draft.replace(path)


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

"""Which model serves, and why: the pointer on disk decides, the tables keep the record."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text

from app.adapters.database import Database, service_database
from app.adapters.model_store import ModelStore
from app.adapters.schema_file import RegistrySchema
from app.domain.errors import ModelRefused
from app.settings import Settings
from training.gate import METRIC, POPULARITY, Check, Gain, Verdict, gain_of

# Of the rankers that a report compares, the one that is stored as a model.
MODEL = "xgboost"


class ModelTable:
    """The table `models`: every trained version with its manifest, and when it was promoted last."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, version: str, manifest: Mapping[str, Any]) -> None:
        """Records a version once and for all; `manifest` names its files' hashes, as `ModelStore.write` returns it.

        Raises:
            ModelRefused: it is recorded with other content, or the manifest has no hashes.
        """
        if not manifest.get("files_sha256"):
            raise ModelRefused(f"the manifest of model {version} does not name the SHA-256 of its files")
        with self._database.transaction() as connection:
            connection.execute(
                text("""
                    INSERT INTO models (version, manifest) VALUES (:version, CAST(:manifest AS jsonb))
                    ON CONFLICT DO NOTHING"""),
                {"version": version, "manifest": json.dumps(manifest)},
            )
        if not self.is_same(version, manifest):
            raise ModelRefused(f"model {version} is recorded with other content: versions never change")

    def is_same(self, version: str, manifest: Mapping[str, Any]) -> bool | None:
        """Whether this is the manifest that was recorded; None if the version was not."""
        with self._database.transaction() as connection:
            return connection.execute(
                text("SELECT manifest = CAST(:manifest AS jsonb) FROM models WHERE version = :version"),
                {"version": version, "manifest": json.dumps(manifest)},
            ).scalar_one_or_none()

    def note_promotion(self, version: str) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                text("UPDATE models SET promoted_at = now() WHERE version = :version"), {"version": version}
            )

    def promotion_times(self) -> dict[str, datetime | None]:
        """When each recorded version was promoted last."""
        with self._database.transaction() as connection:
            return dict(connection.execute(text("SELECT version, promoted_at FROM models")).tuples().all())


@dataclass(frozen=True, slots=True)
class GateDecision:
    """A verdict, or (`promoted`) a promotion with the verdict it rested on, None where there was none.

    `compared_with` is the version that served at the verdict, None if none did.
    """

    version: str
    decided_at: datetime
    is_passed: bool | None
    checks: tuple[Check, ...]
    compared_with: str | None
    promoted: bool
    actor: str | None
    reason: str | None


_DECISION_COLUMNS = "version, decided_at, is_passed, checks, compared_with, promoted, actor, reason"


class GateDecisions:
    """The table `gate_decisions`: what the gate said of each version, and what was promoted by whom. Rows never change."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_verdict(self, version: str, verdict: Verdict, compared_with: str | None) -> None:
        self._add(version, verdict.is_passed, verdict.to_json(), compared_with, False, None, None)

    def add_promotion(self, version: str, actor: str | None, reason: str | None) -> None:
        last = self.last_verdict(version)
        checks = [] if last is None else Verdict(bool(last.is_passed), last.checks).to_json()
        is_passed, compared_with = (None, None) if last is None else (last.is_passed, last.compared_with)
        self._add(version, is_passed, checks, compared_with, True, actor, reason)

    def last_verdict(self, version: str) -> GateDecision | None:
        return next((d for d in reversed(self.of(version)) if not d.promoted), None)

    def of(self, version: str) -> list[GateDecision]:
        """All decisions about a version, oldest first."""
        return self._select("WHERE version = :version ORDER BY id", version=version)

    def last_verdicts(self) -> dict[str, GateDecision]:
        """The last verdict about each version that was judged."""
        rows = self._select("WHERE NOT promoted ORDER BY id")
        return {decision.version: decision for decision in rows}

    def _select(self, condition: str, **parameters: Any) -> list[GateDecision]:
        with self._database.transaction() as connection:
            rows = connection.execute(
                text(f"SELECT {_DECISION_COLUMNS} FROM gate_decisions {condition}"), parameters
            ).mappings()
            return [
                GateDecision(**{**row, "checks": tuple(Check(**check) for check in row["checks"])})
                for row in rows
            ]

    def _add(
        self,
        version: str,
        is_passed: bool | None,
        checks: list[dict[str, Any]],
        compared_with: str | None,
        promoted: bool,
        actor: str | None,
        reason: str | None,
    ) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                text("""
                    INSERT INTO gate_decisions
                        (version, is_passed, checks, compared_with, promoted, actor, reason)
                    VALUES (:version, :is_passed, CAST(:checks AS jsonb), :compared_with, :promoted, :actor, :reason)
                """),
                {
                    "version": version,
                    "is_passed": is_passed,
                    "checks": json.dumps(checks),
                    "compared_with": compared_with,
                    "promoted": promoted,
                    "actor": actor,
                    "reason": reason,
                },
            )


@dataclass(frozen=True, slots=True)
class ModelState:
    """Where a version stands. `gate` is its last verdict, None if it was never judged."""

    version: str
    manifest: Mapping[str, Any]
    is_serving: bool
    is_previous: bool
    promoted_at: datetime | None
    gate: GateDecision | None

    @property
    def ndcg(self) -> float | None:
        """NDCG@10 over all test slates; None where the manifest has no such figure."""
        return _at(self.manifest, "metrics", "rankers", MODEL, "all", METRIC)

    @property
    def gain_over_popularity(self) -> Gain | None:
        return gain_of(self.manifest.get("metrics", {}), MODEL, POPULARITY)


@dataclass(frozen=True, slots=True)
class ModelDetails:
    state: ModelState
    decisions: tuple[GateDecision, ...]


Pair = tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class ModelDiff:
    """What differs between the manifests of two versions, by dotted name: values of the first and of the second.

    `metrics` holds all metrics that both have with numbers, also equal ones. A value that one lacks is None.
    """

    parameters: Mapping[str, Pair]
    columns_added: tuple[str, ...]
    columns_removed: tuple[str, ...]
    windows: Mapping[str, Pair]
    metrics: Mapping[str, tuple[float, float]]
    constants: Mapping[str, Pair]
    versions: Mapping[str, Pair]


class Promotions:
    """Lets versions serve that earned it, and tells where every version stands."""

    def __init__(
        self, store: ModelStore, table: ModelTable, decisions: GateDecisions, schemas: RegistrySchema
    ) -> None:
        self._store = store
        self._table = table
        self._decisions = decisions
        self._schemas = schemas

    def promote(
        self, version: str, force: bool = False, reason: str | None = None, actor: str | None = None
    ) -> str:
        """Makes a version (or `latest`) serve, after checking its files and its gate; returns its name.

        `force`, with a reason that is kept, lets a version serve that the gate did not pass, or that nobody has recorded
        here. It never lets one serve whose files differ from the record, or that does not fit the features.

        Raises:
            ModelRefused: the present model goes on serving.
        """
        if force and not (reason or "").strip():
            raise ModelRefused("give the reason for promoting past the gate with --reason")
        version = self._named(version)
        self._store.check(version, self._schemas.read())
        self._store.verify(version)
        self._check_record(version, force)
        if not force:
            self._check_gate(version)
        self._decisions.add_promotion(version, actor, reason)
        self._store.activate(version)
        self._table.note_promotion(version)
        return version

    def _named(self, version: str) -> str:
        if version != "latest":
            return version
        versions = self._store.versions()
        if not versions:
            raise ModelRefused("there are no models: run `propositions train`")
        return versions[-1]

    def _check_record(self, version: str, force: bool) -> None:
        manifest = self._store.manifest(version)
        is_same = self._table.is_same(version, manifest)
        if is_same is None and not force:
            raise ModelRefused(
                f"model {version} is not recorded in this database: train it here, or promote it with --force and "
                "--reason"
            )
        if is_same is False:
            raise ModelRefused(
                f"the manifest of model {version} is not the one that was recorded when it was trained: its folder "
                f"{self._store.folder(version)} was changed"
            )
        if is_same is None:
            self._table.add(version, manifest)

    def _check_gate(self, version: str) -> None:
        verdict = self._decisions.last_verdict(version)
        if verdict is None:
            raise ModelRefused(
                f"model {version} was never judged by the gate: train again, or promote it with --force and --reason"
            )
        if not verdict.is_passed:
            reasons = "; ".join(check.reason for check in verdict.checks if not check.is_passed)
            raise ModelRefused(f"the gate did not pass model {version}: {reasons}")
        serving = self._serving()
        if serving not in (verdict.compared_with, version):
            compared = verdict.compared_with or "no model"
            raise ModelRefused(
                f"the gate compared model {version} with {compared}, but {serving or 'no model'} serves now: "
                "train again, or promote it with --force and --reason"
            )

    def _serving(self) -> str | None:
        """The version that serves; None also where the pointer is damaged, which a promotion mends."""
        try:
            active = self._store.active()
        except ModelRefused:
            return None
        return None if active is None else active.version

    def roll_back(self, actor: str | None = None) -> str:
        """Makes the version serve that served before, whatever the gate says of it; returns its name.

        Raises:
            ModelRefused: there is no earlier one.
        """
        active = self._store.roll_back()
        self._decisions.add_promotion(active.version, actor, "rolled back")
        self._table.note_promotion(active.version)
        return active.version

    def baseline(self, version: str) -> Any:
        """The baseline of a version, whose file is the one that was recorded when it was trained.

        Raises:
            ModelRefused: it is not, or the version is not recorded. Nothing of the file was run.
        """
        if not self._table.is_same(version, self._store.manifest(version)):
            raise ModelRefused(f"the manifest of model {version} is not the one that was recorded")
        return self._store.load_baseline(version)

    def states(self) -> list[ModelState]:
        """All versions on this machine, oldest first."""
        times, verdicts = self._table.promotion_times(), self._decisions.last_verdicts()
        return [self._state(version, times, verdicts) for version in self._store.versions()]

    def describe(self, version: str) -> ModelDetails:
        """Raises ModelRefused if the version is not on this machine."""
        version = self._named(version)
        times, verdicts = self._table.promotion_times(), self._decisions.last_verdicts()
        return ModelDetails(self._state(version, times, verdicts), tuple(self._decisions.of(version)))

    def _state(
        self,
        version: str,
        times: Mapping[str, datetime | None],
        verdicts: Mapping[str, GateDecision],
    ) -> ModelState:
        active = self._store.active()
        return ModelState(
            version,
            self._store.manifest(version),
            is_serving=active is not None and active.version == version,
            is_previous=active is not None and active.previous == version,
            promoted_at=times.get(version),
            gate=verdicts.get(version),
        )

    def diff(self, first: str, second: str) -> ModelDiff:
        """Raises ModelRefused if one of them is not on this machine."""
        return diff_manifests(*(self._store.manifest(self._named(version)) for version in (first, second)))


def diff_manifests(first: Mapping[str, Any], second: Mapping[str, Any]) -> ModelDiff:
    """What differs between two manifests."""
    columns = [list(manifest.get("columns", ())) for manifest in (first, second)]
    constants = [
        {name: value for name, value in manifest.get("matrix", {}).items() if name != "schema"}
        for manifest in (first, second)
    ]
    metrics = [_flat(manifest.get("metrics", {})) for manifest in (first, second)]
    about = [
        {"code_version": manifest.get("code_version"), "libraries": manifest.get("libraries", {})}
        for manifest in (first, second)
    ]
    return ModelDiff(
        parameters=_changes(first.get("parameters", {}), second.get("parameters", {})),
        columns_added=tuple(name for name in columns[1] if name not in set(columns[0])),
        columns_removed=tuple(name for name in columns[0] if name not in set(columns[1])),
        windows=_changes(first.get("windows", {}), second.get("windows", {})),
        metrics={
            name: (metrics[0][name], metrics[1][name])
            for name in metrics[0]
            if _is_number(metrics[0][name]) and _is_number(metrics[1].get(name))
        },
        constants=_changes(*constants),
        versions=_changes(*about),
    )


def _changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Pair]:
    ours, theirs = _flat(first), _flat(second)
    return {
        name: (ours.get(name), theirs.get(name))
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted name.

    >>> _flat({"a": {"b": 1, "c": [2]}, "d": 3})
    {'a.b': 1, 'a.c': [2], 'd': 3}
    """
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= _flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _at(tree: Any, *names: str) -> Any:
    """What lies at a path of nested mappings; None where there is nothing."""
    for name in names:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(name)
    return tree


def open_promotions(settings: Settings) -> Promotions:
    database = service_database(settings)
    return Promotions(
        ModelStore(settings.model_dir, settings.half_lives_s),
        ModelTable(database),
        GateDecisions(database),
        RegistrySchema(settings),
    )

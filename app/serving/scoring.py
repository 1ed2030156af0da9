"""Scores of candidates, from parts: what is the same for many pairs of a request and a candidate is done once.

A row of the model's matrix has columns of the request (user and context), of the user and a category,
of the candidate (its own and those of its context), and of the user and the candidate (what it has in common with the
user's history). The candidates' parts are kept for a while, since
counters change and decay; before it is over they are computed anew, beside the requests.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from app.domain.types import FeatureState
from app.features.affinity import NO_HISTORY, History
from app.features.assembly import REQUEST_ENTITIES, MatrixSpec
from app.features.catalog import Catalog
from app.features.forest import Forest
from app.features.history import HISTORY_FIELDS
from app.features.ports import Model, OnlineRows
from app.features.rows import NUMBER_PREFIX, Rows, rows_from_records
from app.features.schema import EntityName, ViewSchema
from app.features.snapshot import Snapshot
from app.serving.kept_parts import Computed, ContextParts, Pool
from app.serving.online import OnlineFeatures

OF_REQUEST = REQUEST_ENTITIES
OF_CATEGORY = (EntityName.USER_CATEGORY,)
OF_CANDIDATE = (EntityName.PROPOSITION, EntityName.CONTEXT_PROPOSITION)

# So many at a time take about as long as a request.
PREPARED_AT_ONCE = 512

# Told, after each step of a work, how many seconds of the processor it took, and how many steps are left.
Pace = Callable[[float, int], None]


class Scoring(Protocol):
    """A way to evaluate a model on blocks of columns, each once.

    The methods named `of_...` turn blocks float32 (m, k) of the columns of that part into parts (m, w); `of_pairs` into
    whatever `score` takes. What was `computed` of candidates lately is `renewed` with their columns of today.
    """

    def of_request(self, block: np.ndarray) -> np.ndarray: ...
    def of_categories(self, block: np.ndarray) -> np.ndarray: ...
    def of_candidates(self, block: np.ndarray) -> Computed: ...
    def renewed(self, computed: Computed, block: np.ndarray) -> Computed: ...
    def of_pairs(self, block: np.ndarray) -> Any: ...

    @property
    def reads_pairs(self) -> bool: ...

    def score(self, request: np.ndarray, categories: Pool, candidates: Pool, pairs: Any | None) -> np.ndarray:
        """Scores, float (n,), from the request's part (1, w), the n pairs, and the pools of the others.

        `pairs` may be None if they are not read.
        """


class ForestScoring:
    """Masks of reachable leaves, combined by AND."""

    def __init__(self, forest: Forest, spec: MatrixSpec) -> None:
        self._forest = forest
        self.of_request = forest.part(columns_of(spec, part_views(spec, OF_REQUEST))).masks
        self.of_categories = forest.part(columns_of(spec, part_views(spec, OF_CATEGORY))).masks
        self._candidates = forest.part(columns_of(spec, part_views(spec, OF_CANDIDATE)))
        pairs = forest.part(columns_of(spec, pair_views(spec)))
        self.of_pairs, self.reads_pairs = pairs.pools, pairs.is_tested

    def of_candidates(self, block: np.ndarray) -> Computed:
        intervals = self._candidates.intervals(block)
        return Computed(self._candidates.masks_in(intervals), intervals.T.astype(np.int32))

    def renewed(self, computed: Computed, block: np.ndarray) -> Computed:
        """In some seconds few values come past a threshold. Changes what is given."""
        moved = (~self._candidates.lies_in(block, computed.intervals.T)).nonzero()[0]
        if len(moved):
            computed.parts[moved], computed.intervals[moved] = self.of_candidates(block[moved])
        return computed

    def score(
        self, request: np.ndarray, categories: Pool, candidates: Pool, pairs: list[Pool] | None
    ) -> np.ndarray:
        return self._forest.gathered_scores(request[0], (candidates, categories, *(pairs or ())))


class MatrixScoring:
    """The whole matrix, for models whose trees cannot be taken apart."""

    def __init__(self, model: Model) -> None:
        self._model = model
        spec = model.spec
        self._columns = [
            columns_of(spec, part_views(spec, part)) for part in (OF_REQUEST, OF_CATEGORY, OF_CANDIDATE)
        ]
        self._pair_columns = columns_of(spec, pair_views(spec))
        self.reads_pairs = len(self._pair_columns) > 0

    def of_request(self, block: np.ndarray) -> np.ndarray:
        return block

    of_categories = of_pairs = of_request

    def of_candidates(self, block: np.ndarray) -> Computed:
        return Computed(block, np.empty((len(block), 0), np.int32))

    def renewed(self, computed: Computed, block: np.ndarray) -> Computed:
        return self.of_candidates(block)

    def score(
        self, request: np.ndarray, categories: Pool, candidates: Pool, pairs: np.ndarray | None
    ) -> np.ndarray:
        of_request, of_category, of_candidate = self._columns
        matrix = np.empty((len(candidates[1]), len(self._model.spec.columns)), np.float32)
        matrix[:, of_request] = request
        matrix[:, self._pair_columns] = pairs
        for columns, (parts, rows) in ((of_category, categories), (of_candidate, candidates)):
            matrix[:, columns] = parts[rows]
        return self._model.score(matrix)


def part_views(spec: MatrixSpec, entities: Iterable[EntityName]) -> list[ViewSchema]:
    return [view for view in spec.views if view.entity in entities and not view.has_history]


def pair_views(spec: MatrixSpec) -> list[ViewSchema]:
    return [view for view in spec.views if view.has_history]


def columns_of(spec: MatrixSpec, views: Iterable[ViewSchema]) -> np.ndarray:
    """Numbers of the matrix columns that these views fill, in their order."""
    ranges = [spec.columns_of[view.name] for view in views]
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(r.start, r.stop) for r in ranges)])


class Scorer:
    """Scores candidates of one model, with their counters as they are in `snapshot` at `as_of_s`.

    `max_bytes` bounds what is kept of the candidates' parts; the context not asked for longest goes first.
    """

    def __init__(self, model: Model, snapshot: Snapshot, as_of_s: float, max_bytes: int) -> None:
        self.model, self.snapshot, self.as_of_s = model, snapshot, as_of_s
        self._spec = model.spec
        self._scoring: Scoring = (
            MatrixScoring(model) if model.forest is None else ForestScoring(model.forest, model.spec)
        )
        self._max_bytes = max_bytes
        self._views = {part: part_views(self._spec, part) for part in (OF_REQUEST, OF_CATEGORY, OF_CANDIDATE)}
        self._affinity = self._spec.affinity(snapshot.traits)
        self._no_rows: dict[str, Rows] = {}
        self._contexts: OrderedDict[str | None, ContextParts] = OrderedDict()
        self.was_asked = False

    def fits(self, snapshot: Snapshot) -> bool:
        """True if positions mean the same there as here."""
        ours = self.snapshot
        is_known = len(snapshot.catalog) == len(ours.catalog)
        return is_known and snapshot.version.generation == ours.version.generation

    def has_counters_of(self, snapshot: Snapshot) -> bool:
        """True if no counter has changed there since."""
        ours = self.snapshot
        return (
            ours.performance.counts is snapshot.performance.counts
            and ours.contexts.counters.counts is snapshot.contexts.counters.counts
        )

    def score(
        self,
        context_key: str,
        positions: np.ndarray,
        catalog: Catalog,
        online: OnlineFeatures,
        now_s: float,
    ) -> np.ndarray:
        """Scores, float (n,), of the candidates at `positions` with the rows read for the request."""
        self.was_asked = True
        request_block, rates = self._request_block(online.rows, now_s)
        category_block, row_of_category = self._category_block(catalog, online, rates, now_s)
        return self._scoring.score(
            self._scoring.of_request(request_block),
            (self._scoring.of_categories(category_block), row_of_category[catalog.categories[positions]]),
            self._candidates(context_key, positions),
            self._pairs(catalog, online, positions),
        )

    def matrix(
        self,
        context_key: str,
        positions: np.ndarray,
        catalog: Catalog,
        online: OnlineFeatures,
        now_s: float,
    ) -> np.ndarray:
        """The rows that `score` evaluates, float32 (n, columns of the model); nothing of it is kept."""
        request_block, rates = self._request_block(online.rows, now_s)
        category_block, row_of_category = self._category_block(catalog, online, rates, now_s)
        key = context_key if context_key in self.snapshot.contexts.numbers else None
        matrix = np.empty((len(positions), len(self._spec.columns)), np.float32)
        matrix[:, columns_of(self._spec, self._views[OF_REQUEST])] = request_block
        categories = category_block[row_of_category[catalog.categories[positions]]]
        matrix[:, columns_of(self._spec, self._views[OF_CATEGORY])] = categories
        candidates = self._candidate_block(key, positions)
        matrix[:, columns_of(self._spec, self._views[OF_CANDIDATE])] = candidates
        for view in pair_views(self._spec):
            pairs = self._affinity.columns(history_of(view, catalog, online), positions)
            matrix[:, columns_of(self._spec, [view])] = pairs
        return matrix

    def prepare_as(self, other: "Scorer", pace: Pace) -> None:
        """Computes the parts of the candidates that `other` was asked for lately, or all that it has of a context in which
        these are much of the catalog. What `other` is asked for from now on is not among them."""
        if other.model is self.model and other.snapshot.traits is self.snapshot.traits:
            self._affinity = other._affinity
        wanted = [(key, theirs, *theirs.wanted()) for key, theirs in list(other._contexts.items())]
        steps_left = sum(_step_count(len(positions)) for *_, positions, _ in wanted)
        for context_key, theirs, positions, idle_renewals in wanted:
            steps_left -= _step_count(len(positions))
            key, parts = self._parts_of(context_key, len(positions) + PREPARED_AT_ONCE)
            for few in _paced_steps(len(positions), pace, steps_left):
                block = self._candidate_block(key, positions[few])
                if other.model is self.model:
                    computed = self._scoring.renewed(theirs.of(positions[few]), block)
                else:
                    computed = self._scoring.of_candidates(block)
                parts.add(positions[few], computed)
                parts.set_idle(positions[few], idle_renewals[few])
        self._shrink()

    def complete(self, pace: Pace, is_over: Callable[[], bool]) -> None:
        """Computes the parts of all candidates for contexts in which much of the catalog was asked for, as far as there
        is memory, the one asked last first. Begins with none when it `is_over`: they are left to the next call.

        Goes on beside the requests. A request never waits for it, and what it adds to a context that is under way is
        computed here as well. Nothing is removed from the contexts, which requests may be looking through.
        """
        for key, parts in reversed(list(self._contexts.items())):
            if is_over():
                return
            if not parts.is_worth_completing or parts.completed_bytes - parts.size_bytes > self._room_bytes():
                continue
            whole = ContextParts(len(self.snapshot.catalog), len(self.snapshot.catalog))
            everybody = np.arange(len(self.snapshot.catalog))
            for few in _paced_steps(len(everybody), pace):
                block = self._candidate_block(key, everybody[few])
                whole.add(everybody[few], self._scoring.of_candidates(block))
            whole.set_idle(everybody, parts.idle_renewals_by_position())
            if self._contexts.get(key) is parts:
                self._contexts[key] = whole

    def _room_bytes(self) -> int:
        return self._max_bytes - sum(parts.size_bytes for parts in list(self._contexts.values()))

    def _request_block(
        self, online: Mapping[str, OnlineRows], now_s: float
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Columns of the user and the context, (1, k), and the rates of their views by name."""
        blocks, rates = [np.zeros((1, 0), np.float32)], {}
        for view in self._views[OF_REQUEST]:
            rows = online[view.name].rows if view.name in online else self._no_row(view)
            block, rates[view.name] = self._spec.block(view, rows, now_s, rates.get(view.prior_view))
            blocks.append(block)
        return np.concatenate(blocks, axis=1), rates

    def _category_block(
        self, catalog: Catalog, online: OnlineFeatures, rates: Mapping[str, np.ndarray], now_s: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Columns of the user and each category with a row, and a last one for all others: (m, k).

        Also the row of every category of the catalog, int (categories,).
        """
        views = self._views[OF_CATEGORY]
        known = sorted(
            {
                number
                for view in views
                if view.name in online.rows
                for number, state in enumerate(online.rows[view.name].states)
                if state is FeatureState.FRESH
            }
        )
        row_of_category = np.full(len(catalog.category_names), len(known), np.intp)
        row_of_category[[online.categories[number] for number in known]] = np.arange(len(known))
        blocks = [np.zeros((len(known) + 1, 0), np.float32)]
        for view in views:
            none = self._no_row(view)
            rows = online.rows[view.name].rows.take(np.array(known)).followed_by(none) if known else none
            blocks.append(self._spec.block(view, rows, now_s, rates.get(view.prior_view))[0])
        return np.concatenate(blocks, axis=1), row_of_category

    def _no_row(self, view: ViewSchema) -> Rows:
        row = self._no_rows.get(view.name)
        if row is None:
            row = self._no_rows[view.name] = rows_from_records(view, [None], len(self._spec.half_lives_s))
        return row

    def _candidates(self, context_key: str, positions: np.ndarray) -> Pool:
        key, parts = self._parts_of(context_key)
        missing = parts.missing(positions)
        if not len(missing):
            return parts.pool(positions)
        computed = self._scoring.of_candidates(self._candidate_block(key, missing))
        if not parts.has_room_for(len(missing)):
            return parts.pool_with(positions, computed.parts)
        parts.add(missing, computed)
        self._shrink()
        return parts.pool(positions)

    def _pairs(self, catalog: Catalog, online: OnlineFeatures, positions: np.ndarray) -> Any | None:
        if not self._scoring.reads_pairs:
            return None
        (view,) = pair_views(self._spec)
        return self._scoring.of_pairs(self._affinity.columns(history_of(view, catalog, online), positions))

    def _parts_of(self, context_key: str | None, room: int = 0) -> tuple[str | None, ContextParts]:
        # Contexts that nothing is known of share their parts.
        key = context_key if context_key in self.snapshot.contexts.numbers else None
        parts = self._contexts.get(key)
        if parts is None:
            parts = self._contexts[key] = ContextParts(len(self.snapshot.catalog), room)
        self._contexts.move_to_end(key)
        return key, parts

    def _shrink(self) -> None:
        while (
            len(self._contexts) > 1 and sum(p.size_bytes for p in self._contexts.values()) > self._max_bytes
        ):
            self._contexts.popitem(last=False)

    def _candidate_block(self, context_key: str | None, positions: np.ndarray) -> np.ndarray:
        blocks, rates = [np.zeros((len(positions), 0), np.float32)], {}
        for view in self._views[OF_CANDIDATE]:
            rows = candidate_rows(view, self.snapshot, context_key, positions, self.as_of_s)
            block, rates[view.name] = self._spec.block(view, rows, self.as_of_s, rates.get(view.prior_view))
            blocks.append(block)
        return np.concatenate(blocks, axis=1)


def _paced_steps(count: int, pace: Pace, steps_behind: int = 0) -> Iterator[slice]:
    """Steps of PREPARED_AT_ONCE through `count`, behind which as many of other work follow."""
    for first in range(0, count, PREPARED_AT_ONCE):
        began_s, last = time.thread_time(), first + PREPARED_AT_ONCE
        yield slice(first, last)
        pace(time.thread_time() - began_s, _step_count(max(count - last, 0)) + steps_behind)


def _step_count(count: int) -> int:
    return -(-count // PREPARED_AT_ONCE)


def history_of(view: ViewSchema, catalog: Catalog, online: OnlineFeatures) -> History:
    """The user's history with the propositions' positions in the catalog."""
    if view.name not in online.rows or online.rows[view.name].states[0] is not FeatureState.FRESH:
        return NO_HISTORY
    ids, impressions, clicks = (online.rows[view.name].rows.values[name][0] for name in HISTORY_FIELDS)
    if not len(ids) == len(impressions) == len(clicks):
        return NO_HISTORY
    count = len(ids)
    return History(
        catalog.positions_of(ids),
        np.fromiter(impressions, np.float64, count),
        np.fromiter(clicks, np.float64, count),
    )


def candidate_rows(
    view: ViewSchema, snapshot: Snapshot, context_key: str | None, positions: np.ndarray, now_s: float
) -> Rows:
    """The rows of a view of candidates, one each.

    Counters past the view's TTL read as no row, as they do online and in training.
    """
    if not view.has_counters:
        numbers = [NUMBER_PREFIX + name for name in snapshot.traits.numbers]
        return snapshot.attribute_rows((*view.field_names, *numbers), positions)
    if view.entity is EntityName.PROPOSITION:
        rows = snapshot.performance.take(positions)
    else:
        rows = snapshot.contexts.take(context_key, positions)
    return rows.without_older_than(now_s - view.ttl_s)

"""The propositions as columns, and the one place that decides which of them may be shown."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

import mmh3
import numpy as np
import orjson

from app.domain.types import Proposition, SuggestRequest
from app.features.columns import RaggedColumn, updated

# Of the propositions that were looked up in a catalog, and of what is shown of them: few are shown to many.
MAX_REMEMBERED, MAX_REMEMBERED_BYTES = 20_000, 16 * 2**20
# Of the room, what a single lookup may take: one of very many says nothing of what is asked for often.
_LOOKUP_SHARE = 0.1


# What one that is remembered takes beside its details.
_SHOWN_BYTES = 300


class Shown(NamedTuple):
    """What an answer says of a proposition; `details` is a JSON object."""

    proposition_id: str
    details: bytes


@dataclass(frozen=True)
class Catalog:
    """n propositions by position, immutable, without an object per proposition: it may lie in mapped files. What is
    looked up often is remembered.

    `ids` and `details` hold UTF-8; the details are a JSON object of what is shown. `id_hashes` uint64
    (n,) ascending and `id_positions` int32 (n,) find a position by its id. Times are seconds since the
    epoch, float64 (n,), infinite where a window is open; `values` and `created_s` NaN where unknown.
    `categories` int32 (n,) and the items of `tags` are positions in the names.

    A proposition is eligible when it is active, `now` lies in its window [starts, ends), it was not
    excluded, it is among the request's candidates (if given), and it passes the filters. Every ranker,
    the static default included, asks here.
    """

    ids: RaggedColumn
    details: RaggedColumn
    tags: RaggedColumn
    id_hashes: np.ndarray
    id_positions: np.ndarray
    is_active: np.ndarray
    starts_s: np.ndarray
    ends_s: np.ndarray
    values: np.ndarray
    created_s: np.ndarray
    categories: np.ndarray
    category_names: tuple[str, ...]
    tag_names: tuple[str, ...]

    @classmethod
    def empty(cls) -> "Catalog":
        numbers = np.zeros(0)
        return cls(
            ids=RaggedColumn.empty(np.uint8),
            details=RaggedColumn.empty(np.uint8),
            tags=RaggedColumn.empty(np.int32),
            id_hashes=np.zeros(0, np.uint64),
            id_positions=np.zeros(0, np.int32),
            is_active=np.zeros(0, bool),
            starts_s=numbers,
            ends_s=numbers,
            values=numbers,
            created_s=numbers,
            categories=np.zeros(0, np.int32),
            category_names=(),
            tag_names=(),
        )

    @classmethod
    def of(cls, propositions: Sequence[Proposition]) -> "Catalog":
        return cls.empty().with_propositions(propositions)

    def __len__(self) -> int:
        return len(self.is_active)

    def id_at(self, position: int) -> str:
        return self.ids.row(position).tobytes().decode()

    def details_at(self, position: int) -> bytes:
        """The proposition as a JSON object: id, title, category, tags, value, attributes."""
        return self.details.row(position).tobytes()

    def position_of(self, proposition_id: str) -> int | None:
        (position,) = self.positions_of([proposition_id])
        return None if position < 0 else int(position)

    def shown(self, positions: Sequence[int]) -> list[Shown]:
        """What is shown of the propositions at these positions."""

        def look_up(new: list[int]) -> list[Shown]:
            ids, details = self.ids.texts(np.array(new)), self.details.texts(np.array(new))
            return [Shown(id_.decode(), content) for id_, content in zip(ids, details, strict=True)]

        return self._shown.of(positions, look_up)

    def positions_of(self, proposition_ids: Collection[str]) -> np.ndarray:
        """Positions int64 in the order of the ids; -1 for ids that are not known."""
        found = self._positions.of(proposition_ids, lambda new: self._search(new).tolist())
        return np.fromiter(found, np.int64, len(found))

    def _search(self, proposition_ids: Collection[str]) -> np.ndarray:
        hashes = _hashes(proposition_ids)
        if not len(self):
            return np.full(len(hashes), -1, np.int64)
        found = self.id_hashes.searchsorted(hashes)
        found[found == len(self)] = 0
        positions = self.id_positions.take(found).astype(np.int64)
        positions[self.id_hashes.take(found) != hashes] = -1
        return positions

    def eligible(
        self, request: SuggestRequest, now: datetime, positions: np.ndarray | None = None
    ) -> np.ndarray:
        """Those of `positions` (None: of all) that may be shown, in their order, int64."""
        if request.candidate_ids is not None:
            wanted = self.positions_of(request.candidate_ids)
            wanted = np.unique(wanted[wanted >= 0])
            positions = wanted if positions is None else positions[np.isin(positions, wanted)]
        chosen = slice(None) if positions is None else positions
        mask = self.is_open(now.timestamp(), chosen)
        filters = request.filters
        if filters.min_value is not None:
            mask &= self.values[chosen] >= filters.min_value
        if filters.categories:
            mask &= np.isin(self.categories[chosen], self._codes(filters.categories, self._category_codes))
        kept = np.flatnonzero(mask) if positions is None else positions[mask]
        if request.excluded_ids:
            kept = kept[np.isin(kept, self.positions_of(request.excluded_ids), invert=True)]
        return self._tagged(kept, filters.tags) if filters.tags else kept

    def is_open(self, now_s: float, chosen=slice(None)) -> np.ndarray:
        """Which of the chosen positions are active and in their window, bool."""
        return self.is_active[chosen] & (self.starts_s[chosen] <= now_s) & (now_s < self.ends_s[chosen])

    def _tagged(self, positions: np.ndarray, tags: frozenset[str]) -> np.ndarray:
        codes = self._codes(tags, self._tag_codes)
        if len(codes) < len(tags):
            return positions[:0]
        items, row_numbers = self.tags.rows(positions)
        matches = np.bincount(row_numbers[np.isin(items, codes)], minlength=len(positions))
        return positions[matches == len(codes)]

    @cached_property
    def _shown(self) -> "_Memory":
        return _Memory(MAX_REMEMBERED_BYTES, lambda shown: _SHOWN_BYTES + len(shown.details))

    @cached_property
    def _positions(self) -> "_Memory":
        return _Memory(MAX_REMEMBERED, lambda position: 1)

    @cached_property
    def _category_codes(self) -> dict[str, int]:
        return {name: code for code, name in enumerate(self.category_names)}

    @cached_property
    def _tag_codes(self) -> dict[str, int]:
        return {name: code for code, name in enumerate(self.tag_names)}

    @staticmethod
    def _codes(names: Iterable[str], codes: Mapping[str, int]) -> np.ndarray:
        return np.array([codes[name] for name in names if name in codes], dtype=np.int32)

    def with_propositions(self, changes: Sequence[Proposition]) -> "Catalog":
        """The next catalog. Known propositions keep their positions; new ones are appended."""
        latest = list({p.proposition_id: p for p in changes}.values())
        if not latest:
            return self
        positions = self.positions_of([p.proposition_id for p in latest])
        is_new = positions < 0
        positions[is_new] = len(self) + np.arange(is_new.sum())
        count = len(self) + int(is_new.sum())
        category_names, category_codes = extended(self.category_names, [(p.category or "",) for p in latest])
        tag_names, tag_codes = extended(self.tag_names, [sorted(set(p.tags)) for p in latest])

        def column(name: str, values: Iterable, fill) -> np.ndarray:
            return updated(getattr(self, name), positions, list(values), count, fill)

        return replace(
            self._with_ids([p.proposition_id for p in latest], positions, is_new, count),
            details=self.details.with_rows(positions, [_details(p) for p in latest], count),
            tags=self.tags.with_rows(positions, tag_codes, count),
            is_active=column("is_active", (p.is_active for p in latest), False),
            starts_s=column("starts_s", (_seconds(p.starts_at, -np.inf) for p in latest), 0.0),
            ends_s=column("ends_s", (_seconds(p.ends_at, np.inf) for p in latest), 0.0),
            values=column("values", (np.nan if p.value is None else p.value for p in latest), np.nan),
            created_s=column("created_s", (_seconds(p.created_at, np.nan) for p in latest), np.nan),
            categories=column("categories", (code for (code,) in category_codes), 0),
            category_names=category_names,
            tag_names=tag_names,
        )

    def _with_ids(
        self, ids: Sequence[str], positions: np.ndarray, is_new: np.ndarray, count: int
    ) -> "Catalog":
        new_ids = [i for i, new in zip(ids, is_new, strict=True) if new]
        if not new_ids:
            return self
        hashes = np.concatenate([self.id_hashes, _hashes(new_ids)])
        order = np.argsort(hashes, kind="stable")
        return replace(
            self,
            ids=self.ids.with_rows(positions[is_new], [i.encode() for i in new_ids], count),
            id_hashes=hashes[order],
            id_positions=np.concatenate([self.id_positions, positions[is_new].astype(np.int32)])[order],
        )


class _Memory(dict):
    """What was looked up lately, as far as there is `room` for what it weighs. Threads may share it."""

    def __init__(self, room: int, weigh: Callable[[Any], int]) -> None:
        super().__init__()
        self._room, self._weigh = room, weigh
        self._taken = 0

    def of(self, keys: Collection, look_up: Callable[[list], list]) -> list:
        values = list(map(self.get, keys))
        if None in values:
            new = [key for key, value in zip(keys, values, strict=True) if value is None]
            found = dict(zip(new, look_up(new), strict=True))
            values = [found[key] if value is None else value for key, value in zip(keys, values, strict=True)]
            self._keep(found)
        return values

    def _keep(self, found: Mapping) -> None:
        weight = sum(map(self._weigh, found.values()))
        if weight > _LOOKUP_SHARE * self._room:
            return
        if self._taken + weight > self._room:
            self.clear()
            self._taken = 0
        self.update(found)
        self._taken += weight


ARRAY_COLUMNS = tuple(field.name for field in fields(Catalog) if field.type in ("np.ndarray", np.ndarray))
RAGGED_COLUMNS = ("ids", "details", "tags")


def _hashes(texts: Collection[str]) -> np.ndarray:
    """64-bit hashes, uint64 (n,). Among 10 million ids, two alike are a matter of 1 in 300,000."""
    digests = b"".join([mmh3.hash_bytes(text) for text in texts])
    return np.frombuffer(digests, dtype="<u8")[::2]


def extended(
    names: tuple[str, ...], rows: Sequence[Iterable[str]]
) -> tuple[tuple[str, ...], list[list[int]]]:
    """The names with those that are new, and for each row the positions of its names."""
    codes = {name: code for code, name in enumerate(names)}
    coded = [[codes.setdefault(name, len(codes)) for name in row] for row in rows]
    return (names if len(codes) == len(names) else tuple(codes)), coded


def _details(proposition: Proposition) -> bytes:
    shown: dict[str, Any] = {
        "proposition_id": proposition.proposition_id,
        "title": proposition.title,
        "category": proposition.category,
        "tags": proposition.tags,
        "value": proposition.value,
        "attributes": proposition.attributes,
    }
    return orjson.dumps(shown)


def _seconds(moment: datetime | None, default: float) -> float:
    return default if moment is None else moment.timestamp()

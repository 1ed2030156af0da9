"""A data set on disk: a folder of parts, each of consecutive slates, so that memory is bounded by one part.

A part is a folder of .npy files with numbers and Parquet files with texts, so that reading one takes no DuckDB and no
PostgreSQL. What all parts share (the traits) is written once. `manifest.json` says how the data set was made.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from app.domain.errors import ConfigurationError
from app.features.affinity import Histories, Traits
from app.features.columns import RaggedColumn
from app.features.rows import Rows
from app.features.schema import FeatureSchema
from training.arrow_rows import values_of
from training.dataset import Dataset, NothingToTrainOn, Slates
from training.labels import LabelOptions

_MANIFEST, _NAMES = "manifest.json", "arrays.json"
_TRAITS = "traits"
# Of the way the files lie in the folder.
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class PartSummary:
    """What a part holds. Times in seconds since the epoch; `click_rate` is the share of impressions with relevance."""

    slates: int
    impressions: int
    sampled_slates: int
    label_rate: float
    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True)
class FolderManifest:
    """How a data set was made, and what its parts hold."""

    options: LabelOptions
    schema_hash: str
    parts: tuple[PartSummary, ...]

    @property
    def impressions(self) -> int:
        return sum(part.impressions for part in self.parts)

    @property
    def slates(self) -> int:
        return sum(part.slates for part in self.parts)

    @property
    def label_rate(self) -> float:
        return sum(part.label_rate * part.impressions for part in self.parts) / self.impressions


class DatasetFolder:
    """A data set in a folder, opened for reading.

    Raises:
        ConfigurationError: there is none, or one of another version of this program.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            content = json.loads((folder / _MANIFEST).read_text())
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{folder} holds no complete data set: make it again") from error
        if content.get("format") != _FORMAT:
            raise ConfigurationError(f"{folder} was written by another version: make it again")
        self.manifest = FolderManifest(
            options=LabelOptions(**content["options"]),
            schema_hash=content["schema_hash"],
            parts=tuple(PartSummary(**part) for part in content["parts"]),
        )

    @classmethod
    def write(
        cls, folder: Path, parts: Iterable[Dataset], schema: FeatureSchema, options: LabelOptions
    ) -> "DatasetFolder":
        """Replaces what is in the folder by the parts, which are taken one at a time and share their traits.

        Raises:
            NothingToTrainOn: there are no parts; what was there is gone.
            ConfigurationError: the folder holds something else.
        """
        _clear(folder)
        summaries: list[PartSummary] = []
        for number, part in enumerate(parts):
            if number == 0:
                _write(folder / _TRAITS, _traits_arrays(part.traits))
            _write(folder / _part_name(number), _arrays(part))
            summaries.append(_summary(part))
        if not summaries:
            raise NothingToTrainOn("a data set without slates is not worth a folder: collect more events")
        about = {
            "format": _FORMAT,
            "options": asdict(options),
            "schema_hash": schema.hash(),
            "windows": [min(part.first_s for part in summaries), max(part.last_s for part in summaries)],
            "parts": [asdict(part) for part in summaries],
        }
        manifest = FolderManifest(options, schema.hash(), tuple(summaries))
        about |= {
            "slates": manifest.slates,
            "impressions": manifest.impressions,
            "label_rate": manifest.label_rate,
            "seed": options.seed,
        }
        # Last and in one step: a folder without it is no data set.
        draft = folder / f".{_MANIFEST}"
        draft.write_text(json.dumps(about, indent=2))
        draft.replace(folder / _MANIFEST)
        return cls(folder)

    def parts(self) -> Iterator[Dataset]:
        """The parts in the order of time, each read when it is asked for."""
        traits = _traits(_read(self._folder / _TRAITS))
        for number in range(len(self.manifest.parts)):
            yield _dataset(_read(self._folder / _part_name(number)), traits)


def is_same(one: Dataset, other: Dataset) -> bool:
    """Whether all arrays of both are equal, bit by bit."""
    first = _arrays(one) | _traits_arrays(one.traits)
    second = _arrays(other) | _traits_arrays(other.traits)
    return first.keys() == second.keys() and all(
        np.array_equal(array, second[name], equal_nan=array.dtype.kind == "f")
        for name, array in first.items()
    )


def _clear(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / _TRAITS).exists():
        raise ConfigurationError(f"{folder} holds something other than a data set: name another folder")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / _TRAITS).mkdir(parents=True)


def _part_name(number: int) -> str:
    return f"part-{number:05}"


def _summary(part: Dataset) -> PartSummary:
    return PartSummary(
        slates=part.slate_count,
        impressions=len(part),
        sampled_slates=int(part.slates.is_sampled.sum()),
        label_rate=float((part.relevance > 0).mean()),
        first_s=float(part.slates.decided_at_s[0]),
        last_s=float(part.slates.decided_at_s[-1]),
    )


# By the names of what they belong to, from the outermost on.
_Arrays = dict[tuple[str, ...], np.ndarray]


def _arrays(part: Dataset) -> _Arrays:
    """All arrays of a data set but its traits."""
    arrays: _Arrays = {("slates", field.name): getattr(part.slates, field.name) for field in fields(Slates)}
    arrays |= {("histories", field.name): getattr(part.histories, field.name) for field in fields(Histories)}
    for name in ("proposition_ids", "positions", "relevance", "trait_rows"):
        arrays["impressions", name] = getattr(part, name)
    for view, rows in part.rows.items():
        if rows.counts is not None:
            arrays |= {("rows", view, "counts"): rows.counts, ("rows", view, "as_of_s"): rows.as_of_s}
        arrays |= {("rows", view, "values", name): column for name, column in rows.values.items()}
    return arrays


def _dataset(arrays: _Arrays, traits: Traits) -> Dataset:
    tree = _tree(arrays)
    rows = {
        view: Rows(columns.get("counts"), columns.get("as_of_s"), columns.get("values", {}))
        for view, columns in tree["rows"].items()
    }
    return Dataset(
        slates=Slates(**tree["slates"]),
        **tree["impressions"],
        rows=rows,
        traits=traits,
        histories=Histories(**tree["histories"]),
    )


def _traits_arrays(traits: Traits) -> _Arrays:
    items, _ = traits.codes.rows(np.arange(len(traits.codes.starts)))
    return {
        ("codes",): items,
        ("lengths",): traits.codes.lengths,
        ("code_count",): np.array([traits.code_count]),
        **{("numbers", name): numbers for name, numbers in traits.numbers.items()},
    }


def _traits(arrays: _Arrays) -> Traits:
    tree = _tree(arrays)
    lengths = tree["lengths"]
    codes = RaggedColumn((tree["codes"],), np.cumsum(lengths, dtype=np.int64) - lengths, lengths)
    return Traits(codes, int(tree["code_count"][0]), tree.get("numbers", {}))


def _tree(arrays: _Arrays) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for (*path, leaf), array in arrays.items():
        branch = tree
        for step in path:
            branch = branch.setdefault(step, {})
        branch[leaf] = array
    return tree


def _write(folder: Path, arrays: _Arrays) -> None:
    """A file per array, named by its number: names of attributes may be what no file can be called."""
    folder.mkdir(exist_ok=True)
    for number, array in enumerate(arrays.values()):
        if array.dtype.kind in "UO":
            column = pa.array(array.tolist(), pa.string() if array.dtype.kind == "U" else None)
            pq.write_table(pa.table({"value": column}), folder / f"{number}.parquet", compression="zstd")
        else:
            np.save(folder / f"{number}.npy", array)
    (folder / _NAMES).write_text(json.dumps(list(arrays)))


def _read(folder: Path) -> _Arrays:
    names = json.loads((folder / _NAMES).read_text())
    return {tuple(name): _read_array(folder, number) for number, name in enumerate(names)}


def _read_array(folder: Path, number: int) -> np.ndarray:
    path = folder / f"{number}.npy"
    if path.exists():
        return np.load(path)
    column = pq.read_table(folder / f"{number}.parquet")["value"]
    return values_of("String" if pa.types.is_string(column.type) else "Array(String)", column)

"""The same ranker, fitted by the workers of a Dask cluster: each holds some of the slates."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import xgboost

from app.domain.errors import PropositionsError
from app.features.assembly import MatrixSpec
from training.dataset import Dataset
from training.feeding import Labels, Part, Parts
from training.matrix import matrix
from training.models import ModelParameters, Targets, check_clicks, check_slates
from training.positions import PositionCounts

LOCAL_WORKERS = 2
CONNECT_TIMEOUT_S = 30
_LOCALHOST = "127.0.0.1"
_INSTALL = "pip install 'predictive-propositions[distributed]'"


class ClusterUnavailable(PropositionsError):
    """There is no Dask, no scheduler that answers, or no worker."""


def fit_ranker_distributed(
    spec: MatrixSpec,
    train_parts: Parts,
    validation: Dataset | None,
    parameters: ModelParameters,
    seed: int,
    address: str | None = None,
) -> xgboost.Booster:
    """As `fit_ranker`, on the cluster whose scheduler listens at `address`; None: on two threads of this
    process, to try it.

    One part at a time passes through this process. Each is divided among the workers slate by slate, which assemble
    their share and keep it in memory as bins. Workers need this package in the same version. Sums in another order and
    bins of other sketches make the trees differ slightly from those of one machine.

    Raises:
        ClusterUnavailable: Dask is not installed, no scheduler answers at `address`, or it has no workers.
        NothingToTrainOn: as `fit_ranker`.
    """
    if validation is not None:
        check_slates(validation)
    with _cluster(address) as client:
        from xgboost import dask
        from xgboost.collective import Config

        train = _place(client, spec, train_parts())
        check_clicks(train.labels.relevance_counts)
        targets = Targets(parameters, train.labels)
        rows = _binned(client, train, targets)
        stopping = {}
        if validation is not None:
            held_out = _binned(client, _place(client, spec, [validation]), targets, like=rows)
            stopping = {
                "evals": [(held_out, "validation")],
                "early_stopping_rounds": parameters.patience_trees,
            }
        result = dask.train(
            client,
            {name: value for name, value in targets.xgboost_parameters(seed).items() if name != "nthread"},
            rows,
            num_boost_round=parameters.max_trees,
            verbose_eval=False,
            **stopping,
            coll_cfg=Config(tracker_host_ip=_LOCALHOST) if address is None else None,
        )
    booster = result["booster"]
    return booster if validation is None else booster[: booster.best_iteration + 1]


@contextmanager
def _cluster(address: str | None) -> Iterator:
    """A client of the cluster, which is left as it was."""
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ClusterUnavailable(f"distributed training needs Dask: {_INSTALL}") from error
    if address is None:
        with (
            LocalCluster(
                n_workers=LOCAL_WORKERS,
                threads_per_worker=1,
                processes=False,
                # Dask opens these ports in any case, and to everyone unless told otherwise.
                dashboard_address=f"{_LOCALHOST}:0",
                worker_dashboard_address=f"{_LOCALHOST}:0",
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = Client(address, timeout=CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise ClusterUnavailable(f"no Dask scheduler answers at {address}: {error}") from error
    with client:
        if not client.ncores():
            raise ClusterUnavailable(f"the Dask scheduler at {address} has no workers: start some")
        yield client


@dataclass(frozen=True)
class _PlacedParts:
    """Labels, and where each part is: the worker's address, and the future of its matrix float32 (n, columns)."""

    labels: Labels
    workers: tuple[str, ...]
    matrices: tuple


def _place(client, spec: MatrixSpec, parts: Iterable[Dataset]) -> _PlacedParts:
    """Gives every worker a run of consecutive slates of each part, as equal in slates as can be."""
    addresses = sorted(client.ncores())
    counts, labels, workers, matrices, slate_count = PositionCounts(), [], [], [], 0
    for part in parts:
        counts.add(part)
        edges = np.linspace(0, part.slate_count, len(addresses) + 1).astype(np.int64)
        for address, first, last in zip(addresses, edges[:-1], edges[1:], strict=True):
            if first < last:
                share = part.slice(first, last)
                labels.append(Part.of(share, slate_count + int(first)))
                workers.append(address)
                matrices.append(_assemble_at(client, address, spec, share))
        slate_count += part.slate_count
    return _PlacedParts(
        Labels(spec.columns, tuple(labels), counts.offsets()), tuple(workers), tuple(matrices)
    )


def _assemble_at(client, address: str, spec: MatrixSpec, dataset: Dataset):
    sent = client.scatter(dataset, workers=[address], hash=False)
    return client.submit(_rows, spec, sent, workers=[address], pure=False)


def _rows(spec: MatrixSpec, dataset: Dataset) -> np.ndarray:
    return np.ascontiguousarray(matrix(spec, dataset))


def _binned(client, placed: _PlacedParts, targets: Targets, like=None):
    """All rows as bins at the workers that hold them, with their targets."""
    from xgboost import dask

    names, columns = placed.labels.columns, {}
    shapes = [(len(part.relevance), len(names)) for part in placed.labels.parts]
    columns["data"] = _array(placed.matrices, shapes, np.float32)
    of_parts = [targets.of(part) for part in placed.labels.parts]
    for name in of_parts[0]:
        values = [of_part[name] for of_part in of_parts]
        futures = [
            client.scatter(value, workers=[worker], hash=False)
            for value, worker in zip(values, placed.workers, strict=True)
        ]
        columns[name] = _array(futures, [value.shape for value in values], values[0].dtype)
    return dask.DaskQuantileDMatrix(client, **columns, feature_names=list(names), ref=like)


def _array(futures, shapes, dtype):
    """A Dask array of one chunk per future."""
    from dask import array

    return array.concatenate(
        [array.from_delayed(future, shape, dtype) for future, shape in zip(futures, shapes, strict=True)]
    )

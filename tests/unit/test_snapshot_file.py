import numpy as np

from app.adapters.snapshots import SnapshotFile
from app.serving.refresh import LiveSnapshot
from tests.builders import NOON, proposition, request
from tests.unit.test_ranking import HALF_LIVES, counters, snapshot


def full_snapshot():
    return snapshot(
        proposition("a", tags=("t",), starts_at=NOON, attributes={"k": [1]}, category="x", value=1.0),
        proposition("b"),
        performance={"a": counters(10, 3)},
        context_performance={f"{request().context_key}\x1fb": counters(4, 1)},
    )


def test_a_saved_snapshot_comes_back_whole(tmp_path):
    saved, file = full_snapshot(), SnapshotFile(tmp_path)

    file.save(saved)
    loaded = file.load(HALF_LIVES)

    assert loaded.catalog.propositions == saved.catalog.propositions
    assert loaded.version == saved.version and loaded.click_prior == saved.click_prior
    assert np.array_equal(loaded.performance.counts, saved.performance.counts)
    assert loaded.attributes.values.keys() == saved.attributes.values.keys()
    both = np.array([0, 1])
    assert np.array_equal(
        loaded.context_performance(request().context_key, both).counts,
        saved.context_performance(request().context_key, both).counts,
    )


def test_a_snapshot_of_other_half_lives_is_not_used(tmp_path):
    SnapshotFile(tmp_path).save(full_snapshot())

    assert SnapshotFile(tmp_path).load((60.0,)) is None


def test_no_snapshot_reads_as_none(tmp_path):
    assert SnapshotFile(tmp_path).load(HALF_LIVES) is None


def test_a_damaged_snapshot_is_ignored(tmp_path):
    file = SnapshotFile(tmp_path)
    file.save(full_snapshot())
    path = tmp_path / "snapshot.npz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    assert file.load(HALF_LIVES) is None


class DownSource:
    def refresh(self, snapshot):
        from app.domain.errors import StoreUnavailable

        raise StoreUnavailable("down")


def test_a_worker_that_starts_with_postgres_down_has_the_last_good_snapshot(tmp_path):
    SnapshotFile(tmp_path).save(full_snapshot())

    live = LiveSnapshot(DownSource(), SnapshotFile(tmp_path), HALF_LIVES)
    live.refresh()

    assert live.is_loaded and len(live.current.catalog) == 2
    assert live.problem == "down"

from dataclasses import replace

import numpy as np
import pytest

from app.adapters.snapshots import KeeperReport, SnapshotFolder, _columns
from app.domain.errors import StoreUnavailable
from app.features.snapshot import SnapshotChanges, SnapshotVersion
from app.serving.keeper import SnapshotKeeper, pause_s
from app.serving.refresh import LiveSnapshot
from tests.builders import HOUR_S, NOON, proposition, request
from tests.unit.test_ranking import HALF_LIVES, WEIGHTS, counters, snapshot

NOW_S = NOON.timestamp()


def full_snapshot():
    taken = snapshot(
        proposition("a", tags=("t",), starts_at=NOON, attributes={"k": [1]}, category="x", value=1.0),
        proposition("b"),
        performance={"a": counters(10, 3)},
        context_performance={f"{request().context_key}\x1fb": counters(4, 1)},
        neighbours={"a": ["b"]},
    )
    traits = SnapshotChanges(traits={"a": ["t", "by=ann"]}, attributes={"a": {"numbers.pages": 12.0}})
    taken = taken.with_changes(traits)
    return replace(taken, version=SnapshotVersion("g", NOON, None))


def assert_same(one, other):
    ours, theirs = _columns(one), _columns(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.array_equal(ours[name], theirs[name], equal_nan=ours[name].dtype.kind == "f"), name
    assert one.version == other.version and one.click_prior == other.click_prior
    assert one.catalog.category_names == other.catalog.category_names
    assert one.catalog.tag_names == other.catalog.tag_names
    assert one.trait_names == other.trait_names
    assert one.contexts.contexts == other.contexts.contexts
    assert one.attributes.keys() == other.attributes.keys()


def test_a_published_snapshot_is_opened_whole_by_another_process(tmp_path):
    published = full_snapshot()

    SnapshotFolder(tmp_path).publish(published)

    assert_same(SnapshotFolder(tmp_path).open(HALF_LIVES), published)


def test_traits_grow_with_the_catalog_and_keep_their_codes():
    first = full_snapshot()

    second = first.with_changes(SnapshotChanges(propositions=[proposition("c"), proposition("d")]))
    third = second.with_changes(SnapshotChanges(traits={"d": ["by=ann", "new"], "nobody": ["t"]}))

    positions = third.catalog.positions_of(["a", "b", "c", "d"])
    codes, rows = third.traits.codes.rows(positions)
    names = [(int(row), third.trait_names[code]) for row, code in zip(rows, codes, strict=True)]
    assert names == [(0, "t"), (0, "by=ann"), (3, "by=ann"), (3, "new")]
    assert third.traits.code_count == 3
    assert third.traits.numbers["pages"][positions].tolist()[0] == 12.0


def test_large_columns_are_mapped_and_so_shared(tmp_path):
    many = snapshot(*(proposition(f"p{n}") for n in range(20_000)))
    SnapshotFolder(tmp_path).publish(many)

    opened = SnapshotFolder(tmp_path).open(HALF_LIVES)

    assert isinstance(opened.performance.counts.base, np.memmap)
    assert not opened.performance.counts.flags.writeable
    assert_same(opened, many)


def test_a_new_version_writes_only_the_columns_that_changed_and_drops_what_nobody_needs(tmp_path):
    folder, first = SnapshotFolder(tmp_path), full_snapshot()
    folder.publish(first)
    before = {path.name for path in tmp_path.glob("*.npy")}

    second = first.with_changes(SnapshotChanges(performance={"a": counters(11, 3)}))
    folder.publish(second)
    written = {path.name for path in tmp_path.glob("*.npy")} - before
    folder.publish(second)

    assert len(written) == 2  # the counts and their times
    assert len(list(tmp_path.glob("*.npy"))) == len(before)
    assert_same(SnapshotFolder(tmp_path).open(HALF_LIVES), second)


def test_a_reader_goes_on_with_a_snapshot_whose_files_are_gone(tmp_path):
    many = snapshot(*(proposition(f"p{n}") for n in range(20_000)))
    SnapshotFolder(tmp_path).publish(many)
    opened = SnapshotFolder(tmp_path).open(HALF_LIVES)

    for path in tmp_path.glob("*.npy"):
        path.unlink()

    assert_same(opened, many)


def test_opening_again_gives_the_same_object_until_another_is_published(tmp_path):
    writer, reader = SnapshotFolder(tmp_path), SnapshotFolder(tmp_path)
    writer.publish(full_snapshot())
    first = reader.open(HALF_LIVES)

    assert reader.open(HALF_LIVES) is first
    writer.publish(snapshot(proposition("c")))
    assert reader.open(HALF_LIVES) is not first


def test_a_snapshot_of_other_half_lives_is_not_used(tmp_path):
    SnapshotFolder(tmp_path).publish(full_snapshot())

    assert SnapshotFolder(tmp_path).open((60.0,)) is None


def test_no_snapshot_reads_as_none(tmp_path):
    assert SnapshotFolder(tmp_path).open(HALF_LIVES) is None


@pytest.mark.parametrize("victim", ["current.json", "*.npy"])
def test_a_damaged_snapshot_is_ignored(tmp_path, victim):
    SnapshotFolder(tmp_path).publish(full_snapshot())
    path = max(tmp_path.glob(victim), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    assert SnapshotFolder(tmp_path).open(HALF_LIVES) is None


def test_a_report_of_the_keeper_is_read_back_and_none_without_one(tmp_path):
    folder = SnapshotFolder(tmp_path)

    assert folder.last_report() is None
    folder.report(KeeperReport(12.5, "down", 3.0))
    assert SnapshotFolder(tmp_path).last_report() == KeeperReport(12.5, "down", 3.0)


class FakeSource:
    def __init__(self, news=None):
        self.news = news

    def refresh(self, current):
        if self.news is None:
            raise StoreUnavailable("down")
        return self.news


def keeper(source, folder):
    return SnapshotKeeper(source, folder, HALF_LIVES, WEIGHTS, new_below_impressions=5.0, list_length=10)


def live(tmp_path, on_change=lambda: None):
    snapshots = LiveSnapshot(SnapshotFolder(tmp_path), HALF_LIVES, on_change)
    snapshots.refresh()
    return snapshots


def test_what_the_keeper_publishes_is_what_workers_serve_next(tmp_path):
    taken = keeper(FakeSource(full_snapshot()), SnapshotFolder(tmp_path))
    worker = live(tmp_path)

    taken.refresh(NOW_S)
    worker.refresh()

    assert worker.current.catalog.id_at(0) == "a"
    assert worker.current.lists.popular.tolist() == [0, 1]


def test_with_postgres_down_the_last_good_snapshot_serves_and_says_why(tmp_path):
    SnapshotFolder(tmp_path).publish(full_snapshot())
    down = keeper(FakeSource(), SnapshotFolder(tmp_path))

    down.refresh(NOW_S)

    assert down.problem == "down"
    assert live(tmp_path).is_loaded


def test_a_proposition_becomes_a_candidate_when_its_window_opens_though_nothing_else_changes(tmp_path):
    source = FakeSource(full_snapshot())
    taken = keeper(source, SnapshotFolder(tmp_path))
    taken.refresh(NOW_S - HOUR_S)
    source.news = taken._snapshot

    assert live(tmp_path).current.lists.popular.tolist() == [1]
    taken.refresh(NOW_S)
    assert live(tmp_path).current.lists.popular.tolist() == [0, 1]


def test_only_a_changed_catalog_outdates_kept_slates(tmp_path):
    changes, folder = [], SnapshotFolder(tmp_path)
    folder.publish(full_snapshot())
    worker = live(tmp_path, lambda: changes.append(1))
    assert not changes

    counted = replace(full_snapshot(), version=SnapshotVersion("g", NOON, NOON))
    folder.publish(counted)
    worker.refresh()
    assert not changes

    folder.publish(replace(counted, version=SnapshotVersion("g", None, NOON)))
    worker.refresh()
    assert changes == [1]


def test_a_full_disk_leaves_the_last_snapshot_and_is_tried_again(tmp_path):
    class FullDisk(SnapshotFolder):
        is_full = True

        def publish(self, taken):
            if self.is_full:
                raise OSError("no space left on device")
            super().publish(taken)

    folder = FullDisk(tmp_path)
    taken = keeper(FakeSource(full_snapshot()), folder)
    taken.refresh(NOW_S)
    assert "no space left" in taken.problem

    folder.is_full = False
    taken.refresh(NOW_S)
    assert taken.problem is None
    assert live(tmp_path).is_loaded


def test_the_keeper_rests_longer_after_long_work():
    assert pause_s(1.0, worked_s=0.1) == 1.0
    assert pause_s(1.0, worked_s=2.0) == 6.0

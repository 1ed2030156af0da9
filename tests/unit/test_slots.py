from dataclasses import astuple
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from app.features.covisits import CovisitRules, fold_positives
from app.features.fold import FOLDED_VIEWS, Counters, fold_events
from app.features.slots import ALL_SLOTS, COUNTER_SLOTS, COVISIT_SLOT, Progress, chooser, slot_of
from tests.builders import DAY_S, NOON, recorded

HALF_LIVES_S = (3_600.0, 86_400.0)

events = st.lists(
    st.builds(
        recorded,
        event_type=st.sampled_from(("impression", "click", "conversion", "dismiss")),
        proposition_id=st.sampled_from(("p1", "p2", "p3", "é")),
        after_s=st.integers(0, 10_000).map(float),
        user_id=st.sampled_from(("u1", "u2", "u3", None)),
        category=st.sampled_from(("sport", "news", None)),
    ),
    max_size=30,
).map(lambda found: sorted(found, key=lambda event: event.received_at))


def test_the_slot_of_an_entity_is_the_same_in_every_release():
    entities = [("user_activity", "u-1"), ("proposition_performance", "p\u4e00"), ("context_activity", "")]

    assert [slot_of(*entity) for entity in entities] == [0, 7, 1]


@given(st.sampled_from(sorted(FOLDED_VIEWS)), st.text())
def test_every_key_has_one_slot_and_recent_interactions_have_that_of_covisitation(view, key):
    slot = slot_of(view, key)

    assert slot in ALL_SLOTS
    assert (slot == COVISIT_SLOT) == (view == "user_recent")


def test_many_keys_fill_all_slots_evenly():
    counts = [0] * COUNTER_SLOTS
    for number in range(8_000):
        counts[slot_of("user_activity", f"u{number}")] += 1

    assert min(counts) > 900 and max(counts) < 1_100


@settings(deadline=None)
@given(events, st.lists(st.integers(0, 2), min_size=COUNTER_SLOTS, max_size=COUNTER_SLOTS))
def test_folding_by_slots_gives_the_rows_and_states_of_folding_whole(found, owners):
    whole_states: dict = {}
    whole = fold_events(found, whole_states, HALF_LIVES_S)

    states: dict = {}
    rows = []
    for owner in range(3):
        slots = {slot for slot, of in enumerate(owners) if of == owner}
        own_states: dict = {}
        rows += fold_events(found, own_states, HALF_LIVES_S, chooser(slots))
        assert not states.keys() & own_states.keys()
        states |= own_states

    assert readable(rows) == readable(whole)
    assert states.keys() == whole_states.keys()


def readable(rows) -> list[tuple]:
    return sorted((r.view, r.key, r.valid_from, content(r.state)) for r in rows)


def content(state) -> list:
    return [state.counts.tolist(), state.as_of_s] if isinstance(state, Counters) else [*astuple(state)]


@given(events)
def test_covisitation_needs_no_counters(found):
    rules = CovisitRules(window_s=DAY_S, half_life_s=30 * DAY_S)
    counted: dict = {}
    fold_events(found, counted, HALF_LIVES_S)

    assert fold_positives(found, counted, {}, rules) == fold_positives(found, {}, {}, rules)


def test_slots_that_are_behind_go_up_to_the_next_ones():
    later = NOON + timedelta(seconds=1)
    progress = Progress("g", False, 0, {0: later, 1: NOON, 2: NOON})

    assert progress.hindmost() == ({1, 2}, NOON, later)
    assert progress.moved({1, 2}, later).hindmost() == ({0, 1, 2}, later, None)


def test_a_mark_tells_how_far_a_slot_is_in_its_own_generation_only():
    progress = Progress("g", False, 0, {0: NOON})

    assert progress.known_until(progress.mark(0)) == NOON
    assert progress.known_until("another " + NOON.isoformat()) is None
    assert progress.known_until(None) is None

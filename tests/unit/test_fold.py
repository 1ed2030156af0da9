import random
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.types import EventType
from app.features.fold import (
    COUNTER_VIEWS,
    EVENT_ROW,
    KEY_COLUMNS,
    Counters,
    FeatureRow,
    decay_to,
    fold_events,
    latest_rows,
)
from app.features.history import HISTORY_VIEW, UserHistory
from app.features.schema import EntityName
from tests.builders import DAY_S, HOUR_S, NOON, recorded

HALF_LIVES = (HOUR_S, DAY_S)
CLICK = EVENT_ROW[EventType.CLICK]


def clicks(states, entity=EntityName.USER, key="u1"):
    return states[COUNTER_VIEWS[entity], key].counts[CLICK]


def test_an_event_counts_one_and_half_after_a_half_life():
    states = {}

    fold_events([recorded(after_s=0), recorded(after_s=HOUR_S)], states, HALF_LIVES)

    assert clicks(states)[0] == pytest.approx(1 + 0.5)
    assert clicks(states)[1] == pytest.approx(1 + 2 ** (-1 / 24))


def test_an_event_touches_user_proposition_context_and_both_crossings():
    states = {}

    fold_events([recorded()], states, HALF_LIVES)

    assert {view for view, _ in states} == {*COUNTER_VIEWS.values(), HISTORY_VIEW}
    assert ("user_category_affinity", "u1\x1fsport") in states
    assert ("context_proposition_performance", "weekday=fri\x1fp1") in states


def test_an_anonymous_event_touches_no_user():
    states = {}

    fold_events([recorded(user_id=None)], states, HALF_LIVES)

    assert {view for view, _ in states}.isdisjoint(
        {"user_activity", "user_category_affinity", "user_history"}
    )


def test_a_late_event_counts_at_its_own_time():
    in_order, late = {}, {}
    fold_events([recorded(after_s=0), recorded(after_s=HOUR_S)], in_order, HALF_LIVES)

    fold_events(
        [recorded(after_s=HOUR_S), recorded(after_s=0, received_after_s=HOUR_S + 1)], late, HALF_LIVES
    )

    assert clicks(late) == pytest.approx(clicks(in_order))


def test_a_late_event_is_visible_from_its_receipt_only():
    rows = fold_events(
        [recorded(after_s=HOUR_S), recorded(after_s=0, received_after_s=2 * HOUR_S)], {}, HALF_LIVES
    )

    user_rows = [row for row in rows if row.view == "user_activity"]
    assert [row.valid_from for row in user_rows] == [
        NOON + timedelta(seconds=HOUR_S),
        NOON + timedelta(seconds=2 * HOUR_S),
    ]


def test_events_of_one_commit_give_one_row_per_entity():
    rows = fold_events([recorded(), recorded("impression")], {}, HALF_LIVES)

    assert len([row for row in rows if row.view == "user_activity"]) == 1
    (history,) = (row for row in rows if row.view == HISTORY_VIEW)
    assert history == FeatureRow(HISTORY_VIEW, "u1", UserHistory(("p1",), (1.0,), (1.0,)), NOON)


def test_a_history_has_a_row_per_moment_of_its_user_and_each_stays_as_it_was():
    states = {}

    rows = fold_events(
        [
            recorded("impression", "p1", 0),
            recorded("impression", "p2", 0),
            recorded("impression", "p1", 0, user_id="u2"),
            recorded("click", "p1", 5),
        ],
        states,
        HALF_LIVES,
    )

    assert [(row.key, row.state, row.valid_from) for row in rows if row.view == HISTORY_VIEW] == [
        ("u1", UserHistory(("p2", "p1"), (1.0, 1.0), (0.0, 0.0)), NOON),
        ("u2", UserHistory(("p1",), (1.0,), (0.0,)), NOON),
        ("u1", UserHistory(("p1", "p2"), (1.0, 1.0), (1.0, 0.0)), NOON + timedelta(seconds=5)),
    ]
    assert states[HISTORY_VIEW, "u1"] == rows[-1].state


def test_decay_does_not_grow_counts_when_the_clock_runs_behind():
    counts = np.ones((1, 4, 2))

    decayed = decay_to(counts, np.array([NOON.timestamp()]), NOON.timestamp() - 60, np.array(HALF_LIVES))

    assert np.array_equal(decayed, counts)


def test_every_entity_has_a_table_and_a_key():
    assert set(COUNTER_VIEWS) == set(KEY_COLUMNS) == set(EntityName)


@st.composite
def event_logs(draw):
    """Events in the order of their receipt: some late, some at the same instant."""
    moments = sorted(draw(st.lists(st.floats(0, 30 * DAY_S), min_size=1, max_size=40)))
    return [
        recorded(
            event_type=draw(st.sampled_from(list(EventType))),
            proposition_id=draw(st.sampled_from(["p1", "p2"])),
            user_id=draw(st.sampled_from(["u1", "u2", None])),
            category=draw(st.sampled_from(["sport", "news", None])),
            after_s=moment - draw(st.sampled_from([0.0, 0.0, 10.0, 2 * DAY_S])),
            received_after_s=moment,
        )
        for moment in moments
    ]


@settings(max_examples=60, deadline=None)
@given(event_logs(), st.integers(0, 2**32 - 1))
def test_folding_online_in_batches_equals_replaying_all_at_once(events, seed):
    replayed_states = {}
    replayed = fold_events(events, replayed_states, HALF_LIVES)

    online_states, online = {}, []
    rng, rest = random.Random(seed), list(events)
    while rest:
        size = rng.randint(1, len(rest))
        # A batch ends between two commits, as the projector's do.
        while size < len(rest) and rest[size].received_at == rest[size - 1].received_at:
            size += 1
        batch, rest = rest[:size], rest[size:]
        online += fold_events(batch, online_states, HALF_LIVES)

    for kind in (Counters, UserHistory):
        assert [readable(row) for row in online if isinstance(row.state, kind)] == [
            readable(row) for row in replayed if isinstance(row.state, kind)
        ]


def readable(row: FeatureRow) -> tuple:
    state = row.state
    content = (state.counts.tolist(), state.as_of_s) if isinstance(state, Counters) else state
    return row.view, row.key, row.valid_from, content


@settings(max_examples=60, deadline=None)
@given(event_logs())
def test_a_counter_is_the_sum_of_its_decayed_events(events):
    states = {}
    fold_events(events, states, HALF_LIVES)

    for (view, key), counters in states.items():
        if view != "proposition_performance":
            continue
        for event_type in EventType:
            for position, half_life_s in enumerate(HALF_LIVES):
                expected = sum(
                    2 ** (-(counters.as_of_s - e.counted_at_s) / half_life_s)
                    for e in events
                    if e.proposition_id == key and e.event_type is event_type
                )
                assert counters.counts[EVENT_ROW[event_type], position] == pytest.approx(expected, rel=1e-9)


def test_the_latest_row_of_an_entity_is_its_last():
    rows = fold_events([recorded(after_s=0), recorded(after_s=5)], {}, HALF_LIVES)

    latest = latest_rows(rows)["user_activity"]

    assert [row.valid_from for row in latest] == [NOON + timedelta(seconds=5)]

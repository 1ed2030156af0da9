from hypothesis import given, settings
from hypothesis import strategies as st

from app.features.covisits import CovisitRules, fold_positives
from app.features.recent import MAX_RECENT, NO_RECENTS, RECENT_VIEW, Recents, add_positive, recent_keys
from tests.builders import DAY_S, HOUR_S, NOON, recorded

RULES = CovisitRules(window_s=DAY_S, half_life_s=30 * DAY_S)


def recents_after(events, user_id="u1") -> Recents:
    states = {}
    fold_positives(events, states, {}, RULES)
    return states.get((RECENT_VIEW, user_id), NO_RECENTS)


def test_what_a_user_clicked_or_converted_on_is_listed_newest_first():
    recents = recents_after(
        [
            recorded("click", "p1", after_s=0),
            recorded("conversion", "p2", after_s=10),
            recorded("impression", "p3", after_s=20),
            recorded("dismiss", "p4", after_s=30),
        ]
    )

    assert recents.proposition_ids == ("p2", "p1")
    assert recents.counted_at_s == (NOON.timestamp() + 10, NOON.timestamp())


def test_a_proposition_is_listed_once_at_its_newest_event():
    recents = recents_after([recorded("click", p, after_s=n) for n, p in enumerate(("p1", "p2", "p1"))])

    assert recents.proposition_ids == ("p1", "p2")


def test_a_late_event_lands_at_its_own_place():
    recents = recents_after(
        [
            recorded("click", "p1", after_s=0),
            recorded("click", "p3", after_s=HOUR_S),
            recorded("click", "p2", after_s=60, received_after_s=2 * HOUR_S),
        ]
    )

    assert recents.proposition_ids == ("p3", "p2", "p1")


def test_of_two_events_at_the_same_time_the_one_received_later_is_newer():
    assert recents_after([recorded("click", "p1"), recorded("click", "p2")]).proposition_ids == ("p2", "p1")


def test_an_event_too_late_to_change_the_list_returns_the_list_itself():
    full = recents_after([recorded("click", f"p{n}", after_s=n) for n in range(MAX_RECENT)])

    assert add_positive(full, "p0", NOON.timestamp() - 1) is full
    assert add_positive(full, "older", NOON.timestamp() - 1) is full


def test_nobody_is_remembered_without_a_user_id():
    event = recorded("click", user_id=None)
    states = {}

    fold_positives([event], states, {}, RULES)

    assert states == {} and recent_keys([event]) == set()


def test_a_row_is_valid_from_the_receipt_of_what_changed_it():
    events = [
        recorded("click", "p1", after_s=0, received_after_s=50),
        recorded("conversion", "p2", after_s=1, received_after_s=50),
        recorded("click", "p3", after_s=99),
    ]

    rows, _ = fold_positives(events, {}, {}, RULES)

    assert [((row.valid_from - NOON).total_seconds(), row.state.proposition_ids) for row in rows] == [
        (50, ("p2", "p1")),
        (99, ("p3", "p2", "p1")),
    ]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 40)), max_size=80))
def test_the_list_is_that_of_the_newest_events_whatever_the_order_of_their_receipt(clicks):
    recents = recents_after(
        recorded("click", f"p{number}", after_s=after_s, received_after_s=100 + received)
        for received, (number, after_s) in enumerate(clicks)
    )

    newest = {}
    for received, (number, after_s) in enumerate(clicks):
        newest[f"p{number}"] = max(newest.get(f"p{number}", (0, 0)), (after_s, received))
    expected = sorted(newest, key=newest.get, reverse=True)
    assert list(recents.proposition_ids) == expected[:MAX_RECENT]

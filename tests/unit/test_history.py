from hypothesis import given
from hypothesis import strategies as st

from app.domain.types import EventType
from app.features.history import MAX_HISTORY, NO_HISTORY, UserHistory, add_to_history


def history_of(*events: tuple[str, str]) -> UserHistory:
    """The history after events of (type, proposition), in this order."""
    history = NO_HISTORY
    for event_type, proposition_id in events:
        history = add_to_history(history, proposition_id, EventType(event_type))
    return history


def test_the_proposition_that_was_touched_last_comes_first_and_each_is_there_once():
    history = history_of(("impression", "p1"), ("impression", "p2"), ("click", "p1"))

    assert history == UserHistory(("p1", "p2"), (1.0, 1.0), (1.0, 0.0))


def test_clicks_and_conversions_are_clicks_and_impressions_add_up():
    history = history_of(*[("impression", "p1")] * 3, ("click", "p1"), ("conversion", "p1"))

    assert history == UserHistory(("p1",), (3.0,), (2.0,))


def test_a_click_of_what_nobody_logged_as_shown_counts_as_a_click_only():
    assert history_of(("click", "p1")) == UserHistory(("p1",), (0.0,), (1.0,))


def test_a_dismissal_counts_as_the_impression_that_nobody_logged():
    assert history_of(("dismiss", "p1")) == UserHistory(("p1",), (1.0,), (0.0,))


def test_a_dismissal_of_what_was_shown_only_makes_it_the_newest():
    history = history_of(("impression", "p1"), ("click", "p1"), ("impression", "p2"), ("dismiss", "p1"))

    assert history == UserHistory(("p1", "p2"), (1.0, 1.0), (1.0, 0.0))


def test_of_many_propositions_the_one_that_was_touched_longest_ago_makes_room():
    shown = [("impression", f"p{number}") for number in range(MAX_HISTORY)]

    history = history_of(*shown, ("click", "p0"), ("impression", "new"))

    assert history.proposition_ids[:3] == ("new", "p0", f"p{MAX_HISTORY - 1}")
    assert "p1" not in history.proposition_ids
    assert len(history.proposition_ids) == len(history.impressions) == len(history.clicks) == MAX_HISTORY


@given(st.lists(st.tuples(st.sampled_from([*EventType]), st.sampled_from("abcdef")), max_size=40))
def test_nothing_is_lost_of_few_propositions(events):
    history = history_of(*events)

    assert history.proposition_ids == tuple(dict.fromkeys(p for _, p in reversed(events)))
    for proposition_id, shown, clicks in zip(
        history.proposition_ids, history.impressions, history.clicks, strict=True
    ):
        types = [event_type for event_type, p in events if p == proposition_id]
        assert clicks == types.count(EventType.CLICK) + types.count(EventType.CONVERSION)
        was_dismissed_first = types[0] is EventType.DISMISS
        assert shown == types.count(EventType.IMPRESSION) + was_dismissed_first

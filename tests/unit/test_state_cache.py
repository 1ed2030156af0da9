from app.events.project import StateCache


class Table:
    """States in a mapping, with a list of what was asked for."""

    def __init__(self, **states):
        self.states, self.asked = states, []

    def load(self, keys):
        self.asked += sorted(keys)
        return {key: self.states[key] for key in keys if key in self.states}


def test_what_is_known_is_not_asked_for_again():
    table, cache = Table(a=1, b=2), StateCache(max_entries=10)
    cache.fetch({"a"}, table.load)

    states = cache.fetch({"a", "b"}, table.load)

    assert states == {"a": 1, "b": 2}
    assert table.asked == ["a", "b"]


def test_what_is_not_wanted_makes_room_and_can_be_had_again():
    table, cache = Table(a=1, b=2, c=3), StateCache(max_entries=3)
    cache.fetch({"a", "b"}, table.load)

    assert cache.fetch({"b", "c"}, table.load) == {"b": 2, "c": 3}
    assert cache.fetch({"a"}, table.load)["a"] == 1
    assert table.asked == ["a", "b", "c", "a"]


def test_all_that_is_wanted_is_there_though_it_is_more_than_the_bound():
    table, cache = Table(a=1, b=2, c=3), StateCache(max_entries=2)

    assert cache.fetch({"a", "b", "c"}, table.load) == table.states


def test_what_the_fold_changed_is_remembered_until_it_is_to_be_forgotten():
    table, cache = Table(a=1), StateCache(max_entries=10)
    cache.fetch({"a"}, table.load)["a"] = 5

    assert cache.fetch({"a"}, table.load)["a"] == 5
    cache.forget()
    assert cache.fetch({"a"}, table.load)["a"] == 1

"""Keys under which entities meet."""

from app.domain.context import crossed_key, crossed_keys


def test_keys_of_many_pairs_are_those_of_each_pair():
    assert crossed_keys("u1", ["tea", "cake"]) == [crossed_key("u1", "tea"), crossed_key("u1", "cake")]

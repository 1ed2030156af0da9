import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.events.splitting import MAX_SPLIT_BYTES, split_events

MANY = 1_000
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(alphabet='ab\\"{}[],:é\n'),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='a\\"{,'), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.lists(JSON, min_size=1, max_size=6))
def test_every_event_of_a_batch_is_found_whatever_its_texts_hold(events):
    texts = split_events(orjson.dumps({"events": events}), MANY)

    assert [orjson.loads(text) for text in texts] == events


@settings(deadline=None)
@given(st.lists(JSON, min_size=1, max_size=4), st.integers(0, 3))
def test_one_event_that_is_no_json_leaves_the_others_as_they_are(events, place):
    texts = [orjson.dumps(event) for event in events]
    texts.insert(min(place, len(texts)), b'{"value": -Infinity, "text": "\\ud800\xff"}')

    assert split_events(b'{"events":[%s]}' % b",".join(texts), MANY) == texts


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\ evnts').map(str.encode))
def test_nothing_raises_and_what_is_found_is_part_of_the_body(body):
    texts = split_events(b'{"events": [' + body, MANY)

    assert texts is None or b",".join(texts) in body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'[{"a": NaN}]',
        b'{"events": [1',
        b'{"events": [1}',
        b'{"events": [1]} {',
        b'{"events": [1], "events": [2]}',
        b'{"other": 1, "events": [1]}',
        b'{"events": [{"a": [}, 1]}',
        b'{"events": ["a]}',
        b'{"events": [%s]}' % (b" " * MAX_SPLIT_BYTES),
    ],
)
def test_what_is_no_batch_or_has_no_clear_end_is_not_split(body):
    assert split_events(body, MANY) is None


def test_of_far_too_many_events_the_last_text_is_the_rest():
    assert split_events(b'{"events": [1,2,3,4]}', max_cuts=2) == [b"1", b"2", b"3,4"]

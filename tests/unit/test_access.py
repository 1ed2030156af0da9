"""API keys: how they are made, recognized, rotated and kept on disk."""

import json
import logging
import re
import stat
from dataclasses import replace
from datetime import timedelta
from itertools import count

import pytest

from app.adapters.key_file import KeyFile, KeyKeeper, LiveKeys
from app.domain import access
from app.domain.access import KeyRing, Scope, digest_of, has_key, make_key, revoke, rotate
from app.domain.errors import KeyRefused, StoreUnavailable
from tests.builders import NOON

HOUR = timedelta(hours=1)
NOW = NOON


def bytes_of(seed):
    """Random bytes of a sequence that is the same for the same seed."""
    numbers = count(seed)
    return lambda length: bytes((next(numbers) + n) % 256 for n in range(length))


def made(seed=1, scopes=(Scope.SUGGEST,), expires_at=None, name="web"):
    return make_key(name, scopes, NOW, expires_at, bytes_of(seed))


def test_a_key_has_an_id_of_12_hex_digits_and_a_secret_of_43_characters():
    key, presented = made()

    assert re.fullmatch(rf"pp_{key.key_id}_[A-Za-z0-9_-]{{43}}", presented)
    assert re.fullmatch("[0-9a-f]{12}", key.key_id)


def test_only_a_digest_of_the_secret_is_kept():
    key, presented = made()
    secret = presented.split("_", 2)[2]

    assert key.digest == digest_of(secret)
    assert secret not in repr(key) and key.digest.hex() not in repr(key)
    assert repr(key.digest) not in repr(key)


@pytest.mark.parametrize("name", ["", "   ", "a\nb", "\x1b[31m", "x" * 201])
def test_a_key_needs_a_name_that_can_be_shown(name):
    with pytest.raises(KeyRefused, match="name"):
        made(name=name)


def test_a_key_is_good_for_something():
    with pytest.raises(KeyRefused, match="suggest, events, catalog, admin"):
        made(scopes=())


def test_a_presented_key_is_found_among_others():
    (key, presented), (other, _) = made(1), made(2)

    assert KeyRing([other, key]).find(presented, NOW) == key


def test_no_other_text_is_a_key():
    key, presented = made()
    ring = KeyRing([key])
    _, other = made(2)
    cut, swapped = presented[:-1], f"pp_{key.key_id}_{other.split('_', 2)[2]}"

    texts = (
        "",
        " ",
        "pp_",
        presented.upper(),
        cut,
        f"{presented}x",
        f" {presented}",
        swapped,
        other,
        "pp_é_ß\0",
    )
    assert [ring.find(text, NOW) for text in texts] == [None] * len(texts)


def test_the_secret_behind_the_placeholder_of_unknown_ids_is_no_key():
    placeholder = replace(access._NOBODY, digest=digest_of("x" * 43))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(access, "_NOBODY", placeholder)

        assert KeyRing().find(f"pp_{'0' * 12}_{'x' * 43}", NOW) is None


def test_an_unknown_id_costs_the_same_comparisons_as_a_known_one(monkeypatch):
    key, presented = made()
    compared = []
    monkeypatch.setattr(access, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)

    for text in (presented, f"pp_{'0' * 12}_{presented[-43:]}", "no key"):
        KeyRing([key]).find(text, NOW)

    assert [len(a) == len(b) == 32 for a, b in compared] == [True] * 6


def test_a_key_ends_when_it_expires():
    key, presented = made(expires_at=NOW + HOUR)
    ring = KeyRing([key])

    assert ring.find(presented, NOW + HOUR - timedelta(microseconds=1)) == key
    assert ring.find(presented, NOW + HOUR) is None


def test_a_revoked_key_is_none_also_with_the_secret_of_before():
    key, first = made()
    rotated, second = rotate(key, NOW, HOUR, bytes_of(9))
    ring = KeyRing([revoke(rotated, NOW)])

    assert [ring.find(presented, NOW) for presented in (first, second)] == [None, None]


def test_a_key_that_is_revoked_again_keeps_its_moment():
    key, _ = made()

    assert revoke(revoke(key, NOW), NOW + HOUR).revoked_at == NOW


def test_after_a_rotation_both_secrets_work_until_the_overlap_ends():
    key, first = made()
    rotated, second = rotate(key, NOW, HOUR, bytes_of(9))
    ring = KeyRing([rotated])

    assert first != second and rotated.key_id == key.key_id
    assert [ring.find(secret, NOW) for secret in (first, second)] == [rotated, rotated]
    assert [ring.find(secret, NOW + HOUR) for secret in (first, second)] == [None, rotated]


def test_without_an_overlap_the_secret_of_before_ends_at_once():
    key, first = made()
    rotated, second = rotate(key, NOW, timedelta(), bytes_of(9))

    assert [KeyRing([rotated]).find(secret, NOW) for secret in (first, second)] == [None, rotated]
    assert rotated.previous_digest is None


def test_a_second_rotation_ends_the_oldest_secret():
    key, first = made()
    rotated, second = rotate(key, NOW, HOUR, bytes_of(9))
    twice, third = rotate(rotated, NOW, HOUR, bytes_of(17))

    assert [KeyRing([twice]).find(s, NOW) for s in (first, second, third)] == [None, twice, twice]


@pytest.mark.parametrize("end", [{"revoked_at": NOW}, {"expires_at": NOW}])
def test_a_key_that_is_over_cannot_be_rotated(end):
    with pytest.raises(KeyRefused, match="create a new one"):
        rotate(replace(made()[0], **end), NOW, HOUR, bytes_of(9))


def test_a_key_within_a_text_is_noticed():
    _, presented = made()

    assert has_key(f"api_key={presented}&x=1") and not has_key("api_key=pp_&x=1")


@pytest.fixture
def file(tmp_path):
    return KeyFile(tmp_path)


def published(file, *keys):
    KeyKeeper(lambda now: list(keys), file).refresh(NOW)


def test_workers_know_the_keys_of_the_file_with_all_that_is_known_of_them(file):
    key, presented = made(expires_at=NOW + 2 * HOUR, scopes=tuple(Scope), name='ü "web"')
    rotated, _ = rotate(key, NOW, HOUR, bytes_of(9))
    published(file, rotated)
    live = LiveKeys(file)

    live.refresh()

    assert live.find(presented, NOW) == rotated


def test_the_file_holds_no_secret_and_only_its_owner_may_read_it(file, tmp_path):
    key, presented = made()

    published(file, key)

    path = tmp_path / "keys.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert presented.split("_", 2)[2] not in path.read_text()


def test_a_draft_that_was_left_behind_open_to_all_makes_no_open_file(file, tmp_path, monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: 7)
    (tmp_path / ".keys.json.7").touch(0o666)

    published(file, made()[0])

    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600


def test_workers_see_new_and_revoked_keys(file):
    (first, one), (second, two) = made(1), made(2)
    live = LiveKeys(file)
    published(file, first)
    live.refresh()
    assert live.find(two, NOW) is None

    published(file, second)
    live.refresh()

    assert live.find(one, NOW) is None and live.find(two, NOW) == second


def test_the_file_is_written_only_when_keys_changed(file):
    key, _ = made()
    keeper = KeyKeeper(lambda now: [key], file)
    keeper.refresh(NOW)
    mark = file.mark()

    keeper.refresh(NOW)

    assert file.mark() == mark


def test_the_file_is_read_only_when_it_changed(file, monkeypatch):
    published(file, made()[0])
    live = LiveKeys(file)
    live.refresh()
    monkeypatch.setattr(file, "read", lambda: pytest.fail("read again"))

    live.refresh()


DAMAGED = [b"", b"{", b"[", b"null", b"7", b"[{}]", b"\xff\xfe", b'["x"]', b'{"keys": []}']


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_leaves_the_keys_of_before_and_is_logged_once(file, tmp_path, caplog, content):
    key, presented = made()
    published(file, key)
    live = LiveKeys(file)
    live.refresh()
    (tmp_path / "keys.json").write_bytes(content)

    live.refresh()
    live.refresh()

    assert live.find(presented, NOW) == key
    assert len(caplog.records) == 1 and "cannot be read" in caplog.text


@pytest.mark.parametrize(
    "change",
    [{"digest": "zz"}, {"digest": None}, {"scopes": ["root"]}, {"created_at": "soon"}, {"scopes": None}],
)
def test_a_file_with_a_key_that_makes_no_sense_is_damaged(file, tmp_path, change):
    key, presented = made()
    published(file, key)
    live = LiveKeys(file)
    live.refresh()
    content = json.loads((tmp_path / "keys.json").read_text())
    content[0] |= change
    (tmp_path / "keys.json").write_text(json.dumps(content))

    live.refresh()

    assert live.find(presented, NOW) == key


def test_the_keeper_mends_a_damaged_file_and_workers_go_on(file, tmp_path):
    (first, _), (second, presented) = made(1), made(2)
    published(file, first)
    live = LiveKeys(file)
    (tmp_path / "keys.json").write_bytes(b"{")
    live.refresh()

    published(file, second)
    live.refresh()

    assert live.find(presented, NOW) == second


def test_without_a_file_nobody_has_a_key_and_the_log_says_so(file, caplog):
    live = LiveKeys(file)

    live.refresh()

    assert live.find(made()[1], NOW) is None
    assert "cannot be read" in caplog.text


def test_while_postgres_is_down_the_file_stays_and_it_is_said_once(file, caplog):
    def unavailable(now):
        raise StoreUnavailable("PostgreSQL did not answer")

    caplog.set_level(logging.WARNING)
    published(file, made()[0])
    mark, keeper = file.mark(), KeyKeeper(unavailable, file)

    keeper.refresh(NOW)
    keeper.refresh(NOW)

    assert file.mark() == mark
    assert [record.message for record in caplog.records] == [
        "the API keys on disk stay as they are: PostgreSQL did not answer"
    ]

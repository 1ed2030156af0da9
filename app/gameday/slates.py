"""What is read of an answer to `/suggest`, from its raw bytes, and whether it is what was asked for."""

import json
import re
from collections.abc import Iterable, Sequence

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
RETRY_AFTER = re.compile(rb"\r\nretry-after: *\d", re.IGNORECASE)
LEVEL = re.compile(rb'"degradation_level":(\d)')
MODEL = re.compile(rb'"model_version":"([^"]*)"')
STRATEGY = re.compile(rb'"strategy":"([^"]*)"')
CACHED = b'"cached":true'
_PROPOSITION = re.compile(rb'"proposition_id":"([^"]*)"')
_END_OF_HEAD = b"\r\n\r\n"

SHED = (429, 503)


def first_group(pattern: re.Pattern[bytes], answer: bytes) -> str | None:
    found = pattern.search(answer)
    return None if found is None else found[1].decode()


def is_whole(received: bytes) -> bool:
    head, end, body = received.partition(_END_OF_HEAD)
    if not end:
        return False
    length = CONTENT_LENGTH.search(head)
    return len(body) >= (0 if length is None else int(length[1]))


class Asked:
    """What each request asks for, and which propositions may be shown at all."""

    def __init__(self, requests: Sequence[bytes], eligible: Iterable[bytes]) -> None:
        self._eligible = frozenset(eligible)
        bodies = [json.loads(request.partition(_END_OF_HEAD)[2]) for request in requests]
        self._limits = [body.get("limit", 10) for body in bodies]
        self._excluded = [frozenset(map(str.encode, body.get("exclude", ()))) for body in bodies]

    def problem(self, number: int, status: int, answer: bytes) -> str | None:
        """What is wrong with the answer to request `number`, in a word; None if nothing is."""
        if status in SHED:
            return None if RETRY_AFTER.search(answer) else "no-retry-after"
        if status != 200:
            return "status"
        shown = _PROPOSITION.findall(answer)
        if len(shown) != self._limits[number]:
            return "not-full"
        if len(set(shown)) != len(shown):
            return "repeated"
        if not self._eligible.issuperset(shown) or not self._excluded[number].isdisjoint(shown):
            return "ineligible"
        return None

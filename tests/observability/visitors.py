"""People who ask a running service for slates, do something with them, and now and then ask for what is wrong."""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from app.gameday.serving_data import DEVICES, PAGES, USERS

TIMEOUT_S = 30
SHOWN = 4
# How likely somebody does what with a proposition that is shown to them.
CLICKS, CONVERTS, DISMISSES = 0.3, 0.3, 0.05


class Visitors:
    """`url` is where everybody may ask, `private_url` where operators do."""

    def __init__(self, url: str, private_url: str, seed: int = 7) -> None:
        self._url, self._private_url = url, private_url
        self._chance = random.Random(seed)
        self._visits = 0

    def like_these(self, seed: int) -> "Visitors":
        """Others, who come to the same service."""
        return Visitors(self._url, self._private_url, seed)

    def come(self, count: int = 10) -> None:
        """So many one after the other; among them one whom nobody knows, and one who does everything wrong."""
        for _ in range(count):
            self._visit(f"u{self._chance.randrange(USERS)}")
        self._visit(None)
        self._visit(f"new-{self._chance.random()}")
        self._err()
        self._operate()

    def _visit(self, user_id: str | None) -> None:
        self._visits += 1
        context = {"page": self._chance.choice(PAGES), "device": self._chance.choice(DEVICES)}
        question = {"context": context, "limit": 8} | ({"user_id": user_id} if user_id else {})
        self._post("/suggest", question)
        slate = self._post("/suggest", question)  # an impatient one: the second comes from the cache
        if "propositions" not in slate:
            return  # the service had too much to do
        events = self._events(slate, {"context": context} | ({"user_id": user_id} if user_id else {}))
        self._post("/log_event", {"events": events})
        if self._visits % 5 == 0:
            self._post("/log_event", events[0])  # sent again

    def _events(self, slate: Mapping[str, Any], common: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        events = []
        for shown in slate["propositions"][:SHOWN]:
            happened = ["impression"]
            if self._chance.random() < CLICKS:
                happened.append("click")
                happened += ["conversion"] if self._chance.random() < CONVERTS else []
            elif self._chance.random() < DISMISSES:
                happened.append("dismiss")
            events += [
                {
                    "event_id": f"{slate['request_id']}-{shown['rank']}-{event_type}",
                    "event_type": event_type,
                    "request_id": slate["request_id"],
                    "proposition_id": shown["proposition_id"],
                    "position": shown["rank"],
                    **common,
                }
                for event_type in happened
            ]
        return events

    def _err(self) -> None:
        self._post("/suggest", {"limit": -1})
        self._post("/log_event", {"event_type": "stare", "proposition_id": "p1"})
        self._ask("GET", f"{self._private_url}/propositions/of-nobody")

    def _operate(self) -> None:
        proposition = {"title": f"Proposition of {self._visits} visits", "category": "c1", "value": 1}
        self._ask("PUT", f"{self._private_url}/propositions/latest", proposition)
        self._ask("GET", f"{self._url}/health")

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._ask("POST", f"{self._url}{path}", body)

    def _ask(self, method: str, url: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        trace_id, span_id = self._chance.randbytes(16).hex(), self._chance.randbytes(8).hex()
        headers = {"Content-Type": "application/json", "traceparent": f"00-{trace_id}-{span_id}-01"}
        request = Request(url, data, headers, method=method)
        try:
            with urlopen(request, timeout=TIMEOUT_S) as answer:
                return json.loads(answer.read())
        except HTTPError as refused:
            return json.loads(refused.read())

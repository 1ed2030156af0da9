"""A made-up world for the game day of serving: who likes what, what was clicked, and what is asked for."""

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

USERS, PROPOSITIONS, CATEGORIES = 120, 300, 8
PAGES, DEVICES = ("home", "cart", "search"), ("phone", "desktop")
SLATES, SHOWN = 600, 6
PERIOD = timedelta(days=3)
LIMIT = 10
# Of the requests, those that exclude something. They hardly ever repeat; the others find kept slates.
NEW_SHARE = 0.8
# The static list stays full without what a request excludes.
DEFAULTS = LIMIT + 2


def is_eligible(number: int) -> bool:
    """Every tenth proposition may not be shown; people liked it all the same."""
    return number % 10 != 9


def eligible_ids() -> Sequence[str]:
    return [_proposition_id(n) for n in range(PROPOSITIONS) if is_eligible(n)]


def default_slate() -> str:
    """The setting."""
    return json.dumps([{"proposition_id": id_, "title": "Default"} for id_ in eligible_ids()[:DEFAULTS]])


def write_imports(folder: Path, seed: int, now: datetime) -> Sequence[Path]:
    """Users, propositions and events up to an hour before `now`, to be imported."""
    contents: Mapping[str, Iterable[Mapping]] = {
        "users": ({"user_id": _user_id(n), "age_years": 20 + n % 50} for n in range(USERS)),
        "propositions": (_proposition(n, now) for n in range(PROPOSITIONS)),
        "events": _events(random.Random(seed), now - timedelta(hours=1)),
    }
    folder.mkdir(parents=True)
    paths = []
    for name, records in contents.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
        paths.append(path)
    return paths


def questions(seed: int, count: int) -> Iterator[Mapping]:
    """Bodies of requests of people who are known."""
    chance = random.Random(seed)
    for _ in range(count):
        body = {
            "user_id": _user_id(chance.randrange(USERS)),
            "context": {"page": chance.choice(PAGES), "device": chance.choice(DEVICES)},
            "limit": LIMIT,
        }
        if chance.random() < NEW_SHARE:
            body["exclude"] = [_proposition_id(chance.randrange(PROPOSITIONS)), f"none-{chance.random()}"]
        yield body


def _user_id(number: int) -> str:
    return f"u{number}"


def _proposition_id(number: int) -> str:
    return f"p{number}"


def _category(number: int) -> int:
    return number % CATEGORIES


def _proposition(number: int, now: datetime) -> Mapping:
    is_over = not is_eligible(number) and number % 20 == 9
    return {
        "proposition_id": _proposition_id(number),
        "title": f"Proposition {number}",
        "category": f"c{_category(number)}",
        "value": number % 7,
        "is_active": is_eligible(number) or is_over,
        **({"ends_at": (now - timedelta(minutes=30)).isoformat()} if is_over else {}),
    }


def _events(chance: random.Random, until: datetime) -> Iterator[Mapping]:
    """Slates at random moments: people click what is of their category, and what is popular."""
    moments = sorted(until - PERIOD * chance.random() for _ in range(SLATES))
    for slate, moment in enumerate(moments):
        user = slate % USERS
        common = {
            "user_id": _user_id(user),
            "context": {"page": chance.choice(PAGES), "device": chance.choice(DEVICES)},
            "request_id": f"slate-{slate}",
        }
        for position, number in enumerate(chance.sample(range(PROPOSITIONS), SHOWN), start=1):
            shown = {"proposition_id": _proposition_id(number), "position": position, **common}
            yield {
                "event_id": f"i{slate}-{position}",
                "event_type": "impression",
                "timestamp": moment.isoformat(),
                **shown,
            }
            is_liked = _category(number) == user % CATEGORIES
            if chance.random() < (0.6 if is_liked else 0.05) + 0.2 * (number % 13 == 0):
                yield {
                    "event_id": f"c{slate}-{position}",
                    "event_type": "click",
                    "timestamp": (moment + timedelta(seconds=20)).isoformat(),
                    **shown,
                }

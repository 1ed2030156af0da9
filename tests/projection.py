"""A log to fold, an online store in memory, and all that projectors have written."""

from datetime import UTC, datetime, timedelta

import numpy as np

from app.adapters.event_log import PostgresEventLog
from app.bootstrap.stores import open_import
from app.domain.errors import StoreUnavailable
from app.features.covisits import CovisitRules
from app.features.fold import COUNTER_VIEWS, KEY_COLUMNS, Counters
from app.features.history import UserHistory
from app.features.recent import Recents
from tests.builders import CONTEXT_FIELDS, DAY_S, event, proposition, query

START = datetime.now(UTC) - timedelta(days=3)
COVISITS = CovisitRules(window_s=DAY_S, half_life_s=30 * DAY_S)


class FakeOnlineStore:
    """A dictionary with the behaviour of the online store: may be down, may lose everything."""

    def __init__(self):
        self.rows, self.known, self.is_down, self.has_facts = {}, {}, False, False

    def write(self, rows, over_newer=False):
        self._check()
        for view, view_rows in rows.items():
            for row in view_rows:
                self.rows[view, row.key] = row.state

    def fact_views(self):
        return ["user_profile", "proposition_catalog"]

    def write_facts(self, view, after, until):
        self._check()
        self.has_facts = True

    def marks(self):
        self._check()
        return dict(self.known)

    def set_marks(self, marks):
        self._check()
        self.known.update(marks)

    def _check(self):
        if self.is_down:
            raise StoreUnavailable("down")

    def lose_everything(self):
        self.rows, self.known, self.has_facts = {}, {}, False


def log_events(database, *events):
    PostgresEventLog(database, CONTEXT_FIELDS).append(events)


def import_events(settings, count: int, start: datetime = START, prefix: str = "e"):
    types = ("impression", "click", "impression", "conversion", "dismiss")
    with open_import(settings) as loader:
        loader.add(proposition("p0", category="sport"))
        for n in range(count):
            at = start + timedelta(seconds=7 * n - n % 3)
            loader.add(event(f"{prefix}{n}", types[n % 5], f"p{n % 4}", at, user_id=f"u{n % 6}"))
        return loader.finish(False)


def feature_rows(settings) -> dict[str, list[tuple]]:
    """All that the projector has written, by table."""
    counters = "impressions, clicks, conversions, dismissals, as_of_s, event_timestamp"
    return {
        **{
            table: query(
                settings, f"SELECT {KEY_COLUMNS[entity]}, {counters} FROM {table} ORDER BY 1, event_timestamp"
            )
            for entity, table in COUNTER_VIEWS.items()
        },
        "user_history": query(
            settings,
            "SELECT user_id, propositions, impressions, clicks, event_timestamp FROM user_history"
            " ORDER BY 1, event_timestamp",
        ),
        "user_recent": query(
            settings,
            "SELECT user_id, propositions, counted_at_s, event_timestamp FROM user_recent"
            " ORDER BY 1, event_timestamp",
        ),
        "proposition_neighbours": query(
            settings,
            "SELECT proposition_id, neighbour_ids, weights, as_of_s, updated_at FROM proposition_neighbours"
            " ORDER BY 1",
        ),
    }


def latest_online(settings) -> dict:
    rows = {
        ("user_recent", user_id): tuple(propositions)
        for user_id, propositions in query(
            settings,
            "SELECT DISTINCT ON (user_id) user_id, propositions FROM user_recent"
            " ORDER BY user_id, event_timestamp DESC",
        )
    }
    for user_id, *lists in query(
        settings,
        "SELECT DISTINCT ON (user_id) user_id, propositions, impressions, clicks FROM user_history"
        " ORDER BY user_id, event_timestamp DESC",
    ):
        rows["user_history", user_id] = UserHistory(*map(tuple, lists))
    for entity, table in COUNTER_VIEWS.items():
        for key, *counts in query(
            settings,
            f"SELECT DISTINCT ON ({KEY_COLUMNS[entity]}) {KEY_COLUMNS[entity]}, impressions, clicks, conversions,"
            f" dismissals FROM {table} ORDER BY {KEY_COLUMNS[entity]}, event_timestamp DESC",
        ):
            rows[table, key] = np.array(counts)
    return rows


def assert_online_is_current(settings, online):
    expected = latest_online(settings)
    assert online.rows.keys() == expected.keys()
    for key, state in online.rows.items():
        if isinstance(state, Counters):
            assert np.array_equal(state.counts, expected[key])
        else:
            assert expected[key] == (state.proposition_ids if isinstance(state, Recents) else state)

import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.domain.errors import ImportRefused
from app.domain.ports import Loaded
from app.domain.types import Event, EventType, Proposition, User
from app.imports import metarank, movielens, native
from app.imports.records import ImportRules, Reject
from app.imports.run import run_import
from tests.builders import NOON

RULES = ImportRules(now=NOON, max_future=timedelta(minutes=5), timezone=UTC)
GOOD_EVENT = {
    "event_id": "e1",
    "event_type": "click",
    "user_id": "u1",
    "proposition_id": "p1",
    "timestamp": "2026-05-15T11:00:00Z",
    "context": {"page": "home"},
    "position": 2,
}


def write_lines(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def parsed(source):
    records = list(source)
    return [r[1] for r in records if not isinstance(r, Reject)], [r for r in records if isinstance(r, Reject)]


def test_native_json_lines_give_records_and_numbered_rejects(tmp_path):
    path = write_lines(
        tmp_path / "events.jsonl",
        GOOD_EVENT,
        "{not json",
        {**GOOD_EVENT, "event_type": "stare"},
        {**GOOD_EVENT, "timestamp": "3000-01-01T00:00:00Z"},
        {k: v for k, v in GOOD_EVENT.items() if k != "event_id"},
        {**GOOD_EVENT, "timestamp": 1747300000},
        '{"value": NaN}',
    )

    records, rejects = parsed(native.parse([path], RULES))

    assert [record.event_id for record in records] == ["e1"]
    assert [reject.line.number for reject in rejects] == [2, 3, 4, 5, 6, 7]
    reasons = [reject.reason for reject in rejects]
    assert "not JSON" in reasons[0] and "event_type" in reasons[1] and "future" in reasons[2]
    assert "event_id" in reasons[3] and "timestamp" in reasons[4] and "NaN" in reasons[5]


def test_csv_and_parquet_hold_the_same_events_as_json_lines(tmp_path):
    json_path = write_lines(tmp_path / "events.jsonl", GOOD_EVENT)
    csv_path = tmp_path / "events.csv"
    csv_path.write_text(
        "event_id,event_type,user_id,proposition_id,timestamp,context,position,value\n"
        'e1,click,u1,p1,2026-05-15T11:00:00Z,"{""page"": ""home""}",2,\n'
    )
    parquet_path = tmp_path / "events.parquet"
    pq.write_table(
        pa.Table.from_pylist(
            [{**GOOD_EVENT, "timestamp": datetime(2026, 5, 15, 11, tzinfo=UTC), "context": {"page": "home"}}]
        ),
        parquet_path,
    )

    results = [parsed(native.parse([path], RULES)) for path in (json_path, csv_path, parquet_path)]

    assert results[0][0][0] == Event(
        event_id="e1",
        event_type=EventType.CLICK,
        proposition_id="p1",
        occurred_at=datetime(2026, 5, 15, 11, tzinfo=UTC),
        user_id="u1",
        context={"daypart": "morning", "weekday": "fri", "page": "home"},
        position=2,
    )
    assert results[0] == results[1] == results[2]


def test_csv_propositions_have_tags_flags_and_numbers(tmp_path):
    path = tmp_path / "propositions.csv"
    path.write_text("proposition_id,title,tags,is_active,value\np1,First,a|b,false,2.5\np2,Second,,,x\n")

    records, rejects = parsed(native.parse([path], RULES))

    assert records == [Proposition("p1", "First", tags=("a", "b"), is_active=False, value=2.5)]
    assert rejects[0].line.number == 3 and rejects[0].reason.startswith("value:")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("title", "a\x00b"),
        ("title", "\ud800"),
        ("attributes", {"k": ["a\x00b"]}),
        ("attributes", {"k": "\ud800"}),
        ("attributes", {"\ud800": 1}),
        ("attributes", {"k": "x" * 70_000}),
        ("attributes", json.loads('{"k":' * 40 + "1" + "}" * 40)),
        ("value", 1e300),
        ("ends_at", "9999-12-31T23:59:59-05:00"),
        ("value", 10**400),
    ],
)
def test_what_no_store_could_hold_is_rejected_by_field(tmp_path, field, value):
    path = write_lines(tmp_path / "propositions.jsonl", {"proposition_id": "p1", "title": "T", field: value})

    records, (reject,) = parsed(native.parse([path], RULES))

    assert records == []
    assert reject.reason.startswith(field)


def test_text_that_is_not_utf_8_is_rejected_not_altered(tmp_path):
    path = tmp_path / "propositions.csv"
    path.write_bytes(b"proposition_id,title\np1,Caf\xe9\np2,Tea\n")

    records, (reject,) = parsed(native.parse([path], RULES))

    assert [record.proposition_id for record in records] == ["p2"]
    assert reject.line.number == 2


def test_users_and_propositions_come_before_events_however_the_files_are_given(tmp_path):
    paths = [
        write_lines(tmp_path / "events.jsonl", GOOD_EVENT),
        write_lines(tmp_path / "propositions.jsonl", {"proposition_id": "p1", "title": "P"}),
        write_lines(tmp_path / "users.jsonl", {"user_id": "u1"}),
    ]

    records, _ = parsed(native.parse(paths, RULES))

    assert [type(record) for record in records] == [User, Proposition, Event]


def test_a_file_of_unknown_kind_is_refused_by_name(tmp_path):
    with pytest.raises(ImportRefused, match="must begin with users, propositions or events"):
        list(native.parse([write_lines(tmp_path / "stuff.jsonl", "{}")], RULES))


def test_a_metarank_ranking_is_an_impression_per_item_and_its_clicks_join_the_slate(tmp_path):
    when = str(int((NOON - timedelta(days=1)).timestamp() * 1000))
    path = write_lines(
        tmp_path / "events.jsonl",
        {
            "event": "item",
            "id": "1",
            "item": "p1",
            "timestamp": when,
            "fields": [
                {"name": "title", "value": "T"},
                {"name": "genres", "value": ["drama", "war"]},
                {"name": "tags", "value": [" war ", "", "x\x00y", "long"]},
            ],
        },
        {
            "event": "ranking",
            "id": "r1",
            "user": "u1",
            "timestamp": when,
            "items": [{"id": "p1"}, {"id": "p2"}],
        },
        {
            "event": "interaction",
            "id": "i1",
            "ranking": "r1",
            "item": "p2",
            "type": "click",
            "user": "u1",
            "timestamp": when,
        },
        {"event": "interaction", "id": "i2", "item": "p2", "type": "stare", "timestamp": when},
        {"event": "ranking", "id": "r2", "timestamp": when},
        [],
    )

    records, rejects = parsed(metarank.parse([path], RULES))

    assert records[0].category == "drama" and records[0].tags == ("drama", "war", "long")
    assert [(r.event_type, r.proposition_id, r.position, r.request_id) for r in records[1:]] == [
        ("impression", "p1", 1, "r1"),
        ("impression", "p2", 2, "r1"),
        ("click", "p2", None, "r1"),
    ]
    assert [reject.line.number for reject in rejects] == [4, 5, 6]


def movielens_folder(tmp_path, ratings):
    (tmp_path / "ml-100k.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t24\tM\twriter\t12345\n"
    )
    (tmp_path / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "7\tToy Story\t1995\tAnimation Comedy\n"
    )
    rows = "".join("\t".join(map(str, rating)) + "\n" for rating in ratings)
    (tmp_path / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + rows
    )
    return tmp_path


def test_a_movielens_rating_is_an_impression_and_a_good_one_more(tmp_path):
    folder = movielens_folder(tmp_path, [(1, 7, 5, 1000), (1, 8, 4, 1010), (1, 9, 3, 1020)])

    records, rejects = parsed(movielens.parse([folder], RULES))

    events = [record for record in records if isinstance(record, Event)]
    assert [(e.proposition_id, e.event_type.value) for e in events] == [
        ("7", "impression"),
        ("7", "click"),
        ("7", "conversion"),
        ("8", "impression"),
        ("8", "click"),
        ("9", "impression"),
    ]
    assert len({e.request_id for e in events}) == 1
    assert events[0].context == {"daypart": "night", "weekday": "thu"}
    assert records[0] == User("1", 24.0, "M", "writer", {"zip_code": "12345"})
    assert records[1].title == "Toy Story (1995)" and records[1].category == "Animation"
    assert rejects == []


def test_movielens_slates_end_after_a_minute_or_twenty_ratings(tmp_path):
    ratings = [(1, 100 + i, 3, 1000 + i) for i in range(21)] + [(1, 200, 3, 2000), (2, 7, 3, 2000)]

    records, _ = parsed(movielens.parse([movielens_folder(tmp_path, ratings)], RULES))

    slates = [e.request_id for e in records if isinstance(e, Event)]
    assert [slates.count(slate) for slate in dict.fromkeys(slates)] == [20, 1, 1, 1]


def test_a_bad_movielens_rating_is_rejected_with_its_line(tmp_path):
    folder = movielens_folder(tmp_path, [(1, 7, "good", 1000), (1, 8, 3, "today"), (1, 9, 3, 1000)])

    records, rejects = parsed(movielens.parse([folder], RULES))

    assert sum(isinstance(r, Event) for r in records) == 1
    assert sorted(reject.line.number for reject in rejects) == [2, 3]


class FakeLoader:
    def __init__(self):
        self.records, self.is_finished = [], False

    def add(self, record):
        self.records.append(record)

    def finish(self, shift_to_now):
        self.is_finished = True
        return Loaded(0, 0, len(self.records), 0)


def test_rejects_are_written_with_file_line_reason_and_content(tmp_path):
    path = write_lines(tmp_path / "events.jsonl", GOOD_EVENT, "{bad")
    rejects = tmp_path / "rejects.jsonl"

    report = run_import(native.parse([path], RULES), FakeLoader(), rejects)

    assert report.rejected == 1 and report.loaded.events == 1
    (line,) = map(json.loads, rejects.read_text().splitlines())
    assert line["line"] == 2 and line["file"] == str(path) and "not JSON" in line["reason"]


def test_a_strict_import_stops_at_the_first_bad_line_and_loads_nothing(tmp_path):
    path = write_lines(tmp_path / "events.jsonl", GOOD_EVENT, "{bad")
    loader = FakeLoader()

    with pytest.raises(ImportRefused, match="line 2"):
        run_import(native.parse([path], RULES), loader, tmp_path / "r.jsonl", strict=True)

    assert not loader.is_finished


def test_a_clean_import_leaves_no_rejects_file(tmp_path):
    path = write_lines(tmp_path / "events.jsonl", GOOD_EVENT)

    run_import(native.parse([path], RULES), FakeLoader(), tmp_path / "rejects.jsonl")

    assert not (tmp_path / "rejects.jsonl").exists()

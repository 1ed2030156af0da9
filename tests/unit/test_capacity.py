"""What the capacity calculator says, on costs that a reader can compute with."""

import json
import math
import re
from dataclasses import asdict, fields, replace

import pytest
from typer.testing import CliRunner

from app.capacity.costs import Costs, read_costs, sections
from app.capacity.sizing import Capacity, size
from app.capacity.target import Target
from app.cli import app
from app.domain.errors import ConfigurationError
from tests.benchmarks.run import SECTIONS

COSTS = Costs(
    cpu_ms_per_request=2.0,
    redis_cpu_ms_per_request=0.1,
    postgres_cpu_ms_per_request=0.05,
    cpu_ms_per_log_event=0.6,
    cpu_ms_per_further_event=0.1,
    catalog_cost_ratio=1.5,
    largest_catalog_memory_mb_per_worker=500.0,
    projector_events_per_s=5_000.0,  # 200 us
    projector_one_slot_events_per_s=25_000.0,  # 40 us, so each further slot takes 20 us
    intake_cpu_ms_per_event=0.045,  # 5 us of each of nine processes
    log_events_per_s=20_000.0,
    postgres_cpu_ms_per_event=0.1,
    redis_cpu_ms_per_event=0.05,
    kafka_bytes_per_event=400.0,
    postgres_bytes_per_event=3_000.0,
    postgres_wal_bytes_per_event=5_000.0,
    postgres_page_writes_per_event=2.0,
    postgres_bytes_per_decision=1_000.0,
    postgres_wal_bytes_per_decision=1_500.0,
    postgres_page_writes_per_decision=0.5,
    redis_bytes_per_kept_slate=1_000.0,
    redis_rows_per_user=8.0,
    redis_bytes_per_user=4_000.0,
    redis_bytes_per_proposition=2_000.0,
    materialized_rows_per_s=100_000.0,
)
SHOP = Target(users=1_000_000, propositions=100_000, requests_per_s=1_000)


def value(capacity: Capacity, part: str, name: str) -> float:
    (found,) = (step.value for step in capacity.steps if (step.part, step.name) == (part, name))
    return found


def test_web_pods_have_the_cores_of_slates_and_events_with_room_and_one_pod_to_spare():
    capacity = size(SHOP, COSTS)

    assert value(capacity, "web", "slates") == pytest.approx(1_000 * 0.002 * 1.5)
    assert value(capacity, "web", "events") == pytest.approx(100 * (0.6 + 9 * 0.1) / 1e3)
    assert value(capacity, "web", "with room") == pytest.approx(3.15 / 0.6)
    assert capacity.needs["web_pods"] == 2 + 1


def test_a_catalog_as_small_as_the_measured_one_costs_no_more():
    capacity = size(replace(SHOP, propositions=5_000), COSTS)

    assert value(capacity, "web", "slates") == pytest.approx(2.0)


def test_redis_holds_users_propositions_and_kept_slates_on_enough_nodes():
    capacity = size(SHOP, COSTS)

    assert capacity.needs["redis_memory_gb"] == pytest.approx(4.0 + 0.2 + 0.09)
    assert capacity.needs["redis_nodes"] == 1
    assert value(capacity, "Redis", "lost, and materialized again") == pytest.approx(80 / 3_600)


def test_redis_has_a_node_for_each_core_that_commands_take():
    capacity = size(replace(SHOP, requests_per_s=10_000), COSTS)

    assert value(capacity, "Redis", "commands") == pytest.approx(1.5)
    assert capacity.needs["redis_nodes"] == 3


def test_postgres_takes_decisions_and_events():
    needs = size(SHOP, COSTS).needs

    assert needs["postgres_cores"] == pytest.approx(0.15 / 0.6)
    assert needs["postgres_wal_mb_per_s"] == pytest.approx(6.5)
    assert needs["postgres_iops"] == pytest.approx(2_500 + 6_500_000 / 16_384)
    assert needs["postgres_gb_per_day"] == pytest.approx(4e6 * 43_200 / 1e9)
    assert needs["postgres_tb"] == pytest.approx(172.8 * 730 / 1e3)
    assert needs["postgres_connections"] == (3 * 5 + 1) * 5


def test_events_and_decisions_are_kept_for_as_long_as_each_is():
    capacity = size(replace(SHOP, event_days=10, decision_days=100), COSTS)

    assert capacity.needs["postgres_tb"] == pytest.approx((129.6 * 10 + 43.2 * 100) / 1e3)


@pytest.mark.parametrize(
    ("events_per_s", "processes"),
    [
        # One process: 200 us and 45 of intake; 0.6 s of its second are to be used.
        (2_000, 1),
        # Two: five slots, 40 + 4 x 20 + 22.5 us.
        (4_000, 2),
        (9_500, 9),
    ],
)
def test_projectors_are_as_many_as_the_busiest_one_needs_to_keep_up(events_per_s, processes):
    capacity = size(replace(SHOP, events_per_request=events_per_s / 1_000), COSTS)

    assert capacity.needs["projector_processes"] == processes
    assert all(limit.holds for limit in capacity.limits) and capacity.installations == 1


def test_what_the_slots_or_the_log_cannot_take_is_said_with_how_many_installations_could():
    capacity = size(replace(SHOP, requests_per_s=50_000), COSTS)

    projector, log, server = capacity.limits
    assert projector.most == pytest.approx(0.6e6 / 45) and not projector.holds
    assert log.most == pytest.approx(12_000) and not log.holds
    assert server.wanted == pytest.approx(7.5 / 0.6) and server.holds
    assert capacity.needs["projector_processes"] == 9
    assert capacity.installations == 5


def test_kafka_has_twice_the_partitions_that_projectors_and_bytes_ask_for():
    few = size(replace(SHOP, events_per_request=9.5), COSTS)
    many = size(replace(SHOP, events_per_request=9.5, kafka_partition_mb_per_s=0.1), COSTS)

    assert few.needs["kafka_partitions"] == 2 * 9
    assert many.needs["kafka_partitions"] == 2 * 38


@pytest.mark.parametrize("requests_per_s", [10.0, 1_000.0, 50_000.0])
def test_the_arithmetic_that_is_shown_gives_the_value_beside_it(requests_per_s):
    for step in size(replace(SHOP, requests_per_s=requests_per_s), COSTS).steps:
        shown = re.sub(r"[A-Za-z]+(/[a-z]+)?", "", step.arithmetic).replace("_", "").replace(",", "")
        shown = shown.replace("÷", "/").replace("⌈", "ceil(").replace("⌉", ")")

        # Three digits of each number are shown.
        computed = eval(shown, {"ceil": math.ceil})
        assert computed == pytest.approx(step.value, rel=0.02), step


def test_every_cost_names_a_section_of_the_benchmark():
    assert set(sections().values()) <= set(SECTIONS)
    assert set(sections()) == {cost.name for cost in fields(Costs)}


def test_costs_are_read_from_what_the_benchmark_leaves(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({**asdict(COSTS), "serving_rps": 900.0}))

    assert read_costs(path) == COSTS


@pytest.mark.parametrize("lost", [None, 0, -1.0, "1", True, float("nan")])
def test_a_cost_that_was_not_measured_is_named_with_what_measures_it(tmp_path, lost):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({**asdict(COSTS), "catalog_cost_ratio": lost, "redis_bytes_per_user": lost}))

    with pytest.raises(ConfigurationError) as refused:
        read_costs(path)

    assert str(refused.value).splitlines() == [
        f"{path} has no catalog_cost_ratio: `make bench ONLY=growth` measures it",
        f"{path} has no redis_bytes_per_user: `make bench ONLY=projection` measures it",
    ]


@pytest.mark.parametrize(
    ("content", "said"), [(None, "run `make bench`"), ("{", "cannot be read"), ("[]", "no object")]
)
def test_a_file_without_costs_is_refused(tmp_path, content, said):
    path = tmp_path / "summary.json"
    if content is not None:
        path.write_text(content)

    with pytest.raises(ConfigurationError, match=said):
        read_costs(path)


@pytest.fixture
def ask(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(asdict(COSTS)))

    def run(*options: str) -> str:
        load = ["--users", "1000000", "--propositions", "100000", "--requests-per-s", "50000"]
        done = CliRunner().invoke(app, ["capacity", *load, "--costs", str(path), *options])
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


def test_the_command_prints_each_step_and_says_what_is_too_much(ask):
    text = ask()

    assert "50,000 requests/s * 2 ms * 1.5 for the catalog ÷ 1,000 = 150 cores" in text
    assert "50,000 of 12,000 events/s: TOO MUCH" in text
    assert text.splitlines()[-1] == "too much for one installation: divide the users among 5"


def test_divided_among_installations_each_has_its_share_of_users_and_requests_and_the_whole_catalog(ask):
    answer = json.loads(ask("--installations", "5", "--json"))

    assert (answer["target"]["users"], answer["target"]["requests_per_s"]) == (200_000, 10_000)
    assert answer["target"]["propositions"] == 100_000
    assert all(limit["holds"] for limit in answer["limits"])
    assert answer["installations_needed"] == 5

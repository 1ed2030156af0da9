import pytest

from app.gameday.rule_scaling import duration_s, scale_duration, scale_expression, scale_rules

MINUTE_IN_A_SECOND = 1 / 60


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [("250ms", 0.25), ("15s", 15), ("1h30m", 5_400), ("1d", 86_400), ("2w", 1_209_600), ("0s", 0)],
)
def test_a_duration_in_seconds(duration, seconds):
    assert duration_s(duration) == seconds


@pytest.mark.parametrize(
    ("duration", "scaled"), [("5m", "5000ms"), ("167h30m", "10050000ms"), ("10ms", "1ms"), ("0s", "0ms")]
)
def test_a_duration_is_scaled_and_does_not_vanish(duration, scaled):
    assert scale_duration(duration, MINUTE_IN_A_SECOND) == scaled


@pytest.mark.parametrize(
    ("expression", "scaled"),
    [
        ("rate(requests_total[5m])", "rate(requests_total[5000ms])"),
        ("avg_over_time(share[1h] offset 1d)", "avg_over_time(share[60000ms] offset 1440000ms)"),
        ("max_over_time(delay[1h:1m])", "max_over_time(delay[60000ms:1000ms])"),
        ("sum(rate(x[2m])) / sum(rate(y[2m]))", "sum(rate(x[2000ms])) / sum(rate(y[2000ms]))"),
    ],
)
def test_windows_offsets_and_steps_are_scaled(expression, scaled):
    assert scale_expression(expression, MINUTE_IN_A_SECOND) == scaled


@pytest.mark.parametrize(
    "expression",
    [
        "propositions:suggest_failures:ratio_rate5m > 14.4 * 0.001",
        'requests_total{reason="5m", le="0.1", route=~\'/v1d|/2h\'} > 60',
        "time() - trained_timestamp_seconds > 14 * 86400",
    ],
)
def test_names_texts_and_figures_stay(expression):
    assert scale_expression(expression, MINUTE_IN_A_SECOND) == expression


def test_the_horizon_of_a_prediction_is_scaled():
    scaled = scale_expression("predict_linear(bytes[5m], 2 * 3600) > capacity", 0.5)

    assert scaled == "predict_linear(bytes[150000ms], (2 * 3600) * 0.5) > capacity"


def test_every_time_of_a_rule_and_of_its_group_is_scaled_and_the_rest_stays():
    rule = {
        "alert": "A",
        "expr": "up[1m] == 0",
        "for": "2m",
        "keep_firing_for": "5m",
        "labels": {"for": "2m"},
    }
    content = {"groups": [{"name": "g", "interval": "1m", "rules": [rule, {"record": "r", "expr": "up"}]}]}

    scaled = scale_rules(content, MINUTE_IN_A_SECOND)

    (group,) = scaled["groups"]
    assert (group["name"], group["interval"]) == ("g", "1000ms")
    assert group["rules"] == [
        {**rule, "expr": "up[1000ms] == 0", "for": "2000ms", "keep_firing_for": "5000ms"},
        {"record": "r", "expr": "up"},
    ]
    assert rule["for"] == "2m"

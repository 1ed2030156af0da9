import pytest

from app.features.assembly import MatrixSpec
from tests.builders import DAY_S, HOUR_S, SMALL_SCHEMA


@pytest.fixture
def spec() -> MatrixSpec:
    rates = {"click_rate": 0.2, "conversion_rate": 0.1, "dismiss_rate": 0.05}
    return MatrixSpec(
        schema=SMALL_SCHEMA,
        half_lives_s=(HOUR_S, DAY_S),
        base_rates=rates,
        prior_strengths={
            view.name: dict.fromkeys(rates, 10.0) for view in SMALL_SCHEMA.views if view.has_counters
        },
        vocabularies={"proposition_catalog.category": ("news", "sport")},
        ranks={},
    )

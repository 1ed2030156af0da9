"""What a worker does when another model is promoted."""

from dataclasses import dataclass

import pytest

from app.domain.errors import ModelRefused, StoreUnavailable
from app.serving.refresh import LiveModel


@dataclass
class Active:
    version: str


class Models:
    """Versions that load, unless they are listed as bad."""

    def __init__(self):
        self.promoted, self.bad, self.loads = None, {}, []

    def active(self):
        return None if self.promoted is None else Active(self.promoted)

    def load(self, version, schema):
        self.loads.append(version)
        if version in self.bad:
            raise self.bad[version]
        return Active(version)


class Schemas:
    def read(self):
        return "schema"


@pytest.fixture
def models():
    return Models()


@pytest.fixture
def outcomes():
    return []


@pytest.fixture
def live(models, outcomes):
    return LiveModel(models, Schemas(), outcomes.append)


def promote(models, live, version):
    models.promoted = version
    live.refresh()
    return live.current and live.current.version


def test_a_promoted_model_serves_and_is_loaded_once(models, live, outcomes):
    assert promote(models, live, "m1") == "m1"
    assert promote(models, live, "m1") == "m1"
    assert promote(models, live, "m2") == "m2"

    assert models.loads == ["m1", "m2"]
    assert outcomes == ["loaded", "loaded"]
    assert live.problem is None


def test_a_refused_model_is_counted_and_told_while_the_old_one_serves(models, live, outcomes, caplog):
    promote(models, live, "m1")
    models.bad["m2"] = ModelRefused("SHA-256 differs")

    assert promote(models, live, "m2") == "m1"
    assert promote(models, live, "m2") == "m1"

    assert models.loads == ["m1", "m2"]  # not tried again and again
    assert outcomes == ["loaded", "refused"]
    assert live.problem == "SHA-256 differs"
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "model refused, the old one stays: SHA-256 differs"
    ]


def test_after_a_refusal_the_next_promotion_is_tried(models, live):
    promote(models, live, "m1")
    models.bad["m2"] = ModelRefused("no")
    promote(models, live, "m2")

    assert promote(models, live, "m3") == "m3"
    assert live.problem is None


def test_a_model_is_tried_again_when_only_its_surroundings_failed(models, live):
    models.bad["m1"] = StoreUnavailable("no schema yet")
    assert promote(models, live, "m1") is None

    models.bad.clear()

    assert promote(models, live, "m1") == "m1"


def test_loading_happens_where_it_is_told_to(models):
    places = []

    def aside(work):
        places.append("aside")
        return work()

    promote(models, LiveModel(models, Schemas(), lambda outcome: None, aside), "m1")

    assert places == ["aside", "aside"]  # to load it, and to get ready for it


def test_a_model_serves_only_when_everything_is_ready_for_it(models):
    steps = []

    def prepare(model):
        steps.append(f"prepared {model.version} while {live.current and live.current.version} serves")
        return lambda: steps.append(f"switched to {live.current.version}")

    live = LiveModel(models, Schemas(), lambda outcome: None, prepare=prepare)
    promote(models, live, "m1")
    promote(models, live, "m2")

    assert steps == [
        "prepared m1 while None serves",
        "switched to m1",
        "prepared m2 while m1 serves",
        "switched to m2",
    ]

"""What goes wrong in the game day of alerts, and which alerts have to tell of it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from app.gameday.broker import Broker, gone
from app.gameday.judging import Moments
from app.gameday.serving_faults import (
    OVERLOAD,
    FaultBlock,
    killed,
    overloaded,
    postgres_of,
    promoted,
    redis_of,
)
from app.gameday.serving_world import World


@dataclass(frozen=True, slots=True)
class AlertFault:
    """All of `alerts` have to fire while it lasts."""

    name: str
    fault: str
    alerts: tuple[str, ...]
    block: FaultBlock


def alert_faults(broker: Broker | None) -> Sequence[AlertFault]:
    """In this order: the budget of an objective takes half an hour to recover, while others are tried."""
    waiting = "PropositionsSpoolInUse" if broker is None else "PropositionsKafkaLag"
    stores = "PostgreSQL is" if broker is None else f"PostgreSQL and {broker.name} are"
    return (
        AlertFault(
            "overload",
            f"{OVERLOAD:g} times the capacity is asked for",
            ("PropositionsAvailabilityBurnsFast", "PropositionsRequestsShed"),
            overloaded,
        ),
        AlertFault(
            "redis killed",
            "Redis is killed",
            ("PropositionsSlatesWithoutModel", "PropositionsBreakerOpen"),
            killed(redis_of),
        ),
        AlertFault(
            "projector killed",
            "the only projector is killed",
            ("PropositionsProjectorGone",),
            projector_killed,
        ),
        AlertFault(
            "model broken",
            "a model with a damaged file is promoted",
            ("PropositionsModelRefused",),
            promoted(lambda world: world.bad_models.corrupt),
        ),
        AlertFault(
            "postgres killed",
            "PostgreSQL is killed",
            ("PropositionsBreakerOpen", waiting),
            killed(postgres_of),
        ),
        AlertFault(
            "spool filling",
            f"{stores} gone, and events fill the spool",
            ("PropositionsSpoolFillsUp", "PropositionsEventsNotTaken"),
            event_stores_gone(broker),
        ),
        AlertFault(
            "service gone",
            "the service is killed with all of its workers",
            ("PropositionsServiceGone",),
            service_killed,
        ),
    )


@contextmanager
def projector_killed(world: World, _: Moments) -> Iterator[None]:
    (projector,) = world.stack.projectors
    projector.kill()
    yield
    projector.start()


def event_stores_gone(broker: Broker | None) -> FaultBlock:
    """Everything that takes events but the spool."""

    @contextmanager
    def block(world: World, moments: Moments) -> Iterator[None]:
        with ExitStack() as stores:
            if broker is not None:
                stores.enter_context(gone(broker))
            stores.enter_context(killed(postgres_of)(world, moments))
            yield

    return block


@contextmanager
def service_killed(world: World, _: Moments) -> Iterator[None]:
    """Nothing is asked for while nobody listens."""
    world.stop_load()
    world.stack.service.kill()
    yield
    world.stack.service.start()
    world.stack.wait_until_ready()
    world.start_load()

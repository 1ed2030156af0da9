"""`propositions kafka`: the topics, and how far the projectors have got in them."""

import typer

from app.cli.console import console
from app.settings import load_settings

commands = typer.Typer(
    name="kafka", help="Kafka's topics, and how far they are brought into PostgreSQL.", no_args_is_help=True
)


@commands.command()
def init() -> None:
    """Create the topics that are missing. Those that exist stay as they are."""
    from app.adapters.kafka_topics import create_topics

    for topic in create_topics(load_settings()):
        state = "created" if topic.is_new else "exists"
        console.print(f"{topic.name}: {state}, partitions: {topic.partitions}")
        if topic.partitions != topic.wanted_partitions:
            console.print(
                f"    {topic.wanted_partitions} are wanted; nothing was changed, because users would move "
                "to other partitions while events of theirs wait in the old ones"
            )


@commands.command()
def status() -> None:
    """Show how far each partition is brought into PostgreSQL."""
    from app.adapters.kafka_topics import read_lag

    lags = read_lag(load_settings())
    for lag in lags:
        committed = "nothing" if lag.committed is None else f"{lag.committed:,}"
        console.print(f"partition {lag.partition}: {committed} of {lag.end:,} committed, lag {lag.lag:,}")
    console.print(f"lag in all: {sum(lag.lag for lag in lags):,}")

"""What the features are made of."""

from datetime import timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, Field, field_validator

from app.settings.kinds import CommaSeparated


class FeatureSettings(BaseModel):
    """Counters, neighbours, contexts and time."""

    half_lives_s: CommaSeparated[float] = Field(
        (3_600.0, 86_400.0, 604_800.0, 2_592_000.0),
        description="Half-lives of the decayed counters in seconds, ascending, comma-separated. "
        "After a change run `propositions rebuild-features` and train again.",
    )
    covisit_window_s: float = Field(
        86_400.0,
        gt=0,
        description="Seconds that two clicks or conversions of a user may lie apart to make their propositions "
        "neighbours. After a change run `propositions rebuild-features`.",
    )
    covisit_half_life_s: float = Field(
        2_592_000.0,
        gt=0,
        description="Half-life of the weights between neighbouring propositions in seconds. "
        "After a change run `propositions rebuild-features`.",
    )
    context_fields: CommaSeparated[str] = Field(
        ("page", "device", "daypart", "weekday"),
        description="Fields of a context that tell contexts apart, comma-separated. "
        "After a change train again.",
    )
    timezone: str = Field("UTC", description="Time zone of the dayparts and weekdays, as an IANA name.")
    max_future_s: int = Field(
        300, ge=0, description="Seconds that an event's timestamp may lie ahead of this machine's clock."
    )

    @field_validator("half_lives_s")
    @classmethod
    def _half_lives_ascend(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or value[0] <= 0 or list(value) != sorted(set(value)):
            raise ValueError("give positive seconds in ascending order, for example 3600,86400")
        return value

    @field_validator("context_fields")
    @classmethod
    def _context_fields_are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(name.isidentifier() for name in value):
            raise ValueError("give one or more names of letters, digits and underscores")
        return value

    @field_validator("timezone")
    @classmethod
    def _timezone_exists(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError("give an IANA name such as Europe/Berlin") from error
        return value

    @property
    def max_future(self) -> timedelta:
        return timedelta(seconds=self.max_future_s)

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

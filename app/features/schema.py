"""What the feature repo declares, as plain data: the contract between trainer, model and service."""

import hashlib
import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any


class EntityName(StrEnum):
    """The entities, by the name that the feature repo gives them."""

    USER = "user"
    PROPOSITION = "proposition"
    CONTEXT = "context"
    USER_CATEGORY = "user_category"
    CONTEXT_PROPOSITION = "context_proposition"


# The columns of a view that holds decayed counters: one array per event type with one number per
# half-life, and the time in seconds since the epoch to which they are decayed.
COUNTER_FIELDS = ("impressions", "clicks", "conversions", "dismissals")
AS_OF_FIELD = "as_of_s"


class FieldKind(StrEnum):
    """How a field becomes model input."""

    NUMBER = "number"
    CATEGORY = "category"
    TIME = "time"
    COUNTER = "counter"
    IDS = "ids"  # names propositions; read for finding candidates, no input of a model
    HISTORY = "history"  # what a user was shown, and what came of it: compared with each candidate
    TRAITS = "traits"  # texts of which some propositions share some
    NUMBER_NAMES = "number_names"  # names of numbers that only some propositions have ...
    NUMBER_VALUES = "number_values"  # ... and the numbers, in the same order


@dataclass(frozen=True, slots=True)
class FieldSchema:
    name: str
    dtype: str
    kind: FieldKind


@dataclass(frozen=True)
class ViewSchema:
    """One feature view. `prior_view` names the counter view whose rates this one's shrink towards."""

    name: str
    entity: EntityName
    join_key: str
    fields: tuple[FieldSchema, ...]
    ttl_s: float
    prior_view: str | None = None

    def __hash__(self) -> int:
        return hash(self.name)  # of all fields it would cost more than what is looked up by it

    @cached_property
    def has_counters(self) -> bool:
        return any(field.kind is FieldKind.COUNTER for field in self.fields)

    @cached_property
    def has_history(self) -> bool:
        return any(field.kind is FieldKind.HISTORY for field in self.fields)

    @cached_property
    def field_names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)


@dataclass(frozen=True, slots=True)
class FeatureSchema:
    """A feature service of the feature repo, view by view in its order."""

    project: str
    service: str
    views: tuple[ViewSchema, ...]

    def view(self, name: str) -> ViewSchema:
        return next(view for view in self.views if view.name == name)

    def hash(self) -> str:
        """SHA-256 (hex) over all names, types and relations: equal exactly when they are."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "FeatureSchema":
        views = tuple(
            ViewSchema(
                **{
                    **view,
                    "entity": EntityName(view["entity"]),
                    "fields": tuple(
                        FieldSchema(field["name"], field["dtype"], FieldKind(field["kind"]))
                        for field in view["fields"]
                    ),
                }
            )
            for view in data["views"]
        )
        return cls(project=data["project"], service=data["service"], views=views)

"""What is read online for one request: rows of the user, the context, and the user's categories."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from app.domain.context import crossed_keys
from app.domain.types import EventType, FeatureState, SuggestRequest
from app.features.assembly import MatrixSpec
from app.features.catalog import Catalog
from app.features.fold import EVENT_ROW
from app.features.ports import OnlineReader, OnlineRows
from app.features.recent import RECENT_FIELD, RECENT_VIEW
from app.features.schema import EntityName, FieldKind, FieldSchema, ViewSchema
from app.features.snapshot import Snapshot
from app.serving.candidates import Taste

SECONDS_PER_DAY = 86_400.0

# Read for finding candidates; no input of a model, so no model's manifest names it.
RECENT = ViewSchema(
    RECENT_VIEW,
    EntityName.USER,
    "user_id",
    (FieldSchema(RECENT_FIELD, "Array(String)", FieldKind.IDS),),
    ttl_s=365 * SECONDS_PER_DAY,
)
FAVOURITE_CATEGORIES = 3


@dataclass(frozen=True, slots=True)
class OnlineFeatures:
    """Rows by view. Those of a user and a category are in the order of `categories`, their numbers in the
    catalog."""

    rows: Mapping[str, OnlineRows]
    categories: Sequence[int]


def read_online(
    reader: OnlineReader,
    spec: MatrixSpec,
    snapshot: Snapshot,
    request: SuggestRequest,
    now: datetime,
    timeout_s: float,
) -> OnlineFeatures:
    """One round trip. A request without a user has no rows of a user.

    Raises:
        FeaturesUnavailable: the online store did not answer in time.
    """
    categories, names = snapshot.largest_categories
    keys: dict[ViewSchema, Sequence[str]] = {}
    if request.user_id is not None:
        keys[RECENT] = [request.user_id]
    for view in spec.schema.views:
        match view.entity:
            case EntityName.USER if request.user_id is not None:
                keys[view] = [request.user_id]
            case EntityName.CONTEXT:
                keys[view] = [request.context_key]
            case EntityName.USER_CATEGORY if request.user_id is not None and categories:
                keys[view] = crossed_keys(request.user_id, names)
    return OnlineFeatures(reader.read(keys, len(spec.half_lives_s), now, timeout_s), categories)


def taste_of(spec: MatrixSpec, catalog: Catalog, online: OnlineFeatures) -> Taste:
    """What the user last interacted with, and the categories with the most clicks and conversions."""
    recent: Sequence[int] = ()
    if RECENT_VIEW in online.rows and (ids := online.rows[RECENT_VIEW].rows.values[RECENT_FIELD][0]):
        positions = catalog.positions_of(ids)
        recent = positions[positions >= 0]
    return Taste(recent, _favourites(spec, online))


def _favourites(spec: MatrixSpec, online: OnlineFeatures) -> Sequence[int]:
    for view in spec.schema.views:
        if view.entity is EntityName.USER_CATEGORY and view.has_counters and view.name in online.rows:
            longest = online.rows[view.name].rows.counts[:, :, -1]
            liking = longest[:, EVENT_ROW[EventType.CLICK]] + longest[:, EVENT_ROW[EventType.CONVERSION]]
            best = (-liking).argsort(kind="stable")[:FAVOURITE_CATEGORIES]
            return [online.categories[number] for number in best.tolist() if liking[number] > 0]
    return ()


def feature_states(spec: MatrixSpec, online: OnlineFeatures) -> dict[str, FeatureState]:
    """How the user's and the context's features stood: the worst of their views, stale before missing.

    An entity of which one view has a row is known, so its other views may rightly have none (a user
    without a profile). `default` where the request names no user.
    """
    states: dict[str, FeatureState] = {}
    for entity in (EntityName.USER, EntityName.CONTEXT):
        seen = {
            online.rows[view.name].states[0]
            for view in spec.schema.views
            if view.entity is entity and view.name in online.rows
        }
        if not seen:
            states[str(entity)] = FeatureState.DEFAULT
        elif FeatureState.STALE in seen:
            states[str(entity)] = FeatureState.STALE
        elif FeatureState.FRESH in seen:
            states[str(entity)] = FeatureState.FRESH
        else:
            states[str(entity)] = FeatureState.MISSING
    return states

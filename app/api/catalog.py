"""/propositions and /users: the catalog and the people, one by one or in bulk."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

import orjson
from flask import Response, request
from flask_openapi import APIBlueprint, Tag
from pydantic import BaseModel, Field, SkipValidation, ValidationError
from werkzeug.exceptions import NotFound

from app.api.problems import FieldProblem, InvalidField, Problem, problems_of
from app.domain.ports import PropositionStore, Stored, Upserted, UserStore
from app.domain.types import Proposition, User
from app.events.intake import Id, PropositionIn, Strict, UserIn
from app.life.forget import Forgotten

MAX_BATCH_PROPOSITIONS = 10_000


class PropositionPath(BaseModel):
    proposition_id: Id


class UserPath(BaseModel):
    user_id: Id


class PropositionBody(PropositionIn):
    """A proposition as it is to be from now on; what is left out becomes empty. `created_at` stays as it was first."""

    proposition_id: Id | None = Field(None, description="If given, the same as in the path.")


class UserBody(UserIn):
    """A user as they are to be from now on; what is left out becomes empty. `created_at` stays as it was first."""

    user_id: Id | None = Field(None, description="If given, the same as in the path.")


class PropositionsIn(Strict):
    """Of several with one id the last counts."""

    propositions: Annotated[
        list[SkipValidation[PropositionIn]], Field(min_length=1, max_length=MAX_BATCH_PROPOSITIONS)
    ]


class RejectedProposition(BaseModel):
    index: int = Field(description="Place in the request's list, from 0.")
    proposition_id: str | None
    errors: list[FieldProblem]


class PropositionsOut(BaseModel):
    """What became of each proposition. Rejected ones do not keep the others from being stored."""

    created: list[str]
    changed: list[str]
    unchanged: list[str]
    rejected: list[RejectedProposition]


class ForgottenOut(BaseModel):
    """What was removed; nothing, if nothing was known."""

    removed: dict[str, int] = Field(description="Rows, fields and records by where they were.")
    is_complete: bool = Field(
        description="False while Redis does not answer: what it holds is removed when it is back."
    )


NOT_FOUND = {404: Problem}
ENTITY_HEADERS = "The answer has an `ETag`; `If-None-Match` is answered with 304."


def catalog_routes(propositions: PropositionStore) -> APIBlueprint:
    routes = APIBlueprint("catalog", __name__, abp_tags=[Tag(name="catalog")])

    @routes.post(
        "/propositions",
        summary="Create or change many propositions",
        description="Bad ones are rejected with their reasons and do not block the good ones.",
        responses={200: PropositionsOut},
    )
    def post_propositions(body: PropositionsIn) -> Response:
        accepted, rejected = _sorted_out(body.propositions)
        upserted = propositions.upsert(accepted) if accepted else Upserted()
        return _json(
            {
                "created": upserted.created_ids,
                "changed": upserted.changed_ids,
                "unchanged": upserted.unchanged_ids,
                "rejected": [entry.model_dump() for entry in rejected],
            }
        )

    @routes.put(
        "/propositions/<id:proposition_id>",
        summary="Create or change a proposition",
        description=f"Slates show it as it is now within seconds. {ENTITY_HEADERS}",
        responses={200: PropositionIn, 201: PropositionIn},
    )
    def put_proposition(path: PropositionPath, body: PropositionBody) -> Response:
        _require_same("proposition_id", body.proposition_id, path.proposition_id)
        body = body.model_copy(update={"proposition_id": path.proposition_id})
        return _put(propositions, "/propositions", path.proposition_id, _as_of_now(body.to_proposition()))

    @routes.get(
        "/propositions/<id:proposition_id>",
        summary="A proposition as it is stored",
        description=ENTITY_HEADERS,
        responses={200: PropositionIn, **NOT_FOUND},
    )
    def get_proposition(path: PropositionPath) -> Response:
        return _entity(propositions.find(path.proposition_id))

    @routes.delete(
        "/propositions/<id:proposition_id>",
        summary="Take a proposition out of all slates",
        description="Within seconds, at every degradation level. What happened to it stays, for training; a PUT "
        "brings it back.",
        responses={204: None, **NOT_FOUND},
    )
    def delete_proposition(path: PropositionPath) -> Response:
        if not propositions.delete(path.proposition_id):
            raise NotFound("there is no such proposition")
        return Response(status=204)

    return routes


def user_routes(users: UserStore, forget: Callable[[str], Forgotten]) -> APIBlueprint:
    routes = APIBlueprint("users", __name__, abp_tags=[Tag(name="users")])

    @routes.put(
        "/users/<id:user_id>",
        summary="Create or change a user",
        description=ENTITY_HEADERS,
        responses={200: UserIn, 201: UserIn},
    )
    def put_user(path: UserPath, body: UserBody) -> Response:
        _require_same("user_id", body.user_id, path.user_id)
        body = body.model_copy(update={"user_id": path.user_id})
        return _put(users, "/users", path.user_id, _as_of_now(body.to_user()))

    @routes.get(
        "/users/<id:user_id>",
        summary="A user as they are stored",
        description=ENTITY_HEADERS,
        responses={200: UserIn, **NOT_FOUND},
    )
    def get_user(path: UserPath) -> Response:
        return _entity(users.find(path.user_id))

    @routes.delete(
        "/users/<id:user_id>",
        summary="Forget a person",
        description="Removes the user's profile, events, decisions and features from all stores, also of a user "
        "who is not known. Copies of events from before that arrive later are dropped.",
        responses={200: ForgottenOut},
    )
    def delete_user(path: UserPath) -> Response:
        forgotten = forget(path.user_id)
        return _json({"removed": forgotten.counts, "is_complete": forgotten.is_complete})

    return routes


def _sorted_out(items: list[Any]) -> tuple[list[Proposition], list[RejectedProposition]]:
    accepted: list[Proposition] = []
    rejected: list[RejectedProposition] = []
    for index, item in enumerate(items):
        try:
            accepted.append(_as_of_now(PropositionIn.model_validate(item).to_proposition()))
        except ValidationError as error:
            named = item.get("proposition_id") if isinstance(item, dict) else None
            rejected.append(
                RejectedProposition(
                    index=index,
                    proposition_id=named if isinstance(named, str) else None,
                    errors=problems_of(error),
                )
            )
    return accepted, rejected


def _as_of_now(entity: Any) -> Any:
    """With a time of creation, which counts only if nobody knew the entity."""
    return entity if entity.created_at else replace(entity, created_at=datetime.now(UTC))


def _require_same(field: str, in_body: str | None, in_path: str) -> None:
    if in_body not in (None, in_path):
        raise InvalidField(field, "differs from the one in the path")


def _put(store: Any, path: str, entity_id: str, entity: User | Proposition) -> Response:
    is_new = entity_id in store.upsert([entity]).created_ids
    response = _entity(store.find(entity_id))
    if is_new:
        response.status_code = 201
        response.headers["Location"] = f"{path}/{quote(entity_id, safe='')}"
    return response


def _entity(stored: Stored | None) -> Response:
    if stored is None:
        raise NotFound("nothing is stored under this id")
    response = _json(stored.entity)
    response.set_etag(f"{stored.updated_at.timestamp():.6f}")
    return response.make_conditional(request) if request.method == "GET" else response


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), mimetype="application/json")

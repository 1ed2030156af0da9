"""The settings as the chart's values may give them, for `values.schema.json`."""

from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from app.settings import Settings

# The chart decides these itself, from other values.
OF_THE_CHART = {
    "DATABASE_URL",
    "REDIS_URL",
    "REDIS_CLUSTER",
    "REDIS_SENTINELS",
    "REDIS_SENTINEL_PASSWORD",
    "KAFKA_BOOTSTRAP_SERVERS",
    "KAFKA_OPTIONS",
    "DATA_DIR",
    "HOST",
    "PORT",
    "PRIVATE_PORT",
    "WEB_WORKERS",
    "SHUTDOWN_DRAIN_S",
    "TRUSTED_PROXIES",
    "PROJECT_METRICS_PORT",
    # Refused by what listens on other addresses than a loopback.
    "DEVELOPMENT_MODE",
}
_TYPES = {bool: "boolean", int: "integer", float: "number"}
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def settings_schema() -> dict[str, Any]:
    """Of values.settings: what may stand in a manifest."""
    return _closed({name: _schema(field) for name, field in _fields() if not _is_secret(field)})


def secret_settings_schema() -> dict[str, Any]:
    """Of values.secretSettings: what comes from a secret."""
    return _closed(
        {name: {"$ref": "#/$defs/requiredSecret"} for name, field in _fields() if _is_secret(field)}
    )


def _fields() -> list[tuple[str, FieldInfo]]:
    return [
        (name.upper(), field)
        for name, field in sorted(Settings.model_fields.items())
        if name.upper() not in OF_THE_CHART
    ]


def _schema(field: FieldInfo) -> dict[str, Any]:
    (kind,) = _kinds(field.annotation)
    if kind not in _TYPES:
        return {"type": "string"}
    bounds = {
        keyword: getattr(limit, name)
        for limit in field.metadata
        for name, keyword in _BOUNDS.items()
        if hasattr(limit, name)
    }
    return {"type": _TYPES[kind], **bounds}


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in _kinds(field.annotation)


def _kinds(annotation: Any) -> list[Any]:
    """The types that it allows beside None."""
    if get_origin(annotation) in (Union, UnionType):
        return [kind for kind in get_args(annotation) if kind is not type(None)]
    return [annotation]


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}

"""Schemas of the Prometheus operator's objects, as far as the chart uses them. Kubernetes' own schemas lack these."""

from typing import Any

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_DURATION = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d|w|y))+$"}


def _closed(*required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": list(required),
    }


_RULE = {
    **_closed(
        "expr",
        record={"type": "string", "pattern": "^[a-zA-Z_:][a-zA-Z0-9_:]*$"},
        alert={"type": "string"},
        expr={"type": ["string", "integer"]},
        **{"for": _DURATION},
        keep_firing_for=_DURATION,
        labels=_TEXTS,
        annotations=_TEXTS,
    ),
    "oneOf": [{"required": ["record"]}, {"required": ["alert"]}],
}

_SPECS = {
    "PrometheusRule": _closed(
        "groups",
        groups={
            "type": "array",
            "minItems": 1,
            "items": _closed(
                "name",
                "rules",
                name={"type": "string", "minLength": 1},
                interval=_DURATION,
                limit={"type": "integer"},
                labels=_TEXTS,
                rules={"type": "array", "items": _RULE},
            ),
        },
    ),
    "ServiceMonitor": _closed(
        "selector",
        "endpoints",
        selector=_closed("matchLabels", matchLabels=_TEXTS),
        endpoints={
            "type": "array",
            "minItems": 1,
            "items": _closed(
                "port",
                port={"type": "string"},
                path={"type": "string"},
                interval=_DURATION,
                relabelings={
                    "type": "array",
                    "items": _closed(
                        "targetLabel", targetLabel={"type": "string"}, replacement={"type": "string"}
                    ),
                },
            ),
        },
    ),
}

CUSTOM_RESOURCES = {
    kind: _closed(
        *("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "monitoring.coreos.com/v1"},
        kind={"const": kind},
        metadata=_closed(
            "name",
            name={"type": "string"},
            namespace={"type": "string"},
            labels=_TEXTS,
            annotations=_TEXTS,
        ),
        spec=spec,
    )
    for kind, spec in _SPECS.items()
}

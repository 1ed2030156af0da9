"""Reads a Secret as Helm sends it: in the encoding that Kubernetes' own clients prefer."""

import base64
from collections import defaultdict

from tests.chart.helm import Manifest

_MAGIC = b"k8s\0"
# Numbers of fields, from the .proto files of k8s.io/apimachinery and k8s.io/api.
_RAW = 2
_SECRET_METADATA, _SECRET_DATA, _SECRET_TYPE = 1, 2, 3
_NAME, _LABELS, _ANNOTATIONS = 1, 11, 12
_KEY, _VALUE = 1, 2


def decode_secret(body: bytes) -> Manifest:
    if not body.startswith(_MAGIC):
        raise ValueError("this is no object of Kubernetes in protobuf")
    secret = _fields(_fields(body[len(_MAGIC) :])[_RAW][0])
    metadata = _fields(secret[_SECRET_METADATA][0])
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": metadata[_NAME][0].decode(),
            "labels": {k: v.decode() for k, v in _entries(metadata[_LABELS]).items()},
            "annotations": {k: v.decode() for k, v in _entries(metadata[_ANNOTATIONS]).items()},
        },
        "data": {k: base64.b64encode(v).decode() for k, v in _entries(secret[_SECRET_DATA]).items()},
        "type": secret[_SECRET_TYPE][0].decode() if secret[_SECRET_TYPE] else "Opaque",
    }


def _entries(encoded: list[bytes]) -> dict[str, bytes]:
    """A map, which is a list of pairs."""
    pairs = [_fields(pair) for pair in encoded]
    return {pair[_KEY][0].decode(): pair[_VALUE][0] if pair[_VALUE] else b"" for pair in pairs}


def _fields(data: bytes) -> dict[int, list[bytes]]:
    """The texts, bytes and messages of a message by the numbers of their fields; its numbers are left out."""
    fields: dict[int, list[bytes]] = defaultdict(list)
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        value, at = _varint(data, at)
        if tag & 7 == 2:  # a length, and as many bytes; else the number itself
            fields[tag >> 3].append(data[at : at + value])
            at += value
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where the next thing begins."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at

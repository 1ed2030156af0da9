"""Bulk loads into PostgreSQL through COPY."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection

from app.domain.context import KEY_SEPARATOR

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def copy_rows(
    connection: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Appends rows to `table`. Sequences of numbers become arrays; None becomes NULL."""
    buffer = io.StringIO()
    for row in rows:
        buffer.write("\t".join(map(_as_copy_text, row)))
        buffer.write("\n")
    buffer.seek(0)
    with connection.connection.cursor() as cursor:
        cursor.copy_expert(f"COPY {table} ({', '.join(columns)}) FROM STDIN", buffer)


def text_array(texts: Sequence[str]) -> str:
    """Printable texts as PostgreSQL reads an array of them."""
    if not texts:
        return "{}"
    escaped = KEY_SEPARATOR.join(texts).replace("\\", "\\\\").replace('"', '\\"')
    return '{"' + escaped.replace(KEY_SEPARATOR, '","') + '"}'


def _as_copy_text(value: Any) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, str):
        return value.translate(_ESCAPES)
    if isinstance(value, (list, tuple)):
        return "{" + ",".join(map(repr, value)) + "}"
    return str(value)

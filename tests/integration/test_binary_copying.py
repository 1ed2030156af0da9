"""Values go through binary COPY into a real PostgreSQL and come back as they were."""

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from sqlalchemy import text

from app.adapters import binary_copying as binary
from app.adapters.database import batch_database

TEXTS = ["", "plain", 'qu"ote', "back\\slash", "tab\tand\nline", "{a,b}", "NULL", "ü😀"]
NUMBERS = [0.0, -0.0, 1.0, 0.1 + 0.2, 5e-324, -1.7976931348623157e308, float("inf"), float("nan")]
MOMENTS = [
    datetime(2026, 5, 17, 9, 30, 0, 123456, UTC),
    datetime(1969, 12, 31, 23, 59, 59, 999999, UTC),
    datetime(2000, 1, 1, tzinfo=timezone(timedelta(hours=-7))),
    datetime(2000, 1, 1, tzinfo=UTC),
]
ARRAYS = [(), (1.5,), (0.1, float("nan"), -3.0), tuple(NUMBERS)]


@pytest.fixture
def connection(empty_database):
    database = batch_database(empty_database)
    with database.transaction() as connection:
        yield connection
    database.close()


def stored(connection, type_: str, column: binary.Column) -> list:
    """What PostgreSQL holds of the column's values, in their order."""
    connection.execute(text(f"CREATE TEMP TABLE t (number int GENERATED ALWAYS AS IDENTITY, v {type_})"))
    binary.copy_columns(connection, "t", ["v"], [column])
    return list(connection.execute(text("SELECT v FROM t ORDER BY number")).scalars())


def test_texts_come_back_to_the_letter(connection):
    assert stored(connection, "text", binary.texts(TEXTS)) == TEXTS


def test_numbers_come_back_to_the_bit(connection):
    values = stored(connection, "double precision", binary.float8s(NUMBERS))

    assert np.array(values).tobytes() == np.array(NUMBERS).tobytes()


def test_times_come_back_to_the_microsecond_whatever_their_zone(connection):
    assert stored(connection, "timestamptz", binary.timestamps(MOMENTS)) == MOMENTS


def test_rows_of_a_matrix_come_back_as_arrays(connection):
    matrix = np.arange(12, dtype=np.float64).reshape(3, 4) / 7

    assert stored(connection, "double precision[]", binary.float8_rows(matrix)) == matrix.tolist()


def test_a_part_of_a_matrix_need_not_lie_in_one_piece(connection):
    cube = np.arange(24, dtype=np.float64).reshape(2, 3, 4)

    assert stored(connection, "double precision[]", binary.float8_rows(cube[:, 1])) == cube[:, 1].tolist()


def test_arrays_of_different_lengths_come_back(connection):
    values = stored(connection, "double precision[]", binary.float8_arrays(ARRAYS))

    assert [np.array(v).tobytes() for v in values] == [np.array(a).tobytes() for a in ARRAYS]


def test_arrays_of_texts_come_back(connection):
    arrays = [[], ["one"], TEXTS]

    assert stored(connection, "text[]", binary.text_arrays(arrays)) == arrays


def test_rows_are_made_of_the_columns_side_by_side(connection):
    connection.execute(text("CREATE TEMP TABLE t (k text, v double precision, at timestamptz)"))

    columns = [
        binary.texts(["a", "b"]),
        binary.float8s([1.0, 2.0]),
        binary.timestamps(MOMENTS[:2]),
    ]
    binary.copy_columns(connection, "t", ["k", "v", "at"], columns)

    rows = list(map(tuple, connection.execute(text("SELECT k, v, at FROM t ORDER BY k"))))
    assert rows == [("a", 1.0, MOMENTS[0]), ("b", 2.0, MOMENTS[1])]


def test_no_rows_are_no_rows(connection):
    assert stored(connection, "text", binary.texts([])) == []

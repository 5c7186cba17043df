"""Values as COPY's text format: exactly what an INSERT stores, or none of it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Engine,
    Float,
    LargeBinary,
    MetaData,
    Numeric,
    Table,
    Text,
    Uuid,
    select,
)
from sqlalchemy.dialects.postgresql import INTERVAL, JSONB

from sqla_jobs._dialects import pg_copy_text

KATHMANDU = timezone(timedelta(hours=5, minutes=45))
PARIS_1900 = timezone(timedelta(minutes=9, seconds=21))
VALUES: list[tuple[Any, Any]] = [
    (Text(), "tab\t line\n return\r slash\\ \\N \\. é € 😀"),
    (Text(), ""),
    (Text(), None),
    (BigInteger(), -(2**63)),
    (Float(), 0.1),
    (Float(), float("inf")),
    (Numeric(), Decimal("1E+3")),
    (Boolean(), True),
    (Date(), date(987, 1, 2)),
    (DateTime(timezone=True), datetime(2024, 2, 29, 1, 2, 3, 4, KATHMANDU)),
    (DateTime(timezone=True), datetime(1900, 1, 1, tzinfo=PARIS_1900)),
    (DateTime(timezone=True), datetime(1, 1, 2, tzinfo=UTC)),
    (DateTime(), datetime(2024, 2, 29)),  # noqa: DTZ001 - a column without one
    (INTERVAL(), timedelta(days=-400, seconds=5, microseconds=7)),
    (LargeBinary(), bytes(range(256))),
    (Uuid(), UUID(int=5)),
]


def test_written_values_are_read_as_they_were(engine: Engine) -> None:
    """The server reads from the text what the driver would have sent."""
    writers = pg_copy_text.writers(type_ for type_, _ in VALUES)
    assert writers is not None
    data = pg_copy_text.encoded(writers, [[value for _, value in VALUES]])
    assert data is not None
    columns = [Column(f"c{i}", type_) for i, (type_, _) in enumerate(VALUES)]
    table = Table("written", MetaData(), *columns, prefixes=["TEMPORARY"])
    with engine.connect() as connection:
        table.create(connection)
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy("COPY written FROM STDIN") as copy:
            copy.write(data)
        row = connection.execute(select(table)).one()
        connection.rollback()

    assert list(row) == [value for _, value in VALUES]


class Word(StrEnum):
    """A string that drivers may take for something else."""

    ONE = "one"


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (Text(), Word.ONE),
        (Text(), 5),
        (BigInteger(), True),
        (BigInteger(), 1.5),
        (JSONB(), {"not": "text yet"}),
        (DateTime(timezone=True), datetime(2024, 1, 1)),  # noqa: DTZ001
        (DateTime(), datetime(2024, 1, 1, tzinfo=UTC)),
        (Date(), datetime(2024, 1, 1, tzinfo=UTC)),
        (LargeBinary(), bytearray(b"x")),
    ],
)
def test_values_that_drivers_decide_on_are_left_to_them(type_: Any, value: Any) -> None:
    """What is not of the column's very type is no COPY's business."""
    writers = pg_copy_text.writers([type_])
    assert writers is not None

    assert pg_copy_text.encoded(writers, [[value]]) is None


def test_columns_of_other_types_are_left_to_the_driver() -> None:
    """An array's text is the server's own grammar."""
    assert pg_copy_text.writers([Text(), ARRAY(Text())]) is None

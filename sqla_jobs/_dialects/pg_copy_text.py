"""Values as the text format of COPY, for drivers that have no such thing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import types
from sqlalchemy.dialects.postgresql import INTERVAL
from sqlalchemy.types import TypeDecorator, TypeEngine

Writer = Callable[[Any], str]
Writers = Sequence[Mapping[type[Any], Writer]]


def _string(value: str) -> str:
    if "\\" in value:
        value = value.replace("\\", "\\\\")
    # Nothing else ends a line or a value (manual, COPY, "Text Format").
    return value.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def _boolean(value: bool) -> str:
    return "t" if value else "f"


def _bytes(value: bytes) -> str:
    return f"\\\\x{value.hex()}"


def _interval(value: timedelta) -> str:
    return f"{value.days} days {value.seconds} seconds {value.microseconds} us"


def _aware(value: datetime) -> str:
    if value.utcoffset() is None:
        raise _NoText
    return value.isoformat()


def _naive(value: datetime) -> str:
    if value.utcoffset() is not None:
        raise _NoText
    return value.isoformat()


def _null(_value: None) -> str:
    return "\\N"


class _NoText(Exception):
    """The server would not read it as the driver means it."""


_NUMBERS: dict[type[Any], Writer] = {int: str, float: repr, Decimal: str}
# The type of the column, and how its values are written; the first that fits.
_BY_TYPE: list[tuple[type[TypeEngine[Any]], dict[type[Any], Writer]]] = [
    (types.String, {str: _string}),
    (types.JSON, {str: _string}),
    (types.Integer, {int: str}),
    (types.Numeric, _NUMBERS),
    (types.Float, _NUMBERS),  # no Numeric since SQLAlchemy 2.1
    (types.Boolean, {bool: _boolean}),
    (types.Date, {date: date.isoformat}),
    (INTERVAL, {timedelta: _interval}),
    (types.LargeBinary, {bytes: _bytes}),
    (types.Uuid, {UUID: str, str: _string}),
]


def writers(given: Iterable[TypeEngine[Any]]) -> Writers | None:
    """Return how values of the column types *given* are written; None if one is not."""
    found = [_writer(type_) for type_ in given]
    return None if None in found else [one for one in found if one is not None]


def _writer(type_: TypeEngine[Any]) -> dict[type[Any], Writer] | None:
    while isinstance(type_, TypeDecorator):
        type_ = type_.impl_instance
    if isinstance(type_, types.DateTime):
        return {datetime: _aware if type_.timezone else _naive, type(None): _null}
    for base, known in _BY_TYPE:
        if isinstance(type_, base):
            return {**known, type(None): _null}
    return None


def encoded(columns: Writers, rows: Iterable[Sequence[Any]]) -> bytes | None:
    """Return *rows* in the text format; None if a value is of another Python type."""
    lines = []
    try:
        for row in rows:
            values = [
                known[type(value)](value)
                for known, value in zip(columns, row, strict=True)
            ]
            lines.append("\t".join(values))
    except (KeyError, _NoText):
        return None
    return ("\n".join(lines) + "\n").encode()

"""Payload keys in SQL: comparable with values of their Python type."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Date,
    DateTime,
    Dialect,
    Numeric,
    Text,
    cast,
    func,
    literal,
)
from sqlalchemy import (
    type_coerce as coerce,
)
from sqlalchemy.sql.elements import Label
from sqlalchemy.types import TypeDecorator, TypeEngine

from sqla_jobs._core.payloads import Codec
from sqla_jobs.models.annotations import without_none
from sqla_jobs.models.types import JSON_VALUE


class ArgExpression(Label[Any]):
    """An argument on a class; `aliased()` re-targets it like a column."""

    inherit_cache = True

    def __init__(self, name: str, element: Any, codec: Codec) -> None:
        super().__init__(name, element)
        self.codec = codec

    def adapt_to_entity(self, inspected: Any) -> ColumnElement[Any]:
        """Return the same key of an alias."""
        return expression(inspected.entity, self.name, self.codec)


class _Encoded(TypeDecorator[Any]):
    """Bound values are encoded as the payload stores them, results decoded."""

    cache_ok = True

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else self.codec.encode(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else self.codec.decode(value)


class EncodedText(_Encoded):
    """Of what JSON stores as a string and SQL compares as one: UUID, enums of str."""

    impl = Text
    cache_ok = True


class EncodedJSON(_Encoded):
    """Of lists, objects and mixtures."""

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Use the type of the payload column."""
        return JSON_VALUE.dialect_impl(dialect)


class WholeNumber(_Encoded):
    """Of ints, which have no largest value in JSON."""

    impl = Numeric
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Return the int."""
        return None if value is None else int(value)


# Stored as text, which orders differently from what it stands for.
_STOCK: dict[Any, TypeEngine[Any]] = {
    Decimal: Numeric(),
    datetime: DateTime(timezone=True),
    date: Date(),
}


def expression(owner: Any, name: str, codec: Codec) -> ColumnElement[Any]:
    """Return the payload key *name* of a class or an alias, of its own type in SQL."""
    return ArgExpression(name, _typed(owner.payload[name], codec), codec)


def _typed(key: Any, codec: Codec) -> ColumnElement[Any]:
    inner = without_none(codec.annotation)
    if isinstance(inner, type) and inner in _STOCK:
        return cast(key.as_string(), _STOCK[inner])
    shapes = codec.shapes - {"null"}
    if shapes == {"string"}:
        text = key.as_string()
        return text if codec.plain else coerce(text, EncodedText(codec))
    if shapes == {"integer"}:
        return cast(key.as_string(), WholeNumber(codec))
    if shapes == {"number"}:
        return key.as_float()  # type: ignore[no-any-return]
    if shapes == {"boolean"}:
        return key.as_boolean()  # type: ignore[no-any-return]
    # A JSON null is None in Python, so it has to be NULL here too.
    null = literal(JSON.NULL, JSON_VALUE)
    return func.nullif(key, null, type_=EncodedJSON(codec))

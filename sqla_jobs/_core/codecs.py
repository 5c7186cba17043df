"""What a codec is, and the codecs of types that have no parts."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, NoReturn
from uuid import UUID

from sqla_jobs._core.json_values import (
    Invalid,
    Mismatch,
    check,
    check_float,
    check_int,
    check_text,
    short,
)
from sqla_jobs.errors import JobDefinitionError

_SHAPES = frozenset(
    {"null", "boolean", "integer", "number", "string", "array", "object"}
)


class Codec:
    """
    Turns the values of one annotation into JSON values and back.

    Attributes:
        annotation: The type it was made for.
        shapes: The JSON types it stores as.
        plain: Whether values are stored as they are.
    """

    shapes = _SHAPES
    plain = False

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation

    def __repr__(self) -> str:
        return f"<Codec {type_name(self.annotation)}>"

    def encode(self, value: Any, path: str = "value") -> Any:
        """
        Return *value* as a JSON value that PostgreSQL can store.

        Raises:
            PayloadError: If it is not what the annotation says, or JSON cannot hold
                it; names the place as *path* and what leads on from it.
        """
        try:
            return self.write(value, 0)
        except Invalid as bad:
            raise bad.at(path) from bad.__cause__

    def decode(self, value: Any, path: str = "value") -> Any:
        """
        Return the value that was encoded as the JSON value *value*.

        Raises:
            PayloadError: If it is not JSON of this annotation; names the place as
                *path* and what leads on from it.
        """
        try:
            return self.read(value, 0)
        except Invalid as bad:
            raise bad.at(path) from bad.__cause__

    def write(self, value: Any, depth: int) -> Any:
        """Encode inside *depth* containers; raises `Invalid`."""
        raise NotImplementedError

    def read(self, value: Any, depth: int) -> Any:
        """Decode inside *depth* containers; raises `Invalid`."""
        raise NotImplementedError

    def mismatch(self, value: Any) -> NoReturn:
        """Refuse a value of another type than declared."""
        name = type_name(self.annotation)
        hint = f"; to allow None, declare {name} | None" if value is None else ""
        raise Mismatch(
            f"expected {name}, got {short(value)} ({type(value).__name__}){hint}"
        )


class AnyCodec(Codec):
    """Any JSON value, as it is."""

    plain = True

    def write(self, value: Any, depth: int) -> Any:
        """Check *value* and return it."""
        check(value, depth)
        return value

    def read(self, value: Any, depth: int) -> Any:
        """Return *value*."""
        return value


class ExactCodec(Codec):
    """None or bool."""

    plain = True

    def __init__(self, annotation: type, shape: str) -> None:
        super().__init__(annotation)
        self.shapes = frozenset({shape})

    def write(self, value: Any, depth: int) -> Any:
        """Return *value* if it is of exactly this type."""
        return value if type(value) is self.annotation else self.mismatch(value)

    read = write


class StrCodec(Codec):
    """A str; its subclasses are stored, and read back, as str."""

    shapes = frozenset({"string"})
    plain = True

    def write(self, value: Any, depth: int) -> Any:
        """Return the text if PostgreSQL can hold it."""
        if not isinstance(value, str):
            self.mismatch(value)
        if not value.isascii() or "\0" in value:
            check_text(value)
        return value if type(value) is str else str.__str__(value)

    def read(self, value: Any, depth: int) -> Any:
        """Return the text."""
        return value if type(value) is str else self.mismatch(value)


class IntCodec(Codec):
    """An int of any usual size, but no bool."""

    shapes = frozenset({"integer"})
    plain = True

    def write(self, value: Any, depth: int) -> Any:
        """Return the number."""
        if not isinstance(value, int) or type(value) is bool:
            self.mismatch(value)
        check_int(value)
        return value if type(value) is int else int(value)

    def read(self, value: Any, depth: int) -> Any:
        """Return the number."""
        return value if type(value) is int else self.mismatch(value)


class FloatCodec(Codec):
    """
    A finite float, or an int that is one exactly.

    JSONB gives 1e16 back as an integer, so integers are read as floats too; a union
    asks this codec last.
    """

    shapes = frozenset({"number"})

    def write(self, value: Any, depth: int) -> Any:
        """Return the number as a float."""
        if type(value) is int:
            return self._from_int(value, exact=True)
        if not isinstance(value, float):
            self.mismatch(value)
        check_float(value)
        return float(value)

    def read(self, value: Any, depth: int) -> Any:
        """Return the number as a float."""
        if type(value) is int:
            return self._from_int(value, exact=False)
        return value if type(value) is float else self.mismatch(value)

    def _from_int(self, value: int, *, exact: bool) -> float:
        try:
            number = float(value)
        except OverflowError:
            number = float("inf")
        if number == float("inf") or (exact and number != value):
            raise Invalid(f"{short(value)} is no exact float; declare int or Decimal")
        return number


class TextCodec(Codec):
    """A type that is stored as its own exact text."""

    shapes = frozenset({"string"})

    def __init__(
        self,
        annotation: type,
        *,
        to_text: Callable[[Any], str],
        from_text: Callable[[str], Any],
        problem: Callable[[Any], str | None] = lambda _: None,
    ) -> None:
        super().__init__(annotation)
        self._to_text, self._from_text, self._problem = to_text, from_text, problem

    def write(self, value: Any, depth: int) -> Any:
        """Return the text of *value*."""
        if not isinstance(value, self.annotation):
            self.mismatch(value)
        self._check(value)
        return self._to_text(value)

    def read(self, value: Any, depth: int) -> Any:
        """Return the value of the text."""
        if type(value) is not str:
            self.mismatch(value)
        try:
            decoded = self._from_text(value)
        except (ValueError, ArithmeticError) as error:
            name = type_name(self.annotation)
            raise Invalid(f"{short(value)} is not the text of a {name}") from error
        self._check(decoded)
        return decoded

    def _check(self, value: Any) -> None:
        if problem := self._problem(value):
            raise Invalid(f"{short(value)} {problem}")


class EnumCodec(Codec):
    """An enum, stored as the member's value, str or int."""

    def __init__(self, annotation: type[Enum]) -> None:
        super().__init__(annotation)
        self._kinds = {type(member.value) for member in annotation}
        if not self._kinds or not self._kinds <= {str, int}:
            raise JobDefinitionError(
                f"{type_name(annotation)} cannot be stored as JSON: the values of its"
                " members must be str or int"
            )
        text = {"string"} if str in self._kinds else set[str]()
        # "number", since an integral float looks the same once stored.
        integer = {"integer", "number"} if int in self._kinds else set[str]()
        self.shapes = frozenset(text | integer)

    def write(self, value: Any, depth: int) -> Any:
        """Return the member's value."""
        if not isinstance(value, self.annotation):
            self.mismatch(value)
        check(value.value, depth)
        return value.value

    def read(self, value: Any, depth: int) -> Any:
        """Return the member with the value; the enum's ``_missing_`` is asked too."""
        if type(value) not in self._kinds:
            self.mismatch(value)
        try:
            return self.annotation(value)
        except Exception as error:
            name = type_name(self.annotation)
            raise Invalid(f"{short(value)} is not the value of a {name}") from error


_LITERAL_SHAPES = {
    str: "string",
    int: "integer",
    bool: "boolean",
    type(None): "null",
}


class LiteralCodec(Codec):
    """One of the stated values; enum members are stored as their values."""

    def __init__(self, annotation: Any, values: tuple[Any, ...]) -> None:
        super().__init__(annotation)
        self._stored = {(type(value), value): _literal_json(value) for value in values}
        self._values = {
            (type(stored), stored): value for (_, value), stored in self._stored.items()
        }
        self.plain = not any(isinstance(value, Enum) for value in values)
        kinds = {kind for kind, _ in self._values}
        if not kinds <= _LITERAL_SHAPES.keys() or len(self._values) < len(self._stored):
            raise JobDefinitionError(
                f"{type_name(annotation)} cannot be stored as JSON: its values must be"
                " different ones of str, int, bool and None"
            )
        self.shapes = frozenset(_LITERAL_SHAPES[kind] for kind in kinds)

    def write(self, value: Any, depth: int) -> Any:
        """Return the JSON value of one of the values."""
        try:
            found = self._stored[type(value), value]
        except (KeyError, TypeError):
            self.mismatch(value)
        check(found, depth)
        return found

    def read(self, value: Any, depth: int) -> Any:
        """Return the value with that JSON value."""
        try:
            return self._values[type(value), value]
        except (KeyError, TypeError):
            self.mismatch(value)


def type_name(annotation: Any) -> str:
    """Return the annotation as a user writes it."""
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        return "None" if annotation is type(None) else annotation.__name__
    return re.sub(
        r"\b(typing|typing_extensions|collections\.abc)\.", "", repr(annotation)
    )


def _literal_json(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _datetime_problem(value: datetime) -> str | None:
    if (offset := value.utcoffset()) is None:
        return "is naive; give it a time zone, e.g. tzinfo=timezone.utc"
    # datetime.fromisoformat reads +00:00:00.000001 as UTC.
    if offset.microseconds:
        return "has microseconds in its offset; use .astimezone(timezone.utc)"
    return None


def _date_problem(value: date) -> str | None:
    return "is a datetime; use .date()" if isinstance(value, datetime) else None


def _time_problem(value: time) -> str | None:
    if value.tzinfo is None:
        return None
    if (offset := value.utcoffset()) is None or offset.microseconds:
        return "has no fixed offset in seconds; use timezone(timedelta(hours=...))"
    return None


def _decimal_problem(value: Decimal) -> str | None:
    return None if value.is_finite() else "is not finite; use None or a str"


def _duration_text(value: timedelta) -> str:
    fraction = f".{value.microseconds:06}" if value.microseconds else ""
    return f"P{value.days}DT{value.seconds}{fraction}S"


_DURATION = re.compile(
    r"P(?:(?P<days>[-+]?\d+)D)?"
    r"(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?"
    r"(?:(?P<seconds>\d+)(?:\.(?P<microseconds>\d{1,6}))?S)?)?",
    re.ASCII,
)


def _duration(text: str) -> timedelta:
    found = _DURATION.fullmatch(text)
    if found is None or not any(found.groups()):
        raise ValueError("no ISO 8601 duration, such as P1DT30.5S")
    parts = found.groupdict(default="0")
    parts["microseconds"] = parts["microseconds"].ljust(6, "0")
    return timedelta(**{unit: int(number) for unit, number in parts.items()})


SIMPLE: dict[type, Codec] = {
    type(None): ExactCodec(type(None), "null"),
    bool: ExactCodec(bool, "boolean"),
    str: StrCodec(str),
    int: IntCodec(int),
    float: FloatCodec(float),
    datetime: TextCodec(
        datetime,
        to_text=datetime.isoformat,
        from_text=datetime.fromisoformat,
        problem=_datetime_problem,
    ),
    date: TextCodec(
        date,
        to_text=date.isoformat,
        from_text=date.fromisoformat,
        problem=_date_problem,
    ),
    time: TextCodec(
        time,
        to_text=time.isoformat,
        from_text=time.fromisoformat,
        problem=_time_problem,
    ),
    timedelta: TextCodec(timedelta, to_text=_duration_text, from_text=_duration),
    UUID: TextCodec(UUID, to_text=str, from_text=UUID),
    Decimal: TextCodec(
        Decimal, to_text=str, from_text=Decimal, problem=_decimal_problem
    ),
}
"""The codecs of types that have no parts."""

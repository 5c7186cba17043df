"""The codecs of types with parts: lists, dicts, records and unions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from sqla_jobs._core.codecs import (
    Codec,
    FloatCodec,
    IntCodec,
    LiteralCodec,
    type_name,
)
from sqla_jobs._core.json_values import Invalid, Mismatch, check_depth, short
from sqla_jobs._core.text import error_text

Convert = Callable[[Any, int], Any]


class ListCodec(Codec):
    """A list of one type."""

    shapes = frozenset({"array"})

    def __init__(self, annotation: Any, item: Codec) -> None:
        super().__init__(annotation)
        self._item, self.plain = item, item.plain

    def write(self, value: Any, depth: int) -> Any:
        """Return the list of encoded items."""
        if not isinstance(value, list):
            self.mismatch(value)
        return map_items(self._item.write, value, depth)

    def read(self, value: Any, depth: int) -> Any:
        """Return the list of decoded items."""
        if type(value) is not list:
            self.mismatch(value)
        return map_items(self._item.read, value, depth)


class TupleCodec(Codec):
    """A tuple: any number of one type, or a fixed list of types."""

    shapes = frozenset({"array"})

    def __init__(self, annotation: Any, items: list[Codec], *, repeat: bool) -> None:
        super().__init__(annotation)
        self._items, self._repeat = items, repeat

    def write(self, value: Any, depth: int) -> Any:
        """Return the list of encoded items."""
        if type(value) is not tuple:
            self.mismatch(value)
        if self._repeat:
            return map_items(self._items[0].write, value, depth)
        return self._each("write", value, depth)

    def read(self, value: Any, depth: int) -> Any:
        """Return the tuple of decoded items."""
        if type(value) is not list:
            self.mismatch(value)
        if self._repeat:
            return tuple(map_items(self._items[0].read, value, depth))
        return tuple(self._each("read", value, depth))

    def _each(self, verb: str, value: Any, depth: int) -> list[Any]:
        if len(value) != len(self._items):
            raise Mismatch(
                f"expected {len(self._items)} items for {type_name(self.annotation)},"
                f" got {len(value)}: {short(value)}"
            )
        converts = iter([getattr(codec, verb) for codec in self._items])

        def convert(item: Any, inner: int) -> Any:
            return next(converts)(item, inner)

        return map_items(convert, value, depth)


class DictCodec(Codec):
    """A dict with keys that are stored as text."""

    shapes = frozenset({"object"})

    def __init__(self, annotation: Any, key: Codec, item: Codec) -> None:
        super().__init__(annotation)
        self._key, self._item = key, item
        self.plain = key.plain and item.plain

    def write(self, value: Any, depth: int) -> Any:
        """Return the dict of encoded keys and items."""
        if not isinstance(value, dict):
            self.mismatch(value)
        return self._each("write", value, depth)

    def read(self, value: Any, depth: int) -> Any:
        """Return the dict of decoded keys and items."""
        if type(value) is not dict:
            self.mismatch(value)
        return self._each("read", value, depth)

    def _each(self, verb: str, value: dict[Any, Any], depth: int) -> dict[Any, Any]:
        check_depth(depth)
        on_key, on_item = getattr(self._key, verb), getattr(self._item, verb)
        converted: dict[Any, Any] = {}
        for key, item in value.items():
            new_key = _convert_key(on_key, key, depth)
            try:
                converted[new_key] = on_item(item, depth + 1)
            except Invalid as bad:
                bad.steps.append(key if isinstance(key, str) else str(new_key))
                raise
        return converted


class RecordCodec(Codec):
    """
    A dataclass or a TypedDict.

    Missing keys take the default and unknown keys are ignored when decoding, so that
    rows of an older and a newer release are read.
    """

    shapes = frozenset({"object"})

    def __init__(self, annotation: Any) -> None:
        super().__init__(annotation)
        # Filled later: a field may be of the record's own type.
        self.fields: dict[str, Codec] = {}
        self.required: frozenset[str] = frozenset()

    def write(self, value: Any, depth: int) -> Any:
        """Return the object of encoded fields."""
        values = self.values_of(value)
        check_depth(depth)
        return self._each("write", values, depth)

    def read(self, value: Any, depth: int) -> Any:
        """Return the record made of the decoded fields."""
        if type(value) is not dict:
            self.mismatch(value)
        check_depth(depth)
        return self.make(self._each("read", value, depth))

    def values_of(self, value: Any) -> Mapping[str, Any]:
        """Return the values to encode by field name."""
        raise NotImplementedError

    def make(self, values: dict[str, Any]) -> Any:
        """Return the record with these values."""
        raise NotImplementedError

    def _each(self, verb: str, values: Mapping[str, Any], depth: int) -> dict[str, Any]:
        converted: dict[str, Any] = {}
        name = ""
        try:
            for name, codec in self.fields.items():
                if name in values:
                    converted[name] = getattr(codec, verb)(values[name], depth + 1)
                elif name in self.required:
                    self._refuse_missing(name)
        except Invalid as bad:
            bad.steps.append(name)
            raise
        return converted

    def _refuse_missing(self, name: str) -> NoReturn:
        field = f"{type_name(self.annotation)}.{name}"
        raise Invalid(f"missing, and {field} has no default")


class DataclassCodec(RecordCodec):
    """A dataclass; stores the fields of its ``__init__``."""

    def values_of(self, value: Any) -> Mapping[str, Any]:
        """Return the values of all fields; a subclass would lose its own."""
        if type(value) is not self.annotation:
            self.mismatch(value)
        return {name: getattr(value, name) for name in self.fields}

    def make(self, values: dict[str, Any]) -> Any:
        """Call the class; what it refuses does not decode."""
        try:
            return self.annotation(**values)
        except Exception as error:
            name = type_name(self.annotation)
            raise Invalid(
                f"{name} refuses {short(values)}: {error_text(error)}"
            ) from error


class TypedDictCodec(RecordCodec):
    """A TypedDict; keys it does not declare are refused when encoding."""

    def values_of(self, value: Any) -> Mapping[str, Any]:
        """Return the dict itself."""
        if not isinstance(value, dict):
            self.mismatch(value)
        for key in value:
            if key not in self.fields:
                name = type_name(self.annotation)
                raise Invalid(f"{name} has no key {short(key)}; declare or remove it")
        return value

    def make(self, values: dict[str, Any]) -> Any:
        """Return the values."""
        return values


class UnionCodec(Codec):
    """A value of any of its members; None needs no codec."""

    def __init__(
        self, annotation: Any, members: list[Codec], *, nullable: bool
    ) -> None:
        super().__init__(annotation)
        self._members = sorted(members, key=_rank)
        self._nullable = nullable
        null = {"null"} if nullable else set[str]()
        self.shapes = frozenset(null.union(*(member.shapes for member in members)))
        self.plain = all(member.plain for member in members)

    def write(self, value: Any, depth: int) -> Any:
        """Return what the first member that accepts *value* stores."""
        stored = self._first("write", value, depth)
        if stored is None and value is not None and self._nullable:
            raise Invalid(f"{short(value)} would be stored as None is, as null")
        return stored

    def read(self, value: Any, depth: int) -> Any:
        """Return what the first member that accepts *value* decodes."""
        return self._first("read", value, depth)

    def _first(self, verb: str, value: Any, depth: int) -> Any:
        if value is None and self._nullable:
            return None
        closest: Invalid | None = None
        for member in self._members:
            try:
                return getattr(member, verb)(value, depth)
            except Invalid as bad:
                # A member that knew the type has the better explanation.
                if bad.steps or not isinstance(bad, Mismatch):
                    closest = closest or bad
        if closest is not None:
            raise closest
        return self.mismatch(value)


class LazyCodec(Codec):
    """Stands for a type alias inside its own definition."""

    target: Codec

    def write(self, value: Any, depth: int) -> Any:
        """Encode by the alias's codec."""
        return self.target.write(value, depth)

    def read(self, value: Any, depth: int) -> Any:
        """Decode by the alias's codec."""
        return self.target.read(value, depth)


def map_items(convert: Convert, items: Any, depth: int) -> list[Any]:
    """Return each item converted; an `Invalid` gets the item's index."""
    check_depth(depth)
    converted: list[Any] = []
    try:
        for item in items:
            converted.append(convert(item, depth + 1))  # noqa: PERF401  # its length
    except Invalid as bad:
        bad.steps.append(len(converted))
        raise
    return converted


def _convert_key(convert: Convert, key: Any, depth: int) -> Any:
    try:
        return convert(key, depth + 1)
    except Invalid as bad:
        raise Invalid(f"key: {bad.problem}") from bad.__cause__


def _rank(codec: Codec) -> int:
    """Order a union: the narrower of two codecs that share JSON numbers is first."""
    order: tuple[type[Codec], ...] = (LiteralCodec, IntCodec, FloatCodec)
    return order.index(type(codec)) if type(codec) in order else len(order)

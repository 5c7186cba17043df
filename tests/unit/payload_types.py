"""Types with values of them, for the payload tests."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag, StrEnum
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Required,
    Union,
)
from uuid import UUID

from hypothesis import strategies as st
from typing_extensions import ReadOnly, TypeAliasType, TypedDict

if TYPE_CHECKING:
    from fractions import Fraction


class Color(StrEnum):
    """An enum of str."""

    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    """An enum of int."""

    SMALL = 1
    LARGE = 10**20


class Mixed(Enum):
    """An enum of str and int."""

    ONE = 1
    TWO = "two"


class Access(IntFlag):
    """Flags, of which several may be set."""

    READ = 1
    WRITE = 2


class Lenient(Enum):
    """An enum that knows what to make of values of a later release."""

    UNKNOWN = "?"

    @classmethod
    def _missing_(cls, value: object) -> Lenient:
        return cls.UNKNOWN


class Spoilt(StrEnum):
    """An enum with a value that JSON cannot hold."""

    NUL = "\x00"


class Ratio(Enum):
    """An enum of float, which JSONB does not give back as it was."""

    HALF = 0.5


@dataclass(frozen=True, slots=True)
class Line:
    """A nested, frozen record."""

    price: Decimal
    color: Color = Color.RED
    notes: tuple[str, ...] = ()
    made: datetime | None = None


@dataclass
class Tree:
    """A record of its own type."""

    name: str
    children: list[Tree] = field(default_factory=list)
    size: int = field(init=False, default=0)


@dataclass
class Palm(Tree):
    """A subclass, which would be read back as its parent."""


@dataclass(kw_only=True)
class Positive:
    """A record that refuses some values."""

    number: int

    def __post_init__(self) -> None:
        """Refuse what is not above zero."""
        if self.number <= 0:
            raise ValueError("must be above zero")


@dataclass
class WithBytes:
    """A record with a field that JSON cannot hold."""

    line: Line
    data: bytes


@dataclass
class WithInitVar:
    """A record whose constructor needs what is not kept."""

    scale: InitVar[int]


@dataclass
class Unresolved:
    """A record with a name that exists for type checkers only."""

    fraction: Fraction


class Address(TypedDict):
    """Required and optional keys, with and without qualifiers."""

    city: str
    since: NotRequired[Annotated[date, "first day"]]
    code: ReadOnly[int]
    zip: ReadOnly[NotRequired[int]]


class Sparse(TypedDict, total=False):
    """Optional keys, but for one."""

    name: Required[str]
    age: int


class Point(NamedTuple):
    """A named tuple, which is no record here."""

    x: int


UserId = NewType("UserId", int)
Name = TypeAliasType("Name", Optional[str])  # noqa: UP045
Json = TypeAliasType(
    "Json", bool | int | float | str | list[Any] | dict[str, Any] | None
)

safe_text = st.text(
    st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20
)
floats = st.floats(allow_nan=False, allow_infinity=False)
integers = st.integers() | st.integers(-(10**4000), 10**4000)
fixed_zones = st.builds(
    lambda seconds: timezone(timedelta(seconds=seconds)), st.integers(-86_399, 86_399)
)
zones = st.timezones() | fixed_zones
datetimes = st.datetimes(timezones=fixed_zones)
decimals = st.decimals(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e15, 1e15) | safe_text,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(safe_text, inner, max_size=3)
    ),
    max_leaves=10,
)
lines = st.builds(
    Line,
    decimals,
    st.sampled_from(Color),
    st.lists(safe_text, max_size=3).map(tuple),
    st.none() | datetimes,
)
trees: st.SearchStrategy[Tree] = st.recursive(
    st.builds(Tree, safe_text),
    lambda inner: st.builds(Tree, safe_text, st.lists(inner, max_size=3)),
    max_leaves=8,
)

Typed = tuple[Any, st.SearchStrategy[Any]]

SCALARS: list[Typed] = [
    (str, safe_text),
    (int, integers),
    (float, floats),
    (bool, st.booleans()),
    (None, st.none()),
    (Any, json_values),
    (object, json_values),
    (Literal["a", 1, True] | None, st.sampled_from(["a", 1, True, None])),
    (Literal[Color.RED, Size.LARGE], st.sampled_from([Color.RED, Size.LARGE])),
    (Color, st.sampled_from(Color)),
    (Size, st.sampled_from(Size)),
    (Mixed, st.sampled_from(Mixed)),
    (Access, st.sampled_from([Access(0), Access.READ, Access(3)])),
    (datetime, datetimes),
    (date, st.dates()),
    (time, st.times() | st.times(timezones=fixed_zones)),
    (timedelta, st.timedeltas()),
    (UUID, st.uuids()),
    (Decimal, decimals),
    (UserId, integers),
    (Annotated[str, "any", []], safe_text),
    (Line, lines),
    (Tree, trees),
    (
        Address,
        st.fixed_dictionaries(
            {"city": safe_text, "code": integers}, optional={"since": st.dates()}
        ),
    ),
    (Sparse, st.fixed_dictionaries({"name": safe_text}, optional={"age": integers})),
]
UNIONS: list[Typed] = [
    (datetime | None, st.none() | datetimes),
    (Optional[Color], st.none() | st.sampled_from(Color)),  # noqa: UP045
    (Union[int, str, None], st.none() | integers | safe_text),  # noqa: UP007
    (float | int, st.floats(-1e15, 1e15) | integers),
    (float | Literal[1] | bool, st.floats(-1e15, 1e15) | st.just(1) | st.booleans()),
    (Literal["auto", "off"] | str, safe_text | st.just("auto")),  # noqa: PYI051
    (list[int] | list[str | None], st.lists(integers) | st.lists(safe_text)),
    (
        dict[str, int] | dict[str, str],
        st.dictionaries(safe_text, integers) | st.dictionaries(safe_text, safe_text),
    ),
    (date | int | list[Line] | Tree, st.dates() | integers | st.lists(lines) | trees),
    (Any | int, json_values),
    (Name, st.none() | safe_text),
    (Json, json_values),
]


def _containers(inner: Typed) -> st.SearchStrategy[Typed]:
    tp, values = inner
    some = st.lists(values, max_size=3)
    by_text = st.dictionaries(safe_text, values, max_size=3)
    by_color = st.dictionaries(st.sampled_from(Color), values, max_size=2)
    return st.sampled_from(
        [
            (list[tp], some),  # type: ignore[valid-type]
            (tuple[tp, ...], some.map(tuple)),  # type: ignore[valid-type]
            (tuple[tp, int], st.tuples(values, integers)),  # type: ignore[valid-type]
            (dict[str, tp], by_text),  # type: ignore[valid-type]
            (dict[Color, tp], by_color),  # type: ignore[valid-type]
        ]
    )


typed = st.recursive(
    st.sampled_from(SCALARS + UNIONS),
    lambda inner: inner.flatmap(_containers),
    max_leaves=3,
)


@st.composite
def typed_values(draw: st.DrawFn) -> tuple[Any, Any]:
    """Draw an annotation and a value of it."""
    tp, values = draw(typed)
    return tp, draw(values)


def through_jsonb(value: Any) -> Any:
    """Return the JSON value as JSONB gives it back: numbers as plain decimals."""
    if type(value) is float:
        text = format(Decimal(repr(value)), "f")
        return float(text) if "." in text else int(text)
    if type(value) is list:
        return [through_jsonb(item) for item in value]
    if type(value) is dict:
        return {key: through_jsonb(item) for key, item in sorted(value.items())}
    return value


def with_types(value: Any) -> Any:
    """Return the value with the type of everything in it, so that 1 is not 1.0."""
    match value:
        case list() | tuple():
            return type(value), [with_types(item) for item in value]
        case dict():
            return {key: with_types(item) for key, item in value.items()}
        case _:
            return type(value), value

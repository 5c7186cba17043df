"""Typed values survive JSON exactly; what PostgreSQL cannot hold is refused."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
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
    TypeVar,
    Union,
)
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typing_extensions import ReadOnly, TypeAliasType, TypedDict

from sqla_jobs._core.payloads import (
    Codec,
    check_json,
    check_size,
    codec_for,
    dump,
    payload_size,
)
from sqla_jobs.errors import JobDefinitionError, PayloadError

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


def _through_jsonb(value: Any) -> Any:
    """Return the JSON value as JSONB gives it back: numbers as plain decimals."""
    if type(value) is float:
        text = format(Decimal(repr(value)), "f")
        return float(text) if "." in text else int(text)
    if type(value) is list:
        return [_through_jsonb(item) for item in value]
    if type(value) is dict:
        return {key: _through_jsonb(item) for key, item in sorted(value.items())}
    return value


def _types(value: Any) -> Any:
    """Return the value with the type of everything in it, so that 1 is not 1.0."""
    match value:
        case list() | tuple():
            return type(value), [_types(item) for item in value]
        case dict():
            return {key: _types(item) for key, item in value.items()}
        case _:
            return type(value), value


@given(typed_values())
@example((float, 1e23))
@example((float, 5e-324))
@example((float, 1.7976931348623157e308))
@example((tuple[()], ()))
@example((list, [1, "a"]))
@example((dict, {"a": [None]}))
@example((tuple, (1, "a")))
@example((typing.List[int], [1]))  # noqa: UP006
@example((typing.Dict[str, int], {"a": 1}))  # noqa: UP006
@example((typing.Tuple[int, str], (1, "a")))  # noqa: UP006
def test_value_survives_jsonb_exactly(case: tuple[Any, Any]) -> None:
    """What is decoded equals what was encoded, and is of the same types."""
    tp, value = case
    codec = codec_for(tp)
    encoded = codec.encode(value)
    check_json(encoded)

    decoded = codec.decode(_through_jsonb(json.loads(dump(encoded))))

    assert decoded == value
    assert _types(decoded) == _types(value)


@pytest.mark.parametrize("tp", [tp for tp, _ in SCALARS + UNIONS], ids=str)
def test_supported_annotation_has_a_codec(tp: Any) -> None:
    """Every type of the table above is accepted, also those rarely drawn."""
    assert codec_for(tp).annotation is not None


@given(json_values)
def test_dump_is_compact_text_that_reads_back(value: Any) -> None:
    """The text holds no NUL, encodes as UTF-8 and means the same value."""
    text = dump(value)

    assert json.loads(text) == value
    assert "\x00" not in text
    assert payload_size(text) == len(text.encode())


def test_dump_writes_no_spaces_and_real_characters() -> None:
    """The stored text is as short as JSON allows."""
    assert dump({"a": [1, "é"], "b": None}) == '{"a":[1,"é"],"b":null}'


@given(st.datetimes(timezones=zones))
def test_zoned_datetime_keeps_its_instant(value: datetime) -> None:
    """A named zone becomes a fixed offset: same instant, same wall clock."""
    codec = codec_for(datetime)

    decoded = codec.decode(codec.encode(value))

    assert decoded.astimezone(UTC) == value.astimezone(UTC)
    assert decoded.replace(tzinfo=None) == value.replace(tzinfo=None, fold=0)
    assert decoded.utcoffset() == value.utcoffset()


@given(st.text(st.characters() | st.sampled_from(["\x00", "\udc80", "\ud83d"])))
def test_text_is_accepted_exactly_when_storable(text: str) -> None:
    """NUL and lone surrogates, and nothing else, are refused: as value and as key."""
    storable = "\x00" not in text and not any(0xD800 <= ord(c) < 0xE000 for c in text)

    for attempt in (
        lambda: check_json([text]),
        lambda: check_json({text: 1}),
        lambda: codec_for(str).encode(text),
        lambda: codec_for(dict[str, int]).encode({text: 1}),
    ):
        if storable:
            attempt()
        else:
            with pytest.raises(PayloadError, match=r"NUL character|lone surrogate"):
                attempt()


@pytest.mark.parametrize(
    ("tp", "value", "stored"),
    [
        (
            datetime,
            datetime(2030, 1, 2, 3, 4, 5, 6, UTC),
            "2030-01-02T03:04:05.000006+00:00",
        ),
        (
            datetime,
            datetime(2030, 7, 1, tzinfo=ZoneInfo("Europe/Berlin")),
            "2030-07-01T00:00:00+02:00",
        ),
        (date, date(2030, 1, 2), "2030-01-02"),
        (time, time(1, 2, 3), "01:02:03"),
        (timedelta, timedelta(days=1, seconds=30, microseconds=5), "P1DT30.000005S"),
        (timedelta, timedelta(seconds=-1), "P-1DT86399S"),
        (UUID, UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal, Decimal("1.10"), "1.10"),
        (Color, Color.RED, "red"),
        (Access, Access(3), 3),
        (float, 2, 2.0),
        (str, Color.RED, "red"),
        (int, Size.SMALL, 1),
        (tuple[int, str], (1, "a"), [1, "a"]),
        (dict[Color, int], {Color.RED: 1}, {"red": 1}),
        (
            dict[UUID, int],
            {UUID(int=1): 1},
            {"00000000-0000-0000-0000-000000000001": 1},
        ),
        (
            Line,
            Line(Decimal(2)),
            {"price": "2", "color": "red", "notes": [], "made": None},
        ),
        (
            Tree,
            Tree("a", [Tree("b")]),
            {"name": "a", "children": [{"name": "b", "children": []}]},
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_stored_form_is_stable(tp: Any, value: Any, stored: Any) -> None:
    """Rows of earlier releases hold these JSON values, of these exact types."""
    assert _types(codec_for(tp).encode(value)) == _types(stored)


@pytest.mark.parametrize(
    ("tp", "stored", "value"),
    [
        (Line, {"price": "1", "later": 5}, Line(Decimal(1))),
        (Address, {"city": "x", "code": 1, "later": 5}, {"city": "x", "code": 1}),
        (Sparse, {"name": "x"}, {"name": "x"}),
        (Lenient, "of a later release", Lenient.UNKNOWN),
        (timedelta, "PT5M", timedelta(minutes=5)),
        (
            timedelta,
            "P-1DT2H3M4.5S",
            timedelta(days=-1, hours=2, minutes=3, seconds=4.5),
        ),
        (datetime, "2030-01-01T00:00:00Z", datetime(2030, 1, 1, tzinfo=UTC)),
        (float, 3, 3.0),
    ],
    ids=[
        "dataclass",
        "typeddict",
        "optional",
        "missing",
        "iso",
        "iso2",
        "utc",
        "float",
    ],
)
def test_rows_of_other_releases_decode(tp: Any, stored: Any, value: Any) -> None:
    """Unknown keys are ignored, missing ones take the default, ISO forms are read."""
    assert _types(codec_for(tp).decode(stored)) == _types(value)


ODD_ZONE = timezone(timedelta(microseconds=1))
NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001


@pytest.mark.parametrize(
    ("tp", "value", "message"),
    [
        (str, 3, "x: expected str, got 3 (int)"),
        (
            str,
            None,
            "x: expected str, got None (NoneType); to allow None, declare str | None",
        ),
        (int, True, "x: expected int, got True (bool)"),
        (int, 1.0, "x: expected int, got 1.0 (float)"),
        pytest.param(
            int, 10**4300, "x: an int of more than 4300 digits; store it", id="huge"
        ),
        (bool, 1, "x: expected bool, got 1 (int)"),
        (float, True, "x: expected float, got True (bool)"),
        (float, float("nan"), "x: nan is not finite, and JSON has no NaN or Infinity"),
        (float, float("-inf"), "x: -inf is not finite"),
        (float, 2**53 + 1, "is no exact float; declare int or Decimal"),
        (float, 10**400, "is no exact float"),
        (None, 0, "x: expected None, got 0 (int)"),
        (datetime, NAIVE, "is naive; give it a time zone, e.g. tzinfo=timezone.utc"),
        (datetime, date(2030, 1, 1), "x: expected datetime"),
        (datetime, NAIVE.replace(tzinfo=ODD_ZONE), "has microseconds in its offset"),
        (time, time(1, tzinfo=ODD_ZONE), "has no fixed offset in seconds"),
        pytest.param(str, 10**4300, "x: expected str, got <int> (int)", id="digits"),
        (Spoilt, Spoilt.NUL, "x: '\\x00' holds a NUL character"),
        (Literal["\x00"], "\x00", "x: '\\x00' holds a NUL character"),
        (Tree, Palm("a"), "x: expected Tree, got Palm("),
        (date, NAIVE, "is a datetime; use .date()"),
        (
            time,
            time(1, tzinfo=ZoneInfo("Europe/Berlin")),
            "has no fixed offset in seconds",
        ),
        (Decimal, Decimal("NaN"), "x: Decimal('NaN') is not finite; use None"),
        (Decimal, 1.5, "x: expected Decimal, got 1.5 (float)"),
        (UUID, "0" * 32, "x: expected UUID"),
        (Color, "red", "x: expected Color, got 'red' (str)"),
        (Literal["a", 1], True, "x: expected Literal['a', 1], got True (bool)"),
        (Literal["a"], ["a"], "x: expected Literal['a'], got ['a'] (list)"),
        (list[int], (1,), "x: expected list[int], got (1,) (tuple)"),
        (list[int], [1, "b"], "x[1]: expected int, got 'b' (str)"),
        (tuple[int, str], (1,), "x: expected 2 items for tuple[int, str], got 1: (1,)"),
        (tuple[int, str], (1, 2), "x[1]: expected str, got 2 (int)"),
        (tuple[int, ...], [1], "x: expected tuple[int, ...], got [1] (list)"),
        (dict[str, int], {1: 1}, "x: key: expected str, got 1 (int)"),
        (dict[str, int], {"a": "b"}, "x.a: expected int, got 'b' (str)"),
        (dict[str, int], {"a b": "b"}, "x['a b']: expected int"),
        (dict[str, int], [], "x: expected dict[str, int], got [] (list)"),
        (int | str, 1.5, "x: expected int | str, got 1.5 (float)"),
        (datetime | None, NAIVE, "is naive; give it a time zone"),
        (list[Line] | int, [1], "x[0]: expected Line, got 1 (int)"),
        (list[Line], [Line(Decimal(1)), Line("2")], "x[1].price: expected Decimal"),  # type: ignore[arg-type]
        (Line, {"price": "1"}, "x: expected Line, got {'price': '1'} (dict)"),
        (Address, {"city": "a"}, "x.code: missing, and Address.code has no default"),
        (Sparse, {"age": 1}, "x.name: missing"),
        (Sparse, {"nam": "a"}, "x: Sparse has no key 'nam'; declare or remove it"),
        (Sparse, 1, "x: expected Sparse, got 1 (int)"),
        (Any, {"a": [{1}]}, "x.a[0]: {1} is a set, which JSON cannot hold; use a"),
        (list[Any], [b"a"], "x[0]: b'a' is a bytes, which JSON cannot hold; put it"),
    ],
)
def test_encode_refuses_with_place_value_and_rule(
    tp: Any, value: Any, message: str
) -> None:
    """A value that is not of the annotation is refused where it is, with the fix."""
    with pytest.raises(PayloadError) as caught:
        codec_for(tp).encode(value, "x")

    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("tp", "stored", "message"),
    [
        (str, 3, "x: expected str, got 3 (int)"),
        (int, True, "x: expected int, got True (bool)"),
        (int, 1.0, "x: expected int, got 1.0 (float)"),
        (float, "1", "x: expected float, got '1' (str)"),
        (float, 10**400, "is no exact float"),
        (bool, 0, "x: expected bool, got 0 (int)"),
        (datetime, "soon", "x: 'soon' is not the text of a datetime"),
        (datetime, "2030-01-01", "is naive"),
        (datetime, 5, "x: expected datetime, got 5 (int)"),
        (timedelta, "P", "x: 'P' is not the text of a timedelta"),
        (timedelta, "P9999999999D", "is not the text of a timedelta"),
        (UUID, "x", "x: 'x' is not the text of a UUID"),
        (Decimal, "x", "x: 'x' is not the text of a Decimal"),
        (Decimal, "Infinity", "is not finite"),
        (Color, "green", "x: 'green' is not the value of a Color"),
        (Size, True, "x: expected Size, got True (bool)"),
        (Literal["a", 1], True, "x: expected Literal['a', 1], got True (bool)"),
        (Literal["a"], {}, "x: expected Literal['a'], got {} (dict)"),
        (list[int], [1, None], "x[1]: expected int, got None"),
        (list[int], {}, "x: expected list[int], got {} (dict)"),
        (tuple[int, str], [1], "x: expected 2 items for tuple[int, str], got 1: [1]"),
        (tuple[int, ...], {}, "x: expected tuple[int, ...], got {} (dict)"),
        (dict[Color, int], {"green": 1}, "x: key: 'green' is not the value of a Color"),
        (dict[UUID, int], {str(UUID(int=1)): "a"}, "x['00000000-"),
        (list[Line], [{}], "x[0].price: missing, and Line.price has no default"),
        (Line, [], "x: expected Line, got [] (list)"),
        (
            Positive,
            {"number": 0},
            "Positive refuses {'number': 0}: ValueError: must be",
        ),
        (datetime | None, "soon", "'soon' is not the text of a datetime"),
        (date | int, [], "x: expected datetime.date | int, got [] (list)"),
    ],
)
def test_decode_refuses_with_place_value_and_rule(
    tp: Any, stored: Any, message: str
) -> None:
    """A row that no longer fits its class says where and why."""
    with pytest.raises(PayloadError) as caught:
        codec_for(tp).decode(stored, "x")

    assert message in str(caught.value)


class _Odd:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": float("nan")}, "payload.a: nan is not finite"),
        ({"a": ["\x00"]}, r"payload.a[0]: '\x00' holds a NUL character"),
        ({"a": "\udc80b"}, r"payload.a: '\udc80b' holds the lone surrogate '\udc80'"),
        ({"a": {1, 2}}, "payload.a: {1, 2} is a set, which JSON cannot hold; use a so"),
        ({"a": [1, {2}]}, "payload.a[1]: {2} is a set"),
        ({"a": frozenset()}, "use a sorted list"),
        ({"a": b"x"}, "put it into payload_bytes, or base64 text into a str"),
        ({"a": NAIVE}, "or declare the argument as Arg[datetime]"),
        ({"a": _Odd()}, "is a _Odd, which JSON cannot hold"),
        ([10**4300], "payload[0]: an int of more than 4300 digits"),
        ({"a": {1: 2}}, "payload.a: the key 1 is not a str; use str keys"),
        ({"a": {"\x00": 2}}, r"payload.a: the key '\x00' holds a NUL character"),
        ({"a": Mixed.ONE}, "is a Mixed, which JSON cannot hold"),
        ("x" * 10**6 + "\x00", "payload: 'xxx"),
    ],
)
def test_check_refuses_what_jsonb_cannot_hold(value: Any, message: str) -> None:
    """The place, a short form of the value and the fix are in one short message."""
    with pytest.raises(PayloadError) as caught:
        dump(value)

    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((1, [2]), "[1,[2]]"),
        ({Color.RED: Color.BLUE}, '{"red":"blue"}'),
        ([Size.SMALL, True, None, 1.5], "[1,true,null,1.5]"),
    ],
    ids=["tuple", "enum of str", "scalars"],
)
def test_check_accepts_what_json_stores_as_its_own(value: Any, text: str) -> None:
    """Tuples and enums of JSON types are stored as the JSON type they are."""
    assert dump(value) == text


def _nest(depth: int, wrap: Callable[[Any], Any], leaf: Any) -> Any:
    for _ in range(depth):
        leaf = wrap(leaf)
    return leaf


@pytest.mark.parametrize(
    ("attempt", "wrap", "leaf", "deepest"),
    [
        (check_json, lambda inner: [inner], 1, 64),
        (check_json, lambda inner: {"a": inner}, 1, 64),
        (codec_for(Any).encode, lambda inner: (inner,), 1, 64),
        (codec_for(Tree).encode, lambda inner: Tree("a", [inner]), Tree("a"), 31),
        (
            codec_for(Tree).decode,
            lambda inner: {"name": "a", "children": [inner]},
            {"name": "a"},
            31,
        ),
    ],
    ids=["list", "dict", "any", "record", "decode"],
)
def test_depth_is_limited(
    *,
    attempt: Callable[[Any], Any],
    wrap: Callable[[Any], Any],
    leaf: Any,
    deepest: int,
) -> None:
    """The limit is an error of ours with a short path, never a RecursionError."""
    attempt(_nest(deepest, wrap, leaf))
    with pytest.raises(PayloadError, match="more than 64 lists or objects"):
        attempt(_nest(deepest + 1, wrap, leaf))

    with pytest.raises(PayloadError, match="more than 64 lists or objects") as caught:
        attempt(_nest(3_000, wrap, leaf))
    assert len(str(caught.value)) < 300


def test_value_that_contains_itself_is_refused() -> None:
    """A cycle ends at the depth limit."""
    cycle: list[Any] = []
    cycle.append(cycle)

    with pytest.raises(PayloadError, match="or one that contains itself"):
        check_json(cycle)


T = TypeVar("T")


def _local_record() -> type:
    @dataclass
    class Local:
        parent: Local | None = None

    return Local


def test_local_record_may_refer_to_itself() -> None:
    """A dataclass made in a function is found under its own name."""
    local = _local_record()
    value = local(local())

    assert codec_for(local).decode(codec_for(local).encode(value)) == value


@pytest.mark.parametrize(
    ("tp", "message"),
    [
        (bytes, "bytes cannot be stored as JSON; use the payload_bytes column"),
        (list[bytearray], "bytearray cannot be stored as JSON; use the payload_bytes"),
        (set[int], "set[int] cannot be stored as JSON; use list[...]"),
        (frozenset, "frozenset cannot be stored as JSON; use list[...]"),
        (Sequence[int], "Sequence[int] cannot be stored as JSON; use list[...]"),
        (complex, "complex cannot be stored as JSON; use a dataclass, a TypedDict"),
        (Codec, "Codec cannot be stored as JSON"),
        (Point, "Point cannot be stored as JSON"),
        (T, "~T cannot be stored as JSON"),
        (Callable[[], int], "cannot be stored as JSON"),
        ("int", "'int' cannot be stored as JSON; the name is not resolved"),
        (3, "3 cannot be stored as JSON"),
        (dict[int, str], "an object's keys are text; use str keys, an enum of str"),
        (dict[str | None, str], "an object's keys are text"),
        (Ratio, "Ratio cannot be stored as JSON: the values of its members must be"),
        (Literal[b"a"], "cannot be stored as JSON: its values must be different"),
        (Literal[Color.RED, "red"], "its values must be different ones of"),
        (WithBytes, "WithBytes.data: bytes cannot be stored as JSON"),
        (list[WithBytes | None], "WithBytes.data: bytes cannot be stored as JSON"),
        (WithInitVar, "WithInitVar.scale is an InitVar, which is not kept"),
        (Unresolved, "Unresolved: the annotation name 'Fraction' is not found"),
        (
            datetime | str,
            "is ambiguous: datetime and str can both be a JSON string; use a dataclass",
        ),
        (Color | str, "is ambiguous"),
        (Line | Tree, "is ambiguous: Line and Tree can both be a JSON object"),
        (list[datetime] | list[str], "is ambiguous"),
        (list[int] | list[float], "is ambiguous"),
        (float | Size, "float and Size can both be a JSON number"),
        (tuple[int, ...] | list[int], "is ambiguous"),
        (Any | datetime, "is ambiguous"),
    ],
    ids=str,
)
def test_annotation_that_cannot_be_stored_is_named(tp: Any, message: str) -> None:
    """A class with such an argument cannot be made; the error says which and why."""
    with pytest.raises(JobDefinitionError) as caught:
        codec_for(tp)

    assert message in str(caught.value)


def test_codec_is_cached_by_annotation() -> None:
    """Asking again is a look-up, except for what cannot be hashed."""
    assert codec_for(list[Line]) is codec_for(list[Line])
    assert codec_for(list[Line]).annotation == list[Line]
    assert codec_for(Literal[1]) is not codec_for(Literal[True])
    assert repr(codec_for(list[int])) == "<Codec list[int]>"


class _Alias:
    """What a ``type`` statement makes, for Pythons that lack it."""

    __type_params__ = ()
    __value__: Any


def test_alias_may_refer_to_itself() -> None:
    """A recursive alias is encoded and decoded at every level."""
    alias: Any = _Alias()
    alias.__value__ = Union[date, typing.List[alias], typing.Dict[str, alias]]  # noqa: UP006, UP007
    codec = codec_for(alias)
    day = date(2030, 1, 1)

    encoded = codec.encode([day, {"a": [day]}])

    assert encoded == ["2030-01-01", {"a": ["2030-01-01"]}]
    assert codec.decode(encoded) == [day, {"a": [day]}]


@pytest.mark.parametrize(
    ("text", "size"), [("", 0), ("abc", 3), ("é", 2), ("\U0001f600", 4)]
)
def test_payload_size_counts_bytes(text: str, size: int) -> None:
    """The size is that of the UTF-8 text."""
    assert payload_size(text) == size


def test_size_limit_names_both_sizes_and_the_setting() -> None:
    """The limit is inclusive and in bytes; default 1,000,000."""
    check_size("x" * 1_000_000)
    check_size("é" * 5, 10)
    with pytest.raises(
        PayloadError, match=r"^payload: 1,000,001 bytes .* limit of 1,000,000; .*"
    ):
        check_size("x" * 1_000_001)
    with pytest.raises(PayloadError, match=r"__payload_limit__ \(bytes\) on the job"):
        check_size("é" * 5, 9)

"""What cannot be stored or read is refused where it is, with the fix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from sqla_jobs._core.payloads import (
    Codec,
    check_json,
    check_size,
    codec_for,
    dump,
    payload_size,
)
from sqla_jobs.errors import JobDefinitionError, PayloadError
from tests.unit.payload_types import (
    Address,
    Color,
    Line,
    Mixed,
    Palm,
    Point,
    Positive,
    Ratio,
    Size,
    Sparse,
    Spoilt,
    Tree,
    Unresolved,
    WithBytes,
    WithInitVar,
)

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
        ({"a": NAIVE}, "an argument may be declared Arg[datetime]"),
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

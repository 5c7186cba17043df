"""Typed values survive JSON, and PostgreSQL's JSONB, exactly."""

from __future__ import annotations

import json
import typing
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import (
    Any,
    Literal,
    Union,
)
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sqla_jobs._core.payloads import (
    check_json,
    codec_for,
    dump,
    payload_size,
)
from sqla_jobs.errors import PayloadError
from tests.unit.payload_types import (
    SCALARS,
    UNIONS,
    Access,
    Address,
    Color,
    Lenient,
    Line,
    Size,
    Sparse,
    Tree,
    json_values,
    through_jsonb,
    typed_values,
    with_types,
    zones,
)


@given(typed_values())
@example((float, 1e23))
@example((float, 5e-324))
@example((float, 1.7976931348623157e308))
@example((float | int | Decimal, 7))
@example((float | Literal[8] | None, 8))
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

    decoded = codec.decode(through_jsonb(json.loads(dump(encoded))))

    assert decoded == value
    assert with_types(decoded) == with_types(value)


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
    assert with_types(codec_for(tp).encode(value)) == with_types(stored)


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
    assert with_types(codec_for(tp).decode(stored)) == with_types(value)


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

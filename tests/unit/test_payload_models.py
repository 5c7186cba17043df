"""Pydantic models and msgspec structs survive JSON exactly, or say why not."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_jobs._core.payloads import codec_for, plain_result
from sqla_jobs.errors import JobDefinitionError, PayloadError
from tests.unit.model_types import (
    NOON,
    PARIS,
    STORED,
    VALUES,
    Anything,
    Box,
    Capital,
    Cat,
    Circle,
    Crate,
    Dog,
    Holder,
    Ids,
    Login,
    Loose,
    Maybe,
    Nameless,
    Narrow,
    OneWay,
    Oval,
    Pair,
    Parcel,
    Pet,
    Place,
    Size,
    Square,
    Wide,
)
from tests.unit.payload_types import through_jsonb

NUL, HUGE = "NUL character", "more than 4300 digits"


class Mapped_(DeclarativeBase):  # noqa: N801
    """A base of mapped classes."""


class Row(Mapped_):
    """A mapped class."""

    __tablename__ = "rows"
    id: Mapped[int] = mapped_column(primary_key=True)


def stored_tree(depth: int) -> dict[str, Any]:
    """Return a value with *depth* objects inside each other."""
    tree: dict[str, Any] = {}
    for _ in range(depth - 1):
        tree = {"a": tree}
    return tree


@pytest.mark.parametrize(("tp", "value", "stored"), STORED)
def test_model_is_stored_in_its_librarys_json_form(
    tp: Any, value: Any, stored: Any
) -> None:
    """By alias, with all fields; and what comes back is equal and of the same type."""
    codec = codec_for(tp)

    assert codec.encode(value) == stored

    back = codec.decode(through_jsonb(stored))
    assert back == value
    assert type(back) is type(value)


@given(data=st.data())
@pytest.mark.parametrize("name", VALUES)
def test_model_survives_jsonb(name: str, data: st.DataObject) -> None:
    """Whatever a model holds comes back equal, floats as large as any too."""
    tp, values = VALUES[name]
    value, codec = data.draw(values), codec_for(tp)

    assert codec.decode(through_jsonb(codec.encode(value))) == value


def test_struct_that_does_not_compare_is_stored() -> None:
    """Then what it stores is compared."""
    codec = codec_for(Nameless)

    assert codec.decode(codec.encode(Nameless(3))).n == 3


def test_what_a_model_excludes_is_not_stored() -> None:
    """Excluded fields, private attributes and computed fields are not arguments."""
    parcel = Parcel(to=PARIS, cache=7)
    parcel._opened = 9
    codec = codec_for(Parcel)

    stored = codec.encode(parcel)

    assert not {"cache", "label", "_opened"} & stored.keys()
    assert codec.decode(stored) == Parcel(to=PARIS)


REFUSED: list[tuple[Any, Any, str]] = [
    (Place, {"city": "x"}, r"J\.a: expected Place, got .* Place\.model_validate\("),
    (Size, {"fullWidth": 1}, r"expected Size, .* msgspec\.convert\(\.\.\., Size\)"),
    (Place, None, r"expected Place, got None .* Place \| None"),
    (Place, Capital(city="x"), r"expected Place, got Capital"),
    (Box[int], Box(item=1), r"expected Box\[int\], got Box\(item=1\) \(Box\)"),
    (list[Place], [PARIS, 3], r"J\.a\[1\]: expected Place, got 3"),
    (Parcel, Parcel(to=Capital(city="x")), r"Parcel\.to = Capital\(.*another Place\("),
    (Narrow, Wide(1), "expected Narrow, got Wide"),
    (Holder, Holder(Wide(1, 2)), r"Holder\.inner = Wide\(.*another Narrow\(x=1\)"),
    (Login, Login(password="x"), r"Login\.password .* serializer that keeps it"),  # type: ignore[arg-type]
    (OneWay, OneWay(city="x"), "OneWay does not read what it writes: city: Field req"),
    (Place, Place.model_construct(city=3), "cannot be written as JSON.*Expected `str`"),
    (Crate[int], Crate("x"), r"Crate\[int\] does not read what it writes: .*int"),
    (Maybe | None, Maybe(None), r"Maybe\(root=None\) would be stored as None is"),
    (Loose, Loose(real=float("nan")), r"J\.a\.real: nan is not finite"),
    (Loose, Loose(maybe=float("inf")), r"inf"),
    (Loose, Loose(item="\0"), rf"J\.a\.item: .*{NUL}"),
    (Loose, Loose(item={"\0": 1}), rf"J\.a\.item: the key .*{NUL}"),
    (Loose, Loose(item=10**5000), HUGE),
    (Loose, Loose(item="\ud800"), "surrogate"),
    (Loose, Loose(item=(1, 2)), r"Loose\.item = \(1, 2\) .* another \[1, 2\]"),
    (Loose, Loose(item=stored_tree(64)), "more than 64 lists or objects"),
    (Anything, Anything(float("-inf")), r"J\.a\.item: -inf is not finite"),
    (Anything, Anything(["\0"]), rf"J\.a\.item\[0\]: .*{NUL}"),
    (Anything, Anything(10**5000), HUGE),
    (Anything, Anything(1 + 2j), "Anything cannot be written as JSON: TypeError"),
    (Anything, Anything(NOON), r"Anything\.item = datetime"),
]


@pytest.mark.parametrize(("tp", "value", "message"), REFUSED)
def test_model_that_would_not_come_back_is_refused(
    tp: Any, value: Any, message: str
) -> None:
    """What JSON loses is an error at construction that names the place and the fix."""
    with pytest.raises(PayloadError, match=message):
        codec_for(tp).encode(value, "J.a")


UNREADABLE: list[tuple[Any, Any, str]] = [
    (Place, [1], r"J\.a: expected Place, got \[1\]"),
    (
        Place,
        {"postCode": 3},
        "stored: city: Field required; post",
    ),
    (list[Place], [{}], r"J\.a\[0\]: Place refuses .* city: Field required"),
    (
        Box[Place],
        {"item": {"city": 1}},
        r"item\.city: Input should be a valid",
    ),
    (Parcel, {"to": {"city": "x"}, "gone": 1}, "gone: Extra inputs are not permitted"),
    (Pet, {"kind": "cow"}, "Input tag 'cow' found"),
    (Size, {"fullWidth": "x"}, r"Expected `float`, got `str` - at `\$\.fullWidth`"),
    (Size, {"fullWidth": 1, "gone": 1}, "Object contains unknown field `gone`"),
    (Circle | Oval, {"type": "cow"}, "Invalid value 'cow'"),
    (Pair, {"x": 1}, r"expected|Expected `array`"),
    (Place | str, 3, r"expected .*Place \| str, got 3"),
]


@pytest.mark.parametrize(("tp", "stored", "message"), UNREADABLE)
def test_what_no_longer_validates_is_a_payload_error(
    tp: Any, stored: Any, message: str
) -> None:
    """The library's own findings are in the error, with their places."""
    with pytest.raises(PayloadError, match=message):
        codec_for(tp).decode(stored, "J.a")


def test_errors_of_a_library_are_chained_and_bounded() -> None:
    """The first three findings, one line, no input, and the library's own below."""

    class Many(BaseModel):
        a: int
        b: int
        c: int
        d: int
        e: int

    stored = {"a": "secret" * 100, "d": "x" * 10_000}
    with pytest.raises(PayloadError, match="and 2 more") as caught:
        codec_for(Many).decode(stored, "J.a")

    assert isinstance(caught.value.__cause__, ValidationError)
    assert len(str(caught.value)) < 900
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_releases_read_each_others_models() -> None:
    """A new field takes its default, and a field that is gone is ignored."""
    older: dict[str, Any] = {"city": "Paris"}
    newer = {"city": "Paris", "postCode": "", "country": "FR"}

    assert codec_for(Place).decode(older) == Place(city="Paris")
    assert codec_for(Place).decode(newer) == Place(city="Paris")
    assert codec_for(Circle).decode({"type": "circle", "radius": 1, "x": 2}).radius == 1


UNUSABLE: list[tuple[Any, str]] = [
    (Cat | Dog, r'use Annotated\[Cat \| Dog, Field\(discriminator="\.\.\."\)\]'),
    (
        Annotated[Cat | Place, Field(discriminator="kind")],
        "needs a discriminator",
    ),
    (Circle | Size, "must be tagged"),
    (Circle | Square, "tag_field"),
    (Ids | list[str], "can both be a JSON array"),
    (Place | Size, "can both be a JSON object"),
    (Row, "Row is a mapped class.*ForeignKey"),
]


@pytest.mark.parametrize(("tp", "message"), UNUSABLE)
def test_models_that_cannot_be_told_apart_are_refused(tp: Any, message: str) -> None:
    """Where the class is made, with what to write instead."""
    with pytest.raises(JobDefinitionError, match=message):
        codec_for(tp)


def test_model_may_refer_to_a_later_class() -> None:
    """It is looked at again at the first use; a name that is missing is then named."""
    codec = codec_for(Early)
    struct = codec_for(EarlyStruct)
    for one, value in ((codec, Early.model_construct()), (struct, {"late": {}})):
        use = one.encode if isinstance(value, Early) else one.decode
        with pytest.raises(JobDefinitionError, match=r"not fully defined.*Late"):
            use(value)

    globals()["Late"] = type("Late", (BaseModel,), {"__annotations__": {"n": int}})
    globals()["LateStruct"] = msgspec.defstruct("LateStruct", [("n", int)])
    try:
        assert codec.decode({"late": {"n": 1}}).late.n == 1
        assert struct.decode({"late": {"n": 1}}).late.n == 1
    finally:
        del globals()["Late"], globals()["LateStruct"]


class Early(BaseModel):
    """A model that refers to a class that is not there yet."""

    late: Late  # type: ignore[name-defined]  # noqa: F821


class EarlyStruct(msgspec.Struct):
    """A struct that does."""

    late: LateStruct  # type: ignore[name-defined]  # noqa: F821


def test_returned_model_becomes_its_json_form() -> None:
    """A handler's result may be a model or a struct; other values stay as they are."""
    assert plain_result(PARIS) == {"city": "Paris", "postCode": "75001"}
    assert plain_result(Pair(1, 2)) == [1, 2]
    assert plain_result([1]) == [1]
    with pytest.raises(PayloadError, match=r"result: Login\.password"):
        plain_result(Login(password="x"))  # type: ignore[arg-type]


def test_neither_library_is_imported_without_need() -> None:
    """An application that uses none of them does not pay for them."""
    code = (
        "import sys, dataclasses, sqla_jobs\n"
        "from sqla_jobs._core.payloads import codec_for\n"
        "D = dataclasses.make_dataclass('D', [('a', int)])\n"
        "codec_for(D | None).encode(D(1)); codec_for(dict[str, list[int]])\n"
        "print({'pydantic', 'msgspec'} & sys.modules.keys())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert ran.stdout.strip() == "set()"

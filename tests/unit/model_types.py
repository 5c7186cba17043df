"""Pydantic models and msgspec structs with values of them, for the payload tests."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

import msgspec
import pydantic.dataclasses
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    SecretStr,
    computed_field,
)

T = TypeVar("T")
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
REAL = st.floats(allow_nan=False, allow_infinity=False)
WHOLE = st.integers(-(2**53), 2**53)


class Paper(StrEnum):
    """An enum inside models."""

    PLAIN = "plain"
    GLOSSY = "glossy"


class Place(BaseModel):
    """A model with an alias and a default."""

    city: str
    post_code: str = Field(default="", alias="postCode")


class Capital(Place):
    """A model with more than its parent."""

    country: str = ""


class Parcel(BaseModel):
    """A strict model: in JSON its fields are texts and lists all the same."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    to: Place
    paper: Paper = Paper.PLAIN
    sent: date | None = None
    seen: datetime | None = None
    within: timedelta = timedelta(0)
    price: Decimal = Decimal(0)
    code: UUID | None = None
    marks: frozenset[int] = frozenset()
    pair: tuple[int, str] = (0, "")
    weight: float = 0.0
    seal: bytes = b""
    cache: int = Field(default=0, exclude=True)
    _opened: int = PrivateAttr(default=0)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def label(self) -> str:
        """Written by pydantic, and refused by the model when it is read."""
        return f"to {self.to.city}"


class Cat(BaseModel):
    """One of two that pydantic tells apart."""

    kind: Literal["cat"] = "cat"
    name: str


class Dog(BaseModel):
    """The other."""

    kind: Literal["dog"] = "dog"
    name: str


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


class Box(BaseModel, Generic[T]):
    """A generic model."""

    item: T


class Tree(BaseModel):
    """A model inside itself."""

    branches: list[Tree] = []


class Ids(RootModel[list[int]]):
    """A model that is an array."""


class Maybe(RootModel[int | None]):
    """A model that may be null."""


@pydantic.dataclasses.dataclass
class Meeting:
    """A dataclass of pydantic's."""

    at: datetime
    minutes: int = 30


class Loose(BaseModel):
    """A model that holds anything."""

    item: Any = None
    real: float = 0.0
    maybe: float | None = None


class Login(BaseModel):
    """A model that does not write what it holds."""

    password: SecretStr


class OneWay(BaseModel):
    """A model that is written under one name and read under another."""

    city: str = Field(serialization_alias="town")


class Size(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    """A struct that is strict about its keys."""

    full_width: float
    full_height: float = 0.0


class Circle(msgspec.Struct, tag="circle"):
    """One of two that msgspec tells apart."""

    radius: float


class Square(msgspec.Struct, tag="square", tag_field="shape"):
    """One with a tag of another name."""

    side: float


class Oval(msgspec.Struct, tag="oval"):
    """The other."""

    size: Size
    when: datetime | None = None
    counts: dict[int, str] = {}
    marks: set[int] = set()
    price: Decimal = Decimal(0)
    raw: bytes = b""


class Pair(msgspec.Struct, array_like=True):
    """A struct that is an array."""

    x: int
    y: int


class Crate(msgspec.Struct, Generic[T]):
    """A generic struct."""

    item: T


class Nameless(msgspec.Struct, eq=False):
    """A struct that does not compare."""

    n: int


class Anything(msgspec.Struct):
    """A struct that holds anything."""

    item: Any = None


class Narrow(msgspec.Struct):
    """A struct whose subclass has more."""

    x: int


class Wide(Narrow):
    """It."""

    y: int = 0


class Holder(msgspec.Struct):
    """A struct that may be given the subclass."""

    inner: Narrow


OPTIONAL_PET: Any = Pet | None  # pyright: ignore[reportOperatorIssue]
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
PARIS = Place(city="Paris", postCode="75001")

# Annotation, value, and how it is stored.
STORED: list[tuple[Any, Any, Any]] = [
    (Place, PARIS, {"city": "Paris", "postCode": "75001"}),
    (Place | None, None, None),
    (list[Place], [PARIS], [{"city": "Paris", "postCode": "75001"}]),
    (Pet, Dog(name="Rex"), {"kind": "dog", "name": "Rex"}),
    (list[Pet], [Cat(name="a")], [{"kind": "cat", "name": "a"}]),
    (OPTIONAL_PET, None, None),
    (Annotated[Cat | Dog | None, Field(discriminator="kind")], None, None),
    (Box[int], Box[int](item=1), {"item": 1}),
    (Tree, Tree(branches=[Tree()]), {"branches": [{"branches": []}]}),
    (Ids, Ids([1, 2]), [1, 2]),
    (Ids | str, Ids([1, 2]), [1, 2]),
    (Maybe, Maybe(None), None),
    (Meeting, Meeting(NOON), {"at": "2026-01-31T12:00:00Z", "minutes": 30}),
    (Size, Size(1.5), {"fullWidth": 1.5, "fullHeight": 0.0}),
    (dict[str, Size], {"a": Size(1)}, {"a": {"fullWidth": 1, "fullHeight": 0.0}}),
    (Circle | Oval | str, Circle(1.0), {"type": "circle", "radius": 1.0}),
    (Circle | Oval | None, None, None),
    (Pair, Pair(1, 2), [1, 2]),
    (Crate[int], Crate(1), {"item": 1}),
    (list[Place | str], ["x", PARIS], ["x", {"city": "Paris", "postCode": "75001"}]),
]

PLACES = st.builds(Place, city=TEXT, postCode=TEXT)
SIZES = st.builds(Size, REAL, REAL)
INSTANTS = st.datetimes(timezones=st.just(UTC))
PRICES = st.decimals(allow_nan=False, allow_infinity=False, places=3)

VALUES: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "place": (Place, PLACES),
    "parcel": (
        Parcel,
        st.builds(
            Parcel,
            to=PLACES,
            paper=st.sampled_from(Paper),
            sent=st.none() | st.dates(),
            seen=st.none() | INSTANTS,
            within=st.timedeltas(timedelta(0), timedelta(days=10_000)),
            price=PRICES,
            code=st.none() | st.uuids(),
            marks=st.frozensets(WHOLE, max_size=3),
            pair=st.tuples(WHOLE, TEXT),
            # Of pydantic 2.8: JSONB's 1000000000000000000 is no float to it.
            weight=st.floats(-1e17, 1e17),
        ),
    ),
    "pets": (
        list[Pet],
        st.lists(st.builds(Cat, name=TEXT) | st.builds(Dog, name=TEXT), max_size=3),
    ),
    "box": (Box[Place] | None, st.none() | st.builds(Box[Place], item=PLACES)),
    "meeting": (Meeting, st.builds(Meeting, at=INSTANTS, minutes=WHOLE)),
    "sizes": (dict[str, Size], st.dictionaries(TEXT, SIZES, max_size=3)),
    "shape": (
        Circle | Oval | None,
        st.none()
        | st.builds(Circle, REAL)
        | st.builds(
            Oval,
            SIZES,
            when=st.none() | INSTANTS,
            counts=st.dictionaries(WHOLE, TEXT, max_size=3),
            marks=st.sets(WHOLE, max_size=3),
            price=PRICES,
            raw=st.binary(max_size=5),
        ),
    ),
    "pair": (Pair, st.builds(Pair, WHOLE, WHOLE)),
}

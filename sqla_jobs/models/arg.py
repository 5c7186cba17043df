"""`Arg[T]`: a typed key of a job's JSON payload."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from reprlib import Repr
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from sqlalchemy import ColumnElement

from sqla_jobs._core.codecs import type_name
from sqla_jobs._core.payloads import MASK, Codec, check_size, codec_for, dump
from sqla_jobs.errors import JobDefinitionError, PayloadError
from sqla_jobs.models.annotations import generic_name, inner_type, own_annotations
from sqla_jobs.models.expressions import expression

T = TypeVar("T")
_shown = Repr()
_shown.maxstring = _shown.maxother = 60


class _Unset:
    def __repr__(self) -> str:
        return "<unset>"


UNSET: Any = _Unset()
"""Stands for a default that was not given; None is a value."""


class Arg(Generic[T]):
    """
    An attribute stored under its name in `payload`, and an SQL expression on the class.

    Declared by annotation; `arg` gives it a default: ``subject: Arg[str] =
    arg(default="")``. The ORM sees each assignment; a list or dict changed in place
    must be assigned again.
    """

    name: str = "?"
    owner: type[Any] = object

    def __init__(
        self,
        *,
        default: Any = UNSET,
        default_factory: Callable[[], Any] | None = None,
        secret: bool = False,
    ) -> None:
        if default is not UNSET and default_factory is not None:
            raise JobDefinitionError("arg() takes default= or default_factory=")
        self.default, self.default_factory = default, default_factory
        self.secret = secret
        self._codec: Codec | None = None

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self.owner, self.name = owner, name

    def __repr__(self) -> str:
        return f"<Arg {self.path}>"

    @property
    def path(self) -> str:
        """The argument's name in errors, e.g. ``SendInvoice.subject``."""
        return f"{self.owner.__name__}.{self.name}"

    @property
    def required(self) -> bool:
        """Whether the constructor needs a value."""
        return self.default is UNSET and self.default_factory is None

    @property
    def codec(self) -> Codec:
        """The codec of T; found at the first use, when all names are defined."""
        if self._codec is None:
            try:
                self.resolve({})
            except NameError as error:
                raise JobDefinitionError(
                    f"{self.path}: the annotation name {error.name!r} is not found;"
                    " define or import it in the module, outside TYPE_CHECKING"
                ) from error
        assert self._codec is not None
        return self._codec

    def resolve(self, scope: dict[str, Any]) -> None:
        """
        Find the codec; *scope* holds local names at the class statement.

        Raises:
            NameError: If a name in the annotation is not defined, or not yet.
            JobDefinitionError: If the type cannot be stored as JSON.
        """
        annotation = own_annotations(self.owner).get(self.name)
        if generic_name(annotation) != "Arg":
            raise JobDefinitionError(
                f"{self.path} = arg() has no type; write {self.name}: Arg[str] = arg()"
            )
        inner = inner_type(annotation, self.owner, scope)
        try:
            self._codec = codec_for(inner)
        except JobDefinitionError as error:
            raise JobDefinitionError(f"{self.path}: {error}") from error

    def encode(self, value: Any) -> Any:
        """
        Return *value* as it is stored.

        Raises:
            PayloadError: If it is not of type T.
        """
        return self._convert(self.codec.encode, value)

    def encoded_default(self) -> Any:
        """Return a new default as it is stored."""
        if self.default_factory is not None:
            return self.encode(self.default_factory())
        return self.encode(self.default)

    if TYPE_CHECKING:

        @overload
        def __get__(self, obj: None, owner: Any) -> ColumnElement[T]: ...
        @overload
        def __get__(self, obj: object, owner: Any) -> T: ...

    def __get__(self, obj: Any, owner: Any) -> Any:
        if obj is None:
            return expression(owner, self.name, self.codec)
        payload = obj.payload
        try:
            if type(payload) is dict and self.name in payload:
                return self._convert(self.codec.decode, payload[self.name])
            return self._missing(payload)
        except PayloadError as error:
            raise error.within(repr(obj)) from error

    def __set__(self, obj: Any, value: T) -> None:
        # A new dict: the ORM compares by identity, so it sees the change.
        obj.payload = {**(obj.payload or {}), self.name: self.encode(value)}

    def _convert(self, convert: Callable[[Any, str], Any], value: Any) -> Any:
        if not self.secret:
            return convert(value, self.path)
        with suppress(PayloadError):
            return convert(value, self.path)
        # Outside of a handler: what the error is about is no part of its traceback.
        raise PayloadError(
            f"{self.path}: expected {type_name(self.codec.annotation)} that JSON can"
            f" hold, got {MASK} ({type(value).__name__})"
        )

    def _missing(self, payload: Any) -> Any:
        # Rows from before the argument existed have its default.
        if isinstance(payload, dict | None) and not self.required:
            return self.codec.decode(self.encoded_default(), self.path)
        raise PayloadError(f"{self.path}: the payload has no key {self.name!r}")


@overload
def arg(*, secret: bool = ...) -> Any: ...
@overload
def arg(*, default: T, secret: bool = ...) -> Arg[T]: ...
@overload
def arg(*, default_factory: Callable[[], T], secret: bool = ...) -> Arg[T]: ...
def arg(
    *, default: Any = UNSET, default_factory: Any = None, secret: bool = False
) -> Any:
    """
    Declare a payload key with a default, or a secret one.

    For example ``subject: Arg[str] = arg(default="")``.

    Args:
        default: The value when the constructor is given none; default: it is required.
        default_factory: Called for each job instead; for lists and dicts.
        secret: Whether errors, listings and what shows a job have ``***`` in place of
            the value. It is stored as it is, not encrypted. Default False.

    Raises:
        JobDefinitionError: If both defaults are given.
    """
    return Arg(default=default, default_factory=default_factory, secret=secret)


def args_of(cls: type[Any]) -> dict[str, Arg[Any]]:
    """Return the arguments of a job class, inherited ones first."""
    found: dict[str, Arg[Any]] = {}
    for base in reversed(cls.__mro__):
        # A copy: another thread may be setting an attribute of the class.
        for name, value in vars(base).copy().items():
            if isinstance(value, Arg):
                found[name] = value
            else:
                found.pop(name, None)
    return found


def secrets_of(cls: type[Any]) -> frozenset[str]:
    """Return the names of the secret arguments of a job class."""
    return frozenset(name for name, one in args_of(cls).items() if one.secret)


def masked(cls: type[Any] | None, payload: Any) -> Any:
    """Return a payload of *cls*, None if nothing maps it, without its secrets."""
    if cls is None or not isinstance(payload, Mapping):
        return payload
    hidden = secrets_of(cls) & payload.keys()
    return {**payload, **dict.fromkeys(hidden, MASK)} if hidden else payload


def shown_payload(cls: type[Any], payload: object) -> str:
    """Return a bounded repr of what is no payload, for an error's text."""
    return MASK if secrets_of(cls) else _shown.repr(payload)


def dump_payload(cls: type[Any], payload: Any, path: str = "payload") -> str:
    """
    Return a payload of *cls* as JSON text.

    Raises:
        PayloadError: If it is not JSON, or above the class's ``__payload_limit__``.
    """
    try:
        text = dump(payload, path)
    except PayloadError as error:
        raise without_value(cls, error) from None
    check_size(text, cls.__payload_limit__, path)
    return text


def without_value(cls: type[Any], error: PayloadError) -> PayloadError:
    """Return the error about a payload of *cls*; no value is in it if one is secret."""
    return PayloadError(error.hidden) if error.hidden and secrets_of(cls) else error

"""`Arg[T]`: a typed key of a job's JSON payload."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from sqlalchemy import ColumnElement


T = TypeVar("T")


class _Unset:
    def __repr__(self) -> str:
        return "<unset>"


UNSET: Any = _Unset()


class Arg(Generic[T]):
    """
    An attribute stored under its name in `payload`, and an SQL expression on the class.

    Declared by annotation; `arg` gives it a default: ``subject: Arg[str] =
    arg(default="")``. The ORM sees each assignment; a list or dict changed in place must
    be assigned again.
    """

    name: str = ""

    def __init__(
        self, *, default: Any = UNSET, default_factory: Callable[[], Any] | None = None
    ) -> None:
        self.default, self.default_factory = default, default_factory

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self.owner, self.name = owner, name

    @property
    def required(self) -> bool:
        """Whether the constructor needs a value."""
        return self.default is UNSET and self.default_factory is None

    if TYPE_CHECKING:

        @overload
        def __get__(self, obj: None, owner: Any) -> ColumnElement[T]: ...
        @overload
        def __get__(self, obj: object, owner: Any) -> T: ...

    def __get__(self, obj: Any, owner: Any) -> Any:
        if obj is None:
            return owner.payload[self.name].as_string()
        return (obj.payload or {}).get(self.name)

    def __set__(self, obj: Any, value: T) -> None:
        obj.payload = {**(obj.payload or {}), self.name: value}


def arg(*, default: Any = UNSET, default_factory: Any = None) -> Any:
    """
    Declare a payload key with a default.

    Args:
        default: The value when the constructor is given none; default: required.
        default_factory: Called for each job instead, for lists and dicts.
    """
    return Arg(default=default, default_factory=default_factory)

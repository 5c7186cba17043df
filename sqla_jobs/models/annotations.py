"""Reading the annotations of a class body, which are strings more often than not."""

from __future__ import annotations

import inspect
import re
import sys
from types import FrameType, UnionType
from typing import Any, Union, get_args, get_origin

# The name of the generic in 'Arg[str]' or 'orm.Mapped["int"]'.
_GENERIC = re.compile(r"^\s*(?:\w+\.)*(\w+)\s*\[")


def own_annotations(cls: type[Any]) -> dict[str, Any]:
    """Return the annotations that *cls* itself declares; no string is evaluated."""
    if sys.version_info >= (3, 14):
        import annotationlib

        return dict(
            annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF)
        )
    return inspect.get_annotations(cls)


def generic_name(annotation: Any) -> str | None:
    """Return ``"Arg"`` for ``Arg[str]``, given as an object or as a string."""
    if isinstance(annotation, str):
        found = _GENERIC.match(annotation)
        return found[1] if found else None
    return getattr(get_origin(annotation), "__name__", None)


def inner_type(annotation: Any, cls: type[Any], scope: dict[str, Any]) -> Any:
    """
    Return T of an annotation ``Arg[T]`` or ``Mapped[T]``.

    Args:
        annotation: The object, or a string.
        cls: The class that declares it.
        scope: Local names at the class statement.

    Raises:
        NameError: If a name is not defined, or not yet.
    """
    found = _evaluated(annotation, cls, scope)
    args = get_args(found)
    return _evaluated(args[0], cls, scope) if args else Any


def without_none(type_: Any) -> Any:
    """Return ``T`` for ``T | None``, anything else as it is."""
    if get_origin(type_) not in (Union, UnionType):
        return type_
    kept = [each for each in get_args(type_) if each is not type(None)]
    return kept[0] if len(kept) == 1 else Union[tuple(kept)]  # noqa: UP007


def scope_of(cls: type[Any]) -> dict[str, Any]:
    """Return the local names around the class statement that is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == cls.__module__:
            return dict(frame.f_locals) if frame.f_locals is not frame.f_globals else {}
        frame = frame.f_back
    return {}


def _evaluated(annotation: Any, cls: type[Any], scope: dict[str, Any]) -> Any:
    text = getattr(annotation, "__forward_arg__", annotation)
    if not isinstance(text, str):
        return annotation
    module = sys.modules.get(cls.__module__)
    # The annotations of the program itself, which Python would evaluate the same way.
    known = vars(module) if module else {}
    return eval(text, known, {**vars(cls), **scope})  # noqa: S307

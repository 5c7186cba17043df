"""Which callable runs the jobs of a class: its `run`, or a function with `@handles`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sqla_jobs.errors import JobDefinitionError

H = TypeVar("H", bound=Callable[..., Any])


@dataclass(frozen=True)
class Handler:
    """A callable that takes ``(job, ctx)``; `is_async` says whether to await it."""

    call: Callable[[Any, Any], Any]
    is_async: bool

    @property
    def name(self) -> str:
        """The callable's dotted name, for logs and errors."""
        return _name(self.call)


def handles(*job_classes: type[Any]) -> Callable[[H], H]:
    """
    Register the decorated ``function(job, ctx)`` as the handler of *job_classes*.

    A subclass of a job class needs a handler of its own.

    Raises:
        JobDefinitionError: If a class is no job class, or has a handler already.
    """
    _check_classes(job_classes)

    def register(function: H) -> H:
        handler = _checked_handler(function)
        for cls in job_classes:
            _check_free(cls, handler)
        for cls in job_classes:
            cls.__job_handler__ = handler
        return function

    return register


def handler_for(cls: type[Any]) -> Handler | None:
    """
    Return the handler of a job class, None if it has none.

    Raises:
        JobDefinitionError: If its `run` cannot be a handler.
    """
    own = cls.__dict__.get("__job_handler__")
    if isinstance(own, Handler):
        return own
    run = getattr(cls, "run", None)
    return None if run is None else _checked_handler(run)


def check_run(cls: type[Any]) -> None:
    """
    Check the `run` that a class being made declares itself.

    Raises:
        JobDefinitionError: If it cannot be a handler.
    """
    if "run" in cls.__dict__:
        handler_for(cls)


def _check_classes(job_classes: tuple[Any, ...]) -> None:
    if not job_classes:
        raise JobDefinitionError("handles() needs job classes: @handles(SendInvoice)")
    for cls in job_classes:
        if not isinstance(cls, type):
            raise JobDefinitionError(
                f"handles({_name(cls)}) is no job class; write @handles(SendInvoice)"
            )
        tables = getattr(cls, "__jobs__", None)
        if tables is None or cls not in tables.kinds.values():
            raise JobDefinitionError(
                f"handles({_name(cls)}): the class has no kind; give a subclass of a"
                " root class"
            )


def _check_free(cls: type[Any], new: Handler) -> None:
    old = handler_for(cls)
    if old is not None:
        kind = cls.__job_options__.kind
        raise JobDefinitionError(
            f"kind {kind!r} would have two handlers: {old.name} and {new.name};"
            " remove one"
        )


def _checked_handler(call: Any) -> Handler:
    if not callable(call):
        raise JobDefinitionError(f"handler {call!r} is not callable")
    if _any_of(call, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        raise JobDefinitionError(
            f"handler {_name(call)} is a generator: its body would never run; remove"
            " the yield"
        )
    return Handler(call, is_async(call))


def is_async(call: Any) -> bool:
    """Return whether calling *call* makes a coroutine, as far as its form tells."""
    return _any_of(call, inspect.iscoroutinefunction)


def _any_of(call: Any, *tests: Callable[[Any], bool]) -> bool:
    while isinstance(call, partial):
        call = call.func
    # An object with an (async) __call__ is not itself a function.
    return any(test(call) or test(type(call).__call__) for test in tests)


def _name(call: Any) -> str:
    while isinstance(call, partial):
        call = call.func
    named = call if hasattr(call, "__qualname__") else type(call)
    return f"{named.__module__}.{named.__qualname__}"

"""Which callable runs the jobs of a class: `run`, `run_many`, or one of `@handles`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from sqla_jobs.errors import JobDefinitionError

H = TypeVar("H", bound=Callable[..., Any])


@dataclass(frozen=True)
class Handler:
    """
    A callable that takes ``(job, ctx)``; `is_async` says whether to await it.

    Args:
        acquire: Asked with the job before each run; None runs without asking.
        many: Whether *call* takes ``(jobs, ctx)``, a list of jobs.
    """

    call: Callable[[Any, Any], Any]
    is_async: bool
    acquire: Callable[[Any], Any] | None = None
    many: bool = False

    @property
    def name(self) -> str:
        """The callable's dotted name, for logs and errors."""
        return _name(self.call)

    @property
    def acquire_name(self) -> str:
        """The same of what grants its runs."""
        return _name(self.acquire)


def handles(
    *job_classes: type[Any], acquire: Callable[[Any], Any] | None = None
) -> Callable[[H], H]:
    """
    Register the decorated ``function(job, ctx)`` as the handler of *job_classes*.

    A subclass of a job class needs a handler of its own.

    Args:
        acquire: ``function(job)`` that grants, puts off or refuses each run, as a
            method `acquire` of the class does; async if the handler is. Default the
            class's method, if it has one.

    Raises:
        JobDefinitionError: If a class is no job class, or has a handler already; or
            *acquire* cannot be called as the handler is.
    """
    _check_classes(job_classes)

    def register(function: H) -> H:
        handler = _checked_handler(function)
        for cls in job_classes:
            _check_free(cls, handler)
        made = [_asking(cls, handler, acquire) for cls in job_classes]
        for cls, one in zip(job_classes, made, strict=True):
            cls.__job_handler__ = one
        return function

    return register


def handler_for(cls: type[Any]) -> Handler | None:
    """
    Return the handler of a job class, None if it has none.

    Raises:
        JobDefinitionError: If its `run`, `run_many` or `acquire` cannot be used.
    """
    own = cls.__dict__.get("__job_handler__")
    if isinstance(own, Handler):
        return own
    run, many = getattr(cls, "run", None), getattr(cls, "run_many", None)
    if many is not None:
        return _batch_handler(cls, run, many)
    return None if run is None else _asking(cls, _checked_handler(run))


def check_run(cls: type[Any]) -> None:
    """
    Check the `run`, `run_many` or `acquire` that a class being made declares itself.

    Raises:
        JobDefinitionError: If it cannot be used.
    """
    if {"run", "run_many", "acquire"} & cls.__dict__.keys():
        handler = handler_for(cls)
        batch = cls.__dict__.get("__job_keywords__", {}).get("batch")
        if handler is not None and batch is not None and not handler.many:
            raise JobDefinitionError(
                f"{cls.__name__}: batch={batch} is for run_many(), but the class has"
                " run(); remove one"
            )


def _batch_handler(cls: type[Any], run: Any, many: Any) -> Handler:
    name = cls.__name__
    if run is not None:
        raise JobDefinitionError(
            f"{name} has run() and run_many(); a class has one of them: remove the"
            " other, or set it to None if it is inherited"
        )
    if not isinstance(inspect.getattr_static(cls, "run_many"), classmethod):
        raise JobDefinitionError(
            f"{name}.run_many must be a @classmethod: def run_many(cls, jobs, ctx)"
        )
    if _acquire_of(cls) is not None:
        raise JobDefinitionError(
            f"{name} has run_many() and acquire(); permits are per job: use run()"
        )
    return replace(_checked_handler(many), many=True)


def _asking(
    cls: type[Any], handler: Handler, acquire: Callable[[Any], Any] | None = None
) -> Handler:
    """Return *handler* with what grants its runs."""
    method = _acquire_of(cls)
    if acquire is not None and method is not None:
        raise JobDefinitionError(
            f"{cls.__name__} has acquire() and handles(acquire=...); remove one"
        )
    acquire = acquire or method
    if acquire is None:
        return handler
    asking = _checked_handler(acquire)
    # What @asynccontextmanager makes is called like a plain function.
    waits = asking.is_async or inspect.isasyncgenfunction(inspect.unwrap(acquire))
    if waits is not handler.is_async:
        kinds = ("sync", "async") if handler.is_async else ("async", "sync")
        raise JobDefinitionError(
            f"{cls.__name__}: {asking.name} is {kinds[0]}, but the handler"
            f" {handler.name} is {kinds[1]}; both run in one place, so make them alike"
        )
    return replace(handler, acquire=acquire)


def _acquire_of(cls: type[Any]) -> Callable[[Any], Any] | None:
    """Return the method of a class; an argument may have the name, too."""
    found = getattr(cls, "acquire", None)
    return found if callable(found) else None


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

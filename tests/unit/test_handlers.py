"""Which callable is the handler of a class."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase

from sqla_jobs import JobDefinitionError, JobMixin, handles
from sqla_jobs.handlers import handler_for


class Base(DeclarativeBase):
    """The application's."""


class Job(JobMixin, Base):
    """The root."""

    __tablename__ = "handler_jobs"


class Template(Job):
    """A template has no rows."""

    __abstract__ = True


class Runs(Job):
    """Has a method of its own."""

    def run(self, ctx: Any) -> Any:
        """Return both."""
        return self, ctx


class RunsLikeParent(Runs):
    """Inherits it."""


class RunsAsync(Job):
    """Has a coroutine method."""

    async def run(self, ctx: Any) -> None:
        """Do nothing."""


class Bare(Job):
    """Has no handler."""


def _new_kind(name: str, **namespace: Any) -> Any:
    return type(name, (Job,), namespace)


def test_run_is_the_handler() -> None:
    """A class's own or inherited run is called with the job and the context."""
    for cls in (Runs, RunsLikeParent):
        handler = handler_for(cls)
        assert handler is not None
        assert not handler.is_async
        job = cls()
        assert handler.call(job, "ctx") == (job, "ctx")
        assert handler.name == f"{__name__}.Runs.run"


def test_class_without_handler() -> None:
    """JobMixin brings no run of its own."""
    assert handler_for(Bare) is None
    assert handler_for(Job) is None


def test_function_handles_several_classes() -> None:
    """A decorated function stays a function and serves each class named."""
    one, two = _new_kind("ManyOne"), _new_kind("ManyTwo")

    @handles(one, two)
    def handler(job: Any, ctx: Any) -> str:
        return "done"

    assert handler(None, None) == "done"
    for cls in (one, two):
        found = handler_for(cls)
        assert found is not None
        assert found.call is handler


def test_handler_is_not_inherited_from_functions() -> None:
    """A subclass of a class with a function needs a handler of its own."""
    parent = _new_kind("FunctionParent")
    handles(parent)(lambda job, ctx: None)

    child: Any = type("FunctionChild", (parent,), {})

    assert handler_for(child) is None
    handles(child)(lambda job, ctx: None)


class _Callable:
    def __call__(self, job: Any, ctx: Any) -> None: ...


class _AsyncCallable:
    async def __call__(self, job: Any, ctx: Any) -> None: ...


async def _coroutine(job: Any, ctx: Any, extra: int = 0) -> None: ...


def _function(job: Any, ctx: Any, extra: int = 0) -> None: ...


@pytest.mark.parametrize(
    ("call", "is_async", "name"),
    [
        (_function, False, "_function"),
        (_coroutine, True, "_coroutine"),
        (partial(_function, extra=1), False, "_function"),
        (partial(partial(_coroutine, extra=1)), True, "_coroutine"),
        (_Callable(), False, "_Callable"),
        (_AsyncCallable(), True, "_AsyncCallable"),
        (partial(_AsyncCallable()), True, "_AsyncCallable"),
    ],
)
def test_async_handlers_are_recognized(call: Any, is_async: bool, name: str) -> None:
    """Coroutine functions are found under partials and in callable objects."""
    cls = _new_kind(f"Recognized{name.strip('_')}{id(call)}")

    handles(cls)(call)

    found = handler_for(cls)
    assert found is not None
    assert (found.is_async, found.name) == (is_async, f"{__name__}.{name}")
    assert handler_for(RunsAsync).is_async  # type: ignore[union-attr]


def test_second_handler_is_refused() -> None:
    """One kind has one handler; the message names both."""
    cls = _new_kind("Second", run=_function)
    other = _new_kind("SecondFunction")
    handles(other)(_function)
    free = _new_kind("SecondFree")

    with pytest.raises(
        JobDefinitionError, match=r"kind 'second' .* \S+_function and \S+_coroutine"
    ):
        handles(cls)(_coroutine)
    with pytest.raises(
        JobDefinitionError, match=r"'second_function' .*_function and \S+_coroutine"
    ):
        handles(free, other)(_coroutine)
    assert handler_for(free) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"handles\(\) needs job classes"),
        ((_function,), r"_function\) is no job class; write @handles\(SendInvoice\)"),
        ((int,), r"int\): the class has no kind"),
        ((Job,), r"Job\): the class has no kind"),
        ((Template,), r"Template\): the class has no kind"),
        ((Bare, Job), r"Job\): the class has no kind"),
    ],
)
def test_wrong_classes_are_refused(arguments: Any, message: str) -> None:
    """Only classes with a kind have handlers."""
    with pytest.raises(JobDefinitionError, match=message):
        handles(*arguments)


def _generator(job: Any, ctx: Any) -> Any:
    yield job


async def _async_generator(job: Any, ctx: Any) -> Any:
    yield job


@pytest.mark.parametrize("call", [_generator, _async_generator, partial(_generator)])
def test_generators_are_refused(call: Any) -> None:
    """A generator would be created and never run, so it cannot be a handler."""
    with pytest.raises(JobDefinitionError, match="is a generator"):
        handles(Bare)(call)
    with pytest.raises(JobDefinitionError, match="is not callable"):
        handles(Bare)(3)  # type: ignore[type-var]

"""What a class may declare beside `run`: `run_many`, `acquire` and ``batch=``."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from types import new_class
from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase

from sqla_jobs import Arg, JobDefinitionError, JobMixin, handles
from sqla_jobs.handlers import handler_for


class Base(DeclarativeBase):
    """The application's."""


class Job(JobMixin, Base):
    """The root."""

    __tablename__ = "batch_jobs"


class Bare(Job):
    """Has no handler."""


class Sized(Job, batch=7):
    """Has batches."""

    @classmethod
    def run_many(cls, jobs: Any, ctx: Any) -> Any:
        """Return what it is called with."""
        return cls, jobs, ctx


class SizedLikeParent(Sized):
    """Inherits them."""


class Locked(Job):
    """Has an argument of that name, and no method."""

    acquire: Arg[str]

    def run(self, ctx: Any) -> None:
        """Do nothing."""


def sync(self: Any, *args: Any) -> None:
    """Do nothing."""


async def coroutine(self: Any, *args: Any) -> None:
    """Do nothing."""


@contextmanager
def permit(job: Any) -> Any:
    """Hold nothing."""
    yield


@asynccontextmanager
async def async_permit(job: Any) -> Any:
    """Hold nothing, in a task."""
    yield


def _new_kind(
    name: str, keywords: Any = None, *, of: type[Any] = Job, **namespace: Any
) -> Any:
    return new_class(name, (of,), keywords, lambda values: values.update(namespace))


def test_run_many_gets_jobs_and_context() -> None:
    """A class method, also inherited, with the size of its batches."""
    for cls in (Sized, SizedLikeParent):
        handler = handler_for(cls)
        assert handler is not None
        assert handler.many
        assert handler.call([1], "ctx") == (cls, [1], "ctx")
        assert cls.__job_options__.batch == 7
    assert Bare.__job_options__.batch == 100


def test_argument_named_acquire_is_no_permit() -> None:
    """Only a method grants runs."""
    handler = handler_for(Locked)
    assert handler is not None
    assert handler.acquire is None


def test_acquire_of_the_class_serves_a_registered_function_too() -> None:
    """It is about the jobs, wherever their handler is written."""
    cls = _new_kind("Asked", acquire=sync)

    handles(cls)(lambda job, ctx: None)

    handler = handler_for(cls)
    assert handler is not None
    assert handler.acquire is cls.acquire


def test_acquire_is_given_with_a_function() -> None:
    """`handles(acquire=)` is for handlers that are functions, alike sync or async."""
    cls, other = _new_kind("AskedByFunction"), _new_kind("AskedAsync")

    handles(cls, acquire=permit)(sync)
    handles(other, acquire=async_permit)(coroutine)

    assert handler_for(cls).acquire is permit  # type: ignore[union-attr]
    assert handler_for(other).acquire is async_permit  # type: ignore[union-attr]


MANY = classmethod(sync)


@pytest.mark.parametrize(
    ("namespace", "message"),
    [
        ({"run": sync, "run_many": MANY}, r"has run\(\) and run_many\(\)"),
        ({"run_many": sync}, r"run_many must be a @classmethod"),
        ({"run_many": MANY, "acquire": sync}, r"permits are per job: use run\(\)"),
        ({"run": sync, "acquire": coroutine}, r"coroutine is async, .*\.sync is sync"),
        ({"run": coroutine, "acquire": sync}, r"\.sync is sync, .*coroutine is async"),
        ({"run": coroutine, "acquire": permit}, r"permit is sync, .* is async"),
        ({"run": sync, "acquire": async_permit}, r"async_permit is async, .* is sync"),
    ],
)
def test_contradictory_class_is_refused(namespace: Any, message: str) -> None:
    """When the class is made, with what to do."""
    with pytest.raises(JobDefinitionError, match=message):
        _new_kind("Contradiction", **namespace)


def test_batch_of_a_class_that_runs_single_jobs_is_refused() -> None:
    """The keyword would do nothing."""
    with pytest.raises(JobDefinitionError, match=r"batch=5 is for run_many\(\)"):
        _new_kind("Single", {"batch": 5}, run=sync)
    with pytest.raises(JobDefinitionError, match=r"batch=0 must be an integer of 1"):
        _new_kind("Empty", {"batch": 0}, run_many=MANY)


def test_inherited_handler_can_be_replaced_by_the_other_kind() -> None:
    """Two handlers are refused, unless the inherited one is set to None."""
    with pytest.raises(JobDefinitionError, match="set it to None if it is inherited"):
        _new_kind("Both", of=Sized, run=sync)

    cls = _new_kind("Only", of=Sized, run=sync, run_many=None)

    assert not handler_for(cls).many  # type: ignore[union-attr]


def test_function_for_a_class_with_run_many_is_refused() -> None:
    """One kind has one handler."""
    with pytest.raises(JobDefinitionError, match="would have two handlers"):
        handles(Sized)(sync)
    with pytest.raises(JobDefinitionError, match=r"has acquire\(\) and handles"):
        handles(_new_kind("TwoPermits", acquire=sync), acquire=permit)(sync)

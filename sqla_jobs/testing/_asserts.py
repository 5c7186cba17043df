"""Say what must be enqueued, and what not."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from reprlib import Repr
from typing import TYPE_CHECKING, Any, TypeVar, overload

from sqlalchemy import inspect
from sqlalchemy.orm import Session, scoped_session

from sqla_jobs._core.backoff import Backoff
from sqla_jobs._core.options import unknown
from sqla_jobs._core.payloads import MASK
from sqla_jobs._core.states import LIVE
from sqla_jobs._store.probe import jobs_in, kinds_in
from sqla_jobs.errors import PayloadError
from sqla_jobs.models import JobMixin, JobTables, job_tables
from sqla_jobs.models.arg import args_of, secrets_of
from sqla_jobs.models.columns import COLUMN_NAMES
from sqla_jobs.testing._joined import Joint, plain_session

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

J = TypeVar("J", bound=JobMixin)
T = TypeVar("T")
SHOWN = 5  # jobs in a message
_short = Repr()
_short.maxstring = _short.maxother = 80
_short.maxdict = _short.maxlist = _short.maxtuple = _short.maxset = 6


@overload
def assert_enqueued(
    session: Session | scoped_session[Any],
    job_class: type[J],
    /,
    *,
    count: None = None,
    **values: Any,
) -> J: ...
@overload
def assert_enqueued(
    session: Session | scoped_session[Any],
    job_class: type[J],
    /,
    *,
    count: int,
    **values: Any,
) -> list[J]: ...
@overload
def assert_enqueued(
    session: AsyncSession | async_scoped_session[Any],
    job_class: type[J],
    /,
    *,
    count: None = None,
    **values: Any,
) -> Coroutine[Any, Any, J]: ...
@overload
def assert_enqueued(
    session: AsyncSession | async_scoped_session[Any],
    job_class: type[J],
    /,
    *,
    count: int,
    **values: Any,
) -> Coroutine[Any, Any, list[J]]: ...
def assert_enqueued(
    session: Any, job_class: Any, /, *, count: int | None = None, **values: Any
) -> Any:
    """
    Return the job of the class that is enqueued with these values, or fail.

    The session is flushed first. Jobs that have ended do not count, unless *values*
    have a ``state``.

    Args:
        session: The test's session; with an AsyncSession ``await`` the call.
        job_class: A job class; the root class finds jobs of any.
        count: How many there must be exactly. Default: one or more, the first of which
            is returned; with a number the list of all is.
        values: What the job must have: arguments, mapped columns, relationships and
            the columns of every job. A function is called with the value, anything
            else is compared by ``==``.

    Raises:
        AssertionError: If there is none, or not *count*; lists what is enqueued.
        TypeError: If the class has no attribute of a name in *values*.
    """
    __tracebackhide__ = True
    if count is not None and "count" in _names(job_class):
        raise TypeError(
            f"assert_enqueued({job_class.__name__}, count={count!r}): count is a number"
            f" of jobs here; for the argument: all_enqueued(session,"
            f" {job_class.__name__}, count={count!r})"
        )
    query = _Query("assert_enqueued", job_class, values)

    def check(found: Session) -> Any:
        __tracebackhide__ = True
        return query.expect(found, count)

    return _run(session, query, check)


@overload
def refute_enqueued(
    session: Session | scoped_session[Any],
    job_class: type[JobMixin],
    /,
    **values: Any,
) -> None: ...
@overload
def refute_enqueued(
    session: AsyncSession | async_scoped_session[Any],
    job_class: type[JobMixin],
    /,
    **values: Any,
) -> Coroutine[Any, Any, None]: ...
def refute_enqueued(session: Any, job_class: Any, /, **values: Any) -> Any:
    """
    Fail if a job of the class is enqueued with these values.

    Takes what `assert_enqueued` takes, but no ``count``.

    Raises:
        AssertionError: If there is one; lists what was found.
        TypeError: If the class has no attribute of a name in *values*.
    """
    __tracebackhide__ = True
    query = _Query("refute_enqueued", job_class, values)
    return _run(session, query, query.refute)


@overload
def all_enqueued(
    session: Session | scoped_session[Any], job_class: type[J], /, **values: Any
) -> list[J]: ...
@overload
def all_enqueued(
    session: AsyncSession | async_scoped_session[Any],
    job_class: type[J],
    /,
    **values: Any,
) -> Coroutine[Any, Any, list[J]]: ...
def all_enqueued(session: Any, job_class: Any, /, **values: Any) -> Any:
    """
    Return the jobs of the class that are enqueued with these values, by id.

    Takes what `assert_enqueued` takes, but no ``count``.

    Raises:
        TypeError: If the class has no attribute of a name in *values*.
    """
    __tracebackhide__ = True
    query = _Query("all_enqueued", job_class, values)
    return _run(session, query, query.matching)


def _run(session: Any, query: _Query, check: Callable[[Session], Any]) -> Any:
    __tracebackhide__ = True
    found = plain_session(session, query.verb)
    if isinstance(found, Session):
        return check(found)
    return _arun(found, check)


async def _arun(session: AsyncSession, check: Callable[[Session], T]) -> T:
    __tracebackhide__ = True
    return await session.run_sync(check)


@dataclass(frozen=True)
class _Found:
    """A job, and what of it differs from what was asked for."""

    job: Any
    differing: Mapping[str, str]


class _Query:
    """The jobs of a class, compared with the wanted values."""

    def __init__(self, verb: str, job_class: Any, values: Mapping[str, Any]) -> None:
        self.verb, self.values = verb, values
        self.tables: JobTables = job_tables(job_class)
        self.job_class: type[Any] = (
            job_class if isinstance(job_class, type) else type(job_class)
        )
        self.name = self.job_class.__name__
        self._check_names()

    def _check_names(self) -> None:
        known = _names(self.job_class)
        for name in self.values:
            if name in known:
                continue
            if name == "delay":
                text = "a row keeps no delay; compare run_at="
            else:
                own = sorted(known - COLUMN_NAMES)
                text = (
                    unknown("attribute", name, known)
                    + f"; {self.name} has {', '.join(own) or 'none of its own'},"
                    " and the columns of every job"
                )
            raise TypeError(f"{self.verb}({self.name}): {text}")

    def matching(self, session: Session) -> list[Any]:
        """Return the jobs that have the values."""
        return [one.job for one in self._compare(session) if not one.differing]

    def expect(self, session: Session, count: int | None) -> Any:
        """
        Return the first match, or all of them if their number is *count*.

        Raises:
            AssertionError: If there is none, or not *count*.
        """
        __tracebackhide__ = True
        found = self._compare(session)
        matches = [one.job for one in found if not one.differing]
        if matches and count is None:
            return matches[0]
        if len(matches) == count:
            return matches
        wanted = "no" if count is None else f"{count} wanted, {len(matches)} found:"
        raise AssertionError(self._message(session, wanted, found))

    def refute(self, session: Session) -> None:
        """
        Do nothing if no job has the values.

        Raises:
            AssertionError: If one has.
        """
        __tracebackhide__ = True
        found = [one for one in self._compare(session) if not one.differing]
        if found:
            text = [f"{len(found)} {self._wanted()} enqueued:"]
            raise AssertionError("\n".join(text + self._lines(found)))

    def _compare(self, session: Session) -> list[_Found]:
        joint = Joint(session, self.tables, None, self.verb)
        with joint.explaining():
            states = None if "state" in self.values else LIVE
            jobs = jobs_in(joint.outer, self.job_class, states)
            return [_Found(job, self._differing(job)) for job in jobs]

    def _differing(self, job: Any) -> dict[str, str]:
        found = {}
        for name, wanted in self.values.items():
            try:
                value = getattr(job, name)
            except (PayloadError, AttributeError) as exc:
                found[name] = str(exc)
                continue
            if not matches(wanted, value):
                found[name] = f"{name}={_value(job, name)}"
        return found

    def _wanted(self) -> str:
        secrets = secrets_of(self.job_class)
        values = [
            f"{k}={MASK if k in secrets else _shown(v)}" for k, v in self.values.items()
        ]
        return self.name + (f" with {', '.join(values)}" if values else "")

    def _message(self, session: Session, wanted: str, found: list[_Found]) -> str:
        lines = [f"{wanted} {self._wanted()} enqueued"]
        if found:
            closest = sorted(found, key=lambda one: len(one.differing))
            lines += [f"enqueued of {self.name}, the closest first:"]
            lines += self._lines(closest)
        else:
            lines += self._others(session)
        return "\n".join(lines + self._ended(session))

    def _lines(self, found: list[_Found]) -> list[str]:
        lines = [f"  {_line(one, self.values)}" for one in found[:SHOWN]]
        more = len(found) - SHOWN
        return [*lines, f"  and {more} more"] if more > 0 else lines

    def _others(self, session: Session) -> list[str]:
        kinds = kinds_in(session, self.tables, LIVE)
        if not kinds:
            return ["nothing else is enqueued either"]
        shown = [f"{count} {kind}" for kind, count in [*kinds.items()][:10]]
        more = [f"and {len(kinds) - 10} kinds more"] if len(kinds) > 10 else []
        return [f"enqueued of other kinds: {', '.join(shown + more)}"]

    def _ended(self, session: Session) -> list[str]:
        if "state" in self.values:
            return []
        jobs = jobs_in(session, self.job_class, None)
        ended = [
            job for job in jobs if job.state not in LIVE and not self._differing(job)
        ]
        if not ended:
            return []
        states = ", ".join(sorted({job.state for job in ended}))
        text = f"{len(ended)} with these values have ended ({states});"
        return [f"{text} to find them give state={ended[0].state!r}"]


def matches(wanted: Any, value: Any) -> bool:
    """Return whether *value* is what was wanted: by identity, ``==`` or a function."""
    if wanted is value:
        return True
    if isinstance(wanted, Backoff):
        return bool(wanted.spec() == value)
    if bool(wanted == value):
        return True
    if _identity(wanted) is not None:
        return bool(_identity(wanted) == _identity(value))
    return callable(wanted) and bool(wanted(value))


def _identity(value: Any) -> Any:
    """Return the key of a row's object: in another session it is another object."""
    return getattr(inspect(value, raiseerr=False), "key", None)


def _names(job_class: Any) -> set[str]:
    cls = job_class if isinstance(job_class, type) else type(job_class)
    mapper: Any = inspect(cls, raiseerr=False)
    if mapper is None:
        return set()
    return {*mapper.all_orm_descriptors.keys(), *args_of(cls)}


def _shown(wanted: Any) -> str:
    name = getattr(wanted, "__name__", None)
    return str(name) if callable(wanted) and name else _short.repr(wanted)


def _value(job: Any, name: str) -> str:
    if name in secrets_of(type(job)):
        return MASK
    return _short.repr(getattr(job, name))


def _line(found: _Found, values: Iterable[str]) -> str:
    job = found.job
    text = f"{type(job).__name__} {job.id}, {job.state}"
    if found.differing:
        return f"{text}: {', '.join(found.differing.values())}"
    names = list(values) or list(args_of(type(job)))
    shown = [f"{name}={_value(job, name)}" for name in names]
    return f"{text}: {', '.join(shown)}" if shown else text

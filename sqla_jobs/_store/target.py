"""Which jobs an operator means: ids, kinds, or a condition on a job class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnClause,
    ColumnElement,
    Select,
    Text,
    func,
    literal,
    or_,
    select,
    true,
)
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.expression import SelectBase

from sqla_jobs._dialects import bind
from sqla_jobs._store.claim import kinds_of
from sqla_jobs.errors import JobValueError
from sqla_jobs.models import JobTables

MAX_ID = 2**63 - 1


def checked_ids(ids: int | Iterable[int]) -> list[int]:
    """
    Return *ids*, or the one id, sorted and once each.

    Raises:
        JobValueError: If one is no integer that a job can have.
    """
    if isinstance(ids, int) and not isinstance(ids, bool):
        ids = (ids,)
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise JobValueError(f"ids must be a list of ids of jobs, got {ids!r}")
    wanted = set(ids)
    for one in wanted:
        if type(one) is not int or not -MAX_ID <= one <= MAX_ID:
            raise JobValueError(f"ids must be integers, got {one!r}; give job.id")
    return sorted(wanted)


def kinds_in(tables: JobTables, job_class: type[Any]) -> list[str] | None:
    """Return the kinds of a class under the root; None for the root: any kind."""
    return None if job_class is tables.root else kinds_of(tables, job_class)


def of_kinds(tables: JobTables) -> ColumnElement[bool]:
    """Return whether a job's kind is among the bound ``kinds``; NULL is any."""
    kinds = bind("kinds", ARRAY(Text()))
    return or_(kinds.is_(None), tables.table.c.kind == func.any(kinds))


def of_ids(job_id: ColumnElement[int]) -> ColumnElement[bool]:
    """Return whether *job_id* is among the bound ``ids``."""
    return job_id == func.any(bind("ids", ARRAY(BigInteger())))


@dataclass(frozen=True, slots=True)
class Target:
    """
    Jobs of a class that meet a condition.

    Args:
        tables: Of the class.
        job_class: Limits the jobs to its kinds; brings its own table, if it has one.
        where: Any condition on the class's attributes.
    """

    tables: JobTables
    job_class: type[Any]
    where: ColumnElement[bool]

    def ids(self, *conditions: ColumnElement[bool]) -> Select[tuple[int]]:
        """Return the query of their ids, in no order."""
        job = self.tables.table.c
        return select(job.id).select_from(self.job_class).where(self.where, *conditions)


def target_of(tables: JobTables, job_class: type[Any], where: Any = None) -> Target:
    """
    Return the jobs of *job_class* for which *where* is true; None is true for all.

    A condition on attributes of a class under *job_class* is about its jobs only.

    Raises:
        JobValueError: If *where* is no condition, or about rows of other tables or
            about two kinds of jobs.
    """
    if where is None:
        return Target(tables, job_class, true())
    if hasattr(where, "__clause_element__"):  # a bare attribute: where=Job.ordered
        where = where.__clause_element__()
    if not isinstance(where, ColumnElement):
        raise JobValueError(
            f"where={where!r} is no condition; write it with the attributes of"
            f" {job_class.__name__}, e.g. where={job_class.__name__}.queue == 'mail'"
        )
    narrowed = _narrowed(tables, job_class, where)
    own = set(narrowed.__mapper__.tables)
    froms = select(literal(1)).where(where).get_final_froms()
    for other in froms:
        if other not in own:
            raise _about_others(narrowed, other)
    return Target(tables, narrowed, where)


def _narrowed(
    tables: JobTables, job_class: type[Any], where: ColumnElement[bool]
) -> type[Any]:
    """Return the lowest class that the condition is about; they must be one line."""
    found = job_class
    for other in _classes_in(tables, where):
        if issubclass(other, found):
            found = other
        elif not issubclass(found, other):
            raise JobValueError(
                f"where= is about {found.__name__} and {other.__name__}, and no job is"
                " both; make one call for each class"
            )
    return found


def _classes_in(tables: JobTables, where: ColumnElement[bool]) -> set[type[Any]]:
    found = set()
    for column in _columns_in(where):
        entity = select(column).column_descriptions[0].get("entity")
        if isinstance(entity, type) and getattr(entity, "__jobs__", None) is tables:
            found.add(entity)
    return found


def _columns_in(where: ColumnElement[bool]) -> Iterator[ColumnClause[Any]]:
    """Yield the columns outside of subqueries, which have rows of their own."""
    stack: list[Any] = [where]
    while stack:
        one: ClauseElement = stack.pop()
        if isinstance(one, ColumnClause):
            yield one
        elif not isinstance(one, SelectBase):
            stack.extend(one.get_children())


def _about_others(job_class: type[Any], other: Any) -> JobValueError:
    name = job_class.__name__
    aliased = getattr(other, "element", None)
    text = f"an alias of {aliased}" if aliased is not None else f"rows of {other}"
    return JobValueError(
        f"where= is about {text}, not of {name} alone; put them into"
        f" a subquery, e.g. {name}.id.in_(select(...)), or use .has() of a relationship"
    )

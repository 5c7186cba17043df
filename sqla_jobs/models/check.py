"""What a job class must not declare; checked before anything is mapped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from sqla_jobs._core.options import KEYWORDS, RAW_KIND, problem_of, unknown
from sqla_jobs.errors import JobDefinitionError
from sqla_jobs.models.annotations import own_annotations
from sqla_jobs.models.columns import COLUMN_NAMES

RESERVED = COLUMN_NAMES | {
    *("delay", "hold_for", "on_conflict", "duplicate_of"),
    *("Archived", "Attempt", "Idempotency", "Queue", "Runner"),
}
"""Attributes of every job that no subclass may declare."""

MAX_IDENTIFIER = 63
"""Bytes; what PostgreSQL cuts names at, the shortest of the databases."""

LONGEST_SUFFIX = "_finished_v1_idx"
KEY_SUFFIX = "_job_fkey"


def check_bases(cls: type[Any]) -> None:
    """
    Refuse a pydantic model, which SQLModel's classes are.

    Raises:
        JobDefinitionError: If it is one.
    """
    if any("__pydantic_decorators__" in vars(base) for base in cls.__mro__[1:]):
        raise JobDefinitionError(
            f"{cls.__name__} is a pydantic model; JobMixin needs a declarative base."
            " With SQLModel: class Base(DeclarativeBase): metadata = SQLModel.metadata,"
            f" and class {cls.__name__}(JobMixin, Base)"
        )


def check_names(cls: type[Any]) -> None:
    """
    Refuse an attribute named like one of JobMixin.

    On the root class those of the application's Base and mixins are overridden: a Base
    with an ``id`` of its own is common.

    Raises:
        JobDefinitionError: If there is one.
    """
    declared = {*vars(cls), *own_annotations(cls)} & RESERVED
    for mixin in _mixins(cls):
        for name in sorted({*vars(mixin), *own_annotations(mixin)} & RESERVED):
            _raise_reserved(mixin, name, f"{cls.__name__} can do without the mixin")
    if "__tablename__" in vars(cls) and hasattr(cls, "__jobs__"):
        declared -= {"id"}  # the key of a table of the subclass's own
    for name in sorted(declared):
        _raise_reserved(cls, name)


def check_root(cls: type[Any]) -> None:
    """
    Check a class that makes a job table.

    Raises:
        JobDefinitionError: If it has no table name, or a kind.
    """
    name = cls.__name__
    table_name = getattr(cls, "__tablename__", None)
    if not table_name:
        raise JobDefinitionError(
            f"{name} has no __tablename__; give it one to make a job table, or"
            " __abstract__ = True to make a template"
        )
    check_table_name(name, table_name, LONGEST_SUFFIX)
    for key in ("kind", "aliases"):
        if key in cls.__job_keywords__:
            raise JobDefinitionError(
                f"{name} makes a job table, so it has no {key}; give it to a subclass"
            )


def check_table_name(owner: str, name: str, suffix: str) -> None:
    """
    Check that *name*, with the suffix of an index or constraint, is not cut.

    Raises:
        JobDefinitionError: If it would be: two cut names may be the same. Or if it
            has a "%", which drivers and DDL take for a placeholder, or what is no text.
    """
    if problem := problem_of("channel", name[:MAX_IDENTIFIER]):
        raise JobDefinitionError(f"{owner}.__tablename__ = {name!r} {problem}")
    if "%" in name:
        raise JobDefinitionError(
            f"{owner}.__tablename__ = {name!r} has a '%'; call it something else"
        )
    size, most = len(name.encode()), MAX_IDENTIFIER - len(suffix)
    if size > most:
        raise JobDefinitionError(
            f"{owner}.__tablename__ = {name!r} has {size} bytes; at most {most} are"
            f" possible, since a name such as {name + suffix!r} is made from it and"
            f" databases take {MAX_IDENTIFIER} bytes"
        )


def check_key(cls: type[Any], key: Iterable[str]) -> None:
    """
    Check that the primary key of a job table is its id alone.

    Raises:
        JobDefinitionError: If the Base or a mixin adds to it.
    """
    if others := sorted({*key} - {"id"}):
        raise JobDefinitionError(
            f"the primary key of {cls.__name__} would be id and {' and '.join(others)};"
            " a job's is id alone: make it of a Base without that column, or write"
            f" {others[0]} = None in {cls.__name__}"
        )


def check_job(cls: type[Any]) -> None:
    """
    Check the kind, aliases, relationships and keywords of a job class.

    Raises:
        JobDefinitionError: If a kind is taken or reserved, a relationship unknown, or
            a keyword is one of root classes.
    """
    _check_of_root(cls)
    given, taken = cls.__job_options__, cls.__jobs__.kinds
    kinds = (given.kind, *given.aliases)
    if RAW_KIND in kinds:
        raise JobDefinitionError(
            f"{cls.__name__}: the kind {RAW_KIND!r} is that of jobs without a class;"
            " give it another kind="
        )
    for i, kind in enumerate(kinds):
        other = cls if kind in kinds[:i] else taken.get(kind)
        if other is not None:
            raise JobDefinitionError(
                f"kind {kind!r} would belong to two classes:"
                f" {_full_name(other)} and {_full_name(cls)}; give one another kind="
            )
    for name in given.load:
        if not hasattr(cls, name):
            known = (n for n in dir(cls) if not n.startswith("_"))
            text = unknown("relationship in load", name, known)
            raise JobDefinitionError(f"{cls.__name__}: {text}")


def _check_of_root(cls: type[Any]) -> None:
    root = cls.__jobs__.root
    for base in cls.__mro__:
        above = base in root.__mro__
        if not above and "notify" in vars(base).get("__job_keywords__", {}):
            raise JobDefinitionError(
                f"{base.__name__}: notify= holds for a whole job table; give it to"
                f" {root.__name__}, which makes the table"
            )


def _mixins(cls: type[Any]) -> list[type[Any]]:
    """Return what a subclass of a root inherits from, other than by its root."""
    if not hasattr(cls, "__jobs__"):
        return []
    known = cls.__jobs__.root.__mro__
    return [
        base
        for base in cls.__mro__[1:]
        if base not in known and "__job_keywords__" not in vars(base)
    ]


def _raise_reserved(cls: type[Any], name: str, hint: str = "") -> NoReturn:
    if not hint and name in KEYWORDS:
        hint = f"for a default write class {cls.__name__}(..., {name}=...)"
    raise JobDefinitionError(
        f"{cls.__name__}.{name} would hide the attribute {name!r} that every job has;"
        f" {hint or 'give it another name'}"
    )


def _full_name(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"

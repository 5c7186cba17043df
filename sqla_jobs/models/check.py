"""What a job class must not declare; checked before anything is mapped."""

from __future__ import annotations

from typing import Any, NoReturn

from sqla_jobs._core.options import KEYWORDS, unknown
from sqla_jobs.errors import JobDefinitionError
from sqla_jobs.models.annotations import own_annotations
from sqla_jobs.models.columns import COLUMN_NAMES

RESERVED = COLUMN_NAMES | {"delay", "Attempt", "Queue", "Runner"}
"""Attributes of every job that no subclass may declare."""


def check_names(cls: type[Any]) -> None:
    """
    Refuse an attribute named like one of JobMixin.

    Raises:
        JobDefinitionError: If there is one.
    """
    declared = {*vars(cls), *own_annotations(cls)} & RESERVED
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
    if not getattr(cls, "__tablename__", None):
        raise JobDefinitionError(
            f"{name} has no __tablename__; give it one to make a job table, or"
            " __abstract__ = True to make a template"
        )
    for key in ("kind", "aliases"):
        if key in cls.__job_keywords__:
            raise JobDefinitionError(
                f"{name} makes a job table, so it has no {key}; give it to a subclass"
            )


def check_job(cls: type[Any]) -> None:
    """
    Check the kind, aliases and relationships of a job class.

    Raises:
        JobDefinitionError: If a kind is taken, or a relationship unknown.
    """
    given, taken = cls.__job_options__, cls.__jobs__.kinds
    kinds = (given.kind, *given.aliases)
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


def _raise_reserved(cls: type[Any], name: str) -> NoReturn:
    hint = "give it another name"
    if name in KEYWORDS:
        hint = f"for a default write class {cls.__name__}(..., {name}=...)"
    raise JobDefinitionError(
        f"{cls.__name__}.{name} would hide the attribute {name!r} that every job has;"
        f" {hint}"
    )


def _full_name(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"

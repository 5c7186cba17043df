"""What makes a job unique: its own key, or one that its class computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ClauseElement, Column, inspect
from sqlalchemy.orm import Mapper

from sqla_jobs._core.options import unknown
from sqla_jobs._core.unique import computed_key
from sqla_jobs.errors import JobDefinitionError, JobValueError
from sqla_jobs.models.arg import args_of

_COMPUTED = "_computed_key"
"""In an instance: the key that its last flush computed, which is no given one."""


def check_unique(mapper: Mapper[Any], cls: type[Any]) -> None:
    """
    Check that the names in the class keyword *unique* are known.

    Raises:
        JobDefinitionError: If one is no argument or column.
    """
    columns = set(mapper.columns.keys())
    known = {"args", *columns, *args_of(cls)}
    for name in cls.__job_options__.unique:
        if name in known:
            continue
        text = unknown("name in unique", name, known)
        if hasattr(cls, name):
            text = f"unique={name!r} is no column; name a foreign key, or an Arg"
        raise JobDefinitionError(f"{cls.__name__}: {text}")


def policy_of(job: Any) -> str:
    """Return what happens when a live job has the key of the new *job*."""
    policy: str = job._on_conflict or type(job).__job_options__.on_conflict
    return policy


def unique_key_of(cls: type[Any], row: Mapping[str, Any]) -> str | None:
    """
    Return the unique key of a new *row* of *cls*, by attribute name; None if none.

    Raises:
        JobValueError: If it is an SQL expression, or made of what is not known yet.
    """
    given = row.get("unique_key")
    if isinstance(given, ClauseElement):
        raise JobValueError(
            f"{cls.__name__}.unique_key is an SQL expression, but it is looked up"
            " before the INSERT; give a plain text"
        )
    if given is not None and given != row.get(_COMPUTED):
        return str(given)
    names = cls.__job_options__.unique
    if not names:
        return given
    try:
        parts = {name: _part(cls, row, name) for name in names}
        return computed_key(cls.__job_options__.kind, parts)
    except JobValueError as exc:
        raise JobValueError(f"{cls.__name__}: {exc}") from None


def set_key(job: Any, key: str) -> None:
    """Write the key into the new *job*; remember whether it was computed."""
    if job.__dict__.get("unique_key") != key:
        job.unique_key = key
        job._computed_key = key


def value_of(cls: type[Any], row: Mapping[str, Any], name: str) -> Any:
    """
    Return what column *name* of a new *row* will hold.

    Raises:
        JobValueError: If that is not known before the INSERT.
    """
    column = inspect(cls).columns[name]
    value = _related(cls, row, column) if column.foreign_keys else None
    if value is None:
        value = row.get(name)
    if value is None:
        value = _default(column, name)
    if isinstance(value, ClauseElement):
        raise JobValueError(
            f"{name!r} is an SQL expression, not known before the INSERT;"
            " give a plain value, or unique_key="
        )
    return value


def _part(cls: type[Any], row: Mapping[str, Any], name: str) -> Any:
    payload = row.get("payload")
    if isinstance(payload, ClauseElement):
        raise JobValueError("unique= needs a payload that is no SQL expression")
    if name == "args":
        return payload
    if name in args_of(cls):
        return (payload or {}).get(name)
    return value_of(cls, row, name)


def _default(column: Column[Any], name: str) -> Any:
    default: Any = column.default
    if default is not None and default.is_scalar:
        return default.arg
    if default is None and column.server_default is None:
        return None
    raise JobValueError(
        f"{name!r} has no value yet, as its default comes with the INSERT; set it, or"
        " give unique_key="
    )


def _related(cls: type[Any], row: Mapping[str, Any], column: Column[Any]) -> Any:
    """Return the foreign key that a relationship in *row* will fill in."""
    for relation in inspect(cls).relationships:
        target = row.get(relation.key)
        remote = dict(relation.local_remote_pairs or ()).get(column)
        if target is None or remote is None or relation.uselist:
            continue
        key = inspect(target).mapper.get_property_by_column(remote).key
        value = getattr(target, key)
        if value is None:
            raise JobValueError(
                f"the key of its {relation.key!r} is not known before the flush, but"
                " the unique key is made of it; add it and call session.flush() before"
                " you add the job, or give unique_key="
            )
        return value
    return None

"""Making a job class: what happens before and after SQLAlchemy maps it."""

from __future__ import annotations

import inspect
from typing import Any

from sqlalchemy import BigInteger, ForeignKey
from sqlalchemy.orm import MappedAsDataclass, Mapper, mapped_column, registry
from sqlalchemy.sql.elements import conv

from sqla_jobs._core import options
from sqla_jobs.models.columns import add_indexes, add_storage, job_columns
from sqla_jobs.models.inspect import JobTables
from sqla_jobs.models.kinds import KindMap
from sqla_jobs.models.support import (
    AttemptRow,
    QueueRow,
    RunnerRow,
    attempts_table,
    map_row,
    queues_table,
    runners_table,
)


def prepare(cls: type[Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """
    Prepare *cls* for mapping; return the keywords that others' bases take.

    Raises:
        JobDefinitionError: If the declaration is wrong; nothing is mapped then.
    """
    others = _foreign_keywords(cls)
    rest = {k: v for k, v in keywords.items() if k in others}
    own = {k: v for k, v in keywords.items() if k not in others}
    cls.__job_keywords__ = options.checked(cls.__name__, own)
    cls.__job_options__ = _merged_options(cls)
    if is_template(cls):
        return rest
    if parent_of(cls) is None:
        _prepare_root(cls)
    else:
        _prepare_job(cls)
    return rest | _dataclass_keywords(cls)


def is_template(cls: type[Any]) -> bool:
    """Return whether *cls* only carries keywords and attributes for its subclasses."""
    mapped = isinstance(getattr(cls, "registry", None), registry)
    return not mapped or bool(cls.__dict__.get("__abstract__"))


def parent_of(cls: type[Any]) -> type[Any] | None:
    """Return the nearest mapped job class above *cls*."""
    for base in cls.__mro__[1:]:
        if "__mapper__" in base.__dict__ and hasattr(base, "__job_options__"):
            return base
    return None


def finish(mapper: Mapper[Any], cls: type[Any]) -> None:
    """Complete a class that SQLAlchemy has mapped."""
    if mapper.inherits is None:
        _finish_root(mapper, cls)
    else:
        _finish_job(mapper, cls)


def _foreign_keywords(cls: type[Any]) -> set[str]:
    found: set[str] = set()
    for base in cls.__mro__[1:]:
        hook = base.__dict__.get("__init_subclass__")
        if isinstance(hook, classmethod) and base.__name__ != "JobMixin":
            found.update(inspect.signature(hook.__func__).parameters)
    return found - {"cls", "kw", "kwargs"}


def _merged_options(cls: type[Any]) -> options.ClassOptions:
    given = [base.__dict__.get("__job_keywords__", {}) for base in cls.__mro__]
    return options.merged(cls.__name__, given)


def _is_dataclass_base(cls: type[Any]) -> bool:
    return issubclass(cls, MappedAsDataclass)


def _dataclass_keywords(cls: type[Any]) -> dict[str, Any]:
    # JobMixin has a constructor, a repr and identity equality of its own.
    given = {"init": False, "repr": False, "eq": False}
    return given if _is_dataclass_base(cls) else {}


def _prepare_root(cls: type[Any]) -> None:
    for name, column in job_columns().items():
        setattr(cls, name, column)
    cls.__mapper_args__ = {
        **getattr(cls, "__mapper_args__", {}),
        "polymorphic_on": "kind",
        "version_id_col": cls.lease_token.column,
        "version_id_generator": False,
        "eager_defaults": False,
    }


def _prepare_job(cls: type[Any]) -> None:
    joined = "__tablename__" in cls.__dict__
    if joined:
        _inject_key(cls)
    else:
        cls.__tablename__ = None
    cls.__mapper_args__ = {
        **cls.__dict__.get("__mapper_args__", {}),
        "polymorphic_identity": cls.__job_options__.kind,
        "polymorphic_load": "selectin" if joined else "inline",
    }


def _inject_key(cls: type[Any]) -> None:
    if "id" in cls.__dict__:
        return
    parent: Any = parent_of(cls)
    cls.id = mapped_column(
        BigInteger,
        ForeignKey(
            parent.__mapper__.local_table.c.id,
            ondelete="CASCADE",
            name=conv(f"{cls.__tablename__}_job_fkey"),
        ),
        primary_key=True,
        autoincrement=False,
        sort_order=-100,
    )


def _finish_root(mapper: Mapper[Any], cls: type[Any]) -> None:
    table: Any = mapper.local_table
    add_indexes(table)
    add_storage(table)
    tables = JobTables(
        cls, table, attempts_table(table), queues_table(table), runners_table(table)
    )
    cls.__jobs__ = tables
    reg = mapper.registry
    cls.Attempt = map_row(reg, AttemptRow, tables.attempts, owner=cls)
    cls.Queue = map_row(reg, QueueRow, tables.queues, owner=cls)
    cls.Runner = map_row(reg, RunnerRow, tables.runners, owner=cls)
    mapper.polymorphic_map = KindMap(mapper)


def _finish_job(mapper: Mapper[Any], cls: type[Any]) -> None:
    given = cls.__job_options__
    for kind in (given.kind, *given.aliases):
        cls.__jobs__.kinds[kind] = cls
        mapper.polymorphic_map[kind] = mapper

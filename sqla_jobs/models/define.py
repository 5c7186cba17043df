"""Making a job class: what happens before and after SQLAlchemy maps it."""

from __future__ import annotations

import inspect
from contextlib import suppress
from typing import Any

from sqlalchemy import BigInteger, ForeignKey
from sqlalchemy.orm import MappedAsDataclass, Mapper, mapped_column, registry
from sqlalchemy.sql.elements import conv

from sqla_jobs import handlers
from sqla_jobs._core import options
from sqla_jobs.models import check
from sqla_jobs.models.annotations import generic_name, own_annotations, scope_of
from sqla_jobs.models.arg import Arg
from sqla_jobs.models.columns import FIRST, add_indexes, add_storage, job_columns
from sqla_jobs.models.inspect import JobTables
from sqla_jobs.models.kinds import KindMap
from sqla_jobs.models.shared import relax_columns, share_columns
from sqla_jobs.models.support import (
    ArchiveRow,
    AttemptRow,
    IdempotencyRow,
    QueueRow,
    RunnerRow,
    archive_table,
    attempts_table,
    idempotency_table,
    map_row,
    queues_table,
    runners_table,
)
from sqla_jobs.models.unique import check_unique


def prepare(cls: type[Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """
    Prepare *cls* for mapping; return the keywords that its other bases take.

    Raises:
        JobDefinitionError: If the declaration is wrong; nothing is mapped then.
    """
    check.check_bases(cls)
    others = _keywords_of_others(cls)
    rest = {k: v for k, v in keywords.items() if k in others}
    own = {k: v for k, v in keywords.items() if k not in others}
    cls.__job_keywords__ = options.checked(cls.__name__, own)
    cls.__job_options__ = _merged_options(cls)
    scope = scope_of(cls)
    check.check_names(cls)
    handlers.check_run(cls)
    _prepare_args(cls, scope)
    if is_template(cls):
        return rest
    if (parent := parent_of(cls)) is None:
        _prepare_root(cls)
    else:
        _prepare_job(cls, parent, scope)
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


def _keywords_of_others(cls: type[Any]) -> set[str]:
    found: set[str] = set()
    for base in cls.__mro__[1:]:
        hook = base.__dict__.get("__init_subclass__")
        # JobMixin's own takes any keyword; its __mapper_cls__ tells it apart.
        if isinstance(hook, classmethod) and "__mapper_cls__" not in vars(base):
            named = inspect.signature(hook.__func__).parameters.values()
            found.update(p.name for p in list(named)[1:] if p.kind != p.VAR_KEYWORD)
    return found


def _merged_options(cls: type[Any]) -> options.ClassOptions:
    given = [base.__dict__.get("__job_keywords__", {}) for base in cls.__mro__]
    return options.merged(cls.__name__, given)


def _prepare_args(cls: type[Any], scope: dict[str, Any]) -> None:
    for name, annotation in own_annotations(cls).items():
        if generic_name(annotation) == "Arg" and name not in cls.__dict__:
            one = Arg[Any]()
            one.__set_name__(cls, name)
            setattr(cls, name, one)
    for one in list(vars(cls).values()):
        if isinstance(one, Arg):
            with suppress(NameError):  # a name that follows later in the module
                one.resolve(scope)


def _dataclass_keywords(cls: type[Any]) -> dict[str, Any]:
    # JobMixin has a constructor, a repr and identity equality of its own.
    given = {"init": False, "repr": False, "eq": False}
    return given if issubclass(cls, MappedAsDataclass) else {}


def _prepare_root(cls: type[Any]) -> None:
    check.check_root(cls)
    for name, column in job_columns().items():
        setattr(cls, name, column)
    cls.__mapper_args__ = {
        **getattr(cls, "__mapper_args__", {}),
        "polymorphic_on": "kind",
        "version_id_col": cls.lease_token.column,
        "version_id_generator": False,
        "eager_defaults": False,
    }


def _prepare_job(cls: type[Any], parent: Any, scope: dict[str, Any]) -> None:
    check.check_job(cls)
    joined = "__tablename__" in cls.__dict__
    if joined:
        check.check_table_name(cls.__name__, cls.__tablename__, check.KEY_SUFFIX)
        _inject_key(cls, parent)
    else:
        # None overrules a Base that names tables after their classes.
        cls.__tablename__ = None
        share_columns(cls, parent.__mapper__.local_table, scope)
    cls.__mapper_args__ = {
        **cls.__dict__.get("__mapper_args__", {}),
        "polymorphic_identity": cls.__job_options__.kind,
        "polymorphic_load": "selectin" if joined else "inline",
    }


def _inject_key(cls: type[Any], parent: Any) -> None:
    if "id" in cls.__dict__:
        return
    cls.id = mapped_column(
        BigInteger,
        ForeignKey(
            parent.__mapper__.local_table.c.id,
            ondelete="CASCADE",
            name=conv(f"{cls.__tablename__}{check.KEY_SUFFIX}"),
        ),
        primary_key=True,
        autoincrement=False,
        sort_order=FIRST,
    )


def _finish_root(mapper: Mapper[Any], cls: type[Any]) -> None:
    table: Any = mapper.local_table
    check.check_key(cls, table.primary_key.columns.keys())
    add_indexes(table)
    add_storage(table)
    tables = JobTables(
        cls,
        table,
        attempts=attempts_table(table),
        queues=queues_table(table),
        runners=runners_table(table),
        idempotency=idempotency_table(table),
        archive=archive_table(table),
    )
    cls.__jobs__ = tables
    reg = mapper.registry
    cls.Attempt = map_row(reg, AttemptRow, tables.attempts, owner=cls)
    cls.Queue = map_row(reg, QueueRow, tables.queues, owner=cls)
    cls.Runner = map_row(reg, RunnerRow, tables.runners, owner=cls)
    cls.Idempotency = map_row(reg, IdempotencyRow, tables.idempotency, owner=cls)
    cls.Archived = map_row(reg, ArchiveRow, tables.archive, owner=cls)
    cls.__job_required__ = frozenset[str]()
    mapper.polymorphic_map = KindMap(mapper)


def _finish_job(mapper: Mapper[Any], cls: type[Any]) -> None:
    given = cls.__job_options__
    for kind in (given.kind, *given.aliases):
        cls.__jobs__.kinds[kind] = cls
        mapper.polymorphic_map[kind] = mapper
    cls.__job_required__ = cls.__job_required__ | relax_columns(mapper)
    check_unique(mapper, cls)

"""Columns that single-table subclasses add to the hot table they share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Table
from sqlalchemy.orm import MappedColumn, Mapper, mapped_column
from sqlalchemy.types import NullType

from sqla_jobs.errors import JobDefinitionError
from sqla_jobs.models.annotations import (
    generic_name,
    inner_type,
    own_annotations,
    without_none,
)
from sqla_jobs.models.inspect import JobTables


def share_columns(cls: type[Any], table: Table, scope: dict[str, Any]) -> None:
    """
    Let the columns that *cls* declares use those of the same name in *table*.

    Raises:
        JobDefinitionError: If such a column has another type.
    """
    annotations = own_annotations(cls)
    for name, annotation in annotations.items():
        if name not in cls.__dict__ and generic_name(annotation) == "Mapped":
            setattr(cls, name, mapped_column())
    for name, value in list(vars(cls).items()):
        if isinstance(value, MappedColumn):
            python = _python_type(cls, annotations.get(name), scope)
            _share(cls, name, value, table=table, python=python)
        elif isinstance(value, Column):
            _share_plain(cls, name, value, table=table)


def relax_columns(mapper: Mapper[Any]) -> frozenset[str]:
    """
    Make the columns that a single-table class added nullable.

    Rows of the other kinds have no value there. Returns the attributes that a job of
    this class must have nevertheless.
    """
    required = set(_new_required(mapper))
    if mapper.single:
        for name in required | _with_python_default(mapper):
            mapper.columns[name].nullable = True
    return frozenset(required)


def _new_columns(mapper: Mapper[Any]) -> list[tuple[str, Column[Any]]]:
    parent: Any = mapper.inherits
    return [
        (name, column)
        for name, column in mapper.columns.items()
        if name not in parent.columns and not column.primary_key
    ]


def _new_required(mapper: Mapper[Any]) -> list[str]:
    return [
        name
        for name, column in _new_columns(mapper)
        if not column.nullable and column.server_default is None and not column.default
    ]


def _with_python_default(mapper: Mapper[Any]) -> set[str]:
    return {
        name
        for name, column in _new_columns(mapper)
        if not column.nullable and column.server_default is None and column.default
    }


def _python_type(cls: type[Any], annotation: Any, scope: dict[str, Any]) -> Any:
    if generic_name(annotation) != "Mapped":
        return None
    try:
        return without_none(inner_type(annotation, cls, scope))
    except NameError:
        return None  # SQLAlchemy will say so, in its own words


def _share(
    cls: type[Any], name: str, value: MappedColumn[Any], *, table: Table, python: Any
) -> None:
    # The public keyword use_existing_column=True sets the same flag.
    value._use_existing_column = True
    column = value.column
    tables: JobTables = cls.__jobs__
    existing = table.c.get(column.name or name)
    if existing is None:
        tables.column_types[(table, column.name or name)] = (cls, python)
        return
    owner, known = tables.column_types.get((table, existing.name), (cls, None))
    if not _same_type(existing, column) or (known and python and known != python):
        _raise_two_types(cls, name, existing=existing, owner=owner)


def _share_plain(
    cls: type[Any], name: str, column: Column[Any], *, table: Table
) -> None:
    existing = table.c.get(column.name or name)
    if existing is None:
        return
    if not _same_type(existing, column):
        _raise_two_types(cls, name, existing=existing, owner=cls)
    setattr(cls, name, existing)


def _same_type(existing: Column[Any], column: Column[Any]) -> bool:
    if isinstance(column.type, NullType):  # from the annotation or the foreign key
        return _targets(column) <= _targets(existing) or not column.foreign_keys
    return repr(column.type) == repr(existing.type)


def _targets(column: Column[Any]) -> set[str]:
    return {fk.target_fullname for fk in column.foreign_keys}


def _raise_two_types(
    cls: type[Any], name: str, *, existing: Column[Any], owner: type[Any]
) -> None:
    made = "" if owner is cls else f" that {owner.__name__} declares"
    raise JobDefinitionError(
        f"{cls.__name__}.{name} has another type than the column {existing}{made}"
        f" ({existing.type!r}); one column has one type, so give it another name"
    )

"""The comparator: what Alembic's autogenerate cannot see of a job table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, Table

from sqla_jobs._dialects import JobDialect, dialect_of
from sqla_jobs._store.differences import name_of, other_where, where_of
from sqla_jobs.errors import UnsupportedDialect
from sqla_jobs.models.columns import is_hot, storage_changes

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.operations.ops import ModifyTableOps


def compare_job_table(  # noqa: PLR0917 - the signature is Alembic's
    context: AutogenContext,
    changes: ModifyTableOps,
    schema: str | None,
    name: str,
    found: Table | None,
    table: Table | None,
) -> None:
    """Add what brings the storage parameters and index predicates up to date."""
    if table is None or not is_hot(table) or context.connection is None:
        return
    try:
        dialect = dialect_of(context.connection)
    except UnsupportedDialect:
        return
    if found is not None:
        _compare_predicates(context, changes, (found, table), dialect)
    elif "postgresql_with" in table.dialect_kwargs:
        return  # a part of CREATE TABLE
    _compare_storage(context.connection, changes, table, dialect, new=found is None)


def _compare_storage(
    connection: Connection,
    changes: ModifyTableOps,
    table: Table,
    dialect: JobDialect,
    *,
    new: bool,
) -> None:
    from sqla_jobs.alembic.operations import StorageOp

    name = name_of(table, connection)
    has = None if new else dialect.read_tables(connection, [name]).get(name)
    stored = has.storage if has else {}
    changed = storage_changes(table, stored)
    if changed:
        changes.ops.append(StorageOp.of(table, changed))


def _compare_predicates(
    context: AutogenContext,
    changes: ModifyTableOps,
    tables: tuple[Table, Table],
    dialect: JobDialect,
) -> None:
    from alembic.operations.ops import CreateIndexOp, DropIndexOp

    found, table = tables
    has = {index.name: index for index in found.indexes}
    ops = [op for op in changes.ops if isinstance(op, CreateIndexOp | DropIndexOp)]
    made_anew = {op.index_name for op in ops}
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        old = has.get(index.name)
        if (
            old is not None
            and index.name not in made_anew
            and other_where(index, where_of(old), dialect)
            and context.run_object_filters(index, index.name, "index", False, old)
        ):
            changes.ops.append(DropIndexOp.from_index(old))
            changes.ops.append(CreateIndexOp.from_index(index))

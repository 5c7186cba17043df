"""COPY through psycopg, on the connection and in the transaction SQLAlchemy holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import BindParameter, Column, Connection, Table, bindparam
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

Processor = Callable[[Any], Any] | None


def can_copy(connection: Connection, columns: Sequence[Column[Any]]) -> bool:
    """
    Return whether COPY stores what an INSERT of *columns* would.

    It does not when a type wraps its values in SQL.
    """
    dialect = connection.dialect
    if dialect.driver not in ("psycopg", "psycopg_async"):
        return False
    probe: BindParameter[Any] = bindparam("probe")
    impls = (column.type.dialect_impl(dialect) for column in columns)
    return all(impl.bind_expression(probe) is None for impl in impls)


def copy_rows(
    connection: Connection,
    columns: Sequence[Column[Any]],
    rows: Iterable[Sequence[Any]],
) -> int:
    """
    Write *rows* by COPY inside the connection's transaction; return how many.

    The text format, since the server then reads each value as its column's type, as it
    does in an INSERT; the binary format was no faster, JSON being text in both.

    Raises:
        sqlalchemy.exc.DBAPIError: As for any statement, e.g. an IntegrityError.
    """
    statement = _statement(connection, columns)
    processors = [c.type.dialect_impl(connection.dialect) for c in columns]
    values = _bound(rows, [p.bind_processor(connection.dialect) for p in processors])
    driver = connection.connection.driver_connection
    try:
        if connection.dialect.is_async:
            return int(await_only(_write_async(driver, statement, values)))
        return _write(driver, statement, values)
    except Exception as exc:
        raise _wrapped(exc, statement, connection) from exc


def _statement(connection: Connection, columns: Sequence[Column[Any]]) -> str:
    table: Any = columns[0].table
    prepare = connection.dialect.identifier_preparer
    names = ", ".join(map(prepare.format_column, columns))
    return f"COPY {_table_name(connection, table)} ({names}) FROM STDIN"


def _table_name(connection: Connection, table: Table) -> str:
    prepare = connection.dialect.identifier_preparer
    name = prepare.format_table(table, use_schema=False)
    # Differs from the table's own under schema_translate_map.
    schema = connection.schema_for_object(table)
    return f"{prepare.quote_schema(schema)}.{name}" if schema else name


def _bound(
    rows: Iterable[Sequence[Any]], processors: Sequence[Processor]
) -> Iterator[Sequence[Any]]:
    changing = [(i, p) for i, p in enumerate(processors) if p is not None]
    if not changing:
        yield from rows
    for row in rows:
        values = list(row)
        for i, process in changing:
            values[i] = process(values[i])
        yield values


def _write(driver: Any, statement: str, values: Iterable[Sequence[Any]]) -> int:
    with driver.cursor() as cursor:
        with cursor.copy(statement) as copy:
            for row in values:
                copy.write_row(row)
        return int(cursor.rowcount)


async def _write_async(
    driver: Any, statement: str, values: Iterable[Sequence[Any]]
) -> int:
    async with driver.cursor() as cursor:
        async with cursor.copy(statement) as copy:
            for row in values:
                await copy.write_row(row)
        return int(cursor.rowcount)


def _wrapped(exc: Exception, statement: str, connection: Connection) -> BaseException:
    """Return *exc* as the error that SQLAlchemy raises for a statement."""
    dialect = connection.dialect
    base = dialect.loaded_dbapi.Error
    if not isinstance(exc, base):
        return exc
    driver: Any = connection.connection.dbapi_connection
    lost = dialect.is_disconnect(exc, driver, None)
    if lost:
        connection.invalidate(exc)
    return DBAPIError.instance(
        statement, None, exc, base, connection_invalidated=lost, dialect=dialect
    )

"""COPY through the driver, on the connection and in the transaction of SQLAlchemy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from typing import Any

from sqlalchemy import (
    BindParameter,
    Column,
    Connection,
    LargeBinary,
    Table,
    bindparam,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import TypeEngine
from sqlalchemy.util import await_only

from sqla_jobs._dialects import pg_copy_text

Processor = Callable[[Any], Any] | None
Lines = Iterable[Sequence[Any]]


def can_copy(connection: Connection, columns: Sequence[Column[Any]]) -> bool:
    """
    Return whether COPY stores what an INSERT of *columns* would.

    It does not when a type wraps its values in SQL.
    """
    dialect = connection.dialect
    if dialect.driver not in _WRITERS:
        return False
    probe: BindParameter[Any] = bindparam("probe")
    impls = _impls(connection, columns)
    return all(impl.bind_expression(probe) is None for impl in impls)


def copy_rows(
    connection: Connection, columns: Sequence[Column[Any]], rows: Lines
) -> bool:
    """
    Write *rows* by COPY inside the connection's transaction.

    The text format, since the server then reads each value as its column's type, as it
    does in an INSERT; the binary format was no faster, JSON being text in both.

    Returns:
        False if the driver cannot write one of the values; then nothing was written.

    Raises:
        sqlalchemy.exc.DBAPIError: As for any statement, e.g. an IntegrityError.
    """
    try:
        return _WRITERS[connection.dialect.driver](connection, columns, rows)
    except Exception as exc:
        statement = _statement(connection, columns)
        raise _wrapped(exc, statement, connection) from exc


def _statement(connection: Connection, columns: Sequence[Column[Any]]) -> str:
    table: Any = columns[0].table
    prepare = connection.dialect.identifier_preparer
    names = ", ".join(map(prepare.format_column, columns))
    statement = f"COPY {_table_name(connection, table)} ({names}) FROM STDIN"
    # Doubled for a statement with parameters, which this is not.
    return statement.replace("%%", "%") if prepare._double_percents else statement


def _table_name(connection: Connection, table: Table) -> str:
    prepare = connection.dialect.identifier_preparer
    name = prepare.format_table(table, use_schema=False)
    # Differs from the table's own under schema_translate_map.
    schema = connection.schema_for_object(table)
    return f"{prepare.quote_schema(schema)}.{name}" if schema else name


def _bound(rows: Lines, processors: Sequence[Processor]) -> Lines:
    changing = [(i, p) for i, p in enumerate(processors) if p is not None]
    if not changing:
        yield from rows
    for row in rows:
        values = list(row)
        for i, process in changing:
            values[i] = process(values[i])
        yield values


def _impls(
    connection: Connection, columns: Sequence[Column[Any]]
) -> list[TypeEngine[Any]]:
    return [column.type.dialect_impl(connection.dialect) for column in columns]


def _psycopg(
    connection: Connection, columns: Sequence[Column[Any]], rows: Lines
) -> bool:
    """Write values of any type: psycopg adapts them itself."""
    statement = _statement(connection, columns)
    driver: Any = connection.connection.driver_connection
    dialect = connection.dialect
    impls = _impls(connection, columns)
    values = _bound(rows, [impl.bind_processor(dialect) for impl in impls])
    if connection.dialect.is_async:
        await_only(_psycopg_async(driver, statement, values))
        return True
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for row in values:
            copy.write_row(row)
    return True


async def _psycopg_async(driver: Any, statement: str, values: Lines) -> None:
    async with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for row in values:
            await copy.write_row(row)


def _psycopg2(
    connection: Connection, columns: Sequence[Column[Any]], rows: Lines
) -> bool:
    data = _text(connection, columns, rows)
    if data is None:
        return False
    statement = f"{_statement(connection, columns)} WITH (ENCODING 'UTF8')"
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor:
        cursor.copy_expert(statement, BytesIO(data))
    return True


def _asyncpg(
    connection: Connection, columns: Sequence[Column[Any]], rows: Lines
) -> bool:
    data = _text(connection, columns, rows)
    if data is None:
        return False
    driver: Any = connection.connection.driver_connection
    if not driver.is_in_transaction():
        # SQLAlchemy sends BEGIN with the first statement that it sees.
        connection.exec_driver_sql("SELECT 1")
    table: Any = columns[0].table
    copying = driver.copy_to_table(
        table.name,
        source=memoryview(data),  # bytes would be a path
        columns=[column.name for column in columns],
        schema_name=connection.schema_for_object(table),
        format="text",
        encoding="utf-8",
    )
    try:
        await_only(copying)
    except Exception as exc:
        # Not the server's word: a connection lost in the middle is left unusable.
        if getattr(exc, "sqlstate", None) is None:
            driver.terminate()
        raise
    return True


def _text(
    connection: Connection, columns: Sequence[Column[Any]], rows: Lines
) -> bytes | None:
    impls = _impls(connection, columns)
    writers = pg_copy_text.writers(impls)
    if writers is None:
        return None
    # Bytes stay bytes, and no driver's object.
    processors = [
        None
        if isinstance(impl, LargeBinary)
        else impl.bind_processor(connection.dialect)
        for impl in impls
    ]
    return pg_copy_text.encoded(writers, _bound(rows, processors))


_WRITERS: dict[str, Callable[[Connection, Sequence[Column[Any]], Lines], bool]] = {
    "psycopg": _psycopg,
    "psycopg_async": _psycopg,
    "psycopg2": _psycopg2,
    "asyncpg": _asyncpg,
}


def _wrapped(exc: Exception, statement: str, connection: Connection) -> BaseException:
    """Return *exc* as the error that SQLAlchemy raises for a statement."""
    dialect = connection.dialect
    base = dialect.loaded_dbapi.Error
    driver: Any = connection.connection.dbapi_connection
    exc = _translated(exc, driver)
    if not isinstance(exc, base):
        return exc
    lost = dialect.is_disconnect(exc, driver, None)
    if lost:
        connection.invalidate(exc)
    return DBAPIError.instance(
        statement, None, exc, base, connection_invalidated=lost, dialect=dialect
    )


def _translated(exc: Exception, driver: Any) -> Exception:
    # asyncpg's own errors are no DBAPI's; SQLAlchemy's adapter knows which they are.
    handle = getattr(driver, "_handle_exception", None)
    if handle is not None and not isinstance(exc, DBAPIError):
        try:
            handle(exc)
        except Exception as translated:  # noqa: BLE001 - that is its answer
            return translated
    return exc

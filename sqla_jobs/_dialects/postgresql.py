"""PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Executable,
    FromClause,
    Insert,
    Select,
    Table,
    Text,
    case,
    cast,
    column,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlalchemy.exc import DataError, DBAPIError, DisconnectionError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.types import TypeEngine

from sqla_jobs._dialects import pg_catalog, pg_copy, pg_session
from sqla_jobs._dialects.base import FoundTable, JobDialect, bind

# Class 40: transaction rollback (manual, appendix A).
CONFLICTS = frozenset({"40001", "40P01"})
SNAPSHOTS = frozenset({"REPEATABLE READ", "SERIALIZABLE"})
READ_ONLY = "25006"  # a standby, also one that was the primary
# Class 08 and 57P: no connection, shutdown, starting up; 25006: a standby;
# 53300: too many connections; the others: what a server may answer to a connection
# while it is set up, which psycopg reports without a SQLSTATE.
OUTAGES = frozenset(
    {
        *("57P01", "57P02", "57P03", READ_ONLY, "53300"),
        *("28000", "28P01", "3D000", "55000"),
    }
)
# Data exceptions and broken constraints.
REFUSALS = ("22", "23")


class PostgreSQLDialect(JobDialect):
    """PostgreSQL 14 or later."""

    name = "postgresql"
    skip_locked = listen_notify = copy = name_locks = True

    def clock(self) -> ColumnElement[datetime]:
        """
        Return the start of this statement.

        now() would be the start of the transaction, wrong for a lease renewed at the
        end of a long one; clock_timestamp() is volatile, which no index scan can use.
        """
        return func.statement_timestamp()

    def seconds(self, count: ColumnElement[float]) -> ColumnElement[Any]:
        """Return an interval of *count* seconds."""
        return func.make_interval(0, 0, 0, 0, 0, 0, count)

    def json(self, text: ColumnElement[str]) -> ColumnElement[Any]:
        """Return JSON text as jsonb."""
        return cast(text, JSONB)

    def json_object(
        self, base: ColumnElement[Any], parts: Mapping[str, ColumnElement[Any]]
    ) -> ColumnElement[Any]:
        """Return ``base || jsonb_build_object(...)``."""
        made = base
        names = list(parts)
        # A function takes at most 100 arguments.
        for start in range(0, len(names), 50):
            pairs = ((literal(n, Text()), parts[n]) for n in names[start : start + 50])
            flat = (part for pair in pairs for part in pair)
            made = made.op("||", return_type=JSONB())(func.jsonb_build_object(*flat))
        return made

    def rows(self, name: str, columns: Mapping[str, TypeEngine[Any]]) -> FromClause:
        """Return ``unnest(:a, :b, ...) AS name(a, b, ...)``."""
        arrays = [bind(key, ARRAY(type_)) for key, type_ in columns.items()]
        made = [column(key, type_) for key, type_ in columns.items()]
        return func.unnest(*arrays).table_valued(*made).render_derived(name=name)

    def lock(
        self,
        stmt: Select[*tuple[Any, ...]],
        *,
        skip: bool,
        of: Any = None,
        delete: bool = False,
    ) -> Select[*tuple[Any, ...]]:
        """Return *stmt* with FOR NO KEY UPDATE, which foreign keys to jobs survive."""
        return stmt.with_for_update(key_share=not delete, skip_locked=skip, of=of)

    def upsert(
        self,
        table: Table,
        values: Mapping[str, Any],
        *,
        key: str | Sequence[str],
        change: Mapping[str, Any],
        returning: Sequence[ColumnElement[Any]] = (),
    ) -> Executable:
        """Return INSERT ... ON CONFLICT (key) DO UPDATE."""
        keys = [key] if isinstance(key, str) else list(key)
        stmt = insert(table).values(**values)
        made = stmt.on_conflict_do_update(index_elements=keys, set_=dict(change))
        return made.returning(*returning) if returning else made

    def insert_new(
        self, table: Table, *, key: str, where: ColumnElement[bool]
    ) -> Insert:
        """Return INSERT ... ON CONFLICT (key) WHERE ... DO NOTHING."""
        stmt = insert(table)
        return stmt.on_conflict_do_nothing(index_elements=[key], index_where=where)

    def notify(self, channel: str) -> Executable:
        """Return a NOTIFY without payload: any role may listen."""
        return select(func.pg_notify(channel, ""))

    def lock_names(self) -> Executable:
        """Return a SELECT of advisory locks; unnest() keeps the order of the arrays."""
        name = self.rows("name", {"keys": BigInteger(), "shared": Boolean()}).c
        # void, which no CASE knows
        alone = cast(func.pg_advisory_xact_lock(name["keys"]), Text)
        shared = cast(func.pg_advisory_xact_lock_shared(name["keys"]), Text)
        return select(func.count(case((name.shared, shared), else_=alone)))

    def can_copy(self, connection: Connection, columns: Sequence[Column[Any]]) -> bool:
        """Return whether the driver has COPY, and the types are plain values to it."""
        return pg_copy.can_copy(connection, columns)

    def copy_rows(
        self,
        connection: Connection,
        columns: Sequence[Column[Any]],
        rows: Iterable[Sequence[Any]],
    ) -> bool:
        """Bulk-load *rows* by COPY inside the connection's transaction."""
        return pg_copy.copy_rows(connection, columns, rows)

    def read_tables(
        self, connection: Connection, names: Iterable[str]
    ) -> dict[str, FoundTable]:
        """Return what the catalogue has of the tables."""
        return pg_catalog.read_tables(connection, names)

    def other_types(
        self, connection: Connection, pairs: Sequence[tuple[str, str]]
    ) -> set[tuple[str, str]]:
        """Return the pairs that the server does not take for one type."""
        return pg_catalog.other_types(connection, pairs)

    def same_predicate(self, code: str, found: str) -> bool:
        """Return whether they differ only in what PostgreSQL adds on printing."""
        plain = pg_catalog.plain_predicate
        return plain(code) == plain(found)

    def keeps_snapshot(self, connection: Connection) -> bool:
        """Return whether the isolation level is above READ COMMITTED."""
        level = connection.get_execution_options().get("isolation_level")
        # The engine's, else what the server said at the first connect.
        level = level or connection.default_isolation_level or ""
        return level.upper().replace("_", " ") in SNAPSHOTS

    def watch_client(self) -> Sequence[ColumnElement[Any]]:
        """Return ``set_config(...)`` of keepalives for the rest of the transaction."""
        return pg_session.watch_client()

    def begin_claims(self, connection: Any) -> None:
        """Set the session's isolation level and planner settings."""
        pg_session.begin_claims(connection)

    def is_conflict(self, exc: BaseException) -> bool:
        """Return whether *exc* is a serialization failure or a deadlock."""
        return self.sqlstate(exc) in CONFLICTS

    def is_outage(self, exc: BaseException) -> bool:
        """Return whether *exc* says that the database is away or read-only."""
        if isinstance(exc, DisconnectionError | PoolTimeout | OSError):
            return True
        if getattr(exc, "connection_invalidated", False):
            return True
        state = self.sqlstate(exc)
        if state is None:
            return _lost_before_an_answer(exc)
        return state in OUTAGES or state.startswith("08")

    def is_refusal(self, exc: BaseException) -> bool:
        """Return whether *exc* says that a value cannot be stored."""
        state = self.sqlstate(exc)
        if state is not None:
            return state.startswith(REFUSALS)
        orig = exc.orig if isinstance(exc, StatementError) else exc
        # What a driver refuses before it asks; asyncpg says so by the cause.
        causes = (orig, getattr(orig, "__cause__", None))
        return isinstance(exc, DataError) or any(
            isinstance(cause, ValueError | OverflowError) for cause in causes
        )

    def is_demoted(self, exc: BaseException) -> bool:
        """Return whether *exc* is the refusal of a standby."""
        return self.sqlstate(exc) == READ_ONLY

    def limit_session(
        self, connection: Any, raw: Any, limit: timedelta, *, silence: timedelta
    ) -> bool:
        """Set the session's timeouts and keepalives, unless a pooler is between."""
        return pg_session.limit_session(connection, raw, limit, silence=silence)

    def limit_transaction(
        self, connection: Any, limit: timedelta, *, silence: timedelta
    ) -> None:
        """Set the transaction's timeouts."""
        pg_session.limit_transaction(connection, limit, silence=silence)

    def limit_commit(self, milliseconds: ColumnElement[str]) -> ColumnElement[Any]:
        """Return ``set_config(...)`` for the rest of the transaction."""
        return pg_session.limit_commit(milliseconds)


def _lost_before_an_answer(exc: BaseException) -> bool:
    if isinstance(exc, DBAPIError) and type(exc.orig).__name__ == "OperationalError":
        return True  # psycopg's: no server answered, so that there is no SQLSTATE
    # asyncpg, when it loses a connection while it sets it up, trips over its own
    # state; SQLAlchemy translates that in statements, but not while it connects.
    orig = exc.orig if isinstance(exc, DBAPIError) else exc
    return type(orig).__name__ == "InternalClientError"

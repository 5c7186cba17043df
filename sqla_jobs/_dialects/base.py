"""The contract of a job dialect; methods return SQL fragments, nothing more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    Executable,
    FromClause,
    Insert,
    Select,
    Table,
    bindparam,
    func,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import TypeEngine

T = TypeVar("T")
BIND_PREFIX = "_sqlj_"  # a column of the application may be named p_now


def bind(
    name: str, type_: TypeEngine[T], *, optional: bool = False
) -> BindParameter[T]:
    """
    Return the bound parameter *name*.

    Its key gets a prefix: a key that is a column's name would join an UPDATE's SET.
    """
    if optional:
        return bindparam(BIND_PREFIX + name, None, type_=type_)
    return bindparam(BIND_PREFIX + name, type_=type_)


@dataclass(frozen=True)
class FoundColumn:
    """A column that the database has; *type* in its own words."""

    type: str
    nullable: bool


@dataclass(frozen=True)
class FoundIndex:
    """An index, or unique constraint, that the database has."""

    keys: tuple[tuple[str, bool], ...]  # name or expression, and whether descending
    unique: bool
    valid: bool
    predicate: str | None


@dataclass(frozen=True)
class FoundTable:
    """What the database has of one table."""

    storage: Mapping[str, str]
    foreign_keys: frozenset[str]  # the columns of each, sorted, joined by ","
    columns: dict[str, FoundColumn] = field(default_factory=dict)
    indexes: dict[str, FoundIndex] = field(default_factory=dict)


class JobDialect(ABC):
    """One database: its capabilities and the fragments that only it can word."""

    name: str
    skip_locked: bool = False
    listen_notify: bool = False
    copy: bool = False
    name_locks: bool = False

    def now(self) -> ColumnElement[datetime]:
        """Return the database's clock, or the bound ``now`` of a test."""
        given = bind("now", DateTime(timezone=True), optional=True)
        return func.coalesce(given, self.clock())

    @abstractmethod
    def clock(self) -> ColumnElement[datetime]:
        """Return the start of this statement; it must be usable in an index scan."""

    @abstractmethod
    def seconds(self, count: ColumnElement[float]) -> ColumnElement[Any]:
        """Return an interval of *count* seconds."""

    @abstractmethod
    def json(self, text: ColumnElement[str]) -> ColumnElement[Any]:
        """Return JSON text as the type of the JSON columns."""

    @abstractmethod
    def json_object(
        self, base: ColumnElement[Any], parts: Mapping[str, ColumnElement[Any]]
    ) -> ColumnElement[Any]:
        """Return the JSON object *base* with the keys of *parts* added."""

    @abstractmethod
    def rows(self, name: str, columns: Mapping[str, TypeEngine[Any]]) -> FromClause:
        """Return a table made of one bound array per column."""

    @abstractmethod
    def lock(
        self,
        stmt: Select[*tuple[Any, ...]],
        *,
        skip: bool,
        of: Any = None,
        delete: bool = False,
    ) -> Select[*tuple[Any, ...]]:
        """
        Return *stmt* locking its rows against other writers, not against readers.

        With *delete* also against rows that come to refer to them.
        """

    @abstractmethod
    def upsert(
        self,
        table: Table,
        values: Mapping[str, Any],
        *,
        key: str | Sequence[str],
        change: Mapping[str, Any],
        returning: Sequence[ColumnElement[Any]] = (),
    ) -> Executable:
        """
        Return an INSERT that makes *change* to the row that already has *key*.

        It returns *returning* of the row as it is then.
        """

    @abstractmethod
    def insert_new(
        self, table: Table, *, key: str, where: ColumnElement[bool]
    ) -> Insert:
        """
        Return an INSERT that leaves out rows whose *key* another row has.

        Args:
            where: Which rows the unique index on *key* is about.
        """

    @abstractmethod
    def notify(self, channel: str) -> Executable:
        """Return the statement that wakes the runners listening on *channel*."""

    @abstractmethod
    def lock_names(self) -> Executable:
        """
        Return the statement that waits for locks that the transaction's end frees.

        It takes them in the order of two bound arrays: ``keys``, signed and of 64 bits,
        and ``shared``, whether others may have that lock at the same time.
        """

    def can_copy(self, connection: Connection, columns: Sequence[Column[Any]]) -> bool:
        """Return whether `copy_rows` would store what an INSERT of *columns* does."""
        return False

    @abstractmethod
    def copy_rows(
        self,
        connection: Connection,
        columns: Sequence[Column[Any]],
        rows: Iterable[Sequence[Any]],
    ) -> bool:
        """
        Bulk-load *rows* inside the connection's transaction.

        Returns:
            False if one of the values needs an INSERT; then nothing was written.
        """

    @abstractmethod
    def read_tables(
        self, connection: Connection, names: Iterable[str]
    ) -> dict[str, FoundTable]:
        """Return the tables that the database has, by their names quoted for SQL."""

    @abstractmethod
    def other_types(
        self, connection: Connection, pairs: Sequence[tuple[str, str]]
    ) -> set[tuple[str, str]]:
        """Return those *pairs* of a type's DDL and a found type that differ."""

    @abstractmethod
    def same_predicate(self, code: str, found: str) -> bool:
        """Return whether an index predicate of ours is the one that was found."""

    def keeps_snapshot(self, connection: Connection) -> bool:
        """
        Return whether transactions of *connection* cannot write what is newer.

        That is, rows which others have changed since the first statement. Asks nobody.
        """
        return False

    def watch_client(self) -> Sequence[ColumnElement[Any]]:
        """Return what lets the server notice a vanished client in this transaction."""
        return ()

    @abstractmethod
    def begin_claims(self, connection: Any) -> None:
        """
        Prepare the session of the DBAPI *connection*, which is in autocommit, for
        claims and sweeps: READ COMMITTED, and one plan for each statement, whatever
        the tables hold by then.
        """

    @abstractmethod
    def is_conflict(self, exc: BaseException) -> bool:
        """Return whether *exc* is a serialization failure or a deadlock."""

    @abstractmethod
    def is_outage(self, exc: BaseException) -> bool:
        """Return whether *exc* says that the database is away or read-only."""

    @abstractmethod
    def is_refusal(self, exc: BaseException) -> bool:
        """Return whether *exc* says that a value cannot be stored."""

    @abstractmethod
    def is_demoted(self, exc: BaseException) -> bool:
        """Return whether *exc* says that the server takes writes no longer."""

    @abstractmethod
    def limit_session(
        self, connection: Any, raw: Any, limit: timedelta, *, silence: timedelta
    ) -> bool:
        """
        Bound what a new connection of ours may wait for, on the server's side.

        Commits. Nothing is set, and the answer is False, where a pooler stands between:
        the session belongs to others too; then `limit_transaction` bounds each
        transaction.

        Args:
            connection: The DBAPI connection, as SQLAlchemy adapts it.
            raw: The driver's own.
            limit: The longest statement.
            silence: The longest time between two of a transaction.
        """

    @abstractmethod
    def limit_transaction(
        self, connection: Any, limit: timedelta, *, silence: timedelta
    ) -> None:
        """Do the same for the transaction that begins on the DBAPI *connection*."""

    @abstractmethod
    def limit_commit(self, milliseconds: ColumnElement[str]) -> ColumnElement[Any]:
        """
        Return an expression for the last statement before a COMMIT: if that does not
        follow in time, because the client is gone, the server ends the transaction.
        """

    @staticmethod
    def sqlstate(exc: BaseException) -> str | None:
        """Return the SQLSTATE of a driver error, if there is one."""
        orig = exc.orig if isinstance(exc, DBAPIError) else exc
        state = getattr(orig, "sqlstate", None) or getattr(orig, "pgcode", None)
        fields = orig.args[0] if orig is not None and orig.args else None
        if isinstance(fields, dict):  # pg8000's: the fields of the server's message
            state = fields.get("C")
        return state if isinstance(state, str) else None

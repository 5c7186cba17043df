"""Enqueue many jobs at once: from rows by INSERT or COPY, or from a query."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import (
    Column,
    Executable,
    Table,
    Text,
    insert,
    inspect,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapper, Session

from sqla_jobs._core.states import JobState
from sqla_jobs._core.unique import Refusal
from sqla_jobs._dialects import JobDialect, dialect_of
from sqla_jobs._dialects.base import bind
from sqla_jobs._store import wake
from sqla_jobs._store.base import connection_of, raise_if_missing
from sqla_jobs._store.channels import refuse_ordered
from sqla_jobs._store.times import read_clock, times
from sqla_jobs._store.unique import raise_duplicate, take_keys
from sqla_jobs.errors import JobValueError, PayloadError
from sqla_jobs.models import JobTables, job_tables, validate
from sqla_jobs.models.arg import dump_payload
from sqla_jobs.models.construct import construct, plan_of
from sqla_jobs.models.unique import policy_of, unique_key_of

PAYLOAD = bind("payload", Text())
CHUNK = 1_000
COPY_THRESHOLD = 100


class Row(NamedTuple):
    """A checked row: its columns by attribute name, its payload as JSON text."""

    number: int
    columns: dict[str, Any]
    payload: str
    delay: timedelta | None
    hold_for: timedelta | None
    on_conflict: str


def enqueue_many(
    session: Session,
    job_class: type[Any],
    rows: Iterable[Mapping[str, Any]],
    *,
    chunk: int = CHUNK,
    copy_threshold: int | None = COPY_THRESHOLD,
) -> int:
    """
    Enqueue a job for each of *rows* and return how many; does not commit.

    Each row holds keywords of the class's constructor and is checked as that does,
    but no object is made: there are no relationships (give the foreign key), and no
    ``@validates`` of the class is called. *rows* may be a generator; only *chunk* of
    them are in memory. Inside a chunk, rows with other keys may be stored in another
    order than given, so ordered jobs are refused. Runners are woken once, at the
    commit. Jobs that are left out for their unique key are not counted.

    With many rows COPY is used, inside the session's transaction like any statement.
    INSERT is used for columns whose default or type needs SQL or a Python function, for
    classes that have a table of their own, and for drivers without COPY, or for values
    they cannot write: psycopg copies all types, asyncpg and psycopg2 the common ones.

    Args:
        session: With an AsyncSession: ``await session.run_sync(enqueue_many, ...)``.
        job_class: A job class, not the root.
        chunk: Most rows per statement, 1 or more. Default 1,000.
        copy_threshold: Rows from which COPY is used; None never uses it. Default 100.

    Raises:
        TypeError: If a keyword is unknown or an `Arg` is missing; names the row.
        JobValueError: If a value cannot be used; names the row.
        PayloadError: If an `Arg` is of the wrong type; names the row.
        DuplicateJob: If a live job has the unique key of a row and its policy is to
            raise; names the row. Nothing of its chunk is enqueued; the transaction
            stays usable.
        MissingTables: If the job tables are not there.
    """
    check_session(session, "enqueue_many")
    if chunk < 1:
        raise JobValueError(f"chunk must be 1 or more, got {chunk}")
    tables = job_tables(job_class)
    writer = _Writer(session, tables, _shape_of(job_class))
    flush_before(session)
    given = enumerate(rows)
    first = list(islice(given, copy_threshold or 0))
    writer.copies = copy_threshold is not None and len(first) >= copy_threshold
    count = 0
    for part in _chunks(first, given, chunk):
        made = [writer.shape.row(i, values) for i, values in part]
        # A full chunk is hardly the last one.
        count += writer.write(made, more=len(part) == chunk)
    return count


def check_session(session: Any, verb: str) -> None:
    """
    Refuse what is no Session.

    Raises:
        JobValueError: If *session* is none, such as an AsyncSession.
    """
    if not isinstance(session, Session):
        raise JobValueError(
            f"{verb}() needs a Session, got {type(session).__name__}; with an"
            f" AsyncSession write `await session.run_sync({verb}, ...)`"
        )


def flush_before(session: Session) -> None:
    """Flush as a query would: the new rows may refer to pending objects."""
    if session.autoflush:
        session.flush()


def _chunks(
    first: list[tuple[int, Any]], rest: Iterator[tuple[int, Any]], size: int
) -> Iterator[list[tuple[int, Any]]]:
    while first:
        part, first = first[:size], first[size:]
        if len(part) < size:
            part += islice(rest, size - len(part))
        yield part
    while part := list(islice(rest, size)):
        yield part


class _Shape:
    """A job class as rows: columns by attribute name, and its constructor's rules."""

    def __init__(self, job_class: type[Any]) -> None:
        mapper: Mapper[Any] = inspect(job_class)
        tables = job_tables(job_class)
        self.job_class = job_class
        self.kind: str = job_class.__job_options__.kind
        self.table: Table = mapper.local_table  # type: ignore[assignment]
        attributes: Any = mapper.column_attrs
        self.columns: dict[str, Column[Any]] = {
            attribute.key: attribute.columns[0] for attribute in attributes
        }
        self.known = frozenset({*self.columns, "_delay", "_hold_for", "_on_conflict"})
        # COPY knows no defaults of SQLAlchemy's: plain values are filled in here, for
        # functions and SQL it is an INSERT.
        columns = self.columns.items()
        given: dict[str, Any] = {
            n: c.default for n, c in columns if c.default is not None
        }
        self.defaults = {n: d.arg for n, d in given.items() if d.is_scalar}
        self.computed = given.keys() - self.defaults.keys()
        self.required: frozenset[str] = frozenset(job_class.__job_required__)
        self.path = f"{job_class.__name__}.payload"
        self.kind_column: Column[Any] = tables.table.c.kind
        # The payload is JSON text already.
        self.payload_text: Column[Any] = Column("payload", Text())
        # What the constructor fills in place of an instance: it stands in for the class
        # in names, options and limits, without the cost of an object of the ORM.
        self.stand_in = type(
            job_class.__name__,
            (),
            {
                "__job_plan__": plan_of(job_class),
                "__job_options__": job_class.__job_options__,
                "_delay": None,
                "_hold_for": None,
                "_on_conflict": None,
            },
        )

    def row(self, index: int, values: Any) -> Row:
        """
        Return row *index*, checked.

        Raises:
            TypeError: As the constructor does.
            JobValueError: As the constructor and the flush do.
        """
        try:
            return self._row(index, values)
        except PayloadError as exc:
            raise exc.within(f"row {index}") from exc
        except (TypeError, JobValueError) as exc:
            raise type(exc)(f"row {index}: {exc}") from exc

    def _row(self, index: int, values: Any) -> Row:
        if not isinstance(values, Mapping):
            raise TypeError(
                "expected a mapping of the constructor's keywords, got a"
                f" {type(values).__name__}; for instances use session.add_all"
            )
        job = self.stand_in()
        construct(job, values)  # type: ignore[arg-type]
        row = vars(job)
        if not self.known.issuperset(row):
            self._raise_no_column(row)
        if row.get("ordered"):
            refuse_ordered(self.job_class, "enqueue_many")
        for name in self.required:
            if row.get(name) is None:
                validate(self.job_class(**values))
        for name, default in self.defaults.items():
            row.setdefault(name, default)
        text = dump_payload(self.job_class, row["payload"], self.path)
        policy = policy_of(job)
        delay, hold_for = row.pop("_delay", None), row.pop("_hold_for", None)
        row.pop("_on_conflict", None)
        if (key := unique_key_of(self.job_class, row)) is not None:
            row["unique_key"] = key
        return Row(index, row, text, delay, hold_for, policy)

    def _raise_no_column(self, row: Mapping[str, Any]) -> None:
        name = next(name for name in row if name not in self.known)
        raise JobValueError(
            f"{self.job_class.__name__}.{name} is no column; enqueue_many takes columns"
            " and Args: instead of a related object give its foreign key"
        )


_shapes: WeakKeyDictionary[type[Any], _Shape] = WeakKeyDictionary()


def _shape_of(job_class: type[Any]) -> _Shape:
    shape = _shapes.get(job_class)
    if shape is None:
        shape = _shapes[job_class] = _Shape(job_class)
    return shape


class _Writer:
    """Writes rows of one class in one session."""

    def __init__(self, session: Session, tables: JobTables, shape: _Shape) -> None:
        self.session, self.tables, self.shape = session, tables, shape
        self.copies = False

    def write(self, rows: Sequence[Row], *, more: bool) -> int:
        """
        Write a chunk, one statement for each set of columns; return how many rows.

        Raises:
            DuplicateJob: If the unique key of a row is taken, and nothing else to do.
        """
        rows = self._keep_unique(rows, more=more)
        self._set_times(rows)
        groups: dict[frozenset[str], list[Row]] = {}
        for row in rows:
            groups.setdefault(frozenset(row.columns), []).append(row)
        for group in groups.values():
            try:
                self._write_group(group)
            except DBAPIError as exc:
                raise_if_missing(exc, self.tables)
                raise
        available = JobState.AVAILABLE.value
        if any(row.columns["state"] == available for row in rows):
            wake.note(self.session, self.tables)
        return len(rows)

    def _keep_unique(self, rows: Sequence[Row], *, more: bool) -> Sequence[Row]:
        """Return the rows that are to be inserted."""
        keyed = [row for row in rows if "unique_key" in row.columns]
        if not keyed:
            return rows
        wanted = [(row.columns["unique_key"], row.on_conflict) for row in keyed]
        found = take_keys(self.session, self.tables, wanted, more=more)
        if isinstance(found, Refusal):
            raise_duplicate(f"row {keyed[found.number].number}", found)
        gone = {keyed[number].number for number in found}
        return [row for row in rows if row.number not in gone]

    def _set_times(self, rows: Sequence[Row]) -> None:
        timed = [row for row in rows if row.delay is not None or row.hold_for]
        if timed:
            now = read_clock(self.session, self.tables)
            for row in timed:
                columns, delay, hold_for = row.columns, row.delay, row.hold_for
                try:
                    made = times(columns, now, delay=delay, hold_for=hold_for)
                except JobValueError as exc:
                    raise JobValueError(f"row {row.number}: {exc}") from exc
                columns.update(made)

    def _write_group(self, rows: Sequence[Row]) -> None:
        if self.shape.table is not self.tables.table:
            # The ORM brings the new keys into the class's own table.
            with self.session.no_autoflush:
                values = [row.columns for row in rows]
                self.session.execute(insert(self.shape.job_class), values)
            return
        connection = connection_of(self.session, self.tables)
        names = [name for name in rows[0].columns if name != "payload"]
        columns = [self.shape.columns[name] for name in names]
        dialect = dialect_of(connection)
        copied = [self.shape.kind_column, self.shape.payload_text, *columns]
        copies = self.copies and self.shape.computed <= rows[0].columns.keys()
        if copies and dialect.can_copy(connection, copied):
            kind, pick = self.shape.kind, itemgetter(*names)
            lines = ((kind, row.payload, *pick(row.columns)) for row in rows)
            if dialect.copy_rows(connection, copied, lines):
                return
        keys = [(name, column.key) for name, column in zip(names, columns, strict=True)]
        params = [
            {PAYLOAD.key: row.payload, **{key: row.columns[n] for n, key in keys}}
            for row in rows
        ]
        connection.execute(self._insert(dialect), params)

    def _insert(self, dialect: JobDialect) -> Executable:
        payload = dialect.json(PAYLOAD)
        kind = self.shape.kind
        return insert(self.shape.table).values(kind=kind, payload=payload)

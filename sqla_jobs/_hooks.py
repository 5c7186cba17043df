"""
Session listeners: check new jobs, keep their INSERTs in batches, wake the runners.

Importing this module registers them for all sessions; they cost a session without jobs
about a microsecond per flush and commit. Nothing here needs a call by the application,
except `install`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import BindParameter, Connection, Insert, Table, event, inspect
from sqlalchemy.orm import (
    Mapper,
    ORMExecuteState,
    PassiveFlag,
    Session,
    SessionTransaction,
    object_session,
    sessionmaker,
)
from sqlalchemy.orm.attributes import get_history
from sqlalchemy.sql.visitors import iterate

from sqla_jobs._core.states import JobState
from sqla_jobs._store import wake
from sqla_jobs._store.channels import is_ordered, lock_channels, refuse_ordered
from sqla_jobs._store.times import set_times
from sqla_jobs._store.unique import add_key, keep_unique
from sqla_jobs.errors import JobValueError
from sqla_jobs.models import JobMixin, JobTables, job_tables, validate
from sqla_jobs.models.arg import args_of

_Maker = TypeVar("_Maker")

_CHECKED = "sqla_jobs.checked"


@event.listens_for(Session, "before_flush")
def _before_flush(session: Session, context: Any, instances: Any) -> None:
    session.info.pop(_CHECKED, None)
    new = [obj for obj in session.new if isinstance(obj, JobMixin)]
    if new:
        _enqueue(session, new)
    for obj in session.dirty:
        if isinstance(obj, JobMixin) and _payload_changed(obj):
            validate(obj)


@event.listens_for(JobMixin, "before_insert", propagate=True)
def _before_insert(mapper: Any, connection: Connection, job: JobMixin) -> None:
    # Jobs that a before_flush listener of the application adds come after ours.
    session = object_session(job)
    if session is not None and id(job) not in session.info.get(_CHECKED, ()):
        validate(job)
        add_key(job)
        lock_channels(connection, [job])
        set_times(connection, [job])


@event.listens_for(Session, "after_flush")
def _after_flush(session: Session, context: Any) -> None:
    session.info.pop(_CHECKED, None)
    for tables in {job_tables(obj) for obj in session.new if _is_available(obj)}:
        wake.note(session, tables)
    wake.send(session)


@event.listens_for(Session, "before_commit")
def _before_commit(session: Session) -> None:
    wake.begin_commit(session)


@event.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    wake.end_commit(session)


@event.listens_for(Session, "after_soft_rollback")
def _after_soft_rollback(session: Session, previous: SessionTransaction) -> None:
    wake.forget(session, previous)


@event.listens_for(Session, "after_transaction_end")
def _after_transaction_end(session: Session, ended: SessionTransaction) -> None:
    # Session.close() ends a transaction without the events of a rollback.
    if ended.parent is None:
        wake.forget(session, ended)


def _is_available(obj: object) -> bool:
    # Without a state the row has the server's default.
    available = JobState.AVAILABLE.value
    return isinstance(obj, JobMixin) and vars(obj).get("state", available) == available


def _payload_changed(job: JobMixin) -> bool:
    history = get_history(job, "payload", passive=PassiveFlag.PASSIVE_NO_INITIALIZE)
    return bool(history.has_changes())


def _enqueue(session: Session, jobs: Sequence[JobMixin]) -> None:
    for job in jobs:
        validate(job)
    jobs = keep_unique(session, jobs)
    lock_channels(session, jobs)
    set_times(session, jobs)
    _regroup(jobs)
    session.info[_CHECKED] = frozenset(map(id, jobs))


def _regroup(jobs: Sequence[JobMixin]) -> None:
    """
    Let jobs with the same columns follow each other; ordered ones stay as added.

    A flush sends consecutive rows with the same parameters as one INSERT, so mixed jobs
    would cost one statement each. Foreign keys are not affected: the order inside one
    table's rows is all that changes.
    """
    if len(jobs) < 2:
        return
    seen: dict[Any, int] = {}
    ranked = sorted(jobs, key=lambda job: _rank(job, seen))
    # Not the old numbers: they may be double once an object was expunged.
    for number, job in enumerate(ranked):
        inspect(job).insert_order = number


def _rank(job: JobMixin, seen: dict[Any, int]) -> tuple[int, int, int]:
    """Return the ranks of the row's columns, its class, and its own table's columns."""
    if is_ordered(job):
        return -1, -1, -1
    shape = _shape_of(type(job))
    row = vars(job)
    keys = (
        (shape.root_columns, shape.root_optional.intersection(row)),
        type(job),
        shape.optional.intersection(row),
    )
    first, second, third = (seen.setdefault(key, len(seen)) for key in keys)
    return first, second, third


class _Shape:
    """Which columns every INSERT of a class names, and which only if they are set."""

    def __init__(self, mapper: Mapper[Any]) -> None:
        table = mapper.base_mapper.local_table
        keys = {attr.key: attr.columns[-1] for attr in mapper.column_attrs}
        self.root_columns = frozenset(k for k, c in keys.items() if c.table is table)
        self.optional = frozenset(k for k, c in keys.items() if _is_optional(c))
        self.root_optional = self.optional & self.root_columns


def _is_optional(column: Any) -> bool:
    return bool(
        column.primary_key
        or column.server_default is not None
        or column.default is not None
        or column.type.should_evaluate_none
    )


_shapes: WeakKeyDictionary[type[Any], _Shape] = WeakKeyDictionary()


def _shape_of(cls: type[Any]) -> _Shape:
    shape = _shapes.get(cls)
    if shape is None:
        shape = _shapes[cls] = _Shape(inspect(cls))
    return shape


def install(target: _Maker) -> _Maker:
    """
    Watch each raw ``session.execute(insert(SendInvoice), rows)`` of a sessionmaker.

    Such an INSERT bypasses the constructor: SQLAlchemy drops keys that are no columns,
    and runners are not woken. With this, unknown keys and ordered jobs, which it could
    not keep in order, raise `JobValueError` when it is executed, and runners are woken
    at the commit. `enqueue_many` needs none of it.

    Args:
        target: A sessionmaker, async_sessionmaker, scoped session, or a Session or
            AsyncSession class. Returned as it is; a second call changes nothing.

    Raises:
        JobValueError: If it is something else.
    """
    watched = _sync_target(target)
    if watched not in _installed:
        _installed.add(watched)
        event.listen(watched, "do_orm_execute", _watch_insert)
    return target


# Not event.contains(): it goes by id(), which a later class may have again.
_installed: WeakSet[type[Session]] = WeakSet()


def _sync_target(target: Any) -> Any:
    made = getattr(target, "session_factory", target)
    cls = getattr(made, "class_", made)
    sync = getattr(made, "kw", {}).get("sync_session_class")
    sync = sync or getattr(cls, "sync_session_class", None)
    if sync is None:
        if not (isinstance(cls, type) and issubclass(cls, Session)):
            raise JobValueError(f"install({target!r}) needs a sessionmaker")
        return cls
    if isinstance(sync, sessionmaker):
        return sync.class_
    if made is cls:
        return sync
    if sync not in _installed:
        # Its own class, so that other sessions of the application stay as they are.
        sync = type(sync.__name__, (sync,), {})
        made.configure(sync_session_class=sync)
    return sync


def _watch_insert(execution: ORMExecuteState) -> None:
    if not execution.is_insert:
        return
    target = execution.statement.entity_description  # type: ignore[attr-defined]
    entity = target.get("entity")
    if isinstance(entity, type) and issubclass(entity, JobMixin):
        _check_keys(entity, execution)
        _check_unordered(entity, execution)
        wake.note(execution.session, job_tables(entity))
    elif isinstance(target.get("table"), Table):
        tables = _tables_of(target["table"])
        if tables is not None:
            _check_unordered(tables.root, execution)
            wake.note(execution.session, tables)


def _check_keys(cls: type[JobMixin], execution: ORMExecuteState) -> None:
    given = execution.parameters
    rows = [given] if isinstance(given, Mapping) else given or ()
    mapper: Mapper[Any] = inspect(cls)
    known = {*mapper.column_attrs.keys(), *(c.key for c in mapper.columns)}
    unknown: dict[str, None] = {}
    for row in rows:
        if not row.keys() <= known:
            unknown.update(dict.fromkeys(key for key in row if key not in known))
    if unknown:
        bound = {
            part.key
            for part in iterate(cast("Insert", execution.statement))
            if isinstance(part, BindParameter)
        }
        if names := [name for name in unknown if name not in bound]:
            raise JobValueError(_unknown_text(cls, names))


def _check_unordered(cls: type[JobMixin], execution: ORMExecuteState) -> None:
    """Refuse what is ordered; what the server makes of an expression counts as such."""
    statement: Any = execution.statement
    if "ordered" in (statement._select_names or ()):
        refuse_ordered(cls, "insert")
    given = execution.parameters
    rows: list[Any] = [given] if isinstance(given, Mapping) else list(given or ())
    rows.append(statement._values or {})
    rows += (row for several in statement._multi_values for row in several)
    for row in rows:
        for key, value in row.items():
            plain = getattr(value, "value", value)
            named = getattr(key, "key", key) == "ordered"
            if named and not (plain is False or plain is None):
                refuse_ordered(cls, "insert")


def _unknown_text(cls: type[JobMixin], names: Sequence[str]) -> str:
    args = [name for name in names if name in args_of(cls)]
    listed = ", ".join(map(repr, names))
    text = f"insert({cls.__name__}): no such column: {listed}"
    if args:
        kept = ", ".join(map(repr, args))
        text += (
            f"; {kept} would be lost, since an Arg is kept in the payload: use"
            f" enqueue_many(session, {cls.__name__}, rows)"
        )
    return text


_tables: WeakKeyDictionary[Table, JobTables | None] = WeakKeyDictionary()


def _tables_of(table: Table) -> JobTables | None:
    """Return the job tables whose hot table is *table*, if it is one."""
    if table not in _tables:
        classes: list[type[Any]] = [JobMixin]
        for cls in classes:
            classes.extend(cls.__subclasses__())
        found = (getattr(cls, "__jobs__", None) for cls in classes[1:])
        _tables[table] = next((t for t in found if t and t.table is table), None)
    return _tables[table]

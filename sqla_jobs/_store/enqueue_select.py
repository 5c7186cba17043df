"""Enqueue the result of a query, in one statement and without its rows in Python."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from copy import copy
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NoReturn

from sqlalchemy import (
    ARRAY,
    CTE,
    JSON,
    Boolean,
    ColumnElement,
    DateTime,
    Executable,
    Integer,
    Interval,
    Numeric,
    Select,
    String,
    Text,
    case,
    cast,
    exists,
    func,
    insert,
    literal,
    null,
    or_,
    select,
)
from sqlalchemy import Enum as EnumType
from sqlalchemy.orm import Session
from sqlalchemy.sql.roles import SQLRole
from sqlalchemy.types import TypeEngine

from sqla_jobs._core.options import problem_of
from sqla_jobs._core.states import JobState
from sqla_jobs._dialects import JobDialect, dialect_of
from sqla_jobs._store import wake
from sqla_jobs._store.base import connection_of, execute
from sqla_jobs._store.channels import refuse_ordered
from sqla_jobs._store.enqueue import check_session, flush_before
from sqla_jobs._store.unique import holds_key, lock_all
from sqla_jobs.errors import DuplicateJob, JobValueError, PayloadError
from sqla_jobs.models import JobTables, job_tables
from sqla_jobs.models.annotations import without_none
from sqla_jobs.models.arg import Arg, dump_payload
from sqla_jobs.models.construct import Plan, construct, plan_of

AVAILABLE, SCHEDULED = JobState.AVAILABLE.value, JobState.SCHEDULED.value


def enqueue_select(
    session: Session,
    job_class: type[Any],
    query: Select[*tuple[Any, ...]],
    values: Mapping[str, Any],
) -> int:
    """
    Enqueue a job for each row of *query*, in one statement; return how many.

    *values* maps keywords of the class's constructor to SQL expressions over the query,
    or to plain values for all jobs; other columns have the class's defaults::

        enqueue_select(
            session,
            SendInvoice,
            select(Invoice).where(Invoice.sent.is_(False)),
            {"invoice_id": Invoice.id, "subject": Invoice.title, "priority": 5},
        )

    What *query* itself selects is replaced; its WHERE, joins, ORDER BY and LIMIT count.
    Runners are woken at the commit; does not commit. Nothing is enqueued when one row
    cannot be: when an `Arg` or column that must not be NULL is, or a payload is above
    the class's ``__payload_limit__``. An expression for ``run_at`` or ``delay`` makes
    the job scheduled only if it lies in the future. Relationships, ``backoff`` and
    ``payload`` take no expressions. Refused are a class with a table of its own,
    ordered jobs, whose order could not be kept, and ``hold_for``.

    With a ``unique_key``, rows whose key a live job or another row has raise, or are
    left out with ``"on_conflict": "skip"``; meanwhile no one else enqueues with a key.
    A key that the class computes is refused, since the database cannot.

    Args:
        session: With an AsyncSession: ``await session.run_sync(enqueue_select, ...)``.
        job_class: A job class, not the root.

    Raises:
        TypeError: If a name is unknown or an `Arg` without default is missing.
        JobValueError: If a value cannot be used, or a required column is NULL.
        PayloadError: If an `Arg` gets a value of the wrong type, NULL or too much.
        DuplicateJob: If a key is taken and the policy is "raise"; nothing is enqueued
            then, and the transaction stays usable.
        MissingTables: If the job tables are not there.
    """
    check_session(session, "enqueue_select")
    tables = job_tables(job_class)
    mapping = _Mapping(job_class, values)
    _check_query(job_class, query, tables)
    flush_before(session)
    dialect = dialect_of(connection_of(session, tables))
    statement = _statement(mapping, query, tables, dialect)
    if mapping.has_key:
        lock_all(session, tables)
    # Rolled back where a key is taken: what has been inserted by then is not to stay.
    raises = mapping.has_key and mapping.policy == "raise"
    with connection_of(session, tables).begin_nested() if raises else nullcontext():
        result = execute(session, tables, lambda *_: statement, {}).one()
        if result.refused:
            mapping.refuse(result.missing, result.size)
        if raises and result.rows < result.wanted:
            mapping.refuse_duplicates(result.wanted - result.rows, result.wanted)
    if result.available:
        wake.note(session, tables)
    count: int = result.rows
    return count


def _check_query(job_class: type[Any], query: Any, tables: JobTables) -> None:
    name = job_class.__name__
    if not isinstance(query, Select):
        raise JobValueError(
            f"enqueue_select({name}) needs a select(), got {type(query).__name__}; wrap"
            " another query: rows = query.subquery(), select(rows)"
        )
    if job_class.__mapper__.local_table is not tables.table:
        raise JobValueError(
            f"{name} has a table of its own, which one INSERT cannot fill; use"
            " enqueue_many"
        )


class _Mapping:
    """What `enqueue_select` was given: constants, checked, and expressions."""

    def __init__(self, job_class: type[Any], values: Mapping[str, Any]) -> None:
        self.job_class = job_class
        self.plan = plan_of(job_class)
        self.columns = {
            attr.key: attr.columns[0] for attr in job_class.__mapper__.column_attrs
        }
        values = dict(values)
        self.policy = self._policy(values)
        self.has_key = "unique_key" in values
        self.expressions = {k: v for k, v in values.items() if _is_sql(v)}
        constants = {k: v for k, v in values.items() if k not in self.expressions}
        self.constants = self._construct(constants)
        self.payload: dict[str, Any] = self.constants.pop("payload")
        self.delay: timedelta | None = self.constants.pop("_delay", None)
        if "ordered" in self.expressions or self.constants.get("ordered"):
            refuse_ordered(job_class, "enqueue_select")
        if "hold_for" in values:
            self._refuse_hold()
        for name in self.expressions:
            self._check(name)
        self._check_required()

    def _construct(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the columns that the constructor makes of the constants."""
        plan: Plan = copy(self.plan)
        given = self.expressions
        plan.defaults = [d for d in plan.defaults if d[0] not in given]
        plan.factories = {k: v for k, v in plan.factories.items() if k not in given}
        job = _stand_in(self.job_class, plan)
        for name in given.keys() - plan.args.keys() - plan.setters.keys():
            construct(_stand_in(self.job_class, plan), {name: None})
        construct(job, values)
        columns: dict[str, Any] = vars(job)
        return columns

    def _policy(self, values: dict[str, Any]) -> str:
        """Return what is to be done with rows whose key is taken."""
        cls, options = self.job_class.__name__, self.job_class.__job_options__
        given = values.pop("on_conflict", None)
        if given is not None and (problem := problem_of("on_conflict", given)):
            raise JobValueError(f"enqueue_select: on_conflict={given!r} {problem}")
        if "unique_key" not in values:
            if options.unique or given is not None:
                raise JobValueError(
                    f"enqueue_select({cls}) needs an expression for unique_key: it"
                    " computes no key, and on_conflict has no meaning without one"
                )
            return "raise"
        policy: str = given or options.on_conflict
        if policy not in {"raise", "skip"}:
            raise JobValueError(
                f"enqueue_select({cls}) cannot {policy!r} on a conflict, only 'raise'"
                " or 'skip'; use enqueue_many"
            )
        return policy

    def refuse_duplicates(self, count: int, wanted: int) -> NoReturn:
        """Raise the error for rows whose key is taken."""
        raise DuplicateJob(
            f"enqueue_select({self.job_class.__name__}): {count} of {wanted} rows have"
            " a unique_key that a live job or another row has; leave them out with"
            " on_conflict='skip'"
        )

    def _refuse_hold(self) -> NoReturn:
        raise JobValueError(
            f"enqueue_select({self.job_class.__name__}) takes no hold_for, as it"
            " returns no ids to confirm; use session.add_all"
        )

    def _check(self, name: str) -> None:
        cls = self.job_class.__name__
        if name in self.plan.args:
            _check_type(self.plan.args[name], self.expressions[name])
        elif name not in {*self.columns, "delay"} - {"backoff", "payload"}:
            raise JobValueError(
                f"{cls}.{name} takes no SQL expression in enqueue_select; give a plain"
                " value, or for a relationship its foreign key"
            )
        given = {*self.expressions, *self.constants}
        if "run_at" in given and ("delay" in given or self.delay is not None):
            raise JobValueError(f"{cls}() takes run_at= or delay=, not both")

    def _check_required(self) -> None:
        for name in self.job_class.__job_required__:
            if name not in self.expressions and self.constants.get(name) is None:
                self._raise_required(name)

    def required(self) -> list[str]:
        """Return the names whose expressions must not be NULL."""
        needed = set(self.job_class.__job_required__)
        needed |= {k for k, v in self.plan.args.items() if "null" not in v.codec.shapes}
        return [name for name in self.expressions if name in needed]

    def refuse(self, missing: str | None, size: int) -> NoReturn:
        """Raise the error for a row that cannot be enqueued."""
        cls = self.job_class
        if missing is None:
            path = f"{cls.__name__}.payload"
            raise PayloadError(
                f"{path}: a row's {size:,} bytes of JSON are above the limit of"
                f" {cls.__payload_limit__:,}; pass a key instead of the data, or raise"
                f" __payload_limit__ (bytes) on the job class"
            )
        if missing in self.plan.args:
            raise PayloadError(
                f"{cls.__name__}.{missing}: NULL in a row of the query; leave such rows"
                " out, use coalesce(), or declare it optional"
            )
        self._raise_required(missing)

    def _raise_required(self, name: str) -> NoReturn:
        cls = self.job_class.__name__
        raise JobValueError(
            f"{cls}.{name} is None, but {cls} requires it; set it, or declare it"
            f" {name}: Mapped[... | None]"
        )


def _stand_in(job_class: type[Any], plan: Plan) -> Any:
    members = {
        "__job_plan__": plan,
        "__job_options__": job_class.__job_options__,
        "_delay": None,
        "_hold_for": None,
        "_on_conflict": None,
    }
    return type(job_class.__name__, (), members)()


def _is_sql(value: Any) -> bool:
    return isinstance(value, SQLRole) or hasattr(value, "__clause_element__")


def _statement(
    mapping: _Mapping,
    query: Select[*tuple[Any, ...]],
    tables: JobTables,
    dialect: JobDialect,
) -> Executable:
    """
    Return one statement: read, check, insert if all rows pass, and count.

    The rows are read once: PostgreSQL materializes what is referred to twice.
    """
    source = _source(mapping, query)
    ready = _ready(mapping, source, dialect)
    size = func.octet_length(cast(ready.c.payload, Text()))
    limit = mapping.job_class.__payload_limit__
    refused = (
        select(ready.c["#missing"].label("missing"), size.label("size"))
        .where(or_(ready.c["#missing"].is_not(null()), size > limit))
        .limit(1)
        .cte("refused")
    )
    names = [column.key for column in ready.c if column.key != "#missing"]
    rows = select(*(ready.c[name] for name in names)).where(~exists(select(refused)))
    into = insert(tables.table)
    if mapping.has_key:
        where = holds_key(tables)
        into = dialect.insert_new(tables.table, key="unique_key", where=where)
    made = into.from_select(names, rows).returning(tables.table.c.state).cte("made")
    all_ready = select(func.count()).select_from(ready).scalar_subquery()
    wanted = all_ready if mapping.has_key else null()
    available = func.count().filter(made.c.state == AVAILABLE)
    counted = select(
        func.count().label("rows"), available.label("available")
    ).select_from(made)
    return counted.add_columns(
        exists(select(refused)).label("refused"),
        select(refused.c.missing).scalar_subquery().label("missing"),
        select(refused.c.size).scalar_subquery().label("size"),
        wanted.label("wanted"),
    )


def _source(mapping: _Mapping, query: Select[*tuple[Any, ...]]) -> CTE:
    """Return the query with the mapping's expressions as its columns."""
    # Without an expression there still has to be a row for each row.
    found = [e.label(name) for name, e in mapping.expressions.items()]
    one = literal(1).label("#row")
    return query.with_only_columns(one, *found, maintain_column_froms=True).cte(
        "source"
    )


def _ready(mapping: _Mapping, source: CTE, dialect: JobDialect) -> CTE:
    """Return the rows to insert, and which required value of each is NULL."""
    job_class, columns = mapping.job_class, mapping.columns
    values: dict[str, ColumnElement[Any]] = {
        columns[name].key: literal(value, columns[name].type)
        for name, value in mapping.constants.items()
        if value is not None
    }
    values["kind"] = literal(job_class.__job_options__.kind, Text())
    for name in mapping.expressions:
        if name in columns and name != "run_at":
            values[columns[name].key] = source.c[name]
    values["payload"] = _payload(mapping, source, dialect)
    values |= _times(mapping, source, dialect)
    missing = (
        case(
            *((source.c[name].is_(null()), name) for name in mapping.required()),
            else_=null(),
        )
        if mapping.required()
        else null()
    )
    labelled = [value.label(name) for name, value in values.items()]
    flag = cast(missing, Text()).label("#missing")
    return select(*labelled, flag).select_from(source).cte("ready")


def _times(
    mapping: _Mapping, source: CTE, dialect: JobDialect
) -> dict[str, ColumnElement[Any]]:
    """Return run_at and the state that follows from it, where they are not plain."""
    clock = dialect.clock()
    if mapping.delay is not None:
        return {"run_at": clock + literal(mapping.delay, Interval())}
    run_at: ColumnElement[Any]
    if "run_at" in mapping.expressions:
        run_at = func.coalesce(source.c.run_at, clock)
    elif "delay" in mapping.expressions:
        run_at = clock + func.coalesce(
            source.c.delay, literal(timedelta(0), Interval())
        )
    else:
        return {}
    state = case((run_at > clock, literal(SCHEDULED, Text())), else_=AVAILABLE)
    return {"run_at": run_at, "state": state}


def _payload(mapping: _Mapping, source: CTE, dialect: JobDialect) -> ColumnElement[Any]:
    path = f"{mapping.job_class.__name__}.payload"
    text = dump_payload(mapping.job_class, mapping.payload, path)
    parts = {
        name: _json_value(mapping.plan.args[name], source.c[name])
        for name in mapping.expressions
        if name in mapping.plan.args
    }
    return dialect.json_object(dialect.json(literal(text, Text())), parts)


def _base(one: Arg[Any]) -> Any:
    return without_none(one.codec.annotation)


def _json_value(one: Arg[Any], value: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the expression so that its JSON is what the Arg's codec reads."""
    base, type_ = _base(one), value.type
    if base is Decimal:
        return cast(value, Text())
    if base is timedelta and isinstance(type_, Interval):
        seconds = func.trunc(cast(func.extract("epoch", value), Numeric()), 6)
        return case((value.is_not(null()), func.concat("P0DT", seconds, "S")))
    if isinstance(type_, EnumType) and type_.enum_class is not None:
        # The column holds the members' names.
        members: Any = type_.enum_class
        stored = {member: one.codec.encode(member) for member in members}
        return case(
            *((value == member, text) for member, text in stored.items()), else_=null()
        )
    return value


def _check_type(one: Arg[Any], expression: Any) -> None:
    """
    Check that the JSON of *expression* is of a type that the Arg reads.

    Raises:
        PayloadError: If it is not.
    """
    type_ = getattr(expression, "type", None)
    if type_ is None:
        return
    base, shapes = _base(one), one.codec.shapes
    if base is Decimal and isinstance(type_, Numeric | Integer):
        return
    naive = base is datetime and isinstance(type_, DateTime) and not type_.timezone
    shape = _shape_of(type_)
    if shape == "integer" and "integer" not in shapes:
        shape = "number"
    if (shape is None or shape in shapes) and not naive:
        return
    hint = "DateTime(timezone=True)" if naive else "..."
    raise PayloadError(
        f"{one.path}: expected {_name(base)}, got an expression of type {type_!r};"
        f" convert it, e.g. cast(expression, {hint})"
    )


def _name(base: Any) -> str:
    return getattr(base, "__name__", None) or str(base)


def _shape_of(type_: TypeEngine[Any]) -> str | None:
    """Return the JSON type that values of an SQL type become, None if unknown."""
    if isinstance(type_, EnumType):
        members: Any = type_.enum_class or ()
        numbers = any(isinstance(member.value, int) for member in members)
        return "integer" if numbers else "string"
    for sql_type, shape in _SHAPES.items():
        if isinstance(type_, sql_type):
            return shape
    return None


_SHAPES: dict[type[TypeEngine[Any]], str | None] = {
    JSON: None,
    Boolean: "boolean",
    Integer: "integer",
    Numeric: "number",
    String: "string",
    DateTime: "string",
    ARRAY: "array",
}

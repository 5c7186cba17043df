"""`check` finds what differs between the job tables in code and database, only that."""

from __future__ import annotations

import asyncio
import enum
import pickle
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import (
    ARRAY,
    CheckConstraint,
    Connection,
    Engine,
    Enum,
    Float,
    ForeignKey,
    Index,
    MetaData,
    Numeric,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.schema import CreateSchema
from sqlalchemy.types import UserDefinedType

from sqla_jobs import (
    Arg,
    Difference,
    JobMixin,
    JobValueError,
    MissingTables,
    SchemaMismatch,
    UnsupportedDialect,
    check,
    claim,
    enqueue_many,
)
from sqla_jobs.models import known_roots
from sqla_jobs.models.columns import STORAGE
from tests.conformance.model_kit import created, schema_of


class Base(DeclarativeBase):
    """The application's base."""


class Customer(Base):
    """A table that is no job table."""

    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)


class Job(JobMixin, Base):
    """The job system, with an index of the application's own."""

    __tablename__ = "jobs"
    __table_args__ = (Index("jobs_mine_idx", "kind", postgresql_where=text("id > 9")),)


class Plain(Job):
    """A job class with arguments only."""

    subject: Arg[str]


class Billed(Job):
    """A job class with columns."""

    customer_id: Mapped[int | None] = mapped_column(
        ForeignKey("customers.id"), index=True
    )
    code: Mapped[str | None] = mapped_column(String(20), unique=True)


class Report(Job):
    """A job class with a table of its own."""

    __tablename__ = "reports"

    title: Mapped[str]


@pytest.fixture(scope="module")
def session(engine: Engine) -> Iterator[Session]:
    """Yield a session on new tables, in a schema that is translated to."""
    with created(Base, engine) as session:
        yield session


@pytest.fixture
def connection(session: Session) -> Iterator[Connection]:
    """Yield a connection to them; what it does is rolled back."""
    bind = session.get_bind()
    assert isinstance(bind, Engine)
    with bind.connect() as connection:
        schema = connection.get_execution_options()["schema_translate_map"][None]
        connection.execute(text(f"SET LOCAL search_path TO {schema}"))
        yield connection


def differences(connection: Connection, *roots: Any) -> tuple[Difference, ...]:
    """Return what `check` finds."""
    with pytest.raises(SchemaMismatch) as raised:
        check(connection, *roots)
    return raised.value.differences


def test_tables_as_declared_pass(connection: Connection) -> None:
    """Nothing differs in tables that the metadata made."""
    check(connection, Job)


CASES: dict[str, tuple[str, str, bool, bool]] = {
    "column": (
        "ALTER TABLE jobs DROP COLUMN meta",
        "jobs: column meta is missing",
        True,
        False,
    ),
    "column of a class": (
        "ALTER TABLE reports DROP COLUMN title",
        "reports: column title is missing",
        True,
        False,
    ),
    "type": (
        "ALTER TABLE jobs ALTER reason TYPE varchar(9)",
        "jobs: column reason is TEXT in the code, character varying(9) in the database",
        True,
        False,
    ),
    "type of a class's column": (
        "ALTER TABLE jobs ALTER customer_id TYPE bigint",
        "jobs: column customer_id is INTEGER in the code, bigint in the database",
        False,
        False,
    ),
    "length": (
        "ALTER TABLE jobs ALTER code TYPE varchar(9)",
        (
            "jobs: column code is VARCHAR(20) in the code,"
            " character varying(9) in the database"
        ),
        False,
        False,
    ),
    "nullable": (
        "ALTER TABLE jobs_queues ALTER paused DROP NOT NULL",
        "jobs_queues: column paused is NOT NULL in the code, nullable in the database",
        False,
        False,
    ),
    "not null": (
        "ALTER TABLE jobs_attempts ALTER error SET NOT NULL",
        "jobs_attempts: column error is nullable in the code, NOT NULL in the database",
        True,
        False,
    ),
    "index": (
        "DROP INDEX jobs_claim_v1_idx",
        "jobs: index jobs_claim_v1_idx is missing",
        True,
        False,
    ),
    "index of the application": (
        "DROP INDEX jobs_mine_idx",
        "jobs: index jobs_mine_idx is missing",
        False,
        False,
    ),
    "index columns": (
        (
            "DROP INDEX jobs_mine_idx;"
            " CREATE INDEX jobs_mine_idx ON jobs (kind, id DESC) WHERE id > 9"
        ),
        (
            "jobs: index jobs_mine_idx is on (kind) in the code,"
            " (kind, id DESC) in the database"
        ),
        False,
        False,
    ),
    "index uniqueness": (
        (
            "DROP INDEX jobs_mine_idx;"
            " CREATE UNIQUE INDEX jobs_mine_idx ON jobs (kind) WHERE id > 9"
        ),
        "jobs: index jobs_mine_idx is not unique in the code, unique in the database",
        False,
        False,
    ),
    "predicate gone": (
        "DROP INDEX jobs_mine_idx; CREATE INDEX jobs_mine_idx ON jobs (kind)",
        (
            "jobs: index jobs_mine_idx is WHERE id > 9 in the code,"
            " for all rows in the database"
        ),
        False,
        False,
    ),
    "predicate": (
        (
            "DROP INDEX jobs_due_v1_idx;"
            " CREATE INDEX jobs_due_v1_idx ON jobs (run_at) WHERE state = 'scheduled'"
        ),
        (
            "jobs: index jobs_due_v1_idx is WHERE state IN ('scheduled', 'retryable')"
            " in the code, WHERE (state = 'scheduled'::text) in the database"
        ),
        False,
        False,
    ),
    "invalid index": (
        (
            "UPDATE pg_index SET indisvalid = false"
            " WHERE indexrelid = 'jobs_mine_idx'::regclass"
        ),
        "jobs: index jobs_mine_idx is not valid in the database: REINDEX it",
        False,
        False,
    ),
    "unique constraint": (
        "ALTER TABLE jobs DROP CONSTRAINT jobs_code_key",
        "jobs: the unique constraint on code is missing",
        False,
        False,
    ),
    "foreign key": (
        "ALTER TABLE jobs DROP CONSTRAINT jobs_customer_id_fkey",
        "jobs: the foreign key on customer_id is missing",
        False,
        False,
    ),
    "storage": (
        "ALTER TABLE jobs SET (fillfactor = 71)",
        "jobs: storage parameter fillfactor is 45 in the code, 71 in the database",
        False,
        False,
    ),
    "no storage": (
        "ALTER TABLE jobs RESET (fillfactor)",
        "jobs: storage parameter fillfactor is 45 in the code, not set in the database",
        False,
        False,
    ),
    "new column": (
        "ALTER TABLE jobs ADD later int NOT NULL",
        "jobs: the code has no column later",
        False,
        True,
    ),
    "new index": (
        "CREATE INDEX by_hand ON jobs_runners (seen_at)",
        "jobs_runners: the code has no index by_hand",
        False,
        True,
    ),
    "new unique constraint": (
        "ALTER TABLE reports ADD CONSTRAINT by_hand UNIQUE (title)",
        "reports: the code has no index by_hand",
        False,
        True,
    ),
    "new foreign key": (
        "ALTER TABLE jobs_attempts ADD FOREIGN KEY (job_id) REFERENCES jobs (id)",
        "jobs_attempts: the code has no foreign key on job_id",
        False,
        True,
    ),
}
"""Per difference: how to make it, its words, whether it blocks, and is ahead."""


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_difference_is_named(
    connection: Connection, case: tuple[str, str, bool, bool]
) -> None:
    """With its table, what the code says, and what the database has."""
    change, words, blocking, ahead = case
    for statement in change.split(";"):
        connection.execute(text(statement))
    (found,) = differences(connection, Job)

    schema = connection.get_execution_options()["schema_translate_map"][None]
    assert str(found) == f"{schema}.{words}"
    assert (found.blocking, found.ahead) == (blocking, ahead)


def test_message_has_a_line_for_each_difference_and_the_commands(
    connection: Connection,
) -> None:
    """What is behind and what is ahead, each below the command that ends it."""
    connection.execute(text("ALTER TABLE jobs ADD later int, DROP COLUMN meta"))
    connection.execute(text("DROP INDEX jobs_mine_idx"))
    connection.execute(text("CREATE INDEX by_hand ON jobs (run_at)"))
    with pytest.raises(SchemaMismatch) as raised:
        check(connection, Job)

    lines = str(raised.value).splitlines()
    schema = schema_name(connection)
    assert lines[0].endswith("behind the code; run: alembic upgrade head")
    assert lines[1].endswith("yet: alembic revision --autogenerate)")
    assert lines[2:4] == [
        f"  {schema}.jobs: column meta is missing",
        f"  {schema}.jobs: index jobs_mine_idx is missing",
    ]
    assert lines[4].endswith("deploy the newer code, or: alembic downgrade -1")
    assert lines[5:] == [
        f"  {schema}.jobs: the code has no column later",
        f"  {schema}.jobs: the code has no index by_hand",
    ]


def schema_name(connection: Connection) -> str:
    """Return the schema that the connection's tables are in."""
    return str(connection.get_execution_options()["schema_translate_map"][None])


def test_missing_tables_are_named_with_what_else_differs(
    connection: Connection,
) -> None:
    """The error is both `MissingTables` and `SchemaMismatch`."""
    connection.execute(text("DROP TABLE reports"))
    connection.execute(text("ALTER TABLE jobs DROP COLUMN meta"))
    with pytest.raises(MissingTables) as raised:
        check(connection, Job)

    schema = schema_name(connection)
    message = str(raised.value)
    assert message.startswith(f"the database has no table {schema}.reports; create it")
    assert "alembic upgrade head" in message
    assert message.endswith(f"\n  {schema}.jobs: column meta is missing")
    assert [one.table for one in raised.value.differences] == [
        f"{schema}.jobs",
        f"{schema}.reports",
    ]
    again = pickle.loads(pickle.dumps(raised.value))
    assert (str(again), again.differences) == (message, raised.value.differences)


def test_parameters_of_the_administrator_are_no_difference(
    connection: Connection,
) -> None:
    """Storage parameters that the code does not name are somebody else's."""
    connection.execute(text("ALTER TABLE jobs SET (autovacuum_vacuum_cost_limit = 9)"))
    check(connection, Job)


# No false alarms


class Color(enum.Enum):
    """An enum of the application."""

    red = 1


class Odd(UserDefinedType[Any]):
    """A type that SQLAlchemy does not know."""

    cache_ok = True

    def get_col_spec(self, **kw: Any) -> str:
        """Return its DDL."""
        return "POINT"


def full_base(convention: dict[str, str], schema: str | None) -> Any:
    """Return a base with every kind of column and class on job tables."""

    class Full(DeclarativeBase):
        metadata = MetaData(naming_convention=convention, schema=schema)

    class Owner(Full):
        __tablename__ = "owners"

        id: Mapped[int] = mapped_column(primary_key=True)

    class Root(JobMixin, Full):
        __tablename__ = "Jobs of ours"
        __table_args__ = (
            Index("lower_idx", text("lower(kind)")),
            Index(None, "kind", "queue"),
            UniqueConstraint("created_at", "id"),
            CheckConstraint("attempt >= 0", name="attempts"),
        )

    class Arguments(Root):
        n: Arg[int]

    class Columns(Root):
        owner_id: Mapped[int | None] = mapped_column(ForeignKey(Owner.id), index=True)
        order: Mapped[str | None] = mapped_column(String(20), unique=True, index=True)
        letter: Mapped[str | None] = mapped_column("Letter", String(1))
        amount: Mapped[Any] = mapped_column(Numeric(10, 2))
        whole: Mapped[Any] = mapped_column(Numeric(10))
        ratio: Mapped[float | None]
        real: Mapped[Any] = mapped_column(Float(24))
        color: Mapped[Color | None]
        other_color: Mapped[Any] = mapped_column(Enum("a", name="Other Color"))
        words: Mapped[Any] = mapped_column(ARRAY(String(5)))
        sorted_by_c: Mapped[Any] = mapped_column(String(collation="C"))
        odd: Mapped[Any] = mapped_column(Odd())

    class Joined(Root):
        __tablename__ = "joined"

        other_id: Mapped[int] = mapped_column(ForeignKey(Owner.id))

    class Deeper(Joined):
        depth: Mapped[int | None]

    class Second(JobMixin, Full):
        __tablename__ = "second"

    return Full, (Root, Second)


CONVENTION = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s_and_a_tail",
    "pk": "pk_%(table_name)s",
}


@pytest.mark.parametrize("place", ["default", "schema", "translated", "search_path"])
@pytest.mark.parametrize("convention", [{}, CONVENTION], ids=["plain", "named"])
def test_no_feature_of_models_is_a_false_alarm(
    engine: Engine, convention: dict[str, str], place: str
) -> None:
    """Wherever the tables are, and though a table of the same name is elsewhere."""
    schema, other = (f"check_{uuid4().hex[:12]}" for _ in range(2))
    full, roots = full_base(convention, schema if place == "schema" else None)
    with engine.connect() as connection:
        connection.execute(CreateSchema(other))
        connection.execute(CreateSchema(schema))
        connection.execute(text(f'CREATE TABLE {other}."Jobs of ours" (n int)'))
        path = schema if place in {"default", "search_path"} else other
        connection.execute(text(f"SET search_path TO {path}"))
        if place == "translated":
            connection.execution_options(schema_translate_map={None: schema})
        full.metadata.create_all(connection)
        paths = {
            "default": f"{schema}, {other}",
            "search_path": f"pg_catalog, {schema}, {other}",
        }
        connection.execute(text(f"SET search_path TO {paths.get(place, other)}"))

        check(connection, *roots)

        connection.execute(text(f'ALTER TABLE {schema}."Jobs of ours" DROP "Letter"'))
        (found,) = differences(connection, *roots)
        assert found.text == "column Letter is missing"


def test_table_of_the_same_name_elsewhere_is_not_taken_for_it(engine: Engine) -> None:
    """A tenant without tables lacks them, whatever the default schema has."""
    schema = f"check_{uuid4().hex[:12]}"
    with engine.connect() as connection:
        connection.execute(CreateSchema(schema))
        connection.execute(text(f"SET search_path TO {schema}"))
        Base.metadata.create_all(connection)
        check(connection, Job)
        connection.execution_options(schema_translate_map={None: "nowhere"})
        with pytest.raises(MissingTables, match=r"no table nowhere\.jobs, nowhere\."):
            check(connection, Job)


# What may be given


def test_all_roots_of_the_process_are_checked(connection: Connection) -> None:
    """Without classes every job table that the process knows is compared."""
    assert {Job} <= set(known_roots())
    with pytest.raises(MissingTables) as raised:
        check(connection)

    class Late(JobMixin, Base):
        __tablename__ = "late_jobs"
        metadata = MetaData()

    with pytest.raises(MissingTables) as later:
        check(connection)
    names = {one.table for one in later.value.differences} - {
        one.table for one in raised.value.differences
    }
    assert f"{schema_name(connection)}.late_jobs" in names
    assert known_roots().count(Late) == 1


def test_no_root_at_all_is_an_error(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody gets to hear that all is well because nothing was imported."""
    monkeypatch.setattr("sqla_jobs._store.schema.known_roots", list)
    with pytest.raises(JobValueError, match=r"no job table to check; import .* give"):
        check(connection)


def test_engine_is_checked_too(session: Session) -> None:
    """And its connection goes back to the pool."""
    bind: Any = session.get_bind()
    check(bind, Job)
    assert bind.pool.checkedout() == 0


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_async_connection_is_checked_by_run_sync(
    dsn: str, session: Session, driver: str
) -> None:
    """The async classes themselves are refused with the way to write it."""
    url = make_url(dsn).set(drivername=f"postgresql+{driver}")
    options = {"schema_translate_map": {None: schema_of(session)}}

    async def work() -> None:
        own = create_async_engine(url, execution_options=options)
        with pytest.raises(JobValueError, match=r"connection\.run_sync\(check, Job\)"):
            check(own, Job)  # type: ignore[arg-type]
        async with own.connect() as connection:
            with pytest.raises(JobValueError, match=r"await connection\.run_sync"):
                check(connection, Job)  # type: ignore[arg-type]
            await connection.run_sync(check, Job)
            await connection.execute(text("SET LOCAL search_path TO pg_temp"))
            await connection.run_sync(check, Job)
        await own.dispose()

    asyncio.run(work())


def test_psycopg2_works(dsn: str, session: Session) -> None:
    """The catalogue is read through any driver."""
    url = make_url(dsn).set(drivername="postgresql+psycopg2")
    options = {"schema_translate_map": {None: schema_of(session)}}
    own = create_engine(url, execution_options=options)
    check(own, Job)
    own.dispose()


def test_other_binds_are_refused(session: Session) -> None:
    """A session is no bind."""
    with pytest.raises(JobValueError, match="needs an Engine or a Connection, got <"):
        check(session, Job)  # type: ignore[arg-type]


def test_unsupported_database_is_refused() -> None:
    """Before it is asked for anything."""
    own = create_engine("sqlite://")
    with pytest.raises(UnsupportedDialect, match="sqlite"):
        check(own, Job)
    own.dispose()


def test_errors_of_the_database_are_its_own(connection: Connection) -> None:
    """They are no differences."""
    with pytest.raises(ProgrammingError):
        connection.execute(text("SELECT nonsense"))
    with pytest.raises(Exception, match="transaction is aborted"):
        check(connection, Job)


def test_tables_made_by_the_metadata_have_the_storage_parameters(
    connection: Connection,
) -> None:
    """Whatever SQLAlchemy's version, and in the translated schema."""
    found = connection.scalar(
        text("SELECT reloptions FROM pg_class WHERE oid = 'jobs'::regclass")
    )
    assert set(found) == {f"{name}={value}" for name, value in STORAGE.items()}


def test_copies_of_a_table_keep_the_storage_parameters(engine: Engine) -> None:
    """A metadata made of others, as some applications' migrations have."""
    copy = MetaData()
    table: Table = Job.__jobs__.table
    kept = table.to_metadata(copy, schema="copied").dialect_kwargs
    assert kept.get("postgresql_with") == table.dialect_kwargs.get("postgresql_with")


# What it costs


def test_few_statements_whatever_the_number_of_tables(connection: Connection) -> None:
    """Three, for all the tables; a fourth for types whose names SQLAlchemy spells."""
    seen: list[str] = []

    def note(*args: Any) -> None:
        seen.append(args[2])

    event.listen(connection, "before_cursor_execute", note)
    check(connection, Job)
    assert len(seen) == 3


def test_index_without_a_name_is_known_by_its_columns(engine: Engine) -> None:
    """A naming convention without "ix" leaves the name to the database."""

    class Plain(DeclarativeBase):
        metadata = MetaData(naming_convention={"pk": "pk_%(table_name)s"})

    class Root(JobMixin, Plain):
        __tablename__ = "unnamed"

    class Numbered(Root, kind="numbered"):
        number: Mapped[int | None]

    with engine.connect() as connection:
        Plain.metadata.create_all(connection)
        Index(None, Root.__table__.c.number)
        (found,) = differences(connection, Root)
        assert found.text == "index on number is missing"

        connection.execute(text("CREATE INDEX ON unnamed (number)"))

        check(connection, Root)


@pytest.mark.parametrize("work", ["claim", "enqueue_many"])
def test_missing_schema_reads_as_missing_tables(engine: Engine, work: str) -> None:
    """PostgreSQL says so in another way for COPY than for a statement."""
    verbs: dict[str, Callable[[Session], Any]] = {
        "claim": lambda session: claim(session, Job),
        "enqueue_many": lambda session: enqueue_many(
            session, Plain, ({"subject": str(n)} for n in range(2_000))
        ),
    }
    own = engine.execution_options(schema_translate_map={None: "nowhere"})
    with Session(own) as session, pytest.raises(MissingTables, match="jobs"):
        verbs[work](session)

"""Job tables in schemas, for tenants, under conventions, and on bases of all kinds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Engine,
    Integer,
    MetaData,
    SmallInteger,
    String,
    func,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.exc import InvalidRequestError, SAWarning
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    declarative_base,
    declared_attr,
    mapped_column,
    registry,
    sessionmaker,
)
from sqlalchemy.schema import CreateSchema, DropSchema

from sqla_jobs import (
    Arg,
    AsyncRunner,
    Context,
    JobMixin,
    Runner,
    arg,
    claim,
    enqueue_many,
    enqueue_select,
)
from sqla_jobs._store import wake
from sqla_jobs._store.retention import apply_retention
from sqla_jobs.errors import JobDefinitionError
from sqla_jobs.models import job_tables

LIMIT = 20.0
CONVENTION = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
BY_NAME = dict.fromkeys(("ix", "uq", "ck", "fk"), "own_%(constraint_name)s")
INDEXES = {
    *("claim_v1", "due_v1", "leases_v1", "unique_v1", "finished_v1", "channels_v1"),
    *("heads_v1", "ordered_v1", "blocked_v1", "holds_v1", "group_v1"),
}

Made = tuple[type[Any], type[Any], type[Any]]


def job_classes(base: Any, table: str = "jobs", **extra: Any) -> Made:
    """Return the base, a root class on it and a kind with handlers for both runners."""
    name = extra.pop("name", "Job")
    root = type(name, (JobMixin, base), {"__tablename__": table, **extra})

    class Note(root):  # type: ignore[misc, valid-type]
        """Writes nothing."""

        text: Arg[str] = arg(default="")

        def run(self, ctx: Context) -> str:
            if self.text == "fail":
                raise ValueError(self.text)
            return self.text.upper()

    class AsyncNote(root):  # type: ignore[misc, valid-type]
        """The same, for asyncio."""

        async def run(self, ctx: Any) -> None: ...

    return base, root, Note


def plain(metadata: MetaData | None = None, **attributes: Any) -> Any:
    """Return a new declarative base."""
    attributes["metadata"] = metadata or MetaData()
    return type("Base", (DeclarativeBase,), attributes)


@pytest.fixture
def schemas(engine: Engine) -> Iterator[Callable[[], str]]:
    """Yield what makes new schemas; they are dropped afterwards."""
    with ExitStack() as stack:
        yield lambda: _schema(engine, stack)


@pytest.fixture
def schema(schemas: Callable[[], str]) -> str:
    """Return the name of a new schema, which needs quotes."""
    return schemas()


def _schema(engine: Engine, stack: ExitStack) -> str:
    name = f"Ops {uuid4().hex[:12]}"
    with engine.begin() as connection:
        connection.execute(CreateSchema(name))
    stack.callback(_drop, engine, name)
    return name


def _drop(engine: Engine, name: str) -> None:
    with engine.begin() as connection:
        connection.execute(DropSchema(name, cascade=True))


def drain(engine: Engine, root: type[Any]) -> None:
    """Run what is due with the runner of threads."""
    maker = sessionmaker(engine)
    Runner(maker, root, listen=False, name="threads").run_until_idle()


def adrain(engine: Engine, root: type[Any]) -> None:
    """Run what is due with the runner of asyncio, under the same options."""

    async def run() -> None:
        own = create_async_engine(
            engine.url, execution_options=engine.get_execution_options()
        )
        maker = async_sessionmaker(own)
        await AsyncRunner(maker, root, listen=False, name="aio").run_until_idle()
        await own.dispose()

    asyncio.run(run())


def enqueue_all_ways(session: Session, kind: type[Any]) -> None:
    """Add 1 job, 120 by COPY, 1 by INSERT and one for each of these 122 by a query."""
    session.add(kind(text="one"))
    enqueue_many(session, kind, [{"text": str(i)} for i in range(120)])
    enqueue_many(session, kind, [{}])
    enqueue_select(session, kind, select(kind), {"text": kind.text})


def states(session: Session, root: type[Any]) -> dict[str, int]:
    """Return how many jobs are in each state."""
    query = select(root.state, func.count()).group_by(root.state)
    found: Any = session.execute(query)
    return dict(found.all())


def relations(engine: Engine, schema: str) -> set[str]:
    """Return the names of the tables in *schema*."""
    return set(inspect(engine).get_table_names(schema=schema))


IN_SCHEMA: dict[str, Callable[[str], Made]] = {
    "table_args": lambda s: job_classes(plain(), __table_args__={"schema": s}),
    "metadata": lambda s: job_classes(plain(MetaData(schema=s))),
    "base": lambda s: job_classes(plain(__table_args__={"schema": s})),
    "registry": lambda s: job_classes(
        registry(metadata=MetaData(schema=s)).generate_base()
    ),
    "quoted": lambda s: job_classes(plain(MetaData(schema=s)), 'Job "Queue"'),
    "reserved": lambda s: job_classes(plain(MetaData(schema=s)), "select"),
    "longest": lambda s: job_classes(plain(MetaData(schema=s)), "ü" * 23 + "x"),
    "convention": lambda s: job_classes(
        plain(MetaData(schema=s, naming_convention=CONVENTION))
    ),
    "by_name": lambda s: job_classes(
        plain(MetaData(schema=s, naming_convention=BY_NAME))
    ),
}


@pytest.mark.parametrize("way", IN_SCHEMA)
def test_jobs_run_in_a_schema(engine: Engine, schema: str, way: str) -> None:
    """All tables are there, and every way to enqueue and both runners find them."""
    base, root, kind = IN_SCHEMA[way](schema)
    base.metadata.create_all(engine)
    name = root.__tablename__
    others = ("attempts", "queues", "runners", "idempotency", "archive")
    suffixes = ("", *(f"_{name}" for name in others))
    assert relations(engine, schema) == {f"{name}{suffix}" for suffix in suffixes}

    with Session(engine) as session:
        enqueue_all_ways(session, kind)
        session.add(kind(text="fail"))
        session.commit()
        drain(engine, root)

        assert states(session, root) == {"completed": 244, "retryable": 1}
        assert session.scalars(select(root.Attempt.error)).one() == "ValueError: fail"
        assert apply_retention(session, root.__jobs__, limit=500) == 0
        past = func.now() - timedelta(days=2)
        session.execute(update(root).values(finished_at=past))
        assert apply_retention(session, root.__jobs__, limit=500) == 244


@pytest.mark.parametrize("convention", [{}, CONVENTION, BY_NAME])
def test_index_names_are_the_same_under_any_convention(convention: Any) -> None:
    """The comparator and error messages find them by name."""
    metadata = MetaData(naming_convention=convention or None)
    _, root, _ = job_classes(plain(metadata))

    own = {f"jobs_{name}_idx" for name in INDEXES}
    assert {index.name for index in root.__table__.indexes} == own


def test_names_that_the_database_would_cut_are_refused() -> None:
    """Two cut names may be the same; the limit counts bytes, not characters."""
    job_classes(plain(), "x" * 47)
    with pytest.raises(JobDefinitionError, match="has 48 bytes; at most 47"):
        job_classes(plain(), "x" * 48)
    with pytest.raises(JobDefinitionError, match="has 48 bytes; at most 47"):
        job_classes(plain(), "ü" * 24)

    _, root, _ = job_classes(plain())
    with pytest.raises(JobDefinitionError, match="has 55 bytes; at most 54"):
        type("Import", (root,), {"__tablename__": "x" * 55})


def test_name_with_a_percent_sign_is_refused() -> None:
    """Drivers take it for a placeholder, each in its own way."""
    with pytest.raises(JobDefinitionError, match=r"'a%b' has a '%'"):
        job_classes(plain(), "a%b")


# Tenants


@pytest.fixture
def tenants(engine: Engine, schemas: Callable[[], str]) -> tuple[list[Engine], Made]:
    """Return the engines of two tenants of one application, with their tables."""
    made = job_classes(plain())
    engines: list[Engine] = [
        engine.execution_options(schema_translate_map={None: schemas()})
        for _ in range(2)
    ]
    for one in engines:
        made[0].metadata.create_all(one)
    return engines, made


@pytest.mark.parametrize("run", [drain, adrain], ids=["threads", "aio"])
def test_tenants_do_not_mix(
    tenants: tuple[list[Engine], Made], run: Callable[[Engine, type[Any]], None]
) -> None:
    """One tenant's jobs are enqueued, run and deleted; the other's are untouched."""
    (one, other), (_, root, kind) = tenants
    if run is adrain:
        kind = root.__jobs__.kinds["async_note"]
    for _ in range(2):  # the second time with statements that are cached
        for engine in (one, other):
            with Session(engine) as session:
                session.add(kind())
                enqueue_many(session, kind, [{} for _ in range(120)])
                enqueue_select(session, kind, select(kind).limit(1), {})
                session.commit()
    run(one, root)

    past = func.now() - timedelta(days=2)
    with Session(one) as session, Session(other) as others:
        assert states(session, root) == {"completed": 244}
        assert states(others, root) == {"available": 244}
        for each in (session, others):
            each.execute(update(root).values(finished_at=past))
        assert apply_retention(session, root.__jobs__, limit=500) == 244
        assert apply_retention(others, root.__jobs__, limit=500) == 0
        assert len(claim(others, root, limit=300)) == 244
    run(other, root)


class Listening:
    """A runner that only looks when it is woken; counts its wake-ups and its jobs."""

    def __init__(self, engine: Engine, root: type[Any]) -> None:
        self.woken, self.done = threading.Condition(), threading.Event()
        self.wakes = 0
        self.runner = Runner(
            sessionmaker(engine),
            root,
            poll=timedelta(minutes=10),
            middleware=[self._around],
        )
        self._wake = self.runner._on_wake
        self.runner._on_wake = self._count  # type: ignore[method-assign]

    def wait(self) -> None:
        """Wait until it listens."""
        with self.woken:
            assert self.woken.wait_for(lambda: self.wakes, LIMIT)

    def _count(self) -> None:
        with self.woken:
            self.wakes += 1
            self.woken.notify_all()
        self._wake()

    def _around(self, job: Any, ctx: Any, call: Callable[[], Any]) -> Any:
        call()
        self.done.set()


@pytest.mark.direct("listens without listen_url")
def test_a_tenants_commit_wakes_its_own_runner(
    tenants: tuple[list[Engine], Made],
) -> None:
    """Not the other's: a thousand tenants would wake each other all the time."""
    wake.forget_recent()
    engines, (_, root, kind) = tenants
    one, other = (Listening(engine, root) for engine in engines)
    with one.runner, other.runner:
        one.wait()
        other.wait()
        for engine, listening in zip(engines, (one, other), strict=True):
            with Session(engine) as session:
                session.add(kind())
                session.commit()
            assert listening.done.wait(LIMIT)

        # Notifications arrive in the order of commits: the first was not for `other`.
        assert other.wakes == 2
        assert one.wakes == 2


def test_a_schema_of_the_connection_decides_as_well(
    engine: Engine, tenants: tuple[list[Engine], Made]
) -> None:
    """The map may be given to the session's connection instead of the engine."""
    wake.forget_recent()
    engines, (_, root, kind) = tenants
    listening = Listening(engines[0], root)
    with listening.runner, Session(engine) as session:
        listening.wait()
        session.connection(execution_options=engines[0].get_execution_options())
        session.add(kind())
        session.commit()
        assert listening.done.wait(LIMIT)


def test_channel_depends_on_the_schema_alone() -> None:
    """The same table has the same channel, whichever way its schema was given."""
    _, here, _ = job_classes(plain())
    _, there, _ = job_classes(plain(MetaData(schema="ops")))

    def channel(root: type[Any], **schemas: Any) -> str:
        translated = {None if k == "none" else k: v for k, v in schemas.items()}
        return job_tables(root).channel_in({"schema_translate_map": translated})

    assert job_tables(here).channel_in({}) == job_tables(here).channel
    assert channel(here, none="ops") == job_tables(there).channel
    assert channel(there, ops=None) == job_tables(here).channel
    assert channel(here, none="a") != channel(here, none="b")
    assert channel(here, other="a") == job_tables(here).channel


# Bases of all kinds


class Stamped:
    """Columns that an application gives all its tables; some a job has itself."""

    id: Mapped[int] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = mapped_column(DateTime(), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), onupdate=func.now()
    )


class Named:
    """Names tables after their classes, as many applications do."""

    @declared_attr.directive
    def __tablename__(cls) -> str:  # noqa: N805
        return f"{cls.__name__.lower()}s"  # type: ignore[attr-defined]


def abstract() -> Any:
    """Return a base whose abstract class has the columns."""
    base = plain()
    return type("Model", (Stamped, base), {"__abstract__": True})


BASES: dict[str, Callable[[], Any]] = {
    "declarative_base": declarative_base,
    "generate_base": lambda: registry().generate_base(),
    "mixin": lambda: type("Base", (Stamped, DeclarativeBase), {}),
    "abstract": abstract,
    "tablename": lambda: type("Base", (Named, DeclarativeBase), {}),
    "eager_defaults": lambda: plain(__mapper_args__={"eager_defaults": True}),
    "types": lambda: plain(
        type_annotation_map={
            str: String(50),
            datetime: DateTime(),
            int: SmallInteger,
            bool: Integer,
            dict[str, Any]: JSON,
        }
    ),
}


@pytest.mark.parametrize("way", BASES)
def test_jobs_run_on_a_base_of_the_users(engine: Engine, schema: str, way: str) -> None:
    """Its columns are added to ours, and change none of them."""
    _, expected, _ = job_classes(plain())
    base, root, kind = job_classes(BASES[way]())
    own = engine.execution_options(schema_translate_map={None: schema})
    base.metadata.create_all(own)

    columns = {name: str(c.type) for name, c in root.__table__.c.items()}
    added = {"updated_at": "DATETIME"} if way in ("mixin", "abstract") else {}
    assert columns == added | {
        name: str(c.type) for name, c in expected.__table__.c.items()
    }
    assert kind.__table__ is root.__table__
    with Session(own) as session:
        enqueue_all_ways(session, kind)
        session.commit()
        drain(own, root)

        assert states(session, root) == {"completed": 244}


def test_key_of_a_base_is_refused() -> None:
    """The fence looks jobs up by id alone; what can be left out is named."""
    base = plain(uid=mapped_column(String, primary_key=True))

    with pytest.raises(JobDefinitionError, match=r"would be id and uid; .*uid = None"):
        job_classes(base)

    base = plain(uid=mapped_column(String, primary_key=True))
    _, root, _ = job_classes(base, uid=None)
    assert root.__table__.primary_key.columns.keys() == ["id"]


@pytest.mark.parametrize("first", [True, False])
def test_columns_of_a_subclasss_mixin_are_refused(first: bool) -> None:
    """They would change a column that all jobs share."""
    _, root, _ = job_classes(plain())
    bases = (Stamped, root) if first else (root, Stamped)

    with pytest.raises(JobDefinitionError, match=r"Stamped\.created_at would hide .*"):
        type("Import", bases, {})


def test_decorated_class_is_refused() -> None:
    """A registry's decorator comes after the class: too late for the columns."""
    with pytest.raises(JobDefinitionError, match=r"write class Job\(JobMixin, Base\)"):
        registry().mapped(type("Job", (JobMixin,), {"__tablename__": "jobs"}))


@pytest.mark.parametrize("bases", [1, 2])
def test_two_roots_beside_each_other(
    engine: Engine, schemas: Callable[[], str], bases: int
) -> None:
    """Each has its own kinds of the same name, its tables and its runner."""
    here, there = schemas(), schemas()
    base = plain(MetaData(schema=here))
    made = job_classes(base)
    if bases == 1:
        args = {"schema": there}
        with pytest.warns(SAWarning, match="already contains a class"):
            other = job_classes(base, name="Other", __table_args__=args)
    else:
        other = job_classes(plain(MetaData(schema=there)))
    for one in (made, other):
        one[0].metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([made[2](text="a"), other[2](text="b"), other[2](text="c")])
        session.commit()
        drain(engine, other[1])

        assert states(session, made[1]) == {"available": 1}
        assert states(session, other[1]) == {"completed": 2}
        assert set(session.scalars(select(other[1].result))) == {"B", "C"}
        drain(engine, made[1])
        session.rollback()  # of its snapshot, if it keeps one
        assert states(session, made[1]) == {"completed": 1}
    assert made[1].__jobs__.channel != other[1].__jobs__.channel


def test_table_of_that_name_is_reported_by_sqlalchemy() -> None:
    """A table of the application's that is in the way is named."""
    base = plain()
    key = Column(Integer, primary_key=True)
    type("Q", (base,), {"__tablename__": "jobs_queues", "id": key})

    with pytest.raises(
        InvalidRequestError, match="Table 'jobs_queues' is already defined"
    ):
        job_classes(base)


def test_search_path_is_left_alone(engine: Engine, tenants: Any) -> None:
    """A tenant's schema is in the statements, not in the connection's state."""
    (one, _), (_, _, kind) = tenants
    with Session(one) as session:
        session.add(kind())
        session.flush()

        assert session.scalar(text("SHOW search_path")) == '"$user", public'

"""Runs jobs of one small application through either runner, as a test asks."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NoReturn

import asyncpg
import psycopg
import psycopg2
from sqlalchemy import (
    Engine,
    ForeignKey,
    create_engine,
    event,
    make_url,
    select,
    text,
)
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    mapped_column,
    relationship,
    sessionmaker,
)

from sqla_jobs import Arg, JobMixin, arg, constant
from sqla_jobs._store.claim import claim
from sqla_jobs._store.sweep import rescue
from sqla_jobs.handlers import Handler
from sqla_jobs.runner.aio import AsyncRunner
from sqla_jobs.runner.threads import Runner

NOW = constant(timedelta(0))
POLL = timedelta(milliseconds=50)
LEASE = timedelta(seconds=3)
PATIENCE = 20.0  # seconds until a wait is given up
DIRECT_URL: str | None = None  # of the database, where engines go through a pooler
LISTEN_URL: str | None = None  # of runners that listen there


class Base(DeclarativeBase):
    """The application's own."""


class Job(JobMixin, Base):
    """The job system."""

    __tablename__ = "jobs"


class Task(Job, kind="task", backoff=NOW):
    """A job whose handler the test gives."""

    n: Arg[int] = arg(default=0)


class Other(Job, kind="other", backoff=NOW):
    """Another one."""


class Plain(Job, kind="plain"):
    """One that says nothing about its backoff."""


class Effect(Base):
    """What a handler writes for the application."""

    __tablename__ = "effects"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int]
    note: Mapped[str] = mapped_column(default="")


class Owner(Base):
    """Something that jobs belong to."""

    __tablename__ = "owners"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Linked(Job, kind="linked", backoff=NOW):
    """A job with a lazy relationship."""

    owner_id: Mapped[int | None] = mapped_column(ForeignKey("owners.id"))
    owner: Mapped[Owner | None] = relationship()


class Loaded(Job, kind="loaded", backoff=NOW, load="owner"):
    """A job whose relationship is loaded before its handler runs."""

    owner_id: Mapped[int | None] = mapped_column(ForeignKey("owners.id"))
    owner: Mapped[Owner | None] = relationship()


async def ok(value: Any) -> Any:
    """Await *value* if it is awaitable: the same handler serves both runners."""
    return await value if inspect.isawaitable(value) else value


async def wait_for(flag: threading.Event, ctx: Any = None) -> None:
    """Wait for *flag* in a handler, or until *ctx* says that it must end."""
    until = time.monotonic() + PATIENCE
    while not flag.is_set() and time.monotonic() < until:
        if ctx is not None:
            ctx.raise_if_interrupted()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            flag.wait(0.005)
        else:
            await asyncio.sleep(0.005)


def step(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits for a loop to its end."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("the handler of a thread waited for an event loop")


def stepping(function: Any) -> Any:
    """Return the async *function* as one for threads; None stays None."""
    if function is None:
        return None
    return lambda *args: step(function(*args))


def effects(session: Any, job: Any, *notes: str) -> None:
    """Add one `Effect` per note to a handler's session."""
    session.add_all([Effect(job_id=job.id, note=note) for note in notes])


def raise_lost(driver: str, raw: Any = None) -> NoReturn:
    """Raise what the driver, or SQLAlchemy for it, does when a connection breaks."""
    if driver == "asyncpg":
        error = asyncpg.ConnectionDoesNotExistError("connection was closed")
        if raw is not None:
            raw._handle_exception(error)
        raise error
    kind = psycopg2 if driver == "psycopg2" else psycopg
    raise kind.OperationalError("the connection is closed")


def answerless_commit(lost: list[str], *, happens: bool) -> Callable[[Engine], None]:
    """
    Return what makes the first COMMIT of an effect lose its answer, noted in *lost*.

    Args:
        happens: Whether it takes effect before the connection breaks.
    """

    def spoil(engine: Engine) -> None:
        real, wrote = engine.dialect.do_commit, set[Any]()

        def note(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if "INTO effects" in statement:
                wrote.add(connection.connection.dbapi_connection)

        def do_commit(connection: Any) -> None:
            raw = connection.dbapi_connection
            if lost or raw not in wrote:
                real(connection)
                return
            lost.append("answer")
            if happens:
                real(connection)
            raw.close()
            raise_lost(engine.dialect.driver, raw)

        event.listen(engine, "after_cursor_execute", note)
        setattr(engine.dialect, "do_commit", do_commit)  # noqa: B010

    return spoil


class Running:
    """A runner at work in a thread of its own."""

    def __init__(self, kit: Kit, options: dict[str, Any]) -> None:
        self.kit, self.options = kit, options
        self.runner: Any = None
        self.error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._made = threading.Event()
        target = self._threads if kit.shell == "threads" else self._aio
        self._thread = threading.Thread(target=self._guard, args=(target,), daemon=True)

    def start(self) -> Running:
        """Start it; return when the runner is made."""
        self._thread.start()
        assert self._made.wait(PATIENCE)
        return self

    @property
    def alive(self) -> bool:
        """Whether `run` has not returned."""
        return self._thread.is_alive()

    def stop(self, *, grace: timedelta | None = None, wait: bool = True) -> None:
        """Stop it as its owner would."""
        if self.runner is not None:
            with suppress(RuntimeError):  # its loop has closed
                self._stop(grace)
        if wait:
            self.join()

    def _stop(self, grace: timedelta | None) -> None:
        if self._loop is None:
            self.runner.stop(grace=grace, wait=False)
        else:
            call = partial(self.runner.stop, grace=grace, wait=False)
            stopping = call()
            try:
                asyncio.run_coroutine_threadsafe(stopping, self._loop).result(PATIENCE)
            finally:
                stopping.close()

    def join(self) -> None:
        """Wait until `run` has returned; raise what it raised."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the runner did not stop"
        if self.error is not None:
            raise self.error

    @property
    def control_engine(self) -> Engine:
        """The engine of the runner's own connections."""
        engine = self.runner._control.engine
        found: Engine = getattr(engine, "sync_engine", engine)
        return found

    def reconnect(self) -> None:
        """Let the runner's next statement make a new connection."""
        control = self.runner._control
        for kept in getattr(control, "_control", control)._kept:
            kept.doubt()
        self.control_engine.pool._invalidate_time = time.time()

    def signal(self) -> None:
        """Do what the arrival of a SIGTERM does."""
        if self._loop is None:
            self.runner._signalled()
        else:
            self._loop.call_soon_threadsafe(self.runner._signalled)

    def _guard(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as exc:  # noqa: BLE001 - raised again by join()
            self.error = exc
        finally:
            self._made.set()

    def _threads(self) -> None:
        with self.kit.sync_runner(self.options) as self.runner:
            self._made.set()
            self.runner.run()

    def _aio(self) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            async with self.kit.async_runner(self.options) as self.runner:
                self._made.set()
                await self.runner.run()

        asyncio.run(main())


class Kit:
    """
    One test's application: its database, its handlers and its runners.

    Args:
        dsn: The database.
        engine: What the test itself uses.
        shell: "threads" or "aio", and the driver: "aio-asyncpg". Default psycopg.
    """

    def __init__(self, dsn: str, engine: Engine, shell: str) -> None:
        self.shell, _, driver = shell.partition("-")
        self.driver = driver or "psycopg"
        url = make_url(dsn).set(drivername=f"postgresql+{self.driver}")
        self.dsn, self.engine = url.render_as_string(hide_password=False), engine
        self.Session = sessionmaker(engine, expire_on_commit=False)
        self.engine_options: dict[str, Any] = {"pool_size": 30}
        self.session_options: dict[str, Any] = {}
        self.on_engine: Callable[[Engine], None] = lambda _: None
        self.sync_maker: Callable[[Engine], sessionmaker[Any]] = self.make_session
        self.running: list[Running] = []
        self._handled: set[type[Any]] = set()

    # The application

    def handle(
        self,
        function: Any,
        cls: type[Any] = Task,
        *,
        acquire: Any = None,
        many: bool = False,
    ) -> Any:
        """
        Make the async *function* the handler of *cls* in this test's runner.

        Args:
            acquire: An async function that grants its runs.
            many: Whether it is a `run_many`.
        """
        threads = self.shell == "threads"
        run, ask = (stepping(one) if threads else one for one in (function, acquire))
        cls.__job_handler__ = Handler(run, not threads, ask, many)
        self._handled.add(cls)
        return function

    def add(self, *jobs: Any) -> list[int]:
        """Enqueue *jobs* and return their ids; without any, one `Task`."""
        new = jobs or (Task(),)
        with self.Session() as session:
            session.add_all(new)
            session.commit()
            return [job.id for job in new]

    def add_owner(self, name: str) -> None:
        """Store the owner 1."""
        with self.Session.begin() as session:
            session.add(Owner(id=1, name=name))

    def job(self, job_id: int) -> Any:
        """Return the row of a job as it is now."""
        with self.Session() as session:
            return session.get(Job, job_id)

    def states(self) -> list[str]:
        """Return the states of all jobs, by id."""
        with self.Session() as session:
            return list(session.scalars(select(Job.state).order_by(Job.id)))

    def notes(self) -> list[str]:
        """Return the notes of all effects, in order."""
        with self.Session() as session:
            return list(session.scalars(select(Effect.note).order_by(Effect.id)))

    def attempts(self, job_id: int) -> list[Any]:
        """Return the attempts that are on record for a job, in order."""
        with self.Session() as session:
            row = Job.Attempt
            stmt = select(row).where(row.job_id == job_id).order_by(row.lease_token)
            return list(session.scalars(stmt))

    def sql(self, statement: str, **params: Any) -> Any:
        """Execute SQL in a transaction of its own; return the first value, if any."""
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), params)
            return result.scalar() if result.returns_rows else None

    def until(self, ready: Callable[[], Any], *, seconds: float = PATIENCE) -> Any:
        """Wait until *ready()* is true and return it."""
        end = time.monotonic() + seconds
        while not (found := ready()):
            assert time.monotonic() < end, f"still not so: {inspect.getsource(ready)}"
            time.sleep(0.01)
        return found

    def until_state(self, job_id: int, *states: str) -> Any:
        """Wait until the job is in one of *states* and return its row."""
        self.until(lambda: self.job(job_id).state in states)
        return self.job(job_id)

    # Its runners

    def run(self, **options: Any) -> Running:
        """Start a runner; it is stopped at the end of the test."""
        running = Running(self, options).start()
        self.running.append(running)
        return running

    def drain(self, **options: Any) -> None:
        """Run all jobs that are due."""
        self.call("run_until_idle", **options)

    def run_one(self, **options: Any) -> Any:
        """Run one job; return its state."""
        return self.call("run_one", **options)

    def call(self, name: str, /, **options: Any) -> Any:
        """Call a method of a new runner, and return what it returns."""

        async def use(runner: Any) -> Any:
            return await ok(getattr(runner, name)())

        return self.with_runner(use, **options)

    def with_runner(self, use: Callable[[Any], Any], /, **options: Any) -> Any:
        """Return what the async function *use* returns for a new runner."""
        if self.shell == "threads":
            with self.sync_runner(options) as runner:
                return step(use(runner))

        async def main() -> Any:
            async with self.async_runner(options) as runner:
                return await use(runner)

        return asyncio.run(main())

    def make(self, **options: Any) -> Any:
        """Return a runner that is only made, as for the checks of its options."""
        options = self.defaults(options)
        if self.shell == "threads":
            maker = options.pop("maker", None) or sessionmaker(self.engine)
            return Runner(maker, Job, **options)
        maker = options.pop("maker", None)
        maker = maker or async_sessionmaker(create_async_engine(self.dsn))
        return AsyncRunner(maker, Job, **options)

    @staticmethod
    def defaults(options: dict[str, Any]) -> dict[str, Any]:
        """Return *options* with those of a test: short polls and grace."""
        quick: dict[str, Any] = {"poll": POLL, "grace": timedelta(seconds=5)}
        quick |= {"concurrency": 4, "listen_url": LISTEN_URL}
        if "queues" in options:
            del quick["concurrency"]
        return quick | options

    @contextmanager
    def sync_runner(self, options: dict[str, Any]) -> Iterator[Runner]:
        """Yield a `Runner` with an engine of its own."""
        options = self.defaults(options)
        engine = create_engine(self.dsn, **self.engine_options)
        self.on_engine(engine)
        maker = options.pop("maker", None) or self.sync_maker(engine)
        try:
            yield Runner(maker, Job, **options)
        finally:
            engine.dispose()

    def connecting(self, url: Callable[[], str]) -> dict[str, Any]:
        """Return options of an engine that connects to what *url* returns."""

        async def connect(*_: Any, **__: Any) -> Any:
            if self.driver == "asyncpg":
                return await asyncpg.connect(url())
            return await psycopg.AsyncConnection.connect(url())

        if self.shell == "aio":
            return {"async_creator": connect}
        module = psycopg2 if self.driver == "psycopg2" else psycopg
        return {"creator": lambda: module.connect(url())}

    def make_session(self, engine: Engine) -> sessionmaker[Any]:
        """Return the application's sessionmaker on *engine*."""
        return sessionmaker(engine, **self.session_options)

    def async_runner(self, options: dict[str, Any]) -> Any:
        """Return an async context manager with an `AsyncRunner`."""

        @asynccontextmanager
        async def manage() -> AsyncIterator[AsyncRunner]:
            given = self.defaults(options)
            engine = create_async_engine(self.dsn, **self.engine_options)
            self.on_engine(engine.sync_engine)
            maker = given.pop("maker", None)
            maker = maker or async_sessionmaker(engine, **self.session_options)
            try:
                yield AsyncRunner(maker, Job, **given)
            finally:
                await engine.dispose()

        return manage()

    def close(self) -> None:
        """Stop what runs, forget the handlers and empty the tables."""
        try:
            for running in self.running:
                running.stop(grace=timedelta(0))
        finally:
            for cls in self._handled:
                del cls.__job_handler__
            clear(self.engine)


def take_over(kit: Kit, job: int) -> Any:
    """Let somebody else rescue and claim the job, its lease having run out."""
    late = datetime.now(UTC) + timedelta(days=1)
    with kit.Session.begin() as session:
        assert [taken.job_id for taken in rescue(session, Job, now=late)] == [job]
        (claimed,) = claim(session, Job, now=late)
    return claimed


def quiet(kit: Kit) -> None:
    """Wait until the runner has looked twice more."""
    plan = kit.running[0].runner._plan
    looks = {plan._sweep_at}

    def looked() -> bool:
        looks.add(plan._sweep_at)
        return len(looks) > 2

    kit.until(looked)


def clear(engine: Engine) -> None:
    """Delete all rows."""
    names = ", ".join(Base.metadata.tables)
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        connection.execute(text(f"TRUNCATE {names}"))


@contextmanager
def statements(engine: Engine, which: str = "") -> Iterator[list[str]]:
    """Yield the list of statements that *engine* executes meanwhile."""
    seen: list[str] = []

    def note(*args: Any) -> None:
        if which in args[2]:
            seen.append(args[2])

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)

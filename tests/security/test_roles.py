"""Three roles of the database can do their work and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import (
    Engine,
    create_engine,
    delete,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqla_jobs import (
    Arg,
    Context,
    JobMixin,
    Retention,
    Runner,
    abort_hold,
    arg,
    cancel,
    check,
    checkpoint,
    claim,
    complete,
    confirm_hold,
    counts,
    dead_letters,
    discard,
    enqueue,
    enqueue_many,
    enqueue_select,
    explain,
    extend_hold,
    fail,
    find_queued,
    history,
    purge,
    purge_archive,
    queue_settings,
    release,
    renew,
    request_cancel,
    requeue,
    rescue,
    set_queue,
    snooze,
    stage,
)
from sqla_jobs._dialects.pg_grants import grants
from sqla_jobs._store.enqueue_kind import make_job
from sqla_jobs.cli.commands import command
from sqla_jobs.models import job_tables
from tests.security.roles import ROLES, Roles, least_privileges

MINUTE = timedelta(minutes=1)
LATER = datetime.now(UTC) + timedelta(days=1)
Act = Callable[[Session], object]


class Base(DeclarativeBase):
    """The application's own."""


class Job(JobMixin, Base):
    """The job table."""

    __tablename__ = "role_jobs"


class Work(Job, kind="work", max_attempts=1):
    """A job that enqueues another."""

    text: Arg[str] = arg(default="")

    def run(self, ctx: Context) -> str:
        """Do what handlers do."""
        ctx.checkpoint(seen=self.text)
        if self.text == "fails":
            raise ValueError(self.text)
        if self.text == "parent":
            ctx.session.add(Work(text="child"))
        return self.text


class Big(Job, kind="big"):
    """A job with a table of its own; nobody here handles it."""

    __tablename__ = "role_big_jobs"
    memo: Mapped[str] = mapped_column(default="")


class Old(Job, kind="old", retention=Retention(completed=timedelta(0), archive=True)):
    """A job that goes to the archive at once."""

    def run(self, ctx: Context) -> None:
        """Do nothing."""


class Short(Job, kind="short", retention=timedelta(0)):
    """A job that is deleted at once."""

    def run(self, ctx: Context) -> None:
        """Do nothing."""


@pytest.fixture(scope="module")
def owner(engine: Engine) -> Iterator[Engine]:
    """Yield an engine of the tables' owner."""
    Base.metadata.create_all(engine)
    yield engine
    Base.metadata.drop_all(engine)


@pytest.fixture(scope="module")
def roles(owner: Engine) -> Iterator[Roles]:
    """Yield the roles."""
    with least_privileges(owner, Base.metadata) as roles:
        yield roles


@pytest.fixture(scope="module")
def engines(roles: Roles) -> Iterator[dict[str, Engine]]:
    """Yield an engine for each role."""
    made = {role: create_engine(roles.url(role)) for role in ROLES}
    yield made
    for engine in made.values():
        engine.dispose()


@pytest.fixture
def jobs(owner: Engine) -> Iterator[list[int]]:
    """Yield the ids of a waiting and a dead job; the tables are emptied afterwards."""
    with Session(owner) as session:
        waiting, dead = Work(text="secret", unique_key="k", fingerprint="g"), Work()
        session.add_all([waiting, dead])
        session.flush()
        session.execute(update(Job).where(Job.id == dead.id).values(state="discarded"))
        session.commit()
        yield [waiting.id, dead.id]
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))
        session.commit()


def held(session: Session) -> int:
    """Enqueue a held job."""
    job = Work(hold_for=MINUTE)
    session.add(job)
    session.flush()
    return job.id


def add(job: Any) -> Act:
    """Return what adds a job and reads what an INSERT returns."""

    def act(session: Session) -> object:
        made = job()
        session.add(made)
        session.flush()
        return made.id, made.state, made.created_at, made.run_at

    return act


ENQUEUE: dict[str, Act] = {
    "add": add(Work),
    "bytes": add(lambda: Work(payload_bytes=b"x", tags=["t"], meta={"a": 1})),
    "ordered": add(lambda: Work(ordered=True, channel="c")),
    "delay": add(lambda: Work(delay=MINUTE)),
    "own table": add(lambda: Big(memo="x")),
    "raw": add(lambda: make_job(Job, "raw", {"a": 1})),
    "all": lambda s: s.add_all([Work() for _ in range(3)]),
    "many": lambda s: enqueue_many(s, Work, [{"text": "x"}] * 3),
    "copy": lambda s: enqueue_many(s, Work, [{"text": "x"}] * 2_000),
    "select": lambda s: enqueue_select(s, Work, select(literal(1)), {"text": "x"}),
    "insert": lambda s: s.execute(insert(Work), [{"payload": {"text": "x"}}]),
    "unique": lambda s: enqueue(s, Work(unique_key="u")),
    "skip": lambda s: enqueue(s, Work(unique_key="k"), on_conflict="skip"),
    "replace": lambda s: enqueue(s, Work(unique_key="k"), on_conflict="replace"),
    "idempotent": lambda s: enqueue(s, Work(), idempotency_key="i"),
    "confirm": lambda s: confirm_hold(s, Job, held(s)),
    "extend": lambda s: extend_hold(s, Job, held(s), for_=MINUTE),
    "abort": lambda s: abort_hold(s, Job, held(s)),
    "find key": lambda s: find_queued(s, Job, unique_key="k"),
    "find group": lambda s: find_queued(s, Job, fingerprint="g"),
    "state": lambda s: s.execute(select(Job.id, Job.state, Job.queue)).all(),
}


def claimed(session: Session) -> Any:
    """Claim a job."""
    (one,) = claim(session, Job)
    return one


WORK: dict[str, Act] = {
    **ENQUEUE,
    "complete": lambda s: complete(s, claimed(s), {"a": 1}),
    "fail": lambda s: fail(s, claimed(s), "no"),
    "discard": lambda s: discard(s, claimed(s)),
    "cancel": lambda s: cancel(s, claimed(s)),
    "snooze": lambda s: snooze(s, claimed(s), after=MINUTE),
    "release": lambda s: release(s, claimed(s)),
    "renew": lambda s: renew(s, claimed(s)),
    "checkpoint": lambda s: checkpoint(s, claimed(s), {"a": 1}),
    "rescue": lambda s: (claimed(s), rescue(s, Job, now=LATER)),
    "stage": lambda s: stage(s, Job, now=LATER),
    "check": lambda s: check(s.get_bind(), Job),
}
ADMIN: dict[str, Act] = {
    "read": lambda s: [job.payload for job in s.scalars(select(Job))],
    "cancel": lambda s: request_cancel(s, Job, where=Job.state == "available"),
    "requeue": lambda s: requeue(s, Job, where=Job.state == "discarded"),
    "change": lambda s: requeue(s, Work, where=Work.text == "", changes={"text": "y"}),
    "purge": lambda s: purge(s, Job),
    "purge archive": lambda s: purge_archive(s, Job, older_than=timedelta(0)),
    "pause": lambda s: set_queue(s, Job, "default", paused=True),
    "settings": lambda s: queue_settings(s, Job),
    "counts": lambda s: counts(s, Job),
    "explain": lambda s: [explain(s, job) for job in s.scalars(select(Job))],
    "dead": lambda s: dead_letters(s, Job),
    "history": lambda s: history(s, Job, 1),
    "runners": lambda s: s.scalars(select(Job.Runner)).all(),
    "archive": lambda s: s.scalars(select(Job.Archived)).all(),
}
ALLOWED = {"enqueue": ENQUEUE, "work": WORK, "admin": ADMIN}

SCHEMA: dict[str, Act] = {
    "alter": lambda s: s.execute(text("ALTER TABLE role_jobs ADD x int")),
    "drop": lambda s: s.execute(text("DROP TABLE role_jobs")),
    "truncate": lambda s: s.execute(text("TRUNCATE role_jobs")),
    "index": lambda s: s.execute(text("CREATE INDEX ON role_jobs (kind)")),
    "trigger": lambda s: s.execute(text("ALTER TABLE role_jobs DISABLE TRIGGER ALL")),
}


def edit_history(session: Session) -> None:
    """Change what is on record."""
    session.execute(update(Job.Attempt).values(error="x"))


FORBIDDEN: dict[str, dict[str, Act]] = {
    "enqueue": {
        **SCHEMA,
        **{name: WORK[name] for name in WORK.keys() - ENQUEUE.keys() - {"check"}},
        **{
            name: ADMIN[name]
            for name in ADMIN.keys() - {"cancel"}  # by a key it may, and needs to
        },
        "payload": lambda s: s.execute(select(Job.payload)).all(),
        "bytes": lambda s: s.execute(select(Job.payload_bytes)).all(),
        "result": lambda s: s.execute(select(Job.result)).all(),
        "state of a job": lambda s: s.execute(select(Job.checkpoint)).all(),
        "error": lambda s: s.execute(select(Job.last_error)).all(),
        "rewrite": lambda s: s.execute(update(Job).values(payload={})),
        "attempts": lambda s: s.execute(update(Job).values(max_attempts=99)),
        "lease": lambda s: s.execute(update(Job).values(lease_token=9)),
        "delete": lambda s: s.execute(delete(Job).where(Job.id > 0)),
        "edit history": edit_history,
    },
    "work": {
        **SCHEMA,
        "pause": ADMIN["pause"],
        "purge archive": ADMIN["purge archive"],
        "edit history": edit_history,
    },
    "admin": {**SCHEMA, "edit history": edit_history},
}


def cases(acts: dict[str, dict[str, Act]]) -> list[Any]:
    """Return a parameter per role and act."""
    return [
        pytest.param(role, act, id=f"{role}-{name}")
        for role, named in acts.items()
        for name, act in sorted(named.items(), key=itemgetter(0))
    ]


@pytest.mark.parametrize(("role", "act"), cases(ALLOWED))
def test_role_can_do_its_work(
    role: str, act: Act, engines: dict[str, Engine], jobs: list[int]
) -> None:
    """What the role is for needs no more than its grants."""
    with Session(engines[role]) as session:
        act(session)
        session.commit()


@pytest.mark.parametrize(("role", "act"), cases(FORBIDDEN))
def test_role_can_do_nothing_else(
    role: str, act: Act, engines: dict[str, Engine], jobs: list[int]
) -> None:
    """The database refuses it, whatever the library would do."""
    with (
        Session(engines[role]) as session,
        pytest.raises(ProgrammingError, match=r"permission denied|must be owner"),
    ):
        act(session)


def test_runner_needs_the_role_of_workers_only(
    engines: dict[str, Engine], owner: Engine, jobs: list[int]
) -> None:
    """Limits, retries, retention, the archive, follow-up jobs, listening: all of it."""
    with Session(engines["admin"]) as session:
        set_queue(
            session,
            Job,
            "default",
            fair=True,
            max_running=50,
            max_running_per_channel=20,
            rate_limit=1_000,
        )
        session.commit()
    with Session(engines["enqueue"]) as session:
        texts = ("fails", "parent", "ok")
        session.add_all([Work(text=one) for one in texts])
        session.add_all([Old(), Short(), Work(ordered=True, channel="c")])
        enqueue(session, Work(), idempotency_key="i")
        session.commit()

    Runner(sessionmaker(engines["work"]), Job).run_until_idle()
    Runner(sessionmaker(engines["work"]), Job).run_until_idle()  # does the chores

    with Session(owner) as session:
        left = session.scalars(select(Job.kind).where(Job.state == "completed"))
        assert sorted(left) == ["work"] * 6
        assert len(session.scalars(select(Job.Archived)).all()) == 1
        failed = session.scalars(select(Work).where(Work.text == "fails")).one()
        assert (failed.state, failed.last_error) == ("discarded", "ValueError: fails")


def test_public_gets_nothing(owner: Engine, roles: Roles) -> None:
    """A role that nobody granted anything can use none of the tables."""
    for table in job_tables(Job).all_tables():
        for privilege in ("SELECT", "INSERT", "UPDATE", "DELETE"):
            asked = text("SELECT has_any_column_privilege('public', :t, :p)")
            if privilege == "DELETE":
                asked = text("SELECT has_table_privilege('public', :t, :p)")
            with owner.connect() as connection:
                given = {"t": table.name, "p": privilege}
                assert connection.scalar(asked, given) is False


def test_command_prints_the_grants(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command says what the function does; names are quoted."""
    monkeypatch.setenv("APP_DSN", dsn)
    names: dict[str, Any] = {
        "enqueue": "app_enqueue",
        "work": 'the "work%"; DROP',
        "admin": "Admin",
    }
    args = [f"--{role}={name}" for role, name in names.items()]
    target = "--runner=tests.security.app:make_runner"

    done = CliRunner().invoke(command, ["grants", target, *args])

    from tests.security.app import Job as Root

    assert done.output.splitlines() == grants(job_tables(Root), **names)
    assert 'TO "the ""work%""; DROP";' in done.output
    assert 'TO "Admin";' in done.output
    schema = {None: "Tenant 1"}
    made = grants(job_tables(Root), **names, schemas=schema)
    assert made[0].startswith('GRANT USAGE ON SCHEMA "Tenant 1" TO app_enqueue, ')
    assert 'ON "Tenant 1".sec_jobs TO app_enqueue;' in made[2]

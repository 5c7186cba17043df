"""Job classes on each kind of Base, as rows of a real database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import (
    Engine,
    ForeignKey,
    Index,
    MetaData,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    aliased,
    declarative_base,
    declared_attr,
    mapped_column,
    relationship,
)

from sqla_jobs import Arg, JobMixin, JobState, arg, exponential
from sqla_jobs.models import job_tables
from tests.conformance.model_kit import created, schema_of, statements


def _plain() -> Any:
    class Base(DeclarativeBase): ...

    return Base


def _function() -> Any:
    return declarative_base()


def _async() -> Any:
    class Base(AsyncAttrs, DeclarativeBase): ...

    return Base


def _dataclass() -> Any:
    class Base(MappedAsDataclass, DeclarativeBase): ...

    return Base


def _keyword_dataclass() -> Any:
    class Base(MappedAsDataclass, DeclarativeBase, kw_only=True): ...

    return Base


MakeBase = Callable[[], Any]

EVERY_BASE = pytest.mark.parametrize(
    "make_base", [_plain, _function, _async, _dataclass, _keyword_dataclass]
)


def _invoice(base: Any) -> Any:
    class Invoice(base):  # type: ignore[misc]
        __tablename__ = "invoices"

        id: Mapped[int] = mapped_column(primary_key=True)

    return Invoice


class Sample:
    """A root with a subclass of each sort, on any Base."""

    def __init__(self, base: Any) -> None:
        parent = _invoice(base)

        class Job(JobMixin, base):  # type: ignore[misc]
            __tablename__ = "jobs"

        class SendInvoice(
            Job, kind="send_invoice", queue="mail", max_attempts=5, priority=3
        ):
            subject: Arg[str] = arg(default="")
            copies: Arg[int]
            invoice_id: Mapped[int | None] = mapped_column(ForeignKey(parent.id))
            invoice: Mapped[Any] = relationship(parent)

        class Import(Job):
            __tablename__ = "imports"

            path: Mapped[str] = mapped_column()
            note: Arg[str | None] = arg(default=None)

        self.base, self.Invoice, self.Job = base, parent, Job
        self.SendInvoice: Any = SendInvoice
        self.Import: Any = Import


@EVERY_BASE
def test_job_round_trip(make_base: MakeBase, engine: Engine) -> None:
    """A job loads as its class, with its arguments, columns and defaults."""
    sample = Sample(make_base())

    with created(sample.base, engine) as session:
        invoice = sample.Invoice(id=7)
        session.add(sample.SendInvoice(invoice=invoice, copies=2, subject="Hi"))
        session.add(sample.Import(path="/x", note="n"))
        session.commit()
        session.expunge_all()
        sent, imported = session.scalars(
            select(sample.Job).order_by(sample.Job.id)
        ).all()

        assert type(sent) is sample.SendInvoice
        assert (sent.subject, sent.copies, sent.invoice_id) == ("Hi", 2, 7)
        assert (sent.kind, sent.queue, sent.max_attempts) == ("send_invoice", "mail", 5)
        assert (sent.priority, sent.lane, sent.attempt) == (3, 0, 0)
        assert (sent.state, sent.channel) == (JobState.AVAILABLE, "")
        assert sent.backoff == exponential().spec()
        assert sent.run_at == sent.created_at
        assert sent.run_at.tzinfo is not None
        assert sent.payload == {"subject": "Hi", "copies": 2}
        assert type(imported) is sample.Import
        assert (imported.path, imported.note, imported.queue) == ("/x", "n", "default")


@EVERY_BASE
def test_job_identity_semantics(make_base: MakeBase) -> None:
    """Jobs compare and hash by identity on every Base, dataclasses included."""
    sample = Sample(make_base())

    one, other = sample.SendInvoice(copies=1), sample.SendInvoice(copies=1)

    assert one != other
    assert len({one, other}) == 2
    assert repr(one) == "<SendInvoice state=available queue='mail'>"


@EVERY_BASE
def test_add_is_one_insert(make_base: MakeBase, engine: Engine) -> None:
    """An add and flush is the INSERT and nothing else."""
    sample = Sample(make_base())

    with created(sample.base, engine) as session:
        session.add(sample.SendInvoice(copies=1))
        with statements(session.connection()) as seen:
            session.flush()

        assert len(seen) == 1
        assert seen[0].startswith("INSERT")
        assert seen[0].endswith("jobs.id")
        assert "leased_until" not in seen[0]


def test_autogenerate_sees_no_difference(engine: Engine) -> None:
    """What create_all makes is what Alembic expects: no noise in migrations."""
    sample = Sample(_plain())

    with created(sample.base, engine) as session:
        connection = session.connection()
        connection.exec_driver_sql(f"SET search_path TO {schema_of(session)}")
        context = MigrationContext.configure(
            connection, opts={"compare_server_default": True}
        )

        assert compare_metadata(context, sample.base.metadata) == []


def test_none_in_json_columns_is_null(engine: Engine) -> None:
    """None in a JSON column is SQL NULL, not the JSON value null."""
    sample = Sample(_plain())

    with created(sample.base, engine) as session:
        job = sample.SendInvoice(copies=1, meta={"a": 1})
        session.add(job)
        session.flush()
        job.meta = job.result = None
        session.flush()

        null = select(sample.Job.id).where(
            sample.Job.meta.is_(None), sample.Job.result.is_(None)
        )
        assert session.scalars(null).all() == [job.id]


def test_storage_parameters_reach_the_table(engine: Engine) -> None:
    """Where SQLAlchemy can say it, the table has our parameters and the user's."""
    if sqlalchemy.__version__ < "2.1":
        pytest.skip("Table(postgresql_with=...) came with SQLAlchemy 2.1")

    class Base(DeclarativeBase): ...

    class Job(JobMixin, Base):
        __tablename__ = "jobs"
        __table_args__ = {"postgresql_with": {"fillfactor": 50}}

    with created(Base, engine) as session:
        options = session.scalar(
            text(
                "SELECT reloptions FROM pg_class WHERE relname = 'jobs'"
                " AND relnamespace = CAST(:schema AS regnamespace)"
            ),
            {"schema": schema_of(session)},
        )

    assert "fillfactor=50" in options
    assert "autovacuum_vacuum_scale_factor=0.01" in options
    assert Job.__table__ is job_tables(Job).table


def test_mixed_jobs_share_one_insert(engine: Engine) -> None:
    """Jobs of classes with different options have one column set, thus one INSERT."""

    class Base(DeclarativeBase): ...

    class Job(JobMixin, Base):
        __tablename__ = "jobs"

    class Slow(Job, timeout=timedelta(hours=1), lease=timedelta(minutes=1)):
        size: Arg[int] = arg(default=1)

    class Quick(Job, queue="quick"): ...

    with created(Base, engine) as session:
        for _ in range(10):
            session.add_all([Slow(size=3), Quick(priority=7, tags=["a"])])
        with statements(session.connection()) as seen:
            session.flush()

        assert len(seen) == 1


@EVERY_BASE
def test_repr_runs_no_sql(make_base: MakeBase, engine: Engine) -> None:
    """The repr of an expired job shows what is there and does not load."""
    sample = Sample(make_base())

    with created(sample.base, engine) as session:
        job = sample.SendInvoice(copies=1, subject="secret")
        session.add(job)
        session.flush()
        before = repr(job)
        session.expire(job)
        with statements(session.connection()) as seen:
            after = repr(job)

        assert before == f"<SendInvoice id={job.id} state=available queue='mail'>"
        assert after == "<SendInvoice>"
        assert seen == []


@EVERY_BASE
def test_claim_like_update_returns_jobs(make_base: MakeBase, engine: Engine) -> None:
    """UPDATE .. RETURNING of the root gives whole jobs: touching them is no SELECT."""
    sample = Sample(make_base())

    with created(sample.base, engine) as session:
        session.add(sample.SendInvoice(copies=4))
        session.commit()
        statement = update(sample.Job).values(attempt=1).returning(sample.Job)
        with statements(session.connection()) as seen:
            (job,) = session.scalars(statement).all()
            assert (job.copies, job.invoice_id, job.attempt) == (4, None, 1)

        assert len(seen) == 1


@EVERY_BASE
def test_unmapped_kind_loads_as_root(make_base: MakeBase, engine: Engine) -> None:
    """Rows of a kind that only another deploy knows load, and can be edited."""
    sample = Sample(make_base())

    with created(sample.base, engine) as session:
        session.execute(text("SELECT 1"))
        table = sample.Job.__table__
        session.connection().execute(insert(table).values(kind="from_the_future"))
        (selected,) = session.scalars(select(sample.Job)).all()
        session.expunge_all()
        got = session.get(sample.Job, selected.id)
        session.expunge_all()
        statement = update(sample.Job).values(attempt=1).returning(sample.Job)
        (returned,) = session.scalars(statement).all()
        returned.priority = 9
        session.flush()
        session.refresh(returned)

        assert type(selected) is type(got) is type(returned) is sample.Job
        assert (returned.kind, returned.priority) == ("from_the_future", 9)
        assert session.scalars(select(sample.SendInvoice)).all() == []
        assert session.get(sample.SendInvoice, returned.id) is None


@EVERY_BASE
def test_old_kind_loads_as_its_class(make_base: MakeBase, engine: Engine) -> None:
    """Rows of an alias are selected, updated, loaded and flushed as the class."""
    base = make_base()

    class Job(JobMixin, base):  # type: ignore[misc, valid-type]
        __tablename__ = "jobs"

    class Send(Job, kind="send", aliases=("old_send", "older_send")):
        to: Arg[str] = arg(default="")

    class SendFast(Send, kind="send_fast", aliases="old_fast"): ...

    class Other(Job): ...

    with created(base, engine) as session:
        kinds = ["send", "old_send", "older_send", "old_fast", "other"]
        session.execute(insert(Job.__table__), [{"kind": kind} for kind in kinds])
        sends = session.scalars(select(Send).order_by(Send.id)).all()
        for job in sends:
            job.to = "a"
        session.flush()
        changed = session.scalars(
            update(Send).values(lane=1).returning(Send.kind)
        ).all()
        alias = aliased(Send)
        found = session.scalars(select(alias.kind).where(alias.to == "a")).all()

        assert [type(job) for job in sends] == [Send, Send, Send, SendFast]
        assert sorted(changed) == sorted(found) == sorted(kinds[:-1])
        assert {type(job) for job in session.scalars(select(Job))} == {
            Send,
            SendFast,
            Other,
        }


def test_new_rows_have_the_new_kind(engine: Engine) -> None:
    """A class with aliases writes its own kind."""

    class Base(DeclarativeBase): ...

    class Job(JobMixin, Base):
        __tablename__ = "jobs"

    class Send(Job, kind="send", aliases="old_send"): ...

    with created(Base, engine) as session:
        session.add(Send())
        session.execute(insert(Send), [{"queue": "bulk"}])

        assert session.scalars(select(Job.kind)).all() == ["send", "send"]


@EVERY_BASE
def test_raw_insert_uses_server_defaults(make_base: MakeBase, engine: Engine) -> None:
    """A Core or bulk insert with only domain columns makes a claimable job."""
    sample = Sample(make_base())

    with created(sample.base, engine) as session:
        session.add(sample.Invoice(id=1))
        session.flush()
        session.execute(insert(sample.SendInvoice), [{"invoice_id": 1}])
        (job,) = session.scalars(select(sample.Job)).all()

        assert type(job) is sample.SendInvoice
        assert (job.queue, job.state, job.payload) == ("default", "available", {})
        assert (job.max_attempts, job.backoff) == (10, exponential().spec())
        assert (job.lease_token, job.ordered, job.priority) == (0, False, 0)


def test_stale_version_is_refused(engine: Engine) -> None:
    """An ORM flush of a job whose token was raised meanwhile fails."""
    sample = Sample(_plain())

    with created(sample.base, engine) as session:
        job = sample.SendInvoice(copies=1)
        session.add(job)
        session.flush()
        table = sample.Job.__table__
        session.connection().execute(update(table).values(lease_token=5))
        job.priority = 4

        with pytest.raises(Exception, match="expected to update 1 row"):
            session.flush()


def test_base_that_names_tables(engine: Engine) -> None:
    """A Base that derives table names still gets single-table subclasses."""

    class Base(DeclarativeBase):
        @declared_attr.directive
        def __tablename__(cls) -> Any:  # noqa: N805
            return cls.__name__.lower()

    class Job(JobMixin, Base): ...

    class Send(Job):
        size: Mapped[int | None] = mapped_column()

    class Import(Job):
        __tablename__ = "imports"  # pyright: ignore[reportAssignmentType]

    tables = [str(inspect(cls).local_table) for cls in (Job, Send, Import)]
    assert tables == ["job", "job", "imports"]
    with created(Base, engine) as session:
        session.add(Send(size=3))
        session.commit()


def test_two_roots_have_their_own_tables(engine: Engine) -> None:
    """Each root has tables, kinds and a wake-up channel of its own."""

    class Base(DeclarativeBase): ...

    class Job(JobMixin, Base):
        __tablename__ = "jobs"

    class Audit(JobMixin, Base):
        __tablename__ = "audits"

    class Send(Job): ...

    class SendAudit(Audit, kind="send"): ...

    jobs, audits = job_tables(Send), job_tables(SendAudit())

    assert (jobs.root, audits.root) == (Job, Audit)
    assert (jobs.kinds, audits.kinds) == ({"send": Send}, {"send": SendAudit})
    assert jobs.channel != audits.channel
    with created(Base, engine) as session:
        session.add_all([Send(), SendAudit(), SendAudit()])
        session.flush()
        assert len(session.scalars(select(Audit)).all()) == 2


def test_tables_live_in_the_roots_schema() -> None:
    """A root's schema, arguments and indexes are kept; support tables follow it."""
    convention = {"ix": "ix_%(column_0_label)s", "fk": "fk_%(table_name)s"}

    class Base(DeclarativeBase):
        metadata = MetaData(naming_convention=convention)

    class Job(JobMixin, Base):
        __tablename__ = "jobs"
        __table_args__ = (Index(None, "reason"), {"schema": "work", "comment": "mine"})

    class Import(Job):
        __tablename__ = "imports"

    (key,) = Import.__table__.foreign_keys
    assert (key.target_fullname, key.name) == ("work.jobs.id", "imports_job_fkey")
    tables = Job.__jobs__
    names = {index.name for index in tables.table.indexes}

    assert tables.table.comment == "mine"
    assert names == {
        "ix_work_jobs_reason",
        "jobs_claim_v1_idx",
        "jobs_channels_v1_idx",
        "jobs_heads_v1_idx",
        "jobs_ordered_v1_idx",
        "jobs_blocked_v1_idx",
        "jobs_holds_v1_idx",
        "jobs_group_v1_idx",
        "jobs_due_v1_idx",
        "jobs_leases_v1_idx",
        "jobs_unique_v1_idx",
        "jobs_finished_v1_idx",
    }
    for table, name in (
        (tables.attempts, "work.jobs_attempts"),
        (tables.queues, "work.jobs_queues"),
        (tables.runners, "work.jobs_runners"),
        (tables.idempotency, "work.jobs_idempotency"),
        (tables.archive, "work.jobs_archive"),
    ):
        assert table.fullname == name
        assert table.metadata is Base.metadata


def test_channel_name_is_pinned() -> None:
    """The channel is part of the protocol between processes of different versions."""

    class Base(DeclarativeBase): ...

    class Job(JobMixin, Base):
        __tablename__ = "jobs"

    class Other(JobMixin, Base):
        __tablename__ = "jobs"
        __table_args__ = {"schema": "work"}

    assert job_tables(Job).channel == "sqla_jobs_cd216f02a0a31663"
    assert job_tables(Other).channel == "sqla_jobs_cffe95ec4ec4771c"


@EVERY_BASE
def test_support_classes_are_mapped(make_base: MakeBase, engine: Engine) -> None:
    """Job.Attempt, Job.Queue and Job.Runner are ordinary mapped classes."""
    sample = Sample(make_base())
    job_class = sample.Job

    with created(sample.base, engine) as session:
        now = datetime.now(UTC)
        session.add(job_class.Queue(name="mail", paused=True))
        session.add(
            job_class.Attempt(
                job_id=1, lease_token=2, number=1, outcome="retry", finished_at=now
            )
        )
        session.commit()

        paused = select(job_class.Queue.name).where(job_class.Queue.paused)
        assert session.scalars(paused).all() == ["mail"]
        assert session.get_one(job_class.Attempt, (1, 2)).outcome == "retry"
        assert session.scalars(select(job_class.Runner)).all() == []


def test_joined_row_goes_with_its_job(engine: Engine) -> None:
    """Deleting the job row deletes the row of the subclass's own table."""
    sample = Sample(_plain())

    with created(sample.base, engine) as session:
        session.add(sample.Import(path="/x"))
        session.flush()
        session.connection().execute(sample.Job.__table__.delete())

        left = session.connection().execute(select(sample.Import.__table__)).all()
        assert left == []


def test_shared_column_of_two_classes(engine: Engine) -> None:
    """Two classes may declare the same column; both see it, one column exists."""

    class Base(DeclarativeBase): ...

    class Job(JobMixin, Base):
        __tablename__ = "jobs"

    class One(Job):
        tenant: Mapped[int] = mapped_column(index=True)
        note: Mapped[str | None] = mapped_column()

    class Two(Job):
        tenant: Mapped[int | None]

    with created(Base, engine) as session:
        session.add_all([One(tenant=1), Two(tenant=2)])
        session.commit()

        assert session.scalars(select(Two.tenant)).all() == [2]
        assert session.scalars(select(One.tenant)).all() == [1]
        assert Job.__table__.c.tenant.nullable


def test_scalar_defaults_of_dataclass_bases(engine: Engine) -> None:
    """Defaults and factories of dataclass fields work without their constructor."""

    class Base(MappedAsDataclass, DeclarativeBase): ...

    parent = _invoice(Base)

    class Job(JobMixin, Base):
        __tablename__ = "jobs"

    class Send(Job):
        size: Mapped[int | None] = mapped_column(default=5)
        label: Mapped[str | None] = mapped_column(default_factory=lambda: "made")
        invoice_id: Mapped[int | None] = mapped_column(
            ForeignKey(parent.id), default=None
        )
        invoice: Mapped[Any] = relationship(parent, default=None)

    with created(Base, engine) as session:
        session.add_all([Send(), Send(size=6, label="given")])
        session.commit()

        rows = session.execute(select(Send.size, Send.label).order_by(Send.id)).all()
        assert [tuple(row) for row in rows] == [(5, "made"), (6, "given")]

"""Flask-SQLAlchemy: jobs on `db.Model`, in its sessions, with its binds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, current_app, has_app_context
from sqlalchemy import ForeignKey, inspect, select
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    mapped_column,
    relationship,
    sessionmaker,
)

from sqla_jobs import Arg, Context, JobMixin, Runner, arg
from tests.integration.frameworks.kit import require

require("flask-sqlalchemy")

from flask_sqlalchemy import SQLAlchemy  # noqa: E402

SUPPORT = ("attempts", "queues", "runners", "idempotency", "archive")


class Base(DeclarativeBase):
    """The application's."""


db = SQLAlchemy(model_class=Base)
Model: Any = db.Model


class Invoice(Model):  # type: ignore[misc]
    """A table of the application's."""

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


class Job(JobMixin, Model):  # type: ignore[misc]
    """The job system."""

    __tablename__ = "jobs"


class SendInvoice(Job):
    """A job whose handler uses `db.session`, as the rest of the application does."""

    suffix: Arg[str] = arg(default="")
    invoice_id: Mapped[int | None] = mapped_column(ForeignKey("invoice.id"))
    invoice: Mapped[Invoice | None] = relationship()

    def run(self, ctx: Context) -> str:
        """Write through the row, then fail if asked to."""
        assert self.invoice is not None
        self.invoice.title += self.suffix
        db.session.add(Invoice(title=f"copy of {self.invoice.title}"))
        if self.suffix == "fail":
            db.session.flush()
            raise ValueError(self.suffix)
        return str(current_app.config["NAME"])


class Import(Job):
    """A job with a table of its own."""

    __tablename__ = "imports"
    path: Mapped[str]

    def run(self, ctx: Context) -> None:
        """Do nothing."""


class OtherJob(JobMixin, Model):  # type: ignore[misc]
    """A job system in another database."""

    __tablename__ = "other_jobs"
    __bind_key__ = "other"


class Ping(OtherJob):
    """A job there."""

    def run(self, ctx: Context) -> bool:
        """Tell whether there is an application."""
        ctx.session.scalars(select(OtherJob)).all()
        return has_app_context()


@pytest.fixture(scope="module")
def app(url: str, sqla_jobs_server: Any) -> Iterator[Flask]:
    """Yield an application with two databases."""
    with sqla_jobs_server.temporary_database() as other:
        app = Flask("app")
        app.config.update(
            NAME="app",
            SQLALCHEMY_DATABASE_URI=url,
            SQLALCHEMY_BINDS={"other": other},
        )
        db.init_app(app)
        with app.app_context():
            db.create_all()
        yield app
        with app.app_context():
            for engine in db.engines.values():
                engine.dispose()


def in_app(app: Flask) -> Callable[..., Any]:
    """Return the middleware of docs/how-to/frameworks.md."""

    def around(job: Any, ctx: Any, call_next: Callable[[], Any]) -> Any:
        with app.app_context():
            db.session.registry.set(ctx.session)
            try:
                return call_next()
            finally:
                db.session.registry.clear()  # the runner commits and closes it

    return around


def test_jobs_run_through_the_applications_session(app: Flask) -> None:
    """What a handler does in `db.session` commits with the job, or not at all."""
    with app.app_context():
        send: Any = SendInvoice  # db.Model has no type that checkers know
        db.session.add(send(invoice=Invoice(title="good"), suffix="!"))
        bad = send(invoice=Invoice(title="bad"), suffix="fail", max_attempts=1)
        imports: Any = Import
        db.session.add_all([bad, imports(path="x")])
        db.session.commit()
        Session = sessionmaker(db.engine)  # noqa: N806

    runner = Runner(Session, Job, listen=False, middleware=[in_app(app)])
    runner.run_until_idle()

    with app.app_context():
        titles = db.session.scalars(select(Invoice.title)).all()
        assert sorted(titles) == ["bad", "copy of good!", "good!"]
        states = {job.kind: job.state for job in db.session.scalars(select(Import))}
        assert states == {"import": "completed"}
        jobs = db.session.scalars(select(SendInvoice).order_by(Job.id)).all()
        assert [job.state for job in jobs] == ["completed", "discarded"]
        assert jobs[0].result == "app"


def test_single_table_jobs_stay_in_the_job_table(app: Flask) -> None:
    """`db.Model` names tables after classes; kinds of jobs have none."""
    assert SendInvoice.__table__ is Job.__table__
    assert Import.__table__.name == "imports"
    with app.app_context():
        tables = set(inspect(db.engine).get_table_names())
    assert {"jobs", "jobs_attempts", "invoice", "imports"} <= tables
    assert not {"send_invoice", "other_jobs", "other_jobs_attempts"} & tables


def test_jobs_of_a_bind_run_in_its_database(app: Flask) -> None:
    """The support tables go where the job table goes; its engine is given to both."""
    with app.app_context():
        tables = inspect(db.engines["other"]).get_table_names()
        names = ("", *(f"_{name}" for name in SUPPORT))
        assert set(tables) == {f"other_jobs{name}" for name in names}
        db.session.add(Ping())
        db.session.commit()
        Session = sessionmaker(db.engines["other"])  # noqa: N806

    Runner(Session, OtherJob, listen=False).run_until_idle()

    with app.app_context():
        assert db.session.scalars(select(Ping)).one().result is False


def test_old_style_models_work_as_well() -> None:
    """Without a `model_class` the base and its metaclass are Flask-SQLAlchemy's."""
    old = SQLAlchemy()
    root: Any = type("Job", (JobMixin, old.Model), {"__tablename__": "jobs"})
    kind = type("Send", (root,), {"run": lambda self, ctx: None})

    assert kind.__table__ is root.__table__  # type: ignore[attr-defined]
    assert repr(kind()) == "<Send state=available queue='default'>"

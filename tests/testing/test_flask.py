"""The helpers take Flask-SQLAlchemy's `db.session`, in both ways to test with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, select, text

from sqla_jobs import Arg, JobMixin
from sqla_jobs.testing import ManualClock, assert_enqueued, drain, perform, run_one
from tests.testing.kit import HOUR

flask = pytest.importorskip("flask")
flask_sqlalchemy = pytest.importorskip("flask_sqlalchemy")


@pytest.fixture(scope="module")
def app(engine: Engine) -> Iterator[Any]:
    """Yield an application whose models are in a namespace."""
    app = flask.Flask("tested")
    # As written in a URL: the password is not shown otherwise.
    app.config["SQLALCHEMY_DATABASE_URI"] = engine.url.render_as_string(False)
    options = {"join_transaction_mode": "create_savepoint"}
    db = flask_sqlalchemy.SQLAlchemy(metadata=MetaData(), session_options=options)
    db.init_app(app)

    class Job(JobMixin, db.Model):  # type: ignore[name-defined,misc]
        """The job system."""

        __tablename__ = "flask_jobs"

    class Greet(Job, kind="flask_greet"):
        """A job."""

        name: Arg[str]

        def run(self, ctx: Any) -> str:
            """Enqueue another one, once."""
            if self.name == "Ada":
                ctx.session.add(Greet(name="Bob"))  # pyright: ignore[reportCallIssue]
            ctx.checkpoint()
            return f"hello {self.name}"

    app.db, app.Job, app.Greet = db, Job, Greet
    with app.app_context():
        db.create_all()
    yield app
    with app.app_context():
        db.drop_all()
        db.engine.dispose()


def use(app: Any) -> None:
    """Enqueue, run and look, as a test would."""
    session, clock = app.db.session, ManualClock(app.db.session)
    session.add(app.Greet(name="Ada"))
    session.add(app.Greet(name="Eve", delay=HOUR))

    job = assert_enqueued(session, app.Greet, name="Ada")
    assert run_one(session) == "completed"
    assert job.result == "hello Ada"
    assert drain(session) == {"completed": 1}
    clock.advance(HOUR)
    assert drain(session) == {"completed": 1}
    assert perform(app.Greet(name="x"), session=session).result == "hello x"
    names = select(app.Greet.name).order_by(app.Greet.id)
    assert session.scalars(names).all() == ["Ada", "Eve", "Bob", "x"]


def count(engine: Engine) -> Any:
    """Return how many jobs another connection sees."""
    with engine.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM flask_jobs"))


def test_session_never_committed(app: Any, engine: Engine) -> None:
    """The plain session of an application context does."""
    with app.app_context():
        use(app)
        app.db.session.rollback()

    assert count(engine) == 0


def test_engine_replaced_by_a_connection(app: Any, engine: Engine) -> None:
    """With a connection in the engine's place even commits are undone at the end."""
    db = app.db
    with app.app_context(), db.engine.connect() as connection:
        outer, real = connection.begin(), db.engines[None]
        db.engines[None] = connection
        try:
            use(app)
            db.session.commit()
            db.session.remove()
            assert drain(db.session, app.Job) == {"completed": 1}
            assert len(db.session.scalars(select(app.Greet)).all()) == 4
            db.session.remove()
        finally:
            db.engines[None] = real
            outer.rollback()

    assert count(engine) == 0

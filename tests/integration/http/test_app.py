"""The application as a whole: mounted, on asyncio, without a database, documented."""

from __future__ import annotations

import asyncio
import importlib
import sys
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.pool import NullPool

from sqla_jobs import JobMixin
from sqla_jobs.errors import JobDefinitionError, JobValueError, UnsupportedDialect
from sqla_jobs.http import create_app
from sqla_jobs.http.gate import Gate
from sqla_jobs.http.problems import Refused
from tests.integration.http.conftest import TOKENS, Base, Job, row
from tests.integration.http.kit import Client, serving

NOWHERE = "postgresql+psycopg://nobody:hunter2@127.0.0.1:1/nothing"


def test_application_can_be_mounted(
    maker: sessionmaker[Session], session: Session
) -> None:
    """In another application it answers below its path, with its own refusals."""
    outer = FastAPI()
    outer.mount("/jobs", create_app(maker, Job, tokens=TOKENS, max_body=100))

    with serving(outer) as client:
        everything = client.with_token("all-secret")
        answer = everything.post("/jobs/v1/jobs", queue="q")
        [leased] = everything.post("/jobs/v1/lease", queue="q").json["jobs"]
        wrong = everything.send("PUT", "/jobs/v1/jobs/1")

        assert answer.status == 201
        assert leased["id"] == answer.json["job_id"]
        assert client.post("/jobs/v1/jobs", queue="q").status == 401
        assert everything.post("/jobs/v1/jobs", queue="q" * 120).status == 413
        assert everything.post("/jobs/v1/jobs", queue="").json["errors"]
        assert (wrong.status, wrong.headers["allow"]) == (405, "DELETE, GET")
        assert client.get("/jobs/openapi.json").status == 200


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_async_sessions_serve_as_well(
    dsn: str, maker: sessionmaker[Session], session: Session, driver: str
) -> None:
    """Given an async_sessionmaker, all runs on the event loop."""
    engine = create_async_engine(
        dsn.replace("+psycopg", f"+{driver}"), poolclass=NullPool
    )

    with serving(create_app(async_sessionmaker(engine), Job)) as client:
        job_id = client.enqueue(kind="send", payload={"subject": "Hi"})
        again = client.post("/v1/jobs", queue="q", unique_key="k")
        taken = client.post("/v1/jobs", queue="q", unique_key="k")
        [leased] = client.lease("mail", kinds=["send"])
        late = client.post(f"/v1/jobs/{job_id}/ack", token=leased["token"] + 1)
        ack = client.post(f"/v1/jobs/{job_id}/ack", token=leased["token"])

        assert (again.status, taken.status) == (201, 409)
        assert (late.status, ack.status) == (409, 200)
        assert client.get("/readyz").status == 200
        assert client.get("/v1/queues/mail/depth").json["completed"] == 1
        assert client.get("/v1/queues/mail/dead").json["jobs"] == []
    assert row(session, job_id).state == "completed"


def test_enqueue_uses_the_applications_sessions(
    engine: Engine, session: Session
) -> None:
    """What the application does in its sessions holds for jobs that come over HTTP."""
    seen: list[str] = []

    class Watched(Session):
        def flush(self, objects: Any = None) -> None:
            seen.extend(job.kind for job in self.new)
            super().flush()

    with serving(create_app(sessionmaker(engine, class_=Watched), Job)) as client:
        client.enqueue(queue="q")

    assert seen == ["raw"]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_database_that_is_away_is_503(asynchronous: bool) -> None:
    """Without a database requests are to come again later; the process lives."""
    maker: Any = sessionmaker(create_engine(NOWHERE))
    if asynchronous:
        maker = async_sessionmaker(create_async_engine(NOWHERE))

    with serving(create_app(maker, Job)) as client:
        answers = [
            client.post("/v1/jobs", queue="q"),
            client.post("/v1/lease", queue="q"),
            client.post("/v1/jobs/1/ack", token=1),
            client.get("/v1/queues/q/depth"),
        ]
        ready = client.get("/readyz")

        assert [one.status for one in answers] == [503] * 4
        assert all(int(one.headers["retry-after"]) >= 1 for one in answers)
        assert client.get("/healthz").status == 200
    assert (ready.status, ready.json["status"]) == (503, "unavailable")
    assert ready.json["reasons"]
    assert "hunter2" not in ready.text


END_DOOMED = text(
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name = 'doomed'"
)


def test_connection_that_dies_is_503_once(engine: Engine) -> None:
    """After the server has ended the connections, the service comes back by itself."""
    own = create_engine(engine.url, connect_args={"application_name": "doomed"})
    with serving(create_app(sessionmaker(own), Job)) as client:
        client.enqueue(queue="q")
        with engine.connect() as connection:
            assert connection.scalar(END_DOOMED)

        statuses = [client.post("/v1/jobs", queue="q").status for _ in range(12)]
    own.dispose()

    assert set(statuses) <= {201, 503}
    assert statuses[-1] == 201


@pytest.mark.parametrize(("conflicts", "status"), [(2, 0), (99, 503)])
def test_conflict_is_tried_again(
    maker: sessionmaker[Session], conflicts: int, status: int
) -> None:
    """A deadlock or serialization failure is not the caller's; five are too many."""
    gate, tried = Gate(maker, Job.__jobs__), []

    def work(session: Session) -> str:
        tried.append(1)
        if len(tried) <= conflicts:
            raise_ = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40P01'; END $$"
            session.execute(text(raise_))
        return "done"

    if not status:
        assert asyncio.run(gate.run(work)) == "done"
        assert len(tried) == conflicts + 1
        return
    with pytest.raises(Refused) as caught:
        asyncio.run(gate.run(work))
    assert (caught.value.status_code, len(tried)) == (status, 5)


def test_tables_that_are_missing_are_named_by_readyz(
    maker: sessionmaker[Session], engine: Engine
) -> None:
    """The probe says what differs; requests are 503 until it is mended."""

    class Other(DeclarativeBase):
        pass

    class OtherJob(JobMixin, Other):
        __tablename__ = "http_other_jobs"

    with serving(create_app(maker, OtherJob)) as client:
        ready = client.get("/readyz")
        answer = client.post("/v1/jobs", queue="q")
        Other.metadata.create_all(engine)
        after = client.get("/readyz")
    Other.metadata.drop_all(engine)

    assert ready.status == 503
    assert "http_other_jobs" in ready.json["reasons"][0]
    assert (answer.status, after.status) == (503, 200)


def test_what_cannot_be_served_is_an_error_at_once(
    maker: sessionmaker[Session], dsn: str
) -> None:
    """Wrong factories, classes and databases are told when the application is made."""
    wrong: list[tuple[Any, Any, type[Exception], str]] = [
        (maker(), Job, JobValueError, "needs a sessionmaker"),
        (sessionmaker(), Job, JobValueError, "bound to an engine"),
        (maker, Base, JobDefinitionError, "not a job class"),
        (sessionmaker(create_engine("sqlite://")), Job, UnsupportedDialect, "sqlite"),
    ]
    for factory, job_class, error, message in wrong:
        with pytest.raises(error, match=message):
            create_app(factory, job_class)
    engine = create_async_engine(dsn, poolclass=NullPool)
    with pytest.raises(JobValueError, match="needs an async_sessionmaker"):
        create_app(sessionmaker(engine.sync_engine), Job)


def test_document_has_examples_and_all_refusals(guarded: Client) -> None:
    """Each request body has an example; each endpoint tells what it may refuse."""
    document = guarded.get("/openapi.json").json
    schemas = document["components"]["schemas"]

    for path, methods in document["paths"].items():
        for endpoint in methods.values():
            if not path.startswith("/v1"):
                continue
            assert {"401", "403", "422", "429", "503"} <= endpoint["responses"].keys()
            assert endpoint["security"][0]["bearer"]
            if "{job_id}" in path:
                assert "404" in endpoint["responses"]
    bodies = {name for name in schemas if name.endswith("Request")}
    assert len(bodies) == 10
    for name in bodies:
        assert schemas[name]["examples"], name
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def test_without_tokens_the_document_has_no_security(client: Client) -> None:
    """A document that asks for a token where none is needed would mislead."""
    document = client.get("/openapi.json").json

    assert "securitySchemes" not in document["components"]
    assert "security" not in document["paths"]["/v1/jobs"]["post"]


def test_missing_fastapi_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The import without the extra says which extra it is."""
    for name in [name for name in sys.modules if name.startswith("sqla_jobs.http")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)

    with pytest.raises(ModuleNotFoundError, match=r'pip install "sqla-jobs\[http\]"'):
        importlib.import_module("sqla_jobs.http")

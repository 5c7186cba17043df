"""Secret arguments: real for who does the work, `***` for all who look."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import (
    PayloadError,
    claim,
    discard,
    enqueue_many,
    find_queued,
    requeue,
)
from sqla_jobs._store.enqueue_kind import make_job
from sqla_jobs._store.retention import apply_retention
from sqla_jobs.cli.commands import command
from sqla_jobs.http import create_app
from sqla_jobs.models import decode_payload, job_tables
from sqla_jobs.models.arg import masked
from sqla_jobs.testing import assert_enqueued, refute_enqueued
from tests.integration.http.kit import Client, serving
from tests.security.app import CANARY, Job, Login, Pay

BAD = f"{CANARY}\0"
Make: Any = Pay  # with values that no checker allows


@pytest.fixture(scope="module")
def service(tables: Any) -> Iterator[Client]:
    """Yield a client of the HTTP interface."""
    with serving(create_app(sessionmaker(tables), Job)) as client:
        yield client


@pytest.fixture
def cli(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that runs a command and returns all that it prints."""
    monkeypatch.setenv("APP_DSN", dsn)
    monkeypatch.setenv("SQLA_JOBS_RUNNER", "tests.security.app:make_runner")
    monkeypatch.setenv("SQLA_JOBS_APP_DIR", str(Path(__file__).parents[2]))

    def run(*args: str, status: int = 0) -> str:
        done = CliRunner().invoke(command, args)
        assert done.exit_code == status, done.output
        return done.output

    return run


def discarded(maker: sessionmaker[Session]) -> int:
    """Make a dead letter with a secret, and return its id."""
    with maker.begin() as session:
        session.add(Pay(token=CANARY, card="4", keys={CANARY: 1}))
        session.flush()
        (claimed,) = claim(session, Job)
        discard(session, claimed, "no use")
        return claimed.job_id


@pytest.mark.parametrize(
    "fail",
    [
        lambda s: Pay(token=BAD),
        lambda s: Make(token=CANARY.encode()),
        lambda s: Make(keys={CANARY: "x"}),
        lambda s: Pay(keys={BAD: 1}),
        lambda s: setattr(Pay(), "token", [CANARY]),
        lambda s: Make(payload=[CANARY]),
        lambda s: enqueue_many(s, Pay, [{"token": BAD}]),
        lambda s: enqueue_many(s, Pay, [{"payload": {"token": BAD}}]),
        lambda s: s.add(Pay(payload={"other": {CANARY: BAD}})) or s.flush(),
        lambda s: find_queued(s, Pay(payload={"token": BAD})),
        lambda s: requeue(s, Pay, [1], changes={"token": BAD}),
        lambda s: requeue(s, Pay, [1], changes={"payload": {"token": BAD}}),
        lambda s: requeue(s, Pay, [1], changes={"payload": CANARY}),
        lambda s: make_job(Job, "pay", {"token": BAD}),
        lambda s: make_job(Job, "pay", {"token": [CANARY]}),
    ],
)
def test_no_error_shows_a_secret(
    maker: sessionmaker[Session], fail: Callable[[Session], object]
) -> None:
    """Neither the message nor what led to it has the value; it names the argument."""
    with (
        maker() as session,
        pytest.raises(ValueError, match=r"payload|token|keys") as e,
    ):
        fail(session)

    shows_none(e.value)


def shows_none(error: BaseException) -> None:
    """Fail if an error, or one that led to it, shows the secret."""
    told: BaseException | None = error
    while told is not None:
        assert CANARY not in str(told)
        told = told.__cause__ or (
            None if told.__suppress_context__ else told.__context__
        )


@pytest.mark.parametrize("read", [lambda job: job.token, decode_payload])
def test_value_that_is_stored_wrongly_is_not_shown(
    maker: sessionmaker[Session], read: Callable[[Any], object]
) -> None:
    """A row that does not decode names job, argument and type."""
    with maker() as session:
        session.add(Pay())
        session.flush()
        session.execute(update(Job).values(payload={"token": [CANARY]}))
        job = session.scalars(select(Pay)).one()

        with pytest.raises(
            PayloadError, match=r"<Pay.*Pay\.token: .* \*{3} \(list\)"
        ) as e:
            read(job)

    shows_none(e.value)


def test_default_and_required(maker: sessionmaker[Session]) -> None:
    """A secret argument is an argument: queryable, with a default or required."""
    made: Any = Login
    with pytest.raises(TypeError, match=r"missing 1 required.*'password'"):
        made()
    with maker() as session:
        session.add_all([Pay(token=CANARY), Pay()])
        found = session.scalars(select(Pay).where(Pay.token == CANARY)).one()

    assert found.token == CANARY
    assert Pay().token == ""


def test_readers_over_http_see_a_mask(
    service: Client, maker: sessionmaker[Session]
) -> None:
    """What shows a job has `***`; other arguments are shown."""
    job_id = discarded(maker)

    answers = [
        service.get(f"/v1/jobs/{job_id}"),
        service.get("/v1/queues/default/dead"),
    ]
    shown, (dead,) = answers[0].json, answers[1].json["jobs"]

    assert (
        shown["payload"]
        == dead["payload"]
        == {"token": "***", "card": "4", "keys": "***"}
    )
    assert all(CANARY not in one.text for one in answers)


def test_worker_over_http_gets_the_value(
    service: Client, maker: sessionmaker[Session]
) -> None:
    """A lease has what the work needs."""
    body = {"kind": "pay", "queue": "q", "payload": {"token": CANARY}}
    service.enqueue(**body)

    (job,) = service.lease("q", kinds=["pay"])

    assert job["payload"]["token"] == CANARY


def test_refusals_over_http_show_no_secret(
    service: Client, maker: sessionmaker[Session]
) -> None:
    """A value of the wrong type is not repeated."""
    for payload in ({"token": [CANARY]}, {"keys": {CANARY: "x"}}, {"token": BAD}):
        answer = service.post("/v1/jobs", kind="pay", payload=payload)
        assert answer.status == 422
        assert CANARY not in answer.text


def test_commands_show_a_mask(
    cli: Callable[..., str], maker: sessionmaker[Session]
) -> None:
    """Also where payloads are asked for; errors of `enqueue` repeat no argument."""
    job_id = discarded(maker)

    shown = json.loads(cli("show", str(job_id), "--payload", "--json"))
    said = [
        cli("show", str(job_id), "--payload"),
        cli("show", str(job_id)),
        cli("list"),
        cli("dead"),
        cli("explain", str(job_id)),
        cli("enqueue", "pay", "--json", json.dumps({"token": [CANARY]}), status=2),
        cli("enqueue", "pay", "--json", json.dumps({"token": BAD}), status=2),
        cli("enqueue", "pay", "--json", json.dumps([CANARY]), status=2),
        cli("enqueue", "pay", "--json", CANARY, status=2),
    ]

    assert shown["payload"] == {"token": "***", "card": "4", "keys": "***"}
    assert [text for text in said if CANARY in text] == []


def test_assertions_show_a_mask(maker: sessionmaker[Session]) -> None:
    """What a failed test prints may be public too."""
    with maker() as session:
        session.add(Pay(token=CANARY, card="4"))
        told = list[str]()
        for check in (
            lambda: assert_enqueued(session, Pay, token=f"{CANARY}2"),
            lambda: assert_enqueued(session, Pay, card="5", token=CANARY),
            lambda: refute_enqueued(session, Pay),
            lambda: refute_enqueued(session, Pay, token=CANARY),
        ):
            with pytest.raises(AssertionError) as e:
                check()
            told.append(str(e.value))

    assert CANARY not in repr(told)
    assert "Pay with token=***" in told[0]
    assert "token=***, card='4'" in told[2]


def test_archive_keeps_the_value(maker: sessionmaker[Session]) -> None:
    """The mask is for people; rows have the value, wherever they go."""
    tables, job_id = job_tables(Job), discarded(maker)
    with maker.begin() as session:
        later = datetime.now(UTC) + timedelta(days=1)
        assert apply_retention(session, tables, limit=10, now=later)
        found = session.get(Job.Archived, job_id)
        assert found is not None
        assert found.payload["token"] == CANARY


def test_kind_without_a_class_is_shown_as_it_is() -> None:
    """What no class here declares nobody can know to be secret."""
    assert masked(None, {"token": "x"}) == {"token": "x"}
    assert masked(Pay, {"token": "x", "card": "y"}) == {"token": "***", "card": "y"}
    assert masked(Pay, None) is None

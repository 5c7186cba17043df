"""What a row says is data: no kind, payload or checkpoint is ever code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import JobValueError, Runner, claim
from sqla_jobs._store.enqueue_kind import make_job
from sqla_jobs.models import job_tables
from tests.security.app import Job, Login

KINDS = [
    *("os.system", "os:system", "builtins.eval", "subprocess.Popen", "__import__"),
    *("sec_bomb", "sec_bomb.explode", "sec_bomb:explode", "tests.security.app.Login"),
    *("tests.security.app:Login", "Login", "sqla_jobs.cli.main", "!!python/object"),
]
DATA = {
    "py/object": "sec_bomb.Bomb",
    "__reduce__": ["sec_bomb.explode", []],
    "__class__": "sec_bomb.Bomb",
    "password": "!!python/object/apply:sec_bomb.explode []",
}


@pytest.fixture
def bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a module whose import would be seen."""
    Path(tmp_path, "sec_bomb.py").write_text("def explode(*args): pass\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_row_with_a_dotted_kind_is_inert(
    bomb: None, maker: sessionmaker[Session]
) -> None:
    """It stays as it is, readable as a plain row, whatever a runner does beside it."""
    with maker.begin() as session:
        rows = [{"kind": kind, "payload": DATA} for kind in KINDS]
        session.execute(insert(job_tables(Job).table), rows)
        session.add(Login(password="good"))
    modules = set(sys.modules)

    Runner(maker, Job).run_until_idle()

    with maker() as session:
        jobs = session.scalars(select(Job).order_by(Job.id)).all()
        assert [job.state for job in jobs] == ["available"] * len(KINDS) + ["completed"]
        assert [type(job) for job in jobs] == [Job] * len(KINDS) + [Login]
        assert [job.payload for job in jobs[:-1]] == [DATA] * len(KINDS)
        claimed = claim(session, Job, kinds=KINDS, limit=100)
    assert [one.payload for one in claimed] == [DATA] * len(KINDS)
    assert "sec_bomb" not in set(sys.modules) - modules


@pytest.mark.parametrize("kind", KINDS)
def test_dotted_kind_makes_no_job(kind: str) -> None:
    """Enqueued by its name, a kind is one of the mapped ones or an error."""
    with pytest.raises(JobValueError, match="unknown kind"):
        make_job(Job, kind, {})


def test_runner_imports_no_kind(bomb: None, maker: sessionmaker[Session]) -> None:
    """`kinds=` takes mapped kinds; a name is never a path."""
    with pytest.raises(JobValueError, match=r"sec_bomb\.explode"):
        Runner(maker, Job, kinds=["sec_bomb.explode"])
    assert "sec_bomb" not in sys.modules


def test_data_of_a_known_kind_is_data(bomb: None, maker: sessionmaker[Session]) -> None:
    """Payload, checkpoint and result are read as JSON, with whatever keys."""
    with maker.begin() as session:
        job = Login(password="x")
        session.add(job)
        session.flush()
        session.execute(
            text(
                "UPDATE sec_jobs SET payload = p, checkpoint = p, result = p FROM"
                " (SELECT CAST(:data AS jsonb) p) AS given"
            ),
            {"data": json.dumps(DATA)},
        )

    Runner(maker, Job).run_until_idle()

    with maker() as session:
        found = session.scalars(select(Login)).one()
        assert (found.state, found.password) == ("completed", DATA["password"])
        assert found.checkpoint == DATA
    assert "sec_bomb" not in sys.modules

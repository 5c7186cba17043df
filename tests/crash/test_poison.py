"""Jobs that kill their process end as dead letters; their neighbours survive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import Session

from sqla_jobs.testing import DatabaseServer

if sys.platform != "linux":
    pytest.skip("needs /proc and POSIX limits", allow_module_level=True)

from tests.crash.poison import Base, Effect, Good, Job, Killer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PATIENCE = 60.0


@pytest.fixture
def engine(sqla_jobs_server: DatabaseServer) -> Iterator[Engine]:
    """Yield an engine on a database with the application's tables."""
    with sqla_jobs_server.temporary_database("poison") as dsn:
        engine = create_engine(dsn)
        Base.metadata.create_all(engine)
        yield engine
        engine.dispose()


@pytest.fixture
def supervisor(engine: Engine, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Yield two runner processes of ten slots, started again when they die."""
    dsn = engine.url.render_as_string(hide_password=False)
    command = [
        sys.executable,
        "-m",
        "sqla_jobs",
        "run",
        "tests.crash.poison:make_runner",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--processes", "2"],
            cwd=ROOT,
            env=os.environ | {"DATABASE_URL": dsn, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def test_killers_are_discarded_and_a_hundred_good_jobs_complete(
    engine: Engine, request: pytest.FixtureRequest
) -> None:
    """
    SIGSEGV and exhausted memory take the whole process with them. Each killer is
    discarded as poison after three crashes, on record with who held it and when; all
    good jobs complete, their effects once, however often their process died.
    """
    killers = [Killer(how="segv"), Killer(how="memory")]
    good = [Good() for _ in range(100)]
    with Session(engine, expire_on_commit=False) as session:
        session.add_all([*good[:30], killers[0], *good[30:60], killers[1], *good[60:]])
        session.commit()
    request.getfixturevalue("supervisor")

    wait_until_all_are_final(engine)

    with Session(engine) as session:
        states = session.execute(select(Job.kind, Job.state, Job.crashes)).all()
        done = Counter((kind, state) for kind, state, _ in states)
        assert done == {("good", "completed"): 100, ("killer", "discarded"): 2}
        assert max(crashes for kind, _, crashes in states if kind == "good") < 3
        written = Counter(session.scalars(select(Effect.job_id)))
        assert written == Counter(one.id for one in good)
        for one in killers:
            check_record(session, one.id)


def check_record(session: Session, job_id: int) -> None:
    """Check what a dead letter tells about the crashes."""
    job = session.get_one(Killer, job_id)
    stmt = select(Job.Attempt).where(Job.Attempt.job_id == job_id)
    rows = session.scalars(stmt.order_by(Job.Attempt.number)).all()
    assert (job.reason, job.crashes) == ("poison: 3 crashes", 3)
    assert [row.number for row in rows] == [1, 2, 3]
    assert len({row.runner_id for row in rows}) == 3
    for row in rows:
        assert row.started_at is not None
        assert row.finished_at is not None
        assert row.started_at < row.finished_at
        assert (row.outcome, row.runner_id is None) == ("crash", False)


def wait_until_all_are_final(engine: Engine) -> None:
    """Wait until no job is left to run."""
    until = time.monotonic() + PATIENCE
    live = select(Job.kind, Job.state, Job.crashes).where(
        Job.state.not_in(["completed", "cancelled", "discarded"])
    )
    while True:
        with Session(engine) as session:
            left = session.execute(live).all()
        if not left:
            return
        assert time.monotonic() < until, left
        time.sleep(0.1)

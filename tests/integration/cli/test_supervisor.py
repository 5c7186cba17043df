"""Several processes: they are restarted, stopped together, and never left alone."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from sqla_jobs import JobState
from sqla_jobs.cli import slots, supervise
from sqla_jobs.cli.run import RunSettings
from sqla_jobs.cli.slots import Slot, hopeless
from tests.integration.cli.kit import APP, Command, Running, posix, state_of

pytestmark = posix
Start = Callable[..., Running]
BOTH = pytest.mark.parametrize(
    ("target", "kind"), [("app:runner", "Wait"), ("app:arunner", "AsyncWait")]
)


def started(running: Running, number: int) -> int:
    """Wait for a start of child *number*, and return its process id."""
    found = running.wait_for(rf"child {number} \(process (\d+)\) started")
    return int(found[1])


def two_waiting(
    app: ModuleType, session: Session, start: Start, *, target: str, kind: str
) -> tuple[Running, list[object]]:
    """Return two processes that run a job each, and the jobs."""
    jobs = [getattr(app, kind)() for _ in range(2)]
    session.add_all(jobs)
    session.commit()
    running = start("run", target, "-p", "2", "-c", "1", group=True)
    running.wait_for("job started", times=2)
    return running, jobs


# Restarts


def test_dead_child_is_replaced(
    app: ModuleType, session: Session, start: Start
) -> None:
    """Each child has a name of its own; one that is killed is started again."""
    running = start("run", "app:runner", "--processes", "2")
    first = started(running, 1)
    running.wait_for("own name-2: running kinds")
    names = session.scalars(select(app.Job.Runner.name)).all()

    os.kill(first, signal.SIGKILL)
    running.wait_for(rf"child 1 \(process {first}\) was killed by SIGKILL")
    running.wait_for("starting child 1 again in 1 s")
    second = started(running, 1)
    running.wait_for("own name-1: running kinds")
    job = app.Greet(name="both")
    session.add(job)
    session.commit()
    running.wait_for("hello both")
    running.process.terminate()

    assert running.end() == 0, running.output
    assert second != first
    assert set(names) <= {"own name-1", "own name-2"}
    assert state_of(session, job) is JobState.COMPLETED


def test_child_that_is_killed_while_it_loads_is_replaced(start: Start) -> None:
    """That says nothing of what it loads, as an error would."""
    running = start("run", "app:runner", "--processes", "2")

    os.kill(started(running, 1), signal.SIGKILL)
    running.wait_for("starting child 1 again in 1 s")
    started(running, 1)
    running.process.terminate()

    assert running.end() == 0, running.output


@pytest.mark.slow
def test_hangup_replaces_all_children(session: Session, start: Start) -> None:
    """After SIGHUP each child ends gracefully, and another takes its place."""
    running = start("run", "app:runner", "-p", "2")
    before = {started(running, 1), started(running, 2)}
    running.wait_for("own name-2: running kinds")

    running.process.send_signal(signal.SIGHUP)
    running.wait_for("SIGHUP: restarting all children")
    lines = [running.wait_for(r"child \d \(process (\d+)\) started") for _ in range(2)]
    running.wait_for("running kinds", times=2)
    running.process.terminate()

    assert running.end() == 0, running.output
    assert {int(line[1]) for line in lines}.isdisjoint(before)
    assert running.output.count("own name-1: stopped") == 2
    assert running.output.count("ended with status 0") == 4


# Stops


def test_first_signal_drains_all(
    app: ModuleType, session: Session, start: Start
) -> None:
    """SIGTERM for the supervisor: jobs in all children end, the status is 0."""
    running, jobs = two_waiting(app, session, start, target="app:runner", kind="Wait")

    running.process.terminate()
    running.wait_for("stopping, jobs may run on", times=2)

    assert running.end("xx") == 0, running.output
    assert [state_of(session, job) for job in jobs] == [JobState.COMPLETED] * 2


@BOTH
def test_second_signal_hands_back_in_all(
    app: ModuleType, session: Session, start: Start, *, target: str, kind: str
) -> None:
    """A second SIGTERM: no child waits for its job, the status is 1."""
    running, jobs = two_waiting(app, session, start, target=target, kind=kind)

    running.process.terminate()
    running.wait_for("stopping, jobs may run on", times=2)
    running.process.terminate()
    running.wait_for("child . .* ended with status 1", times=2)

    assert running.process.wait(timeout=30) == 1
    assert [state_of(session, job) for job in jobs] == [JobState.AVAILABLE] * 2


@pytest.mark.parametrize(
    ("target", "kind", "number"),
    [
        ("app:runner", "Wait", signal.SIGTERM),
        ("app:arunner", "AsyncWait", signal.SIGINT),
    ],
)
def test_signal_for_the_whole_group_counts_once(
    app: ModuleType,
    session: Session,
    start: Start,
    *,
    target: str,
    kind: str,
    number: signal.Signals,
) -> None:
    """
    Ctrl-C in a terminal, or a service manager's stop, reaches supervisor and
    children, and is no forced stop.
    """
    running, jobs = two_waiting(app, session, start, target=target, kind=kind)

    os.killpg(running.process.pid, number)
    # A line of each process, in any order.
    running.wait_for("stopping all children|stopping, jobs may run on", times=3)

    assert running.end("xx") == 0, running.output
    assert [state_of(session, job) for job in jobs] == [JobState.COMPLETED] * 2


def test_children_do_not_outlive_the_supervisor(session: Session, start: Start) -> None:
    """When the supervisor is killed, its children stop gracefully."""
    running = start("run", "app:runner", "-p", "2")
    running.wait_for("own name-2: running kinds")

    running.process.kill()
    status = running.end()  # the output ends with the last child

    assert status == -signal.SIGKILL
    assert "own name-1: stopped" in running.output
    assert "own name-2: stopped" in running.output


STUBBORN = """
import json, os, signal, socket
signal.signal(signal.SIGTERM, signal.SIG_IGN)
given = json.loads(os.environ["_SQLA_JOBS_CHILD"])
link = socket.socket(fileno=given["link"])
link.sendall(b'{"grace": 0}\\n')
while True:
    signal.pause()
"""


def settings(**changes: object) -> RunSettings:
    """Return the settings of a supervisor of one child."""
    values: dict[str, object] = {"target": "app:runner", "folder": Path.cwd()}
    values |= dict.fromkeys(("log_level", "log_format"))
    values |= dict.fromkeys(("burst", "fail_on_error", "reload"), False)
    return RunSettings(**values | {"options": {}, "processes": 1} | changes)  # type: ignore[arg-type]


def test_child_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What outlives its grace and some slack gets SIGKILL, and the status is 1."""
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", STUBBORN])
    monkeypatch.setattr(supervise, "SLACK", 0.1)

    class StoppedWhenReady(supervise.Supervisor):
        def _is_ready(self, event: supervise.Ready, now: float) -> None:
            super()._is_ready(event, now)
            os.kill(os.getpid(), signal.SIGTERM)

    assert StoppedWhenReady(settings()).run() == 1


# Burst


def test_burst_ends_when_all_children_did(
    app: ModuleType, session: Session, sqla_jobs: Command
) -> None:
    """Each child runs what is due and is not replaced; the status is the worst."""
    jobs = [app.Greet(name="one"), app.Greet(name="nobody", max_attempts=1)]
    session.add_all(jobs)
    session.commit()

    done = sqla_jobs("run", "app:runner", "--burst", "-p", "2", "--fail-on-error")

    assert done.returncode == 1, done.stderr
    assert [state_of(session, job) for job in jobs] == [
        JobState.COMPLETED,
        JobState.DISCARDED,
    ]
    assert done.stderr.count(" started") == 2
    assert sorted(s[-1] for s in done.stderr.splitlines() if "ended with" in s) == [
        "0",
        "1",
    ]


@pytest.mark.parametrize(("options", "status"), [([], 0), (["--fail-on-error"], 1)])
def test_failed_job_counts_where_it_is_asked(
    app: ModuleType,
    session: Session,
    sqla_jobs: Command,
    *,
    options: list[str],
    status: int,
) -> None:
    """A burst with a failed job is a success, unless --fail-on-error was given."""
    session.add(app.Greet(name="nobody"))
    session.commit()

    done = sqla_jobs("run", "app:runner", "--burst", *options)

    assert done.returncode == status, done.stderr
    assert ("Error: 1 attempts failed" in done.stderr) is bool(status)


# Giving up


def test_module_that_does_not_import_is_reported_once(
    sqla_jobs: Command, tmp_path: Path
) -> None:
    """Only the first child is started; its error is the user's own, its status 2."""
    (tmp_path / "bad.py").write_text("1 / 0\n")

    done = sqla_jobs("run", "bad:runner", "-p", "3", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stderr.count("ZeroDivisionError") == 1
    assert done.stderr.count(" started") == 1


@pytest.mark.slow
def test_children_that_all_fail_at_once_are_given_up(
    session: Session, sqla_jobs: Command, folder: Path
) -> None:
    """No table, no point in starting again: the status is 1."""
    (folder / "missing.py").write_text(APP.replace('"cli_jobs"', '"cli_absent"'))

    done = sqla_jobs("run", "missing:runner", "-p", "2")

    assert done.returncode == 1
    assert "giving up, the children end as soon as they start" in done.stderr


def ended(*ends: tuple[float, int], number: int = 1) -> Slot:
    """Return a slot whose children ran for so many seconds, and their statuses."""
    slot = Slot(number)
    for seconds, status in ends:
        slot.started(object())
        slot.ready_at = 100.0
        slot.ended(100.0 + seconds, status)
    return slot


def test_pause_grows_with_quick_ends() -> None:
    """A child that lasted is replaced at once, others after 1, 2, 4, ... 30 s."""
    slot = Slot(1)
    pauses = []
    for seconds in (60, 1, 1, 1, 1, 1, 1, 60):
        slot.started(object())
        slot.ready_at = 0.0
        pauses.append(slot.ended(seconds, -9))

    assert pauses == [0, 1, 2, 4, 8, 16, 30, 0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([ended((1, 1)), ended((1, 1))], True),
        ([ended((1, 1)), Slot(2)], False),
        ([ended((1, -9)), ended((1, -9))], False),
        ([ended((60, 1), (1, 1)), ended((1, 1))], False),
        ([ended(*[(1, -9)] * slots.MAX_QUICK)], True),
        ([ended(*[(1, -9)] * slots.MAX_QUICK), ended((1, -9))], False),
    ],
    ids=["all", "one", "signals", "lasted", "often", "one often"],
)
def test_supervisor_gives_up_when_it_is_hopeless(
    given: list[Slot], expected: bool
) -> None:
    """All fail at their first start, or all again and again; one that lasts is hope."""
    assert hopeless(given, now=200.0) is expected

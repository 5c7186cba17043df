"""The command line on good input: what runs, how it stops and what it prints."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy.orm import Session

from sqla_jobs import JobState
from sqla_jobs._core.plan import Slots
from sqla_jobs.cli.target import load_runner
from sqla_jobs.errors import JobValueError
from tests.integration.cli.kit import APP, Command, Running, posix, state_of

STOPS = (signal.SIGTERM, signal.SIGINT)

# What it runs


@pytest.mark.parametrize("target", ["app:runner", "app:make_runner"])
def test_burst_runs_what_is_due(
    app: ModuleType, session: Session, sqla_jobs: Command, *, target: str
) -> None:
    """The jobs that are due run, by a runner or by a factory's, and it ends."""
    jobs = [app.Greet(name="one"), app.Greet(name="two")]
    session.add_all(jobs)
    session.commit()

    done = sqla_jobs("run", target, "--burst")

    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["hello one", "hello two"]
    assert [state_of(session, job) for job in jobs] == [JobState.COMPLETED] * 2


@pytest.mark.parametrize(
    "target", ["app:runner", "app.runner", "app:Holder.worker", "app:make_runner"]
)
def test_runner_is_found(
    app: ModuleType, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """A colon, a dot, an attribute of an attribute and a factory all name a runner."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    runner = load_runner(target)

    assert type(runner) is app.Runner
    assert (runner is app.runner) is (target != "app:make_runner")


def test_burst_on_an_empty_queue_is_a_success(
    session: Session, sqla_jobs: Command
) -> None:
    """Nothing to do is no error."""
    done = sqla_jobs("run", "app:runner", "--burst")

    assert (done.returncode, done.stdout) == (0, "")


def test_async_runner_runs(
    app: ModuleType, session: Session, sqla_jobs: Command
) -> None:
    """An AsyncRunner gets an event loop."""
    job = app.AsyncGreet()
    session.add(job)
    session.commit()

    done = sqla_jobs("run", "app:arunner", "--burst")

    assert (done.returncode, done.stdout) == (0, "hello asynchronously\n"), done.stderr
    assert state_of(session, job) is JobState.COMPLETED


def test_queues_and_kinds_narrow_the_runner(
    app: ModuleType, session: Session, sqla_jobs: Command
) -> None:
    """Only jobs of the queues and kinds on the command line run."""
    mine = app.Greet(name="mine", queue="mail")
    others = [app.Greet(), app.AsyncGreet(queue="mail"), app.Wait(queue="mail")]
    session.add_all([mine, *others])
    session.commit()

    done = sqla_jobs(
        "run", "app:runner", "--burst", "-q", "mail:2,sms:1", "-k", "greet"
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("hello mine")
    assert "queues mail, sms; concurrency 3" in done.stderr
    assert {state_of(session, job) for job in others} == {JobState.AVAILABLE}


def test_options_replace_the_runners_own(session: Session, sqla_jobs: Command) -> None:
    """Name and concurrency of the command line win; repeated queues add up."""
    options = ["-q", "a", "-q", "b", "-c", "2,7", "--name", "given name"]

    done = sqla_jobs("run", "app:runner", "--burst", *options)
    plain = sqla_jobs("run", "app:runner", "--burst")

    assert "given name: running kinds greet, wait; queues a, b; concurrency 7" in (
        done.stderr
    )
    assert "own name: running kinds greet, wait; queues all; concurrency 10" in (
        plain.stderr
    )


def test_console_script_imports_from_the_current_folder(
    session: Session, folder: Path, environ: dict[str, str], *, tmp_path: Path
) -> None:
    """The script lies elsewhere, as pip puts it; the module is found all the same."""
    script = tmp_path / "sqla-jobs"
    script.write_text("import sys; from sqla_jobs.cli import main; sys.exit(main())")

    done = subprocess.run(
        [sys.executable, str(script), "run", "app:runner", "--burst"],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


# How it stops


@posix
@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize(
    ("target", "kind"), [("app:runner", "Wait"), ("app:arunner", "AsyncWait")]
)
def test_first_signal_drains(
    app: ModuleType,
    session: Session,
    start: Callable[..., Running],
    *,
    number: signal.Signals,
    target: str,
    kind: str,
) -> None:
    """The running job ends and is completed, no other is claimed, the status is 0."""
    job = getattr(app, kind)()
    session.add(job)
    session.commit()
    running = start("run", target, "-c", "1")
    running.wait_for("job started")

    running.process.send_signal(number)
    running.wait_for("stopping, jobs may run on for 0:00:30")
    later = getattr(app, kind)()
    session.add(later)
    session.commit()
    status = running.end("x")

    assert status == 0, running.output
    assert "job ended" in running.output
    assert state_of(session, job) is JobState.COMPLETED
    assert state_of(session, later) is JobState.AVAILABLE


@posix
@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize(
    ("target", "kind"), [("app:runner", "Wait"), ("app:arunner", "AsyncWait")]
)
def test_second_signal_hands_back(
    app: ModuleType,
    session: Session,
    start: Callable[..., Running],
    *,
    number: signal.Signals,
    target: str,
    kind: str,
) -> None:
    """The unfinished job is available again at once, uncounted, and the status is 1."""
    job = getattr(app, kind)()
    session.add(job)
    session.commit()
    running = start("run", target)
    running.wait_for("job started")

    running.process.send_signal(number)
    running.wait_for("stopping")
    running.process.send_signal(number)
    running.wait_for("stopped")
    status = running.process.wait(timeout=30)

    assert status == 1, running.output
    assert state_of(session, job) is JobState.AVAILABLE
    assert job.attempt == 0


@posix
def test_grace_ends_the_drain(
    app: ModuleType, session: Session, start: Callable[..., Running]
) -> None:
    """With a grace of zero the first signal hands back at once; the status is 1."""
    job = app.Wait()
    session.add(job)
    session.commit()
    running = start("run", "app:runner", "--grace", "0")
    running.wait_for("job started")

    running.process.send_signal(signal.SIGTERM)
    running.wait_for("stopped")

    assert running.process.wait(timeout=30) == 1
    assert state_of(session, job) is JobState.AVAILABLE


# What it changes


def test_configured_runner_is_as_if_made_so(app: ModuleType) -> None:
    """Each option replaces the one given before, the others are those given before."""
    runner = app.Runner(app.Session, app.Job, queues={"a": 2, "b": 3}, name="old")

    runner.configure(queues=["c"])
    assert runner.options.slots == Slots.of(None, ["c"])
    runner.configure(concurrency=(2, 4), name="new")
    assert runner.options.slots == Slots.of((2, 4), ["c"])
    assert runner.name == "new"


@pytest.mark.parametrize(
    "options",
    [{"grace": timedelta(-1)}, {"concurrency": 0}, {"queues": []}, {"kinds": ["no"]}],
    ids=str,
)
def test_refused_option_changes_nothing(
    app: ModuleType, options: dict[str, Any]
) -> None:
    """A value that the constructor refuses is refused, and the others with it."""
    runner = app.make_runner()
    before = (runner.options, dict(runner.handlers))

    with pytest.raises(JobValueError):
        runner.configure(**{"name": "new", "kinds": ["greet"]} | options)

    assert (runner.options, runner.handlers) == before


def test_configured_kinds_run(app: ModuleType, session: Session) -> None:
    """A runner made for one kind runs the kind it is configured for."""
    job = app.Greet()
    session.add(job)
    session.commit()
    runner = app.Runner(app.Session, app.Job, kinds=["wait"])

    runner.configure(kinds=["greet"])
    runner.run_until_idle()

    assert state_of(session, job) is JobState.COMPLETED


# What it prints


LINE = r"^WARNING  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} sqla_jobs: "


def test_log_lines_name_the_job(
    app: ModuleType, session: Session, sqla_jobs: Command
) -> None:
    """A failure is a line with level, time, message and the fields of the job."""
    job = app.Greet(name="nobody", max_attempts=1)
    session.add(job)
    session.commit()

    done = sqla_jobs("run", "app:runner", "--burst", "-l", "ERROR")

    (line,) = [each for each in done.stderr.splitlines() if "discarded" in each]
    assert line.startswith("ERROR    ")
    assert line.endswith(f"[job_id={job.id} kind=greet attempt=1 queue=default]")
    assert "INFO" not in done.stderr


def test_log_is_plain_unless_on_a_terminal(
    session: Session, sqla_jobs: Command
) -> None:
    """No colours get into a file; information is shown without being asked for."""
    done = sqla_jobs("run", "app:runner", "--burst")

    assert "\x1b" not in done.stderr
    assert re.search(r"(?m)^INFO     [-\d]{10} [:\d]{8},\d{3} sqla_jobs: ", done.stderr)
    assert re.search(f"(?m){LINE}.*have no handler here", done.stderr)


@posix
def test_log_has_colours_on_a_terminal(
    session: Session, folder: Path, environ: dict[str, str]
) -> None:
    """On a terminal the level stands out."""
    ours, theirs = os.openpty()
    environ = {**environ, "TERM": "xterm-256color"}
    environ.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "sqla_jobs", "run", "app:runner", "--burst"]
    with os.fdopen(ours, "rb", 0) as terminal:
        done = subprocess.run(
            command, cwd=folder, env=environ, stderr=theirs, check=False
        )
        os.close(theirs)
        text = terminal.read(10_000).decode()

    assert done.returncode == 0
    assert "\x1b[33mWARNING" in text


def test_logging_of_the_application_stays(
    session: Session, sqla_jobs: Command, folder: Path
) -> None:
    """An application that set up logging keeps its format, and gets no line twice."""
    setup = 'import logging; logging.basicConfig(format="MINE %(message)s", level=20)'
    (folder / "logs.py").write_text(setup + APP)

    done = sqla_jobs("run", "logs:runner", "--burst")

    lines = [each for each in done.stderr.splitlines() if "running kinds" in each]
    assert len(lines) == 1
    assert lines[0].startswith("MINE own name: running kinds")


def test_help_lists_the_exit_statuses(sqla_jobs: Command) -> None:
    """The help of the command tells how it stops and what its status means."""
    done = sqla_jobs("run", "-h")

    assert done.returncode == 0
    assert "\n    1  running jobs had to be handed back, or running failed\n" in (
        done.stdout
    )


def test_version_is_printed(sqla_jobs: Command) -> None:
    """The version is a line of its own, for bug reports."""
    done = sqla_jobs("-V")

    assert done.returncode == 0
    assert re.fullmatch(r"sqla-jobs (\d+\.\d+\S*|\(not installed\))\n", done.stdout)


@pytest.mark.parametrize(
    "command", [["-V"], ["run", "app:runner", "--burst"], ["check", "app:runner"]]
)
def test_command_imports_only_what_it_needs(
    session: Session, folder: Path, environ: dict[str, str], command: list[str]
) -> None:
    """No command pays for what others do; this is the start-up time of a runner."""
    others = {"alembic", "fastapi", "mako", "pydantic", "rich", "uvicorn", "watchfiles"}
    source = f"""
        import atexit, sys
        loaded = lambda: {others} & {{name.partition(".")[0] for name in sys.modules}}
        atexit.register(lambda: print("loaded:", *sorted(loaded())))
        sys.argv = ["sqla-jobs", *sys.argv[1:]]
        from sqla_jobs.cli import main
        main()
    """

    said = subprocess.check_output(
        [sys.executable, "-c", textwrap.dedent(source), *command],
        cwd=folder,
        env=environ,
        stderr=subprocess.STDOUT,
        text=True,
    )

    assert said.splitlines()[-1] == "loaded:", said


def test_without_the_extra_it_says_what_to_install(environ: dict[str, str]) -> None:
    """Where click is not installed, the command names the extra."""
    source = """
        import sys
        sys.modules["click"] = None
        from sqla_jobs.cli import main
        main()
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert 'pip install "sqla-jobs[cli]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1

"""The command line, as a user meets it: processes, exit statuses and messages."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select
from sqlalchemy.orm import Session

from sqla_jobs import JobState
from sqla_jobs._core.plan import Slots
from sqla_jobs.cli.commands import command
from sqla_jobs.cli.target import load_runner
from sqla_jobs.errors import JobValueError

ROOT = Path(__file__).parents[2]
STOPS = (signal.SIGTERM, signal.SIGINT)

posix = pytest.mark.skipif(os.name != "posix", reason="signals")

APP = """
import asyncio, os
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, sessionmaker
from sqla_jobs import Arg, JobMixin, arg
from sqla_jobs.runner.aio import AsyncRunner
from sqla_jobs.runner.threads import Runner

class Base(DeclarativeBase):
    pass

class Job(JobMixin, Base):
    __tablename__ = "cli_jobs"

class Greet(Job, kind="greet"):
    name: Arg[str] = arg(default="you")

    def run(self, ctx):
        if self.name == "nobody":
            raise ValueError(self.name)
        print(f"hello {self.name}", flush=True)

class Wait(Job, kind="wait"):
    def run(self, ctx):
        print("job started", flush=True)
        os.read(0, 1)
        print("job ended", flush=True)

class AsyncGreet(Job, kind="async_greet"):
    async def run(self, ctx):
        print("hello asynchronously", flush=True)

class AsyncWait(Job, kind="async_wait"):
    async def run(self, ctx):
        print("job started", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, os.read, 0, 1)
        print("job ended", flush=True)

DSN = os.environ["APP_DSN"]
engine = create_engine(DSN)
Session = sessionmaker(engine)
runner = Runner(Session, Job, name="own name")
aengine = create_async_engine(DSN)
AsyncSession = async_sessionmaker(aengine)
arunner = AsyncRunner(AsyncSession, Job)

def make_runner():
    return Runner(Session, Job)

def make_named(name):
    return Runner(Session, Job, name=name)

def make_nothing():
    return "nothing"

async def make_coroutine():
    return runner

def make_broken():
    return 1 / 0

class Holder:
    worker = runner
"""


@pytest.fixture(scope="module")
def app(dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """Yield the application's module; its file is in a folder, its tables are made."""
    path = tmp_path_factory.mktemp("app") / "app.py"
    path.write_text(APP)
    spec = importlib.util.spec_from_file_location("app", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APP_DSN", dsn)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        module.Base.metadata.create_all(module.engine)
        yield module
        module.Base.metadata.drop_all(module.engine)
        module.engine.dispose()


@pytest.fixture
def session(app: ModuleType) -> Iterator[Session]:
    """Yield a session of the application's; no job of an earlier test is there."""
    with app.Session() as session:
        for job in session.scalars(select(app.Job)):
            session.delete(job)
        session.commit()
        yield session


@pytest.fixture
def folder(app: ModuleType) -> Path:
    """Return the folder of the application."""
    return Path(str(app.__file__)).parent


@pytest.fixture
def environ(dsn: str) -> dict[str, str]:
    """Return the environment of the command; the library is importable in it."""
    return {**os.environ, "APP_DSN": dsn, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


Command = Callable[..., subprocess.CompletedProcess[str]]
Invoke = Callable[..., Result]


@pytest.fixture
def sqla_jobs(folder: Path, environ: dict[str, str]) -> Command:
    """Return a function that runs the command in the application's folder."""

    def run(*args: str, cwd: Path = folder) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sqla_jobs", *args],
            cwd=cwd,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


class Running:
    """A command that runs: what it prints, and its end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.output = ""

    def wait_for(self, pattern: str) -> None:
        """Read lines until one matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if re.search(pattern, line):
                return
        pytest.fail(f"no line matches {pattern!r}:\n{self.output}")

    def end(self, text: str | None = None) -> int:
        """Type *text*, wait for the end and return the exit status."""
        rest, _ = self.process.communicate(text, timeout=30)
        self.output += rest
        return self.process.returncode


@pytest.fixture
def start(folder: Path, environ: dict[str, str]) -> Iterator[Callable[..., Running]]:
    """Yield a function that starts the command; it is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def run(*args: str) -> Running:
        process = subprocess.Popen(
            [sys.executable, "-m", "sqla_jobs", *args],
            cwd=folder,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return Running(process)

    yield run
    for process in started:
        process.kill()
        with process:
            process.communicate()


@pytest.fixture
def invoke(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Invoke]:
    """Yield a function that runs the command in this process, up to an error."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield lambda *args: CliRunner().invoke(command, args)
    for name in set(sys.modules) - known:
        if name.startswith("pack"):
            del sys.modules[name]


def state_of(session: Session, job: Any) -> JobState:
    """Return the state of *job* in the database."""
    session.refresh(job)
    return JobState(job.state)


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


# What it cannot load


def test_import_error_is_shown_as_the_users_own(
    sqla_jobs: Command, tmp_path: Path
) -> None:
    """The traceback begins in their file, and no file of the library is in it."""
    (tmp_path / "outer.py").write_text("import inner\n")
    (tmp_path / "inner.py").write_text("import no_such_module\n")

    done = sqla_jobs("run", "outer:runner", cwd=tmp_path)

    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].strip() == f'File "{tmp_path}/outer.py", line 1, in <module>'
    assert "ModuleNotFoundError: No module named 'no_such_module'" in lines
    assert str(ROOT) not in done.stderr
    assert "importlib" not in done.stderr
    assert lines[-1] == "Error: 'outer:runner' cannot be loaded"


@pytest.mark.parametrize(
    ("source", "line", "message"),
    [
        ("1 / 0", 'bad.py", line 2, in <module>', "ZeroDivisionError"),
        ("x = = 1", 'bad.py", line 2', "SyntaxError: invalid syntax"),
        (
            "import sqla_jobs.runner.threads as t; t.Runner(None, object)",
            'bad.py", line 2, in <module>',
            "object",
        ),
    ],
    ids=["any", "syntax", "library"],
)
def test_error_of_the_module_has_its_place_and_no_frame_of_ours(
    sqla_jobs: Command, tmp_path: Path, *, source: str, line: str, message: str
) -> None:
    """A failing statement, a syntax error and a refusal by the library look alike."""
    (tmp_path / "bad.py").write_text(f"# the user's\n{source}\n")

    done = sqla_jobs("run", "bad:runner", cwd=tmp_path)

    assert done.returncode == 2
    places = [each.strip() for each in done.stderr.splitlines() if "File" in each]
    assert len(places) == 1
    assert places[0].endswith(line)
    assert message in done.stderr


def test_error_of_a_factory_is_the_users_own(sqla_jobs: Command) -> None:
    """What a factory raises is shown from its own frame on."""
    done = sqla_jobs("run", "app:make_broken")

    assert done.returncode == 2
    assert "line" in done.stderr.splitlines()[1]
    assert done.stderr.splitlines()[1].endswith("in make_broken")
    assert str(ROOT) not in done.stderr


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("ap:runner", "no module 'ap' in {cwd} or installed; did you mean 'app'?"),
        ("zzz:runner", "no module 'zzz' in {cwd} or installed"),
        ("pack.job:runner", "no module 'job' in package 'pack'; did you mean 'jobs'?"),
        ("app.sub:runner", "no module 'app.sub': 'app' is a module, no package"),
        ("app:runer", "module 'app' has no attribute 'runer'; did you mean 'runner'?"),
        ("app:zzz", "module 'app' has no attribute 'zzz'; did you mean 'arunner'?"),
        ("app:Holder.work", "the class Holder has no attribute 'work'; did you mean"),
        ("app", "'app' names no runner; name it too, as in 'app:runner'"),
        ("app.py:runner", "names a file; name its module, as in 'app:runner'"),
        ("./pack/jobs.py", "names a file; name its module, as in 'pack.jobs:runner'"),
        ("app:", "'app:' names no runner; name it too, as in 'app:runner'"),
        ("app:run ner", "'app:run ner' is not of the form 'module:runner'"),
    ],
)
def test_missing_target_is_one_line(
    invoke: Invoke, folder: Path, *, target: str, message: str
) -> None:
    """A module or attribute that is not there: one line, with what was meant."""
    (folder / "pack").mkdir(exist_ok=True)
    (folder / "pack" / "__init__.py").touch()
    (folder / "pack" / "jobs.py").touch()

    done = invoke("run", target)

    assert done.exit_code == 2
    assert message.format(cwd=folder) in done.output
    assert len(done.output.splitlines()) == 1


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "app:Session",
            "'app:Session' is a sessionmaker, not a Runner, an AsyncRunner",
        ),
        ("app:AsyncSession", "is an async_sessionmaker, not a Runner"),
        ("app:Session", "make one of it, as in: runner = Runner(Session, Job)"),
        ("app:DSN", "'app:DSN' is a str, not a Runner"),
        ("app:Job", "is the class Job, not a Runner"),
        ("app:asyncio", "is module 'asyncio', not a Runner"),
        ("app:make_named", "is the function make_named(name), not a Runner"),
        ("app:make_nothing", "returned a str, not a Runner or an AsyncRunner"),
        ("app:make_coroutine", "returned a coroutine, not a Runner or an AsyncRunner"),
    ],
)
def test_wrong_target_says_what_it_is(
    invoke: Invoke, target: str, message: str
) -> None:
    """Something else than a runner: what was found, and what is wanted."""
    done = invoke("run", target)

    assert done.exit_code == 2
    assert message in done.output
    assert len(done.output.splitlines()) == 1


# Options that cannot be used


def test_refusal_ends_the_process(sqla_jobs: Command, tmp_path: Path) -> None:
    """A real process ends with status 2 and one line."""
    done = sqla_jobs("run", "nowhere:runner", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stderr == f"Error: no module 'nowhere' in {tmp_path} or installed\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("-c 0", "'--concurrency': concurrency must be a whole number of 1 or more"),
        ("-c many", "'--concurrency': 'many' is neither a whole number nor MIN,MAX"),
        ("-c 1,2,3", "'1,2,3' is neither a whole number nor MIN,MAX"),
        ("-c 5,2", "concurrency must be (min, max) with min <= max, got (5, 2)"),
        ("-q mail:x", "the slots of queue 'mail' must be a whole number, got 'x'"),
        ("-q mail:0", "queues['mail'] must be a whole number of 1 or more, got 0"),
        ("-q mail:2,sms", "give slots to all queues or to none"),
        ("-q mail:1,mail:2", "'--queues': 'mail' is named twice"),
        ("-q mail,", "'--queues': a name is missing in 'mail,'"),
        ("--grace -1", "'--grace': must be zero or more seconds, got -1"),
        ("--grace nan", "'--grace': must be zero or more seconds, got nan"),
        ("--grace soon", "'--grace': 'soon' is not a number of seconds"),
        ("-k nope", "kinds= names 'nope', which is not mapped; known: async_greet"),
        ("-k async_greet", "has an async handler, which an AsyncRunner runs"),
        ("-l loud", "'loud' is not one of 'debug', 'info'"),
        ("--unknown", "No such option"),
    ],
)
def test_bad_option_is_a_usage_error(
    invoke: Invoke, options: str, message: str
) -> None:
    """A value that a runner would refuse is refused by name, with the usage."""
    done = invoke("run", "app:runner", "--burst", *options.split())

    assert done.exit_code == 2
    assert done.output.startswith("Usage: ")
    assert message in done.output.splitlines()[-1]


# What stops it at run time


def test_missing_tables_are_one_line(sqla_jobs: Command, folder: Path) -> None:
    """Tables that are not there are named, with the command that makes them."""
    source = APP.replace('"cli_jobs"', '"cli_absent"')
    (folder / "absent.py").write_text(source)

    done = sqla_jobs("run", "absent:runner", "--burst")
    asynchronous = sqla_jobs("run", "absent:arunner", "--burst")

    for each in (done, asynchronous):
        assert each.returncode == 1
        assert each.stderr.startswith("Error: the database has no table cli_absent")
        assert "alembic upgrade head" in each.stderr
        assert len(each.stderr.splitlines()) == 1


def test_unsupported_database_is_one_line(sqla_jobs: Command, folder: Path) -> None:
    """Another database is a failure to run, though the module's import meets it."""
    source = APP.replace("create_engine(DSN)", 'create_engine("sqlite://")', 1)
    (folder / "other.py").write_text(source)

    done = sqla_jobs("run", "other:runner", "--burst")

    assert done.returncode == 1
    assert done.stderr.startswith("Error: sqla_jobs does not support 'sqlite'")
    assert len(done.stderr.splitlines()) == 1


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

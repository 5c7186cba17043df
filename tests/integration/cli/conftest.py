"""Fixtures: an application in a folder, and three ways to run the command on it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from sqlalchemy import select
from sqlalchemy.orm import Session

from sqla_jobs.cli.commands import command
from tests.integration.cli.kit import APP, ROOT, Command, Invoke, Running
from tests.programs import Programs


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


@pytest.fixture
def sqla_jobs(folder: Path, environ: dict[str, str], programs: Programs) -> Command:
    """Return a function that runs the command in the application's folder."""

    def run(*args: str, cwd: Path = folder) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*programs.python, "-m", "sqla_jobs", *args],
            cwd=cwd,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def start(
    folder: Path, environ: dict[str, str], programs: Programs
) -> Iterator[Callable[..., Running]]:
    """
    Yield a function that starts the command; it is killed at the end.

    With *group* it leads a process group, as under a terminal.
    """
    started: list[subprocess.Popen[str]] = []

    def run(*args: str, cwd: Path = folder, group: bool = False) -> Running:
        python = [sys.executable] if group else programs.python
        process = subprocess.Popen(
            [*python, "-m", "sqla_jobs", *args],
            cwd=cwd,
            env=environ,
            start_new_session=group,
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

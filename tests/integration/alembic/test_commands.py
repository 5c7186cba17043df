"""The `alembic` command on a project's files, as its developers type it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, inspect, make_url, text

from sqla_jobs.alembic.template import init, template_dir

ROOT = Path(__file__).parents[3]
MODELS = """\
from sqlalchemy.orm import DeclarativeBase
from sqla_jobs import JobMixin


class Base(DeclarativeBase):
    pass


class Job(JobMixin, Base):
    __tablename__ = "jobs"
"""
# Three commands in one process: importing is most of their time.
REVISE = """\
import sys
from alembic.config import main

main(["revision", "--autogenerate", "-m", sys.argv[1]])
main(["upgrade", "head"])
main(["check"])
"""


def run(folder: Path, *command: str, status: int = 0, **environment: str | None) -> str:
    """Run Python with these arguments; it must end with *status*."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DATABASE_URL": None, **environment}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={name: value for name, value in env.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def storage(engine: Engine) -> str:
    """Return the storage parameters of the job table."""
    query = text("SELECT reloptions FROM pg_class WHERE relname = 'jobs'")
    with engine.connect() as connection:
        return str(connection.scalar(query))


@pytest.mark.parametrize("name", ["sync", "async", "pyproject", "pyproject_async"])
def test_init_and_first_revision(
    name: str, tmp_path: Path, url: str, database: Engine
) -> None:
    """A template and one line in a file lead to the first revision, upgraded."""
    (tmp_path / "models.py").write_text(MODELS)
    if name == "sync":  # by Alembic's own command, and by hand
        source = str(template_dir(name))
        run(tmp_path, "-m", "alembic", "init", "-t", source, "migrations")
        ini = tmp_path / "alembic.ini"
        line = "target_metadata = models:Base"
        ini.write_text(ini.read_text().replace("[alembic]", f"[alembic]\n{line}"))
    else:
        folder, ini = tmp_path / "migrations", tmp_path / "alembic.ini"
        init(folder, template=name, config=ini, metadata="models:Base")
    if name == "async":
        driver = make_url(url).set(drivername="postgresql+asyncpg")
        url = driver.render_as_string(hide_password=False)

    said = run(tmp_path, "-c", REVISE, "first", DATABASE_URL=url)

    assert "No new upgrade operations detected" in said
    assert {"jobs", "jobs_attempts"} < {*inspect(database).get_table_names()}
    assert "fillfactor=" in storage(database)
    [path] = (tmp_path / "migrations/versions").glob("*.py")
    assert "sqla_jobs" not in path.read_text()


def test_existing_project(tmp_path: Path, url: str, database: Engine) -> None:
    """Alembic's own env.py, which knows nothing of jobs, gets the tables right."""
    (tmp_path / "models.py").write_text(MODELS)
    run(tmp_path, "-m", "alembic", "init", "migrations")
    env, ini = tmp_path / "migrations/env.py", tmp_path / "alembic.ini"
    lines = "from models import Base\ntarget_metadata = Base.metadata"
    env.write_text(env.read_text().replace("target_metadata = None", lines))
    address = url.replace("%", "%%")
    old = "driver://user:pass@localhost/dbname"
    ini.write_text(ini.read_text().replace(old, address))

    said = run(tmp_path, "-c", REVISE, "jobs")

    assert "No new upgrade operations detected" in said
    assert "fillfactor=" in storage(database)
    [path] = (tmp_path / "migrations/versions").glob("*.py")
    assert "sqla_jobs" not in path.read_text()

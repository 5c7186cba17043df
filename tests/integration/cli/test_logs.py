"""``--log-format json``: each line is an object, of bounded length."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy.orm import Session

from sqla_jobs.cli.logs import MAX_TRACEBACK, JsonFormatter
from tests.integration.cli.kit import APP, Command


def test_json_lines_have_the_fields_of_the_job(
    app: ModuleType, session: Session, sqla_jobs: Command
) -> None:
    """Every line parses; a failure tells the job and the error with its traceback."""
    job = app.Greet(name="nobody", max_attempts=1, queue="mail")
    session.add(job)
    session.commit()

    done = sqla_jobs("run", "app:runner", "--burst", "--log-format", "json")

    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all({"ts", "level", "logger", "message", "pid"} <= set(x) for x in lines)
    (failure,) = [line for line in lines if "error_type" in line]
    ts, pid, traceback = (failure.pop(key) for key in ("ts", "pid", "traceback"))
    assert failure == {
        "level": "warning",
        "logger": "sqla_jobs",
        "message": f"job {job.id} (greet) failed in attempt 1 of 1: ValueError",
        "job_id": job.id,
        "kind": "greet",
        "attempt": 1,
        "queue": "mail",
        "error_type": "ValueError",
        "error_message": "nobody",
    }
    assert ts.endswith("+00:00")
    assert pid > 0
    assert traceback.endswith("ValueError: nobody")


def formatted(message: str, *, exc_info: Any = None, **extra: Any) -> dict[str, Any]:
    """Return what becomes of a log record."""
    logger = logging.getLogger("made")
    record = logger.makeRecord(
        "made", logging.INFO, "x.py", 1, message, (), exc_info, extra=extra
    )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


def test_traceback_is_bounded_and_keeps_its_end() -> None:
    """However long an error's message, a line does not grow without end."""
    try:
        raise ValueError("x" * 100_000 + "the end")
    except ValueError:
        found = formatted("failed", exc_info=sys.exc_info())

    assert len(found["traceback"]) == MAX_TRACEBACK
    assert found["traceback"].endswith("the end")
    assert len(found["error_message"]) == MAX_TRACEBACK


def test_any_value_and_text_make_a_line() -> None:
    """A line break in a message, and values that JSON does not know, do no harm."""
    found = formatted("one\ntwo é", path=Path("x"), nothing=None)

    assert found["message"] == "one\ntwo é"
    assert (found["path"], found["nothing"]) == ("x", None)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_application_that_logs_itself_is_told(
    session: Session, sqla_jobs: Command, folder: Path, processes: str
) -> None:
    """Its own handlers stay, and that the format was not used is said in them."""
    setup = 'import logging; logging.basicConfig(format="MINE %(message)s", level=20)'
    (folder / "own_logs.py").write_text(setup + APP)

    done = sqla_jobs(
        *("run", "own_logs:runner", "--burst", "--log-format", "json"),
        *("-p", processes),
    )

    assert done.returncode == 0, done.stderr
    told = "MINE the application has set up logging: --log-format json has no effect"
    assert done.stderr.count(told) == int(processes)

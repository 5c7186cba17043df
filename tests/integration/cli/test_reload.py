"""``--reload``: a change restarts the process, an error in it does not end it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from tests.integration.cli.kit import APP, Invoke, Running, posix


@posix
@pytest.mark.slow
def test_change_restarts_even_after_a_syntax_error(
    session: Session, start: Callable[..., Running], tmp_path: Path
) -> None:
    """New code runs after each change; a broken file is shown, and mended later."""
    pytest.importorskip("watchfiles")
    app = tmp_path / "app.py"
    app.write_text(APP)
    running = start("run", "app:runner", "--reload", cwd=tmp_path)
    running.wait_for(f"watching {tmp_path} for changes")
    running.wait_for("own name: running kinds")

    app.write_text(APP + 'print("second version", flush=True)\n')
    running.wait_for("app.py changed")
    running.wait_for("own name: stopped")
    running.wait_for("second version")
    running.wait_for("own name: running kinds")
    app.write_text(APP + "x = = 1\n")
    running.wait_for("SyntaxError: invalid syntax")
    running.wait_for("waiting for a change")
    app.write_text(APP + 'print("third version", flush=True)\n')
    running.wait_for("third version")
    running.wait_for("own name: running kinds")
    running.process.terminate()

    assert running.end() == 0, running.output


@posix
def test_module_may_be_broken_at_the_start(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    """The first load may fail too; Ctrl-C still ends the wait."""
    pytest.importorskip("watchfiles")
    (tmp_path / "bad.py").write_text("1 / 0\n")
    running = start("run", "bad:runner", "--reload", "-p", "2", cwd=tmp_path)
    running.wait_for("ZeroDivisionError")
    running.wait_for("waiting for a change")

    (tmp_path / "bad.py").write_text("2 / 0\n")
    running.wait_for("bad.py changed")
    running.wait_for("waiting for a change")
    running.process.terminate()

    assert running.end() == 0, running.output


def test_without_the_extra_it_says_what_to_install(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where watchfiles is not installed, the extra is named."""
    monkeypatch.setitem(sys.modules, "watchfiles", None)

    done = invoke("run", "app:runner", "--reload")

    assert done.exit_code == 2
    assert 'pip install "sqla-jobs[reload]"' in done.output
    assert len(done.output.splitlines()) == 1

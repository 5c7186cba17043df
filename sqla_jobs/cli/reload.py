"""Reports changes of the application's files, for ``--reload``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from sqla_jobs.cli.errors import TargetError

log = logging.getLogger("sqla_jobs")


def require_watchfiles() -> None:
    """
    Check that ``--reload`` can work.

    Raises:
        TargetError: If the extra is missing.
    """
    if find_spec("watchfiles") is None:
        raise TargetError(
            "--reload needs watchfiles; install it with:"
            ' pip install "sqla-jobs[reload]"'
        )


def changes(folder: Path, report: Callable[[list[str]], None]) -> None:
    """Call *report* in a thread, from now on, with the Python files that changed."""
    from watchfiles import PythonFilter, watch

    def work() -> None:
        for found in watch(folder, watch_filter=PythonFilter(), step=50, debounce=400):
            names = sorted({path for _, path in found})
            report([_shown(Path(name), folder) for name in names])

    log.info("supervisor: watching %s for changes", folder)
    threading.Thread(target=work, name="sqla-jobs-reload", daemon=True).start()


def _shown(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)

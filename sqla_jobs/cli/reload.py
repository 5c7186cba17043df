"""Reports changes of the application's files, for ``--reload``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def changes(folder: Path, report: Callable[[list[str]], None]) -> Iterator[None]:
    """Call *report*, in a thread, with the Python files below *folder* that change."""
    from watchfiles import PythonFilter, watch

    over = threading.Event()

    def work() -> None:
        for found in watch(
            folder, watch_filter=PythonFilter(), debounce=400, stop_event=over
        ):
            names = sorted({path for _, path in found})
            report([_shown(Path(name), folder) for name in names])

    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    log.info("supervisor: watching %s for changes", folder)
    thread = threading.Thread(target=work, name="sqla-jobs-reload", daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Left alone, a thread in compiled code can crash the end of the process.
        over.set()
        thread.join(10)


def _shown(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)

"""The command ``sqla-jobs``; it needs the extra ``cli``, and says so without it."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import NoReturn


def main() -> NoReturn:
    """
    Run the command line and exit.

    The status is 0 when all went well, 1 after an error at run time or a forced stop,
    2 when the command or the application's module cannot be used.
    """
    missing = [name for name in ("click", "rich") if find_spec(name) is None]
    if missing:
        sys.exit(_needs_extra(missing))
    from sqla_jobs.cli.commands import command

    command(prog_name="sqla-jobs")
    raise AssertionError  # pragma: no cover - click exits


def _needs_extra(missing: list[str]) -> int:
    sys.stderr.write(
        f"sqla-jobs: the command line needs {' and '.join(missing)};"
        ' install it with: pip install "sqla-jobs[cli]"\n'
    )
    return 2

"""Index Python's standard library with two runner processes, and kill some."""

from __future__ import annotations

import argparse
import signal
import sys
import sysconfig
import tempfile
from contextlib import ExitStack
from pathlib import Path

from database import database, place
from demo import PROCESSES, Demo
from parsing import source_files
from processes import Workers
from screen import Screen
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

AT_LEAST = 501  # files, with tests where the rest is not enough


def main() -> int:
    """Run the demonstration; return 0 if all is as it should be."""
    options = read_options()
    files, ordinary = source_files(Path(sysconfig.get_path("stdlib")))
    files = files[: options.files or max(ordinary, AT_LEAST)]
    if not files:
        print("this Python's standard library has no source files", file=sys.stderr)
        return 1
    screen = Screen(total=len(files) + 1)
    introduce(screen, len(files), kill=options.kill)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with ExitStack() as stack:
            dsn = stack.enter_context(database())
            logs = stack.enter_context(tempfile.TemporaryDirectory())
            engine = create_engine(dsn)
            stack.callback(engine.dispose)
            workers = stack.enter_context(Workers(dsn, Path(logs)))
            demo = Demo(sessionmaker(engine), workers, screen, files)
            return demo.run(kill=options.kill, break_it=options.break_it)
    except KeyboardInterrupt:
        screen.say("Interrupted: the processes are stopped, the tables are gone.")
        return 130


def read_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, metavar="N", help="only the first N files")
    parser.add_argument(
        "--no-kill", dest="kill", action="store_false", help="kill no process"
    )
    parser.add_argument("--break-it", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.files is not None and options.files < 1:
        parser.error(f"--files must be 1 or more, got {options.files}")
    return options


def introduce(screen: Screen, count: int, *, kill: bool) -> None:
    """Say what is going to happen."""
    python = sys.version.partition(" ")[0]
    crash = "; twice, one that holds jobs gets a SIGKILL" if kill else ""
    screen.say(
        f"1. Enqueue a job per file of Python {python}'s library: {count} files."
    )
    screen.say(f"2. Index them in {PROCESSES} processes, then cross-reference{crash}.")
    screen.say(f"3. Compare with a direct count. Database: {place()}.")


if __name__ == "__main__":
    sys.exit(main())

"""Print what each plain way of a job costs now, or write it into the table."""

from __future__ import annotations

import argparse
import logging
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.counts import limits
from tests.counts.paths import PATHS, Ways
from tests.counts.server import Counts

TABLE = re.compile(r"# fmt: off\n.*?\n\}\n", re.DOTALL)


def main() -> None:
    """Measure, print and perhaps write."""
    parser = argparse.ArgumentParser(prog="python -m tests.counts", description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the table")
    args = parser.parse_args()
    logging.getLogger("sqla_jobs").setLevel(logging.ERROR)
    with Ways.start() as ways:
        server = ways.counted.server
        found = {name: ways.measure(path) for name, path in PATHS.items()}
    show(found)
    if args.write:
        write(found, server, Path(limits.__file__))


def show(found: dict[str, Counts]) -> None:
    """Print each count beside its limit."""
    table = Table("per job or claim", *Counts._fields, title="measured (limit)")
    for name, counts in found.items():
        most = limits.limits(name) if name in limits.MEASURED else counts
        pairs = zip(counts, most, strict=True)
        table.add_row(name, *(f"{one:,.3f} ({top:,.3f})" for one, top in pairs))
    Console(width=120).print(table)


def write(found: dict[str, Counts], server: int, file: Path) -> None:
    """Replace the table in *file*."""
    rows = [
        f'    "{name}":'.ljust(41) + f"Counts({', '.join(map(_padded, counts))}),"
        for name, counts in found.items()
    ]
    head = [_measured_with(), f"POSTGRESQL = {server}"]
    table = "\n".join([*head, "MEASURED: dict[str, Counts] = {", *rows, "}"])
    text, count = TABLE.subn(lambda _: f"# fmt: off\n{table}\n", file.read_text())
    assert count == 1
    file.write_text(text)


def _padded(count: float) -> str:
    return f"{count:6.3f}" if count < 100 else f"{count:6,.0f}".replace(",", "_")


def _measured_with() -> str:
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True)
    versions = (f"{name} {version(name)}" for name in ("SQLAlchemy", "psycopg"))
    return f"# Commit {commit.strip()}, {', '.join(versions)}."


if __name__ == "__main__":
    main()

"""What commands print: tables for people, or JSON for programs."""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import click

WIDE = 10_000  # not to a terminal: lines stay whole, for grep

as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON instead of text."
)
"""Gives a command the switch ``--json``."""


def print_json(value: Any) -> None:
    """Print *value* in ASCII; times are ISO 8601, durations seconds, bytes base64."""
    click.echo(json.dumps(value, default=_plain, indent=2))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes | memoryview):
        return b64encode(value).decode()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str
) -> None:
    """Print rows under the names of their columns; *empty* where there are none."""
    from rich.table import Table  # late: most commands print no table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(value)) for value in row))
    _print(table if table.row_count else Text(empty))


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print one line per fact that there is."""
    width = max(map(len, facts), default=0) + 2
    for name, value in facts.items():
        if value is not None:
            click.echo(f"{name + ':':{width}}{shown(value)}")


def _print(what: Any) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDE
    buffer = StringIO()
    Console(file=buffer, width=width, color_system=None).print(what)
    for line in buffer.getvalue().splitlines():
        click.echo(line.rstrip())


def shown(value: Any) -> str:
    """Return *value* for people; what a terminal would obey is escaped."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.astimezone().isoformat(sep=" ", timespec="seconds")
    if isinstance(value, timedelta):
        return f"{value.total_seconds():g} s"
    if isinstance(value, list | dict):
        value = json.dumps(value, default=_plain, ensure_ascii=False)
    return printable(str(value))


def printable(text: str, *, keep: str = "") -> str:
    """Return *text* with all that is no visible character escaped, but for *keep*."""
    return "".join(
        one if one.isprintable() or one in keep else ascii(one)[1:-1] for one in text
    )


def counted(number: int, noun: str) -> str:
    """Return a number of things."""
    return f"{number:,} {noun}{'s' * (number != 1)}"

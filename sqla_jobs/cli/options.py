"""The options of ``run``: how each reads on the command line and elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from sqla_jobs.cli.completion import complete_queues, complete_runner
from sqla_jobs.cli.logs import FORMATS, LEVELS
from sqla_jobs.cli.params import (
    parse_concurrency,
    parse_count,
    parse_lease,
    parse_names,
    parse_poll,
    parse_queues,
    parse_seconds,
    parse_share,
    parse_url,
)
from sqla_jobs.cli.settings import (
    Setting,
    Target,
    as_given,
    choice_of,
    count_of,
    counts_of,
    names_of,
    number_of,
    queues_of,
    seconds_of,
    switch_of,
    text_of,
)

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]


def _option(
    *names: str, parse: Any = as_given, from_toml: Any, **attrs: Any
) -> Decorator:
    return click.option(*names, cls=Setting, parse=parse, from_toml=from_toml, **attrs)


def _switch(name: str, text: str) -> Decorator:
    return _option(f"--{name}/--no-{name}", from_toml=switch_of, help=text)


def _seconds(name: str, parse: Any, text: str) -> Decorator:
    return _option(
        f"--{name}", metavar="SECONDS", parse=parse, from_toml=seconds_of, help=text
    )


def _choice(*names: str, choices: tuple[str, ...], text: str) -> Decorator:
    kind = click.Choice(choices, case_sensitive=False)
    return _option(*names, type=kind, from_toml=choice_of(*choices), help=text)


def target(function: F) -> F:
    """Give a command the argument that names the runner."""
    argument = click.argument(
        "target",
        cls=Target,
        parse=as_given,
        from_toml=text_of,
        shell_complete=complete_runner,
    )
    return argument(function)


def runner(function: F) -> F:
    """Give a command the option that names the runner, where arguments name jobs."""
    option = _option(
        *("-r", "--runner", "target"),
        key="runner",
        metavar="MODULE:NAME",
        parse=as_given,
        from_toml=text_of,
        shell_complete=complete_runner,
        help="The runner of the application whose jobs are meant; as TARGET of run.",
    )
    given: F = option(function)
    return given


def app_dir(function: F) -> F:
    """Give a command the option for the folder of the application."""
    option = _option(
        "--app-dir",
        metavar="FOLDER",
        parse=Path,
        from_toml=text_of,
        help="Import modules of this folder, not of the current one.",
    )
    given: F = option(function)
    return given


_OF_RUN: list[Decorator] = [
    _option(
        *("-q", "--queues"),
        multiple=True,
        metavar="QUEUE[:SLOTS]",
        parse=parse_queues,
        from_toml=queues_of,
        shell_complete=complete_queues,
        help="Take jobs of these queues only, and of each at most SLOTS at once. Repeat"
        " it, or separate with commas; give slots to all of them or to none. QUEUE is"
        ' a name, \'["NAME", "CHANNEL"]\' or \'{"prefix": "TEXT"}\'.',
    ),
    _option(
        *("-k", "--kinds"),
        multiple=True,
        metavar="KIND",
        parse=parse_names,
        from_toml=names_of,
        help="Run jobs of these kinds only. Repeat it, or separate with commas.",
    ),
    _option(
        *("-c", "--concurrency"),
        metavar="N|MIN,MAX",
        parse=parse_concurrency,
        from_toml=counts_of,
        help="Run at most N jobs at once, in each process; with MIN,MAX refill up to"
        " MAX only when fewer than MIN run.",
    ),
    _option(
        "--threads",
        metavar="N",
        parse=parse_count,
        from_toml=count_of,
        help="Run sync jobs in at most N threads, in each process; what is claimed"
        " beyond waits. 2 or 3 are the fastest for short jobs that use the database.",
    ),
    _option(
        *("-p", "--processes"),
        metavar="N",
        parse=parse_count,
        from_toml=count_of,
        help="Run N processes, and start one again when it dies.  [default: 1]",
    ),
    _option(
        "--retry-share",
        metavar="SHARE",
        parse=parse_share,
        from_toml=number_of,
        help="The part of the claimed jobs, 0 to 1, that retried ones get before fresh"
        " ones.",
    ),
    _seconds(
        "grace",
        parse_seconds,
        "How long running jobs may go on after a stop, before they are handed back.",
    ),
    _seconds(
        "lease", parse_lease, "How long a claim holds between heartbeats, 3 or more."
    ),
    _seconds("poll", parse_poll, "The longest time between looks at an idle database."),
    _switch("listen", "Whether to hold a connection that tells of new jobs."),
    _option(
        "--listen-url",
        metavar="URL",
        parse=parse_url,
        from_toml=text_of,
        help="Make that connection by this URL, straight to PostgreSQL, where the"
        " application's goes through a pooler. One with a password belongs into the"
        " variable SQLA_JOBS_LISTEN_URL.",
    ),
    _option(
        "--name",
        metavar="TEXT",
        from_toml=text_of,
        help="Name the runner, in logs and its row.",
    ),
    _switch("burst", "Run what is due, then exit instead of waiting."),
    _switch(
        "fail-on-error",
        "With --burst: exit with status 1 if a job failed in it.",
    ),
    _switch("reload", "Start again when a Python file changes; for development."),
    _choice(
        *("-l", "--log-level"),
        choices=LEVELS,
        text="Log this and worse to standard error.  [default: info]",
    ),
    _choice(
        "--log-format",
        choices=FORMATS,
        text="Log lines for people, or JSON objects.  [default: text]",
    ),
]


def of_run(function: F) -> F:
    """Give a command the options of ``run``."""
    for option in reversed(_OF_RUN):
        function = option(function)
    return function

"""Options that choose jobs: by queue, kind and state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from functools import wraps
from typing import Any

import click

from sqla_jobs._core.states import FINAL, LIVE, JobState
from sqla_jobs._store.listing import Filter

Command = Callable[..., Any]
JOB_ID = click.IntRange(1, 2**63 - 1)


def read_time(text: str) -> datetime:
    """
    Return the point in time that ISO 8601 text with a time zone means.

    Raises:
        click.BadParameter: If it means none.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        told = f"{text!r} is no time; as in 2030-01-31T12:00:00Z"
        raise click.BadParameter(told) from None
    if found.tzinfo is None:
        told = f"{text!r} has no time zone; as in {found.isoformat()}Z"
        raise click.BadParameter(told)
    return found


def _given(
    queue: tuple[str, ...], kind: tuple[str, ...], state: tuple[str, ...]
) -> Filter:
    return Filter(
        queues=list(queue) or None,
        kinds=list(kind) or None,
        states=frozenset(map(JobState, state)) or None,
    )


def filtered(states: Iterable[JobState]) -> Callable[[Command], Command]:
    """
    Give a command options that choose jobs, of *states* only.

    It gets a `Filter` as *wanted*, whose states are None where none was named.
    """
    choices = [state.value for state in JobState if state in frozenset(states)]

    def decorate(function: Command) -> Command:
        @wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            asked = {name: given.pop(name) for name in ("queue", "kind", "state")}
            return function(*args, wanted=_given(**asked), **given)

        made: Command = call
        for option in reversed(_options(choices)):
            made = option(made)
        return made

    return decorate


def _options(choices: list[str]) -> list[Callable[[Command], Command]]:
    return [
        click.option(
            *("-q", "--queue"),
            multiple=True,
            metavar="NAME",
            help="Jobs of this queue only. Repeat it for more.",
        ),
        click.option(
            *("-k", "--kind"),
            multiple=True,
            metavar="KIND",
            help="Jobs of this kind only. Repeat it for more.",
        ),
        click.option(
            *("-s", "--state"),
            multiple=True,
            metavar="STATE",
            type=click.Choice(choices, case_sensitive=False),
            help=f"Jobs in this state only: {', '.join(choices)}. Repeat it for more.",
        ),
    ]


job_filter = filtered(JobState)
"""Gives a command options that choose any jobs."""
live_filter = filtered(LIVE)
"""Gives a command options that choose jobs that have not ended."""
final_filter = filtered(FINAL)
"""Gives a command options that choose jobs that have ended."""


def limited(function: Command) -> Command:
    """Give a command the options ``--limit`` and ``--before``."""
    limit = click.option(
        *("-n", "--limit"),
        type=click.IntRange(1, 10_000),
        default=50,
        show_default=True,
        metavar="N",
        help="At most so many.",
    )
    before = click.option(
        "--before",
        type=JOB_ID,
        metavar="ID",
        help="Only jobs with lower ids: the next page.",
    )
    return limit(before(function))

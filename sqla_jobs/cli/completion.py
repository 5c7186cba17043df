"""Shell completion: the script, and the values that only this command knows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from sqla_jobs.cli.errors import TargetError
from sqla_jobs.cli.settings import section

PROGRAM = "sqla-jobs"
VARIABLE = "_SQLA_JOBS_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


def print_script(command: click.Command, shell: str | None) -> None:
    """
    Print the script for a shell.

    Raises:
        TargetError: If no shell is given and SHELL names none that is supported.
    """
    name = shell or Path(os.environ.get("SHELL", "")).name
    kind = get_completion_class(name) if name in SHELLS else None
    if kind is None:
        known = ", ".join(SHELLS)
        raise TargetError(f"no completion for the shell {name!r}; name one of {known}")
    click.echo(kind(command, {}, PROGRAM, VARIABLE).source())


def complete_templates(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[str]:
    """Return the names of the templates that begin so."""
    from sqla_jobs.alembic.template import template_names

    return _begin(incomplete, template_names())


def complete_queues(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[str]:
    """Return the queues in pyproject.toml that begin so."""
    return _begin(incomplete, _configured(ctx, "queues"))


def complete_runner(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[str]:
    """Return the runner in pyproject.toml if it begins so."""
    return _begin(incomplete, _configured(ctx, "runner"))


def _configured(ctx: click.Context, key: str) -> list[str]:
    try:
        found = section(ctx)
    except TargetError:
        return []  # it is shown when the command runs
    value = found.values.get(key, []) if found is not None else []
    return [value] if isinstance(value, str) else [str(each) for each in value]


def _begin(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]

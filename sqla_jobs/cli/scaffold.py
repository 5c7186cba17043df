"""``sqla-jobs template`` and ``init``: Alembic's environment for the job tables."""

from __future__ import annotations

from pathlib import Path

import click

from sqla_jobs.alembic.template import init, template_dir
from sqla_jobs.cli.errors import TargetError
from sqla_jobs.errors import JobValueError


def print_template(name: str) -> None:
    """
    Print the absolute path of a template.

    Raises:
        TargetError: If there is none of that name.
    """
    try:
        click.echo(str(template_dir(name)))
    except JobValueError as exc:
        raise TargetError(str(exc)) from exc


def init_migrations(
    directory: Path,
    *,
    template: str,
    config: Path | None,
    package: bool,
    metadata: str | None,
) -> None:
    """
    Write what ``alembic init`` writes, and say what to do next.

    Raises:
        TargetError: If something is there already; nothing is written then.
    """
    try:
        init(
            directory,
            template=template,
            config=config,
            package=package,
            metadata=metadata,
        )
    except (JobValueError, OSError) as exc:
        raise TargetError(str(exc)) from exc
    click.echo("Next: alembic revision --autogenerate -m jobs && alembic upgrade head")

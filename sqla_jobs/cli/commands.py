"""The commands of ``sqla-jobs``; the work of each is imported when it runs."""

from __future__ import annotations

from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version

import click

from sqla_jobs.cli.params import (
    parse_concurrency,
    parse_grace,
    parse_names,
    parse_queues,
    parsed_by,
)

HELP = {"help_option_names": ["-h", "--help"]}
LEVELS = ["debug", "info", "warning", "error", "critical"]


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    try:
        number = version("sqla-jobs")
    except PackageNotFoundError:  # a checkout that was never installed
        number = "(not installed)"
    click.echo(f"sqla-jobs {number}")
    ctx.exit()


@click.group(context_settings=HELP)
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def command() -> None:
    """Run the background jobs of a SQLAlchemy application."""


@command.command("run")
@click.argument("target", metavar="MODULE:RUNNER")
@click.option(
    "-q",
    "--queues",
    multiple=True,
    metavar="NAME[:SLOTS]",
    callback=parsed_by(parse_queues),
    help="Take jobs of these queues only, and of each at most SLOTS at once. Repeat"
    " it, or separate with commas; give slots to all of them or to none.",
)
@click.option(
    "-k",
    "--kinds",
    multiple=True,
    metavar="KIND",
    callback=parsed_by(parse_names),
    help="Run jobs of these kinds only. Repeat it, or separate with commas.",
)
@click.option(
    "-c",
    "--concurrency",
    metavar="N|MIN,MAX",
    callback=parsed_by(parse_concurrency),
    help="Run at most N jobs at once; with MIN,MAX refill up to MAX only when fewer"
    " than MIN run.",
)
@click.option(
    "--grace",
    metavar="SECONDS",
    callback=parsed_by(parse_grace),
    help="How long running jobs may go on after a stop, before they are handed back.",
)
@click.option("--name", metavar="TEXT", help="Name the runner, in logs and its row.")
@click.option(
    "--burst", is_flag=True, help="Run what is due, then exit instead of waiting."
)
@click.option(
    "-l",
    "--log-level",
    type=click.Choice(LEVELS, case_sensitive=False),
    help="Log this and worse to standard error.  [default: info]",
)
def run(
    target: str,
    *,
    queues: dict[str, int] | list[str] | None,
    kinds: list[str] | None,
    concurrency: int | tuple[int, int] | None,
    grace: timedelta | None,
    name: str | None,
    burst: bool,
    log_level: str | None,
) -> None:
    """
    Run jobs until stopped.

    MODULE:RUNNER names a Runner or an AsyncRunner of the application, or a function
    without arguments that returns one: "app.jobs:runner". Modules of the current
    folder can be imported. The options replace those the runner was made with;
    what is not given stays.

    The first SIGTERM or SIGINT (Ctrl-C) stops claiming and lets running jobs end for
    the time of --grace; the second hands them back at once.

    \b
    Exit status:
      0  stopped, or nothing left to do (--burst)
      1  running jobs had to be handed back, or running failed
      2  the command is wrong, or the module cannot be imported
    """  # noqa: D301 - click reads the control character
    from sqla_jobs.cli.run import run_target

    options = {
        "queues": queues,
        "kinds": kinds,
        "concurrency": concurrency,
        "grace": grace,
        "name": name,
    }
    run_target(target, options, burst=burst, log_level=log_level)

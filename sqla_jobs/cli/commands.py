"""The commands of ``sqla-jobs``; the work of each is imported when it runs."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from sqla_jobs.cli import changes, jobs, options, queues
from sqla_jobs.cli.completion import SHELLS, complete_templates, print_script
from sqla_jobs.cli.errors import TargetError
from sqla_jobs.cli.grants import grants_command
from sqla_jobs.cli.output import as_json
from sqla_jobs.cli.serve import serve
from sqla_jobs.cli.settings import (
    folder_of,
    missing_target,
    warn_of_unknown_variables,
)

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


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
@options.target
@options.of_run
@options.app_dir
@click.option("--dry-run", is_flag=True, help="Print what would run, and exit.")
@click.pass_context
def run(
    ctx: click.Context,
    /,
    target: str | None,
    *,
    app_dir: Path | None,
    dry_run: bool,
    **given: Any,
) -> None:
    """
    Run jobs until stopped.

    TARGET names a Runner or an AsyncRunner of the application, or a function
    without arguments that returns one: "app.jobs:runner". Modules of the current
    folder can be imported. The options replace those the runner was made with;
    what is not given stays.

    Each option may come from a variable instead, SQLA_JOBS_LOG_LEVEL for --log-level
    and SQLA_JOBS_RUNNER for TARGET, or from [tool.sqla_jobs] in pyproject.toml. The
    command line wins over the variable, and that over the file.

    The first SIGTERM or SIGINT (Ctrl-C) stops claiming and lets running jobs end for
    the time of --grace; the second hands them back at once. With --processes or
    --reload, SIGHUP restarts the processes.

    \b
    Exit status:
      0  stopped, or nothing left to do (--burst)
      1  running jobs had to be handed back, or running failed
      2  the command is wrong, or the module cannot be imported
    """  # noqa: D301 - click reads the control character
    from sqla_jobs.cli.child import child_of_environment
    from sqla_jobs.cli.run import OPTIONS, RunSettings, describe_run, run_target

    child = child_of_environment()
    if child is None:
        warn_of_unknown_variables(ctx)
    if target is None:
        raise missing_target(ctx)
    settings = RunSettings(
        target=target,
        folder=folder_of(ctx, app_dir),
        options={name: given[name] for name in OPTIONS if given[name] is not None},
        burst=bool(given["burst"]),
        fail_on_error=bool(given["fail_on_error"]),
        processes=given["processes"] or 1,
        reload=bool(given["reload"]),
        log_level=given["log_level"],
        log_format=given["log_format"],
    )
    if dry_run:
        describe_run(settings)
    elif child is None and (settings.reload or settings.processes > 1):
        _supervise(ctx, settings)
    else:
        run_target(settings, child)


@command.command("check")
@options.target
@options.app_dir
@click.pass_context
def check(ctx: click.Context, /, target: str | None, *, app_dir: Path | None) -> None:
    """
    Compare the job tables in the database with the code.

    TARGET is the runner, as for the command run.

    \b
    Exit status:
      0  the tables are as the code says
      1  they differ: the differences, and the command that mends them, are printed
      2  the module cannot be imported, or the database cannot be reached
    """  # noqa: D301 - click reads the control character
    from sqla_jobs.cli.check import check_target

    warn_of_unknown_variables(ctx)
    if target is None:
        raise missing_target(ctx)
    check_target(target, folder_of(ctx, app_dir))


@command.command("template")
@click.argument("name", default="sync", shell_complete=complete_templates)
def template(name: str) -> None:
    """
    Print the path of an Alembic template, for "alembic init -t".

    NAME is sync (the default), async, pyproject or pyproject_async.
    """
    from sqla_jobs.cli.scaffold import print_template

    print_template(name)


@command.command("init")
@click.argument("directory", default="migrations", type=click.Path(path_type=Path))
@click.option(
    "-t",
    "--template",
    default="sync",
    show_default=True,
    metavar="NAME",
    shell_complete=complete_templates,
    help="The template: sync, async, pyproject or pyproject_async.",
)
@click.option(
    "-c",
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The configuration file to write.  [default: alembic.ini]",
)
@click.option("--package", is_flag=True, help="Give the folders an __init__.py.")
@click.option(
    "--metadata",
    metavar="MODULE:BASE",
    help="Where the models are; without it the configuration leaves a place for it.",
)
def init(
    directory: Path,
    *,
    template: str,
    config: Path | None,
    package: bool,
    metadata: str | None,
) -> None:
    """
    Write an Alembic environment for the job tables.

    It does what "alembic init" does, with one of the templates here. DIRECTORY is
    the new folder, migrations by default. Where something is there already, nothing
    is written and the exit status is 2.
    """
    from sqla_jobs.cli.scaffold import init_migrations

    init_migrations(
        directory, template=template, config=config, package=package, metadata=metadata
    )


@command.command("completion")
@click.argument("shell", type=click.Choice(SHELLS), required=False)
def completion(shell: str | None) -> None:
    """
    Print a script that completes this command in a shell.

    SHELL is the one of the variable SHELL by default. For bash, put this line into
    ~/.bashrc: eval "$(sqla-jobs completion bash)"
    """
    print_script(command, shell)


@command.command("bench")
@click.option(
    "--dsn",
    metavar="URL",
    required=True,
    envvar="SQLA_JOBS_BENCH_DSN",
    help="The database; one with a password belongs into the variable"
    " SQLA_JOBS_BENCH_DSN.",
)
@click.option(
    "--jobs",
    type=click.IntRange(100, 1_000_000),
    default=5_000,
    show_default=True,
    metavar="N",
    help="Jobs per loop; a fifth of them where each is a transaction.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    metavar="N",
    help="Measure each loop so often, after a round that does not count.",
)
@click.option(
    *("-c", "--concurrency"),
    type=click.IntRange(1, 1_000),
    default=100,
    show_default=True,
    metavar="N",
    help="Jobs at once in the runners; 10 at most where they write.",
)
@click.option(
    "--schema",
    metavar="NAME",
    default="sqla_jobs_bench",
    show_default=True,
    help="The schema to make and to remove.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@as_json
def bench(**given: Any) -> None:
    """
    Measure jobs per second on a database, beside plain loops on the same.

    It works in a schema of its own, which it makes and removes; for that the role
    needs CREATE on the database. The ratio tells how much of the time is the
    database's: the plain loop does what a queue cannot do without.

    \b
    Exit status:
      0  it was measured
      1  the schema cannot be made or removed, or the database does not answer
      2  the command line is wrong
    """  # noqa: D301 - click reads the control character
    from sqla_jobs.cli.bench import BenchSettings, run_bench

    run_bench(BenchSettings(**given))


def _supervise(ctx: click.Context, settings: Any) -> None:
    from sqla_jobs.cli.reload import require_watchfiles

    if os.name != "posix":
        raise TargetError(
            "--processes and --reload need the signals of POSIX; start the command"
            " several times instead"
        )
    if settings.reload:
        require_watchfiles()
    from sqla_jobs.cli.supervise import supervise

    ctx.exit(supervise(settings))


for _command in (
    queues.ping,
    queues.stats,
    queues.queues,
    jobs.list_command,
    jobs.show,
    jobs.explain_command,
    jobs.enqueue,
    changes.retry,
    changes.cancel,
    changes.dead,
    grants_command,
    serve,
):
    command.add_command(_command)

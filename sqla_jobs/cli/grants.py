"""``sqla-jobs grants``: the least privileges of three roles, as SQL."""

from __future__ import annotations

import click

from sqla_jobs._dialects.pg_grants import grants
from sqla_jobs.cli.database import Database, on_database


@click.command("grants")
@click.option(
    "--enqueue",
    metavar="ROLE",
    required=True,
    help="Enqueues, and confirms or aborts holds.",
)
@click.option(
    "--work", metavar="ROLE", required=True, help="Runs jobs, and enqueues too."
)
@click.option(
    "--admin", metavar="ROLE", required=True, help="Cancels, requeues, deletes."
)
@on_database
def grants_command(database: Database, *, enqueue: str, work: str, admin: str) -> None:
    """
    Print the GRANTs that three roles need, for the owner of the tables to run.

    Nothing is executed. Run it again after a migration: it takes back what is there
    before it grants.
    """
    options = database.engine.get_execution_options()
    schemas = options.get("schema_translate_map")
    statements = grants(
        database.tables, enqueue=enqueue, work=work, admin=admin, schemas=schemas
    )
    click.echo("\n".join(statements))

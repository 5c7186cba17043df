"""How Alembic finds the models and the database. This file is yours to change."""

from __future__ import annotations

import os
from logging.config import fileConfig
from typing import Any

from alembic import context
from alembic.util import CommandError
from sqlalchemy import create_engine, pool
from sqlalchemy.schema import CreateSchema

# Imported, it also shows autogenerate the job tables' storage parameters.
from sqla_jobs.alembic.environment import create_schemas, load_metadata

config = context.config

# A program may bring its connection: config.attributes["connection"] = connection
connection = config.attributes.get("connection")
if connection is None and config.config_file_name:
    fileConfig(config.config_file_name, disable_existing_loggers=False)

# `target_metadata = myapp.models:Base` of the configuration. Autogenerate knows only
# models that are imported: if that module does not import them all, do so here.
target_metadata = load_metadata(config)
schemas = {table.schema for table in target_metadata.tables.values()}

# A schema per tenant: alembic -x tenant=acme upgrade head
tenant = context.get_x_argument(as_dictionary=True).get("tenant")


def database_url() -> str:
    """Return DATABASE_URL of the environment, else sqlalchemy.url of the ini file."""
    url = os.environ.get("DATABASE_URL") or config.get_main_option("sqlalchemy.url")
    if not url:
        ini = config.config_file_name
        raise CommandError(f"set DATABASE_URL, or sqlalchemy.url in {ini}")
    return url


def include_name(name: str | None, type_: str, parents: object) -> bool:
    """Leave schemas alone that no model uses; None is the default schema."""
    return type_ != "schema" or name in schemas


def run_migrations(**where: Any) -> None:
    """Run the migrations, or what else the command does."""
    context.configure(
        target_metadata=target_metadata,
        include_schemas=schemas != {None},
        include_name=include_name,
        compare_server_default=True,
        transaction_per_migration=True,
        process_revision_directives=create_schemas,
        **where,
    )
    with context.begin_transaction():
        if tenant:
            use_schema(tenant)
        context.run_migrations()


def use_schema(name: str) -> None:
    """Have everything without a schema of its own happen in this one."""
    dialect = context.get_context().dialect
    quoted = dialect.identifier_preparer.quote_identifier(name)
    context.execute(CreateSchema(name, if_not_exists=True))
    context.execute(f"SET search_path TO {quoted}")
    dialect.default_schema_name = name


if context.is_offline_mode():  # alembic upgrade --sql
    named = {"paramstyle": "named"}
    run_migrations(url=database_url(), literal_binds=True, dialect_opts=named)
elif connection is not None:
    run_migrations(connection=connection)
else:
    engine = create_engine(database_url(), poolclass=pool.NullPool)
    with engine.connect() as connection:
        run_migrations(connection=connection)

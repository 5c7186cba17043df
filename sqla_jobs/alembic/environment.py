"""What the `env.py` of the templates is made of."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from pkgutil import resolve_name
from typing import Any

from alembic.config import Config
from alembic.operations.ops import CreateTableOp, ExecuteSQLOp, MigrationScript
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import MetaData, inspect

_KEY = "target_metadata"


def load_metadata(config: Config) -> MetaData:
    """
    Return the metadata that `target_metadata` names in Alembic's configuration.

    It names a `MetaData` or what has one, such as a declarative base, as
    ``module:Base``. An error inside the module is raised as it is.

    Raises:
        CommandError: If the key is missing, or leads to no metadata with tables.
    """
    where, line = _where(config)
    name = config.get_alembic_option(_KEY)
    if not isinstance(name, str) or not name:
        raise CommandError(f"{where} does not say where your models are: add {line}")
    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise CommandError(f"{where}: {_KEY} is {name!r}; write {line}")
    loaded = _load(module, f"{where}: {name!r}")
    try:
        found = reduce(getattr, path.split("."), loaded)
    except AttributeError as exc:
        raise CommandError(f"{where}: {_KEY} is {name!r}, but {exc}") from exc
    metadata = getattr(found, "metadata", found)
    if not isinstance(metadata, MetaData):
        raise CommandError(
            f"{where}: {_KEY} is {name!r}, which is neither metadata nor has any:"
            f" {found!r}"
        )
    if not metadata.tables:
        raise CommandError(
            f"{where}: {_KEY} is {name!r}, which has no tables; name a module that"
            " imports all your models, or import them in env.py"
        )
    return metadata


def create_schemas(
    context: MigrationContext, revision: Any, directives: Iterable[MigrationScript]
) -> None:
    """
    Put CREATE SCHEMA before new tables whose schema the database does not have.

    Alembic never does. Give it to `context.configure` as `process_revision_directives`.
    """
    for script in directives:
        for upgrade in script.upgrade_ops_list:
            tables = [op for op in upgrade.ops if isinstance(op, CreateTableOp)]
            wanted = {table.schema for table in tables if table.schema}
            if wanted and context.connection is not None:
                wanted -= {*inspect(context.connection).get_schema_names()}
                quote = context.dialect.identifier_preparer.quote_schema
                upgrade.ops[:0] = [
                    ExecuteSQLOp(f"CREATE SCHEMA IF NOT EXISTS {quote(name)}")
                    for name in sorted(wanted)
                ]


def _load(module: str, key: str) -> Any:
    try:
        return resolve_name(f"{module}:")  # a module, never an attribute
    except ModuleNotFoundError as exc:
        if f"{module}.".startswith(f"{exc.name}."):  # not one that it imports itself
            raise CommandError(
                f"{key}: there is no module {exc.name!r} where Python looks;"
                " prepend_sys_path says where else, as in %(here)s/src"
            ) from exc
        exc.add_note(key)
        raise
    except Exception as exc:
        exc.add_note(key)
        raise


def _where(config: Config) -> tuple[str, str]:
    ini = config.file_config.has_option(config.config_ini_section, _KEY)
    if config.toml_alembic_config and not ini:
        place = f"{config.toml_file_name} [tool.alembic]"
        return place, f'{_KEY} = "myapp.models:Base"'
    place = f"{config.config_file_name} [{config.config_ini_section}]"
    return place, f"{_KEY} = myapp.models:Base"

"""Database roles with the least privileges, for tests that run under them."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import URL, Engine, MetaData, create_engine

import sqla_jobs
from sqla_jobs._dialects.pg_grants import grants
from sqla_jobs.models import job_tables
from sqla_jobs.models.inspect import known_roots

OURS = str(Path(sqla_jobs.__file__).parent)
ROLES = ("enqueue", "work", "admin")
PASSWORD = "none-is-asked-for"  # a server may ask all the same


class Roles:
    """
    Three roles on the tables of one database, and one that may do all they may.

    Args:
        names: By "enqueue", "work" and "admin"; "all" is a member of them.
    """

    def __init__(self, owner: Engine) -> None:
        self._owner, suffix = owner, uuid4().hex[:12]
        self._engines = list[Engine]()
        self.names = {role: f"{role}_{suffix}" for role in (*ROLES, "all")}

    def url(self, role: str) -> URL:
        """Return the URL of the database for a role."""
        return self._owner.url.set(username=self.names[role], password=PASSWORD)

    def engine(self, role: str) -> Engine:
        """Return an engine for a role, with the owner's options."""
        options = dict(self._owner.get_execution_options())
        made = create_engine(self.url(role), execution_options=options)
        self._engines.append(made)
        return made

    def dsn(self, role: str) -> str:
        """Return the same as text."""
        return self.url(role).render_as_string(hide_password=False)

    def make(self) -> None:
        """Make the roles; they may do nothing."""
        known = [self.names[role] for role in ROLES]
        for name in known:
            self.run(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
        login = f"CREATE ROLE {self.names['all']} LOGIN PASSWORD '{PASSWORD}'"
        self.run(f"{login} IN ROLE {', '.join(known)}")

    def grant(self, root: type[Any], beside: Iterable[Any] = ()) -> None:
        """Let them use the tables of *root*, and the workers those of the domain."""
        schemas = self._owner.get_execution_options().get("schema_translate_map", {})
        own = {role: self.names[role] for role in ROLES}
        for statement in grants(job_tables(root), **own, schemas=schemas):
            self.run(statement)
        schema = schemas.get(None)
        for table in beside:
            name = f"{schema}.{table.name}" if schema else table.name
            self.run(f"GRANT ALL ON {name} TO {own['work']}")
            for column in table.primary_key:
                self._grant_sequence(name, column.name)

    def _grant_sequence(self, table: str, column: str) -> None:
        # Of serial columns; identity columns need none.
        sequence = self.run(f"SELECT pg_get_serial_sequence('{table}', '{column}')")
        if sequence:
            self.run(f"GRANT USAGE ON SEQUENCE {sequence} TO {self.names['work']}")

    def drop(self) -> None:
        """Drop the roles with what they own."""
        for engine in self._engines:
            engine.dispose()
        for name in self.names.values():
            self.run(f"DROP OWNED BY {name}")
            self.run(f"DROP ROLE {name}")

    def run(self, statement: str) -> Any:
        """Execute a statement as the owner; return its value, if it has one."""
        with self._owner.begin() as connection:
            result = connection.exec_driver_sql(statement.replace("%", "%%"))
            return result.scalar() if result.returns_rows else None


@contextmanager
def least_privileges(owner: Engine, metadata: Any) -> Iterator[Roles]:
    """Yield roles for all job tables, and other tables, of *metadata*."""
    roles = Roles(owner)
    roles.make()
    try:
        rest = set(metadata.tables.values())
        for root in known_roots():
            if root.metadata is metadata:
                roles.grant(root)
                rest -= {*job_tables(root).all_tables()}
        if rest:
            roots = [one for one in known_roots() if one.metadata is metadata]
            roles.grant(roots[0], rest)
        yield roles
    finally:
        roles.drop()


AsApplication = Callable[[Engine, MetaData], Engine]
"""Returns the engine of an application on the tables of an owner's engine."""


@contextmanager
def applications(*, least: bool) -> Iterator[AsApplication]:
    """Yield a function that returns the owner's engine, or one with *least* rights."""
    with ExitStack() as stack:
        made: dict[Engine, Engine] = {}

        def as_application(owner: Engine, metadata: MetaData) -> Engine:
            if not least:
                return owner
            if owner not in made:
                roles = stack.enter_context(least_privileges(owner, metadata))
                made[owner] = roles.engine("all")
            return made[owner]

        yield as_application


def is_of_the_owner(exc: BaseException) -> bool:
    """Return whether a test's own SQL, not the library's, needs the tables' owner."""
    refused = re.search("permission denied for|must be owner of", str(exc))
    frames = traceback.extract_tb(exc.__traceback__)
    return bool(refused) and not any(one.filename.startswith(OURS) for one in frames)

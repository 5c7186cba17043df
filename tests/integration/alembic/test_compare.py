"""Autogenerate sees the storage parameters and predicates of job tables."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata, produce_migrations
from alembic.autogenerate import render_python_code as render
from alembic.operations import Operations
from alembic.operations.ops import MigrationScript
from alembic.runtime.migration import MigrationContext
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase

from sqla_jobs import JobMixin, check
from sqla_jobs.models.columns import KNOWS_STORAGE, STORAGE
from sqla_jobs.testing import DatabaseServer

OPTIONS = "SELECT reloptions FROM pg_class WHERE oid = CAST(:name AS regclass)"
OWN = {f"{name}={value}" for name, value in STORAGE.items()}


@pytest.fixture(scope="module")
def dsn(sqla_jobs_server: DatabaseServer) -> Iterator[str]:
    """Yield the URL of an empty database of this module."""
    with sqla_jobs_server.temporary_database("compare") as dsn:
        yield dsn


@pytest.fixture
def connection(dsn: str) -> Iterator[sa.Connection]:
    """Yield a connection to it; what it does is rolled back."""
    engine = sa.create_engine(dsn)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def job_class(name: str = "jobs", schema: str | None = None, **options: Any) -> Any:
    """Return a root class of a base of its own."""

    class Base(DeclarativeBase):
        metadata = sa.MetaData(schema=schema)

    class Job(JobMixin, Base):
        __tablename__ = name
        __table_args__ = options

    return Job


class Migration:
    """What autogenerate makes of the difference, as its file would be run."""

    def __init__(self, connection: sa.Connection, job: Any, **options: Any) -> None:
        self.connection, self.metadata = connection, job.metadata
        self.options = {"include_schemas": bool(self.metadata.schema)} | options

    @property
    def context(self) -> MigrationContext:
        """A new migration context."""
        return MigrationContext.configure(self.connection, opts=dict(self.options))

    def script(self) -> MigrationScript:
        """Return the operations of both directions."""
        return produce_migrations(self.context, self.metadata)

    def differences(self) -> list[Any]:
        """Return what autogenerate sees."""
        return list(compare_metadata(self.context, self.metadata))

    def render(self, ops: Any) -> str:
        """Return the body of a function of the generated file."""
        as_batch = bool(self.options.get("render_as_batch"))
        code = render(ops, render_as_batch=as_batch)
        assert "sqla_jobs" not in code
        return code

    def run(self, code: str) -> None:
        """Run such a body."""
        names = {"sa": sa, "postgresql": postgresql, "Text": sa.Text}
        source = f"def migrate(op):\n    {code}"
        exec(compile(source, "revision.py", "exec"), names)
        names["migrate"](Operations(self.context))  # type: ignore[operator]

    def upgrade(self) -> tuple[str, str]:
        """Bring the database up to date; return the bodies of both functions."""
        script = self.script()
        assert script.upgrade_ops is not None
        assert script.downgrade_ops is not None
        up, down = map(self.render, (script.upgrade_ops, script.downgrade_ops))
        self.run(up)
        assert self.differences() == []
        return up, down


def options_of(connection: sa.Connection, name: str = "jobs") -> set[str]:
    """Return the storage parameters that the database has."""
    return set(connection.scalar(sa.text(OPTIONS), {"name": name}) or ())


NAMES = {
    "plain": ("jobs", None, "jobs"),
    "odd": ('Jobs of "ours"', None, '"Jobs of ""ours"""'),
    "schema": ("jobs", "Their schema", '"Their schema".jobs'),
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_parameters_are_set_and_set_back(
    connection: sa.Connection, name: tuple[str, str | None, str]
) -> None:
    """Also those of a table that has other ones, which the downgrade restores."""
    table, schema, quoted = name
    if schema:
        connection.execute(sa.schema.CreateSchema(schema))
    job = job_class(table, schema)
    migration = Migration(connection, job)
    migration.upgrade()
    assert options_of(connection, quoted) == OWN
    before = "RESET (autovacuum_vacuum_threshold), SET (fillfactor = 90)"
    connection.execute(sa.text(f"ALTER TABLE {quoted} {before}"))
    had = options_of(connection, quoted)

    up, down = migration.upgrade()
    assert up.count("op.") == down.count("op.") == 1
    assert options_of(connection, quoted) == OWN
    check(connection, job)

    migration.run(down)
    assert options_of(connection, quoted) == had


def test_tenants_of_a_translated_schema_get_them(connection: sa.Connection) -> None:
    """The generated statement names the table as all the other operations do."""
    migration = Migration(connection, job_class())
    up, down = migration.upgrade()
    connection.execute(sa.schema.CreateSchema("tenant"))
    connection.execution_options(schema_translate_map={None: "tenant"})

    migration.run(up)
    connection.execute(sa.text("ALTER TABLE jobs SET (fillfactor = 90)"))
    assert options_of(connection, "tenant.jobs") == OWN
    migration.run(down)
    assert connection.scalar(sa.text("SELECT to_regclass('tenant.jobs')")) is None
    assert "fillfactor=90" in options_of(connection, "public.jobs")


def test_new_table_has_them_at_once(connection: sa.Connection) -> None:
    """On SQLAlchemy 2.0, which knows none, by a statement of their own."""
    up, _ = Migration(connection, job_class()).upgrade()

    assert options_of(connection) == OWN
    assert ("postgresql_with" in up) is KNOWS_STORAGE
    assert ("ALTER TABLE" in up) is not KNOWS_STORAGE


@pytest.mark.skipif(not KNOWS_STORAGE, reason="needs postgresql_with")
def test_parameters_of_the_application_win(connection: sa.Connection) -> None:
    """Its own stay, and changing them is seen."""
    Migration(connection, job_class()).upgrade()
    job = job_class(
        postgresql_with={"fillfactor": 60, "autovacuum_enabled": "off"},
    )
    up, down = Migration(connection, job).upgrade()

    assert "fillfactor = 60" in up
    assert {"fillfactor=60", "autovacuum_enabled=off"} < options_of(connection)
    check(connection, job)
    Migration(connection, job).run(down)
    assert options_of(connection) == OWN


def test_parameters_of_the_administrator_stay(connection: sa.Connection) -> None:
    """What the code does not name is not reset."""
    migration = Migration(connection, job_class())
    migration.upgrade()
    alter = "ALTER TABLE jobs SET (autovacuum_vacuum_cost_limit = 9)"
    connection.execute(sa.text(alter))

    assert migration.differences() == []


DUE = "jobs_due_v1_idx"
WHERE = "SELECT pg_get_expr(indpred, indrelid) FROM pg_index WHERE indexrelid = CAST"


@pytest.mark.parametrize("where", [" WHERE state = 'other'", ""])
def test_changed_predicate_makes_the_index_anew(
    connection: sa.Connection, where: str
) -> None:
    """And the downgrade makes the old one."""
    job = job_class()
    (migration := Migration(connection, job)).upgrade()
    connection.execute(sa.text(f"DROP INDEX {DUE}"))
    connection.execute(sa.text(f"CREATE INDEX {DUE} ON jobs (run_at){where}"))

    up, down = migration.upgrade()
    assert up.count("op.drop_index") == up.count("op.create_index") == 1
    check(connection, job)
    migration.run(down)
    had = connection.scalar(sa.text(f"{WHERE}('{DUE}' AS regclass)"))
    assert had == ("(state = 'other'::text)" if where else None)


def test_index_that_alembic_makes_anew_is_made_once(connection: sa.Connection) -> None:
    """Its columns differ as well as its predicate."""
    job = job_class()
    (migration := Migration(connection, job)).upgrade()
    connection.execute(sa.text(f"DROP INDEX {DUE}"))
    connection.execute(sa.text(f"CREATE INDEX {DUE} ON jobs (id)"))

    up, _ = migration.upgrade()
    assert up.count("op.create_index") == 1


def test_filters_of_the_application_hold(connection: sa.Connection) -> None:
    """An index, or a whole table, that its include_object leaves out stays as it is."""
    left_out = {"index"}
    migration = Migration(
        connection,
        job_class(),
        include_object=lambda obj, name, type_, *_: type_ not in left_out,
    )
    left_out.clear()
    migration.upgrade()
    connection.execute(sa.text(f"DROP INDEX {DUE}"))
    connection.execute(sa.text(f"CREATE INDEX {DUE} ON jobs (run_at)"))
    connection.execute(sa.text("ALTER TABLE jobs RESET (fillfactor)"))

    left_out.add("index")
    assert [found[0] for found in migration.differences()] == ["change_storage"]
    left_out.add("table")
    assert migration.differences() == []


def test_other_tables_are_left_alone(connection: sa.Connection) -> None:
    """Whatever they are called and however they are stored."""
    metadata = sa.MetaData()
    sa.Table("jobs", metadata, sa.Column("lease_token", sa.Integer))
    sa.Table("other", metadata, sa.Column("id", sa.Integer))
    metadata.create_all(connection)
    for name in metadata.tables:
        alter = f"ALTER TABLE {name} SET (fillfactor = 33)"
        connection.execute(sa.text(alter))

    context = MigrationContext.configure(connection)
    assert compare_metadata(context, metadata) == []


def test_batch_mode_works(connection: sa.Connection) -> None:
    """As projects have it that also run on SQLite."""
    migration = Migration(connection, job_class(), render_as_batch=True)
    migration.upgrade()
    connection.execute(sa.text("ALTER TABLE jobs RESET (fillfactor)"))

    up, down = migration.upgrade()
    assert "batch_alter_table" in up
    assert options_of(connection) == OWN
    migration.run(down)
    assert options_of(connection) == OWN - {"fillfactor=45"}


def test_operations_run_without_a_file(connection: sa.Connection) -> None:
    """As tools do that apply what `produce_migrations` returns."""
    migration = Migration(connection, job_class())
    migration.upgrade()
    connection.execute(sa.text("ALTER TABLE jobs RESET (fillfactor)"))
    script = migration.script()
    assert script.upgrade_ops is not None
    (change,) = script.upgrade_ops.ops

    Operations(migration.context).invoke(change.ops[0])  # type: ignore[attr-defined]
    assert options_of(connection) == OWN


def test_other_databases_are_left_alone() -> None:
    """Its tables may be made elsewhere, though it runs no jobs there."""
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        job = job_class()
        job.metadata.create_all(connection)
        found = compare_metadata(MigrationContext.configure(connection), job.metadata)
        assert [one for one in found if one[0] == "change_storage"] == []
    engine.dispose()


# When the comparator is registered

ALEMBIC = """
import alembic.command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
"""
MODELS = """
import sqlalchemy
from sqlalchemy.orm import DeclarativeBase
import sqla_jobs

class Base(DeclarativeBase):
    pass

class Job(sqla_jobs.JobMixin, Base):
    __tablename__ = "jobs"
"""
COMPARE = """
import sys
engine = sqlalchemy.create_engine(sys.argv[1])
with engine.connect() as connection:
    Base.metadata.create_all(connection)
    connection.execute(sqlalchemy.text("ALTER TABLE jobs RESET (fillfactor)"))
    context = MigrationContext.configure(connection)
    print(*(one[0] for one in compare_metadata(context, Base.metadata)))
engine.dispose()
"""
ORDERS = {
    "as in env.py": (ALEMBIC, MODELS, "import sqla_jobs.alembic\n"),
    "models first": (MODELS, ALEMBIC),
}


def run(*parts: str, dsn: str) -> str:
    """Run Python in a process of its own; return what it prints."""
    command = [sys.executable, "-W", "error", "-c", "".join(parts), dsn]
    return subprocess.check_output(command, text=True, stderr=subprocess.STDOUT)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_order_of_imports_does_not_matter(order: tuple[str, ...], dsn: str) -> None:
    """The comparator is there once, without an import of it in env.py."""
    assert run(*order, COMPARE, dsn=dsn) == "change_storage\n"


def test_processes_without_alembic_stay_so(dsn: str) -> None:
    """Neither job classes nor `check` load it."""
    use = "\nimport sys\nengine = sqlalchemy.create_engine(sys.argv[1])\n"
    use += "try: sqla_jobs.check(engine, Job)\nexcept sqla_jobs.MissingTables: pass\n"
    use += "engine.dispose()\n"
    use += "print([name for name in sys.modules if name.startswith('alembic')])"

    assert run(MODELS, use, dsn=dsn) == "[]\n"


def test_import_of_alembic_is_as_ever(dsn: str) -> None:
    """Nothing stays between Python and it."""
    look = """
import sys
module = sys.modules["alembic.autogenerate"]
print(type(module.__loader__).__name__, type(module.__spec__.loader).__name__)
print([one for one in sys.meta_path if type(one).__module__.startswith("sqla_jobs")])
"""
    loader = "SourceFileLoader"
    assert run(MODELS, ALEMBIC, look, dsn=dsn) == f"{loader} {loader}\n[]\n"

"""An application's history: models change, revisions follow, down and up again."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from typing import Any

import pytest
from alembic import command
from alembic.util import CommandError
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    Table,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import DataError
from sqlalchemy.orm import Session

from sqla_jobs import SchemaMismatch, check
from tests.integration.alembic.project import Project
from tests.integration.alembic.shop import NAMES, model, shop

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "schema": {"schema": "Shop Floor"},
    "naming convention": {"naming_convention": NAMES},
}
SUPPORT = ("attempts", "queues", "runners", "idempotency", "archive")
JOBS = {"jobs", *(f"jobs_{name}" for name in SUPPORT)}
NIGHT = {"night_" + name for name in JOBS}
OPERATIONS: dict[int, dict[str, int]] = {
    1: {"create_table": 7},
    2: {},
    3: {"add_column": 1, "create_foreign_key": 1, "create_index": 1},
    4: {"create_table": 1},
    5: {"create_table": 6},
}
"""What each version's revision does; indexes of new tables are not counted."""


def bodies(source: str) -> dict[str, list[str]]:
    """Return the statements of a revision's functions, without their docstrings."""
    return {
        node.name: [ast.unparse(statement) for statement in node.body[1:]]
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
    }


def operations(source: str) -> Counter[str]:
    """Count the operations of a revision's `upgrade`, by name."""
    upgrade = bodies(source)["upgrade"]
    names = Counter(line.partition("(")[0].removeprefix("op.") for line in upgrade)
    if names["create_table"]:
        del names["create_index"]
    del names["execute"]
    return names


def translated(engine: Engine, tenant: str) -> Engine:
    """Return the engine with the tenant's schema."""
    return engine.execution_options(schema_translate_map={None: tenant})


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_history(project: Project, options: dict[str, Any]) -> None:
    """Each version's revision does what changed and no more; all ways lead back."""
    schema = options.get("schema")
    versions = {number: shop(number, **options) for number in OPERATIONS}
    for number, base in versions.items():
        project.models(base)
        if OPERATIONS[number]:
            source = project.revise(f"version {number}")
            project.upgrade()
            assert operations(source) == OPERATIONS[number]
        assert project.differences() == []
    assert project.tables(schema) == {"orders", "imports"} | JOBS | NIGHT

    for number in (4, 3, 1):
        project.downgrade()
        assert project.differences_from(versions[number]) == [], number
    project.downgrade()
    assert project.tables(schema) == set()

    project.upgrade()
    assert project.differences() == []
    assert not [source for source in project.sources() if "sqla_jobs" in source]


def test_next_autogenerate_is_empty(project: Project) -> None:
    """A revision made when nothing changed does nothing, in either direction."""
    project.models(shop(5))
    project.revise()
    project.upgrade()

    source = project.revise("nothing")

    assert bodies(source) == {"upgrade": ["pass"], "downgrade": ["pass"]}


def test_revisions_do_without_this_library(project: Project) -> None:
    """Old revisions run up and down where sqla_jobs is no longer installed."""
    project.models(shop(1))
    project.revise()
    project.upgrade()
    project.models(shop(5))
    project.revise()
    project.write_env(
        "from alembic import context\n"
        "context.configure(connection=context.config.attributes['connection'])\n"
        "with context.begin_transaction():\n"
        "    context.run_migrations()\n"
    )
    for name in [name for name in sys.modules if name.split(".")[0] == "sqla_jobs"]:
        project.monkeypatch.setitem(sys.modules, name, None)

    project.upgrade()
    assert project.tables() >= NIGHT
    project.downgrade("base")
    assert project.tables() == set()
    project.upgrade()
    project.monkeypatch.undo()

    assert project.differences_from(shop(5)) == []


def test_a_schema_is_made_once(project: Project) -> None:
    """The revision with a schema's first tables makes it; none drops it."""
    first, second = MetaData(schema="a b"), MetaData(schema="a b")
    for metadata, name in [(first, "x"), (second, "x"), (second, "y")]:
        Table(name, metadata, Column("id", Integer, primary_key=True))
    project.models(first)
    source = project.revise()
    project.upgrade()
    project.models(second)

    again = project.revise()

    assert 'CREATE SCHEMA IF NOT EXISTS "a b"' in source
    assert "SCHEMA" not in again
    assert "DROP SCHEMA" not in source


def test_other_schemas_are_left_alone(project: Project) -> None:
    """Only the models' schemas are looked at, so tables elsewhere are not dropped."""
    with project.engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA theirs"))
        connection.execute(text("CREATE TABLE theirs.one (id int)"))
        connection.execute(text("CREATE TABLE public.two (id int)"))
    project.models(shop(1, schema="ours"))

    source = project.revise()

    assert operations(source) == {"create_table": 7}


def test_defaults_are_compared(project: Project) -> None:
    """A server default that changes is seen."""
    first, second = MetaData(), MetaData()
    for metadata, default in [(first, "1"), (second, "2")]:
        Table("x", metadata, Column("n", Integer, server_default=default))
    project.models(first)
    project.revise()
    project.upgrade()
    project.models(second)

    assert operations(project.revise()) == {"alter_column": 1}


def test_offline(project: Project, url: str) -> None:
    """The SQL of `upgrade --sql` makes the same tables."""
    project.models(shop(5, schema="ours"))
    project.revise()
    project.monkeypatch.setenv("DATABASE_URL", url)

    script = project.sql()
    with project.engine.begin() as connection:
        connection.exec_driver_sql(script)

    assert project.differences() == []


def test_each_revision_commits(project: Project) -> None:
    """A revision that fails rolls back itself, not those before it."""
    project.models(shop(1))
    project.revise()
    project.alembic(command.revision, "fails")
    [path] = (project.folder / "migrations/versions").glob("*_fails.py")
    statement = "op.execute('CREATE TABLE half ()'); op.execute('SELECT 1/0')"
    path.write_text(path.read_text().replace("    pass", f"    {statement}", 1))

    with pytest.raises(DataError, match="division by zero"):
        project.upgrade()

    assert project.differences_from(shop(1)) == []


def test_callers_transaction(project: Project) -> None:
    """In a transaction of the caller's the upgrade is part of it."""
    project.models(shop(1))
    project.revise()
    config = project.config()
    with project.engine.connect() as connection, connection.begin() as transaction:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        transaction.rollback()

    assert project.tables() == set()


def test_tenants(project: Project) -> None:
    """With -x tenant=, each tenant has tables, a version and jobs of its own."""
    base = shop(2)
    project.models(base)
    mail = model(base, "Mail")
    tenants = ["acme", 'Wayne "Ent."']
    for tenant in tenants:
        project.tenant = tenant
        if tenant == tenants[0]:
            project.revise()
        project.upgrade()
        assert project.differences() == []
        assert project.tables(tenant) == {"orders"} | JOBS
        check(translated(project.engine, tenant), model(base, "Job"))
    assert inspect(project.engine).get_table_names() == []  # nor Alembic's own

    for tenant in tenants:
        with Session(translated(project.engine, tenant)) as session:
            session.add(mail(subject=tenant))
            session.commit()

    for tenant in tenants:
        with Session(translated(project.engine, tenant)) as session:
            [job] = session.scalars(select(mail))
            assert job.subject == tenant

    project.downgrade("base")
    assert project.tables(tenants[0]) == {"orders"} | JOBS
    assert project.tables(tenants[1]) == set()


def test_one_behind(project: Project) -> None:
    """A database one behind: both checks say so, until the revision is run."""
    project.models(shop(2))
    project.revise()
    project.upgrade()
    new = shop(3)
    project.models(new)

    assert project.differences() != []
    with pytest.raises(SchemaMismatch, match=r"(?s)alembic upgrade head.*order_id"):
        check(project.engine, model(new, "Job"))

    project.revise()
    with pytest.raises(CommandError, match="Target database is not up to date"):
        project.differences()
    project.upgrade()
    assert project.differences() == []
    check(project.engine, model(new, "Job"))


def test_url(project: Project, url: str) -> None:
    """DATABASE_URL wins over the ini file's URL; either may have a % in it."""
    project.models(shop(1))
    project.alembic(command.revision, "seen")
    [path] = (project.folder / "migrations/versions").glob("*_seen.py")
    sql = "CREATE TABLE seen AS SELECT current_setting('application_name') AS name"
    source = path.read_text().replace("pass", f'op.execute("{sql}")', 1)
    path.write_text(source.replace("pass", 'op.execute("DROP TABLE seen")'))

    def seen(*, ini: str = "", variable: str = "") -> str | None:
        """Return the application's name that an upgrade connects with."""
        project.monkeypatch.setenv("DATABASE_URL", variable and named(url, variable))
        config = project.config()
        config.set_main_option("sqlalchemy.url", ini and named(url, ini, "%%"))
        config.config_file_name = None  # the logging is pytest's
        command.upgrade(config, "head")
        with project.engine.connect() as connection:
            name: str | None = connection.scalar(text("SELECT name FROM seen"))
        command.downgrade(config, "base")
        return name

    assert seen(ini="50% off") == "50% off"
    assert seen(variable="49% off") == "49% off"
    assert seen(ini="one", variable="other") == "other"
    with pytest.raises(CommandError, match="set DATABASE_URL, or sqlalchemy"):
        seen()


def named(url: str, name: str, percent: str = "%") -> str:
    """Return the URL with an application's name, as an environment or ini has it."""
    found = make_url(url).update_query_dict({"application_name": name})
    return found.render_as_string(hide_password=False).replace("%", percent)

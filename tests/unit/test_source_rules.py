"""Rules about the library's source that no linter knows."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sqla_jobs"
FILES = {
    str(path.relative_to(PACKAGE)): path.read_text()
    for path in sorted(PACKAGE.rglob("*.py"))
}

RULES = {
    "SQL runs in the store": (
        r"\.(execute|executemany|exec_driver_sql|scalars?)\(",
        # Listening is the driver's, making a database is a test's, and a benchmark's
        # plain loops are SQL; nothing else may join this list without a reason.
        (
            *("_store/", "_dialects/", "_notify/"),
            *("testing/postgres.py", "testing/_benchmark.py"),
        ),
    ),
    "databases differ by capability": (r"dialect\.name( in\b|==|!=)", ()),
    "no wall clock is read": (
        r"\b(datetime\.(now|today|utcnow)|time\.(time|time_ns))\(",
        # The database has the only one; a handler performed without one has none.
        ("testing/_perform.py",),
    ),
    "rows hold data, never code": (
        (
            r"\b(pickle|marshal|shelve|dill|cloudpickle|jsonpickle|joblib|yaml|runpy"
            r"|import_module|__import__|load_entry_point|exec_module)\b"
            r"|(?<![.\w])(eval|exec|compile)\("
        ),
        # Annotations of the application's classes; the module that a command names;
        # Alembic's modules, while Python imports them.
        ("models/annotations.py", "cli/target.py", "alembic/register.py"),
    ),
}
"""Per rule: what it forbids, and where that is allowed."""

MAKERS = {"text", "literal_column", "DDL", "SQL", "exec_driver_sql"}
"""What makes SQL of a text."""

REVIEWED = {
    "_core/unique.py: text(value)": "a function of its own, no SQL",
    "_dialects/pg_catalog.py: text(statement)": "the module's constants",
    "_dialects/pg_session.py: cursor.execute(statement)": "its own names, numbers",
    "_notify/psycopg.py: raw.execute(_listen(channel))": "a quoted sql.Identifier",
    "_notify/psycopg2.py: cursor.execute(statement)": "a hash of ours, quoted",
    "_store/base.py: literal_column(f\"'{text}'\", Text())": "our own words",
    "_store/counts.py: literal_column(f\"'{part}'\", Text())": "our own words",
    "_store/pick.py: literal_column(str(lane))": "a number of ours",
    "_store/pick.py: literal_column(str(source.number))": "a number of ours",
    "_store/settle.py: literal_column(str(Lane.RETRIED))": "a number of ours",
    "alembic/operations.py: DDL(self.ddl)": "storage parameters of ours",
    "models/columns.py: text(where)": "predicates of the module",
    "models/columns.py: text(value)": "defaults of the module",
    "models/columns.py: DDL(f'ALTER TABLE %(fullname)s SET ({setting})')": "as above",
    "testing/postgres.py: sql.SQL(statement)": "its callers' constants",
}
"""Texts of SQL that are no literals, and what they are made of."""


def code_of(source: str) -> dict[int, str]:
    """Return the lines of *source* by number, without comments and strings."""
    lines: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in {tokenize.NAME, tokenize.OP}:
            before = lines.get(token.start[0], "")
            space = (
                " "
                if before[-1:].isidentifier() and token.string.isidentifier()
                else ""
            )
            lines[token.start[0]] = before + space + token.string
    return lines


def breaches(rule: str, name: str, source: str) -> list[str]:
    """Return the lines of a file that break a rule."""
    pattern, allowed = RULES[rule]
    if name.startswith(allowed):
        return []
    return [
        f"{name}:{number}: {line}"
        for number, line in code_of(source).items()
        if re.search(pattern, line)
    ]


def made_sql(name: str, source: str) -> set[str]:
    """Return the calls that give a database a text which is no literal."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        called = ast.unparse(node.func)
        takes_text = called.rpartition(".")[2] in MAKERS
        raw = called in {"raw.execute", "cursor.execute"}
        if (takes_text or raw) and not isinstance(node.args[0], ast.Constant):
            found.add(f"{name}: {ast.unparse(node)}")
    return found


def test_sql_is_written_not_made() -> None:
    """No name, value or payload becomes a part of SQL: each exception is reviewed."""
    found = set[str]().union(*(made_sql(name, FILES[name]) for name in FILES))

    assert found - REVIEWED.keys() == set()
    assert REVIEWED.keys() - found == set(), "no longer there"


@pytest.mark.parametrize(
    "line",
    [
        "text(f'SELECT 1 FROM {name}')",
        "sqlalchemy.text('SELECT %s' % name)",
        "literal_column('{}'.format(job.queue))",
        "connection.exec_driver_sql('NOTIFY ' + channel)",
        "sql.SQL(payload)",
        "cursor.execute(statement)",
        "DDL(name)",
    ],
)
def test_made_sql_is_seen(line: str) -> None:
    """The check notices a text that is put together."""
    assert made_sql("runner/shell.py", line)


@pytest.mark.parametrize("rule", RULES)
def test_source_keeps_the_rule(rule: str) -> None:
    """No file outside the listed places does what the rule forbids."""
    found = [line for name in FILES for line in breaches(rule, name, FILES[name])]

    assert found == []


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("SQL runs in the store", "session.scalars(select(Job))"),
        ("SQL runs in the store", "await connection.execute(statement)"),
        ("databases differ by capability", 'if engine.dialect.name == "sqlite":'),
        ("no wall clock is read", "deadline = time.time() + 3"),
        ("no wall clock is read", "now = datetime.now(UTC)"),
        ("rows hold data, never code", "handler = import_module(job.kind)"),
        ("rows hold data, never code", "value = pickle.loads(job.payload)"),
        ("rows hold data, never code", "from importlib import import_module as load"),
        ("rows hold data, never code", "code = compile(job.kind, '', 'exec')"),
        ("rows hold data, never code", "run = eval(job.kind)"),
    ],
)
def test_breach_is_seen(rule: str, line: str) -> None:
    """Each rule notices the line that it is there to stop."""
    assert breaches(rule, "runner/shell.py", f"def f():\n    {line}\n")

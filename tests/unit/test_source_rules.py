"""Rules about the library's source that no linter knows."""

from __future__ import annotations

import re
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
        # Listening is the driver's, and making a database is a test's; nothing else
        # may join this list without a reason.
        ("_store/", "_dialects/", "_notify/psycopg.py", "testing/postgres.py"),
    ),
    "databases differ by capability": (r"dialect\.name\s*(==|!=|in\b)", ()),
    "the time comes from the clock": (
        r"\b(datetime\.(now|today|utcnow)|time\.(time|time_ns))\(",
        ("_core/clock.py",),
    ),
    "rows hold data, never code": (
        r"\b(pickle|marshal|yaml|import_module|__import__)\b|\b(eval|exec)\(",
        # Annotations of the application's classes; a module of the command line.
        ("models/annotations.py", "cli/"),
    ),
}
"""Per rule: what it forbids, and where that is allowed."""


def breaches(rule: str, name: str, source: str) -> list[str]:
    """Return the lines of a file that break a rule."""
    pattern, allowed = RULES[rule]
    if name.startswith(allowed):
        return []
    lines = (line.partition("#")[0] for line in source.splitlines())
    return [
        f"{name}:{number}: {line.strip()}"
        for number, line in enumerate(lines, 1)
        if re.search(pattern, line)
    ]


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
        ("the time comes from the clock", "deadline = time.time() + 3"),
        ("the time comes from the clock", "now = datetime.now(UTC)"),
        ("rows hold data, never code", "handler = import_module(job.kind)"),
        ("rows hold data, never code", "value = pickle.loads(job.payload)"),
    ],
)
def test_breach_is_seen(rule: str, line: str) -> None:
    """Each rule notices the line that it is there to stop."""
    assert breaches(rule, "runner/shell.py", f"def f():\n    {line}\n")

"""Rules about the library's source that no linter knows."""

from __future__ import annotations

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
        # Listening is the driver's, and making a database is a test's; nothing else
        # may join this list without a reason.
        ("_store/", "_dialects/", "_notify/", "testing/postgres.py"),
    ),
    "databases differ by capability": (r"dialect\.name( in\b|==|!=)", ()),
    "no wall clock is read": (
        r"\b(datetime\.(now|today|utcnow)|time\.(time|time_ns))\(",
        # The database has the only one; a handler performed without one has none.
        ("testing/_perform.py",),
    ),
    "rows hold data, never code": (
        r"\b(pickle|marshal|yaml|import_module|__import__)\b|\b(eval|exec)\(",
        # Annotations of the application's classes; a module of the command line.
        ("models/annotations.py", "cli/"),
    ),
}
"""Per rule: what it forbids, and where that is allowed."""


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
    ],
)
def test_breach_is_seen(rule: str, line: str) -> None:
    """Each rule notices the line that it is there to stop."""
    assert breaches(rule, "runner/shell.py", f"def f():\n    {line}\n")

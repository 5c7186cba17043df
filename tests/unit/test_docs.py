"""
The reference says what the code says: states, columns, options and names.

``python -m tests.unit.test_docs --write`` writes the state diagram anew.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase

import sqla_jobs
from sqla_jobs import AsyncRunner, JobMixin, JobState, Retention, Runner, exponential
from sqla_jobs._core.options import ClassOptions
from sqla_jobs._core.plan import Slots
from sqla_jobs._core.states import diagram
from sqla_jobs._store.claim import DEFAULT_LEASE
from sqla_jobs.models.construct import _SETTERS, plan_of

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
TESTS = Path(__file__).parents[1]
FENCE = re.compile(r"```mermaid\n(.*?)```", re.DOTALL)
WRITE = "python -m tests.unit.test_docs --write"


class Base(DeclarativeBase):
    """The base of the job system that the reference describes."""


class Job(JobMixin, Base):
    """Its tables have the names that the reference uses."""

    __tablename__ = "jobs"


class Plain(Job):
    """A job class that says nothing."""


def page(name: str) -> str:
    """Return the text of a page of the reference."""
    return (REFERENCE / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """Return what follows *heading*, up to the next one of its level."""
    _, found, rest = text.partition(f"\n## {heading}\n")
    assert found, f"no section {heading!r}"
    return rest.partition("\n## ")[0]


def table_rows(text: str, first: str) -> dict[str, list[str]]:
    """Return the rows of the table whose first column is *first*, by their name."""
    lines = iter(text.splitlines())
    assert any(line.startswith(f"| {first} |") for line in lines), f"no table {first!r}"
    next(lines)
    rows = {}
    for line in lines:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        rows[cells[0].strip("`")] = cells[1:]
    return rows


def shown(value: Any) -> str:
    """Return a default as the reference writes it."""
    if isinstance(value, timedelta):
        days = value.days
        if value == timedelta(days=days):
            return f"{days} day{'s' if days > 1 else ''}"
        return f"{value.total_seconds():g} s"
    if value == exponential():
        return "`exponential()`"
    if value == Retention():
        return "`Retention()`"
    if type(value) is str:
        return f'`"{value}"`'
    return f"`{value!r}`"


def assert_defaults(rows: dict[str, list[str]], expected: dict[str, Any]) -> None:
    """Check that *rows* name all of *expected*, and nothing else, with its default."""
    assert {name: cells[0] for name, cells in rows.items()} == {
        name: shown(value) for name, value in expected.items()
    }


def test_diagram_is_the_transition_table() -> None:
    """The diagram in the reference is made from the rules about states."""
    found = FENCE.search(page("states.md"))

    assert found is not None
    assert found[1] == diagram(), f"run: {WRITE}"


def test_every_state_is_described() -> None:
    """Each state has its line, and no other has one."""
    assert list(table_rows(page("states.md"), "state")) == list(JobState)


@pytest.mark.parametrize(
    "name", ["table", "attempts", "queues", "runners", "idempotency"]
)
def test_every_column_is_described(name: str) -> None:
    """Each column of the tables has its line, with its type."""
    table: Table = getattr(Job.__jobs__, name)
    rows = table_rows(section(page("tables.md"), table.name), "column")
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    types = {column.name: column.type.compile(dialect).lower() for column in table.c}

    assert {key: cells[0] for key, cells in rows.items()} == {
        key: text.replace("timestamp with time zone", "timestamptz")
        for key, text in types.items()
    }


def test_every_index_is_described() -> None:
    """Each index of the hot table has its line."""
    rows = table_rows(section(page("tables.md"), "jobs"), "index")

    assert set(rows) == {index.name for index in Job.__jobs__.table.indexes}


def test_class_keywords_have_their_defaults() -> None:
    """Each class keyword has its line, with its real default."""
    rows = table_rows(section(page("options.md"), "Class keywords"), "name")
    default = ClassOptions()
    fields = dataclasses.fields(ClassOptions)

    assert_defaults(rows, {f.name: getattr(default, f.name) for f in fields})


def test_retention_has_its_defaults() -> None:
    """Each age of `Retention` has its line, with its real default."""
    rows = table_rows(section(page("options.md"), "Retention"), "name")

    assert_defaults(rows, dataclasses.asdict(Retention()))


def test_keywords_of_a_job_have_their_defaults() -> None:
    """Each keyword that every job takes has its line, with its default."""
    rows = table_rows(section(page("options.md"), "Keywords of a job"), "name")
    inherited = {f.name for f in dataclasses.fields(ClassOptions)}
    own = plan_of(Plain).row | {"payload": {}}

    assert {name: cells[0] for name, cells in rows.items()} == {
        name: "the class's" if name in inherited else shown(own.get(name))
        for name in {*_SETTERS, "payload"}
    }


def test_runner_options_have_their_defaults() -> None:
    """Each option of the runners has its line, with what holds when it is not given."""
    rows = table_rows(section(page("options.md"), "Options of a runner"), "name")
    given: dict[str, Any] = {}
    for runner in (Runner, AsyncRunner):
        for name, one in inspect.signature(runner).parameters.items():
            if one.kind is one.KEYWORD_ONLY:
                assert given.setdefault(name, one.default) == one.default
    rows = {k: [v[0].strip("`"), *v[1:]] for k, v in rows.items()}
    given |= {"lease": DEFAULT_LEASE, "concurrency": Slots.of(None, None).most}

    assert {name: cells[0] for name, cells in rows.items()} == {
        name: shown(value).strip("`") for name, value in given.items()
    }


def test_every_public_name_is_in_the_reference() -> None:
    """Each name of the package is on the page of the API."""
    text = page("api.md")
    directives = re.findall(r"auto(?:class|function):: (\w+)\n", text)
    errors = re.findall(r"`(\w+)`", section(text, "Errors"))

    assert sorted(directives + errors) == sorted(sqla_jobs.__all__)


@pytest.mark.parametrize(("name", "least"), [("features.md", 70), ("faults.md", 50)])
def test_every_line_is_shown_by_a_test(name: str, least: int) -> None:
    """Each line of the tables of features and of faults names a test that exists."""
    lines = [line for line in page(name).splitlines() if "::" in line]
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", "\n".join(lines))
    tests = {
        (path.relative_to(TESTS).as_posix(), test)
        for path in TESTS.rglob("test_*.py")
        for test in re.findall(
            r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE
        )
    }

    assert len(named) == len(lines) > least
    assert set(named) <= tests


def write() -> None:
    """Write the diagram into its page."""
    path = REFERENCE / "states.md"
    block = f"```mermaid\n{diagram()}```"
    path.write_text(FENCE.sub(lambda _: block, page("states.md")), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {WRITE}")
    write()

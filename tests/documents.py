"""Collects the code blocks of the README and the documentation as tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

if TYPE_CHECKING:
    from sqla_jobs.testing import DatabaseServer

pytest_plugins = ["sqla_jobs.testing.pytest_plugin"]

pytest_collect_file = Sybil(
    path=str(Path(__file__).resolve().parent.parent),
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
    fixtures=["dsn"],
).pytest()


@pytest.fixture(scope="session")
def document_databases() -> Iterator[tuple[ExitStack, dict[Path, str]]]:
    """Yield the URLs of the documents' databases, and what drops them at the end."""
    with ExitStack() as stack:
        yield stack, {}


@pytest.fixture
def dsn(
    request: pytest.FixtureRequest,
    sqla_jobs_server: DatabaseServer,
    document_databases: tuple[ExitStack, dict[Path, str]],
) -> str:
    """Return the URL of the document's own database; its blocks know it as `dsn`."""
    stack, urls = document_databases
    path: Path = request.node.path
    if path not in urls:
        urls[path] = stack.enter_context(sqla_jobs_server.temporary_database())
    return urls[path]

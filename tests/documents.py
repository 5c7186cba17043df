"""
Collects the code blocks of the README and the documentation as tests.

A ``python`` block is run. A ``{code-block}`` with a ``:caption:`` is written to the
file it names, in a folder of the document's own. In a ``console`` block each line after
"$ " is run there by bash; what is below it is what it must print, "..." being anything.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser, SkipParser
from sybil.parsers.myst.lexers import DirectiveLexer

if TYPE_CHECKING:
    from sqla_jobs.testing import DatabaseServer
    from tests.programs import Programs

pytest_plugins = ["sqla_jobs.testing.pytest_plugin", "tests.programs"]

COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)\n?", re.MULTILINE)
# A later command starts in the folder that this one went to.
SCRIPT = 'eval "$1"; status=$?; pwd > "$2"; exit $status'


class CodeParser(PythonCodeBlockParser):
    """Finds the Python blocks that are to be run."""

    def __call__(self, document: Document) -> Iterator[Region]:
        """Yield all but those that are files."""
        for region in super().__call__(document):
            if "caption" not in region.lexemes.get("options", {}):
                yield region


class FileParser:
    """Finds the blocks that are files."""

    def __call__(self, document: Document) -> Iterator[Region]:
        """Yield them."""
        for region in DirectiveLexer("code-block")(document):
            if "caption" in region.lexemes["options"]:
                region.parsed = region.lexemes["source"]
                region.evaluator = write_file
                yield region


def write_file(example: Example) -> None:
    """Write the block to the file that its caption names."""
    name = example.region.lexemes["options"]["caption"]
    target = Path(example.namespace["document_folder"], name)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(example.parsed)


def run_commands(example: Example) -> None:
    """
    Run the commands of the block.

    Raises:
        AssertionError: If one fails, or prints something else than the block says.
    """
    __tracebackhide__ = True
    commands = list(COMMAND.finditer(example.parsed))
    ends = [found.start() for found in commands[1:]] + [len(example.parsed)]
    for found, end in zip(commands, ends, strict=True):
        printed = run_command(found[1], example)
        expected = example.parsed[found.end() : end].strip()
        if expected and not matches(expected, printed):
            raise AssertionError(f"$ {found[1]}\nexpected:\n{expected}\n\n{printed}")


def run_command(command: str, example: Example) -> str:
    """Run *command* and return what it prints; it must exit with status 0."""
    __tracebackhide__ = True
    folder: Path = example.namespace["document_folder"]
    note = folder.with_suffix(".pwd")
    where = note.read_text().strip() if note.exists() else folder
    programs: Programs = example.namespace["programs"]
    folders = [programs.path, Path(sys.executable).parent]
    path = [*map(str, folders), os.environ.get("PATH", os.defpath)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("SQLA_JOBS_")}
    env |= {
        "PATH": os.pathsep.join(path),
        "DATABASE_URL": example.namespace["dsn"],
    }
    done = subprocess.run(
        ["bash", "-c", SCRIPT, "bash", command, str(note)],
        cwd=where,
        env=env,
        check=False,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode != 0:
        raise AssertionError(f"$ {command}\nstatus {done.returncode}\n{done.stdout}")
    return done.stdout


def matches(expected: str, printed: str) -> bool:
    """Return whether *printed* is *expected*, in which "..." stands for anything."""
    pattern = re.escape(expected).replace(re.escape("..."), ".*?")
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


pytest_collect_file = Sybil(
    path=str(Path(__file__).resolve().parent.parent),
    parsers=[
        CodeParser(),
        FileParser(),
        CodeBlockParser("console", run_commands),
        SkipParser(),
    ],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
    fixtures=["dsn", "document_folder", "programs"],
).pytest()


@pytest.fixture(scope="session")
def documents() -> Iterator[tuple[ExitStack, dict[Path, str]]]:
    """Yield the URLs of the documents' databases, and what drops them at the end."""
    with ExitStack() as stack:
        yield stack, {}


@pytest.fixture
def dsn(
    request: pytest.FixtureRequest,
    sqla_jobs_server: DatabaseServer,
    documents: tuple[ExitStack, dict[Path, str]],
) -> str:
    """Return the URL of the document's own database; its blocks know it as `dsn`."""
    stack, urls = documents
    path: Path = request.node.path
    if path not in urls:
        urls[path] = stack.enter_context(sqla_jobs_server.temporary_database())
    return urls[path]


@pytest.fixture(scope="session")
def document_folders() -> dict[Path, Path]:
    """Return the folders of the documents whose blocks run."""
    return {}


@pytest.fixture
def document_folder(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    document_folders: dict[Path, Path],
) -> Path:
    """Return the folder of the document's files, in which its commands run."""
    path: Path = request.node.path
    if path not in document_folders:
        document_folders[path] = tmp_path_factory.mktemp(path.stem)
    return document_folders[path]

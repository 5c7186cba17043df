"""What is in a Python source file. Knows nothing of databases or jobs."""

from __future__ import annotations

import ast
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

# Other people's escape sequences.
warnings.filterwarnings("ignore", category=SyntaxWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning, message="invalid")

# Threads that parse at once confuse some Pythons, which raise SystemError: "AST
# constructor recursion depth mismatch" (https://github.com/python/cpython/issues/106905).
_parser = threading.Lock()

BLOCKS = ast.stmt, ast.excepthandler, ast.match_case
"""What can hold a statement; expressions cannot."""

T = TypeVar("T")


class Defined(NamedTuple):
    """A class or function, by its qualified name."""

    kind: str
    name: str
    line: int


class Imported(NamedTuple):
    """An absolute name that is imported."""

    name: str
    line: int


@dataclass
class Source:
    """What was found in a file; nothing but `error` if it could not be read."""

    lines: int = 0
    error: str | None = None
    symbols: list[Defined] = field(default_factory=list)
    imports: list[Imported] = field(default_factory=list)


def read_source(path: str, module: str) -> Source:
    """Return what the file at *path* defines and imports; *module* is its name."""
    try:
        data = Path(path).read_bytes()
        with _parser:
            tree = ast.parse(data)
    # ValueError: a NUL byte or an unknown encoding; the others: too deeply nested.
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as exc:
        return Source(error=f"{type(exc).__name__}: {exc}".replace("\0", "\\0"))
    source = Source(lines=data.count(b"\n"))
    is_package = Path(path).name == "__init__.py"
    package = module if is_package else module.rpartition(".")[0]
    todo: list[tuple[ast.AST, str]] = [(tree, "")]
    while todo:
        node, scope = todo.pop()
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                kind = "class" if isinstance(node, ast.ClassDef) else "function"
                name = f"{scope}{node.name}"
                source.symbols.append(Defined(kind, name, node.lineno))
                scope = f"{name}."
            case ast.Import() | ast.ImportFrom():
                names = imported_names(node, package)
                source.imports += [Imported(name, node.lineno) for name in names]
        children = ast.iter_child_nodes(node)
        todo += [(child, scope) for child in children if isinstance(child, BLOCKS)]
    return source


def imported_names(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[str]:
    """Yield the absolute names that a statement in a module of *package* imports."""
    base = ""
    if isinstance(node, ast.ImportFrom):
        parts = package.split(".")
        parents = parts[: len(parts) - node.level + 1] if node.level else []
        base = "".join(f"{part}." for part in [*parents, node.module] if part)
    for alias in node.names:
        yield (base + alias.name).removesuffix(".*")


def find_module(name: str, modules: Mapping[str, T]) -> T | None:
    """Return the entry of the module that *name* is, or is in; None if unknown."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return modules.get(name)


def source_files(root: Path) -> tuple[list[tuple[str, str]], int]:
    """
    Return name and path of all modules below *root*, and how many are no tests.

    Tests come last: some Pythons lack them. Installed packages are left out.
    """
    ordinary: list[tuple[str, str]] = []
    tests: list[tuple[str, str]] = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not {"site-packages", "dist-packages", "__pycache__"} & {*parts}:
            names = parts[:-1] if parts[-1] == "__init__" else parts
            into = tests if {"test", "tests", "idle_test"} & {*parts} else ordinary
            into.append((".".join(names), str(path)))
    return ordinary + tests, len(ordinary)

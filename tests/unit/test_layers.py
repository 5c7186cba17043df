"""A module of the library imports only from the layers below its own."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sqla_jobs"
CONTRACT = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
LAYERS = [layer.strip("()") for layer in CONTRACT["contracts"][0]["layers"]]
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of everything that *source* imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from ((node.lineno, name) for name in parts)


def layer_of(path: Path) -> str:
    """Return the layer that a file belongs to; "" is the facade."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def upward(source: str, layer: str) -> list[str]:
    """Return the imports of *source* that leave *layer* upwards."""
    found = []
    for line, name in imports(source):
        package, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if package != "sqla_jobs" or target == layer:
            continue
        # A name that is no layer comes from the facade, which is above them all.
        below = LAYERS[LAYERS.index(layer) + 1 :]
        if target not in below:
            found.append(f"line {line}: {name}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_from_lower_layers(path: Path) -> None:
    """Each file belongs to a layer, and nothing it imports lies above."""
    layer = layer_of(path)
    if not layer:
        return

    assert layer in LAYERS
    assert upward(path.read_text(), layer) == []


@pytest.mark.parametrize(
    ("source", "layer"),
    [
        ("from sqla_jobs.runner import Runner", "_store"),
        ("import sqla_jobs.cli", "runner"),
        ("from sqla_jobs import Runner", "models"),
        ("def f():\n    from sqla_jobs._store import claim", "_core"),
    ],
    ids=["up", "import", "facade", "hidden"],
)
def test_upward_import_is_seen(source: str, layer: str) -> None:
    """The rule above catches every way to write an import."""
    assert len(upward(source, layer)) == 1

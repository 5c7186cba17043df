"""The checkers accept and refuse exactly the lines of tests/typing they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests" / "typing").glob("*.py"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def _run(*command: str) -> str:
    """Return what a checker prints, without colours and whatever its exit status."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr or done.stdout
    return done.stdout


def _expected(file: Path) -> set[int]:
    lines = file.read_text().splitlines()
    return {i for i, line in enumerate(lines, 1) if line.endswith("# error")}


def _mypy_lines() -> dict[str, set[int]]:
    out = _run(
        "mypy",
        "--strict",
        "--explicit-package-bases",
        # The library itself is checked by its own run.
        "--follow-imports=silent",
        *map(str, FILES),
    )
    found: dict[str, set[int]] = {file.name: set() for file in FILES}
    for file, line in re.findall(r"^(.+?):(\d+): error:", out, re.MULTILINE):
        found[Path(file).name].add(int(line))
    return found


def _pyright_lines(folder: Path) -> dict[str, set[int]]:
    # Copies: the project's own configuration leaves these files out.
    for file in FILES:
        shutil.copy(file, folder)
    config = folder / "pyrightconfig.json"
    config.write_text(json.dumps({"extraPaths": [str(ROOT)]}))
    interpreter = ("--pythonpath", sys.executable)
    out = _run("pyright", "--outputjson", *interpreter, "-p", str(config))
    found: dict[str, set[int]] = {file.name: set() for file in FILES}
    for one in json.loads(out)["generalDiagnostics"]:
        if one["severity"] == "error":
            line = one["range"]["start"]["line"] + 1
            found[Path(one["file"]).name].add(line)
    return found


def test_files_mark_errors() -> None:
    """There is a file without and a file with lines to refuse."""
    marked = {file.name: bool(_expected(file)) for file in FILES}

    assert marked == {"invalid.py": True, "valid.py": False}


def test_mypy_agrees() -> None:
    """The strict mode of mypy reports the marked lines and no others."""
    pytest.importorskip("mypy")

    found = _mypy_lines()

    assert found == {file.name: _expected(file) for file in FILES}


def test_pyright_agrees(tmp_path: Path) -> None:
    """Pyright's strict mode reports the marked lines and no others."""
    pytest.importorskip("pyright")

    found = _pyright_lines(tmp_path)

    assert found == {file.name: _expected(file) for file in FILES}

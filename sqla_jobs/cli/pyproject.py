"""The section ``[tool.sqla_jobs]`` of the nearest pyproject.toml that has one."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sqla_jobs.cli.errors import TargetError

NAME = "tool.sqla_jobs"


@dataclass(frozen=True)
class Section:
    """The keys of a section, written as in the options: ``log-level``."""

    path: Path
    values: Mapping[str, Any]

    def where(self, key: str) -> str:
        """Return the words that lead a user to a key."""
        return f"{key!r} in [{NAME}] of {self.path}"


def find_section(folder: Path, known: Collection[str]) -> Section | None:
    """
    Return the section for *folder*: its own, or that of the nearest parent with one.

    Raises:
        TargetError: If a file on the way cannot be read, or the section has a key
            that is not *known*.
    """
    for each in (folder, *folder.parents):
        path = each / "pyproject.toml"
        values = _section_of(path) if path.is_file() else None
        if values is not None:
            return Section(path, _checked(path, values, known))
    return None


def _section_of(path: Path) -> Mapping[str, Any] | None:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as exc:
        raise TargetError(f"{path} cannot be read: {exc}") from None
    tool = document.get("tool", {})
    if not isinstance(tool, dict):
        return None  # none of ours
    for wrong in ("sqla-jobs", "sqlajobs", "sqla.jobs"):
        if wrong in tool:
            raise TargetError(f"{path}: [tool.{wrong}] must be named [{NAME}]")
    values = tool.get("sqla_jobs")
    if values is not None and not isinstance(values, dict):
        raise TargetError(f"{path}: {NAME} must be a table, got {values!r}")
    return values


def _checked(
    path: Path, values: Mapping[str, Any], known: Collection[str]
) -> Mapping[str, Any]:
    checked: dict[str, Any] = {}
    for written, value in values.items():
        key = written.replace("_", "-")
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else ""
            hint = hint or f"known are {', '.join(sorted(known))}"
            raise TargetError(f"{path}: [{NAME}] has no key {written!r}; {hint}")
        if key in checked:
            raise TargetError(f"{path}: [{NAME}] has {key!r} twice, with - and with _")
        checked[key] = value
    return checked

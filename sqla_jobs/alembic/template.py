"""Where the templates for `alembic init` are, and `init` itself."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from alembic import command
from alembic.config import Config

from sqla_jobs.errors import JobValueError

# In a wheel beside this file; in a checkout at its top.
_PLACES = (
    Path(__file__).parent / "templates",
    Path(__file__).parents[2] / "alembic_templates",
)
_PLACEHOLDER = re.compile(r"^# target_metadata = .*$", re.MULTILINE)


def template_names() -> list[str]:
    """Return the names of the templates, sorted."""
    return sorted({path.parent.name for path in _environments()})


def template_dir(name: str = "sync") -> Path:
    """
    Return the absolute path of a template, as ``alembic init -t`` takes it.

    Raises:
        JobValueError: If there is none of that name.
    """
    for path in _environments():
        if path.parent.name == name:
            return path.parent.absolute()
    names = ", ".join(template_names())
    raise JobValueError(f"no template {name!r}; there are: {names}")


def init(
    directory: str | Path = "migrations",
    *,
    template: str = "sync",
    config: str | Path | None = None,
    package: bool = False,
    metadata: str | None = None,
) -> list[Path]:
    """
    Do what ``alembic init`` does, and return the files and folders it wrote.

    Args:
        directory: The new folder for the migrations. Default "migrations".
        template: One of `template_names`. Default "sync".
        config: The configuration file, in its folder. Default "alembic.ini"; the
            pyproject templates write a pyproject.toml beside it, or add to one.
        package: Whether the folders get an ``__init__.py``. Default False.
        metadata: Where the models are, ``module:Base``. By default the
            configuration leaves it for you to fill in.

    Raises:
        JobValueError: If a file or folder is there already, or a value cannot be
            used; then nothing is written.
    """
    source, directory = template_dir(template), Path(directory)
    ini = Path(config or "alembic.ini")
    toml = ini.with_name("pyproject.toml")
    with_toml = (source / "pyproject.toml.mako").exists()
    _check_metadata(metadata)
    _check_targets(directory, ini, toml if with_toml else None)
    command.init(Config(ini, toml_file=toml), str(directory), str(source), package)
    if metadata is not None:
        _fill_in(toml if with_toml else ini, metadata)
    return [directory, ini, *([toml] if with_toml else [])]


def _environments() -> Iterator[Path]:
    for place in _PLACES:
        yield from place.glob("*/env.py")


def _check_metadata(metadata: str | None) -> None:
    if metadata is None:
        return
    names = metadata.partition(":")
    parts = [part for name in names[::2] for part in name.split(".")]
    if not all(part.isidentifier() for part in parts):
        raise JobValueError(
            f"metadata={metadata!r} does not say where the models are; say"
            " 'module:Base', as in 'myapp.models:Base'"
        )


def _check_targets(directory: Path, ini: Path, toml: Path | None) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise JobValueError(f"{directory} already exists and is not an empty folder")
    if ini.name == "pyproject.toml":
        raise JobValueError(
            "the URL and the logging are in an ini file, so config is its name; take"
            " the template 'pyproject' to have the rest in pyproject.toml"
        )
    if not ini.parent.is_dir():
        raise JobValueError(f"there is no folder {ini.parent} for {ini}")
    if ini.exists():
        raise JobValueError(f"{ini} already exists; remove it, or name another config")
    if toml and toml.exists():
        try:
            tables = tomllib.loads(toml.read_text("utf-8")).get("tool", {})
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise JobValueError(f"{toml} is not valid TOML: {exc}") from exc
        if "alembic" in tables:
            raise JobValueError(f"{toml} already has a [tool.alembic] section")


def _fill_in(config: Path, metadata: str) -> None:
    quote = '"' if config.suffix == ".toml" else ""
    line = f"target_metadata = {quote}{metadata}{quote}"
    text = _PLACEHOLDER.sub(line, config.read_text("utf-8"), count=1)
    config.write_text(text, "utf-8")

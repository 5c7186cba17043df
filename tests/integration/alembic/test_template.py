"""Where the templates are, what `init` writes and refuses, and bad configurations."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import MetaData

from sqla_jobs.alembic.environment import load_metadata
from sqla_jobs.alembic.template import init, template_dir, template_names
from sqla_jobs.errors import JobValueError
from tests.integration.alembic.shop import shop


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the current folder, empty; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("shop", None)


def files(folder: Path) -> list[str]:
    """Return all there is in a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_names() -> None:
    """There are four; each is a folder as Alembic wants it, with a synopsis."""
    names = template_names()

    assert names == ["async", "pyproject", "pyproject_async", "sync"]
    for name in names:
        folder = template_dir(name)
        assert folder.is_absolute()
        synopsis, *_ = (folder / "README").read_text().splitlines()
        assert synopsis.endswith(".")
        wanted = {"README", "env.py", "script.py.mako", "alembic.ini.mako"}
        assert wanted <= {path.name for path in folder.iterdir()}


def test_unknown_name() -> None:
    """An unknown name is answered with those that there are."""
    with pytest.raises(JobValueError, match="'asynch'; there are: async, pyproject, "):
        template_dir("asynch")


@pytest.mark.parametrize("name", ["env.py", "script.py.mako"])
def test_flavours_differ_in_nothing_else(name: str) -> None:
    """What does not depend on the configuration's format is the same."""
    for one, other in [("sync", "pyproject"), ("async", "pyproject_async")]:
        same = (template_dir(flavour) / name for flavour in (one, other))
        assert len({path.read_text() for path in same}) == 1


def test_revisions_do_not_mention_the_library() -> None:
    """The template of the revisions does not, so they run without it."""
    for name in template_names():
        assert "sqla_jobs" not in (template_dir(name) / "script.py.mako").read_text()


def test_init(here: Path) -> None:
    """`init` writes what `alembic init` does, and fills the metadata in."""
    written = init(metadata="myapp.models:Base", package=True)

    assert written == [Path("migrations"), Path("alembic.ini")]
    assert files(here) == [
        "alembic.ini",
        "migrations",
        "migrations/README",
        "migrations/__init__.py",
        "migrations/env.py",
        "migrations/script.py.mako",
        "migrations/versions",
        "migrations/versions/__init__.py",
    ]
    config = Config("alembic.ini")
    assert config.get_main_option("target_metadata") == "myapp.models:Base"
    assert config.get_main_option("script_location") == f"{here}/migrations"


def test_init_adds_to_pyproject(here: Path) -> None:
    """What is in pyproject.toml stays; the rest goes beside it, wherever that is."""
    (here / "sub").mkdir()
    toml = here / "sub/pyproject.toml"
    toml.write_text('[project]\nname = "shop"  # ours\n')

    written = init(
        "sub/db",
        template="pyproject",
        config="sub/alembic.ini",
        metadata="shop:db.Base",
    )

    assert written == [
        Path("sub/db"),
        Path("sub/alembic.ini"),
        Path("sub/pyproject.toml"),
    ]
    assert toml.read_text().startswith('[project]\nname = "shop"  # ours\n')
    section = tomllib.loads(toml.read_text())["tool"]["alembic"]
    assert section["script_location"] == "%(here)s/db"
    assert section["target_metadata"] == "shop:db.Base"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "django"}, "no template 'django'"),
        ({"directory": "full"}, "full already exists and is not an empty folder"),
        ({"directory": "file"}, "file already exists and is not an empty folder"),
        ({"config": "taken.ini"}, "taken.ini already exists"),
        ({"config": "no/alembic.ini"}, "there is no folder no"),
        ({"config": "pyproject.toml"}, "take the template 'pyproject'"),
        ({"config": "full/a.ini", "template": "pyproject"}, "has a .tool.alembic"),
        (
            {"config": "bad/a.ini", "template": "pyproject"},
            "not valid TOML",
        ),
        ({"metadata": "myapp/models.py"}, "metadata='myapp/models.py' does not say"),
        ({"metadata": "myapp.models"}, "metadata='myapp.models' does not say"),
    ],
)
def test_init_refuses(here: Path, options: dict[str, Any], message: str) -> None:
    """What is there, or cannot be used, is named, and nothing is written."""
    (here / "full").mkdir()
    (here / "bad").mkdir()
    (here / "full/pyproject.toml").write_text("[tool.alembic]")
    (here / "bad/pyproject.toml").write_text("[tool")
    for name in ("taken.ini", "file"):
        (here / name).touch()
    before = files(here)

    with pytest.raises(JobValueError, match=message):
        init(**options)

    assert files(here) == before


def configuration(value: str | None, *, template: str = "sync") -> Config:
    """Return a project's configuration that names its models so."""
    init(template=template)
    config = Config("alembic.ini", toml_file="pyproject.toml")
    if value is not None:
        config.set_main_option("target_metadata", value)
    return config


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "sync",
            r"alembic.ini \[alembic\] .*: add target_metadata = myapp.models:Base",
        ),
        (
            "pyproject",
            r'\[tool.alembic\] .*: add target_metadata = "myapp.models:Base"',
        ),
    ],
)
def test_metadata_not_named(here: Path, template: str, message: str) -> None:
    """An unedited configuration is told the line to add, and where."""
    with pytest.raises(CommandError, match=message):
        load_metadata(configuration(None, template=template))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("shop", "target_metadata is 'shop'; write target_metadata = "),
        ("nowhere.models:Base", "no module 'nowhere' where .*prepend_sys_path"),
        ("shop.models:Base", "there is no module 'shop.models' where "),
        ("shop:Bass", "'shop:Bass', but .*'Bass'"),
        ("shop:number", "which is neither metadata nor has any: 5"),
        ("shop:empty", "which has no tables; name a module that imports all"),
    ],
)
def test_metadata_not_found(
    here: Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    """A name that leads nowhere is an error that names it, and the file."""
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    (here / "shop.py").write_text(
        "import sqlalchemy\nnumber = 5\nempty = sqlalchemy.MetaData()\n"
    )

    with pytest.raises(CommandError, match=message) as caught:
        load_metadata(configuration(value))

    assert str(caught.value).startswith("alembic.ini [alembic]")


@pytest.mark.parametrize("error", ["ModuleNotFoundError", "AttributeError"])
def test_error_in_the_models(
    here: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    """An error of the application's module is shown as it is, with the key."""
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    source = {"AttributeError": "len.x", "ModuleNotFoundError": "import no_such"}
    (here / "shop.py").write_text(source[error])

    with pytest.raises((AttributeError, ModuleNotFoundError)) as caught:
        load_metadata(configuration("shop:Base"))

    assert caught.type.__name__ == error
    assert caught.value.__notes__ == ["alembic.ini [alembic]: 'shop:Base'"]


@pytest.mark.parametrize("attribute", ["Base", "Base.metadata", "metadata"])
def test_metadata_found(
    here: Path, monkeypatch: pytest.MonkeyPatch, attribute: str
) -> None:
    """A base, what else has metadata, and metadata itself can be named."""
    base = shop(1)
    module: Any = SimpleNamespace(Base=base, metadata=base.metadata)
    monkeypatch.setitem(sys.modules, "shop", module)

    metadata = load_metadata(configuration(f"shop:{attribute}"))

    assert isinstance(metadata, MetaData)
    assert metadata is base.metadata

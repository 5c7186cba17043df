"""Options from the command line, the environment and pyproject.toml."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import Result
from sqlalchemy import make_url

from sqla_jobs import Prefix
from sqla_jobs.cli.commands import command
from sqla_jobs.cli.run import RunSettings
from sqla_jobs.cli.settings import settings
from tests.integration.cli.kit import Command, Invoke

Ask = Callable[..., Result]
SECTION = "[tool.sqla_jobs]\n"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[RunSettings]:
    """Return the list in which ``--dry-run`` puts its settings."""
    found: list[RunSettings] = []
    monkeypatch.setattr("sqla_jobs.cli.run.describe_run", found.append)
    return found


@pytest.fixture
def ask(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Return a function that runs the command with variables and a pyproject.toml."""
    folder = tmp_path / "sub"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*args: str, toml: str | None = None, **variables: str) -> Result:
        path = tmp_path / "pyproject.toml"
        path.unlink(missing_ok=True)
        if toml is not None:
            path.write_text(toml)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            return invoke(*args)

    return run


def value_of(found: RunSettings, key: str) -> Any:
    """Return a setting by its key in pyproject.toml; None keeps the runner's own."""
    name = {"runner": "target", "app-dir": "folder"}.get(key, key).replace("-", "_")
    if hasattr(found, name):
        value = getattr(found, name)
        return value.name if isinstance(value, Path) else value
    return found.options.get(name)


# Per key: what to give on the command line, in the variable and in the file, each with
# the value it means, and the value without any of them.
TABLE = {
    "runner": (("a:one", "a:one"), ("b:two", "b:two"), ('"c:three"', "c:three"), None),
    "queues": (
        ("--queues=a,b", ["a", "b"]),
        ("c:1,d:2", {"c": 1, "d": 2}),
        ('{"e" = 3, "f,g" = 4}', {"e": 3, "f,g": 4}),
        None,
    ),
    "kinds": (
        ("--kinds=a", ["a"]),
        ("b,c", ["b", "c"]),
        ('["d", "e"]', ["d", "e"]),
        None,
    ),
    "concurrency": (("--concurrency=1", 1), ("2", 2), ("[3, 4]", (3, 4)), None),
    "threads": (("--threads=1", 1), ("2", 2), ("3", 3), None),
    "processes": (("--processes=2", 2), ("3", 3), ("4", 4), 1),
    "grace": (
        ("--grace=1", timedelta(seconds=1)),
        ("2.5", timedelta(seconds=2.5)),
        ("3.5", timedelta(seconds=3.5)),
        None,
    ),
    "lease": (
        ("--lease=3", timedelta(seconds=3)),
        ("4", timedelta(seconds=4)),
        ("5", timedelta(seconds=5)),
        None,
    ),
    "poll": (
        ("--poll=0.1", timedelta(seconds=0.1)),
        ("2", timedelta(seconds=2)),
        ("3", timedelta(seconds=3)),
        None,
    ),
    "retry-share": (("--retry-share=0", 0.0), ("0.5", 0.5), ("1", 1.0), None),
    "listen": (("--listen", True), ("no", False), ("true", True), None),
    "listen-url": (
        ("--listen-url=postgresql://a/b", make_url("postgresql://a/b")),
        ("postgresql://c/d", make_url("postgresql://c/d")),
        ('"postgresql://e/f"', make_url("postgresql://e/f")),
        None,
    ),
    "name": (("--name=a", "a"), ("b", "b"), ('"c"', "c"), None),
    "burst": (("--no-burst", False), ("1", True), ("false", False), False),
    "fail-on-error": (
        ("--no-fail-on-error", False),
        ("on", True),
        ("false", False),
        False,
    ),
    "reload": (("--no-reload", False), ("true", True), ("false", False), False),
    "log-level": (
        ("--log-level=ERROR", "error"),
        ("Warning", "warning"),
        ('"debug"', "debug"),
        None,
    ),
    "log-format": (
        ("--log-format=text", "text"),
        ("json", "json"),
        ('"text"', "text"),
        None,
    ),
    "app-dir": (("--app-dir=one", "one"), ("two", "two"), ('"three"', "three"), "sub"),
}


def test_table_has_every_setting() -> None:
    """Nothing can be configured that the next test does not try."""
    assert {each.key for each in settings(command)} == set(TABLE)


@pytest.mark.parametrize("key", TABLE)
def test_nearer_place_wins(
    ask: Ask, asked: list[RunSettings], tmp_path: Path, *, key: str
) -> None:
    """The command line, then a variable that is not empty, then the file's key."""
    (flag, by_flag), (text, by_variable), (toml, by_file), default = TABLE[key]
    for folder in ("sub/one", "sub/two", "three"):
        (tmp_path / folder).mkdir()
    variable = "SQLA_JOBS_" + key.replace("-", "_").upper()
    args = ["run", "--dry-run"] if key == "runner" else ["run", "a:one", "--dry-run"]
    file = f"{SECTION}{key} = {toml}\n"
    wanted = [by_flag, by_variable, by_file, by_file]

    done = [
        ask(*args, flag, toml=file, **{variable: text}),
        ask(*args, toml=file, **{variable: text}),
        ask(*args, toml=file, **{variable: ""}),
        ask(*args, toml=f"{SECTION}{key.replace('-', '_')} = {toml}\n"),
    ]
    if key != "runner":
        done.append(ask(*args, toml=SECTION))
        wanted.append(default)

    assert [each.output for each in done if each.exit_code] == []
    assert [value_of(found, key) for found in asked] == wanted


def test_runner_takes_what_was_configured(
    ask: Ask, app: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the settings say is what the runner would run with."""
    toml = """
        [tool.sqla_jobs]
        runner = "app:make_runner"
        queues = { mail = 3, sms = 2 }
        kinds = "greet"
        grace = 7
        lease = 8
        poll = 0.5
        listen_url = "postgresql+psycopg://me:secret@direct/db"
        threads = 2
        processes = 4
    """

    done = ask("run", "--dry-run", "--name", "mine", toml=toml)

    assert done.exit_code == 0, done.output
    lines = dict(line.split(": ", 1) for line in done.output.splitlines())
    assert {key: value.strip() for key, value in lines.items()} == {
        "runner": "Runner mine",
        "database": app.engine.url.render_as_string(hide_password=True),
        "tables": "cli_jobs",
        "kinds": "greet",
        "queues": "mail:3, sms:2",
        "concurrency": "5",
        "threads": "2",
        "processes": "4",
        "grace": "7 s",
        "lease": "8 s",
        "poll": "0.5 s",
        "listen": "yes, at postgresql+psycopg://me:***@direct/db",
    }


def test_runner_of_the_file_is_beside_the_file(
    sqla_jobs: Command, folder: Path, tmp_path: Path
) -> None:
    """From a folder below, the module is found where pyproject.toml is."""
    (tmp_path / "below").mkdir()
    (tmp_path / "app.py").write_text((folder / "app.py").read_text())
    (tmp_path / "pyproject.toml").write_text(f'{SECTION}runner = "app:runner"')

    done = sqla_jobs("check", cwd=tmp_path / "below")

    assert (done.returncode, done.stderr) == (0, "")


def test_file_without_the_section_is_passed_by(
    ask: Ask, asked: list[RunSettings], tmp_path: Path
) -> None:
    """A nearer pyproject.toml of something else does not hide the section."""
    (tmp_path / "sub" / "pyproject.toml").write_text("[project]\nname = 'x'\n")

    done = ask("run", "--dry-run", toml=f'{SECTION}runner = "a:one"')

    assert done.exit_code == 0, done.output
    assert [found.target for found in asked] == ["a:one"]


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("concurency = 3", "[tool.sqla_jobs] has no key 'concurency'; did you mean"),
        ("workers = 3", "has no key 'workers'; known are app-dir, burst, concurrency"),
        ("log-level = 'info'\nlog_level = 'info'", "has 'log-level' twice, with - and"),
        ("concurrency = '3'", "must be an integer, or [min, max], got '3'"),
        ("concurrency = [1, 2, 3]", "must be an integer, or [min, max], got [1, 2, 3]"),
        ("concurrency = 0", "concurrency must be a whole number of 1 or more, got 0"),
        ("concurrency = true", "must be an integer, or [min, max], got True"),
        ("processes = 1.5", "must be an integer, got 1.5"),
        ("processes = 0", "must be a whole number of 1 or more, got '0'"),
        ("grace = '30s'", "must be a number of seconds, got '30s'"),
        ("grace = -1", "must be zero or more seconds, got -1"),
        ("lease = 1", "lease must be 3 s or more, got 1 s"),
        ("poll = 0", "must be above zero, got 0"),
        ("listen-url = 'here'", "listen_url='here' is no database URL; write postgres"),
        ("listen = 'yes'", "must be true or false, got 'yes'"),
        ("log-level = 'loud'", "must be one of debug, info, warning, error, critical"),
        ("log-format = 3", "must be one of text, json, got 3"),
        ("name = ''", "must be a string that is not empty, got ''"),
        ("kinds = [1]", "must be an array of strings, got [1]"),
        ("queues = []", "names nothing; remove it to take all"),
        ("queues = {}", "names nothing; remove it to take all"),
        ("queues = {mail = 0}", "queues['mail'] must be a whole number of 1 or more"),
        ("queues = 'mail:2,sms'", "give slots to all queues or to none"),
        ("runner = 3", "must be a string that is not empty, got 3"),
    ],
)
def test_bad_key_of_the_file_is_named(
    ask: Ask, tmp_path: Path, *, toml: str, message: str
) -> None:
    """One line: what is wrong, and the key and the file it is in."""
    done = ask("run", "--dry-run", toml=SECTION + toml)

    key = toml.partition(" ")[0]
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 1
    assert message in done.output
    assert str(tmp_path / "pyproject.toml") in done.output
    assert repr(key) in done.output


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[tool.sqla_jobs\n", "(at line 1, column "),
        ("[tool]\nsqla_jobs = 3\n", "tool.sqla_jobs must be a table, got 3"),
        ("[tool.sqla-jobs]\n", "[tool.sqla-jobs] must be named [tool.sqla_jobs]"),
    ],
)
def test_bad_file_is_named(
    ask: Ask, tmp_path: Path, *, toml: str, message: str
) -> None:
    """A file that is no TOML, and a section that is none, are errors with a place."""
    done = ask("run", "--dry-run", toml=toml)

    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 1
    assert done.output.startswith(f"Error: {tmp_path / 'pyproject.toml'}")
    assert message in done.output


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("CONCURRENCY", "many", "'many' is neither a whole number nor MIN,MAX"),
        ("QUEUES", "mail:x", "the slots of queue 'mail' must be a whole number"),
        ("LOG_LEVEL", "loud", "'loud' is not one of 'debug', 'info'"),
        ("BURST", "maybe", "'maybe' is not a valid boolean"),
        ("PROCESSES", "-1", "must be a whole number of 1 or more, got '-1'"),
        ("LEASE", "2", "lease must be 3 s or more, got 2 s"),
    ],
)
def test_bad_variable_is_named(
    ask: Ask, *, variable: str, text: str, message: str
) -> None:
    """One line, with the variable the value came from."""
    done = ask("run", "a:one", "--dry-run", **{f"SQLA_JOBS_{variable}": text})

    assert done.exit_code == 2
    assert done.output.startswith(f"Error: the variable SQLA_JOBS_{variable}: ")
    assert message in done.output
    assert len(done.output.splitlines()) == 1


def test_value_that_only_the_runner_can_refuse_has_its_origin(ask: Ask) -> None:
    """A kind that is not mapped is found late, and its place is still told."""
    toml = f'{SECTION}runner = "app:make_runner"\nkinds = ["nope"]\n'

    by_file = ask("run", "--dry-run", toml=toml)
    by_variable = ask("run", "--dry-run", toml=toml, SQLA_JOBS_KINDS="nix")

    assert (by_file.exit_code, by_variable.exit_code) == (2, 2)
    assert "Error: 'kinds' in [tool.sqla_jobs] of " in by_file.output
    assert "kinds= names 'nope', which is not mapped" in by_file.output
    assert "the variable SQLA_JOBS_KINDS: kinds= names 'nix'" in by_variable.output


@pytest.mark.parametrize("name", ["run", "check"])
def test_runner_that_cannot_be_loaded_has_its_origin(ask: Ask, name: str) -> None:
    """Who named a runner that is not there is told too."""
    by_file = ask(name, toml=f'{SECTION}runner = "app:nothing"')
    by_variable = ask(name, SQLA_JOBS_RUNNER="app:nothing")

    assert (by_file.exit_code, by_variable.exit_code) == (2, 2)
    assert "(it comes from 'runner' in [tool.sqla_jobs] of " in by_file.output
    assert "(it comes from the variable SQLA_JOBS_RUNNER)" in by_variable.output


@pytest.mark.parametrize("name", ["run", "check"])
def test_missing_runner_tells_the_ways_to_name_it(
    ask: Ask, tmp_path: Path, name: str
) -> None:
    """A command without a runner, and a section that lacks it, are usage errors."""
    plain = ask(name)
    half = ask(name, toml=f"{SECTION}grace = 3\n")

    assert (plain.exit_code, half.exit_code) == (2, 2)
    assert "missing TARGET" in plain.output
    assert "SQLA_JOBS_RUNNER, or 'runner' in [tool.sqla_jobs]" in plain.output
    path = tmp_path / "pyproject.toml"
    assert f"'runner' in [tool.sqla_jobs] of {path}, which lacks it" in half.output


def test_unknown_variable_is_warned_of(ask: Ask, asked: list[RunSettings]) -> None:
    """A typing error in a variable is no silence; those of the tests are known."""
    done = ask(
        "run",
        "a:one",
        "--dry-run",
        SQLA_JOBS_CONCURENCY="3",
        SQLA_JOBS_TEST_DSN="postgresql://",
    )

    assert done.exit_code == 0
    assert done.output == (
        "Warning: the variable SQLA_JOBS_CONCURENCY is no option;"
        " did you mean SQLA_JOBS_CONCURRENCY?\n"
    )


def test_app_dir_must_be_a_folder(ask: Ask, tmp_path: Path) -> None:
    """A folder that is not there is named, relative to where it was configured."""
    flag = ask("run", "a:one", "--app-dir", "nowhere")
    file = ask("run", "a:one", toml=f'{SECTION}app-dir = "nowhere"')

    assert (flag.exit_code, file.exit_code) == (2, 2)
    assert f"{tmp_path / 'sub' / 'nowhere'} is not a folder" in flag.output
    assert f"{tmp_path / 'nowhere'} is not a folder" in file.output


PATTERNS: list[Any] = ["mail", ("mail", "a,b:c"), Prefix("t-"), "x,y"]


@pytest.mark.parametrize("slots", [False, True])
def test_channels_and_prefixes_read_alike_everywhere(
    ask: Ask, asked: list[RunSettings], *, slots: bool
) -> None:
    """The same text on the command line, in the variable and in the file."""
    parts = ["mail", '["mail", "a,b:c"]', '{"prefix": "t-"}', '"x,y"']
    texts = [f"{part}:2" if slots else part for part in parts]
    table = ", ".join(f"'{part}' = 2" for part in parts)
    array = ", ".join(f"'{part}'" for part in parts)
    toml = f"{SECTION}queues = " + (f"{{{table}}}" if slots else f"[{array}]")
    args = ["run", "a:one", "--dry-run"]

    done = [
        ask(*args, *(f"--queues={text}" for text in texts)),
        ask(*args, SQLA_JOBS_QUEUES=", ".join(texts)),
        ask(*args, toml=toml),
    ]

    wanted = dict.fromkeys(PATTERNS, 2) if slots else PATTERNS
    assert [each.output for each in done if each.exit_code] == []
    assert [found.options["queues"] for found in asked] == [wanted] * 3

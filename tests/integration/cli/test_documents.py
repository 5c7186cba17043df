"""What the documentation says of the command line is what it does."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from sqla_jobs.cli.commands import command
from sqla_jobs.cli.settings import Setting, Target
from tests.integration.cli.kit import ROOT, Invoke

REFERENCE = (ROOT / "docs" / "reference" / "cli.md").read_text()
DEPLOY = (ROOT / "docs" / "how-to" / "deploy.md").read_text()
FILES = {
    name: text.lstrip("\n")
    for name, text in re.findall(
        r"```\{code-block\} \w+\n:caption: ([^\n]+)\n(.*?)```", DEPLOY, re.DOTALL
    )
}
# Placeholders of options that list their choices in the help.
PLACEHOLDERS = {"log_level": "LEVEL", "log_format": "FORMAT"}


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading that names options."""
    section = REFERENCE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = section.split("\n| option", 1)[1].split("\n\n")[0]
    lines = table.splitlines()[2:]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines
    ]


def options(name: str) -> list[click.Parameter]:
    """Return the options of a command, and its argument if that can be configured."""
    assert isinstance(command, click.Group)
    params = command.commands[name].params
    return [each for each in params if isinstance(each, click.Option | Target)]


def written(param: click.Parameter) -> str:
    """Return how the reference writes an option."""
    if isinstance(param, Target):
        return "`TARGET`"
    names = [*param.opts, *param.secondary_opts]
    value = PLACEHOLDERS.get(str(param.name)) or param.metavar
    text = ", ".join(f"`{name}`" for name in names)
    return f"{text[:-1]} {value}`".replace("|", r"\|") if value else text


@pytest.mark.parametrize(
    ("heading", "name"), [("run", "run"), ("template and init", "init")]
)
def test_reference_lists_every_option(heading: str, name: str) -> None:
    """The table has the options of the command, all of them and no other."""
    assert [row[0] for row in rows(heading)] == [written(p) for p in options(name)]


def test_reference_lists_every_command() -> None:
    """The table at the top names each command."""
    assert isinstance(command, click.Group)
    names = re.findall(r"^\| \[`(\w+)`\]", REFERENCE, re.MULTILINE)

    assert names == list(command.commands)


def test_reference_tells_variables_keys_and_defaults() -> None:
    """Each row has the names an option has elsewhere, and the default of the help."""
    for row, param in zip(rows("run"), options("run"), strict=True):
        _, default, variable, key, _ = row
        if isinstance(param, Setting | Target):
            assert (variable, key) == (f"`{param.variable}`", f"`{param.key}`")
        else:
            assert (variable, key) == ("", "")
        told = re.search(r"\[default: (.+)\]", getattr(param, "help", None) or "")
        assert told is None or told[1] == default


def test_check_has_the_options_that_the_reference_says() -> None:
    """It shares them with run."""
    assert {each.name for each in options("check")} == {"target", "app_dir"}


# How to deploy


@pytest.fixture
def unit() -> configparser.RawConfigParser:
    """Return the systemd unit."""
    parser = configparser.RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(FILES["myapp-jobs.service"])
    return parser


@pytest.fixture
def deployed(
    tmp_path: Path, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Yield a folder with the files of the page; its modules are forgotten."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("DATABASE_URL", dsn)
    yield tmp_path
    sys.modules["myapp.worker"].engine.dispose()
    for name in [each for each in sys.modules if each.split(".")[0] == "myapp"]:
        del sys.modules[name]


def commands() -> list[str]:
    """Return the arguments of each command that the page's files start."""
    unit = re.findall(r"^Exec\w+=\S*/sqla-jobs (.+)$", DEPLOY, re.MULTILINE)
    lists = re.findall(r"(?:CMD|command:) (\[.+\])", DEPLOY)
    words = [json.loads(each) for each in lists]
    return [*unit, *(shlex.join(w[1:]) for w in words if w[0] == "sqla-jobs")]


def test_page_has_commands() -> None:
    """The unit, the Dockerfile and Kubernetes have one each."""
    assert len(commands()) == 3


@pytest.mark.parametrize("args", commands())
def test_command_of_the_page_is_right(
    invoke: Invoke, deployed: Path, monkeypatch: pytest.MonkeyPatch, *, args: str
) -> None:
    """Each command finds the runner by pyproject.toml, and takes the options."""
    monkeypatch.chdir(deployed)
    words = shlex.split(args)
    if words[0] == "check":
        done = invoke(*words)
        assert done.exit_code == 1, done.output
        assert "has no table" in done.output
    else:
        done = invoke(*words, "--dry-run")
        assert done.exit_code == 0, done.output
        assert "queues:      mail:10, default:4" in done.output


def test_unit_gives_the_runner_its_grace(unit: configparser.RawConfigParser) -> None:
    """Systemd waits longer than the grace and the supervisor's slack, and restarts."""
    service = unit["Service"]
    grace = re.search(r"^grace = (\d+)$", FILES["pyproject.toml"], re.MULTILINE)

    assert grace is not None
    assert int(service["TimeoutStopSec"]) > int(grace[1]) + 10
    assert (service["KillMode"], service["KillSignal"]) == ("mixed", "SIGTERM")
    assert service["Restart"] == "always"
    assert "stop_grace_period: 45s" in FILES["compose.yaml"]
    assert "terminationGracePeriodSeconds: 45" in FILES["deployment.yaml"]


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """Its own checker finds nothing to say, where there is one."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd here")
    path = tmp_path / "myapp-jobs.service"
    text = FILES["myapp-jobs.service"]
    path.write_text(re.sub(r"=/srv/\S+/sqla-jobs", "=/bin/true", text))

    done = subprocess.run(
        [program, "verify", "--man=no", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )

    # Another unit of the machine may be at fault.
    assert path.name not in done.stderr

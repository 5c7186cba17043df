"""The commands beside ``run``: check, template, init and completion."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from sqla_jobs.alembic.template import template_names
from sqla_jobs.cli.commands import command
from tests.integration.cli.kit import APP, Command, Invoke

CONFIGURED = """
[tool.sqla_jobs]
runner = "app:runner"
queues = ["mail", "mass", "sms"]
"""

# check


@pytest.mark.parametrize("target", ["app:runner", "app:arunner", "app:make_runner"])
def test_check_of_matching_tables_is_a_success(
    sqla_jobs: Command, dsn: str, target: str
) -> None:
    """A sync and an async engine: one line, the status is 0."""
    done = sqla_jobs("check", target)

    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith("cli_jobs: as the code says, 4 kinds, in postgresql")


@pytest.mark.parametrize("target", ["ahead:runner", "ahead:arunner"])
def test_check_lists_the_differences(
    sqla_jobs: Command, folder: Path, target: str
) -> None:
    """A column that the database lacks: its name and the command, the status is 1."""
    more = "\nclass More(Job, kind='more'):\n    due_on: Mapped[int | None]\n"
    source = APP.replace("class Greet", f"{more}\nclass Greet", 1)
    source = source.replace(
        "from sqlalchemy.orm import", "from sqlalchemy.orm import Mapped,"
    )
    (folder / "ahead.py").write_text(source)

    done = sqla_jobs("check", target)

    assert done.returncode == 1
    assert done.stderr.startswith("Error: the database is behind the code")
    assert "alembic upgrade head" in done.stderr
    assert any("due_on" in line for line in done.stderr.splitlines())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("target", ["away:runner", "away:arunner"])
def test_check_of_an_unreachable_database(
    sqla_jobs: Command, folder: Path, target: str
) -> None:
    """The URL, without its password, and the driver's message; the status is 2."""
    url = "postgresql+psycopg://me:secret@127.0.0.1:1/nothing"
    (folder / "away.py").write_text(APP.replace('os.environ["APP_DSN"]', repr(url)))

    done = sqla_jobs("check", target)

    assert done.returncode == 2
    assert done.stderr.startswith(
        "Error: the database postgresql+psycopg://me:***@127.0.0.1:1/nothing"
        " cannot be reached: "
    )
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_check_shows_the_users_own_error(sqla_jobs: Command, tmp_path: Path) -> None:
    """A module that fails is shown from its first line on, as by run."""
    (tmp_path / "bad.py").write_text("1 / 0\n")

    done = sqla_jobs("check", "bad:runner", cwd=tmp_path)

    assert done.returncode == 2
    places = [line for line in done.stderr.splitlines() if "File" in line]
    assert len(places) == 1
    assert "ZeroDivisionError" in done.stderr


# template and init


@pytest.mark.parametrize("name", template_names())
def test_template_is_a_folder(invoke: Invoke, name: str) -> None:
    """The absolute path of each template is printed."""
    done = invoke("template", name)

    path = Path(done.output.strip())
    assert done.exit_code == 0
    assert path.is_absolute()
    assert (path / "env.py").is_file()


def test_template_is_sync_by_default(invoke: Invoke) -> None:
    """Without a name it is the one most applications want."""
    assert invoke("template").output == invoke("template", "sync").output


@pytest.mark.parametrize("args", [["template", "no"], ["init", "-t", "no"]])
def test_unknown_template_is_one_line(
    invoke: Invoke, args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names that there are, and nothing is written."""
    monkeypatch.chdir(tmp_path)

    done = invoke(*args)

    assert (done.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert done.output.startswith("Error: no template 'no'; there are: async, ")
    assert len(done.output.splitlines()) == 1


@pytest.mark.parametrize("template", template_names())
def test_init_writes_an_environment(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, template: str
) -> None:
    """The folder, the configuration with its metadata, and what to do next."""
    monkeypatch.chdir(tmp_path)

    done = invoke(
        *("init", "db", "--template", template, "--package"),
        *("--metadata", "myapp.models:Base", "--config", "mine.ini"),
    )

    assert done.exit_code == 0, done.output
    config = "pyproject.toml" if "pyproject" in template else "mine.ini"
    assert "myapp.models:Base" in (tmp_path / config).read_text()
    assert (tmp_path / "mine.ini").is_file()
    assert (tmp_path / "db" / "env.py").is_file()
    assert (tmp_path / "db" / "__init__.py").is_file()
    assert done.output.splitlines()[-1].startswith("Next: alembic revision")


def test_init_leaves_what_is_there(sqla_jobs: Command, tmp_path: Path) -> None:
    """A target that exists is an error in one line, and nothing is written."""
    (tmp_path / "alembic.ini").write_text("mine")

    done = sqla_jobs("init", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: alembic.ini already exists")
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["alembic.ini"]


# completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_printed(invoke: Invoke, shell: str) -> None:
    """Each script calls this command with its variable."""
    done = invoke("completion", shell)

    assert done.exit_code == 0
    assert f"_SQLA_JOBS_COMPLETE={shell}_complete" in done.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_valid(invoke: Invoke, shell: str) -> None:
    """The shell itself reads it."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} here")
    script = invoke("completion", shell).output

    done = subprocess.run([program, "-n"], input=script, text=True, check=False)

    assert done.returncode == 0


def test_completion_needs_a_known_shell(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell is that of SHELL; another one is an error that lists those known."""
    monkeypatch.setenv("SHELL", "/bin/bash")
    bash = invoke("completion")
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    other = invoke("completion")

    assert bash.output == invoke("completion", "bash").output
    assert other.exit_code == 2
    assert "no completion for the shell 'tcsh'; name one of bash, zsh" in other.output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ch", ["check"]),
        ("run --log-f", ["--log-format"]),
        ("run --log-format ", ["text", "json"]),
        ("run -l w", ["warning"]),
        ("run --queues m", ["mail", "mass"]),
        ("run a", ["app:runner"]),
        ("template s", ["sync"]),
        ("init --template pyproject_", ["pyproject_async"]),
        ("completion f", ["fish"]),
    ],
)
def test_completion_knows(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    words: str,
    expected: list[str],
) -> None:
    """Commands, options, choices, and the queues and the runner of the file."""
    (tmp_path / "pyproject.toml").write_text(CONFIGURED)
    monkeypatch.chdir(tmp_path)
    *args, last = words.split(" ")
    complete = ShellComplete(command, {}, "sqla-jobs", "_SQLA_JOBS_COMPLETE")

    found = complete.get_completions(args, last)

    assert [each.value for each in found] == expected


def test_completion_answers(
    environ: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    """The command that the script of bash runs prints the candidates and no more."""
    variables = {
        "_SQLA_JOBS_COMPLETE": "bash_complete",
        "COMP_WORDS": "sqla-jobs run --log-format ",
        "COMP_CWORD": "3",
    }

    done = subprocess.run(
        [sys.executable, "-m", "sqla_jobs"],
        env=environ | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["plain,text", "plain,json"]


def test_completion_is_silent_about_a_bad_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pyproject.toml that cannot be read is an error when the command runs."""
    (tmp_path / "pyproject.toml").write_text("[tool.sqla_jobs")
    monkeypatch.chdir(tmp_path)
    complete = ShellComplete(command, {}, "sqla-jobs", "_SQLA_JOBS_COMPLETE")

    assert complete.get_completions(["run", "--queues"], "m") == []

"""The command line on bad input: exit statuses and messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.cli.kit import APP, ROOT, Command, Invoke

# What it cannot load


def test_import_error_is_shown_as_the_users_own(
    sqla_jobs: Command, tmp_path: Path
) -> None:
    """The traceback begins in their file, and no file of the library is in it."""
    (tmp_path / "outer.py").write_text("import inner\n")
    (tmp_path / "inner.py").write_text("import no_such_module\n")

    done = sqla_jobs("run", "outer:runner", cwd=tmp_path)

    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].strip() == f'File "{tmp_path}/outer.py", line 1, in <module>'
    assert "ModuleNotFoundError: No module named 'no_such_module'" in lines
    assert str(ROOT / "sqla_jobs") not in done.stderr
    assert "importlib" not in done.stderr
    assert lines[-1] == "Error: 'outer:runner' cannot be loaded"


@pytest.mark.parametrize(
    ("source", "line", "message"),
    [
        ("1 / 0", 'bad.py", line 2, in <module>', "ZeroDivisionError"),
        ("x = = 1", 'bad.py", line 2', "SyntaxError: invalid syntax"),
        (
            "import sqla_jobs.runner.threads as t; t.Runner(None, object)",
            'bad.py", line 2, in <module>',
            "object",
        ),
    ],
    ids=["any", "syntax", "library"],
)
def test_error_of_the_module_has_its_place_and_no_frame_of_ours(
    sqla_jobs: Command, tmp_path: Path, *, source: str, line: str, message: str
) -> None:
    """A failing statement, a syntax error and a refusal by the library look alike."""
    (tmp_path / "bad.py").write_text(f"# the user's\n{source}\n")

    done = sqla_jobs("run", "bad:runner", cwd=tmp_path)

    assert done.returncode == 2
    places = [each.strip() for each in done.stderr.splitlines() if "File" in each]
    assert len(places) == 1
    assert places[0].endswith(line)
    assert message in done.stderr


def test_syntax_error_is_shown_as_python_does(
    sqla_jobs: Command, tmp_path: Path
) -> None:
    """A module that cannot be read has a place, but no traceback."""
    (tmp_path / "bad.py").write_text("x = = 1\n")

    done = sqla_jobs("run", "bad:runner", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stderr.startswith(f'  File "{tmp_path}/bad.py", line 1\n')


def test_module_missed_by_its_own_package_is_the_users_error(
    sqla_jobs: Command, tmp_path: Path
) -> None:
    """The application's line that wants the module is shown, not just its name."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").write_text("import own.jobs\n")

    done = sqla_jobs("run", "own.jobs:runner", cwd=tmp_path)

    assert done.returncode == 2
    assert f'File "{tmp_path}/own/__init__.py", line 1, in <module>' in done.stderr
    assert done.stderr.splitlines()[-2:] == [
        "ModuleNotFoundError: No module named 'own.jobs'",
        "Error: 'own.jobs:runner' cannot be loaded",
    ]
    assert "KeyError" not in done.stderr


def test_error_of_a_factory_is_the_users_own(sqla_jobs: Command) -> None:
    """What a factory raises is shown from its own frame on."""
    done = sqla_jobs("run", "app:make_broken")

    assert done.returncode == 2
    assert "line" in done.stderr.splitlines()[1]
    assert done.stderr.splitlines()[1].endswith("in make_broken")
    assert str(ROOT / "sqla_jobs") not in done.stderr


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("ap:runner", "no module 'ap' in {cwd} or installed; did you mean 'app'?"),
        ("zzz:runner", "no module 'zzz' in {cwd} or installed"),
        ("pack.job:runner", "no module 'job' in package 'pack'; did you mean 'jobs'?"),
        ("app.sub:runner", "no module 'app.sub': 'app' is a module, no package"),
        ("app:runer", "module 'app' has no attribute 'runer'; did you mean 'runner'?"),
        ("app:zzz", "module 'app' has no attribute 'zzz'; did you mean 'arunner'?"),
        ("app:Holder.work", "the class Holder has no attribute 'work'; did you mean"),
        ("app", "'app' names no runner; name it too, as in 'app:runner'"),
        ("app.py:runner", "names a file; name its module, as in 'app:runner'"),
        ("./pack/jobs.py", "names a file; name its module, as in 'pack.jobs:runner'"),
        ("app:", "'app:' names no runner; name it too, as in 'app:runner'"),
        ("app:run ner", "'app:run ner' is not of the form 'module:runner'"),
    ],
)
def test_missing_target_is_one_line(
    invoke: Invoke, folder: Path, *, target: str, message: str
) -> None:
    """A module or attribute that is not there: one line, with what was meant."""
    (folder / "pack").mkdir(exist_ok=True)
    (folder / "pack" / "__init__.py").touch()
    (folder / "pack" / "jobs.py").touch()

    done = invoke("run", target)

    assert done.exit_code == 2
    assert message.format(cwd=folder) in done.output
    assert len(done.output.splitlines()) == 1


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "app:Session",
            "'app:Session' is a sessionmaker, not a Runner, an AsyncRunner",
        ),
        ("app:AsyncSession", "is an async_sessionmaker, not a Runner"),
        ("app:Session", "make one of it, as in: runner = Runner(Session, Job)"),
        ("app:DSN", "'app:DSN' is a str, not a Runner"),
        ("app:Job", "is the class Job, not a Runner"),
        ("app:asyncio", "is module 'asyncio', not a Runner"),
        ("app:make_named", "is the function make_named(name), not a Runner"),
        ("app:make_nothing", "returned a str, not a Runner or an AsyncRunner"),
        ("app:make_coroutine", "returned a coroutine, not a Runner or an AsyncRunner"),
    ],
)
def test_wrong_target_says_what_it_is(
    invoke: Invoke, target: str, message: str
) -> None:
    """Something else than a runner: what was found, and what is wanted."""
    done = invoke("run", target)

    assert done.exit_code == 2
    assert message in done.output
    assert len(done.output.splitlines()) == 1


# Options that cannot be used


def test_refusal_ends_the_process(sqla_jobs: Command, tmp_path: Path) -> None:
    """A real process ends with status 2 and one line."""
    done = sqla_jobs("run", "nowhere:runner", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stderr == f"Error: no module 'nowhere' in {tmp_path} or installed\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("-c 0", "'--concurrency': concurrency must be a whole number of 1 or more"),
        ("-c many", "'--concurrency': 'many' is neither a whole number nor MIN,MAX"),
        ("-c 1,2,3", "'1,2,3' is neither a whole number nor MIN,MAX"),
        ("-c 5,2", "concurrency must be (min, max) with min <= max, got (5, 2)"),
        ("-q mail:x", "the slots of queue 'mail' must be a whole number, got 'x'"),
        ("-q mail:0", "queues['mail'] must be a whole number of 1 or more, got 0"),
        ("-q mail:2,sms", "give slots to all queues or to none"),
        ("-q mail:1,mail:2", "'--queues': 'mail' is named twice"),
        ("-q mail,", "'--queues': a name is missing in 'mail,'"),
        ('-q ["mail"', "'--queues': '[\"mail\"' begins like JSON: Expecting"),
        ('-q ["mail"]', '\'["mail"]\' begins like JSON, but is no ["QUEUE", '),
        ('-q {"prefix":"a"}:1,b', "give slots to all queues or to none"),
        ("--retry-share 1.5", "must be a number from 0 to 1, got '1.5'"),
        ("--retry-share few", "must be a number from 0 to 1, got 'few'"),
        ("--grace -1", "'--grace': must be zero or more seconds, got -1"),
        ("--grace nan", "'--grace': must be zero or more seconds, got nan"),
        ("--grace soon", "'--grace': 'soon' is not a number of seconds"),
        ("-k nope", "kinds= names 'nope', which is not mapped; known: async_greet"),
        ("-k async_greet", "has an async handler, which an AsyncRunner runs"),
        ("-l loud", "'loud' is not one of 'debug', 'info'"),
        ("--unknown", "No such option"),
    ],
)
def test_bad_option_is_a_usage_error(
    invoke: Invoke, options: str, message: str
) -> None:
    """A value that a runner would refuse is refused by name, with the usage."""
    done = invoke("run", "app:runner", "--burst", *options.split())

    assert done.exit_code == 2
    assert done.output.startswith("Usage: ")
    assert message in done.output.splitlines()[-1]


# What stops it at run time


def test_missing_tables_are_one_line(sqla_jobs: Command, folder: Path) -> None:
    """Tables that are not there are named, with the command that makes them."""
    source = APP.replace('"cli_jobs"', '"cli_absent"')
    (folder / "absent.py").write_text(source)

    done = sqla_jobs("run", "absent:runner", "--burst")
    asynchronous = sqla_jobs("run", "absent:arunner", "--burst")

    for each in (done, asynchronous):
        assert each.returncode == 1
        assert each.stderr.startswith("Error: the database has no table cli_absent")
        assert "alembic upgrade head" in each.stderr
        assert len(each.stderr.splitlines()) == 1


def test_unsupported_database_is_one_line(sqla_jobs: Command, folder: Path) -> None:
    """Another database is a failure to run, though the module's import meets it."""
    source = APP.replace("create_engine(DSN)", 'create_engine("sqlite://")', 1)
    (folder / "other.py").write_text(source)

    done = sqla_jobs("run", "other:runner", "--burst")

    assert done.returncode == 1
    assert done.stderr.startswith("Error: sqla_jobs does not support 'sqlite'")
    assert len(done.stderr.splitlines()) == 1

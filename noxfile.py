"""What can be run here; plain ``nox`` runs what CI runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv|venv"  # uv takes a tenth of the time
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = [
    "tests",
    "lint",
    "types",
    "docs",
    "package",
    "chaos",
    "minimum",
]

PROJECT = nox.project.load_toml("pyproject.toml")
FLOOR = nox.project.python_versions(PROJECT)[0]
# `minimum` wants the oldest Python; the others take the one that runs nox.
OLDEST = None if sys.version_info[:2] == (3, int(FLOOR.split(".")[1])) else FLOOR

CORES = os.cpu_count() or 1
# The blocks of a document share names, so a file stays in one process.
BESIDE = ("python", "-m", "pytest", "--dist", "loadfile", "-n")
# Two processes per core, since half of the time tests wait; each has its own server.
PYTEST = (*BESIDE, str(2 * CORES))
# Fewer for tests that give other processes, and leases, a few seconds.
HURRIED = (*BESIDE, str(CORES + 1))
HURRIED_TESTS = tuple(
    f"tests/{name}"
    for name in ("chaos", "crash", "drivers", "failover", "faults", "pooler")
)
# Every process of theirs would compile what it imports.
COMPILED = {"PYTHONDONTWRITEBYTECODE": None, "UV_COMPILE_BYTECODE": "1"}

NOT_AUDITED = 75  # of tests/security/audit.py
EXTRAS = ("asyncio", "binary", "cli", "http")
# What versions of the dependencies can break: models, flushes, drivers, migrations,
# other libraries. Before a release: nox -s minimum -- tests
DEPENDENT = (
    "tests/integration/frameworks",
    *("tests/unit/test_layers.py", "tests/unit/test_payload_models.py"),
    *("tests/integration/http/test_app.py", "tests/integration/cli/test_settings.py"),
    *(f"tests/integration/alembic/test_{name}.py" for name in ("compare", "template")),
    *(
        f"tests/conformance/test_{name}.py"
        for name in (
            *("check", "claim", "enqueue", "enqueue_install", "entities"),
            *("models", "models_args", "models_definition", "models_flush"),
            *("models_payload", "settle", "unique"),
        )
    ),
)

SHIPPED = {
    "sqla_jobs/__init__.py",
    "sqla_jobs/py.typed",
    "sqla_jobs/testing/_watchdog.py",
    "sqla_jobs/testing/pytest_plugin.py",
}
TEMPLATES = {"sync", "async", "pyproject", "pyproject_async"}
SHIPPED |= {f"sqla_jobs/alembic/templates/{name}/env.py" for name in TEMPLATES}
SHIPPED_FOLDERS = {"sqla_jobs"}


def group(*names: str) -> list[str]:
    """Return the requirements of these dependency groups."""
    return list(nox.project.dependency_groups(PROJECT, *names))


@nox.session
def demo(session: nox.Session) -> None:
    """Run the example: two processes index Python's standard library, one dies."""
    session.install("-e", ".[demo]")
    session.run("python", "docs/examples/code_index/main.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, and the code blocks of the README and the documentation."""
    wanted = group("tests", "fuzz")
    session.install("-e", ".[demo,http,reload]", *wanted, env=COMPILED)
    if session.posargs:
        session.run(*PYTEST, *session.posargs, env=COMPILED)
        return
    later = [f"--ignore={folder}" for folder in HURRIED_TESTS]
    session.run(*PYTEST, *later, env=COMPILED)
    session.run(*HURRIED, *HURRIED_TESTS, env=COMPILED)


@nox.session
@nox.parametrize("driver", ["psycopg", "psycopg_async", "asyncpg", "psycopg2"])
def drivers(session: nox.Session, driver: str) -> None:
    """Run the tests of the protocol, the runners and the drivers on each driver."""
    session.install("-e", ".[demo,http,reload]", *group("tests"))
    folders = ["tests/conformance", "tests/drivers"]
    folders += [] if driver == "psycopg_async" else ["tests/runner"]
    session.run(
        *PYTEST, f"--driver={driver}", *(session.posargs or folders), env=COMPILED
    )


@nox.session
@nox.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def isolation(session: nox.Session, level: str) -> None:
    """Run the tests of the protocol and the runners at another isolation level."""
    session.install("-e", ".[demo,http,reload]", *group("tests"))
    folders = ["tests/conformance", "tests/runner", "tests/testing"]
    tests = session.posargs or folders
    session.run(*PYTEST, f"--isolation={level}", *tests, env=COMPILED)


@nox.session(python=OLDEST)
def minimum(session: nox.Session) -> None:
    """Run the tests with the oldest Python and the oldest dependencies allowed."""
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"]]
    wanted += [one for name in EXTRAS for one in extras[name]]
    wanted += [*group("companions"), *extras["reload"][1:]]
    oldest = Path(session.create_tmp(), "oldest.txt")
    pins = (re.sub(r"\[.*\]", "", one).replace(">=", "==") for one in wanted)
    oldest.write_text("\n".join(pins))
    wanted = ["-e", ".[demo,http,reload]", *group("tests")]
    session.install(*wanted, "--constraint", str(oldest), env=COMPILED)
    if session.posargs:
        session.run(*PYTEST, *session.posargs, env=COMPILED)
        return
    session.run(*PYTEST, "-m", "not slow", *DEPENDENT, env=COMPILED)
    session.run(*HURRIED, "-m", "not slow", "tests/drivers", env=COMPILED)


@nox.session
def alembic(session: nox.Session) -> None:
    """Run the tests with Alembic 1.18.4, before a release; CI has the ends."""
    session.install("-e", ".[demo]", *group("pytest"), "alembic==1.18.4")
    folder = "tests/integration/alembic"
    # Not what starts programs: the other two sessions do.
    commands = f"--ignore={folder}/test_commands.py"
    session.run(*PYTEST, *(session.posargs or [folder, commands]), env=COMPILED)


@nox.session
def chaos(session: nox.Session) -> None:
    """Run the bank under faults for a minute; before a release: -- --seconds 1800."""
    drivers = [one for one in group("companions") if "pg" in one.partition(">")[0]]
    session.install("-e", ".[demo]", *drivers)
    session.run("python", "-m", "tests.chaos", *session.posargs)


@nox.session
@nox.parametrize("system", ["sqla_jobs", "procrastinate", "pgqueuer"])
def peers(session: nox.Session, system: str) -> None:
    """Run errands on this and other systems under the same faults, for comparison."""
    own = [system] if system != "sqla_jobs" else []
    session.install("-e", ".[demo]", "asyncpg", *own)
    command = ("python", "-m", "tests.chaos.peers", "--system", system)
    session.run(*command, *session.posargs)


@nox.session
def failover(session: nox.Session) -> None:
    """Run the bank while primaries are killed; -- --report FOLDER keeps the times."""
    drivers = [one for one in group("companions") if "pg" in one.partition(">")[0]]
    session.install("-e", ".[demo]", *drivers)
    session.run("python", "-m", "tests.failover", *session.posargs)


@nox.session
@nox.parametrize("mode", ["poll", "listen"])
def pooler(session: nox.Session, mode: str) -> None:
    """Run the tests of the protocol and the runners through PgBouncer."""
    session.install("-e", ".[demo,http,reload]", *group("tests"))
    # The protocol's tests look at what is notified; there a poll changes nothing.
    folders = ["tests/runner"] + ["tests/conformance"] * (mode == "listen")
    folders = session.posargs or folders
    session.run(*PYTEST, f"--pooler={mode}", *folders, env=COMPILED)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format, the direction of imports, and that all is documented."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types with mypy and with pyright."""
    session.install("-e", ".[demo,http,reload]", *group("tests", "types"))
    session.run("mypy")
    example = "docs/examples/code_index"
    files = sorted(map(str, Path(example).glob("*.py")))
    session.run("mypy", "--strict", *files, env={"MYPYPATH": example})
    # Named, since pyright prefers a pyrightconfig.json of any folder above.
    session.run("pyright", "--project", "pyproject.toml")


@nox.session
def audit(session: nox.Session) -> None:
    """
    Ask whether a dependency, as it would be installed now, has known vulnerabilities.

    Fails if one has; is skipped, with the reason, if nobody could tell.
    """
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"]]
    wanted += [one for names in extras.values() for one in names]
    outside = [one for one in wanted if not one.startswith("sqla-jobs")]
    session.install(*group("audit"))
    folder = Path(session.create_tmp()).absolute()
    report, pins = folder / "report.json", folder / "pins.txt"
    resolve = ("pip", "install", "--quiet", "--dry-run", "--ignore-installed")
    session.run("python", "-m", *resolve, "--report", str(report), *outside)
    found = [one["metadata"] for one in json.loads(report.read_text())["install"]]
    pins.write_text("\n".join(f"{one['name']}=={one['version']}" for one in found))
    command = ("python", "-m", "tests.security.audit", str(pins))
    said = str(session.run(*command, success_codes=[0, NOT_AUDITED], silent=True))
    session.log(said)
    why = [line for line in said.splitlines() if line.startswith("not audited")]
    if why:
        session.skip(why[0])


@nox.session
def roles(session: nox.Session) -> None:
    """Run the tests under database roles with the least privileges."""
    session.install("-e", ".[demo,http,reload]", *group("tests"))
    folders = ["tests/conformance", "tests/runner", "tests/integration/http"]
    session.run(*PYTEST, "--roles", *(session.posargs or folders))


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning or a dead reference is an error."""
    session.install("-e", ".[demo,http]", *group("docs"))
    target = session.posargs or ["docs/_build/html"]
    session.run("sphinx-build", "-W", "-n", "-q", "-E", "-b", "html", "docs", *target)


@nox.session
def package(session: nox.Session) -> None:
    """Build the wheel, and use it in an empty environment outside the checkout."""
    session.install(*group("package"))
    dist = Path(session.create_tmp(), "dist").absolute()
    shutil.rmtree(dist, ignore_errors=True)
    installer = "uv" if session.venv_backend == "uv" else "pip"
    build = ("python", "-m", "build", f"--installer={installer}", "--outdir", str(dist))
    session.run(*build, silent=True)
    session.run("twine", "check", "--strict", *map(str, sorted(dist.iterdir())))
    (wheel,) = dist.glob("*.whl")
    check_contents(session, wheel)
    check_sdist(session, *dist.glob("*.tar.gz"))
    with tempfile.TemporaryDirectory() as outside, session.chdir(outside):
        use_wheel(session, wheel, Path(outside, "venv"))


def check_contents(session: nox.Session, wheel: Path) -> None:
    """Fail unless the wheel has what it must have, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    missing = SHIPPED - names
    tops = {name.partition("/")[0] for name in names}
    extra = {top for top in tops - SHIPPED_FOLDERS if not top.endswith(".dist-info")}
    if missing or extra:
        session.error(f"{wheel.name}: missing {missing or '{}'}, extra {extra or '{}'}")


def check_sdist(session: nox.Session, sdist: Path) -> None:
    """Fail unless the sdist has what the wheel's templates are made from."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = {f"alembic_templates/{name}/env.py" for name in TEMPLATES} - names
    if missing:
        session.error(f"{sdist.name}: missing {missing}")


def use_wheel(session: nox.Session, wheel: Path, venv: Path) -> None:
    """Install the wheel in a new environment and run the library and its commands."""
    session.run("python", "-m", "venv", str(venv))
    programs = venv / ("Scripts" if sys.platform == "win32" else "bin")
    run = partial(session.run, external=True, env={"PYTHONPATH": None})
    python, command = str(programs / "python"), str(programs / "sqla-jobs")
    run(python, "-m", "pip", "install", "-q", f"{wheel}[binary,cli]")
    source = "import sqla_jobs, sqla_jobs.testing; print(sqla_jobs.__file__)"
    where = run(python, "-c", source, silent=True)
    if str(venv) not in str(where):
        session.error(f"imported {where}, not the installed wheel")
    run(command, "--help", silent=True)
    for name in sorted(TEMPLATES):
        use_template(session, run, programs, name)
    # Nothing to import: an error for the user, never a success or a traceback.
    said = run(command, "run", "nowhere:runner", success_codes=[1, 2], silent=True)
    if "nowhere" not in str(said) or "Traceback" in str(said):
        session.error(f"a runner that does not exist was answered with: {said}")


def use_template(
    session: nox.Session, run: Callable[..., object], programs: Path, name: str
) -> None:
    """Have Alembic start a project with a template of the installed wheel."""
    where = str(run(str(programs / "sqla-jobs"), "template", name, silent=True)).strip()
    if str(programs.parent) not in where:
        session.error(f"the template {name!r} is {where}, not the installed one")
    alembic = str(programs / "alembic")
    with tempfile.TemporaryDirectory() as project, session.chdir(project):
        run(alembic, "init", "-t", where, "migrations", silent=True)
        if "async" in name:  # needs greenlet, which is not installed here
            return
        # It needs one line more, and says which.
        said = run(alembic, "upgrade", "head", success_codes=[255], silent=True)
    if "add target_metadata" not in str(said):
        session.error(f"the template {name!r} was answered with: {said}")


@nox.session
def bench(session: nox.Session) -> None:
    """Compare with raw loops and other job queues; see docs/how-to/benchmark.md."""
    session.install("-e", ".[demo]", *group("bench"))
    folder = Path(session.virtualenv.location, "environments").absolute()
    command = ("python", "-m", "tests.benchmarks", *session.posargs)
    session.run(*command, env={"SQLA_JOBS_BENCH_ENVIRONMENTS": str(folder)})

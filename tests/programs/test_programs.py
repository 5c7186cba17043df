"""A program that is forked is as one that is started: else the others prove nothing."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import Programs

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfds")

SHOW = """
import os, sys
lines = [sys.argv, sys.path[:2], os.getcwd(), os.environ.get("MARK"), __name__]
print(*lines, sys.stdin.read(), sep="\\n")
print("error", file=sys.stderr)
sys.exit(3)
"""
HANDLE = """
import os, signal, sys
def handle(number, _frame):
    os.write(1, b"got %d\\n" % number)
    sys.exit(7)
signal.signal(int(sys.argv[1]), handle)
print("ready", flush=True)
signal.pause()
"""
WAIT = """
import os, signal
print(os.getpid(), flush=True)
signal.pause()
"""


@pytest.mark.parametrize("how", ["-c", "-m", "file"])
def test_program_gets_what_it_would_get(
    programs: Programs, tmp_path: Path, how: str
) -> None:
    """Arguments, path, folder, environment, streams and status are those of Python."""
    (tmp_path / "show.py").write_text(SHOW)
    start = {"-c": ["-c", SHOW], "-m": ["-m", "show"], "file": ["show.py"]}[how]

    forked, real = (
        subprocess.run(
            [*python, *start, "an argument"],
            cwd=tmp_path,
            env={**os.environ, "MARK": "of this test", "PYTHONPATH": "/absent"},
            input="typed",
            capture_output=True,
            text=True,
            check=False,
        )
        for python in (programs.python, [sys.executable])
    )

    assert "of this test" in real.stdout
    assert (forked.returncode, forked.stdout) == (real.returncode, real.stdout)
    assert forked.stderr == real.stderr


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL]
)
def test_signal_ends_the_program(programs: Programs, number: signal.Signals) -> None:
    """Each signal reaches it, and the client ends as it did."""
    client = subprocess.Popen(
        [*programs.python, "-c", WAIT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with client:
        assert client.stdout is not None
        program = os.pidfd_open(int(client.stdout.readline()))
        client.send_signal(number)
        client.stdout.read()  # to its end, which is that of the program

    assert client.returncode == -number
    assert select.select([program], [], [], 30)[0] == [program]  # it has ended
    os.close(program)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_may_be_handled(programs: Programs, number: signal.Signals) -> None:
    """It is the program that gets it, and may do as it likes."""
    client = subprocess.Popen(
        [*programs.python, "-c", HANDLE, str(int(number))],
        stdout=subprocess.PIPE,
        text=True,
    )
    with client:
        assert client.stdout is not None
        client.stdout.readline()
        client.send_signal(number)
        said = client.stdout.read()

    assert (said, client.returncode) == (f"got {int(number)}\n", 7)


def test_programs_share_nothing(programs: Programs) -> None:
    """Modules and variables of one are not there in the next."""
    for _ in range(2):
        source = "import sqla_jobs; assert not hasattr(sqla_jobs, 'mark')"
        source += "\nsqla_jobs.mark = 1"
        subprocess.run([*programs.python, "-c", source], check=True)


def test_scripts_of_the_environment_are_forked(programs: Programs) -> None:
    """On the PATH they go by the names that documents use."""
    env = {**os.environ, "PATH": f"{programs.path}{os.pathsep}{os.environ['PATH']}"}

    said = subprocess.check_output(["sqla-jobs", "--version"], env=env, text=True)

    assert said.startswith("sqla-jobs ")

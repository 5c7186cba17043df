"""``sqla-jobs serve``: who may call it, where it listens, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from sqla_jobs.cli import serve
from sqla_jobs.cli.errors import TargetError
from tests.integration.cli.kit import Command, Invoke, posix
from tests.integration.cli.test_documents import options, rows, written
from tests.integration.http.kit import Client
from tests.programs import Programs


@contextmanager
def served(
    folder: Path, environ: dict[str, str], programs: Programs, *args: str
) -> Iterator[tuple[Client, subprocess.Popen[str]]]:
    """Yield a client of the command, which runs in a process, and that process."""
    command = [*programs.python, "-m", "sqla_jobs", "serve", *args, "--port", "0"]
    with subprocess.Popen(
        command, cwd=folder, env=environ, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            assert "listening on http://127.0.0.1:" in line, line
            yield Client(int(line.rpartition(":")[2])), process
        finally:
            process.kill()


@posix
@pytest.mark.parametrize(
    ("target", "number"),
    [("app:runner", signal.SIGTERM), ("app:arunner", signal.SIGINT)],
)
def test_serves_until_a_signal(
    folder: Path,
    environ: dict[str, str],
    session: Session,
    programs: Programs,
    *,
    target: str,
    number: signal.Signals,
) -> None:
    """A sync and an asyncio runner's tables are served; a signal is a clean end."""
    with served(folder, environ, programs, target) as (client, process):
        job_id = client.enqueue(kind="greet", payload={"name": "you"})
        [job] = client.lease("default", kinds=["greet"])
        assert job["id"] == job_id
        assert client.get("/readyz").status == 200
        process.send_signal(number)
        assert process.wait(30) == 0


def test_tokens_come_from_the_environment_or_a_file(
    folder: Path,
    environ: dict[str, str],
    session: Session,
    programs: Programs,
    *,
    tmp_path: Path,
) -> None:
    """With tokens a request without one is 401; the file wins over the variable."""
    file = tmp_path / "tokens"
    file.write_text("# readers\nadmin=of-the-file\n")
    environ = environ | {"SQLA_JOBS_HTTP_TOKENS": "admin=of-the-variable"}

    for args, secret in (
        ([], "of-the-variable"),
        (["--tokens-file", str(file)], "of-the-file"),
    ):
        with served(folder, environ, programs, "app:runner", *args) as (client, _):
            assert client.get("/v1/queues").status == 401
            assert client.with_token(secret).get("/v1/queues").status == 200
            assert client.with_token("other").get("/v1/queues").status == 401


def test_without_tokens_other_names_are_refused(
    folder: Path, environ: dict[str, str], session: Session, programs: Programs
) -> None:
    """A web page cannot reach the service by a name that it lets mean this machine."""
    with served(folder, environ, programs, "app:runner") as (client, _):
        named = client.send("GET", "/v1/queues", headers={"Host": "evil.example"})
        local = client.send("GET", "/v1/queues", headers={"Host": "localhost:80"})

    assert (named.status, local.status) == (400, 200)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_no_listening_beyond_this_machine_without_a_token(
    sqla_jobs: Command, host: str
) -> None:
    """An address that others reach needs a token: an error that says how, status 2."""
    done = sqla_jobs("serve", "app:runner", "--host", host, "--port", "0")

    assert done.returncode == 2
    assert "there is no token" in done.stderr
    assert "SQLA_JOBS_HTTP_TOKENS" in done.stderr


def test_with_a_token_it_listens_for_others() -> None:
    """The same address is used once there are tokens."""
    with serve.listen("0.0.0.0", 0, open_to_all=False) as listening:
        assert listening.getsockname()[0] == "0.0.0.0"
    for host in ("127.0.0.1", "localhost"):
        serve.listen(host, 0, open_to_all=True).close()


def test_port_that_is_taken_is_an_error() -> None:
    """One line says which address and why."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            TargetError, match=f"cannot listen on 127.0.0.1, port {port}"
        ):
            serve.listen("127.0.0.1", port, open_to_all=True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hidden", "token 1 is not of the form"),
        ("", "there is no token in it"),
        (None, "No such file"),
    ],
)
def test_unusable_tokens_end_the_command(
    invoke: Invoke, tmp_path: Path, text: str | None, problem: str
) -> None:
    """A tokens file that is wrong is not taken for none; secrets are not shown."""
    file = tmp_path / "tokens"
    if text is not None:
        file.write_text(text)

    done = invoke("serve", "app:runner", "--tokens-file", str(file))

    assert done.exit_code == 2
    assert problem in done.output
    assert "hidden" not in done.output


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--port", "65536"], "65536 is not in the range"),
        (["--port", "http"], "'http' is not a valid integer"),
        (["--requests-per-minute", "0"], "0 is not in the range"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
    ],
)
def test_unusable_option_is_an_error(
    invoke: Invoke, args: list[str], problem: str
) -> None:
    """The status is 2, and a line says what is wrong."""
    done = invoke("serve", "app:runner", *args)

    assert done.exit_code == 2
    assert problem in done.output


def test_missing_extra_says_how_to_install_it(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without FastAPI the command names the extra."""
    monkeypatch.setattr(serve, "find_spec", lambda name: None)

    done = invoke("serve", "app:runner")

    assert done.exit_code == 2
    assert 'pip install "sqla-jobs[cli,http]"' in done.output


def test_the_variable_of_the_tokens_is_known(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other commands do not warn of it."""
    monkeypatch.setitem(os.environ, "SQLA_JOBS_HTTP_TOKENS", "admin=x")

    assert "Warning" not in invoke("check", "app:runner").output


def test_reference_lists_the_options() -> None:
    """The table of the reference has each option and no other."""
    assert [row[0] for row in rows("serve")] == [written(p) for p in options("serve")]

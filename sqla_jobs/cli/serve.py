"""``sqla-jobs serve``: the HTTP interface of the runner's job table."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from sqla_jobs.cli import options
from sqla_jobs.cli.errors import TargetError
from sqla_jobs.cli.logs import LEVELS, set_up_logging
from sqla_jobs.cli.run import load_target
from sqla_jobs.cli.settings import (
    HTTP_TOKENS,
    folder_of,
    missing_target,
    warn_of_unknown_variables,
)
from sqla_jobs.errors import JobValueError, SqlaJobsError

GRACE_SECONDS = 30


@click.command("serve")
@options.target
@click.option(
    "--host",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Listen on this address.",
)
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(0, 65_535),
    default=8000,
    show_default=True,
    help="Listen on this port; 0 takes a free one.",
)
@click.option(
    "--tokens-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Read the tokens from this file.",
)
@click.option(
    "--requests-per-minute",
    metavar="N",
    type=click.IntRange(min=1),
    help="Let each token, or else each address, make so many requests.",
)
@options.app_dir
@click.option(
    *("-l", "--log-level"),
    type=click.Choice(LEVELS, case_sensitive=False),
    help="Log this and worse to standard error.  [default: info]",
)
@click.pass_context
def serve(
    ctx: click.Context,
    /,
    target: str | None,
    *,
    host: str,
    port: int,
    tokens_file: Path | None,
    requests_per_minute: int | None,
    app_dir: Path | None,
    log_level: str | None,
) -> None:
    """
    Serve the HTTP interface until stopped.

    TARGET is the runner, as for the command run; it does not run here. Its session
    maker and its job table are what is served.

    Tokens are in the variable SQLA_JOBS_HTTP_TOKENS or in a file, each as
    "scope,scope=secret"; the scopes are enqueue, work and admin. Without tokens all
    may call, so the command listens on this machine only.

    \b
    Exit status:
      0  stopped
      2  the command is wrong, the module cannot be imported, or nothing can be served
    """  # noqa: D301 - click reads the control character
    warn_of_unknown_variables(ctx)
    if target is None:
        raise missing_target(ctx)
    require_http()
    tokens = given_tokens(tokens_file)
    runner = load_target(target, folder_of(ctx, app_dir))
    set_up_logging(log_level)
    app = made_app(runner, tokens, requests_per_minute)
    run_server(app, listen(host, port, open_to_all=not tokens))


def require_http() -> None:
    """
    Check that the extra is installed.

    Raises:
        TargetError: If it is not; says how to install it.
    """
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise TargetError(
            f"serve needs {' and '.join(missing)}; install with:"
            ' pip install "sqla-jobs[cli,http]"'
        )


def given_tokens(file: Path | None) -> dict[str, frozenset[str]]:
    """
    Return the tokens of the file, or else of the variable.

    Raises:
        TargetError: If they cannot be read; the message does not tell them.
    """
    from sqla_jobs.http import read_tokens

    where = f"the variable {HTTP_TOKENS}" if file is None else str(file)
    try:
        text = os.environ.get(HTTP_TOKENS, "") if file is None else file.read_text()
        found = read_tokens(text)
    except (JobValueError, OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise TargetError(f"{where}: {why}") from exc
    if file is not None and not found:
        raise TargetError(f"{where}: there is no token in it")
    return found


def made_app(runner: Any, tokens: Any, requests_per_minute: int | None) -> Any:
    """
    Return the application that serves the job table of a runner.

    Raises:
        TargetError: If it cannot be made.
    """
    from sqla_jobs.http import create_app

    try:
        app = create_app(
            runner.session_maker,
            runner.tables.root,
            tokens=tokens or None,
            requests_per_minute=requests_per_minute,
        )
    except SqlaJobsError as exc:
        raise TargetError(str(exc)) from exc
    if not tokens:
        refuse_other_names(app)
    return app


def refuse_other_names(app: Any) -> None:
    """Refuse requests for names of others, which a web page may let mean this host."""
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # Literal addresses are no names; of one of IPv6 some versions see "[" only.
    known = ["localhost", "127.0.0.1", "[::1]", "["]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=known)


def listen(host: str, port: int, *, open_to_all: bool) -> socket.socket:
    """
    Return a socket that listens.

    Args:
        open_to_all: Whether there is no token; then it must be a loopback address.

    Raises:
        TargetError: If it must not, or cannot listen.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        plain = str(address[0]).partition("%")[0]
        if open_to_all and not ipaddress.ip_address(plain).is_loopback:
            raise TargetError(
                f"{host} is not of this machine only, and there is no token: set"
                f" {HTTP_TOKENS}, or --tokens-file, e.g. to 'enqueue,work=SECRET'"
            )
        listening = socket.create_server(address, family=family)
    except OSError as exc:
        text = exc.strerror or str(exc)
        raise TargetError(f"cannot listen on {host}, port {port}: {text}") from exc
    return listening


def run_server(app: Any, listening: socket.socket) -> None:
    """Serve until a signal comes; requests that run may end."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        # Who calls is what the connection says, unless a proxy in front is declared.
        proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    host, port = listening.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    click.echo(f"listening on http://{name}:{port}", err=True)
    # uvicorn raises the signal that stopped it once more at the end.
    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, previous)
        listening.close()

"""
Forks Python programs for tests: ``server.py SOCKET``, until standard input ends.

Half of a program's CPU time would be imports. Here they are made once, and each program
is a fork: a process of its own, with the arguments, streams, folder and environment of
the client that asked, ended by its signals, which ends as any program does.
"""

from __future__ import annotations

import gc
import os
import runpy
import select
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType

MODULES = (
    *("alembic.autogenerate", "alembic.command", "alembic.config", "alembic.script"),
    *("asyncio", "psycopg", "rich.console", "rich.table"),
    *("sqla_jobs", "sqla_jobs.alembic.environment", "sqla_jobs.alembic.template"),
    *("sqla_jobs.cli.commands", "sqla_jobs.cli.supervise"),
    *("sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.ext.asyncio"),
)
Request = tuple[list[int], list[bytes]]


def serve(path: str) -> Request | None:
    """Return what to run, in a fork for each request; None at the end."""
    outside = [entry for entry in os.environ.get("PYTHONPATH", "").split(":") if entry]
    sys.path[:] = [entry for entry in sys.path[1:] if entry not in outside] + outside
    for name in MODULES:
        import_module(name)
    sys.path[:] = [entry for entry in sys.path if entry not in outside]
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(16)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while 0 not in select.select([listener.fileno(), 0], [], [])[0]:
            link = listener.accept()[0]
            with link:
                if os.fork() == 0:
                    listener.close()
                    return keep(link)
    return None


def keep(link: socket.socket) -> Request:
    """Return what to run in the program; its keeper reports its end, and ends."""
    head, streams, _, _ = socket.recv_fds(link, 8, 3)
    with link.makefile("rb") as file:
        fields = file.read(int.from_bytes(head, "big")).split(b"\0")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    program = os.fork()
    if program == 0:
        link.close()
        return streams, fields
    for number in streams:
        os.close(number)
    ended = os.pidfd_open(program)
    while ended not in select.select([link.fileno(), ended], [], [])[0]:
        told = link.recv(1)  # nothing: the client was killed
        os.kill(program, told[0] if told else signal.SIGKILL)
        if not told:
            break
    status = os.waitpid(program, 0)[1]
    with suppress(OSError):
        link.sendall(status.to_bytes(4, "big"))
    os._exit(0)


def run(streams: list[int], fields: list[bytes]) -> None:
    """Be the program: ``-m MODULE``, ``-c CODE`` or a file, with its arguments."""
    folder, count, *rest = map(os.fsdecode, fields)
    arguments, variables = rest[: int(count)], rest[int(count) :]
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = os.fdopen(0, closefd=False)
    # sys.stdout stays: modules that are imported may know it.
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    for variable in variables:
        name, _, os.environ[name] = variable.partition("=")
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(":"))
    sys.orig_argv = [sys.executable, *arguments]
    first, *sys.argv = arguments
    if first == "-m":
        sys.path.insert(0, folder)
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, code = ["-c", *sys.argv[1:]], sys.argv[0]
        sys.path.insert(0, "")
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), main.__dict__)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(first).absolute().parent))
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    request = serve(sys.argv[1])
    if request is not None:
        run(*request)

"""The socket below a driver's connection: it must not wait for a peer that vanished."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

PROBES = 3
"""Unanswered questions after which an idle connection is given up."""


def fail_when_silent(raw: Any, seconds: float) -> None:
    """
    Let the driver's connection *raw* fail once its peer has been silent for *seconds*.

    An idle one is asked after that time, and given up after as long again. Does nothing
    to Unix sockets, nor where the driver or the system has no such thing.
    """
    with socket_of(raw) as sock:
        if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", max(1, round(seconds))),
            ("TCP_KEEPINTVL", max(1, round(seconds / PROBES))),
            ("TCP_KEEPCNT", PROBES),
            # Without it a question to a vanished peer waits for about 15 minutes.
            ("TCP_USER_TIMEOUT", round(seconds * 1000)),
        ):
            option = getattr(socket, name, None)
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


def hang_up(raw: Any) -> None:
    """End the driver's connection *raw* in whatever thread waits for its answer."""
    with socket_of(raw) as sock:
        if sock is not None:
            sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def socket_of(raw: Any) -> Iterator[socket.socket | None]:
    """Yield the socket of *raw*, None if it tells none or is closed."""
    found = None
    with suppress(Exception):  # each driver has its own for a closed connection
        found = socket.socket(fileno=os.dup(_fileno(raw)))
    if found is None:
        yield None
        return
    with found, suppress(OSError):
        yield found


def _fileno(raw: Any) -> int:
    transport = getattr(raw, "_transport", None)  # asyncpg
    if transport is not None:
        raw = transport.get_extra_info("socket")
    raw = getattr(raw, "_usock", raw)  # pg8000
    number: int = raw.fileno()
    return number

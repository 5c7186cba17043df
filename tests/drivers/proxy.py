"""Stands between a client and the server, and loses what a test wants to be lost."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import make_url

CHUNK = 65536
READY = b"Z\0\0\0\5I"


class Proxy:
    """
    A port that leads to the server of *dsn*.

    Args:
        dsn: SQLAlchemy URL of a database of the server.
        host: The address to listen on. Default the loopback interface.
    """

    def __init__(self, dsn: str, *, host: str = "127.0.0.1") -> None:
        url = make_url(dsn)
        there = url.host or url.query.get("host")
        port = url.port or url.query.get("port") or 5432
        self._server: Any = (there, int(str(port)))
        if str(there).startswith("/"):
            self._server = f"{there}/.s.PGSQL.{port}"
        self._listening = socket.create_server((host, 0))
        self.dsn = url.set(
            host=host, port=self._listening.getsockname()[1], query={}
        ).render_as_string(hide_password=False)
        self.silent = threading.Event()
        self.cuts: list[bool] = []
        self.cut_after: bytes | None = None
        self.happens = False
        self.parting = b""  # what the server says after a connection's first answers
        self.delay: Callable[[], float] | None = None  # seconds, each way
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Close all connections, and take no new ones."""
        self._listening.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Close all connections."""
        for one in self._sockets:
            _close(one)
        self._sockets.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    server = self._connect()
                except OSError:  # it is away
                    client.close()
                    continue
                self._sockets += [client, server]
                for work in (self._requests, self._answers):
                    run = threading.Thread(target=work, args=(client, server))
                    run.daemon = True
                    run.start()

    def _connect(self) -> socket.socket:
        if not isinstance(self._server, str):
            return socket.create_connection(self._server)
        made = socket.socket(socket.AF_UNIX)
        made.connect(self._server)
        return made

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        marked = False
        with contextlib.suppress(OSError):
            while data := client.recv(CHUNK):
                if self.cut_after is not None and not self.cuts:
                    marked = marked or self.cut_after in data
                    if marked and b"COMMIT" in data:
                        self._cut(client, server, data)
                        return
                self._wait()
                if not self.silent.is_set():
                    server.sendall(data)
        _close(server)

    def _cut(self, client: socket.socket, server: socket.socket, data: bytes) -> None:
        self.cuts.append(self.happens)
        # Its answer goes nowhere, but says that the server is done.
        _shut(client)
        if self.happens:
            server.sendall(data)
            server.shutdown(socket.SHUT_WR)
        else:
            _shut(server)

    def _answers(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(CHUNK):
                self._wait()
                if not self.silent.is_set():
                    client.sendall(data)
                if self.parting and data.endswith(READY):
                    client.sendall(self.parting)
                    return  # and nothing after that, not even the end
        _close(client)

    def _wait(self) -> None:
        delay = self.delay
        if delay is not None:
            time.sleep(delay())


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


def _close(one: socket.socket) -> None:
    _shut(one)
    one.close()

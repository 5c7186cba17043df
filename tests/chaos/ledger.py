"""The outer world: a local HTTP service that jobs report to, on a unix socket."""

from __future__ import annotations

import http.client
import json
import random
import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any

LOSES = 0.02  # of its answers, after it has noted the entry
TIMEOUT = 20.0


class LedgerAway(Exception):
    """The ledger did not answer, or not with a yes."""


class Ledger:
    """
    Keeps the entries it is sent, by idempotency key.

    Args:
        path: Of the unix socket: reachable from every network namespace.
        seed: Decides which answers get lost.
    """

    def __init__(self, path: str, seed: str) -> None:
        self.path = path
        self.entries: dict[str, list[Any]] = {}
        self._lock = threading.Lock()
        self._dice = random.Random(seed)
        self._server = _Server(path, _Request)
        self._server.ledger = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), daemon=True
        )
        self._thread.start()

    def note(self, key: str, entry: Any) -> bool:
        """Keep an entry; return whether the answer arrives."""
        with self._lock:
            self.entries.setdefault(key, []).append(entry)
            return self._dice.random() >= LOSES

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    ledger: Ledger

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that is killed breaks its connection."""


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout = TIMEOUT

    def do_PUT(self) -> None:
        """Note one entry under the key in the path."""
        entry = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        good = self.server.ledger.note(self.path.removeprefix("/"), entry)
        self.send_response(204 if good else 503)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("ledger", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        """Connect to the unix socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def tell(path: str, key: str, entry: Any) -> None:
    """
    Report an entry to the ledger at *path*.

    Raises:
        LedgerAway: If it did not say yes; it may have noted the entry all the same.
    """
    connection = _Connection(path)
    try:
        connection.request("PUT", f"/{key}", json.dumps(entry))
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as exc:
        raise LedgerAway(str(exc)) from exc
    finally:
        connection.close()
    if status != 204:
        raise LedgerAway(f"status {status}")

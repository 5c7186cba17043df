"""The end of a sync listener: an event that it can wait for beside its connection."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Stop(threading.Event):
    """An event that ends a wait for a socket as well."""

    def __init__(self) -> None:
        super().__init__()
        self._read, self._write = socket.socketpair()

    def set(self) -> None:
        """Set it, and end the waits."""
        super().set()
        with suppress(OSError):  # closed
            self._write.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close its sockets, once nobody waits."""
        self._read.close()
        self._write.close()

    @contextmanager
    def beside(self, raw: Any) -> Iterator[Callable[[float], None]]:
        """
        Yield what waits until there is something to read, or it is set.

        Args:
            raw: What has the socket: a driver's connection. What is yielded takes the
                most seconds to wait.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(raw, selectors.EVENT_READ)
            selector.register(self._read, selectors.EVENT_READ)

            def wait(seconds: float) -> None:
                selector.select(max(0.0, seconds))

            yield wait

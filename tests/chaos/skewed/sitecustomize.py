"""Loaded by a python whose clock libfaketime changes: mends what that breaks."""

from __future__ import annotations

import _thread
import time


def sleep(seconds: float) -> None:
    """Sleep: libfaketime makes an absolute, negative time of what python asks for."""
    gate = _thread.allocate_lock()
    gate.acquire()
    gate.acquire(timeout=seconds)


time.sleep = sleep  # type: ignore[assignment]

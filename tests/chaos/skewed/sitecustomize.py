"""Loaded by a python whose clock libfaketime changes: mends what that breaks."""

from __future__ import annotations

import _thread
import time


def sleep(seconds: float) -> None:
    """
    Sleep: libfaketime makes a time in the past of what python asks for.

    Raises:
        ValueError: As the true one does.
    """
    if seconds < 0:
        raise ValueError(f"sleep length must be non-negative, got {seconds}")
    gate = _thread.allocate_lock()
    gate.acquire()
    gate.acquire(timeout=seconds)


time.sleep = sleep  # type: ignore[assignment]

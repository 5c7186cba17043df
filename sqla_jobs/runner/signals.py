"""SIGTERM and SIGINT, on the main thread only."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_on_signals(
    stop: Callable[[], None], numbers: Sequence[signal.Signals] = SIGNALS
) -> Iterator[None]:
    """
    Call *stop* once for each signal, one after the other, in a thread.

    Elsewhere than on the main thread signals are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: SimpleQueue[bool] = SimpleQueue()

    def handle(_number: int, _frame: FrameType | None) -> None:
        # The handler interrupts the main thread anywhere, also where it holds a lock
        # that `stop` takes. SimpleQueue.put is made for this.
        seen.put(True)

    def work() -> None:
        while seen.get():
            stop()

    threading.Thread(target=work, name="sqla-jobs-signals", daemon=True).start()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        seen.put(False)


@contextmanager
def stop_loop_on_signals(
    stop: Callable[[], None], numbers: Sequence[signal.Signals] = SIGNALS
) -> Iterator[None]:
    """Call *stop* in the running event loop on each signal; on the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)

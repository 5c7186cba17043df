"""What a signal does to the process that runs jobs."""

from __future__ import annotations

import signal
import threading

import pytest

from sqla_jobs.runner.signals import SIGNALS, stop_on_signals


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_may_come_while_a_lock_is_held(number: signal.Signals) -> None:
    """The handler interrupts code that holds a lock, and may not wait for it there."""
    lock, stopped = threading.Lock(), threading.Event()

    def stop() -> None:
        with lock:
            stopped.set()

    with stop_on_signals(stop):
        with lock:
            signal.raise_signal(number)
        assert stopped.wait(timeout=10)


def test_each_signal_is_seen_one_after_the_other() -> None:
    """A second signal during the first is handled after it, so that it comes second."""
    order: list[str] = []
    inside, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def stop() -> None:
        order.append("begin")
        inside.set()
        order.append("end" if go_on.wait(timeout=10) else "too late")
        if len(order) == 4:
            done.set()

    with stop_on_signals(stop):
        signal.raise_signal(signal.SIGTERM)
        assert inside.wait(timeout=10)
        signal.raise_signal(signal.SIGTERM)
        go_on.set()
        assert done.wait(timeout=10)

    assert order == ["begin", "end", "begin", "end"]


def test_handlers_of_before_come_back() -> None:
    """After the run, signals do again what they did before it."""
    before = {number: signal.getsignal(number) for number in SIGNALS}

    with stop_on_signals(lambda: None):
        assert {number: signal.getsignal(number) for number in SIGNALS} != before

    assert {number: signal.getsignal(number) for number in SIGNALS} == before

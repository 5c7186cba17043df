"""The bank itself can fail: without the fence it finds what was done twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest

from tests.chaos.app import Audit
from tests.chaos.load import Load
from tests.chaos.nemesis import Sigstop
from tests.chaos.referee import Referee, Strike, schedule
from tests.chaos.scene import Direct, Scene
from tests.chaos.worker import UNFENCED


class Audits(Load):
    """Sends only jobs that run for longer than a lease."""

    def _order(self, token: str) -> Callable[[], Any]:
        return lambda: Audit(token=token, slices=12)


def test_seed_decides_the_schedule() -> None:
    """The same seed strikes in the same order after the same pauses."""
    names = ["sigkill", "sigstop", "snapshot"]

    def first(seed: str) -> list[Strike]:
        return list(islice(schedule(names, seed), 9))

    assert first("1") == first("1") != first("2")
    assert sorted(strike.name for strike in first("1")) == sorted(names * 3)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_without_the_fence_effects_are_double() -> None:
    """A worker that is stopped past its leases and writes on is caught."""
    scene = Scene([Direct(), Direct()], environment={UNFENCED: "1"})

    result = Referee(scene, [Sigstop()], seconds=4.0, rate=4.0, load=Audits).run()

    assert len(result.strikes) == 1
    assert "double" in {one.rule for one in result.violations}
    assert any("SIGSTOP" in line or "sigstop" in line for line in result.stories)

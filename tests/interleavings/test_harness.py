"""The harness itself: it runs every order, sees who waits, and reports deadlocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests.interleavings.harness import Conductor, Found, Scenario, Scene, Script


class NoVerbs(NamedTuple):
    """These scripts call none."""


def free(session: Session, scene: Scene, *, steps: int) -> Script:
    """Take steps that wait for nobody."""
    for _ in range(steps - 1):
        yield


def locking(session: Session, scene: Scene, *, keys: list[int]) -> Script:
    """Take locks, one in each step, and commit."""
    for key in keys:
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
        yield
    scene.commit(session, (keys[0],))


def explored(
    conductor: Conductor, *scripts: Any, check: Callable[..., Iterator[str]]
) -> Found:
    """Run all orders of *scripts*."""
    named = dict(zip("abcd", scripts, strict=False))
    scenario = Scenario(lambda *_: None, named, check, NoVerbs())
    return conductor.explore(scenario)


def nothing(session: Session, scene: Scene) -> Iterator[str]:
    """Find nothing wrong."""
    yield from ()


@pytest.mark.parametrize(
    ("steps", "count"), [((2, 2), 6), ((1, 2, 3), 60), ((2, 2, 2, 1), 630)]
)
def test_every_merge_is_run_once(
    conductor: Conductor, steps: tuple[int, ...], count: int
) -> None:
    """There are as many as the multinomial coefficient says."""
    scripts = [partial(free, steps=one) for one in steps]

    assert explored(conductor, *scripts, check=nothing).count == count


def test_session_that_waits_is_left_waiting(conductor: Conductor) -> None:
    """What needs a lock goes on when that is free; the others go on meanwhile."""
    logs = set()

    def check(session: Session, scene: Scene) -> Iterator[str]:
        logs.add(tuple(event for (event,) in scene.log))
        yield from ()

    one, two = partial(locking, keys=[1]), partial(locking, keys=[1])
    other = partial(locking, keys=[2])
    found = explored(conductor, one, two, other, check=check)

    assert found.wrong == []
    assert logs == {(1, 1, 2), (1, 2, 1), (2, 1, 1)}


def test_deadlock_is_reported(conductor: Conductor) -> None:
    """Locks that are taken in two orders make one session fail in some interleaving."""
    one, two = partial(locking, keys=[1, 2]), partial(locking, keys=[2, 1])

    found = explored(conductor, one, two, check=nothing)

    assert "40P01" in found.wrong[0]
    assert len(found.wrong) < found.count


def test_failing_check_names_the_steps(conductor: Conductor) -> None:
    """What is wrong is told with the order in which it came about."""

    def check(session: Session, scene: Scene) -> Iterator[str]:
        yield "as expected"

    found = explored(conductor, partial(free, steps=2), check=check)

    assert found.wrong == ["a a: as expected; []"]

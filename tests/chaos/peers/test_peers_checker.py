"""The peers' checker: each count has a run that raises it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.peers.checker import Attempt, Counts, Final, Traces, count

GOOD = Traces(
    numbers={1: 10, 2: 20},
    finals=[Final(1, succeeded=True, at=5.0), Final(2, succeeded=False, at=6.0)],
    left=[],
    postings=[(10, "withdraw"), (10, "deposit")],
    attempts={1: [Attempt(1.0, 5.0)], 2: [Attempt(1.0, 6.0)]},
)
"""One job that succeeded, and one that failed and left nothing."""


def test_good_run_counts_nothing() -> None:
    """A job that failed for good, without effects, is no fault of the system."""
    assert count(GOOD) == Counts(jobs=2, lost=0, stuck=0, double=0, wrong=0)


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("lost", {"finals": GOOD.finals[:1]}),
        ("lost", {"postings": []}),
        ("stuck", {"finals": GOOD.finals[:1], "left": [2]}),
        ("double", {"postings": [*GOOD.postings, (10, "deposit")]}),
        ("wrong", {"postings": [*GOOD.postings, (20, "withdraw")]}),
        (
            "wrong",
            {"attempts": {1: [Attempt(1.0, 4.9), Attempt(4.0, 9.0)]}},
        ),
        ("wrong", {"attempts": {1: [Attempt(1.0, 4.9), Attempt(4.0)]}}),
    ],
    ids=[
        *("a job is gone", "a success without effects", "a job is left"),
        *("an effect twice", "a failure with effects"),
        *("an outcome of a stale holder", "the last holder never came back"),
    ],
)
def test_each_fault_is_counted(what: str, changes: dict[str, object]) -> None:
    """Each count sees what it is for, and nothing else does."""
    found = count(replace(GOOD, **changes))  # type: ignore[arg-type]

    assert found == replace(count(GOOD), **{what: 1})

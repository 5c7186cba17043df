"""Held jobs in tests: nothing runs them before they are confirmed."""

from __future__ import annotations

from typing import Any

import pytest

from sqla_jobs import HoldExpired, JobValueError, confirm_hold, extend_hold
from sqla_jobs.testing import ManualClock, drain, run_one
from tests.testing.kit import HOUR, Always, Kit


def verb(kit: Kit, function: Any, *args: Any) -> None:
    """Call a verb of two-phase enqueue as the kit's kind of session does."""
    session = kit.session
    if kit.is_async:
        kit.run(session.run_sync(function, *args))
    else:
        function(session, *args)


def test_drain_leaves_held_jobs(both: Kit) -> None:
    """They run once they are confirmed, in the same transaction."""
    job = both.add(Always(hold_for=HOUR), Always(n=1))

    assert both.call(drain, with_scheduled=True) == {"completed": 1}
    assert job.state == "held"
    with pytest.raises(JobValueError, match="cannot run, it is held"):
        both.call(run_one, job)

    verb(both, confirm_hold, Always, job.id)
    assert both.call(drain) == {"completed": 1}


def test_clock_of_a_test_ends_holds(both: Kit) -> None:
    """Holding, confirming and extending go by it, as does the expiry of a drain."""
    clock = ManualClock(both.session)
    first, second = both.add(Always(hold_for=HOUR)), both.add(Always(hold_for=HOUR))
    both.flush()

    clock.advance(HOUR / 2)
    verb(both, extend_hold, Always, first.id, HOUR)
    clock.advance(HOUR * 3 / 4)
    with pytest.raises(HoldExpired, match="its hold expired at"):
        verb(both, confirm_hold, Always, second.id)
    verb(both, confirm_hold, Always, first.id)

    assert both.call(drain) == {"completed": 1}
    both.run(both.session.refresh(second))
    assert (second.state, second.reason) == ("cancelled", "hold expired")

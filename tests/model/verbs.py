"""What a holder may do with its claim: the call, and what the oracle says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

import sqla_jobs as api
from tests.model.oracle import Oracle, Row
from tests.model.shapes import DELAYS, LEASE


@dataclass(frozen=True)
class Use:
    """The time of a call, and a duration that it makes of what it likes."""

    now: datetime
    more: timedelta

    @property
    def at(self) -> datetime:
        """The time of what comes next."""
        return self.now + self.more

    @property
    def state(self) -> dict[str, int] | None:
        """A state to save."""
        return {"n": self.more.seconds} if self.more else None

    @property
    def extra(self) -> int:
        """Attempts to add."""
        return int(self.more == DELAYS[1])

    @property
    def lease(self) -> timedelta:
        """How long to hold it."""
        return 4 * LEASE if self.more == DELAYS[2] else LEASE


@dataclass(frozen=True)
class Verb:
    """A call, and what it must return and do."""

    call: Callable[[Session, api.Claim, Use], Any]
    expected: Callable[[Oracle, Row, Use], Any]


def _fail_until(session: Session, claim: api.Claim, use: Use) -> str:
    if use.more:
        return api.fail(session, claim, "no", retry_at=use.at, now=use.now)
    return api.fail(session, claim, "no", retry_after=use.more, now=use.now)


def _checkpointed(oracle: Oracle, row: Row, use: Use) -> bool:
    row.checkpoint = row.checkpoint if use.state is None else use.state
    row.max_attempts += use.extra
    return oracle.renew(row, use.now, use.lease)


VERBS = {
    "cancel": Verb(
        lambda session, claim, use: api.cancel(session, claim, "stop", now=use.now),
        lambda oracle, row, use: oracle.give_up(row, use.now, "cancelled", "stop"),
    ),
    "checkpoint": Verb(
        lambda session, claim, use: api.checkpoint(
            session,
            claim,
            use.state,
            extra_attempts=use.extra,
            lease=use.lease,
            now=use.now,
        ),
        _checkpointed,
    ),
    "complete": Verb(
        lambda session, claim, use: api.complete(
            session, claim, use.state, now=use.now
        ),
        lambda oracle, row, use: oracle.complete(row, use.now, use.state),
    ),
    "discard": Verb(
        lambda session, claim, use: api.discard(session, claim, "bad", now=use.now),
        lambda oracle, row, use: oracle.give_up(row, use.now, "discarded", "bad"),
    ),
    "fail": Verb(
        lambda session, claim, use: api.fail(session, claim, "no", now=use.now),
        lambda oracle, row, use: oracle.fail(row, use.now, None),
    ),
    "fail until": Verb(
        _fail_until, lambda oracle, row, use: oracle.fail(row, use.now, use.at)
    ),
    "release": Verb(
        lambda session, claim, use: api.release(session, claim, now=use.now),
        lambda oracle, row, use: oracle.release(row, use.now),
    ),
    "snooze": Verb(
        lambda session, claim, use: api.snooze(
            session, claim, after=use.more, now=use.now
        ),
        lambda oracle, row, use: oracle.snooze(row, use.now, use.at),
    ),
}
"""By the name in the documentation; `renew` takes several claims and is elsewhere."""

"""The part of the model that claims jobs and uses its claims."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import multiple, rule
from sqlalchemy.orm import Session

import sqla_jobs as api
from sqla_jobs import LeaseLost, Prefix
from tests.model.oracle import Row
from tests.model.senders import Senders
from tests.model.shapes import DELAYS, KINDS, LEASE, WAITS, Effect, Job
from tests.model.turns import Ask, Turns

Claimed = tuple[int, api.Claim]  # its number, and what claim() returned

SUBSCRIPTIONS: dict[str, tuple[Any, Callable[[str, str], bool]]] = {
    "all": (None, lambda queue, channel: True),
    "mail": (["mail"], lambda queue, channel: queue == "mail"),
    "both": (["mail", "web"], lambda queue, channel: queue in {"mail", "web"}),
    "prefix": ([Prefix("we")], lambda queue, channel: queue == "web"),
    "pair": ([("web", "x")], lambda queue, channel: (queue, channel) == ("web", "x")),
}


class Holders(Senders):
    """Holds jobs, now and later."""

    claims = Senders.claims

    @rule(
        target=claims,
        limit=st.sampled_from([1, 2, 3, 100]),
        sources=st.sampled_from(sorted(SUBSCRIPTIONS)),
        kinds=st.sampled_from([None, None, ["beta"]]),
        lease=st.sampled_from([LEASE, 4 * LEASE]),
    )
    def claim(
        self, limit: int, sources: str, kinds: list[str] | None, lease: timedelta
    ) -> Any:
        """Lease jobs: what may run, in order, and as many as promised."""
        queues, takes = SUBSCRIPTIONS[sources]
        by_names = sources in {"all", "mail", "both"}
        turns = Turns(
            self.oracle, Ask(limit, kinds or sorted(KINDS), takes, by_names=by_names)
        )
        with self.use() as session:
            found = api.claim(
                session, Job, queues=queues, kinds=kinds, limit=limit, lease=lease,
                now=self.now,
            )  # fmt: skip
        turns.judge([one.job_id for one in found])
        handed = [(next(self.numbers), one) for one in found]
        for number, one in handed:
            row = self.oracle.rows[one.job_id]
            self.oracle.take(row, number, self.now, lease)
            assert (one.token, one.attempt) == (row.token, row.attempt)
            assert (one.kind, one.queue) == (row.kind, row.queue)
            assert one.max_attempts == row.max_attempts
            assert one.leased_until == row.leased_until
            assert one.payload == {"number": row.number}
            assert one.state == (row.checkpoint or {})
        return multiple(*handed)

    def _use(
        self,
        claimed: Claimed,
        call: Callable[[Session], Any],
        note: Callable[[Row], Any],
    ) -> None:
        """Write an effect with a verb of a holder: both count, or neither."""
        number, _ = claimed
        if number not in self.oracle.claims:
            return  # its transaction was rolled back: nobody ever had it
        row = self.oracle.held_by(number)
        with self.use() as session:
            session.add(Effect())
            if row is None:
                with self.lost():
                    call(session)
            else:
                answer = call(session)
                self.oracle.effects += 1
                assert answer == note(row)

    @rule(claimed=claims, result=st.sampled_from([None, {"n": 1}]))
    def complete(self, claimed: Claimed, result: Any) -> None:
        """Complete a job."""
        self._use(
            claimed,
            lambda session: api.complete(session, claimed[1], result, now=self.now),
            lambda row: self.oracle.complete(row, self.now, result),
        )

    @rule(claimed=claims, after=WAITS, exactly=st.booleans())
    def fail(self, claimed: Claimed, after: timedelta | None, *, exactly: bool) -> None:
        """Fail an attempt, with the wait of its class, or one given."""
        at = None if after is None else self.now + after
        when: dict[str, Any] = {"retry_at": at} if exactly else {"retry_after": after}
        self._use(
            claimed,
            lambda session: api.fail(session, claimed[1], "no", **when, now=self.now),
            lambda row: self.oracle.fail(row, self.now, at),
        )

    @rule(claimed=claims, after=st.sampled_from(DELAYS))
    def snooze(self, claimed: Claimed, after: timedelta) -> None:
        """Put a job back until later."""
        self._use(
            claimed,
            lambda session: api.snooze(session, claimed[1], after=after, now=self.now),
            lambda row: self.oracle.snooze(row, self.now, self.now + after),
        )

    @rule(claimed=claims, verb=st.sampled_from(["cancelled", "discarded"]))
    def give_up(self, claimed: Claimed, verb: str) -> None:
        """End a job as its holder says."""
        call = {"cancelled": api.cancel, "discarded": api.discard}[verb]
        self._use(
            claimed,
            lambda session: call(session, claimed[1], "given up", now=self.now),
            lambda row: self.oracle.give_up(row, self.now, verb, "given up"),
        )

    @rule(claimed=claims)
    def release(self, claimed: Claimed) -> None:
        """Hand a job back."""
        self._use(
            claimed,
            lambda session: api.release(session, claimed[1], now=self.now),
            lambda row: self.oracle.release(row, self.now),
        )

    @rule(
        claimed=claims,
        state=st.sampled_from([None, {"n": 1}, {"m": 2}]),
        extra=st.sampled_from([0, 0, 1]),
        lease=st.sampled_from([LEASE, 4 * LEASE]),
    )
    def checkpoint(
        self, claimed: Claimed, state: Any, extra: int, lease: timedelta
    ) -> None:
        """Save a state."""

        def note(row: Row) -> bool:
            row.checkpoint = row.checkpoint if state is None else state
            row.max_attempts += extra
            return self.oracle.renew(row, self.now, lease)

        self._use(
            claimed,
            lambda session: api.checkpoint(
                session, claimed[1], state, extra_attempts=extra, lease=lease,
                now=self.now,
            ),
            note,
        )  # fmt: skip

    @rule(chosen=st.lists(claims, min_size=1, max_size=3, unique_by=lambda one: one[0]))
    def renew(self, chosen: list[Claimed]) -> None:
        """Renew leases: those still held, also when others are lost."""
        chosen = [one for one in chosen if one[0] in self.oracle.claims]
        held = [row for n, _ in chosen if (row := self.oracle.held_by(n))]
        if not chosen:
            return
        claims = [claim for _, claim in chosen]
        with self.use() as session:
            if not held:
                with self.lost():
                    api.renew(session, claims, now=self.now)
                return
            if len(held) < len(chosen):
                with pytest.raises(LeaseLost):
                    api.renew(session, claims, now=self.now)
                asked = None
            else:
                asked = api.renew(session, claims, now=self.now)
        answers = {row.id: self.oracle.renew(row, self.now, LEASE) for row in held}
        assert asked in (None, {one for one, cancel in answers.items() if cancel})

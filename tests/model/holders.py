"""The part of the model that claims jobs and uses its claims."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import rule

import sqla_jobs as api
from sqla_jobs import LeaseLost, Prefix
from tests.model.senders import Senders
from tests.model.shapes import DELAYS, KINDS, LEASE, SECOND, Effect, Job
from tests.model.turns import Ask, Turns
from tests.model.verbs import VERBS, Use

picks = st.integers(0, 31)
uses = st.tuples(picks, st.sampled_from(sorted(VERBS)), st.sampled_from(DELAYS))
SUBSCRIPTIONS: dict[str, tuple[Any, Callable[[str, str], bool]]] = {
    "all": (None, lambda queue, channel: True),
    "mail": (["mail"], lambda queue, channel: queue == "mail"),
    "both": (["mail", "web"], lambda queue, channel: queue in {"mail", "web"}),
    "prefix": ([Prefix("we")], lambda queue, channel: queue == "web"),
    "pair": ([("web", "x")], lambda queue, channel: (queue, channel) == ("web", "x")),
}


class Holders(Senders):
    """Holds jobs, now and later."""

    @rule()
    def claim_all(self) -> None:
        """Lease all that may run."""
        self._claim(100, "all", None, LEASE)

    @rule(
        limit=st.sampled_from([1, 2, 3, 100]),
        sources=st.sampled_from(sorted(SUBSCRIPTIONS)),
        kinds=st.sampled_from([None, None, ["beta"]]),
        lease=st.sampled_from([LEASE, 4 * LEASE]),
    )
    def claim_some(
        self, limit: int, sources: str, kinds: list[str] | None, lease: timedelta
    ) -> None:
        """Lease some of it."""
        self._claim(limit, sources, kinds, lease)

    def _claim(
        self, limit: int, sources: str, kinds: list[str] | None, lease: timedelta
    ) -> None:
        """Lease jobs: what may run, in order, and as many as promised."""
        queues, takes = SUBSCRIPTIONS[sources]
        by_names = sources in {"all", "mail", "both"}
        ask = Ask(limit, kinds or sorted(KINDS), takes, by_names=by_names)
        turns = Turns(self.oracle, ask)
        options: dict[str, Any] = {
            "queues": queues, "kinds": kinds, "limit": limit, "lease": lease
        }  # fmt: skip
        with self.transaction() as session:
            found = api.claim(session, Job, **options, now=self.now)
        note(f"claim({options}) -> {[(one.job_id, one.token) for one in found]}")
        turns.judge([one.job_id for one in found])
        for one in found:
            self._take(one, lease)

    def _take(self, one: api.Claim, lease: timedelta) -> None:
        """Note a claim, whose values must be those of its job."""
        row, number = self.oracle.rows[one.job_id], next(self.numbers)
        self.handed[number] = one
        self.oracle.take(row, number, self.now, lease)
        assert (one.token, one.attempt) == (row.token, row.attempt)
        assert (one.kind, one.queue) == (row.kind, row.queue)
        assert one.max_attempts == row.max_attempts
        assert one.leased_until == row.leased_until
        assert one.payload == {"number": row.number}
        assert one.state == (row.checkpoint or {})

    @rule(uses=st.lists(uses, min_size=1, max_size=4))
    def work(self, uses: list[tuple[int, str, timedelta]]) -> None:
        """Lease all that may run, and do something with it."""
        self.claim_all()
        self.use(uses)

    @rule(uses=st.lists(uses, min_size=1, max_size=4))
    def use(self, uses: list[tuple[int, str, timedelta]]) -> None:
        """Use claims, held or not."""
        for pick, verb, more in uses:
            if self.oracle.claims:  # a lost lease may undo all of them
                self._use(self.choose_claim(pick), verb, more)

    @rule(chosen=st.lists(picks, min_size=1, max_size=3))
    def renew(self, chosen: list[int]) -> None:
        """Renew leases: those still held, also when others are lost."""
        if self.oracle.claims:
            self._renew(sorted({self.choose_claim(pick) for pick in chosen}))

    @rule(pick=picks)
    def come_too_late(self, pick: int) -> None:
        """Try all that a holder can do with a claim that is over, or taken over."""
        if not self.oracle.claims:
            return
        number = self.choose_claim(pick - pick % 4 + 2)
        for verb in sorted(VERBS):
            if number in self.oracle.claims and not self.oracle.held_by(number):
                self._use(number, verb, SECOND)
        if number in self.oracle.claims:
            self._renew([number])

    def _renew(self, numbers: list[int]) -> None:
        held = [row for n in numbers if (row := self.oracle.held_by(n))]
        claims = [self.handed[number] for number in numbers]
        note(f"renew({[(one.job_id, one.token) for one in claims]})")
        with self.transaction() as session:
            if not held:
                with self.lost():
                    api.renew(session, claims, now=self.now)
                return
            if len(held) < len(numbers):
                with pytest.raises(LeaseLost):
                    api.renew(session, claims, now=self.now)
                asked = None
            else:
                asked = api.renew(session, claims, now=self.now)
        answers = {row.id: self.oracle.renew(row, self.now, LEASE) for row in held}
        assert asked in (None, {one for one, cancel in answers.items() if cancel})

    def _use(self, number: int, name: str, more: timedelta) -> None:
        """Write an effect with a verb of a holder: both count, or neither."""
        claim, row = self.handed[number], self.oracle.held_by(number)
        verb, use = VERBS[name], Use(self.now, more)
        held = "held" if row else "lost"
        note(f"{name}({(claim.job_id, claim.token)}, {more}): {held}")
        with self.transaction() as session:
            session.add(Effect())
            if row is None:
                with self.lost():
                    verb.call(session, claim, use)
            else:
                answer = verb.call(session, claim, use)
                self.oracle.effects += 1
                assert answer == verb.expected(self.oracle, row, use)

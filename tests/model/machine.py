"""The whole model: what operators and other runners do too, and what always holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session, sessionmaker

import sqla_jobs as api
from sqla_jobs import HoldExpired
from sqla_jobs._store.holds import expire_holds
from sqla_jobs._store.idempotency import purge_idempotency
from sqla_jobs._store.retention import apply_retention
from sqla_jobs.models import job_tables
from tests.model.holders import Holders, picks
from tests.model.oracle import FINAL, Row
from tests.model.senders import new_jobs
from tests.model.shapes import HOUR, KEYS, QUEUES, SECOND, ZERO, Effect, Job

TABLES = job_tables(Job)
ATTEMPTS, ARCHIVE = TABLES.attempts, TABLES.archive
some = st.lists(picks, min_size=1, max_size=3)
NOT_RUNNING = ("available", "discarded", "held", "retryable", "scheduled")
SETTINGS: dict[str, Any] = {
    "paused": st.sampled_from([False, False, True]),
    "fair": st.booleans(),
    "max_running": st.sampled_from([None, None, 1, 2]),
    "max_running_per_channel": st.sampled_from([None, None, 1]),
    "on_discard": st.sampled_from(["skip", "block"]),
}

JOB = TABLES.table.c
NAMES = {one.name for one in fields(Row)} & set(JOB.keys())
LOOK = select(
    *(JOB[name] for name in sorted(NAMES)),
    JOB.payload["number"].as_integer().label("number"),
    JOB.lease_token.label("token"),
    JOB.cancel_requested_at.is_not(None).label("cancel_requested"),
)
"""The columns that the oracle knows."""

LOGGED = func.json_build_array(ATTEMPTS.c.job_id, ATTEMPTS.c.number, ATTEMPTS.c.outcome)
BESIDE = select(
    select(func.count()).select_from(Effect).scalar_subquery(),
    select(func.array_agg(ARCHIVE.c.id)).scalar_subquery(),
    select(
        func.json_agg(aggregate_order_by(LOGGED, ATTEMPTS.c.lease_token))
    ).scalar_subquery(),
)
"""What is in the other tables."""


class Machine(Holders):
    """The jobs of one table, their claims, and the oracle beside them."""

    looks = 0

    # What every runner does

    @rule(
        wait=st.sampled_from([0, 1, 5, 10, 31, 100, 3600, 7200]),
        sweeps=st.sets(st.sampled_from(["rescue", "stage", "expire", "prune"])),
        expired_for=st.sampled_from([ZERO, ZERO, 5 * SECOND]),
        queues=st.sampled_from([None, None, ["mail"]]),
    )
    def sweep(
        self,
        wait: int,
        sweeps: set[str],
        expired_for: timedelta,
        queues: list[str] | None,
    ) -> None:
        """Let time pass, and do some of what runners do then."""
        self.let_pass(wait)
        if "rescue" in sweeps:
            self._rescue(expired_for, queues)
        for name in sorted(sweeps - {"rescue"}):
            getattr(self, f"_{name}")()

    @rule(again=st.booleans(), pick=picks)
    def crash(self, pick: int, *, again: bool) -> None:
        """Let all leases expire; others take the jobs, and the old holders come."""
        self.claim_all()
        self.let_pass(31)
        self._rescue(ZERO, None)
        if again:
            self.claim_all()
        self.come_too_late(pick)

    def _rescue(self, expired_for: timedelta, queues: list[str] | None) -> None:
        with self.transaction() as session:
            found = api.rescue(
                session, Job, queues=queues, expired_for=expired_for, now=self.now
            )
        note(f"rescue() -> {[(one.job_id, str(one.state)) for one in found]}")
        expected = self.oracle.rescue(self.now, expired_for, queues)
        assert {one.job_id: one.state for one in found} == expected

    def _stage(self) -> None:
        with self.transaction() as session:
            found = api.stage(session, Job, now=self.now)
        assert found.count == self.oracle.stage(self.now)

    def _expire(self) -> None:
        with self.transaction() as session:
            found = expire_holds(session, TABLES, now=self.now)
        assert found == self.oracle.expire(self.now)

    def _prune(self) -> None:
        with self.transaction() as session:
            found = apply_retention(session, TABLES, now=self.now)
            purge_idempotency(session, TABLES, limit=100, now=self.now)
        assert found == self.oracle.prune(self.now)

    # What owners and operators do

    @rule(
        asked=new_jobs,
        ordered=st.booleans(),
        wait=st.sampled_from([None, 0, 5, 6]),
        verb=st.sampled_from(["confirm", "extend", "abort", "expire"]),
    )
    def hold(
        self, asked: dict[str, Any], wait: int | None, verb: str, *, ordered: bool
    ) -> None:
        """Add a job that waits to be confirmed, and perhaps end that soon."""
        asked |= {"ordered": ordered, "hold_for": 5 * SECOND}
        ids = self.add_all([asked])
        if wait is not None:
            self.let_pass(wait)
            self._end_hold(ids, verb)

    @rule(picked=some, verb=st.sampled_from(["confirm", "extend", "abort", "expire"]))
    def end_hold(self, picked: list[int], verb: str) -> None:
        """Confirm, extend or abort holds: all of them or none."""
        self._end_hold(self.choose(picked, lambda row: row.state == "held"), verb)

    def _end_hold(self, ids: list[int], verb: str) -> None:
        note(f"{verb}_hold({ids})")
        if verb == "expire":
            self._expire()
            return
        rows = self.oracle.held(ids, self.now, verb)
        with self.transaction() as session:
            if rows is None:
                with pytest.raises(HoldExpired):
                    self._held(session, ids, verb)
                return
            self._held(session, ids, verb)
        for row in rows:
            if verb == "confirm":
                self.oracle.confirm(row, self.now)
            elif verb == "extend":
                row.held_until = self.now + HOUR
            else:
                row.end("cancelled", self.now, "aborted")

    def _held(self, session: Session, ids: list[int], verb: str) -> None:
        if verb == "confirm":
            api.confirm_hold(session, Job, ids, now=self.now)
        elif verb == "extend":
            api.extend_hold(session, Job, ids, HOUR, now=self.now)
        else:
            api.abort_hold(session, Job, ids, "aborted", now=self.now)

    @rule(picked=some, running=st.booleans())
    def cancel(self, picked: list[int], *, running: bool) -> None:
        """Cancel jobs by their ids, or ask them to end."""
        if running:
            self.claim_all()
        ids = self.choose(
            picked, lambda row: row.live and (row.state == "running") == running
        )
        self._cancel({one: self.oracle.rows.get(one) for one in ids}, ids=ids)

    @rule(
        by=st.sampled_from(
            [{"fingerprint": "f"}, *({"unique_key": key} for key in KEYS)]
        )
    )
    def cancel_by(self, by: dict[str, str]) -> None:
        """Cancel the live jobs with a key or a fingerprint."""
        rows = self.oracle.rows.values()
        ((name, value),) = by.items()
        found = {r.id: r for r in rows if r.live and getattr(r, name) == value}
        self._cancel(found, **by)

    def _cancel(self, rows: Mapping[int, Row | None], **by: Any) -> None:
        note(f"request_cancel({by})")
        with self.transaction() as session:
            found = api.request_cancel(
                session, Job, **by, reason="enough", now=self.now
            )
        lists: dict[str, set[int]] = {}
        for one, row in rows.items():
            name = self.oracle.cancel(row, self.now, "enough") if row else "unchanged"
            lists.setdefault(name, set()).add(one)
        for name in ("cancelled", "requested", "unchanged"):
            assert set(getattr(found, name)) == lists.get(name, set())

    @rule(picked=some, keep_state=st.booleans())
    def requeue(self, picked: list[int], *, keep_state: bool) -> None:
        """Run final jobs again."""
        ids = self.choose(picked, lambda row: not row.live)
        note(f"requeue({ids})")
        rows = {one: self.oracle.rows.get(one) for one in ids}
        with self.transaction() as session:
            found = api.requeue(session, Job, ids, keep_state=keep_state, now=self.now)
        lists: dict[str, set[int]] = {}
        for one, row in rows.items():
            name = self.oracle.requeue(row, self.now, keep_state)
            lists.setdefault(name, set()).add(one)
        for name in ("requeued", "duplicates", "unchanged"):
            assert set(getattr(found, name)) == lists.get(name, set())

    @rule(pick=picks)
    def requeue_one(self, pick: int) -> None:
        """Run one job again, which its unique key may forbid."""
        (job,) = self.choose([pick], lambda row: bool(row.unique_key) and not row.live)
        note(f"requeue({job})")
        row = self.oracle.rows.get(job)
        with self.transaction() as session:
            if row and not row.live and self.oracle.duplicate_of(row.unique_key):
                with pytest.raises(api.DuplicateJob):
                    api.requeue(session, Job, job, now=self.now)
            else:
                found = api.requeue(session, Job, job, now=self.now)
                name = self.oracle.requeue(row, self.now, keep_state=False)
                assert getattr(found, name) == (job,)

    @rule(
        states=st.sampled_from([FINAL, ("discarded",), NOT_RUNNING]),
        older_than=st.sampled_from([ZERO, HOUR]),
        picked=some,
        every=st.booleans(),
    )
    def purge(
        self,
        states: tuple[str, ...],
        older_than: timedelta,
        picked: list[int],
        *,
        every: bool,
    ) -> None:
        """Delete jobs: the waiting ones only by their ids."""
        chosen = self.choose(picked, lambda row: row.state in states)
        ids = None if every and set(states) <= set(FINAL) else chosen
        note(f"purge({ids}, {states}, {older_than})")
        options: dict[str, Any] = {
            "ids": ids, "states": states, "older_than": older_than
        }  # fmt: skip
        with self.transaction() as session:
            found = api.purge(session, Job, **options, now=self.now)
        assert found == self.oracle.purge(self.now, **options)

    @rule(
        queue=st.sampled_from(QUEUES),
        changes=st.fixed_dictionaries({}, optional=SETTINGS),
    )
    def set_queue(self, queue: str, changes: dict[str, Any]) -> None:
        """Change the settings of a queue."""
        with self.transaction() as session:
            api.set_queue(session, Job, queue, must_exist=False, **changes)
        self.oracle.queues[queue] = replace(self.oracle.queue(queue), **changes)

    # What always holds

    @invariant()
    def agrees(self) -> None:
        """The tables are as the oracle says, and so are the library's answers."""
        with ExitStack() as stack:
            # Committed, since psycopg forgets its prepared statements at a rollback.
            own = sessionmaker(self.engine).begin
            session = self.session or stack.enter_context(own())
            rows = {row.id: dict(row._mapping) for row in session.execute(LOOK)}
            beside = session.execute(BESIDE).one()
            self.looks += 1
            if self.looks % 3 == 0:
                self._counts(session)
        self._promises(rows)
        assert sorted(rows) == sorted(self.oracle.rows)
        for one, row in self.oracle.rows.items():
            found, expected = rows[one], row.expected()
            wrong = {
                name: (found[name], value)
                for name, value in expected.items()
                if found[name] != value
            }
            assert not wrong, f"job {one}: found, expected {wrong}"
        self._beside(*beside)

    def _counts(self, session: Session) -> None:
        counts = api.counts(session, Job)
        found = {(one.queue, one.state): one.count for one in counts}
        assert found == self.oracle.counts()

    def _beside(self, effects: int, archived: Any, logged: Any) -> None:
        """Compare what the holders wrote, the archive and the attempts."""
        assert effects == self.oracle.effects
        assert set(archived or ()) == self.oracle.archived
        history: dict[int, list[tuple[int, str]]] = {}
        for one, *attempt in logged or ():
            history.setdefault(one, []).append((*attempt,))
        assert history == {k: v for k, v in self.oracle.history.items() if v}

    def _promises(self, rows: dict[int, dict[str, Any]]) -> None:
        """Check what holds whatever was called."""
        live = [row for row in rows.values() if row["state"] not in FINAL]
        keys = Counter(row["unique_key"] for row in live if row["unique_key"])
        assert all(count == 1 for count in keys.values())
        running = [row for row in live if row["state"] == "running"]
        heads = Counter((r["queue"], r["channel"]) for r in running if r["ordered"])
        assert all(count == 1 for count in heads.values())
        for row in rows.values():
            assert 0 <= row["attempt"] <= row["max_attempts"]
            assert (row["leased_until"] is None) == (row["state"] != "running")
            assert (row["finished_at"] is None) == (row["state"] not in FINAL)

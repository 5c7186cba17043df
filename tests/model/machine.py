"""The whole model: what operators and other runners do too, and what always holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from sqlalchemy import func, select
from sqlalchemy.orm import Session

import sqla_jobs as api
from sqla_jobs import HoldExpired
from sqla_jobs._store.holds import expire_holds
from sqla_jobs._store.idempotency import purge_idempotency
from sqla_jobs._store.retention import apply_retention
from sqla_jobs.models import job_tables
from tests.model.holders import Holders
from tests.model.oracle import FINAL, Row
from tests.model.senders import Senders
from tests.model.shapes import HOUR, KEYS, QUEUES, SECOND, ZERO, Effect, Job

TABLES = job_tables(Job)
ATTEMPTS, ARCHIVE = TABLES.attempts, Job.Archived.__table__
some_jobs = st.lists(Senders.jobs, min_size=1, max_size=3, unique=True)
SETTINGS: dict[str, Any] = {
    "paused": st.booleans(),
    "fair": st.booleans(),
    "max_running": st.sampled_from([None, 1, 2]),
    "max_running_per_channel": st.sampled_from([None, 1]),
    "on_discard": st.sampled_from(["skip", "block"]),
}


class Machine(Holders):
    """The jobs of one table, their claims, and the oracle beside them."""

    jobs = Holders.jobs

    # What every runner does

    @rule(
        expired_for=st.sampled_from([ZERO, ZERO, 5 * SECOND]),
        queues=st.sampled_from([None, None, ["mail"]]),
    )
    def rescue(self, expired_for: timedelta, queues: list[str] | None) -> None:
        """Take back what has expired."""
        with self.use() as session:
            found = api.rescue(
                session, Job, queues=queues, expired_for=expired_for, now=self.now
            )
        expected = self.oracle.rescue(self.now, expired_for, queues)
        assert {one.job_id: one.state for one in found} == expected

    @rule()
    def stage(self) -> None:
        """Make due jobs available."""
        with self.use() as session:
            found = api.stage(session, Job, now=self.now)
        assert found.count == self.oracle.stage(self.now)

    @rule()
    def expire(self) -> None:
        """Cancel what was held too long."""
        with self.use() as session:
            found = expire_holds(session, TABLES, now=self.now)
        assert found == self.oracle.expire(self.now)

    @rule()
    def prune(self) -> None:
        """Delete and archive what is old, jobs and idempotency keys."""
        with self.use() as session:
            found = apply_retention(session, TABLES, now=self.now)
            purge_idempotency(session, TABLES, limit=100, now=self.now)
        assert found == self.oracle.prune(self.now)

    # What owners and operators do

    @rule(
        ids=some_jobs,
        verb=st.sampled_from(["confirm", "confirm", "extend", "abort"]),
    )
    def held(self, ids: list[int], verb: str) -> None:
        """Confirm, extend or abort holds: all of them or none."""
        rows = self.oracle.held(ids, self.now, verb)
        with self.use() as session:
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

    @rule(ids=some_jobs)
    def cancel(self, ids: list[int]) -> None:
        """Cancel jobs by their ids."""
        rows = {one: self.oracle.rows.get(one) for one in ids}
        self._cancel(rows, ids=ids)

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

    def _cancel(self, rows: dict[int, Row | None], **by: Any) -> None:
        with self.use() as session:
            found = api.request_cancel(
                session, Job, **by, reason="enough", now=self.now
            )
        lists: dict[str, set[int]] = {}
        for one, row in rows.items():
            name = self.oracle.cancel(row, self.now, "enough") if row else "unchanged"
            lists.setdefault(name, set()).add(one)
        for name in ("cancelled", "requested", "unchanged"):
            assert set(getattr(found, name)) == lists.get(name, set())

    @rule(ids=some_jobs, keep_state=st.booleans())
    def requeue(self, ids: list[int], *, keep_state: bool) -> None:
        """Run final jobs again."""
        rows = {one: self.oracle.rows.get(one) for one in sorted(ids)}
        with self.use() as session:
            found = api.requeue(session, Job, ids, keep_state=keep_state, now=self.now)
        lists: dict[str, set[int]] = {}
        for one, row in rows.items():
            name = self.oracle.requeue(row, self.now, keep_state)
            lists.setdefault(name, set()).add(one)
        for name in ("requeued", "duplicates", "unchanged"):
            assert set(getattr(found, name)) == lists.get(name, set())

    @rule(job=Senders.jobs)
    def requeue_one(self, job: int) -> None:
        """Run one job again, which its unique key may forbid."""
        row = self.oracle.rows.get(job)
        with self.use() as session:
            if row and not row.live and self.oracle.duplicate_of(row.unique_key):
                with pytest.raises(api.DuplicateJob):
                    api.requeue(session, Job, job, now=self.now)
            else:
                found = api.requeue(session, Job, job, now=self.now)
                name = self.oracle.requeue(row, self.now, keep_state=False)
                assert getattr(found, name) == (job,)

    @rule(
        states=st.sampled_from([FINAL, FINAL, ("scheduled", "available", "held")]),
        older_than=st.sampled_from([ZERO, HOUR]),
        ids=st.none() | some_jobs,
    )
    def purge(
        self, states: tuple[str, ...], older_than: timedelta, ids: list[int] | None
    ) -> None:
        """Delete jobs."""
        options: dict[str, Any] = {
            "ids": ids, "states": states, "older_than": older_than
        }  # fmt: skip
        with self.use() as session:
            found = api.purge(session, Job, **options, now=self.now)
        assert found == self.oracle.purge(self.now, **options)

    @rule(
        queue=st.sampled_from(QUEUES),
        changes=st.fixed_dictionaries({}, optional=SETTINGS),
    )
    def set_queue(self, queue: str, changes: dict[str, Any]) -> None:
        """Change the settings of a queue."""
        with self.use() as session:
            api.set_queue(session, Job, queue, must_exist=False, **changes)
        self.oracle.queues[queue] = replace(self.oracle.queue(queue), **changes)

    # What always holds

    @invariant()
    def agrees(self) -> None:
        """The tables are as the oracle says, and so are the library's answers."""
        if self.session is not None:
            self._look(self.session)
        else:
            with self._opened() as session:
                self._look(session)

    def _look(self, session: Session) -> None:
        rows = self._rows(session)
        self._promises(rows)
        assert sorted(rows) == sorted(self.oracle.rows)
        for one, row in self.oracle.rows.items():
            wrong = {
                name: (rows[one][name], value)
                for name, value in row.expected().items()
                if rows[one][name] != value
            }
            assert not wrong, f"job {one}: found, expected {wrong}"
        history: dict[int, list[tuple[int, str]]] = {}
        columns = ATTEMPTS.c.job_id, ATTEMPTS.c.number, ATTEMPTS.c.outcome
        for one, *attempt in session.execute(
            select(*columns).order_by(ATTEMPTS.c.lease_token)
        ):
            history.setdefault(one, []).append(tuple(attempt))
        assert history == {k: v for k, v in self.oracle.history.items() if v}
        scalars = select(
            select(func.count()).select_from(Effect).scalar_subquery(),
            select(func.array_agg(ARCHIVE.c.id)).scalar_subquery(),
        )
        effects, archived = session.execute(scalars).one()
        assert effects == self.oracle.effects
        assert set(archived or ()) == self.oracle.archived
        counts = api.counts(session, Job)
        assert {(c.queue, c.state): c.count for c in counts} == self.oracle.counts()

    def _rows(self, session: Session) -> dict[int, dict[str, Any]]:
        found = {}
        for row in session.execute(select(TABLES.table)).mappings():
            values = dict(row)
            values["number"] = values["payload"]["number"]
            values["token"] = values.pop("lease_token")
            values["cancel_requested"] = values["cancel_requested_at"] is not None
            found[values["id"]] = values
        return found

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

"""The part of the model that enqueues."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from sqlalchemy import select
from sqlalchemy.orm import Session

import sqla_jobs as api
from sqla_jobs.models import job_tables
from tests.model.base import Transactions
from tests.model.oracle import Row
from tests.model.shapes import (
    CHANNELS,
    DELAYS,
    HOUR,
    KEYS,
    KINDS,
    OWN_LEASE,
    QUEUES,
    WAITS,
    Job,
)

TABLES = job_tables(Job)

new_jobs = st.fixed_dictionaries(
    {"kind": st.sampled_from(sorted(KINDS))},
    optional={
        "queue": st.sampled_from(QUEUES),
        "channel": st.sampled_from(CHANNELS),
        "priority": st.sampled_from([-1, 5]),
        "delay": st.sampled_from(DELAYS),
        "max_attempts": st.sampled_from([1, 4]),
        "lease": st.just(OWN_LEASE),
        "fingerprint": st.just("f"),
    },
)


class Senders(Transactions):
    """Enqueues jobs of all shapes."""

    def _expected(self, job_id: int, number: int, asked: dict[str, Any]) -> Row:
        """Return the row that this job must have."""
        columns = {k: v for k, v in asked.items() if k not in {"delay", "hold_for"}}
        columns.setdefault("max_attempts", {"alpha": 2, "beta": 3}[asked["kind"]])
        row = Row(id=job_id, number=number, **columns)
        row.run_at = self.transactions
        if asked.get("delay"):
            row.state, row.run_at = "scheduled", self.now + asked["delay"]
        if "hold_for" in asked:
            row.state, row.held_until = "held", self.now + asked["hold_for"]
        return row

    def _made(self, asked: dict[str, Any], **more: Any) -> Any:
        """Return a new job of this kind."""
        keywords = {k: v for k, v in asked.items() if k != "kind"} | more
        return KINDS[asked["kind"]](number=next(self.numbers), **keywords)

    @initialize(asked=st.lists(new_jobs, min_size=1, max_size=4))
    def start(self, asked: list[dict[str, Any]]) -> None:
        """Begin with some jobs."""
        self.empty()
        self.add_all(asked)

    @rule(asked=st.lists(new_jobs, min_size=1, max_size=4))
    def add(self, asked: list[dict[str, Any]]) -> None:
        """Add jobs in one flush."""
        self.add_all(asked)

    @rule(
        kind=st.sampled_from(sorted(KINDS)),
        channels=st.lists(st.sampled_from(CHANNELS), min_size=1, max_size=3),
        delay=WAITS,
    )
    def send(self, kind: str, channels: list[str], delay: timedelta | None) -> None:
        """Add ordered jobs; only the first of them may be delayed."""
        asked: list[dict[str, Any]] = [
            {"kind": kind, "queue": "mail", "channel": channel, "ordered": True}
            for channel in channels
        ]
        if delay is not None:
            asked[0]["delay"] = delay
        ids = self.add_all(asked)
        assert ids == sorted(ids), "ids are not in send order"

    def add_all(self, asked: list[dict[str, Any]]) -> list[int]:
        """Add jobs in one flush; return their ids."""
        with self.transaction() as session:
            made = [self._made(one) for one in asked]
            session.add_all(made)
            session.flush()
            ids = [job.id for job in made]
            for job, one in zip(made, asked, strict=True):
                self.oracle.add(self._expected(job.id, job.number, one))
            session.expunge_all()
        self.known += ids
        return ids

    @rule(
        asked=new_jobs,
        key=st.sampled_from(KEYS),
        policy=st.sampled_from(["raise", "skip", "return", "replace"]),
    )
    def enqueue(self, asked: dict[str, Any], key: str, policy: str) -> None:
        """Enqueue a job with a unique key."""
        other = self.oracle.duplicate_of(key)
        with self.transaction() as session:
            job = self._made(asked, unique_key=key)
            if self._clashes(other, policy):
                with pytest.raises(api.DuplicateJob) as error:
                    api.enqueue(session, job, on_conflict=policy)
                assert other is not None
                assert error.value.job_id == other.id
                return
            made = api.enqueue(session, job, on_conflict=policy)
            if other is not None and policy != "replace":
                assert (made.job_id, made.created) == (other.id, False)
            else:
                assert made.created
                self._replaced(other)
                asked |= {"unique_key": key}
                self.oracle.add(self._expected(made.job_id, job.number, asked))
            session.expunge_all()
            self.known.append(made.job_id)

    def _clashes(self, other: Row | None, policy: str) -> bool:
        if other is None:
            return False
        return policy == "raise" or (policy == "replace" and other.state == "running")

    def _replaced(self, other: Row | None) -> None:
        if other is not None:
            self.oracle.replace(other, self.now)

    @rule(
        kind=st.sampled_from(sorted(KINDS)),
        keys=st.lists(st.sampled_from([None, *KEYS]), min_size=1, max_size=4),
        policy=st.sampled_from(["raise", "skip", "replace"]),
        copy=st.booleans(),
    )
    def enqueue_many(
        self, kind: str, keys: list[str | None], policy: str, *, copy: bool
    ) -> None:
        """Enqueue jobs in bulk, with keys that live jobs may have."""
        rows = [self._bulk_row(key, policy) for key in keys]
        named = [key for key in keys if key is not None]
        others = [self.oracle.duplicate_of(key) for key in set(named)]
        clash = any(self._clashes(other, policy) for other in others)
        clash |= policy == "raise" and len(set(named)) < len(named)
        options: dict[str, Any] = {"copy_threshold": 1 if copy else None}
        with self.transaction() as session:
            if clash:
                with pytest.raises(api.DuplicateJob):
                    api.enqueue_many(session, KINDS[kind], rows, **options)
                return
            wanted = self._survivors(rows, policy)
            found = api.enqueue_many(session, KINDS[kind], rows, **options)
            assert found == len(wanted)
            if policy == "replace":
                for other in others:
                    self._replaced(other)
            self._note_bulk(session, kind, wanted)

    def _bulk_row(self, key: str | None, policy: str) -> dict[str, Any]:
        keyed = {} if key is None else {"unique_key": key, "on_conflict": policy}
        return {"number": next(self.numbers), **keyed}

    def _survivors(
        self, rows: list[dict[str, Any]], policy: str
    ) -> dict[int, str | None]:
        """Return the keys by number of the rows that must be inserted."""
        chosen: dict[Any, dict[str, Any]] = {}
        for row in rows:
            key = row.get("unique_key")
            if policy == "skip" and self.oracle.duplicate_of(key):
                continue
            name = row["number"] if key is None else key
            if policy == "replace" or name not in chosen:
                chosen[name] = row
        return {row["number"]: row.get("unique_key") for row in chosen.values()}

    def _note_bulk(
        self, session: Session, kind: str, wanted: dict[int, str | None]
    ) -> None:
        number = TABLES.table.c.payload["number"].as_integer()
        query = select(number.label("number"), TABLES.table.c.id).where(
            number.in_(wanted)
        )
        ids = {row.number: row.id for row in session.execute(query)}
        for one, key in wanted.items():
            asked = {"kind": kind, "unique_key": key}
            self.oracle.add(self._expected(ids[one], one, asked))
        self.known += ids.values()

    @rule(key=st.sampled_from(KEYS), queue=st.sampled_from(QUEUES))
    def request(self, key: str, queue: str) -> None:
        """Enqueue a job with an idempotency key, which stands for it for an hour."""
        known = self.oracle.keys.get((queue, key))
        with self.transaction() as session:
            job = self._made({"kind": "alpha", "queue": queue})
            made = api.enqueue(session, job, idempotency_key=key, window=HOUR)
            if known is not None and known[1] > self.now:
                assert (made.job_id, made.created) == (known[0], False)
            else:
                assert made.created
                self.oracle.keys[queue, key] = made.job_id, self.now + HOUR
                asked = {"kind": "alpha", "queue": queue}
                self.oracle.add(self._expected(made.job_id, job.number, asked))
            session.expunge_all()
        self.known.append(made.job_id)

"""Plans made from statistics that are no longer true."""

from __future__ import annotations

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs._core.settle import Settlement
from sqla_jobs._store.lease import fence, renew_many
from sqla_jobs._store.settle import settle
from tests.conformance.factories import DAY, LEASE, NOW, fill
from tests.conformance.test_plans import TABLES, held_jobs, plans


def test_lookups_do_not_trust_stale_statistics(
    job_engine: Engine, sessions: sessionmaker[Session]
) -> None:
    """Statistics made while nothing ran send no lookup through all running jobs."""
    with sessions.begin() as session:
        fill(session, 3_000)
    with sessions.begin() as session:
        session.execute(text("ANALYZE"))
    with sessions.begin() as session:
        lease = {"lease_token": 1, "attempt": 1, "leased_until": NOW + DAY}
        fill(session, 3_000, state="running", **lease)
    with Session(job_engine) as session:
        held = held_jobs(session)
    rows = [Settlement(job, token, "complete") for job, token in held]

    def work(session: Session) -> None:
        settle(session, TABLES, rows)
        fence(session, TABLES, *held[0], lease=LEASE)
        renew_many(session, TABLES, held[1:], lease=LEASE)

    for plan in plans(job_engine, "force_generic_plan", work):
        assert "leases_v1_idx" not in plan.indexes()
        assert plan.most_rows() <= 100

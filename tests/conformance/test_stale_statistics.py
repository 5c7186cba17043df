"""Plans made from statistics that are no longer true."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs._core.settle import Settlement
from sqla_jobs._store.claim import claim_jobs
from sqla_jobs._store.lease import fence, renew_many
from sqla_jobs._store.settle import settle
from sqla_jobs.runner.control import Control
from tests.conformance.factories import DAY, LEASE, NOW, fill
from tests.conformance.test_plans import TABLES, held_jobs, plans

READ = text(
    "SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0)"
    " FROM pg_stat_xact_user_tables WHERE relname LIKE 'jobs%'"
)
ANEW = text("SELECT sum(custom_plans), sum(generic_plans) FROM pg_prepared_statements")


@pytest.fixture
def control(job_engine: Engine) -> Iterator[Control]:
    """Yield a runner's connections to tables that nobody has analyzed."""
    if job_engine.dialect.driver != "psycopg":
        pytest.skip("psycopg prepares at once if told so")
    schema = job_engine.get_execution_options()["schema_translate_map"][None]
    vacuum = f"ALTER TABLE {schema}.jobs %s (autovacuum_enabled%s)"
    with job_engine.begin() as connection:
        connection.execute(text(vacuum % ("SET", " = off")))
    control = Control(job_engine)
    yield control
    control.close()
    with job_engine.begin() as connection:
        connection.execute(text(vacuum % ("RESET", "")))


@pytest.mark.direct("prepared statements of a session of its own")
@pytest.mark.parametrize("queues", [None, {"default": 10}], ids=["all", "named"])
def test_claim_that_was_planned_on_an_empty_table_serves_a_full_one(
    control: Control, sessions: sessionmaker[Session], queues: dict[str, int] | None
) -> None:
    """A runner plans once, when it starts; by the evening there are many jobs."""

    def claim(session: Session) -> int:
        raw: Any = session.connection().connection.driver_connection
        raw.prepare_threshold = 0
        taking: Any = {"kinds": ["work"], "lease": LEASE, "runner_id": uuid4()}
        return len(claim_jobs(session, TABLES, queues=queues, limit=10, **taking))

    def later(session: Session) -> tuple[int, int]:
        session.execute(text("BEGIN"))  # the counts are those of a transaction
        found, read = claim(session), session.scalar(READ)
        session.execute(text("COMMIT"))
        return found, int(read)

    assert control.run(claim, single=True) == 0
    with sessions.begin() as session:
        fill(session, 5_000)
        fill(session, 5_000, state="scheduled", run_at=NOW + 3650 * DAY)
        fill(session, 5_000, state="completed", finished_at=NOW + 3650 * DAY)
    found, read = control.run(later, single=True)
    custom, generic = control.run(
        lambda session: session.execute(ANEW).one(), single=True
    )

    assert found == 10
    assert read <= 50
    assert (custom, generic > 0) == (0, True)


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

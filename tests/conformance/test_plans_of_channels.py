"""Plans: ordered heads and limited queues read little, however many jobs wait."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqla_jobs import set_queue
from sqla_jobs._core.limits import Features
from sqla_jobs._core.memory import LOOKS, Memory
from sqla_jobs._store.claim import claim_jobs
from sqla_jobs._store.features import read_queues
from sqla_jobs.models import job_tables
from tests.conformance.factories import DAY, LEASE, NOW, Base, Job, fill
from tests.conformance.test_plans import EACH_PLAN, Plan, plans

TABLES = job_tables(Job)
CHANNELS, READY = 600, 40


def spread(session: Session, queue: str, channels: int) -> None:
    """Give the jobs of *queue* channels in turn."""
    session.execute(
        text(f"UPDATE jobs SET channel = 'c' || id % {channels} WHERE queue = :queue"),
        {"queue": queue},
    )


@pytest.fixture(scope="module")
def crowd(job_engine: Engine) -> Iterator[Engine]:
    """Yield an engine on 5,000 plain jobs beside crowds that may not run now."""
    schema = job_engine.get_execution_options()["schema_translate_map"][None]
    with Session(job_engine) as session:
        session.execute(text(f"SET LOCAL search_path TO {schema}"))
        fill(session, 5_000)
        # 12,000 ordered jobs in 600 channels; 560 heads are delayed.
        fill(session, CHANNELS * 20, queue="ordered", ordered=True)
        spread(session, "ordered", CHANNELS)
        session.execute(
            text(
                "UPDATE jobs SET state = 'scheduled' WHERE id IN (SELECT min(id)"
                " FROM jobs WHERE queue = 'ordered' GROUP BY channel"
                " ORDER BY channel LIMIT :n)"
            ),
            {"n": CHANNELS - READY},
        )
        dead = {"state": "discarded", "finished_at": NOW, "ordered": True}
        fill(session, 3_000, queue="ordered", **dead)
        session.execute(
            text("UPDATE jobs SET channel = 'dead' WHERE state = 'discarded'")
        )
        set_queue(session, Job, "ordered", on_discard="block")
        lease = {"state": "running", "leased_until": NOW + DAY}
        for queue in ("full", "full per channel"):
            fill(session, 10_000, queue=queue)
            fill(session, 5, queue=queue, **lease)
        spread(session, "full per channel", 5)
        set_queue(session, Job, "full", max_running=5)
        set_queue(session, Job, "full per channel", max_running_per_channel=1)
        session.commit()
        session.execute(text("ANALYZE"))
        session.commit()
    yield job_engine
    names = ", ".join(f"{schema}.{table.name}" for table in Base.metadata.sorted_tables)
    with job_engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {names}"))


def claiming(
    engine: Engine,
    mode: str,
    *,
    ordered: bool = False,
    limits: bool = False,
    **ask: Any,
) -> list[Plan]:
    """Explain what a runner's claim of 20 sends."""
    with Session(engine) as session:
        queues = read_queues(session, TABLES) if limits else {}

    def work(session: Session) -> None:
        claim_jobs(
            session,
            TABLES,
            runner_id=uuid4(),
            features=Features(ordered, queues),
            memory=Memory(),
            now=NOW,
            **{"kinds": ["work"], "queues": None, "limit": 20, "lease": LEASE, **ask},
        )

    return plans(engine, mode, work)


INDEXES = {"heads_v1_idx", "ordered_v1_idx", "leases_v1_idx", "pkey", "blocked_v1_idx"}
SOURCES: dict[str, Any] = {
    "all": None,
    "named": {"ordered": 20},
    "pair": {("ordered", "c3"): 20},
}


@EACH_PLAN
@pytest.mark.parametrize("source", SOURCES)
def test_heads_are_found_by_their_index(crowd: Engine, mode: str, source: str) -> None:
    """A look reads one entry per channel, and a lease its rows."""
    kinds = ["nothing"] if source == "all" else ["work"]
    found = claiming(crowd, mode, ordered=True, queues=SOURCES[source], kinds=kinds)

    looks = [plan for plan in found if "heads_v1_idx" in plan.indexes()]
    assert looks
    for plan in looks:
        assert "jobs" not in plan.scanned()
        assert plan.indexes() <= INDEXES
        assert plan.most_rows() <= 2 * LOOKS
        assert plan.buffers <= 8 * LOOKS


@EACH_PLAN
def test_blocked_jobs_do_not_slow_plain_claims(crowd: Engine, mode: str) -> None:
    """A plain claim reads as little beside 12,000 ordered jobs as beside none."""
    found = claiming(crowd, mode, ordered=True, queues={"default": 20})

    (plan,) = [plan for plan in found if "claim_v1_idx" in plan.indexes()]
    assert plan.returned == 20
    assert plan.buffers <= 500
    assert sum(other.buffers for other in found if other is not plan) <= 20


@EACH_PLAN
def test_saturated_queues_cost_the_same_however_much_waits(
    crowd: Engine, mode: str
) -> None:
    """20,000 jobs behind limits that are reached: a few pages per claim."""
    total = claiming(crowd, mode, limits=True, queues={"full": 20, "default": 5})
    each = claiming(crowd, mode, limits=True, queues={"full per channel": 20})

    assert sum(plan.returned for plan in total if "pkey" in plan.indexes()) == 5
    for plan in (*total, *each):
        assert "jobs" not in plan.scanned()
    assert all(plan.buffers <= 400 for plan in total)
    # Jobs without a channel are searched for among the first 1,000.
    assert all(plan.buffers <= 1_500 for plan in each)

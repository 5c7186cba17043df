"""Read held jobs afresh, for another try in the same attempt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from sqla_jobs._core.states import JobState
from sqla_jobs._store.claim import load_relationships
from sqla_jobs.models import JobTables


def reread(
    session: Session, tables: JobTables, pairs: Sequence[tuple[int, int]]
) -> dict[int, Any]:
    """
    Return by id the jobs that are still held with their token, as new instances.

    What ``load=`` of their classes names is loaded too. Locks nothing.
    """
    root, tokens = tables.root, dict(pairs)
    rows = session.scalars(select(root).where(root.id.in_(tokens))).all()
    held = [
        job
        for job in rows
        if job.lease_token == tokens[job.id] and job.state == JobState.RUNNING
    ]
    load_relationships(session, held)
    return {job.id: job for job in held}

"""Claim the heads of ordered channels: one job at a time, in send order."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from sqla_jobs._core.limits import Features
from sqla_jobs._store.take import Ask
from sqla_jobs.models import JobTables


def claim_heads(
    session: Session, tables: JobTables, ask: Ask, features: Features
) -> list[Any]:
    """Lease heads of ordered channels in queues without limits; does not commit."""
    return []

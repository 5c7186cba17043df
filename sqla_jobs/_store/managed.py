"""Claim from queues that are fair or limited, which plain claims leave alone."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from sqla_jobs._core.limits import Features
from sqla_jobs._store.fair import FairAsk, claim_fair
from sqla_jobs._store.take import Ask
from sqla_jobs.models import JobTables


def claim_managed(
    session: Session, tables: JobTables, ask: Ask, features: Features
) -> list[Any]:
    """Lease jobs of fair and limited queues; does not commit."""
    fair = [one.name for one in features.managed if one.fair and not one.limited]
    asked = {name: FairAsk(ask.limit) for name in fair if ask.shares(name)}
    return claim_fair(session, tables, ask, asked) if asked else []

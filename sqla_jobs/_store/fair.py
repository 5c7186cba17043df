"""Claim from fair queues: their channels are served in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from sqla_jobs._store.take import Ask
from sqla_jobs.models import JobTables


@dataclass(frozen=True, slots=True)
class FairAsk:
    """
    What a fair claim may take from one queue.

    Args:
        slots: Most jobs of the queue; the slots of the claim's own subscriptions
            bound it as well.
        per_channel: Most jobs of each channel that may run, those of *running*
            counted; None means any number.
        running: How many run now, by channel; a missing channel has none.
    """

    slots: int
    per_channel: int | None = None
    running: Mapping[str, int] = field(default_factory=dict)


def claim_fair(
    session: Session, tables: JobTables, ask: Ask, queues: Mapping[str, FairAsk]
) -> list[Any]:
    """Lease jobs of *queues*, their channels in turn; does not commit."""
    return []

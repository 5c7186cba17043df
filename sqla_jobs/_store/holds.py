"""Two-phase enqueue: a held job has its place and waits to be confirmed."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from sqla_jobs.models import JobTables


def expire_holds(
    session: Session, tables: JobTables, *, now: datetime | None = None
) -> int:
    """Cancel held jobs whose time is over and return how many; does not commit."""
    return 0

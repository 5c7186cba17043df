"""What Alembic gets from this library; importing it is enough."""

from __future__ import annotations

from sqla_jobs.alembic.register import register_soon

register_soon()

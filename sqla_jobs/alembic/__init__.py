"""What Alembic gets from this library; importing it is enough."""

from __future__ import annotations

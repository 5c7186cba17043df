"""Which listener knows which driver."""

from __future__ import annotations

from sqlalchemy import Engine

from sqla_jobs._notify.asyncpg import AsyncpgListener
from sqla_jobs._notify.base import Listener
from sqla_jobs._notify.psycopg import PsycopgListener
from sqla_jobs._notify.psycopg2 import Psycopg2Listener

_LISTENERS: dict[str, Listener] = {
    "asyncpg": AsyncpgListener(),
    "psycopg": PsycopgListener(),
    "psycopg2": Psycopg2Listener(),
}


def listener_for(engine: Engine) -> Listener | None:
    """
    Return what listens on *engine*'s driver; None if no listener knows it.

    A runner without one polls.

    Args:
        engine: A sync engine, or the ``sync_engine`` of an async one.
    """
    return _LISTENERS.get(engine.dialect.driver.removesuffix("_async"))

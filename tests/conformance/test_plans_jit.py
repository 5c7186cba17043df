"""PostgreSQL compiles no statement of a runner: that would take longer than it runs."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import create_engine, make_url, text

from sqla_jobs._dialects.postgresql import PostgreSQLDialect
from sqla_jobs.runner.control import Control, Limits

JIT = text("SELECT current_setting('jit')")


@pytest.mark.direct("what the server sets for a session of ours alone")
@pytest.mark.parametrize("alone", [True, False], ids=["direct", "pooler"])
def test_own_connections_compile_nothing(
    dsn: str, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """The runner's connections have ``jit = off``, the application's are as before."""
    if not alone:
        monkeypatch.setattr(PostgreSQLDialect, "limit_session", lambda *_, **__: False)
    url = make_url(dsn).set(drivername="postgresql+psycopg")
    engine = create_engine(url, connect_args={"options": "-c jit=on"})
    control = Control(engine, Limits(timedelta(seconds=9)))
    try:
        with control.engine.connect() as own, engine.connect() as theirs:
            assert own.scalar(JIT) == "off"
            assert theirs.scalar(JIT) == "on"
    finally:
        control.close()
        engine.dispose()

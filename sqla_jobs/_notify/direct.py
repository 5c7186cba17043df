"""The engine of a listener whose runner reaches the database through a pooler."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import URL, Engine, NullPool, create_engine, make_url
from sqlalchemy.exc import ArgumentError, InvalidRequestError

from sqla_jobs._notify.listeners import listener_for
from sqla_jobs._notify.urls import shown
from sqla_jobs.errors import JobValueError

EXAMPLE = "postgresql+psycopg://user@host:5432/database"


def checked_url(value: Any) -> URL | None:
    """
    Return the URL to listen by; None if there is none.

    Raises:
        JobValueError: If *value* is no URL; does not say its password.
    """
    if value is None or isinstance(value, URL):
        return value
    try:
        return make_url(value)
    except ArgumentError:
        hidden = re.sub(r"://.*@|password=\S+", "...", str(value))
        raise JobValueError(
            f"listen_url={hidden!r} is no database URL; write {EXAMPLE}"
        ) from None


def direct_engine(url: URL | None, *, like: Engine) -> Engine | None:
    """
    Return an engine that connects by *url* and can listen; None without one.

    A URL that names no driver gets that of *like*, the runner's engine. Nothing is
    connected here.

    Raises:
        JobValueError: If its driver cannot listen for such a runner, or is missing.
    """
    if url is None:
        return None
    if url.drivername == like.dialect.name:
        driver = like.dialect.driver.removesuffix("_async")
        url = url.set(drivername=f"{url.drivername}+{driver}")
    try:
        engine = _engine(url, asynchronous=like.dialect.is_async)
    except (ArgumentError, InvalidRequestError, ImportError) as exc:
        text = f"listen_url={shown(url)!r}: {exc}; write {EXAMPLE}"
        raise JobValueError(text) from None
    if engine is None:
        kind = "an AsyncRunner" if like.dialect.is_async else "a Runner"
        raise JobValueError(
            f"listen_url={shown(url)!r}: the driver {url.get_driver_name()!r} cannot"
            f" listen for {kind}; write {EXAMPLE}"
        )
    return engine


def _engine(url: URL, *, asynchronous: bool) -> Engine | None:
    # psycopg is both.
    able = url.get_dialect(_is_async=asynchronous).is_async is asynchronous
    if not able:
        return None
    options: dict[str, Any] = {"poolclass": NullPool, "hide_parameters": True}
    if asynchronous:
        from sqlalchemy.ext.asyncio import create_async_engine

        engine = create_async_engine(url, **options).sync_engine
    else:
        engine = create_engine(url, **options)
    return engine if listener_for(engine) is not None else None

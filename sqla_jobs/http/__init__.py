"""The job system over HTTP; it needs the extra ``http``, and says so without it."""

from __future__ import annotations

try:
    import fastapi  # noqa: F401
except ModuleNotFoundError as exc:  # pragma: no cover - a test removes it
    raise ModuleNotFoundError(
        'sqla_jobs.http needs FastAPI; install it with: pip install "sqla-jobs[http]"',
        name=exc.name,
    ) from exc

from sqla_jobs.http.app import create_app
from sqla_jobs.http.tokens import read_tokens

__all__ = ["create_app", "read_tokens"]

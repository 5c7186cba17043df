"""Database URLs as logs and messages may show them."""

from __future__ import annotations

from sqlalchemy import URL


def shown(url: URL) -> str:
    """Return *url* as text without its password, wherever it has one."""
    secrets = {key: "..." for key in url.query if "password" in key}
    return url.update_query_dict(secrets).render_as_string(hide_password=True)

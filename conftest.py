"""What the tests and the blocks of the documentation share."""

from __future__ import annotations

pytest_plugins = ["pytest_sqla_jobs"]

"""``python -m sqla_jobs`` is the command ``sqla-jobs``."""

from __future__ import annotations

from sqla_jobs.cli import main

if __name__ == "__main__":
    main()

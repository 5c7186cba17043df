"""Run jobs: in threads, or in the tasks of an event loop."""

from __future__ import annotations

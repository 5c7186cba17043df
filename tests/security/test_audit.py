"""The audit of dependencies fails where it should, and never passes in silence."""

from __future__ import annotations

from typing import Any

import pytest

from tests.security.audit import NOT_AUDITED, WITNESS, verdict

VULNERABLE = {"id": "PYSEC-1", "fix_versions": ["3.1"], "aliases": []}
GOOD = {"name": "sqlalchemy", "version": "2.1.9", "vulns": []}
BAD = {"name": "alembic", "version": "1.16.5", "vulns": [VULNERABLE]}
SKIPPED = {"name": "click", "skip_reason": "not found"}
KNOWN = {"name": WITNESS[0], "version": WITNESS[1], "vulns": [VULNERABLE]}
UNKNOWN = {"name": WITNESS[0], "version": WITNESS[1], "vulns": []}
UNHEARD = {"name": WITNESS[0], "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("found", "status", "said"),
    [
        ([GOOD, KNOWN], 0, "1 packages, no known vulnerability"),
        ([GOOD, BAD, KNOWN], 1, "alembic 1.16.5: PYSEC-1 (fixed in 3.1)"),
        ([GOOD, BAD, SKIPPED, KNOWN], 1, "alembic 1.16.5"),
        ([GOOD, SKIPPED, KNOWN], NOT_AUDITED, "not audited: click"),
        ([GOOD, UNKNOWN], NOT_AUDITED, "not audited: the advisory service"),
        ([SKIPPED, UNHEARD], NOT_AUDITED, "Dependency not found"),
        ([GOOD], NOT_AUDITED, "not audited: the advisory service"),
    ],
)
def test_verdict(found: list[dict[str, Any]], status: int, said: str) -> None:
    """A vulnerability fails; an answer that lacks the witness's is none."""
    answer, text = verdict(found)

    assert answer == status
    assert said in text

"""
Asks pip-audit about pinned versions: ``python -m tests.security.audit pins.txt``.

The exit status is 0 if none is known to be vulnerable, 1 if one is, and `NOT_AUDITED`
if the advisory service did not answer: a silent service must not look like a good
answer. So one version with known vulnerabilities is asked about too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WITNESS = "jinja2", "2.4.1"
"""A version that has had known vulnerabilities for many years."""

NOT_AUDITED = 75  # EX_TEMPFAIL
Found = Sequence[Mapping[str, Any]]


def verdict(found: Found) -> tuple[int, str]:
    """Return the exit status and the text for pip-audit's answer, witness included."""
    witness = [one for one in found if _is_witness(one)]
    if not any(one.get("vulns") for one in witness):
        reason = next(
            (one["skip_reason"] for one in witness if "skip_reason" in one), ""
        )
        return NOT_AUDITED, (
            "not audited: the advisory service does not answer, since it knows no"
            f" vulnerability of {'=='.join(WITNESS)}; {reason or 'it gave no reason'}"
        )
    others = [one for one in found if not _is_witness(one)]
    bad = [_described(one) for one in others if one.get("vulns")]
    if bad:
        return 1, "known vulnerabilities:\n" + "\n".join(bad)
    skipped = [one["name"] for one in others if "skip_reason" in one]
    if skipped:
        return NOT_AUDITED, f"not audited: {', '.join(skipped)}"
    return 0, f"{len(others)} packages, no known vulnerability"


def _is_witness(one: Mapping[str, Any]) -> bool:
    return (one["name"], one.get("version", WITNESS[1])) == WITNESS


def _described(one: Mapping[str, Any]) -> str:
    ids = ", ".join(
        f"{each['id']} (fixed in {' or '.join(each['fix_versions']) or 'no version'})"
        for each in one["vulns"]
    )
    return f"  {one['name']} {one['version']}: {ids}"


def ask(pins: Sequence[str]) -> Found | None:
    """Return pip-audit's answer about *pins*; None if it has none."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pins.txt")
        file.write_text("\n".join([*pins, "==".join(WITNESS)]))
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip_audit", "--requirement", str(file)),
                *("--no-deps", "--disable-pip", "--format", "json"),
                *("--progress-spinner", "off", "--timeout", "20"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        print(done.stderr[-2_000:])
        return None
    found: Found = answer["dependencies"]
    return found


def main(file: str) -> int:
    """Print what is known of the pins in a file; return the exit status."""
    # Two versions of one package cannot be asked about at once.
    pins = [
        line
        for line in Path(file).read_text().split()
        if line.partition("==")[0].lower() != WITNESS[0]
    ]
    found = ask(pins)
    status, text = NOT_AUDITED, "not audited: the advisory service does not answer"
    if found is not None:
        status, text = verdict(found)
    print(text)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""The interface is what its OpenAPI document says, whatever is sent to it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from tests.integration.http.kit import Client

EXAMPLES = "5"
# Not every rule can be told by a schema: names are counted in bytes, payloads are
# checked by their classes.
EXCLUDED = "positive_data_acceptance"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("schemathesis") is None, reason="needs schemathesis")
def test_schemathesis_finds_nothing(
    guarded: Client, session: Session, tmp_path: Path
) -> None:
    """No server error, no undocumented status, header or body, no way round a token."""
    program = shutil.which("st", path=str(Path(sys.executable).parent))
    assert program is not None
    done = subprocess.run(
        [
            *(program, "run", f"http://127.0.0.1:{guarded.port}/openapi.json"),
            *("--checks", "all", "--exclude-checks", EXCLUDED, "--seed", "1"),
            *("--max-examples", EXAMPLES, "--workers", "1", "--no-color"),
            *("--generation-database", "none"),
            *("--header", "Authorization: Bearer all-secret"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-20_000:]
    assert "Tested: 18" in done.stdout

"""What the tests of companion libraries share."""

from __future__ import annotations

from importlib.metadata import requires, version

import pytest
import sqlalchemy
from packaging.requirements import Requirement


def require(library: str) -> None:
    """Skip the module if this version of *library* does not allow our SQLAlchemy."""
    for text in requires(library) or ():
        needed = Requirement(text)
        if needed.name.lower() != "sqlalchemy" or needed.marker is not None:
            continue
        if not needed.specifier.contains(sqlalchemy.__version__, prereleases=True):
            pytest.skip(
                f"{library} {version(library)} needs SQLAlchemy {needed.specifier},"
                f" not {sqlalchemy.__version__}",
                allow_module_level=True,
            )

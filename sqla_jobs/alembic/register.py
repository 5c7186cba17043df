"""Registers the comparator when Alembic's autogenerate is imported, not before."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from sqla_jobs.alembic.compare import compare_job_table

AUTOGENERATE = "alembic.autogenerate"


def register_soon() -> None:
    """
    Register the comparator now if Alembic is loaded, else as soon as it is.

    An application's processes never load it. A migration loads it before or after the
    models, so neither import alone could do this.
    """
    module = sys.modules.get(AUTOGENERATE)
    if module is None:
        sys.meta_path.insert(0, _Finder())
    elif hasattr(module, "comparators"):  # else a plugin of Alembic imports us
        _register(module)


def _register(module: Any) -> None:
    options: dict[str, Any] = {}
    with suppress(ImportError):  # new in 1.18, where ours would come first otherwise
        from alembic.util import DispatchPriority

        options["priority"] = DispatchPriority.LAST
    # Alembic documents this registry for third parties; it is active in any env.py.
    module.comparators.dispatch_for("table", **options)(compare_job_table)


class _Finder(MetaPathFinder):
    """Waits for one module."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return how to load it: as ever, and then register."""
        if fullname != AUTOGENERATE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader)
        return spec


class _Registering(Loader):
    """Loads a module as its own loader does, and leaves no trace of itself."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return what the module's own loader makes."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then register."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _register(module)

"""Find the runner that the command line names, in the application's own modules."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from sqla_jobs.cli.errors import (
    RuntimeFailure,
    TargetError,
    user_frames,
    user_traceback,
)
from sqla_jobs.errors import MissingTables, UnsupportedDialect
from sqla_jobs.runner.base import RunnerBase

WANTED = "a Runner, an AsyncRunner, or a function without arguments that returns one"


def load_runner(target: str, folder: Path | None = None) -> RunnerBase:
    """
    Return the runner that *target* names: ``module:runner`` or ``module:factory``.

    Args:
        target: Its module, and its name in it.
        folder: Modules of this folder can be imported; default the current one.

    Raises:
        TargetError: If there is none; also for an error in the application's code,
            with its traceback.
        RuntimeFailure: If its database is not one that is supported.
    """
    module_name, path = split_target(target)
    here = str(folder or Path.cwd())
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)
    try:
        module = _import(module_name, here)
        found = reduce(_attribute, path, module)
        return _made(found, target)
    except click.ClickException:
        raise
    except (UnsupportedDialect, MissingTables) as exc:
        raise RuntimeFailure(str(exc)) from exc
    except Exception as exc:
        raise TargetError(f"{target!r} cannot be loaded", user_traceback(exc)) from exc


def split_target(target: str) -> tuple[str, list[str]]:
    """
    Return the module's name and the attributes' of ``module:name`` or ``module.name``.

    Raises:
        TargetError: If *target* is neither.
    """
    module, colon, path = target.partition(":")
    if not colon:
        module, _, path = target.rpartition(".")
    if os.sep in module or module.endswith(".py") or target.endswith(".py"):
        name = (module if colon else target).removesuffix(".py").replace(os.sep, ".")
        guess = f"{name.strip('.')}:{path if colon else 'runner'}"
        raise TargetError(f"{target!r} names a file; name its module, as in {guess!r}")
    if not module or not path:
        guess = f"{(module or path).strip('.') or 'app'}:runner"
        raise TargetError(f"{target!r} names no runner; name it too, as in {guess!r}")
    attributes = path.split(".")
    if not all(part.isidentifier() for part in [*module.split("."), *attributes]):
        raise TargetError(f"{target!r} is not of the form 'module:runner'")
    return module, attributes


def _import(name: str, folder: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        # The application's own imports can fail in the same way.
        of_target = exc.name and f"{name}.".startswith(f"{exc.name}.")
        if exc.name is None or not of_target or user_frames(exc):
            raise
        raise TargetError(_no_module(exc.name, folder)) from None


def _no_module(name: str, folder: str) -> str:
    parent, _, last = name.rpartition(".")
    if not parent:
        found = [each.name for each in pkgutil.iter_modules([folder])]
        return f"no module {name!r} in {folder} or installed" + _meant(last, found)
    package = sys.modules[parent]
    if not hasattr(package, "__path__"):
        return f"no module {name!r}: {parent!r} is a module, no package"
    found = [each.name for each in pkgutil.iter_modules(package.__path__)]
    return f"no module {last!r} in package {parent!r}" + _meant(last, found)


def _attribute(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        if hasattr(type(owner), name):
            raise  # a property of the application's that failed
    names = [each for each in dir(owner) if not each.startswith("_")]
    runners = [each for each in names if isinstance(getattr(owner, each), RunnerBase)]
    hint = _meant(name, names, runners)
    raise TargetError(f"{_describe(owner)} has no attribute {name!r}{hint}")


def _meant(name: str, names: Iterable[str], likely: Iterable[str] = ()) -> str:
    close = get_close_matches(name, list(names), n=1) or list(likely)
    return f"; did you mean {close[0]!r}?" if close else ""


def _made(found: Any, target: str) -> RunnerBase:
    """Return *found*, or what it returns when it is a factory."""
    if isinstance(found, RunnerBase):
        return found
    if not _is_factory(found):
        raise TargetError(
            f"{target!r} is {_describe(found)}, not {WANTED}{_hint(found)}"
        )
    made = found()
    if isinstance(made, RunnerBase):
        return made
    if inspect.iscoroutine(made):
        made.close()
    raise TargetError(
        f"{target!r} returned {_describe(made)}, not a Runner or an AsyncRunner"
    )


def _is_factory(found: Any) -> bool:
    if not callable(found) or _is_sessionmaker(found):
        return False
    if inspect.isclass(found) and not issubclass(found, RunnerBase):
        return False
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError):
        return False
    return True


def _is_sessionmaker(found: Any) -> bool:
    # By name: sqlalchemy.ext.asyncio may lack what it needs.
    names = {each.__name__ for each in type(found).__mro__}
    return bool(names & {"sessionmaker", "async_sessionmaker"})


def _describe(found: Any) -> str:
    if inspect.ismodule(found):
        return f"module {found.__name__!r}"
    if inspect.isclass(found):
        return f"the class {found.__qualname__}"
    if inspect.isfunction(found):
        return f"the function {found.__name__}{inspect.signature(found)}"
    kind = type(found).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def _hint(found: Any) -> str:
    if _is_sessionmaker(found):
        return "; make one of it, as in: runner = Runner(Session, Job)"
    if inspect.ismodule(found):
        return f"; name the one in it, as in '{found.__name__}:runner'"
    return ""

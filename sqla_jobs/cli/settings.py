"""
Options that may come from elsewhere: the command line wins over the environment, that
over pyproject.toml, and that over what the application's runner was made with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from sqla_jobs.cli.errors import TargetError
from sqla_jobs.cli.pyproject import Section, find_section
from sqla_jobs.errors import JobValueError

PREFIX = "SQLA_JOBS_"
# Of the library's tests and examples, and no options.
OTHER_VARIABLES = {f"{PREFIX}{name}_DSN" for name in ("TEST", "DEMO", "BENCH")}
# Secrets are neither on the command line nor in pyproject.toml.
HTTP_TOKENS = f"{PREFIX}HTTP_TOKENS"
OTHER_VARIABLES.add(HTTP_TOKENS)
Parse = Callable[[Any], Any]
_ORIGINS, _SECTION = "sqla_jobs.origins", "sqla_jobs.section"


class _Configurable:
    """
    What an option and an argument share.

    Args:
        key: The key in pyproject.toml; with SQLA_JOBS_ before it, the variable.
        parse: Makes the value of a text, or of a tuple of texts for a repeated
            option; raises JobValueError.
        from_toml: Makes such a text of a TOML value; raises JobValueError.
    """

    key: str
    variable: str
    parse: Parse
    from_toml: Parse

    def _set_up(self, key: str, parse: Parse, from_toml: Parse) -> None:
        self.key, self.parse, self.from_toml = key, parse, from_toml
        self.variable = PREFIX + key.replace("-", "_").upper()


class Setting(click.Option, _Configurable):
    """An option that the environment and pyproject.toml can give too."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        parse: Parse,
        from_toml: Parse,
        key: str | None = None,
        **kw: Any,
    ) -> None:
        super().__init__(names, default=None, callback=_resolve, **kw)
        self._set_up(key or str(self.name).replace("_", "-"), parse, from_toml)


class Target(click.Argument, _Configurable):
    """The argument that names the runner; ``runner`` elsewhere."""

    def __init__(
        self, names: Sequence[str], *, parse: Parse, from_toml: Parse, **kw: Any
    ) -> None:
        super().__init__(names, required=False, callback=_resolve, **kw)
        self._set_up("runner", parse, from_toml)


def settings(command: click.Command) -> Iterator[Setting | Target]:
    """Yield the settings of a command and of its sub-commands."""
    for param in command.params:
        if isinstance(param, Setting | Target):
            yield param
    if isinstance(command, click.Group):
        for each in command.commands.values():
            yield from settings(each)


def origin(ctx: click.Context, name: str) -> str | None:
    """Return where the value of a parameter came from, unless the command line."""
    found: str | None = _origins(ctx).get(name)
    return found


def section(ctx: click.Context) -> Section | None:
    """
    Return the section that applies to the current folder.

    Raises:
        TargetError: If it has an unknown key, or its file cannot be read.
    """
    if _SECTION not in ctx.meta:
        known = {each.key for each in settings(ctx.find_root().command)}
        ctx.meta[_SECTION] = find_section(Path.cwd(), known)
    found: Section | None = ctx.meta[_SECTION]
    return found


def bad_value(ctx: click.Context, name: str, message: str) -> click.ClickException:
    """Return the error of a parameter whose value does not do, with its origin."""
    where = origin(ctx, name)
    if where is None:
        param = next((each for each in ctx.command.params if each.name == name), None)
        return click.BadParameter(message, ctx, param)
    return TargetError(f"{where}: {message}")


def missing_target(ctx: click.Context) -> click.ClickException:
    """Return the error of a command that knows no runner, with the ways to name it."""
    found = section(ctx)
    key = f"'runner' in [tool.sqla_jobs] of {found.path if found else 'pyproject.toml'}"
    lacks = ", which lacks it" if found else ""
    argument = any(isinstance(each, Target) for each in ctx.command.params)
    name = "TARGET" if argument else "--runner"
    return click.UsageError(
        f"missing {name}, the runner, as in 'app.worker:runner'; or set the variable"
        f" {PREFIX}RUNNER, or {key}{lacks}",
        ctx,
    )


def folder_of(ctx: click.Context, app_dir: Path | None) -> Path:
    """
    Return the folder whose modules can be imported.

    Raises:
        TargetError: If *app_dir* is no folder.
    """
    found = section(ctx)
    if app_dir is not None:
        in_file = found is not None and origin(ctx, "app_dir") == found.where("app-dir")
        base = found.path.parent if found is not None and in_file else Path.cwd()
        folder = base / app_dir
        if not folder.is_dir():
            raise TargetError(f"--app-dir: {folder} is not a folder")
        return folder.resolve()
    if found is not None and origin(ctx, "target") == found.where("runner"):
        return found.path.parent
    return Path.cwd()


def warn_of_unknown_variables(ctx: click.Context) -> None:
    """Say on standard error which variables with our prefix mean nothing."""
    known = {each.variable for each in settings(ctx.find_root().command)}
    ours = {name for name in os.environ if name.startswith(PREFIX)}
    for name in sorted(ours - known - OTHER_VARIABLES):
        close = get_close_matches(name, sorted(known), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        click.echo(f"Warning: the variable {name} is no option{hint}", err=True)


def _origins(ctx: click.Context) -> dict[str, str]:
    found: dict[str, str] = ctx.meta.setdefault(_ORIGINS, {})
    return found


def _resolve(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Return the value of a setting from the first place that gives one."""
    assert isinstance(param, Setting | Target)
    assert param.name is not None
    if ctx.resilient_parsing:
        return value
    found = section(ctx)
    try:
        if value is not None and value != ():
            return param.parse(value)
        if text := os.environ.get(param.variable):
            _origins(ctx)[param.name] = f"the variable {param.variable}"
            return param.parse(_of_text(param, text))
        if found is not None and param.key in found.values:
            _origins(ctx)[param.name] = found.where(param.key)
            return param.parse(param.from_toml(found.values[param.key]))
    except JobValueError as exc:
        raise bad_value(ctx, param.name, str(exc)) from exc
    except click.BadParameter as exc:
        raise bad_value(ctx, param.name, exc.message) from exc
    return None


def _of_text(param: click.Parameter, text: str) -> Any:
    if param.multiple:
        return (text,)
    return param.type.convert(text, param, None)


def as_given(value: Any) -> Any:
    """Return *value*; for settings that need no parsing."""
    return value


def text_of(value: Any) -> str:
    """Return a TOML string."""
    if isinstance(value, str) and value:
        return value
    raise JobValueError(f"must be a string that is not empty, got {value!r}")


def choice_of(*choices: str) -> Parse:
    """Return the reader of a TOML string that is one of *choices*."""

    def read(value: Any) -> str:
        if isinstance(value, str) and value.lower() in choices:
            return value.lower()
        raise JobValueError(f"must be one of {', '.join(choices)}, got {value!r}")

    return read


def switch_of(value: Any) -> bool:
    """Return a TOML boolean."""
    if isinstance(value, bool):
        return value
    raise JobValueError(f"must be true or false, got {value!r}")


def seconds_of(value: Any) -> str:
    """Return a TOML number of seconds as text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise JobValueError(f"must be a number of seconds, got {value!r}")


def number_of(value: Any) -> str:
    """Return a TOML number as text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise JobValueError(f"must be a number, got {value!r}")


def count_of(value: Any) -> str:
    """Return a TOML integer as text."""
    if _is_int(value):
        return str(value)
    raise JobValueError(f"must be an integer, got {value!r}")


def counts_of(value: Any) -> str:
    """Return a TOML integer, or an array of two, as text."""
    if _is_int(value):
        return str(value)
    if isinstance(value, list) and len(value) == 2 and all(map(_is_int, value)):
        return ",".join(map(str, value))
    raise JobValueError(f"must be an integer, or [min, max], got {value!r}")


def names_of(value: Any) -> tuple[str, ...]:
    """Return the names of a TOML string or array."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise JobValueError(f"must be an array of strings, got {value!r}")
    if not values:
        raise JobValueError("names nothing; remove it to take all")
    return tuple(values)


def queues_of(value: Any) -> tuple[str, ...] | Mapping[str, int]:
    """Return the queues of a TOML string, array or table of slots."""
    if not isinstance(value, dict):
        return names_of(value)
    if not value:
        raise JobValueError("names nothing; remove it to take all")
    return value


def _is_int(value: Any) -> bool:
    return type(value) is int

"""Jobs made from data: the kind by its name, the arguments as JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import JSON, Column, inspect
from sqlalchemy.orm import configure_mappers

from sqla_jobs._core.codecs import Codec, type_name
from sqla_jobs._core.options import RAW_KIND, unknown
from sqla_jobs._core.payloads import check_json, codec_for
from sqla_jobs.errors import JobDefinitionError, JobValueError, PayloadError
from sqla_jobs.models import JobTables, job_tables
from sqla_jobs.models.arg import args_of, without_value
from sqla_jobs.models.columns import COLUMN_NAMES
from sqla_jobs.models.construct import construct


def make_job(
    job_class: type[Any], kind: str, payload: Mapping[str, Any], **options: Any
) -> Any:
    """
    Return a new job of *kind*, for ``session.add``.

    A mapped kind is built through its class's constructor: *payload* holds its `Arg`
    values and its own columns, as JSON values. The kind ``"raw"`` has no class; its
    payload may be any object, and whoever claims it knows what to do.

    Args:
        job_class: The root class, or one under it.
        options: Keywords of the constructor; those that are None are left out.

    Raises:
        JobValueError: If *kind* is unknown, or an option's value cannot be used.
        PayloadError: If *payload* lacks an argument, has an unknown one, or a value
            is not of its type; names each.
    """
    tables = job_tables(job_class)
    given = {name: value for name, value in options.items() if value is not None}
    found = tables.root if kind == RAW_KIND else class_of_kind(tables, kind)
    try:
        check_json(dict(payload))
    except PayloadError as error:
        raise without_value(found, error) from None
    if kind == RAW_KIND:
        return _raw_job(tables, {**given, "payload": dict(payload)})
    values, problems = read_arguments(found, payload)
    if problems:
        listed = (f"{found.__name__}.{name} {text}" for name, text in problems.items())
        raise PayloadError("; ".join(listed))
    return found(**values, **given)


def class_of_kind(tables: JobTables, kind: str) -> type[Any]:
    """
    Return the class of a kind or of an alias of one.

    Raises:
        JobValueError: If no class has it; lists those there are.
    """
    found = tables.kinds.get(kind)
    if found is None:
        known = known_kinds(tables)
        text = unknown("kind", kind, known)
        raise JobValueError(f"{text} (known: {', '.join(known)})")
    return found


def known_kinds(tables: JobTables) -> list[str]:
    """Return the kinds that `make_job` takes, without aliases."""
    return [RAW_KIND, *sorted({c.__job_options__.kind for c in tables.kinds.values()})]


def read_arguments(
    job_class: type[Any], payload: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """
    Return the constructor's values that *payload* means, and what is wrong, by name.

    The texts do not repeat values, which may be secret.
    """
    args, columns = args_of(job_class), _columns_of(job_class)
    values, problems = {}, {}
    for name, value in payload.items():
        codec = args[name].codec if name in args else columns.get(name)
        if codec is None:
            problems[name] = unknown("argument", name, [*args, *columns])
            continue
        try:
            values[name] = codec.decode(value, name)
        except PayloadError:
            problems[name] = f"is not {type_name(codec.annotation)} as JSON"
    for name, one in args.items():
        if one.required and name not in payload:
            problems[name] = "is missing"
    return values, problems


def _columns_of(job_class: type[Any]) -> dict[str, Codec]:
    """Return the application's own columns whose values JSON can tell."""
    attributes: Any = inspect(job_class).column_attrs
    found = {}
    for attribute in attributes:
        codec = _codec_of(attribute.columns[0])
        if attribute.key not in COLUMN_NAMES and codec is not None:
            found[attribute.key] = codec
    return found


def _codec_of(column: Column[Any]) -> Codec | None:
    if isinstance(column.type, JSON):
        return codec_for(Any)
    try:
        plain = column.type.python_type
        return codec_for(plain | None if column.nullable else plain)
    except (NotImplementedError, JobDefinitionError):
        return None


def _raw_job(tables: JobTables, values: dict[str, Any]) -> Any:
    # The root class has no constructor, since it is no kind of job.
    configure_mappers()
    job = inspect(tables.root).class_manager.new_instance()
    job.__dict__["kind"] = RAW_KIND
    construct(job, values)
    return job

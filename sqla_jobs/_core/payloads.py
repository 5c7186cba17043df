"""
Typed values to JSON and back, exactly.

A union's members must be told apart in the database: they are stored as different JSON
types (``datetime | int``), or as they are (``str | Literal["auto"]``). The first member
that accepts the value's own type encodes it; the first that accepts the JSON type
decodes it. In ``int | float`` a float of 1e16 or more comes back as an int.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from itertools import combinations
from typing import Any, NoReturn

import typing_extensions as te

from sqla_jobs._core import validated
from sqla_jobs._core.codecs import (
    SIMPLE,
    AnyCodec,
    Codec,
    EnumCodec,
    LiteralCodec,
    type_name,
)
from sqla_jobs._core.containers import (
    DataclassCodec,
    DictCodec,
    LazyCodec,
    ListCodec,
    RecordCodec,
    TupleCodec,
    TypedDictCodec,
    UnionCodec,
)
from sqla_jobs._core.json_values import (
    DEFAULT_LIMIT,
    MASK,
    MAX_DEPTH,
    check_json,
    check_size,
    dump,
    payload_size,
)
from sqla_jobs.errors import JobDefinitionError

__all__ = [
    "DEFAULT_LIMIT",
    "MASK",
    "MAX_DEPTH",
    "Codec",
    "check_json",
    "check_size",
    "codec_for",
    "dump",
    "payload_size",
    "plain_result",
]

Seen = dict[Any, Codec]


def codec_for(annotation: Any) -> Codec:
    """
    Return the codec of *annotation*; the same one for the same annotation.

    Known are str, int, float, bool, None, Any, Literal, unions, list, tuple, dict with
    text keys, TypedDict, dataclasses, enums of str or int, datetime (aware), date,
    time, timedelta, UUID, Decimal, NewType, Annotated and type aliases of these, and
    pydantic models and dataclasses and msgspec structs.

    Raises:
        JobDefinitionError: If the annotation, or a part of it, cannot be stored as
            JSON; names that part.
    """
    try:
        hash(annotation)
    except TypeError:  # e.g. Annotated[int, []]
        return _build(annotation, {})
    return _cached(annotation)


@lru_cache(maxsize=2048)
def _cached(annotation: Any) -> Codec:
    return _build(annotation, {})


def plain_result(value: object) -> object:
    """
    Return the JSON form of a returned model or struct; anything else as it is.

    Raises:
        PayloadError: If it does not come back equal from that form.
    """
    tp = type(value)
    if validated.is_pydantic(tp) or validated.is_struct(tp):
        return codec_for(tp).encode(value, "result")
    return value


def _build(tp: Any, seen: Seen) -> Codec:
    if tp is Any or tp is object:
        return AnyCodec(Any)
    if tp is None:
        tp = type(None)
    if isinstance(tp, typing.NewType):
        return _build(tp.__supertype__, seen)
    if isinstance(tp, type) and not isinstance(tp, types.GenericAlias):
        return _build_class(tp, seen)
    if hasattr(tp, "__value__") and hasattr(tp, "__type_params__"):
        return _build_alias(tp, seen)
    return _build_special(tp, te.get_origin(tp), seen)


def _build_class(tp: type, seen: Seen) -> Codec:
    if tp in SIMPLE:
        return SIMPLE[tp]
    if tp in _GENERIC:
        return _GENERIC[tp](tp, (), seen)
    if (model := _model_codec(tp)) is not None:
        return model
    if te.is_typeddict(tp):
        return _build_record(
            tp, TypedDictCodec, fields_of=_typed_dict_fields, seen=seen
        )
    if dataclasses.is_dataclass(tp):
        return _build_record(tp, DataclassCodec, fields_of=_dataclass_fields, seen=seen)
    return EnumCodec(tp) if issubclass(tp, Enum) else _unsupported(tp)


def _build_special(tp: Any, origin: Any, seen: Seen) -> Codec:
    args = te.get_args(tp)
    if origin is te.Annotated and validated.is_discriminated(args[0], args[1:]):
        codec = validated.pydantic_codec(tp, _shapes)
        nullable = type(None) in te.get_args(args[0])
        return UnionCodec(args[0], [codec], nullable=True) if nullable else codec
    if origin in (te.Annotated, te.Required, te.NotRequired, te.ReadOnly):
        return _build(args[0], seen)
    if origin in (typing.Union, types.UnionType):
        return _build_union(tp, args, seen)
    if origin is te.Literal:
        return LiteralCodec(tp, args)
    if origin in _GENERIC:
        return _GENERIC[origin](tp, args, seen)
    return _model_codec(tp) or _unsupported(tp)


def _model_codec(tp: Any) -> Codec | None:
    if hasattr(tp, "__mapper__"):
        raise JobDefinitionError(
            f"{tp.__name__} is a mapped class, whose objects have a row of their own;"
            " keep the key in a column with a ForeignKey, and add a relationship"
        )
    if validated.is_pydantic(tp):
        return validated.pydantic_codec(tp, _shapes)
    return validated.struct_codec(tp) if validated.is_struct(tp) else None


def _shapes(tp: Any) -> frozenset[str]:
    try:
        return codec_for(tp).shapes
    except JobDefinitionError:  # a type that only the model's library knows
        return Codec.shapes


def _build_alias(tp: Any, seen: Seen) -> Codec:
    if tp in seen:
        return seen[tp]
    seen[tp] = lazy = LazyCodec(tp)
    lazy.target = _build(tp.__value__, seen)
    return lazy.target


def _build_list(tp: Any, args: tuple[Any, ...], seen: Seen) -> Codec:
    return ListCodec(tp, _build(args[0] if args else Any, seen))


def _build_tuple(tp: Any, args: tuple[Any, ...], seen: Seen) -> Codec:
    if tp is tuple or tp is typing.Tuple:  # noqa: UP006  # tuple[()] has no args too
        args = (Any, ...)
    repeat = len(args) == 2 and args[1] is ...
    items = [_build(arg, seen) for arg in (args[:1] if repeat else args)]
    return TupleCodec(tp, items, repeat=repeat)


def _build_dict(tp: Any, args: tuple[Any, ...], seen: Seen) -> Codec:
    key, item = (_build(arg, seen) for arg in (args or (str, Any)))
    if key.shapes != {"string"}:
        raise JobDefinitionError(
            f"{type_name(tp)} cannot be stored as JSON: an object's keys are text; use"
            " str keys, an enum of str, or a list of pairs"
        )
    return DictCodec(tp, key, item)


_GENERIC: dict[Any, Callable[[Any, tuple[Any, ...], Seen], Codec]] = {
    list: _build_list,
    tuple: _build_tuple,
    dict: _build_dict,
}


def _build_union(tp: Any, args: tuple[Any, ...], seen: Seen) -> Codec:
    structs = [arg for arg in args if validated.is_struct(arg)]
    args_of_one = [arg for arg in args if arg not in structs or len(structs) == 1]
    members = [_build(arg, seen) for arg in args_of_one if arg is not type(None)]
    if len(structs) > 1:  # told apart by their tags
        members.append(validated.struct_codec(typing.Union[tuple(structs)]))  # noqa: UP007
    for one, other in combinations(members, 2):
        shared = one.shapes & other.shapes
        if shared and not (one.plain and other.plain):
            raise JobDefinitionError(
                f"{type_name(tp)} is ambiguous: {type_name(one.annotation)} and"
                f" {type_name(other.annotation)} can both be a JSON {min(shared)}; use"
                f" {_apart(one, other)}"
            )
    return UnionCodec(tp, members, nullable=type(None) in args)


def _apart(one: Codec, other: Codec) -> str:
    if {type(one), type(other)} == {validated.PydanticCodec}:
        names = f"{type_name(one.annotation)} | {type_name(other.annotation)}"
        return f'Annotated[{names}, Field(discriminator="...")]'
    return "a dataclass with one optional field for each"


Fields = tuple[dict[str, Any], frozenset[str]]
"""Annotations by field name, and the names that have no default."""


def _build_record(
    tp: type,
    make: Callable[[type], RecordCodec],
    *,
    fields_of: Callable[[type], Fields],
    seen: Seen,
) -> Codec:
    if tp in seen:
        return seen[tp]
    seen[tp] = codec = make(tp)
    annotations, codec.required = fields_of(tp)
    for name, annotation in annotations.items():
        try:
            codec.fields[name] = _build(annotation, seen)
        except JobDefinitionError as error:
            where = f"{tp.__name__}.{name}"
            raise JobDefinitionError(f"{where}: {error}") from error.__cause__
    return codec


def _dataclass_fields(tp: type) -> Fields:
    hints = _hints(tp)
    for name, hint in hints.items():
        if isinstance(hint, dataclasses.InitVar) and not hasattr(tp, name):
            raise JobDefinitionError(
                f"{tp.__name__}.{name} is an InitVar, which is not kept; give it a"
                " default or make it a field"
            )
    fields = [field for field in dataclasses.fields(tp) if field.init]
    required = {
        field.name
        for field in fields
        if field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    }
    return {field.name: hints[field.name] for field in fields}, frozenset(required)


def _typed_dict_fields(tp: Any) -> Fields:
    hints = _hints(tp)
    required = {name for name in hints if _is_required(tp, name, hints[name])}
    return hints, frozenset(required)


def _is_required(tp: Any, name: str, hint: Any) -> bool:
    # With postponed annotations __required_keys__ misses Required and NotRequired.
    origin = te.get_origin(hint)
    while origin in (te.Annotated, te.ReadOnly):
        hint = te.get_args(hint)[0]
        origin = te.get_origin(hint)
    if origin in (te.Required, te.NotRequired):
        return origin is te.Required
    return name in tp.__required_keys__


def _hints(tp: type) -> dict[str, Any]:
    try:
        names = {tp.__name__: tp}
        return te.get_type_hints(tp, localns=names, include_extras=True)
    except NameError as error:
        raise JobDefinitionError(
            f"{tp.__name__}: the annotation name {error.name!r} is not found; define"
            " it in the class's module, outside TYPE_CHECKING"
        ) from error


def _unsupported(tp: Any) -> NoReturn:
    origin = te.get_origin(tp) or tp
    fix = _INSTEAD.get(getattr(origin, "__name__", ""), "")
    if isinstance(tp, str | typing.ForwardRef):
        fix = "the name is not resolved"
    raise JobDefinitionError(
        f"{type_name(tp)} cannot be stored as JSON; "
        + (
            fix
            or "use a dataclass, a TypedDict or a type made of str, int, ... instead"
        )
    )


_INSTEAD = {
    **dict.fromkeys(
        ("bytes", "bytearray", "memoryview"),
        "use the payload_bytes column, or base64 text in a str",
    ),
    **dict.fromkeys(
        ("set", "frozenset", "Sequence", "Iterable", "Collection", "deque"),
        "use list[...]",
    ),
    **dict.fromkeys(("Mapping", "MutableMapping", "defaultdict"), "use dict[str, ...]"),
}

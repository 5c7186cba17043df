"""
Codecs of pydantic models and msgspec structs, which read and write themselves.

Neither library is imported before a type of it is seen. A value is written in its
library's JSON form, by alias, and must come back equal from it: what is lost on the way
is an error where the job is made, not where it runs.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from contextlib import suppress
from typing import Any, NoReturn

import typing_extensions as te

from sqla_jobs._core.codecs import Codec, type_name
from sqla_jobs._core.json_values import (
    Invalid,
    check,
    json_text,
    short,
    step_text,
)
from sqla_jobs._core.text import clean_text, error_text
from sqla_jobs.errors import JobDefinitionError

MOST_PROBLEMS = 3
PROBLEM_BYTES = 200


def is_pydantic(tp: Any) -> bool:
    """Return whether *tp* is a pydantic model or dataclass, perhaps with parameters."""
    cls = te.get_origin(tp) or tp
    if not isinstance(cls, type) or "pydantic" not in sys.modules:
        return False
    # A plain dataclass that inherits from pydantic's has no validator of its own.
    return "__pydantic_validator__" in vars(cls) and (
        hasattr(cls, "model_validate") or dataclasses.is_dataclass(cls)
    )


def is_struct(tp: Any) -> bool:
    """Return whether *tp* is a msgspec Struct, perhaps with parameters."""
    msgspec: Any = sys.modules.get("msgspec")
    cls = te.get_origin(tp) or tp
    return (
        msgspec is not None
        and isinstance(cls, type)
        and issubclass(cls, msgspec.Struct)
    )


def is_discriminated(tp: Any, metadata: tuple[Any, ...]) -> bool:
    """Return whether *tp* is a union of pydantic models that pydantic tells apart."""
    named = any(getattr(one, "discriminator", None) is not None for one in metadata)
    return named and all(is_pydantic(one) for one in _members(tp))


class ModelCodec(Codec):
    """A model, or a union of models that their library tells apart."""

    make_hint = ""

    def __init__(self, tp: Any, *, shapes: frozenset[str]) -> None:
        members = _members(tp)
        super().__init__(typing.Union[tuple(members)])  # noqa: UP007
        self.shapes, self.tp = shapes, tp
        self._classes = frozenset(te.get_origin(one) or one for one in members)
        self._ready = False
        with suppress(_NotYet):  # a class that follows later in the module
            self._prepare()

    def write(self, value: Any, depth: int) -> Any:
        """Return the JSON form of *value* if it comes back equal."""
        if type(value) not in self._classes:
            self.mismatch(value)
        self._prepare()
        encoded = self._guarded(self.dump, value, "cannot be written as JSON")
        check(encoded, depth)
        back = self._guarded(self.load, encoded, "does not read what it writes")
        if not self.is_same(value, back):
            self._refuse_lost(value, back)
        return encoded

    def read(self, value: Any, depth: int) -> Any:
        """Return the model made from its JSON form."""
        if self.shapes == {"object"} and type(value) is not dict:
            self.mismatch(value)
        self._prepare()
        return self._guarded(self.load, value, "refuses what is stored")

    def mismatch(self, value: Any) -> NoReturn:
        """Refuse a value of another type; say how to make a model of a dict."""
        try:
            super().mismatch(value)
        except Invalid as bad:
            if isinstance(value, dict):
                name = type_name(self.annotation)
                bad.problem += f"; make it with {self.make_hint.format(name)}"
            raise

    def build(self) -> None:
        """Build what loads and dumps; raises `_NotYet` if a class is not defined."""
        raise NotImplementedError

    def dump(self, value: Any) -> Any:
        """Return the library's JSON form."""
        raise NotImplementedError

    def load(self, value: Any) -> Any:
        """Return the model of a JSON form."""
        raise NotImplementedError

    def is_same(self, value: Any, back: Any) -> bool:
        """Return whether *back* is what was written."""
        return _equal(value, back)

    def _prepare(self) -> None:
        if self._ready:
            return
        try:
            self.build()
        except (_NotYet, JobDefinitionError):
            raise
        except Exception as error:
            raise JobDefinitionError(
                f"{type_name(self.annotation)} cannot be stored as JSON:"
                f" {_one_line(error_text(error))}"
            ) from error
        self._ready = True

    def _guarded(self, step: Any, value: Any, problem: str) -> Any:
        try:
            return step(value)
        except Exception as error:
            name = type_name(self.annotation)
            raise Invalid(f"{name} {problem}: {_problems(error)}") from error

    def _refuse_lost(self, value: Any, back: Any) -> NoReturn:
        name = type_name(type(value))
        for field in _field_names(value):
            one, other = getattr(value, field, None), getattr(back, field, None)
            if not _equal(one, other):
                raise Invalid(
                    f"{name}.{field} = {short(one)} comes back from JSON as another"
                    f" {short(other)}; give it a type or a serializer that keeps it"
                )
        raise Invalid(
            f"{short(value)} comes back from JSON as another {short(back)}; give {name}"
            " fields that JSON keeps, and an __eq__"
        )


class PydanticCodec(ModelCodec):
    """A pydantic model or dataclass, or a union of them with a discriminator."""

    make_hint = "{0}.model_validate(...)"

    def build(self) -> None:
        """Make the TypeAdapter."""
        import pydantic

        for cls in self._classes:
            if not getattr(cls, "__pydantic_complete__", True):
                _complete(cls)
        self.adapter: Any = pydantic.TypeAdapter(self.tp)
        # JSON mode, since a strict model takes no text for a date otherwise.
        self.load_text = self.adapter.validate_json

    def dump(self, value: Any) -> Any:
        """Return the JSON form: by alias, without computed fields."""
        return self.adapter.dump_python(
            value, mode="json", by_alias=True, round_trip=True, warnings="error"
        )

    def load(self, value: Any) -> Any:
        """Validate as the model itself says."""
        return self.load_text(json_text(value))

    def is_same(self, value: Any, back: Any) -> bool:
        """Compare; what the model excludes, and private attributes, may differ."""
        if type(value) is not type(back):
            return False
        return _equal(value, back) or _equal(self._public(value), self._public(back))

    def _public(self, value: Any) -> Any:
        return self.adapter.dump_python(
            value, round_trip=True, warnings=False, serialize_as_any=True
        )


class StructCodec(ModelCodec):
    """A msgspec Struct, or a union of tagged ones."""

    make_hint = "msgspec.convert(..., {0})"

    def build(self) -> None:
        """Let msgspec look at all of the type."""
        import msgspec

        try:
            msgspec.json.Decoder(self.tp)
        except NameError as error:
            raise _NotYet(self.annotation, error) from error
        self._to_builtins, self._convert = msgspec.to_builtins, msgspec.convert

    def dump(self, value: Any) -> Any:
        """Return the JSON form, under the names that ``rename`` gives."""
        return self._to_builtins(value, str_keys=True)

    def load(self, value: Any) -> Any:
        """Convert strictly, as from JSON."""
        return self._convert(value, self.tp, str_keys=True)

    def is_same(self, value: Any, back: Any) -> bool:
        """Compare; structs with ``eq=False`` by what they store."""
        if type(value) is not type(back):
            return False
        if type(value).__struct_config__.eq:
            return _equal(value, back)
        return _equal(self.dump(value), self.dump(back))


def pydantic_codec(tp: Any, root_shapes: Any) -> Codec:
    """Return the codec of a pydantic type; *root_shapes* tells a RootModel's."""
    return PydanticCodec(
        tp,
        shapes=frozenset[str]().union(
            *(_pydantic_shapes(one, root_shapes) for one in _members(tp))
        ),
    )


def struct_codec(tp: Any) -> Codec:
    """Return the codec of a Struct or of a union of them."""
    classes = [te.get_origin(one) or one for one in _members(tp)]
    shapes = {
        "array" if cls.__struct_config__.array_like else "object" for cls in classes
    }
    return StructCodec(tp, shapes=frozenset(shapes))


class _NotYet(JobDefinitionError):
    """A class that the type refers to is not defined, or not yet."""

    def __init__(self, annotation: Any, error: Exception) -> None:
        super().__init__(
            f"{type_name(annotation)} is not fully defined: {_one_line(str(error))}"
        )


def _complete(cls: Any) -> None:
    import pydantic
    from pydantic.dataclasses import rebuild_dataclass

    rebuild: Any = getattr(cls, "model_rebuild", None) or (
        lambda: rebuild_dataclass(cls)
    )
    try:
        rebuild()
    except (NameError, pydantic.PydanticUserError) as error:
        raise _NotYet(cls, error) from error


def _members(tp: Any) -> list[Any]:
    """Return the types of a union, of unions inside it too; None is none of them."""
    origin = te.get_origin(tp)
    if origin is te.Annotated:
        return _members(te.get_args(tp)[0])
    if origin in (typing.Union, types.UnionType):
        return [one for arg in te.get_args(tp) for one in _members(arg)]
    return [] if tp is type(None) else [tp]


def _pydantic_shapes(tp: Any, root_shapes: Any) -> frozenset[str]:
    cls = te.get_origin(tp) or tp
    decorators = getattr(cls, "__pydantic_decorators__", None)
    if getattr(decorators, "model_serializers", None):
        return Codec.shapes
    if getattr(cls, "__pydantic_root_model__", False):
        return frozenset(root_shapes(cls.model_fields["root"].annotation))
    return frozenset({"object"})


def _field_names(value: Any) -> list[str]:
    cls = type(value)
    for attribute in ("model_fields", "__pydantic_fields__", "__struct_fields__"):
        if found := getattr(cls, attribute, None):
            return list(found)
    return []


def _problems(error: Exception) -> str:
    """Return what the library found, at most `MOST_PROBLEMS`; not the whole input."""
    errors: Any = getattr(error, "errors", None)
    if not callable(errors):
        return _one_line(error_text(error))
    found: Any = errors(include_url=False, include_context=False, include_input=False)
    shown = [_problem(one) for one in found[:MOST_PROBLEMS]]
    if len(found) > MOST_PROBLEMS:
        shown.append(f"and {len(found) - MOST_PROBLEMS} more")
    return "; ".join(shown)


def _problem(one: dict[str, Any]) -> str:
    where = "".join(map(step_text, one["loc"])).removeprefix(".")
    text = f"{where}: {one['msg']}" if where else str(one["msg"])
    return _one_line(text)


def _one_line(text: str) -> str:
    text = text.partition("\nFor further information")[0]
    return clean_text(" ".join(text.split()), PROBLEM_BYTES)


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001  # a foreign __eq__, such as an array's
        return False

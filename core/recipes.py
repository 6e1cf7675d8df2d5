"""Hyper-parameters as JSON and back: a recipe is a dataclass, and only its init fields are the recipe."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from data.errors import BadInput

T = TypeVar("T")


def as_json(value: Any) -> Any:
    """Init fields of a dataclass, recursively, as dicts, lists, numbers and strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def changed(record: T, **fields: Any) -> T:
    """A copy of a dataclass with some fields changed, whatever its type is called by whoever has it."""
    assert dataclasses.is_dataclass(record)
    copy: T = dataclasses.replace(record, **fields)  # type: ignore[type-var]
    return copy


def from_json(kind: type[T], value: Mapping[str, Any]) -> T:
    """The dataclass that `as_json` wrote. Unknown keys are an error that names the known ones."""
    hints = {f.name: f.type for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise BadInput(f"{kind.__name__} has no setting {', '.join(unknown)}. It has: {', '.join(sorted(hints))}.")
    return kind(**{name: _read(hints[name], item) for name, item in value.items()})


def _read(hint: Any, value: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [h for h in typing.get_args(hint) if h is not type(None)]
        return None if value is None else _read(inner[0], value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value)
    if origin is tuple:
        arguments = typing.get_args(hint)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_read(arguments[0], item) for item in value)
        return tuple(_read(argument, item) for argument, item in zip(arguments, value, strict=True))
    return Path(value) if hint is Path else value


def has_setting(recipe: Any, place: str) -> bool:
    """Whether a recipe has a setting at a dotted place, such as gaussian.ridge."""
    name, _, rest = place.partition(".")
    if not dataclasses.is_dataclass(recipe) or name not in {f.name for f in dataclasses.fields(recipe) if f.init}:
        return False
    return not rest or has_setting(getattr(recipe, name), rest)


def with_settings(recipe: T, values: Mapping[str, Any]) -> T:
    """A copy of a recipe with the settings at some dotted places changed, all of one part at once."""
    own = {place: value for place, value in values.items() if "." not in place}
    parts: dict[str, dict[str, Any]] = {}
    for place, value in values.items():
        name, dot, rest = place.partition(".")
        if dot:
            parts.setdefault(name, {})[rest] = value
    return changed(recipe, **own, **{name: with_settings(getattr(recipe, name), part) for name, part in parts.items()})

"""What the fields of a record of settings are called, hold and mean, from its class: for flags and forms."""

import ast
import builtins
import functools
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True, eq=False)
class Setting:
    """One setting of a recipe, however deep it lies."""

    place: str
    """Dotted, as in gaussian.ridge."""
    kind: Any
    """Its type."""
    value: Any
    """What the recipe has."""
    text: str
    """What it means."""

    def allows(self, value: Any) -> bool:
        """Whether a value is one of its choices; true where there are none to choose from."""
        return get_origin(self.kind) is not Literal or value in get_args(self.kind)


def settings_of(recipe: Any, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a recipe, part by part; mappings (recipes of other detectors) are left out."""
    owner: Any = type(recipe)
    texts, kinds = field_texts(owner), field_types(owner)
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if not field.init or isinstance(value, Mapping):
            continue
        if is_dataclass(value):
            yield from settings_of(value, f"{prefix}{field.name}.")
        else:
            yield Setting(prefix + field.name, kinds[field.name], value, texts[field.name])


@functools.cache
def field_texts(owner: type) -> dict[str, str]:
    """The documentation that stands below each field in the source of a dataclass and of those it inherits from."""
    found: dict[str, str] = {}
    for cls in reversed(owner.__mro__):
        if "__dataclass_fields__" in vars(cls):
            found |= _own_texts(cls)
    return {field.name: found.get(field.name, "") for field in fields(owner)}


def field_types(owner: type) -> dict[str, Any]:
    """The type of each field, resolved."""
    hints = get_type_hints(owner, localns=_lazily(owner))
    return {field.name: hints[field.name] for field in fields(owner)}


def _lazily(owner: type) -> dict[str, Any]:
    """Names that a module knows for its checker alone, such as torch's, stand for anything."""
    module = inspect.getmodule(owner)
    known = vars(module) if module is not None else {}
    names = {node.id for note in _notes(owner) for node in ast.walk(ast.parse(note)) if isinstance(node, ast.Name)}
    return {name: Any for name in names if name not in known and not hasattr(builtins, name)}


def _notes(owner: type) -> list[str]:
    return [note for cls in owner.__mro__ for note in inspect.get_annotations(cls).values()
            if isinstance(note, str)]  # fmt: skip


def _own_texts(cls: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for declared, below in zip(body.body, body.body[1:], strict=False):
        named = isinstance(declared, ast.AnnAssign) and isinstance(declared.target, ast.Name)
        told = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if named and told:
            texts[declared.target.id] = inspect.cleandoc(str(below.value.value))  # type: ignore[attr-defined]
    return texts

"""What the fields of a record of settings are called, hold and mean, from its class: for flags and forms."""

import ast
import functools
import inspect
import textwrap
from dataclasses import fields
from typing import Any, get_type_hints


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
    hints = get_type_hints(owner)
    return {field.name: hints[field.name] for field in fields(owner)}


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

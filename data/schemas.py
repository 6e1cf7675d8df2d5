"""The form in which something was written, counted up when it changes: what is newer than this program is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import BadInput, IntegrityError


def check_schema(path: Path, value: Any, known: int) -> None:
    """BadInput when a JSON object says a newer schema than this program knows; one that says none has the first.

    IntegrityError when it is no object, or its schema is no whole number above 0.
    """
    given = value.get("schema", 1) if isinstance(value, Mapping) else None
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise IntegrityError(
            f"{path} is damaged: its schema is {given!r}, no number from 1. Restore it or make it anew."
        )
    if given > known:
        raise BadInput(
            f"{path} needs a newer Dicescope: it has schema {given}, this one reads up to {known}. "
            "Update Dicescope, or make it anew with this one."
        )

"""A split that somebody wrote: JSON with the lists train, calibration, validation, test, judged before any work."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from data.cohort import ROLES, Cohort, Split
from data.errors import BadInput

MOST_BYTES = 256_000_000
"""A list of ids is never longer; a scan that was given by mistake is not read."""
_FORM = f'Give JSON with lists of subject ids: {{"train": ["sub-01", ...], ...}}. Lists: {", ".join(ROLES)}.'


def read_split(path: Path, cohort: Cohort) -> Split:
    """The split in a JSON file; a list that is not there is empty. BadInput names the file and all that is wrong.

    Refused: what is no file of JSON with such lists, an unknown list, ids that are no text, twice in the file, or that
    the cohort lacks.
    """
    lists = _object(path)
    unknown = [name for name in lists if name not in ROLES]
    if unknown:
        raise BadInput(f"{path} has {_some(unknown)}, which is no list of a split. {_FORM}")
    for role, ids in lists.items():
        if not isinstance(ids, list):
            raise BadInput(f"{path}: {role!r} is {_kind(ids)}, no list. {_FORM}")
        odd = [one for one in ids if not isinstance(one, str)]
        if odd:
            raise BadInput(
                f"{path}: {role!r} holds {_kind(odd[0])} ({_short(odd[0])}) among its ids. Write every id as text, in "
                f"quotes, as the cohort has it. {_FORM}"
            )
        _refuse_repeated(path, role, ids)
    there = {subject.subject_id for subject in cohort.subjects}
    missing = sorted({i for ids in lists.values() for i in ids} - there)
    if missing:
        raise BadInput(
            f"{path} names {len(missing)} subject(s) that the cohort lacks: {_some(missing)}. "
            f"The cohort {cohort.name!r} has {len(there)}, such as {_some(sorted(there)[:3])}."
        )
    try:
        return Split(**{role: tuple(lists.get(role, ())) for role in ROLES})
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error


def _object(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise BadInput(f"{path} is a folder, no split file. {_FORM}")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"has {path.stat().st_size} bytes, more than any split")
        found = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_without_twins)
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"The split file {path} {_cause(error)}. {_FORM}") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path} holds {_kind(found)}, no object with lists. {_FORM}")
    return found


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise ValueError(f"has {_some(twins)} more than once")
    return dict(pairs)


def _cause(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 (byte {error.start})"
    if isinstance(error, RecursionError):
        return "is nested too deeply for a split"
    return str(error) if not isinstance(error, json.JSONDecodeError) else f"is not valid JSON: {error}"


def _refuse_repeated(path: Path, role: str, ids: list[str]) -> None:
    seen: set[str] = set()
    twice = sorted({one for one in ids if one in seen or seen.add(one)})  # type: ignore[func-returns-value]
    if twice:
        raise BadInput(f"{path}: {role!r} has {_some(twice)} more than once. Name every subject once.")


def _some(names: Collection[str]) -> str:
    shown = ", ".join(_short(name) for name in list(names)[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return {int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}[type(value)]

"""What a run's record must look like: every field that is read has its type, however deep, or the record is damaged."""

import datetime
import json
from collections.abc import Mapping
from typing import Any

TOP = {
    "schema": int,
    "run_id": str,
    "kind": str,
    "name": str,
    "status": str,
    "sequence": int,
    "stages": dict,
}
"""Fields that no record lacks."""
FURTHER = {
    "created": str,
    "error": (str, type(None)),
    "recipe": dict,
    "settings": dict,
    "cohort": dict,
    "split": dict,
    "preprocessing": dict,
    "seed": int,
    "versions": dict,
    "git_commit": (str, type(None)),
    "parents": dict,
}
"""Fields that every record of this program has too; the rest of the program reads them without asking."""
COHORT = {
    "name": (str, type(None)),
    "path": (str, type(None)),
    "layout": str,
    "citation": (str, type(None)),
    "n_total": int,
    "fingerprint": str,
    "subjects": list,
    "set_aside": list,
    "notes": list,
}
SUBJECT = {"subject_id": str, "key": str, "role": str, "healthy": bool}
SUBJECT_TOO = {
    "health": (str, type(None)),
    "site": (str, type(None)),
    "sex": (str, type(None)),
    "age": (int, float, type(None)),
}
"""What a subject may have besides."""
SET_ASIDE = {"subject_id": str, "code": str}


def wrong_fields(record: Any, but_scans: bool = False) -> list[str]:
    """Where a record has not the form that it must have, as paths into it; nothing when it has.

    `but_scans`: its cohort and split are known to be right.
    """
    if not isinstance(record, dict):
        return ["the whole record"]
    wrong = [key for key, kind in (TOP | FURTHER).items() if not _is(record.get(key, _MISSING), kind)]
    if not wrong:
        wrong = [
            *([] if but_scans else _wrong_scans(record["cohort"], record["split"])),
            *(f"stages.{name}" for name, stage in record["stages"].items() if not isinstance(stage, dict)),
            *(f"parents.{name}" for name, parent in record["parents"].items() if not isinstance(parent, str)),
            *_wrong_kind(record["recipe"]),
            *([] if _is_moment(record["created"]) else ["created"]),
        ]
    return wrong


def _wrong_scans(cohort: Mapping[str, Any], split: Mapping[str, Any]) -> list[str]:
    return [*_wrong_cohort(cohort), *(f"split.{role}" for role, ids in split.items() if not _texts(ids))]


def _wrong_cohort(cohort: Mapping[str, Any]) -> list[str]:
    wrong = [f"cohort.{key}" for key, kind in COHORT.items() if key in cohort and not _is(cohort[key], kind)]
    if wrong or not cohort:
        return wrong
    for number, subject in enumerate(cohort.get("subjects", [])):
        if _is_subject(subject):
            wrong += [
                f"cohort.subjects[{number}].{key}"
                for key, kind in SUBJECT_TOO.items()
                if key in subject and not _is(subject[key], kind)
            ]
            continue
        if not isinstance(subject, dict):
            wrong.append(f"cohort.subjects[{number}]")
        else:
            lacking = [key for key, kind in SUBJECT.items() if not isinstance(subject.get(key), kind)]
            wrong += [f"cohort.subjects[{number}].{key}" for key in lacking]
    wrong += [
        f"cohort.set_aside[{n}]"
        for n, one in enumerate(cohort.get("set_aside", []))
        if not isinstance(one, dict) or any(not isinstance(one.get(key), kind) for key, kind in SET_ASIDE.items())
    ]
    return wrong + ([] if _texts(cohort.get("notes", [])) else ["cohort.notes"])


def _is_subject(value: Any) -> bool:
    """Whether a subject is whole: asked for every subject of every run that is listed."""
    try:
        types = type(value["subject_id"]), type(value["key"]), type(value["role"]), type(value["healthy"])
    except (KeyError, TypeError, IndexError):
        return False
    return types == _SUBJECT_TYPES


_SUBJECT_TYPES = tuple(SUBJECT.values())


def _is_moment(text: str) -> bool:
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _wrong_kind(recipe: Mapping[str, Any]) -> list[str]:
    return [] if isinstance(recipe.get("kind", ""), str) else ["recipe.kind"]


_MISSING = object()


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def wrong_leaves(record: Mapping[str, Any]) -> list[str]:
    """Top fields with what can be neither printed nor written again: NaN, infinity, half of a surrogate pair."""
    return [] if _is_plain(record) else [key for key, value in record.items() if not _is_plain(value)]


def _is_plain(value: Any) -> bool:
    try:
        text = json.dumps(value, allow_nan=False)
        if "\\ud" in text:  # a surrogate, alone or of a pair
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return True

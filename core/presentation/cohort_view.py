"""A cohort for a screen: who is in which split, what is known of each scan, what was set aside, what leaks."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.presentation.training_view import in_words
from core.runs.run_record import Run
from core.study.run_scans import prepared_of
from data.cohort import ROLES
from data.errors import IntegrityError
from data.health import is_unknown
from data.prepared_cache import load_voxel_hash
from data.reading import find_duplicates


@dataclass(frozen=True)
class Leakage:
    """What comparing the voxel hashes of a run's scans found."""

    compared: int
    missing: tuple[str, ...]
    """Subjects whose prepared scan is no longer in the cache, so they were not compared."""
    pairs: tuple[tuple[str, str, str, str], ...]
    """(id, role, id, role) of scans with the same voxels."""


def split_table(run: Run) -> list[dict[str, Any]]:
    """Healthy and ill subjects of each split, those of unknown health where there are any, and their sum."""
    rows: list[dict[str, Any]] = [{"split": role, **_counts(run, role)} for role in ROLES]
    rows.append({"split": "all", **{key: sum(row[key] for row in rows) for key in rows[0] if key != "split"}})
    if not rows[-1]["unknown"]:
        return [{key: value for key, value in row.items() if key != "unknown"} for row in rows]
    return rows


def on_whose_word(run: Run) -> str:
    """Who says that the subjects of train and calibration are healthy, in words."""
    words = [str(s.get("health") or "") for s in subjects_in(run, ("train", "calibration"))]
    counts = {word: words.count(word) for word in sorted(set(words), key=lambda word: -words.count(word)) if word}
    if not counts:
        return "the table's or the layout's, as read when the run was made"
    told = [f"{word} ({n})" for word, n in counts.items()]
    return "; ".join(told[:4]) + (f"; and {len(told) - 4} more" if len(told) > 4 else "")


def subjects_in(run: Run, roles: Sequence[str]) -> list[dict[str, Any]]:
    """Records of the subjects of some splits, in the order of the splits."""
    return [s for role in roles for s in run.record["cohort"]["subjects"] if s["role"] == role]


def subject_row(run: Run, subject: Mapping[str, Any]) -> dict[str, Any]:
    """What the table and the prepared scan say of a subject; volumes are those of the scan's own grid, in mL."""
    prepared = prepared_of(run, subject["subject_id"])
    return {
        "subject": subject["subject_id"],
        "split": subject["role"],
        "healthy": None if is_unknown(subject) else bool(subject["healthy"]),
        "on whose word": subject.get("health") or "",
        "site": subject.get("site"),
        "age": subject.get("age"),
        "sex": subject.get("sex"),
        "brain mL": prepared.native_brain.volume_ml,
        "lesion mL": None if prepared.native_lesion is None else prepared.native_lesion.volume_ml,
        "scan": _scan_text(prepared.native_grid.shape, prepared.native_grid.spacing_mm),
        "notes": " ".join(prepared.notes),
    }


def set_aside_rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Subjects that could not be used, with the message taken apart: code, file, cause, remedy (its last sentence)."""
    rows = []
    for one in records:
        text = str(one["reason"]).removeprefix(f"{one['code']}: ").removeprefix(f"{one['path']}: ")
        sentences = re.split(r"(?<=[.;!?]) +(?=[A-Z])", text.strip())
        cause, remedy = (" ".join(sentences[:-1]), sentences[-1]) if len(sentences) > 1 else (text, "")
        rows.append(
            {
                "subject": str(one["subject_id"]),
                "code": str(one["code"]),
                "what is wrong": cause,
                "what to do": remedy,
                "file": str(one["path"]),
            }
        )
    return rows


def leakage(run: Run, cache: Path) -> Leakage:
    """Compare the voxel hashes of all subjects of a run, as their prepared scans recorded them."""
    roles, hashes, missing = {}, {}, []
    for subject in run.record["cohort"]["subjects"]:
        subject_id = str(subject["subject_id"])
        roles[subject_id] = str(subject["role"])
        try:
            hashes[subject_id] = load_voxel_hash(cache, str(subject["key"]), subject_id)
        except (IntegrityError, KeyError):
            missing.append(subject_id)
    pairs = tuple((a, roles[a], b, roles[b]) for a, b in find_duplicates(hashes))
    return Leakage(len(hashes), tuple(missing), pairs)


def check_result(log: str) -> dict[str, Any] | None:
    """What `check --json` printed, found among the lines of progress; None when it has not come to that."""
    for match in re.finditer(r"^\{", log, flags=re.MULTILINE):
        try:
            found, _ = json.JSONDecoder().raw_decode(log, match.start())
        except ValueError:
            continue
        if isinstance(found, dict) and {"facts", "set_aside", "duplicates"} <= found.keys():
            return found
    return None


def facts_rows(facts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Readable subjects of a check as table rows."""
    return [
        {
            "subject": one["subject_id"],
            "split": one["role"],
            "healthy": one["healthy"],
            "on whose word": one.get("health_from") or "",
            "brain mL": one["brain_ml"],
            "lesion mL": one["lesion_ml"],
            "lesions": one["n_lesions"],
            "scan": _scan_text(one["shape"], one["spacing_mm"]),
            "axes": one["orientation"],
            "notes": " ".join(one["notes"]),
        }
        for one in facts
    ]


def preprocessing_rows(run: Run) -> list[tuple[str, str]]:
    """How the scans of a run were prepared, as (setting, value)."""
    return [(key.replace("_", " "), in_words(value)) for key, value in run.record["preprocessing"].items()]


def _scan_text(shape: Sequence[int], spacing_mm: Sequence[float]) -> str:
    return f"{' × '.join(map(str, shape))} at {' × '.join(f'{s:.3g}' for s in spacing_mm)} mm"


def _counts(run: Run, role: str) -> dict[str, int]:
    there = [s for s in run.record["cohort"]["subjects"] if s["role"] == role]
    unknown = sum(is_unknown(s) for s in there)
    healthy = sum(bool(s["healthy"]) for s in there)
    return {
        "healthy": healthy,
        "with lesions": len(there) - healthy - unknown,
        "unknown": unknown,
        "subjects": len(there),
    }

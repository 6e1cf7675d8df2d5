"""Prepared subjects on the disk, under the hash of all that they were made from."""

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from data.cohort import Subject
from data.errors import IntegrityError
from data.files import (
    committed_directory,
    is_committed,
    load_committed_array,
    read_committed_json,
    verify_directory,
)
from data.prepared import Prepared, Preprocessing
from data.schemas import check_schema
from data.volume import Grid, Mask, Volume, frozen

SCHEMA = 1
"""Counts up whenever the same files and settings would give other voxels."""
_KEY = re.compile(r"[0-9a-f]{32}")


def load_prepared(cache: Path, key: str, subject_id: str | None = None) -> Prepared:
    """A prepared subject from the cache; each file is hashed once per process. Arrays are read-only.

    IntegrityError names what is damaged or missing, and refuses a scan that is not that of `subject_id`.
    """
    directory = cache / key
    if not _KEY.fullmatch(key) or not directory.is_dir():
        raise IntegrityError(
            f"Prepared scan {key!r} is not in {cache}: runs were copied without their cache, or it was emptied. "
            "Prepare it again, with the flags of the run's fit: python cli.py prepare COHORT"
        )
    record = read_committed_json(directory, "record.json")
    check_schema(directory / "record.json", record, SCHEMA)
    made_from = record.get("made_from")
    strange = subject_id is not None and record["subject_id"] != subject_id
    if strange or (made_from is not None and not _belongs(made_from, record["subject_id"], key)):
        raise IntegrityError(
            f"{directory} holds the prepared scan of {record['subject_id']!r}, not what {subject_id!r} was prepared "
            "to. Delete it and prepare the cohort again: python cli.py prepare COHORT"
        )
    grid, native = _grid(record["grid"]), _grid(record["native_grid"])
    volume = Volume(
        load_committed_array(directory, "voxels.npy"),
        grid,
        np.array(load_committed_array(directory, "brain.npy")),
        record["subject_id"],
        tuple(record["contrasts"]),
    )
    return Prepared(
        volume=volume,
        lesion=_load_mask(directory, "lesion.npy", grid) if record["lesion"] else None,
        native_grid=native,
        native_brain=_load_mask(directory, "native_brain.npy", native),
        native_lesion=_load_mask(directory, "native_lesion.npy", native) if record["lesion"] else None,
        world_to_native=frozen(np.array(record["world_to_native"], dtype=np.float64)),
        notes=tuple(record["notes"]),
        key=key,
        voxel_sha256=record["voxel_sha256"],
        axes=record.get("axes", "RAS"),
        made_from=MappingProxyType(made_from or {}),
    )


def load_voxel_hash(cache: Path, key: str, subject_id: str) -> str:
    """Hash of a prepared subject's voxels, without reading them. IntegrityError as in `load_prepared`."""
    if not _KEY.fullmatch(key):
        raise IntegrityError(f"{key!r} is no prepared scan.")
    record = read_committed_json(cache / key, "record.json")
    if record["subject_id"] != subject_id:
        raise IntegrityError(
            f"{cache / key} holds the scan of {record['subject_id']!r}, not of {subject_id!r}. Delete it and repeat "
            "`prepare`; it is computed anew."
        )
    return str(record["voxel_sha256"])


def files_of(subject: Subject, settings: Preprocessing) -> dict[str, Path]:
    """Every file that a prepared subject is made from, by its role."""
    files = {f"scan {name}": subject.scans[name] for name in settings.contrasts if name in subject.scans}
    if subject.brain_mask is not None:
        files["brain"] = subject.brain_mask
    if subject.lesion_mask is not None:
        files["lesion"] = subject.lesion_mask
    return files


def origin_of(subject: Subject, settings: Preprocessing, hashes: Mapping[str, str]) -> dict[str, Any]:
    """All that a prepared subject follows from: settings, hashes of files, what was said of the subject."""
    labels = list(subject.lesion_labels) if subject.lesion_labels is not None else None
    declared = {
        "ignore_labels": list(subject.ignore_labels),
        "volumes": dict(subject.volumes),
        "header_form": subject.header_form,
        "mask_cut": subject.mask_cut,
    }
    said = {name: value for name, value in declared.items() if value not in ([], {}, "", None)}
    return {
        "schema": SCHEMA,
        "settings": {**asdict(settings), "contrasts": list(settings.contrasts)},
        "files": dict(hashes),
        "subject": [subject.subject_id, bool(subject.healthy), labels, *([said] if said else [])],
    }


def key_of(subject: Subject, settings: Preprocessing, hashes: Mapping[str, str]) -> str:
    """The name of a prepared subject in the cache: the hash of its origin."""
    return _digest(origin_of(subject, settings, hashes))


def _digest(made_from: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]


def _belongs(made_from: Mapping[str, Any], subject_id: str, key: str) -> bool:
    return _digest(made_from) == key and made_from["subject"][0] == subject_id


def store_prepared(prepared: Prepared, cache: Path, made_from: Mapping[str, Any]) -> None:
    """Commit a prepared subject to the cache."""
    record = {
        "schema": SCHEMA,
        "subject_id": prepared.volume.subject_id,
        "contrasts": list(prepared.volume.contrasts),
        "grid": _describe(prepared.volume.grid),
        "native_grid": _describe(prepared.native_grid),
        "world_to_native": prepared.world_to_native.tolist(),
        "lesion": prepared.lesion is not None,
        "notes": list(prepared.notes),
        "voxel_sha256": prepared.voxel_sha256,
        "axes": prepared.axes,
        "made_from": dict(made_from),
    }
    about = {"stage": "prepared", "made_by": "prepare"}
    with committed_directory(cache / prepared.key, within=cache, about=about) as scratch:
        np.save(scratch / "voxels.npy", prepared.volume.voxels, allow_pickle=False)
        np.save(scratch / "brain.npy", prepared.volume.brain_mask, allow_pickle=False)
        _save_mask(scratch / "native_brain.npy", prepared.native_brain)
        if prepared.lesion is not None and prepared.native_lesion is not None:
            _save_mask(scratch / "lesion.npy", prepared.lesion)
            _save_mask(scratch / "native_lesion.npy", prepared.native_lesion)
        (scratch / "record.json").write_text(json.dumps(record, indent=1, sort_keys=True))


def _save_mask(path: Path, mask: Mask) -> None:
    # Eight voxels a byte: native masks at 1 mm would outweigh everything else.
    np.save(path, np.packbits(mask.voxels), allow_pickle=False)


def _load_mask(directory: Path, name: str, grid: Grid) -> Mask:
    bits = np.unpackbits(load_committed_array(directory, name), count=int(np.prod(grid.shape)))
    return Mask(frozen(bits.view(bool).reshape(grid.shape)), grid)


def _describe(grid: Grid) -> dict[str, Any]:
    return {"shape": list(grid.shape), "affine": grid.affine.tolist()}


def _grid(record: Mapping[str, Any]) -> Grid:
    x, y, z = record["shape"]
    return Grid((x, y, z), np.array(record["affine"], dtype=np.float64))


def is_intact(directory: Path) -> bool:
    """Whether an entry of the cache is there and whole; a damaged one is told."""
    if not is_committed(directory):
        return False
    try:
        verify_directory(directory)
    except IntegrityError as problem:
        print(f"note: a prepared scan is made anew. {problem}", file=sys.stderr)
        return False
    return True

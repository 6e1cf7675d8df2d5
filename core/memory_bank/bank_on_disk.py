"""How a memory bank lies on disk: arrays in safetensors, the rest in JSON; no pickle, and no search index."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.memory_bank.settings import BankSettings
from data.errors import IntegrityError
from data.hashed import sha256_file
from data.json_files import read_json, write_json
from data.schemas import check_schema
from models.tensor_files import load_tensors, save_tensors

SCHEMA = 1
DESCRIPTION = "bank.json"
TENSORS = "bank.safetensors"
_DTYPES = {"F32": np.float32, "F16": np.float16}


@dataclasses.dataclass(frozen=True)
class Described:
    """All of a bank that is not an array."""

    channels: dict[str, int]
    settings: BankSettings
    subject_ids: tuple[str, ...]
    spreads: dict[str, float]
    affine: tuple[tuple[float, ...], ...]


def write_bank(directory: Path, tensors: Mapping[str, Tensor], described: Described) -> None:
    """Write bank.safetensors and bank.json into the directory; the description holds the hash of the arrays."""
    directory.mkdir(parents=True, exist_ok=True)
    save_tensors(directory / TENSORS, tensors)
    value: dict[str, Any] = {
        "schema": SCHEMA,
        "layers": [[layer, count, described.spreads[layer]] for layer, count in described.channels.items()],
        "settings": dataclasses.asdict(described.settings),
        "subject_ids": list(described.subject_ids),
        "affine": [list(row) for row in described.affine],
        "sha256": sha256_file(directory / TENSORS),
    }
    write_json(directory / DESCRIPTION, value)


def read_bank(directory: Path, memory_bytes: float | None) -> tuple[Described, dict[str, Tensor]]:
    """(description, arrays) of what `write_bank` wrote. IntegrityError when a file is missing or damaged.

    When the patches take more than `memory_bytes`, they stay in the file and are read as the search comes to them.
    """
    try:
        value = read_json(directory / DESCRIPTION)
    except OSError as error:
        raise _damaged(directory, error) from error
    check_schema(directory / DESCRIPTION, value, SCHEMA)
    try:
        if sha256_file(directory / TENSORS) != value["sha256"]:
            raise ValueError(f"the bytes of {TENSORS} are not those that {DESCRIPTION} names")
        described = Described(
            {layer: int(count) for layer, count, _ in value["layers"]},
            BankSettings(**value["settings"]),
            tuple(value["subject_ids"]),
            {layer: float(spread) for layer, _, spread in value["layers"]},
            tuple(tuple(map(float, row)) for row in value["affine"]),
        )
        tensors = _read(directory / TENSORS, memory_bytes)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(directory, error) from error
    return described, tensors


def _damaged(directory: Path, error: Exception) -> IntegrityError:
    return IntegrityError(
        f"The memory bank in {directory} is missing or damaged: {error}. Fit it again, or restore the directory."
    )


def _read(path: Path, memory_bytes: float | None) -> dict[str, Tensor]:
    mapped = _mapped(path) if memory_bytes is not None and path.stat().st_size > memory_bytes else {}
    return load_tensors(path, leave_out=mapped) | mapped


def _mapped(path: Path) -> dict[str, Tensor]:
    """The patches of every layer as views into the file (safetensors: length of the header, header, bytes)."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    views = {}
    for name, entry in header.items():
        if name.startswith("rows.") and 0 not in entry["shape"]:
            start = 8 + length + entry["data_offsets"][0]
            # Copy-on-write: torch wants writable memory, the file is never changed.
            array = np.memmap(path, _DTYPES[entry["dtype"]], "c", start, tuple(entry["shape"]))
            views[name] = torch.from_numpy(array)
    return views

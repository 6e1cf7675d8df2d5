"""How a Gaussian lies on disk: tensors in safetensors, the rest in JSON; no pickle."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.memory_plan import Form, GaussianSettings
from data.errors import IntegrityError
from data.json_files import read_json, write_json
from data.schemas import check_schema
from models.tensor_files import load_tensors, save_tensors

SCHEMA = 1
_DESCRIPTION = "gaussian.json"
_TENSORS = "gaussian.safetensors"


@dataclasses.dataclass(frozen=True)
class Described:
    """All of a Gaussian that is not a tensor."""

    channels: dict[str, int]
    settings: GaussianSettings
    form: Form
    n: int
    clamped: int


def write_gaussian(
    directory: Path,
    tensors: Mapping[str, Tensor],
    lookup: Mapping[str, np.ndarray],
    channels: Mapping[str, int],
    settings: GaussianSettings,
    form: Form,
    n: int,
    clamped: int,
) -> None:
    """Write tensors, lookups and description into the directory."""
    everything = dict(tensors) | {f"lookup.{layer}": torch.from_numpy(index) for layer, index in lookup.items()}
    save_tensors(directory / _TENSORS, everything)
    write_json(
        directory / _DESCRIPTION,
        {
            "schema": SCHEMA,
            "layers": [[layer, count] for layer, count in channels.items()],
            "form": form,
            "n_subjects": n,
            "clamped": clamped,
            "settings": dataclasses.asdict(settings),
        },
    )


def read_gaussian(directory: Path, device: str) -> tuple[Described, dict[str, Tensor]]:
    """(description, tensors) of what `write_gaussian` wrote. IntegrityError when a file is missing or damaged."""
    try:
        value = read_json(directory / _DESCRIPTION)
    except OSError as error:
        raise _damaged(directory, error) from error
    check_schema(directory / _DESCRIPTION, value, SCHEMA)
    try:
        tensors = load_tensors(directory / _TENSORS, device)
        described = Described(
            dict(value["layers"]),
            GaussianSettings(**value["settings"]),
            value["form"],
            value["n_subjects"],
            value["clamped"],
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(directory, error) from error
    return described, tensors


def _damaged(directory: Path, error: Exception) -> IntegrityError:
    return IntegrityError(
        f"The Gaussian in {directory} is missing or damaged: {error}. Fit it again, or restore the directory."
    )

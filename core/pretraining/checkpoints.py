"""Checkpoints of a training: written whole, found again, the damaged ones set aside."""

import contextlib
import json
import logging
import math
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.disk_plan import checkpoint_bytes, training_bytes
from data.errors import BadInput, IntegrityError
from data.files import committed_directory, read_committed_json, read_manifest, verify_directory
from data.json_files import content_digest, read_json, write_json
from data.whole_files import faultpoint, remove_unfinished
from models.encoder import Encoder
from models.tensor_files import load_tensors, save_tensors, tensor_shapes

VOLATILE = ("seconds", "examples_per_s", "time")
"""Logged values that differ between two runs of the same computation."""
MAY_CHANGE = ("checkpoint_every", "log_every", "memory_gb")
"""Settings that a resumed run may have otherwise than the run it continues: no weight depends on them."""
KEPT = 2
"""Checkpoints that stay; a third one is there while it is written."""
_STATE, _STEP = "state.safetensors", "step.json"
_CHECKPOINT = re.compile(r"step-([0-9]{1,18})")
_DAMAGED = "damaged-"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Optimisation:
    """How to minimise."""

    steps: int = 300
    """Optimiser steps."""
    lr: float = 3e-4
    """Learning rate of AdamW at its peak."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes after the warm-up: to zero along a half cosine, or not at all."""
    warmup_steps: int = 0
    """Steps of linear rise to the peak."""
    gradient_clip: float = 1.0
    """Largest L2 norm of the gradient; 0 leaves it as it is."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the accelerator has it, float32 on a CPU."""
    log_every: int = 1
    """Steps per logged line."""
    checkpoint_every: int = 50
    """Steps between checkpoints; a killed run loses at most these."""


def checkpoint_step(directory: Path) -> int:
    """The step of the newest whole checkpoint, from which training in `directory` would go on; 0 without one."""
    for checkpoint in listed_checkpoints(directory / "checkpoints"):
        with contextlib.suppress(IntegrityError):
            return _step_of(checkpoint)
    return 0


def checkpoint_history(directory: Path) -> tuple[str, ...]:
    """By which threads and processors (`computed_by`) the newest whole checkpoint came about, oldest first."""
    for checkpoint in listed_checkpoints(directory / "checkpoints"):
        with contextlib.suppress(IntegrityError):
            _step_of(checkpoint)
            return tuple(map(str, read_committed_json(checkpoint, _STEP).get("computed_by", ())))
    return ()


def planned_bytes(
    modules: Mapping[str, nn.Module],
    encoder: Encoder,
    optimisation: Optimisation,
    directory: Path,
    unreached: tuple[str, ...] = (),
) -> int:
    """What training in `directory` adds at its peak, and the encoder after it.

    Moments count for what is trained; parameters whose names begin with one of `unreached` get none.
    """
    state = _weights(modules)
    for name, parameter in trained_modules(modules).items():
        if name.startswith(unreached):
            continue
        state |= {f"adamw/{name}/{key}": parameter for key in ("exp_avg", "exp_avg_sq")}
        state[f"adamw/{name}/step"] = torch.zeros(())
    left = optimisation.steps - checkpoint_step(directory)
    there = len(listed_checkpoints(directory / "checkpoints"))
    to_write = math.ceil(left / optimisation.checkpoint_every)
    return training_bytes(checkpoint_bytes(state), encoder, to_write, KEPT, there)


def check_same_config(path: Path, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Write the settings of a new training; BadInput when the directory holds one of others."""
    new = json.loads(json.dumps(config))
    if not path.is_file():
        write_json(path, new)
        return
    try:
        there = _flat(read_json(path))
    except IntegrityError as error:
        raise IntegrityError(f"{error} Put back a copy of it, or start anew in another directory.") from error
    old, new = {**_flat(json.loads(json.dumps(defaults))), **there}, _flat(new)
    differing = [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key.rsplit(".", 1)[-1] not in MAY_CHANGE
    ]
    if differing:
        raise BadInput(
            f"{path.parent} holds a run with other settings: {'; '.join(differing)}. "
            "Give the same settings to go on, or another directory to start anew."
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf
        for key, item in value.items()
        for name, leaf in _flat(item, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def resume_from(
    checkpoints: Path, modules: Mapping[str, nn.Module], named: Mapping[str, Tensor], optimiser: torch.optim.AdamW
) -> int:
    """Load the newest whole checkpoint that fits the modules; its step, or 0. Damaged ones are set aside by name."""
    remove_unfinished(checkpoints)
    found = listed_checkpoints(checkpoints)
    for directory in found:
        try:
            step = _step_of(directory)
            state = _state_of(directory, modules, named)
        except IntegrityError as error:
            log.warning(
                "Checkpoint %s is damaged, going back to the one before. %s It is kept as %s.",
                directory.name, error, _set_aside(directory).name,
            )  # fmt: skip
            continue
        for name, module in modules.items():
            prefix = f"{name}."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        for name, parameter in named.items():
            if f"adamw/{name}/step" not in state:
                continue
            optimiser.state[parameter] = {
                "step": state[f"adamw/{name}/step"],
                **{k: torch.empty_like(parameter).copy_(state[f"adamw/{name}/{k}"]) for k in ("exp_avg", "exp_avg_sq")},
            }
        log.info("Going on from step %d.", step)
        _prune(checkpoints)
        return step
    if found:
        log.warning("None of %d checkpoints in %s is whole: training starts anew.", len(found), checkpoints)
    return 0


def trained_modules(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Every parameter that is trained, by module and name."""
    return {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters() if p.requires_grad}


def _weights(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{m}.{n}": value for m, module in modules.items() for n, value in module.state_dict().items()}


def _step_of(directory: Path) -> int:
    """The step of a checkpoint. IntegrityError unless it is whole: bytes, step, and the names and shapes of tensors."""
    try:
        _refuse_another(directory)
        verify_directory(directory)
        described = read_committed_json(directory, _STEP)
        step = described["step"]
        shapes = {name: list(shape) for name, shape in tensor_shapes(directory / _STATE).items()}
    except BadInput:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{directory} cannot be read: {type(error).__name__}: {error}.") from error
    named = _CHECKPOINT.fullmatch(directory.name)
    if not isinstance(step, int) or isinstance(step, bool) or named is None or step != int(named[1]):
        raise IntegrityError(f"{directory / _STEP} says step {step!r}, which is not that of its folder.")
    if described.get("shapes", shapes) != shapes:  # checkpoints of before do not say
        raise IntegrityError(f"{directory / _STATE} holds other tensors than {_STEP} says.")
    return step


def _training_of(checkpoints: Path) -> str:
    """What training the checkpoints in a folder belong to: the digest of the settings and scans that it began with."""
    return content_digest(read_json(checkpoints.parent / "training.json"))


def _refuse_another(checkpoint: Path) -> None:
    """IntegrityError for a checkpoint of another training; those of before checkpoints said so are taken."""
    told = read_manifest(checkpoint)["about"].get("training")
    if told is not None and told != _training_of(checkpoint.parent):
        raise IntegrityError(f"{checkpoint} is a checkpoint of another training.")


def _state_of(directory: Path, modules: Mapping[str, nn.Module], named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint. IntegrityError unless they are those of the modules and of AdamW."""
    try:
        state = load_tensors(directory / _STATE)
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{directory} cannot be read: {error}.") from error
    wanted = _weights(modules)
    for name, parameter in named.items():
        if f"adamw/{name}/step" in state:
            wanted |= {f"adamw/{name}/{key}": parameter for key in ("exp_avg", "exp_avg_sq")}
            wanted[f"adamw/{name}/step"] = torch.zeros((), dtype=torch.float32)
    wrong = [name for name, value in wanted.items() if name not in state or not _alike(state[name], value)]
    wrong += sorted(state.keys() - wanted.keys())
    if wrong:
        raise IntegrityError(f"{directory / _STATE} does not fit what is trained: {', '.join(wrong[:4])}.")
    return state


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _set_aside(directory: Path) -> Path:
    """Out of the way of the next start, but not lost: whoever wants to know what happened can look."""
    aside = directory.with_name(f"{_DAMAGED}{directory.name}")
    number = 1
    while aside.exists():
        number += 1
        aside = directory.with_name(f"{_DAMAGED}{directory.name}-{number}")
    with contextlib.suppress(OSError):
        directory.rename(aside)
        return aside
    return directory


def save_checkpoint(
    checkpoints: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    named: Mapping[str, Tensor],
    optimiser: torch.optim.AdamW,
    history: Collection[str],
) -> None:
    """Commit the weights, the buffers and the AdamW moments of a step, then drop all but the newest two."""
    state = _weights(modules)
    for name, parameter in named.items():
        for key, value in optimiser.state.get(parameter, {}).items():
            state[f"adamw/{name}/{key}"] = value
    about = {"training": _training_of(checkpoints)}
    with committed_directory(checkpoints / f"step-{step:08d}", within=checkpoints, about=about) as scratch:
        save_tensors(scratch / _STATE, state)
        faultpoint("checkpoint.after_state")
        described = {"step": step, "shapes": {name: list(v.shape) for name, v in state.items()}}
        write_json(scratch / _STEP, described | {"computed_by": list(history)})
    faultpoint("checkpoint.before_prune")
    _prune(checkpoints)


def _prune(checkpoints: Path) -> None:
    for old in listed_checkpoints(checkpoints)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def listed_checkpoints(checkpoints: Path) -> list[Path]:
    """Checkpoint directories, newest step first; what has another kind of name is not ours."""
    found: list[tuple[int, Path]] = []
    with contextlib.suppress(OSError):
        for path in checkpoints.iterdir():
            named = _CHECKPOINT.fullmatch(path.name)
            if named and path.is_dir():
                found.append((int(named[1]), path))
    return [path for _, path in sorted(found, reverse=True)]

"""The one loop that minimises a scalar loss: schedules, checkpoints, resume, and an orderly end."""

import contextlib
import json
import logging
import math
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.disk_plan import checkpoint_bytes, training_bytes
from core.journal import JOURNAL, append_line, drop_lines, is_step, read_lines, steps_of, sync
from core.provenance import computed_by
from core.types import Monitor, silent
from data.errors import BadInput, IntegrityError, Interrupted
from data.files import (
    committed_directory,
    content_digest,
    faultpoint,
    read_committed_json,
    read_json,
    read_manifest,
    refuse_links,
    remove_unfinished,
    verify_directory,
    write_json,
)
from data.ranges import refuse_out_of_range
from models.encoder import Encoder
from models.tensor_files import load_tensors, save_tensors, tensor_shapes

VOLATILE = ("seconds", "examples_per_s", "time")
"""Logged values that differ between two runs of the same computation."""
MAY_CHANGE = ("checkpoint_every", "log_every", "memory_gb")
"""Settings that a resumed run may have otherwise than the run it continues: no weight depends on them."""
KEPT = 2
"""Checkpoints that stay; a third one is there while it is written."""
_CHECKPOINT = re.compile(r"step-([0-9]{1,18})")
_DAMAGED = "damaged-"
_STATE, _STEP = "state.safetensors", "step.json"

log = logging.getLogger(__name__)

LossOfStep = Callable[[int], tuple[Tensor, Mapping[str, Any]]]


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


def minimise(
    modules: Mapping[str, nn.Module],
    loss_of_step: LossOfStep,
    optimisation: Optimisation,
    directory: Path,
    *,
    config: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    device: torch.device,
    examples_per_step: int = 1,
    monitor: Monitor = silent,
) -> None:
    """Train the modules in place until the last step, from the newest whole checkpoint when there is one.

    `loss_of_step(step)` gives the loss and what to log for steps 1, 2, ...; when it depends on nothing but the step
    and the modules, a killed and resumed run ends with the bits of an uninterrupted one (on a CPU, same threads; each
    checkpoint says by how many it came about).
    Writes checkpoints/step-NNNNNNNN (the last two are kept), events.jsonl (one line per logged step) and
    training.json (`config`). A disk that refuses a line of the journal does not stop training, one that refuses a
    checkpoint does (EnvironmentProblem; the ones before it stay). Parameters that require no gradient are checkpointed
    but not trained, and a parameter that no loss has reached yet has no moments.

    `defaults` completes the config of a run that was begun before a setting existed. BadInput when `config` differs
    from that of the run in `directory`, or the loss is not finite (the last checkpoint stays). Interrupted after
    SIGTERM, SIGINT or SIGUSR1, with a checkpoint of the step just done; a second signal ends at once.
    """
    check_optimisation(optimisation)
    directory.mkdir(parents=True, exist_ok=True)
    refuse_links(directory)
    _same_config(directory / "training.json", config, defaults or {})
    named = _trained(modules)
    optimiser = torch.optim.AdamW(named.values(), lr=optimisation.lr, weight_decay=optimisation.weight_decay)
    done = _resume(directory / "checkpoints", modules, named, optimiser)
    history = dict.fromkeys([*(checkpoint_history(directory) if done else ()), computed_by()])
    journal = directory / JOURNAL
    _truncate_events(journal, done)
    with _stop_requested() as stop:
        for step in range(done + 1, optimisation.steps + 1):
            began = time.perf_counter()
            rate = learning_rate(step, optimisation)
            for group in optimiser.param_groups:
                group["lr"] = rate
            with _autocast(device, optimisation.precision):
                loss, logs = loss_of_step(step)
            value = float(loss.detach())
            _finite("Loss", value, step, rate, directory)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = float(nn.utils.clip_grad_norm_(named.values(), optimisation.gradient_clip or math.inf))
            _finite("Gradient norm", norm, step, rate, directory)
            optimiser.step()
            seconds = time.perf_counter() - began
            event = {
                **logs, "step": step, "total": optimisation.steps, "loss": value, "lr": rate, "gradient_norm": norm,
                "device": device.type, "seconds": seconds, "examples_per_s": examples_per_step / seconds,
            }  # fmt: skip
            if step % optimisation.log_every == 0 or step == optimisation.steps:
                append_line(journal, "step", event)
            monitor(step, {name: float(v) for name, v in event.items() if isinstance(v, (int, float))})
            last = step == optimisation.steps
            if last or step % optimisation.checkpoint_every == 0 or stop.is_set():
                sync(journal)
                _save(directory / "checkpoints", step, modules, named, optimiser, history)
            if stop.is_set() and not last:
                raise Interrupted(f"Stopped at step {step} of {optimisation.steps}. The same command goes on from it.")


def learning_rate(step: int, optimisation: Optimisation) -> float:
    """The rate of step 1, 2, ...: a linear rise over the warm-up, then cosine to zero or constant."""
    warmup, steps = optimisation.warmup_steps, optimisation.steps
    if step <= warmup:
        return optimisation.lr * step / warmup
    if optimisation.schedule == "constant":
        return optimisation.lr
    progress = (step - warmup - 1) / max(1, steps - warmup)
    return optimisation.lr * 0.5 * (1 + math.cos(math.pi * progress))


def read_events(path: Path) -> list[dict[str, Any]]:
    """The logged steps, in order; notes, damaged lines and one that is being written are left out."""
    return [{key: value for key, value in step.items() if key != "offset"} for step in steps_of(read_lines(path))]


def checkpoint_step(directory: Path) -> int:
    """The step of the newest whole checkpoint, from which training in `directory` would go on; 0 without one."""
    for checkpoint in _listed(directory / "checkpoints"):
        with contextlib.suppress(IntegrityError):
            return _step_of(checkpoint)
    return 0


def checkpoint_history(directory: Path) -> tuple[str, ...]:
    """By which threads and processors (`computed_by`) the newest whole checkpoint came about, oldest first."""
    for checkpoint in _listed(directory / "checkpoints"):
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
    for name, parameter in _trained(modules).items():
        if name.startswith(unreached):
            continue
        state |= {f"adamw/{name}/{key}": parameter for key in ("exp_avg", "exp_avg_sq")}
        state[f"adamw/{name}/step"] = torch.zeros(())
    left = optimisation.steps - checkpoint_step(directory)
    there = len(_listed(directory / "checkpoints"))
    to_write = math.ceil(left / optimisation.checkpoint_every)
    return training_bytes(checkpoint_bytes(state), encoder, to_write, KEPT, there)


def check_optimisation(optimisation: Optimisation) -> None:
    """BadInput when a setting of the training loop is out of its range."""
    refuse_out_of_range(optimisation)
    for name, allowed in (("schedule", ("cosine", "constant")), ("precision", ("auto", "float32", "bfloat16"))):
        if getattr(optimisation, name) not in allowed:
            raise BadInput(f"Unknown {name} {getattr(optimisation, name)!r}. Allowed: {', '.join(allowed)}.")


def _same_config(path: Path, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
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


def _resume(
    checkpoints: Path, modules: Mapping[str, nn.Module], named: Mapping[str, Tensor], optimiser: torch.optim.AdamW
) -> int:
    """Load the newest whole checkpoint that fits the modules; its step, or 0. Damaged ones are set aside by name."""
    remove_unfinished(checkpoints)
    found = _listed(checkpoints)
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


def _trained(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
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


def _save(
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
    for old in _listed(checkpoints)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def _listed(checkpoints: Path) -> list[Path]:
    """Checkpoint directories, newest step first; what has another kind of name is not ours."""
    found: list[tuple[int, Path]] = []
    with contextlib.suppress(OSError):
        for path in checkpoints.iterdir():
            named = _CHECKPOINT.fullmatch(path.name)
            if named and path.is_dir():
                found.append((int(named[1]), path))
    return [path for _, path in sorted(found, reverse=True)]


def _truncate_events(path: Path, step: int) -> None:
    """Drop the steps after the checkpoint, which are computed again; every other line stays."""
    drop_lines(path, lambda event: is_step(event) and event["step"] > step)


def _finite(what: str, value: float, step: int, rate: float, directory: Path) -> None:
    if math.isfinite(value):
        return
    kept = next((d.name for d in _listed(directory / "checkpoints")), "none yet")
    raise BadInput(
        f"{what} is {value} at step {step} (learning rate {rate:.3g}); training stopped before it spoiled the weights. "
        f"Last good checkpoint: {kept}. Lower lr, train in float32, or look for extreme intensities; "
        "then train into a new directory."
    )


def _autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    automatic = precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16" or automatic)


@contextlib.contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """An event that the first SIGTERM, SIGINT or SIGUSR1 sets; the next one acts as it did before."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    watched = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in watched}

    def request(number: int, frame: FrameType | None) -> None:
        stop.set()
        for other in watched:
            signal.signal(other, before[other])

    for number in watched:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number in watched:
            signal.signal(number, before[number])

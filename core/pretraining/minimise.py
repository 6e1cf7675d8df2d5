"""The one loop that minimises a scalar loss: schedules, checkpoints, resume, and an orderly end."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from core.pretraining.checkpoints import (
    Optimisation,
    check_same_config,
    checkpoint_history,
    listed_checkpoints,
    resume_from,
    save_checkpoint,
    trained_modules,
)
from core.runs.journal import JOURNAL, append_line, drop_lines, is_step, read_lines, steps_of, sync
from core.runs.provenance import computed_by
from core.types import Monitor, silent
from data.errors import BadInput, Interrupted
from data.files import (
    refuse_links,
)
from data.ranges import refuse_out_of_range

LossOfStep = Callable[[int], tuple[Tensor, Mapping[str, Any]]]


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
    check_same_config(directory / "training.json", config, defaults or {})
    named = trained_modules(modules)
    optimiser = torch.optim.AdamW(named.values(), lr=optimisation.lr, weight_decay=optimisation.weight_decay)
    done = resume_from(directory / "checkpoints", modules, named, optimiser)
    history = dict.fromkeys([*(checkpoint_history(directory) if done else ()), computed_by()])
    journal = directory / JOURNAL
    _truncate_events(journal, done)
    with _stop_requested() as stop:
        for step in range(done + 1, optimisation.steps + 1):
            began = time.perf_counter()
            rate = _set_rate(optimiser, learning_rate(step, optimisation))
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
                save_checkpoint(directory / "checkpoints", step, modules, named, optimiser, history)
            if stop.is_set() and not last:
                raise Interrupted(f"Stopped at step {step} of {optimisation.steps}. The same command goes on from it.")


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> float:
    for group in optimiser.param_groups:
        group["lr"] = rate
    return rate


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


def check_optimisation(optimisation: Optimisation) -> None:
    """BadInput when a setting of the training loop is out of its range."""
    refuse_out_of_range(optimisation)
    for name, allowed in (("schedule", ("cosine", "constant")), ("precision", ("auto", "float32", "bfloat16"))):
        if getattr(optimisation, name) not in allowed:
            raise BadInput(f"Unknown {name} {getattr(optimisation, name)!r}. Allowed: {', '.join(allowed)}.")


def _truncate_events(path: Path, step: int) -> None:
    """Drop the steps after the checkpoint, which are computed again; every other line stays."""
    drop_lines(path, lambda event: is_step(event) and event["step"] > step)


def _finite(what: str, value: float, step: int, rate: float, directory: Path) -> None:
    if math.isfinite(value):
        return
    kept = next((d.name for d in listed_checkpoints(directory / "checkpoints")), "none yet")
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

"""The memory law of the Gaussian: what a fit keeps and needs at its peak, said before it starts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from data.errors import BadInput, EnvironmentProblem
from data.ranges import refuse_out_of_range

Form = Literal["dual", "primal"]
Covariance = Literal["full", "diagonal", "shared"]
Shrinkage = Literal["ridge", "ledoit_wolf", "oas"]

WORKING_BYTES = 256e6
"""Aim for the temporary arrays of one block of positions; a block is never smaller than one position."""
_FEW_POSITIONS = 4096


@dataclass(frozen=True)
class GaussianSettings:
    """How the healthy Gaussian of every position is estimated.

    The shrinkage rule changes the ranking of positions, not only the conditioning: name it beside every result.
    """

    form: Literal["auto", "dual", "primal"] = "auto"
    """`dual` keeps the training features, `primal` their moments; both exact. `auto` takes what is cheaper."""
    covariance: Covariance = "full"
    """Per position, per position without correlations, or one covariance shared by all positions."""
    shrinkage: Shrinkage = "ridge"
    """What is added to the sample covariance. `diagonal` and `shared` know `ridge` only."""
    ridge: float = 0.01
    """Variance added to every feature, in squared feature units. PaDiM, arXiv:2011.08785, eq. 1: 0.01."""
    accumulate: Literal["float64", "float32"] = "float64"
    """Stored precision of the primal moments; float32 halves their memory."""

    def __post_init__(self) -> None:
        _check_choice("form", self.form, ("auto", "dual", "primal"))
        _check_choice("covariance", self.covariance, ("full", "diagonal", "shared"))
        _check_choice("shrinkage", self.shrinkage, ("ridge", "ledoit_wolf", "oas"))
        _check_choice("accumulate", self.accumulate, ("float64", "float32"))
        refuse_out_of_range(self)
        if self.covariance != "full" and self.shrinkage != "ridge":
            raise BadInput(
                f"shrinkage {self.shrinkage!r} with covariance {self.covariance!r} is not defined here. "
                "Allowed is 'ridge'; or choose covariance 'full'."
            )
        if self.covariance != "full" and self.form == "dual":
            raise BadInput(f"Form 'dual' with covariance {self.covariance!r} is not defined. Choose form 'auto'.")
        if self.shrinkage == "ledoit_wolf" and self.form == "primal":
            raise BadInput("Ledoit-Wolf needs the samples, form 'primal' keeps moments. Choose form 'dual' or 'oas'.")


@dataclass(frozen=True)
class MemoryPlan:
    """What a fit will cost. `text` is the sentence to print before starting."""

    form: Form
    stored_bytes: int
    peak_bytes: int
    block_positions: int
    text: str


def plan_memory(
    n_subjects: int,
    channels: Mapping[str, int],
    n_positions: Mapping[str, int],
    n_feature_positions: int,
    settings: GaussianSettings,
    limit_bytes: float,
) -> MemoryPlan:
    """Choose the form and say its bytes; EnvironmentProblem when nothing exact fits into `limit_bytes`.

    With N subjects, d features, P positions, layers of C features at p native positions:
    dual 4·N·Σ p·C, primal 8·P·d² (4 when accumulated in float32), diagonal 8·Σ p·C, shared 8·d²; means 8·Σ p·C.
    `auto` is dual when N <= d/2, primal when N >= d, and the smaller in between; a form that does not fit yields.
    """
    if n_subjects < 2:
        raise BadInput(
            f"A Gaussian of {n_subjects} volume(s) was asked for. A single volume has no variance. Give at least 2."
        )
    plans = [
        _plan_one(form, n_subjects, channels, n_positions, n_feature_positions, settings)
        for form in _forms(n_subjects, sum(channels.values()), settings)
    ]
    if len(plans) == 2 and sum(channels.values()) / 2 < n_subjects < sum(channels.values()):
        plans.sort(key=lambda plan: plan.peak_bytes)
    for plan in plans:
        if plan.peak_bytes <= limit_bytes:
            return plan
    least = min(plans, key=lambda plan: plan.peak_bytes)
    raise EnvironmentProblem(
        f"The Gaussian does not fit into memory: {least.text} Allowed are {_gigabytes(limit_bytes)}. "
        "Raise the memory limit, use fewer or coarser layers, coarsen the feature grid, or covariance 'diagonal'."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is about memory: Python's, an accelerator's, or that of torch's allocator on a processor."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch is not loaded for it
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def block_positions(n_samples: int, channels: Mapping[str, int], form: Form, covariance: Covariance) -> int:
    """Positions that are worked on together, so that temporaries stay near `WORKING_BYTES`."""
    d = sum(channels.values())
    if covariance == "diagonal" or covariance == "shared":
        per_position = 64 * d * 8
    elif form == "dual":
        per_position = 4 * (len(channels) + 6) * n_samples**2 + 12 * n_samples * d + 8 * 40 * d
    else:
        per_position = 8 * 4 * d**2 + 8 * 40 * d
    return int(min(_FEW_POSITIONS, max(1, WORKING_BYTES // per_position)))


def subjects_together(
    fitted_bytes: int, feature_values: int, distance_values: int, voxels: int, limit_bytes: float, most: int
) -> int:
    """How many subjects can be scored together, at most `most`; EnvironmentProblem when not even one can.

    Beside what was fitted and `WORKING_BYTES`, each subject holds its features (4 bytes a value), its distances
    under every layer set (4 bytes) and its scan (8 bytes a voxel). The encoder's own pass comes on top.
    """
    fixed = fitted_bytes + WORKING_BYTES
    each = 4 * feature_values + 4 * distance_values + 8 * voxels
    number = min(most, int((limit_bytes - fixed) // each))
    if number < 1:
        raise EnvironmentProblem(
            f"Scoring does not fit into memory: what was fitted and its work take {_gigabytes(fixed)}, one subject "
            f"{_gigabytes(each)}. Allowed are {_gigabytes(limit_bytes)}. "
            "Raise the memory limit (--memory), or fit fewer or coarser layers."
        )
    return number


def _forms(n: int, d: int, settings: GaussianSettings) -> list[Form]:
    if settings.covariance != "full":
        return ["primal"]
    if settings.form != "auto":
        return [settings.form]
    if settings.shrinkage == "ledoit_wolf":
        return ["dual"]
    return ["primal", "dual"] if n >= d else ["dual", "primal"]


def _plan_one(
    form: Form,
    n: int,
    channels: Mapping[str, int],
    n_positions: Mapping[str, int],
    positions: int,
    settings: GaussianSettings,
) -> MemoryPlan:
    d = sum(channels.values())
    features = {layer: n_positions[layer] * channels[layer] for layer in channels}
    stored = 8 * sum(features.values()) + 8 * positions * len(channels)
    block = min(positions, block_positions(n, channels, form, settings.covariance))
    if settings.covariance == "diagonal":
        stored, extra = stored + 8 * sum(features.values()), 4 * 16 * sum(features.values())
    elif settings.covariance == "shared":
        stored, extra = stored + 8 * d * d, 4 * 16 * sum(features.values())
    elif form == "dual":
        stored, extra = stored + 4 * (n - 1) * sum(features.values()), 4 * n * max(features.values())
    else:
        size = 8 if settings.accumulate == "float64" else 4
        stored, extra = stored + size * positions * d * d, 4 * 16 * sum(features.values())
    peak = int(stored + extra + WORKING_BYTES)
    text = (
        f"{settings.covariance} covariance, {form} form: {n} subjects, {d} features in {len(channels)} layers, "
        f"{positions} positions; keeps {_gigabytes(stored)}, at its peak {_gigabytes(peak)}."
    )
    return MemoryPlan(form, stored, peak, block, text)


def _gigabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2f} GB"


def _check_choice(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise BadInput(f"{name} is {given!r}. Allowed: {', '.join(allowed)}.")

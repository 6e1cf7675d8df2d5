"""The range of every number that a user can give: one table, read before any work begins."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data.errors import BadInput

SEED_MOST = 2**31 - 1
"""The libraries below take no larger seed."""


@dataclass(frozen=True)
class Range:
    """What a number may be. Infinity and what is no number are never allowed."""

    least: float
    most: float
    above: bool = False
    """Whether `least` itself is too little."""
    below: bool = False
    """Whether `most` itself is too much."""
    odd: bool = False
    """Odd numbers only; 0, where it is in the range, stands for none."""
    not_zero: bool = False
    unit: str = ""
    said: str = ""
    """The range in words, where its own say more than the general ones."""

    def holds(self, value: float) -> bool:
        """Whether the value is allowed."""
        if not math.isfinite(value) or (self.not_zero and value == 0):
            return False
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return low and high and (not self.odd or value == 0 or value % 2 == 1)

    def text(self) -> str:
        """The same in words: above 0, at most 1."""
        if self.said:
            return self.said
        low = f"above {_shown(self.least)}, " if self.above else f"{_shown(self.least)} "
        joint = "" if self.above else "and above, "
        high = f"below {_shown(self.most)}" if self.below else f"at most {_shown(self.most)}"
        odd = ", odd" + (" or 0 for none" if self.least == 0 else "") if self.odd else ""
        return (
            low
            + joint
            + high
            + (f" {self.unit}" if self.unit else "")
            + odd
            + (", other than 0" if self.not_zero else "")
        )


_SEED = Range(0, SEED_MOST)
_STRENGTH = Range(0, 100)
_SHARE = Range(0, 1, below=True)

RANGES: Mapping[str, Range] = {
    # How it runs
    "workers": Range(1, 256, said="1 or more processes, at most 256; 2 are usual"),
    "port": Range(1, 65535),
    "memory": Range(0, 1e6, above=True, unit="GB"),
    "memory_gb": Range(0, 1e6, above=True, unit="GB"),
    "SimclrSettings.memory_gb": Range(0, 1e6, unit="GB"),
    # Seeds
    "seed": _SEED,
    "seeds": _SEED,
    "split_seed": _SEED,
    "bank_seed": _SEED,
    "feature_seed": _SEED,
    # Scans
    "volume": Range(0, 100_000),
    "mask_cut": Range(0, 1, above=True),
    "lesion_labels": Range(1, 2**31 - 1),
    "ignore_labels": Range(1, 2**31 - 1),
    "spacing_mm": Range(0.5, 8, unit="mm"),
    # Thresholds
    "quantile": Range(0, 1, above=True, below=True),
    "fp_ml": Range(0, 1e4, unit="mL"),
    "fp_ml_per_scan": Range(0, 1e4, unit="mL"),
    # Encoder and features
    "in_channels": Range(1, 64),
    "width": Range(1, 1024),
    "strides": Range(1, 16),
    "stem_stride": Range(1, 16),
    "max_channels": Range(1, 100_000),
    "neighbourhood": Range(1, 31, odd=True, unit="cells"),
    # Gaussian, voxel-wise |z|, intensity
    "ridge": Range(0, 1e9, above=True, said="a positive number, at most 1e+09; PaDiM uses 0.01"),
    "prior_smoothing_mm": Range(0, 100, unit="mm"),
    "floor": Range(0, 100, above=True),
    "contrast": Range(0, 63),
    # Memory bank
    "coreset_ratio": Range(0, 1, above=True),
    "pool": Range(1, 10**9),
    "projection": Range(1, 100_000),
    "position_weight": Range(0, 1e6, unit="per mm"),
    "radius_mm": Range(0, 1000, unit="mm"),
    "nprobe": Range(1, 1_000_000),
    "candidates": Range(1, 100_000),
    "neighbours": Range(1, 100_000),
    # Score maps
    "smoothing_mm": Range(0, 100, unit="mm"),
    "median_voxels": Range(0, 31, odd=True, unit="voxels"),
    # Training
    "batch": Range(2, 100_000),
    "steps": Range(1, 10**9),
    "warmup_steps": Range(0, 10**9),
    "log_every": Range(1, 10**9),
    "checkpoint_every": Range(1, 10**9),
    "temperature": Range(0, 100, above=True),
    "lr": Range(0, 100, above=True),
    "weight_decay": Range(0, 100),
    "gradient_clip": Range(0, 1e9),
    "geometric": _STRENGTH,
    "photometric": _STRENGTH,
    "tone": _STRENGTH,
    "crop_voxels": Range(1, 2048, unit="voxels"),
    # Negatives
    "bank_size": Range(2, 10**8),
    "slot_momentum": _SHARE,
    "key_momentum": _SHARE,
    "positive_prior": _SHARE,
    "hardest": Range(1, 10**8),
    "shifts": Range(2, 1000),
    "class_weight": Range(0, 1e6),
    "positions": Range(1, 10**7),
    "apart_mm": Range(0, 1000, unit="mm"),
    "blob_strength": Range(0, 100, above=True),
    "blob_mm": Range(0, 1000, above=True, unit="mm"),
    # What explains a run
    "cells_mm": Range(0, 500, above=True, unit="mm"),
    "draws": Range(1, 100_000),
    "diameters_mm": Range(0, 60, above=True, unit="mm"),
    "contrasts_sd": Range(-1000, 1000, not_zero=True, unit="SD"),
    "per_cell": Range(1, 10_000),
    "scans": Range(1, 100_000),
    "window_voxels": Range(1, 2048, unit="voxels"),
    "whole_views": Range(1, 10_000),
    "contrasts": Range(0, 1),
    "places": Range(1, 1000),
    "count": Range(1, 100_000, said="1 or more, at most 100000. Say how many to list, e.g. --count 3"),
    "voxel": Range(0, 100_000),
}
"""By the name of the setting; "Class.setting" where a class has a range of its own."""


def refuse_out_of_range(settings: Any, *, flags: bool = False) -> None:
    """BadInput for the first number of a dataclass, or of one inside it, that lies outside its range.

    A number of a setting that the table does not know must be finite. `flags`: the settings came from a command line,
    whose flag is then named.
    """
    for owner, path, value in _numbers(settings):
        name = path.rpartition(".")[2]
        allowed = RANGES.get(f"{owner}.{name}", RANGES.get(name))
        if allowed is None and not math.isfinite(value):
            _refuse(path, value, "a finite number", flags)
        if allowed is not None and not allowed.holds(value):
            _refuse(path, value, allowed.text(), flags)


def check_range(name: str, value: float) -> None:
    """BadInput when one number lies outside the range that the table gives its name."""
    if not RANGES[name].holds(value):
        _refuse(name, value, RANGES[name].text(), flags=False)


def _refuse(path: str, value: float, allowed: str, flags: bool) -> None:
    raise BadInput(f"{'--' if flags else ''}{path} is {value}. Allowed: {allowed}.")


def _numbers(settings: Any, prefix: str = "") -> Iterator[tuple[str, str, float]]:
    """Class, dotted name and value of every number; those of a list one by one. Truth values are no numbers.

    A field setting__gaussian__ridge is the setting gaussian.ridge, as the command line flattens recipes.
    """
    for field in dataclasses.fields(settings):
        if not field.init:
            continue
        value, path = getattr(settings, field.name), prefix + field.name.removeprefix("setting__").replace("__", ".")
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{path}.")
            continue
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, (int, float)) and not isinstance(one, bool):
                yield type(settings).__name__, path, one


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"

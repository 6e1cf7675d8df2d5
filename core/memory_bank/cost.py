"""What a memory bank will cost, said before it is built: patches, bytes, seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from core.memory_bank.search import CHUNK_BYTES
from core.memory_bank.settings import BankSettings
from core.types import FeatureLayout
from data.errors import EnvironmentProblem

PRODUCTS_PER_SECOND = 8e10
"""Multiplications and additions of a float32 matrix product on one core (measured: 8 to 10 · 10¹⁰)."""
SECONDS_PER_SUM = 4e-10
"""Adding one layer to a squared distance and looking for the minimum, per query, entry and layer set (measured)."""
_SECONDS_PER_POOL_PASS = 1.5e-4
"""One pick of the greedy selection from its pool of the farthest 2048 rows in 128 dimensions (measured)."""
_KMEANS_PASSES = 6
_SMALLEST_POOL = 1000


@dataclass(frozen=True)
class BankPlan:
    """`text` is the sentence to print before starting."""

    candidates: int
    """Patches that the selection sees."""
    entries: int
    """Patches that are kept."""
    stored_bytes: int
    peak_bytes: int
    select_seconds: float
    search_seconds: float
    """Of one volume under every layer set, exact search, on the cores that torch may use."""
    text: str


def plan_bank(n_subjects: int, layout: FeatureLayout, settings: BankSettings, limit_bytes: float) -> BankPlan:
    """Bytes and seconds of a bank; EnvironmentProblem when building it takes more than `limit_bytes`.

    With n candidates, k kept, layers of C channels (d together) and p native positions, N subjects: candidates
    4·Σ min(n, N·p)·C, twice over for the largest layer while they are sorted; the selection 4·n·(d + projection);
    the bank 4·Σ min(k, N·p)·C (2 in float16) and 8 bytes per entry and layer. The seconds are of the right order on
    a processor; a graphics card is faster.
    """
    plan = _plan(n_subjects, layout, settings)
    if plan.peak_bytes <= limit_bytes:
        return plan
    raise EnvironmentProblem(
        f"The memory bank does not fit into memory: {plan.text} Allowed are {_size(limit_bytes)} "
        "(--memory in GB, memory_gb of the recipe). "
        f"{_advice(n_subjects, layout, settings, limit_bytes)}"
    )


def _plan(n_subjects: int, layout: FeatureLayout, settings: BankSettings) -> BankPlan:
    positions, d = len(layout.positions), sum(layout.channels.values())
    total = n_subjects * positions
    candidates = total if settings.subset == "all" else min(total, settings.pool)
    keep = min(candidates, max(1, round(settings.coreset_ratio * total)))
    entries = candidates if settings.subset == "all" else keep
    drawn = _row_values(candidates, n_subjects, layout)
    stored = (2 if settings.precision == "float16" else 4) * sum(_row_values(entries, n_subjects, layout).values())
    stored += entries * (8 * len(layout.channels) + 8)
    one = 4 * sum(len(layout.layer_positions[layer]) * count for layer, count in layout.channels.items())
    pool_bytes = 4 * sum(drawn.values()) + candidates * (8 * len(layout.channels) + 24)
    selecting = 0 if entries == candidates else 4 * candidates * (d + min(d, settings.projection) + 4)
    peak = pool_bytes + max(4 * max(drawn.values()) + 3 * one, selecting, stored) + int(2 * CHUNK_BYTES)
    seconds = _select_seconds(candidates, entries, d, settings)
    search = _search_seconds(entries, layout)
    text = (
        f"Memory bank, {_SUBSETS[settings.subset]}: {entries} of {total} patches ({candidates} looked at), "
        f"{n_subjects} subjects, {d} features in {len(layout.channels)} layers; keeps {_size(stored)}, at its "
        f"peak {_size(peak)}; selection about {_duration(seconds)}, exact search about {_duration(search)} per "
        "volume for all layer sets."
    )
    return BankPlan(candidates, entries, int(stored), int(peak), seconds, search, text)


_SUBSETS = {
    "greedy": "greedy k-centre",
    "random": "random draw",
    "kmeans": "nearest to k-means centres",
    "half": "half greedy, half random",
    "all": "all patches",
}


def _row_values(entries: int, n_subjects: int, layout: FeatureLayout) -> dict[str, int]:
    """Stored numbers per layer; positions of a subject in one coarse cell share a row."""
    channels: Mapping[str, int] = layout.channels
    return {layer: min(entries, n_subjects * len(layout.layer_positions[layer])) * n for layer, n in channels.items()}


def _select_seconds(candidates: int, entries: int, d: int, settings: BankSettings) -> float:
    if entries == candidates or settings.subset == "random":
        return 0.0
    rate = PRODUCTS_PER_SECOND * torch.get_num_threads()
    width = min(d, settings.projection)
    if settings.subset == "kmeans":
        return _KMEANS_PASSES * 2 * candidates * entries * width / rate
    picks = entries / 2 if settings.subset == "half" else entries
    return picks * _SECONDS_PER_POOL_PASS + 2 * candidates * picks * width / rate


def _search_seconds(entries: int, layout: FeatureLayout) -> float:
    products = sum(2 * len(layout.layer_positions[layer]) * n for layer, n in layout.channels.items())
    sums = ((1 << len(layout.channels)) - 1) * len(layout.positions)
    return entries * (products / PRODUCTS_PER_SECOND + sums * SECONDS_PER_SUM) / torch.get_num_threads()


def _advice(n_subjects: int, layout: FeatureLayout, settings: BankSettings, limit_bytes: float) -> str:
    if settings.subset == "all":
        return "Keep a part of the patches (subset 'greedy' or 'random'), raise the memory limit, or use fewer layers."
    pool = settings.pool
    while pool > _SMALLEST_POOL:
        pool //= 2
        if _plan(n_subjects, layout, replace(settings, pool=pool)).peak_bytes <= limit_bytes:
            return f"A pool of {pool} patches would fit; or raise the memory limit, or use fewer or coarser layers."
    return "No pool is small enough: raise the memory limit, use fewer or coarser layers, or a coarser feature grid."


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{max(n_bytes / 1e6, 0.01):.3g} MB"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "a second at most"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"

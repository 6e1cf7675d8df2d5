"""Search in a memory bank: every layer set at once, against FAISS and torch; within a radius; through an index.

One thread, process CPU time, the two sides in turn. Features are random mixtures of a few factors that vary smoothly
over a ball-shaped brain and differ between subjects, so the figures speak of speed and agreement, not of lesions.
"""

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import faiss
import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from benchmarks.bench_gaussian import _resident_kilobytes as resident_kilobytes
from benchmarks.clock import cpu_seconds, one_thread, side_by_side
from core.features.layout import feature_layout
from core.features.settings import every_layer_set
from core.memory_bank.bank import MemoryBank
from core.memory_bank.settings import BankSettings
from core.memory_bank.within_radius import search_within
from core.randomness import stream
from core.types import FeatureLayout
from data.volume import Grid

CHANNELS = {"stage0": 64, "stage1": 64, "stage2": 128, "stage3": 256}
STRIDES = {"stage0": (2, 2, 2), "stage1": (2, 2, 2), "stage2": (4, 4, 4), "stage3": (8, 8, 8)}
SETS = every_layer_set(tuple(CHANNELS))
Rows = dict[str, torch.Tensor]


def bank_search_all_sets(
    shape: tuple[int, int, int] = (80, 96, 80), subjects: int = 20, ratio: float = 0.01, rounds: int = 2
) -> dict[str, Any]:
    """All 15 layer sets of one volume from one search, against 15 flat FAISS searches and 15 torch brute forces."""
    layout = bank_layout(shape)
    bank = _bank(layout, subjects, BankSettings(subset="random", coreset_ratio=ratio))
    volume = bank_volume(layout, subjects)
    joint = {layers: _joint(bank, volume, layers) for layers in SETS}
    timing = side_by_side(lambda: bank.distances([volume], SETS)[:, 0], lambda: _flat_sets(joint), rounds, 1)
    torch_seconds, brute = cpu_seconds(lambda: np.stack([_brute(*joint[layers]) for layers in SETS]))
    one_seconds, _ = cpu_seconds(lambda: bank.distances([volume], SETS[-1:]))
    flat_one, _ = cpu_seconds(lambda: _flat(*joint[SETS[-1]]))
    truth = _truth(joint, timing.value)
    return {
        "ratio": timing.ratio,
        "ratio_torch": torch_seconds / timing.seconds,
        "ratio_full_set_alone": flat_one / one_seconds,
        "seconds": timing.seconds,
        "faiss_seconds": timing.reference_seconds,
        "torch_seconds": torch_seconds,
        "seconds_full_set_alone": one_seconds,
        "faiss_seconds_full_set_alone": flat_one,
        "entries": len(bank),
        "positions": len(layout.positions),
        "layer_sets": len(SETS),
        "recall": float((timing.value <= truth * (1 + 1e-5)).mean()),
        "recall_faiss": float((timing.reference <= truth * (1 + 1e-5)).mean()),
        "largest_error": float((np.abs(timing.value - truth) / truth).max()),
        "largest_error_faiss": float((np.abs(timing.reference - truth) / truth).max()),
        "largest_error_torch": float((np.abs(brute - truth) / truth).max()),
    }


def bank_search_memory(entries: int = 20_000, queries: int = 8_000, features: int = 512) -> dict[str, Any]:
    """Peak memory above the data, each side in a process of its own: ours, FAISS flat, the whole torch matrix."""
    peaks = {side: _peak(side, entries, queries, features) for side in ("ours", "faiss", "torch")}
    return {
        "ratio": max(peaks["torch"], 0.1) / max(peaks["ours"], 0.1),
        **{f"{side}_mb": peak for side, peak in peaks.items()},
    }


def bank_within_radius(
    shape: tuple[int, int, int] = (80, 96, 80), subjects: int = 20, global_share: float = 0.05
) -> dict[str, Any]:
    """The whole bank within 8 mm, all layer sets, against the whole bank everywhere (a share of it, scaled up)."""
    layout = bank_layout(shape)
    near = _bank(layout, subjects, BankSettings(subset="all", position="restricted", radius_mm=8.0))
    everywhere = _bank(layout, subjects, BankSettings(subset="random", coreset_ratio=global_share))
    volume = bank_volume(layout, subjects)
    fast_seconds, fast = cpu_seconds(lambda: near.distances([volume], SETS))
    layers = near.layers
    general_seconds, general = cpu_seconds(
        lambda: search_within(near.queries([volume], layers), near.patches(layers), near.reach, SETS, cube_mm=16.0)
    )
    global_seconds, _ = cpu_seconds(lambda: everywhere.distances([volume], SETS))
    whole = global_seconds * len(near) / len(everywhere)
    return {
        "ratio": whole / fast_seconds,
        "ratio_general_path": whole / general_seconds,
        "seconds": fast_seconds,
        "seconds_general_path": general_seconds,
        "global_seconds_scaled": whole,
        "entries": len(near),
        "largest_difference": float((np.abs(fast - general.distance) / np.maximum(general.distance, 1e-6)).max()),
    }


def bank_index_recall(
    shape: tuple[int, int, int] = (60, 72, 60),
    subjects: int = 12,
    ratio: float = 0.15,
    probes: tuple[int, ...] = (4, 16),
) -> dict[str, Any]:
    """IVF and HNSW against the exact search on a real query volume: recall, error and time per layer-set family."""
    layout = bank_layout(shape)
    volume = bank_volume(layout, subjects)
    bank = _bank(layout, subjects, BankSettings(subset="random", coreset_ratio=ratio))
    exact_seconds, truth = cpu_seconds(lambda: bank.distances([volume], SETS))
    rows = {}
    for kind in ("ivf", "hnsw"):
        for probe in probes:
            bank.settings, bank.index = replace(bank.settings, search=kind, nprobe=probe), None
            build_seconds, index = cpu_seconds(bank.open_index)
            seconds, found = cpu_seconds(lambda: bank.distances([volume], SETS))
            error = (found - truth) / np.maximum(truth, 1e-6)
            rows[f"{kind}_{probe}"] = {
                "recall_full_set": float((error[-1] <= 1e-5).mean()),
                "recall_all_sets": float((error <= 1e-5).mean()),
                "recall_audited": index.audit.recall,
                "mean_error": float(error.mean()),
                "p99_error": float(np.percentile(error, 99)),
                "lowest_error": float(error.min()),
                "seconds": seconds,
                "build_seconds": build_seconds,
                "ratio": exact_seconds / seconds,
            }
    best = max(rows.values(), key=lambda row: row["recall_full_set"])
    return {
        "ratio": best["ratio"],
        "recall_of_best": best["recall_full_set"],
        "exact_seconds": exact_seconds,
        "entries": len(bank),
        "indices": rows,
    }


def bank_layout(shape: tuple[int, int, int]) -> FeatureLayout:
    """A ball-shaped brain at 2 mm; features at 4, 8 and 16 mm."""
    grid = Grid(shape, np.diag([2.0, 2.0, 2.0, 1.0]))
    coarse = np.array(grid.coarser((2, 2, 2)).shape)
    cells = np.argwhere(np.ones(coarse, dtype=bool))
    middle = (coarse - 1) / 2
    inside = (((cells - middle) / (middle * np.array([0.85, 0.85, 0.7]))) ** 2).sum(1) <= 1
    return feature_layout(grid, (2, 2, 2), STRIDES, CHANNELS, cells[inside])


def bank_volume(layout: FeatureLayout, number: int) -> Rows:
    """One subject: smooth factors shared by all, plus its own."""
    rows = {}
    for layer, cells in layout.layer_positions.items():
        shape = tuple(layout.layer_grids[layer].shape)
        common, own = stream(0, f"bench bank {layer}"), stream(number + 1, f"bench bank {layer}")
        factors = [_smooth(common, shape) + 0.7 * _smooth(own, shape) for _ in range(12)]
        mixing = stream(1, f"bench bank {layer}").normal(size=(12, CHANNELS[layer]))
        values = np.stack([factor[tuple(cells.T)] for factor in factors], 1) @ mixing
        values += 0.2 * own.normal(size=values.shape)
        rows[layer] = torch.from_numpy(values.astype(np.float32))
    return rows


def _smooth(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    field = gaussian_filter(random.normal(size=shape), 1.0)
    return np.asarray(field / field.std())


def _bank(layout: FeatureLayout, subjects: int, settings: BankSettings) -> MemoryBank:
    ids = [str(number) for number in range(subjects)]
    return MemoryBank.build((bank_volume(layout, n) for n in range(subjects)), ids, layout, settings, limit_bytes=8e9)


def _joint(bank: MemoryBank, volume: Rows, layers: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Concatenated scaled rows of entries and of queries, as a search for one layer set takes them."""
    patches, queries = bank.patches(layers), bank.queries([volume], layers)
    every, cpu = np.arange(len(bank)), torch.device("cpu")
    entries = np.concatenate([patches.layer_rows(layer, every, cpu).numpy() for layer in layers], 1)
    mine = np.concatenate([queries.rows[0][layer].numpy()[bank.lookup[layer]] for layer in layers], 1)
    return entries, mine


def _flat_sets(joint: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    return np.stack([_flat(*joint[layers]) for layers in SETS])


def _flat(entries: np.ndarray, queries: np.ndarray) -> np.ndarray:
    index = faiss.IndexFlatL2(entries.shape[1])
    index.add(entries)
    return np.sqrt(np.maximum(index.search(queries, 1)[0][:, 0], 0))


def _brute(entries: np.ndarray, queries: np.ndarray) -> np.ndarray:
    theirs, least = torch.from_numpy(entries), []
    for some in torch.from_numpy(queries).split(1024):
        least.append(torch.cdist(some, theirs).amin(1))
    return torch.cat(least).numpy()


def _truth(joint: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]], like: np.ndarray) -> np.ndarray:
    """Least of the float64 distances to the four entries that a float32 search finds nearest."""
    truth = np.empty(like.shape)
    for number, layers in enumerate(SETS):
        entries, queries = joint[layers]
        index = faiss.IndexFlatL2(entries.shape[1])
        index.add(entries)
        near = index.search(queries, 4)[1]
        apart = [
            np.linalg.norm(queries.astype(np.float64) - entries[column].astype(np.float64), axis=1) for column in near.T
        ]
        truth[number] = np.min(apart, axis=0)
    return truth


def _peak(side: str, entries: int, queries: int, features: int) -> float:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measured_peak, (side, entries, queries, features))


def _measured_peak(side: str, entries: int, queries: int, features: int) -> float:
    """Megabytes above what the data and a small search took."""
    from core.memory_bank.search import Patches, Queries, search_everywhere

    random = stream(0, "bench bank memory")
    bank = random.standard_normal((entries, features), dtype=np.float32)
    asked = random.standard_normal((queries, features), dtype=np.float32)

    def ours(bank: np.ndarray, asked: np.ndarray) -> None:
        patches = Patches({"layer": torch.from_numpy(bank)}, {"layer": np.arange(len(bank))})
        search_everywhere(
            Queries(({"layer": torch.from_numpy(asked)},), {"layer": np.arange(len(asked))}), patches, [("layer",)]
        )

    def whole(bank: np.ndarray, asked: np.ndarray) -> None:
        torch.cdist(torch.from_numpy(asked), torch.from_numpy(bank)).amin(1)

    sides: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {"ours": ours, "faiss": _flat, "torch": whole}
    with one_thread():
        sides[side](bank[:64], asked[:64])
        before = resident_kilobytes("VmRSS", forget_peak=True)
        sides[side](bank, asked)
        return (resident_kilobytes("VmHWM") - before) / 1024

"""Which rows represent all: greedy k-centre, k-means, a random draw, and how well the chosen ones cover the rest.

Greedy k-centre (Gonzalez 1985; Sener & Savarese 2018, arXiv:1708.00489; PatchCore, arXiv:2106.08265) takes, one after
another, the row farthest from all rows taken so far: the largest distance left is at most twice the best possible. It
is done exactly but lazily. The currently farthest rows form a pool. As distances only shrink, the farthest row of the
pool is the farthest of all while it is at least as far as the pool's threshold, the largest distance left out; until
then a pick costs one pass over the pool, not over all rows. Then one matrix product catches up with all picks.

Rows are centred and scaled in float64 before they are rounded to float32, so that |a|² + |b|² − 2ab loses no digits to
a common offset: picks are those of a plain greedy in float64 except where two candidates' squared distances agree to
about 1e-6 of the rows' squared spread.
"""

from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from core.devices import device
from core.memory_bank.settings import Subset
from core.randomness import stream
from core.types import Monitor, silent
from data.errors import BadInput

POOL = 2048
"""Farthest rows among which picks are made between two passes over all rows."""
LLOYD = 5
"""Iterations of k-means; more move the centres little."""
_BLOCK = 1 << 20
"""Products in memory at a time: 4 MB, what a processor's cache holds."""
_ROWS = 8192
"""Rows converted at a time."""


@dataclass(frozen=True)
class Cover:
    """How far all rows are from their nearest chosen row."""

    radius: float
    """Largest distance."""
    mean: float


def select_coreset(
    rows: Float[np.ndarray, "rows features"],
    keep: int,
    method: Subset = "greedy",
    *,
    seed: int,
    projection: int = 128,
    monitor: Monitor = silent,
) -> Int64[np.ndarray, " chosen"]:
    """Indices of the `keep` rows that stand for all, distinct; every index when keep ≥ rows or the method is "all".

    Greedy and random come in the order of choice, so the first m of them are the choice of m. Distances are measured
    in a seeded Gaussian random projection to `projection` dimensions where the rows have more. The monitor gets the
    number of rows chosen and, from greedy, "cover_radius": the largest distance left, in units of the rows, estimated
    in the projection. BadInput for rows that are not finite. Memory: one float32 copy of the projected rows.
    """
    _check(rows, keep, method, projection)
    n = len(rows)
    if method == "all" or keep >= n:
        return np.arange(n, dtype=np.int64)
    drawn = stream(seed, "coreset random").permutation(n)[:keep].astype(np.int64)
    if method == "random":
        return drawn
    embedded, unit = _embedded(rows, seed, projection)
    if method == "kmeans":
        return _kmeans(embedded, drawn, monitor)
    first = drawn[: keep // 2] if method == "half" and keep > 1 else drawn[:1]
    return _greedy(embedded, first, keep, unit, monitor)


def cover(rows: Float[np.ndarray, "rows features"], chosen: Int64[np.ndarray, " chosen"]) -> Cover:
    """Largest and mean Euclidean distance of the rows to their nearest chosen row, unprojected, units of the rows.

    Blockwise. Distances are measured from differences in float64; only which chosen row is nearest is found in
    float32, so a distance can be too large where two chosen rows are equally near up to rounding.
    """
    rows, chosen = np.asarray(rows), np.asarray(chosen)
    _check(rows, len(chosen), "all", 1)
    if chosen.min() < 0 or chosen.max() >= len(rows):
        raise BadInput(f"Chosen rows are {chosen.min()} to {chosen.max()}. Allowed: 0 to {len(rows) - 1}.")
    embedded, _ = _embedded(rows, 0, rows.shape[1])
    nearest = _nearest(embedded, embedded[torch.from_numpy(chosen).to(embedded.device)])[1]
    centre = chosen[nearest.cpu().numpy()]
    centre[chosen] = chosen
    largest, total = 0.0, 0.0
    for start in range(0, len(rows), _ROWS):
        block = slice(start, start + _ROWS)
        difference = rows[block].astype(np.float64) - rows[centre[block]]
        distance = np.linalg.norm(difference, axis=1)
        largest, total = max(largest, float(distance.max())), total + float(distance.sum())
    return Cover(largest, total / len(rows))


def cover_radius(rows: Float[np.ndarray, "rows features"], chosen: Int64[np.ndarray, " chosen"]) -> float:
    """Largest distance of any row to its nearest chosen row: what greedy k-centre makes small."""
    return cover(rows, chosen).radius


def _greedy(
    rows: Float32[Tensor, "rows features"],
    first: Int64[np.ndarray, " first"],
    keep: int,
    unit: float,
    monitor: Monitor,
) -> Int64[np.ndarray, " keep"]:
    """Continue `first` greedily. `left` is half the squared distance to the nearest chosen row; −1: chosen."""
    half = _half_squares(rows)
    chosen: list[int] = []
    fresh = [int(i) for i in first]
    left = torch.full_like(half, torch.inf)
    while True:
        _approach(left, rows, half, fresh)
        chosen += fresh
        left[torch.tensor(chosen, device=rows.device)] = -1.0
        farthest = float(left.max())
        monitor(len(chosen), {"cover_radius": unit * (2 * max(farthest, 0.0)) ** 0.5})
        if len(chosen) == keep:
            return np.array(chosen, dtype=np.int64)
        fresh = _picks(left, rows, half, keep - len(chosen))


def _picks(left: Tensor, rows: Tensor, half: Tensor, wanted: int) -> list[int]:
    """At most `wanted` greedy picks: those that are certain from the pool alone, at least one."""
    size = min(POOL, len(left) - 1)
    far, place = left.topk(size + 1)
    threshold = float(far[-1])
    place, far = place[:-1], far[:-1].clone()
    pool, pool_half = rows[place], half[place]
    of, halves = place.tolist(), pool_half.tolist()
    picks: list[int] = []
    while len(picks) < wanted:
        value, index = far.max(0)
        i = int(index)
        # A chosen row has −1; were all others of the pool chosen, the threshold (≥ −1) would not be beaten.
        if picks and float(value) < max(threshold, 0.0):
            break
        picks.append(of[i])
        torch.minimum(far, torch.addmv(pool_half, pool, pool[i], alpha=-1).add_(halves[i]).clamp_min_(0), out=far)
        far[i] = -1.0
    return picks


def _approach(left: Tensor, rows: Tensor, half: Tensor, fresh: list[int]) -> None:
    """Let all rows know of the fresh picks: half the squared distance is |a|²/2 − max(ab − |b|²/2)."""
    for part in np.array_split(np.array(fresh), -(-len(fresh) // 1024)):
        index = torch.from_numpy(part).to(rows.device)
        centres, centre_half = rows[index].T.contiguous(), half[index]
        step = max(1, _BLOCK // len(part))
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            best = torch.addmm(centre_half, rows[block], centres, beta=-1).amax(1)
            torch.minimum(left[block], (half[block] - best).clamp_min_(0), out=left[block])


def _kmeans(
    rows: Float32[Tensor, "rows features"], first: Int64[np.ndarray, " keep"], monitor: Monitor
) -> Int64[np.ndarray, " keep"]:
    """Lloyd's iterations from random rows; of each cluster the row nearest to its centre.

    Clusters that ran empty (duplicate rows) are replaced by the rows farthest from their own centre.
    """
    centres = rows[torch.from_numpy(first).to(rows.device)]
    host = rows.cpu().numpy()
    for number in range(LLOYD):
        of = _nearest(rows, centres)[1].cpu().numpy()
        centres = _means(host, of, centres)
        monitor(number + 1, {})
    half_squares, nearest = (a.cpu().numpy() for a in _nearest(rows, centres))
    order = np.lexsort((half_squares, nearest))
    leaders = order[np.flatnonzero(np.diff(nearest[order], prepend=-1))]
    others = np.setdiff1d(np.arange(len(host)), leaders)
    far = others[np.argsort(-half_squares[others], kind="stable")]
    return np.asarray(np.concatenate([leaders, far[: len(first) - len(leaders)]]), dtype=np.int64)


def _means(rows: Float32[np.ndarray, "rows features"], of: Int64[np.ndarray, " rows"], centres: Tensor) -> Tensor:
    """Mean row of each cluster, added up in one order whatever the device; an empty one keeps its centre."""
    order = np.argsort(of, kind="stable")
    starts = np.flatnonzero(np.diff(of[order], prepend=-1))
    filled = of[order[starts]]
    counts = np.diff(np.append(starts, len(order)))
    moved = centres.cpu().numpy().copy()
    for feature in range(rows.shape[1]):
        moved[filled, feature] = np.add.reduceat(rows[order, feature].astype(np.float64), starts) / counts
    return torch.from_numpy(moved).to(centres.device)


def _nearest(rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Half the squared distance to the nearest centre, and which it is; memory is one block of products."""
    half = _half_squares(rows)
    best = torch.full_like(half, -torch.inf)
    index = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for offset in range(0, len(centres), 1024):
        some = centres[offset : offset + 1024]
        some_half, turned = _half_squares(some), some.T.contiguous()
        for start in range(0, len(rows), 1024):
            block = slice(start, start + 1024)
            value, place = torch.addmm(some_half, rows[block], turned, beta=-1).max(1)
            better = value > best[block]
            best[block] = torch.where(better, value, best[block])
            index[block] = torch.where(better, place + offset, index[block])
    return (half - best).clamp_min_(0), index


def _half_squares(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return lengths.square_().mul_(0.5)


def _embedded(rows: Float[np.ndarray, "rows features"], seed: int, projection: int) -> tuple[Tensor, float]:
    """Centred, scaled to at most 1 and, where that lowers their dimension, projected rows; and the unit of 1.

    Entries of the projection are N(0, 1/projection): squared lengths are kept in expectation.
    """
    n, d = rows.shape
    mean = np.zeros(d)
    for start in range(0, n, _ROWS):
        mean += rows[start : start + _ROWS].sum(0, dtype=np.float64)
    mean /= n
    unit = max(float(np.abs(rows[start : start + _ROWS] - mean).max()) for start in range(0, n, _ROWS)) or 1.0
    matrix = None
    if projection < d:
        normal = stream(seed, "coreset projection").standard_normal((d, projection))
        matrix = torch.from_numpy((normal / projection**0.5).astype(np.float32)).to(device())
    embedded = torch.empty((n, min(d, projection)), dtype=torch.float32, device=device())
    for start in range(0, n, _ROWS):
        block = ((rows[start : start + _ROWS] - mean) / unit).astype(np.float32)
        part = torch.from_numpy(block).to(device())
        embedded[start : start + _ROWS] = part if matrix is None else part @ matrix
    return embedded, unit


def _check(rows: np.ndarray, keep: int, method: str, projection: int) -> None:
    if method not in get_args(Subset):
        raise BadInput(f"Coreset method is {method!r}. Allowed: {', '.join(get_args(Subset))}.")
    if np.ndim(rows) != 2 or rows.shape[0] < 1 or rows.shape[1] < 1:
        raise BadInput(
            f"Rows to choose from have shape {np.shape(rows)}. Allowed: (rows, features), at least one each."
        )
    if keep < 1:
        raise BadInput(f"{keep} rows are to be kept. Allowed: 1 or more. Raise coreset_ratio.")
    if projection < 1:
        raise BadInput(f"projection is {projection}. Allowed: 1 or more dimensions. PatchCore: 128.")
    if not all(np.isfinite(rows[start : start + _ROWS]).all() for start in range(0, len(rows), _ROWS)):
        raise BadInput("Rows contain NaN or infinity. Look at the encoder's features, and at the scans it was given.")

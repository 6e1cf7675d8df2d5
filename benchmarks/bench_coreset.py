"""Choosing a memory bank's rows: the lazy exact greedy against a plain one, and what the other choices cover.

Rows are features of synthetic healthy brains, one position's stage1 (64) and stage2 (128) channels of a random 3-D
encoder, 3x3x3 means, beside each other. The plain greedy is our own writing of what the field does, in its lean form:
per pick one matrix-vector product over all rows and a running minimum. Both start at the same row and measure in all
192 dimensions, so their picks can be compared; the cover is measured by one function, from differences in float64.
`methods` uses the usual random projection to 128 and says what that costs in cover.
Run: python -m benchmarks --only coreset_vs_plain_greedy
"""

import functools
from typing import Any

import numpy as np
import torch

from benchmarks.clock import cpu_seconds, side_by_side
from core.features.extraction import make_extractor
from core.features.settings import FeatureSettings
from core.memory_bank.coreset import cover, select_coreset
from core.memory_bank.settings import Subset
from data.synthetic import synthesise_subject
from data.volume import Volume
from models.encoder import make_encoder
from models.settings import EncoderSettings

LAYERS = ("stage1", "stage2")


def coreset_vs_plain_greedy(n: int = 100_000, keep: int = 5000, subjects: int = 8, rounds: int = 3) -> dict[str, Any]:
    """`keep` of `n` rows; the plain side runs once. Target: 5 times faster at a cover radius within 2 %."""
    rows = phantom_rows(n, subjects)
    first = int(select_coreset(rows, 1, "greedy", seed=0)[0])
    d = rows.shape[1]
    timing = side_by_side(
        lambda: select_coreset(rows, keep, "greedy", seed=0, projection=d),
        lambda: plain_greedy(rows, first, keep),
        rounds,
        1,
    )
    ours, plain = cover(rows, timing.value), cover(rows, timing.reference)
    same = timing.value == timing.reference
    return {
        "ratio": timing.ratio,
        "ours_s": timing.seconds,
        "reference_s": timing.reference_seconds,
        "cover_radius": ours.radius,
        "reference_cover_radius": plain.radius,
        "rel_radius_difference": abs(ours.radius - plain.radius) / plain.radius,
        "picks_equal_in_order": int(same.sum()),
        "first_different_pick": int(np.argmin(same)) if not same.all() else keep,
        "picks_in_common": len(np.intersect1d(timing.value, timing.reference)),
        "rows": n,
        "features": d,
        "keep": keep,
        "methods": {m: _method(rows, keep, m) for m in ("greedy", "half", "kmeans", "random")},
    }


def _method(rows: np.ndarray, keep: int, method: Subset) -> dict[str, float]:
    seconds, chosen = cpu_seconds(lambda: select_coreset(rows, keep, method, seed=0))
    found = cover(rows, chosen)
    return {"seconds": seconds, "cover_radius": found.radius, "mean_distance": found.mean}


def plain_greedy(rows: np.ndarray, first: int, keep: int) -> np.ndarray:
    """Greedy k-centre, one pass over all rows per pick, float32."""
    X = torch.from_numpy(rows - rows.mean(0, dtype=np.float64).astype(np.float32))
    squares = (X * X).sum(1)
    left = torch.full_like(squares, torch.inf)
    chosen = [first]
    while True:
        i = chosen[-1]
        torch.minimum(left, torch.addmv(squares, X, X[i], alpha=-2).add_(squares[i]), out=left)
        left[i] = -1.0
        if len(chosen) == keep:
            return np.array(chosen)
        chosen.append(int(left.argmax()))


@functools.lru_cache(maxsize=1)
def phantom_rows(n: int, subjects: int) -> np.ndarray:
    """A seeded draw of patches of synthetic healthy brains, each layer divided by its spread; (n, 192) float32."""
    volumes = [_volume(i) for i in range(subjects)]
    settings = FeatureSettings(layers=LAYERS, neighbourhood=3)
    extractor = make_extractor(make_encoder(EncoderSettings()), settings, volumes, torch.device("cpu"))
    found = []
    for volume in volumes:
        features = extractor(volume)
        lookup = features.layout.lookup
        found.append(torch.cat([features.rows[x].float()[torch.from_numpy(lookup[x])] for x in LAYERS], 1).numpy())
    rows = np.concatenate(found)
    rows = rows[np.sort(np.random.default_rng(0).permutation(len(rows))[:n])]
    start = 0
    for layer in LAYERS:
        part = rows[:, start : start + extractor.layout.channels[layer]]
        part /= float(part.std(0).astype(np.float64) @ part.std(0)) ** 0.5
        start += part.shape[1]
    return np.ascontiguousarray(rows, dtype=np.float32)


def _volume(index: int) -> Volume:
    subject = synthesise_subject(index, with_lesions=False, seed=7)
    inside = subject.flair[subject.brain]
    voxels = np.where(subject.brain, (subject.flair - inside.mean()) / inside.std(), 0).astype(np.float32)
    return Volume(voxels[None], subject.grid, subject.brain, f"sub-{index}", ("FLAIR",))

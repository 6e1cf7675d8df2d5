"""Is it this kind of scan at all? Each prepared scan against the template, its contrast, and the others of its cohort.

Looked at before anything is learnt: what lies back to front, is no T1 or no brain, is somebody else's scan with noise
on it, or is unlike all other healthy ones. A doubt sets a scan aside unless its user keeps it by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from data.template import working_template
from data.volume import Volume

BLOCK_MM = 8.0
"""Edge of the blocks whose means are compared."""
LEAST_CORRELATION = 0.15
"""Of block means with those of the T1 template, for a registered T1 scan. 24 real heads, healthy and ill, of five
sources: 0.25 to 0.76; an inverted one -0.39; an angiogram, a map of statistics, smooth noise: below 0.05."""
FLIP_MARGIN = 0.05
"""By how much a flipped scan must fit the template better than the scan as it lies."""
SAME_SCAN = 0.7
"""Correlation, of what is a scan's own, from which on two scans are one: other people's lie below 0.2."""
STRANGE = 6.0
"""Robust deviations from the other healthy scans from which on one is an outlier among them."""
FEWEST = 6
"""Scans below which a cohort says nothing of one of them."""


@dataclass(frozen=True)
class Doubt:
    """Why a scan may not be what it is filed as."""

    subject_id: str
    code: str
    cause: str


@dataclass(frozen=True, eq=False)
class Impression:
    """What is kept of a scan for the comparison: block means of the first contrast within its brain."""

    subject_id: str
    blocks: Float64[np.ndarray, "i j k"]
    """NaN where less than half of a block is brain."""
    mirrored: Float64[np.ndarray, "i j k"]
    """The same of the mirror image, left and right exchanged."""


def impression(volume: Volume) -> Impression:
    """The block means of a volume on the working grid, whose middle plane is that of MNI152."""
    values, spacing_mm = volume.voxels[0].astype(np.float64), volume.grid.spacing_mm[0]
    plain = _blocks(values, volume.brain_mask, spacing_mm)
    return Impression(volume.subject_id, plain, _blocks(_mirror(values, volume), _mirror(volume.brain_mask, volume),
                                                        spacing_mm))  # fmt: skip


def template_impression(spacing_mm: float) -> Impression:
    """That of the T1 template on the working grid."""
    return impression(working_template(spacing_mm))


def doubts_of_scan(seen: Impression, template: Impression, contrast: str) -> list[Doubt]:
    """What is wrong with one scan by itself: how it lies, and, for T1, how its tissues are ordered."""
    fit = correlation(seen.blocks, template.blocks)
    found: list[Doubt] = []
    for axis, words in ((2, "upside down"), (1, "back to front")):
        turned = correlation(np.flip(seen.blocks, axis), template.blocks)
        if contrast == "T1" and turned > max(fit + FLIP_MARGIN, LEAST_CORRELATION):
            found.append(
                Doubt(seen.subject_id, "E-REF-FLIP", f"fits the template better {words} ({turned:.2f} instead of "
                      f"{fit:.2f}): its header says a wrong orientation.")
            )  # fmt: skip
    if contrast == "T1" and not found and fit < LEAST_CORRELATION:
        cause = (
            f"does not look like a T1 scan of a brain: its tissues agree with the T1 template by {fit:.2f}, T1 scans "
            f"by more than {LEAST_CORRELATION} (T2 and inverted scans are negative; a CT, an angiogram or a map of "
            "statistics lies near 0)."
        )
        found.append(Doubt(seen.subject_id, "E-REF-CONTRAST", cause))
    return found


def doubts_of_cohort(
    seen: Sequence[Impression], healthy: Sequence[str]
) -> tuple[list[Doubt], list[tuple[str, str, float]]]:
    """Scans unlike the other healthy ones (leave-one-out), and pairs that are one scan, with their correlation."""
    if len(seen) < FEWEST:
        return [], []
    stack = np.stack([one.blocks for one in seen])
    common = np.isfinite(stack).mean(axis=0) > 0.9
    values = _standardised(stack[:, common])
    mirrored = _standardised(np.stack([one.mirrored for one in seen])[:, common])
    return _outliers(seen, values, healthy), _twins(seen, values, mirrored)


def correlation(first: Float64[np.ndarray, "i j k"], second: Float64[np.ndarray, "i j k"]) -> float:
    """Pearson correlation over the blocks that both have; 0 when there are fewer than 20 or no spread."""
    both = np.isfinite(first) & np.isfinite(second)
    if np.count_nonzero(both) < 20:
        return 0.0
    a, b = first[both] - first[both].mean(), second[both] - second[both].mean()
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def _standardised(values: np.ndarray) -> np.ndarray:
    """Each row with mean 0 and deviation 1; what is missing has its column's median, or 0."""
    seen = np.isfinite(values).any(axis=0)
    median = np.zeros(values.shape[1])
    median[seen] = np.nanmedian(values[:, seen], axis=0)
    filled = np.where(np.isfinite(values), values, median)
    centred: np.ndarray = filled - filled.mean(axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(centred.std(axis=1, keepdims=True), 1e-9))


def _outliers(seen: Sequence[Impression], values: np.ndarray, healthy: Sequence[str]) -> list[Doubt]:
    places = [n for n, one in enumerate(seen) if one.subject_id in set(healthy)]
    if len(places) < FEWEST:
        return []
    distance = {}
    for n in places:
        others = values[[m for m in places if m != n]]
        spread = np.maximum(others.std(axis=0), 0.05)
        distance[n] = float(np.sqrt((((values[n] - others.mean(axis=0)) / spread) ** 2).mean()))
    middle = float(np.median(list(distance.values())))
    width = max(1.4826 * float(np.median([abs(d - middle) for d in distance.values()])), 0.1 * middle, 1e-9)
    return [
        Doubt(
            seen[n].subject_id,
            "E-REF-OUTLIER",
            f"is unlike the other {len(places) - 1} healthy scans: {d:.1f} of their deviations on average, the others "
            f"{middle:.1f}. Pathology, motion, another sequence or a bad brain mask.",
        )
        for n, d in distance.items()
        if d > middle + STRANGE * width
    ]


def _twins(seen: Sequence[Impression], values: np.ndarray, mirrored: np.ndarray) -> list[tuple[str, str, float]]:
    """Pairs whose own part, without what all share, agrees; also when one is the other's mirror image."""
    own, pairs = values - values.mean(axis=0), []
    for first, second in ((own, own), (own, mirrored - mirrored.mean(axis=0))):
        a = first / np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-9)
        b = second / np.maximum(np.linalg.norm(second, axis=1, keepdims=True), 1e-9)
        agreement = a @ b.T
        pairs += [
            (seen[i].subject_id, seen[j].subject_id, float(agreement[i, j]))
            for i in range(len(seen))
            for j in range(i + 1, len(seen))
            if agreement[i, j] >= SAME_SCAN
        ]
    return sorted({(a, b): (a, b, c) for a, b, c in pairs}.values())


def _blocks(
    values: Float64[np.ndarray, "x y z"], inside: Bool[np.ndarray, "x y z"], spacing_mm: float
) -> Float64[np.ndarray, "i j k"]:
    """Means of the values inside; NaN where less than half of a block is inside."""
    edge = max(1, round(BLOCK_MM / spacing_mm))
    shape = tuple(-(-n // edge) * edge for n in values.shape)
    pad = [(0, full - n) for full, n in zip(shape, values.shape, strict=True)]
    split = (shape[0] // edge, edge, shape[1] // edge, edge, shape[2] // edge, edge)
    total = np.pad(np.where(inside, values, 0.0), pad).reshape(split).sum(axis=(1, 3, 5))
    count = np.pad(inside.astype(np.float64), pad).reshape(split).sum(axis=(1, 3, 5))
    return np.where(count >= 0.5 * edge**3, total / np.maximum(count, 1.0), np.nan)


def _mirror(values: np.ndarray, volume: Volume) -> np.ndarray:
    """Values at x are those at -x; 0 where that lies outside of the grid."""
    n = values.shape[0]
    source = np.round(-2 * volume.grid.affine[0, 3] / volume.grid.spacing_mm[0]).astype(int) - np.arange(n)
    inside = (source >= 0) & (source < n)
    turned: np.ndarray = np.where(inside[:, None, None], values[np.clip(source, 0, n - 1)], np.zeros((), values.dtype))
    return turned


def in_words(pairs: Sequence[tuple[str, str, float]], roles: Mapping[str, str]) -> str:
    """Pairs in words, with the splits that they stand in."""
    told = [[f"{one!r} ({roles.get(one, 'no split')})" for one in pair[:2]] for pair in pairs[:5]]
    return "; ".join(" and ".join(pair) for pair in told)

"""Is it this kind of scan at all? Each prepared scan against the template, its contrast, and the others of its cohort.

Looked at before anything is learnt: what lies back to front, has part of its brain outside of the scan, is no T1, no
FLAIR or no brain, is somebody else's scan with noise on it, or is unlike all other healthy ones. A doubt sets a scan
aside unless its user keeps it by name.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64
from scipy.ndimage import binary_erosion

from data.prepared import Prepared
from data.registration import overlap
from data.template import working_template
from data.volume import Mask, Volume

BLOCK_MM = 8.0
"""Edge of the blocks whose means are compared."""
LEAST_CORRELATION = 0.15
"""Of block means with those of the T1 template, for a registered T1 scan. 24 real heads, healthy and ill, of five
sources: 0.25 to 0.76; an inverted one -0.39; an angiogram, a map of statistics, smooth noise: below 0.05."""
FLIP_MARGIN = 0.05
"""By how much a flipped scan must fit the template better than the scan as it lies."""
LEAST_OVERLAP = 0.9
"""Dice of a registered brain with the template's. The same heads: 0.95 to 0.97; one without its lower third 0.89, one
upside down or back to front 0.86 to 0.89."""
ALIGNED = 0.93
"""Dice from which on a scan that nobody registered lies on the template well enough to be compared with it."""
FLUID = {"T1": (-9.0, 1.0), "T1C": (-9.0, 1.0), "FLAIR": (-9.0, 1.0), "T2": (0.5, 99.0)}
"""How bright the fluid of the ventricles may be, in deviations of the tissue from its median. Real heads: T1 -4.2 to
-1.0, FLAIR -3.6 to -0.4, T2 4.1 and 4.8; an inverted T1 1.4."""
LITRES = (0.5, 2.5)
"""Volumes between which a brain's lies. The same heads: 1.1 to 1.7 L."""
CUT_CM2 = 60.0
"""Brain that touches one face of its scan; a section through the middle of a head has 100 to 150 cm2."""
SAME_SCAN = 0.7
"""Correlation, of what is a scan's own, from which on two scans are one: other people's lie below 0.2."""
SAME_POSE = 0.9
"""The same for scans that were not registered, where how a head lies is its own too: 60 people reach 0.63."""
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
    contrast: str = ""
    """Of which scan it is told; of the first when not said."""


@dataclass(frozen=True, eq=False)
class Impression:
    """What is kept of a scan for the comparison: block means of one contrast within its brain."""

    subject_id: str
    blocks: Float64[np.ndarray, "i j k"]
    """NaN where less than half of a block is brain."""
    mirrored: Float64[np.ndarray, "i j k"]
    """The same of the mirror image, left and right exchanged."""


def impression(volume: Volume, contrast: int = 0) -> Impression:
    """The block means of one contrast of a volume on the working grid, whose middle plane is that of MNI152."""
    values, spacing_mm = volume.voxels[contrast].astype(np.float64), volume.grid.spacing_mm[0]
    plain = _blocks(values, volume.brain_mask, spacing_mm)
    return Impression(volume.subject_id, plain, _blocks(_mirror(values, volume), _mirror(volume.brain_mask, volume),
                                                        spacing_mm))  # fmt: skip


@functools.cache
def template_impression(spacing_mm: float) -> Impression:
    """That of the T1 template on the working grid."""
    return impression(working_template(spacing_mm))


def doubts_of_scan(one: Prepared, registered: bool) -> list[Doubt]:
    """What is wrong with one scan by itself: its brain's size and place, how it lies, how its tissues are ordered.

    Of a scan that was not `registered`, size alone is looked at unless it lies on the template all the same.
    """
    name, volume, brain = one.volume.subject_id, one.volume, one.volume.brain_mask
    template_brain = working_template(volume.grid.spacing_mm[0]).brain_mask
    causes = [(*told, "") for told in doubts_of_brain(one.native_brain)]
    lies = [overlap(turned, template_brain) for turned in (brain, np.flip(brain, 2), np.flip(brain, 1))]
    if registered or max(lies) >= ALIGNED:
        causes += [(*told, "") for told in doubts_of_place(volume, lies)]
        if not any(code == "E-REF-FLIP" for code, _, _ in causes):
            causes += doubts_of_contrast(volume)
    return [Doubt(name, code, cause, contrast) for code, cause, contrast in causes[:1]]


def doubts_of_brain(brain: Mask) -> list[tuple[str, str]]:
    """A brain that is none by its volume, and one that ends where its scan ends: code and cause."""
    litres = brain.volume_ml / 1000
    if not LITRES[0] <= litres <= LITRES[1]:
        return [
            ("E-REF-VOLUME", f"has a brain of {litres:.2f} L, and brains have {LITRES[0]} to {LITRES[1]} L: its mask "
             "covers something else, or its header says a wrong voxel size.")
        ]  # fmt: skip
    side, cm2 = max(brain.at_faces_cm2().items(), key=lambda face: face[1])
    if cm2 >= CUT_CM2:
        return [
            ("E-REF-FOV", f"was scanned in part: its brain ends at the {side} edge of the scan over {cm2:.0f} cm².")
        ]
    return []


def doubts_of_place(volume: Volume, lies: Sequence[float]) -> list[tuple[str, str]]:
    """A brain that fits the template better when it is turned over, or that does not fit it: code and cause.

    `lies`: Dice with the template's brain as it lies, upside down, back to front.
    """
    dice = lies[0]
    seen, wanted = impression(volume), template_impression(volume.grid.spacing_mm[0])
    fit = correlation(seen.blocks, wanted.blocks)
    for axis, words, over in ((2, "upside down", lies[1]), (1, "back to front", lies[2])):
        turned = correlation(np.flip(seen.blocks, axis), wanted.blocks)
        if volume.contrasts[0] == "T1" and turned > max(fit + FLIP_MARGIN, LEAST_CORRELATION):
            return [
                ("E-REF-FLIP", f"fits the template better {words} ({turned:.2f} instead of {fit:.2f}): its header says "
                 "a wrong orientation.")
            ]  # fmt: skip
        if dice < LEAST_OVERLAP and over > dice:
            return [
                ("E-REF-FLIP", f"fits the template's brain better {words} (Dice {over:.2f} instead of {dice:.2f}): its "
                 "header says a wrong orientation.")
            ]  # fmt: skip
    if dice < LEAST_OVERLAP:
        return [
            ("E-REF-OVERLAP", f"covers the brain of the template with Dice {dice:.2f}, whole brains with more than "
             f"{LEAST_OVERLAP}: part of it is missing, its mask is none of a brain, or it lies turned over.")
        ]  # fmt: skip
    return []


def doubts_of_contrast(volume: Volume) -> list[tuple[str, str, str]]:
    """Scans whose tissues are not in the order of the contrast that they are filed as: code, cause and contrast."""
    spacing_mm = volume.grid.spacing_mm[0]
    for n, contrast in enumerate(volume.contrasts):
        fit = correlation(impression(volume, n).blocks, template_impression(spacing_mm).blocks)
        if contrast == "T1" and fit < LEAST_CORRELATION:
            return [
                ("E-REF-CONTRAST", "does not look like a T1 scan of a brain: its tissues agree with the T1 template "
                 f"by {fit:.2f}, T1 scans by more than {LEAST_CORRELATION} (T2 and inverted scans are negative; a CT, "
                 "an angiogram or a map of statistics lies near 0).", contrast)
            ]  # fmt: skip
        low, high = FLUID.get(contrast, (-np.inf, np.inf))
        fluid = brightness_of_fluid(volume.voxels[n], volume.brain_mask, spacing_mm)
        if not low <= fluid <= high:
            side, like = ("darker", "a T1 or FLAIR is") if fluid < low else ("brighter", "a T2 or inverted scan is")
            return [
                ("E-REF-CONTRAST", f"does not look like a {contrast}: the fluid of its ventricles is {side} than its "
                 f"tissue ({fluid:.1f} deviations), as {like}.", contrast)
            ]  # fmt: skip
    return []


def brightness_of_fluid(
    values: Float32[np.ndarray, "x y z"], brain: Bool[np.ndarray, "x y z"], spacing_mm: float
) -> float:
    """Median of the ventricles less that of the tissue around them, in the tissue's deviations; 0 when unseen."""
    fluid, tissue = _middle_of_the_brain(spacing_mm)
    inside, around = values[fluid & brain], values[tissue & brain]
    spread = float(around.std()) if around.size else 0.0
    if not inside.size or spread == 0:
        return 0.0
    return float((np.median(inside) - np.median(around)) / spread)


@functools.cache
def _middle_of_the_brain(spacing_mm: float) -> tuple[Bool[np.ndarray, "x y z"], Bool[np.ndarray, "x y z"]]:
    """Ventricles and tissue of the template, 20 mm from its surface and deeper: its darkest 4 % and brightest 80 %."""
    template = working_template(spacing_mm)
    deep = np.asarray(binary_erosion(template.brain_mask, iterations=max(1, round(20 / spacing_mm))))
    values = template.voxels[0]
    low, high = np.percentile(values[deep], (4, 20))
    return deep & (values < low), deep & (values > high)


def doubts_of_cohort(
    seen: Sequence[Impression], healthy: Sequence[str], registered: bool = True
) -> tuple[list[Doubt], list[tuple[str, str, float]]]:
    """Scans unlike the other healthy ones (leave-one-out), and pairs that are one scan, with their correlation.

    Unregistered heads differ by how they lie, so none of them is called unlike the others.
    """
    if len(seen) < FEWEST:
        return [], []
    stack = np.stack([one.blocks for one in seen])
    common = np.isfinite(stack).mean(axis=0) > 0.9
    if np.count_nonzero(common) < 20:
        return [], []
    values = _standardised(stack[:, common])
    mirrored = _standardised(np.stack([one.mirrored for one in seen])[:, common])
    strange = _outliers(seen, values, healthy) if registered else []
    return strange, _twins(seen, values, mirrored, SAME_SCAN if registered else SAME_POSE)


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


def _twins(
    seen: Sequence[Impression], values: np.ndarray, mirrored: np.ndarray, least: float
) -> list[tuple[str, str, float]]:
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
            if agreement[i, j] >= least
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

"""What-ifs that need stored score maps only: masks, each subject's scale, labels, a coarse grid of thresholds."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from core.diagnosis.placement import LEAST_DICE, template_dice
from core.diagnosis.what_if.bench import Bench, Outcome, variant_of
from core.diagnosis.what_if.paired import (
    LINEAR_STEPS,
    best_of_linear_grid,
    dice_pairs,
    difference,
    linear_thresholds,
    paired_at,
)
from core.diagnosis.what_if.variants import (
    ROBUST,
    TAILED,
    depth_mm,
    eroded,
    score_quantiles,
    with_moved_boundary,
    with_scores_mapped,
    without_border,
)
from core.metrics.protocols import best_common_threshold
from core.study.cases import Case
from data.template import working_template


def erode_mask(bench: Bench) -> Outcome:
    """Scores near the brain's rim left out: R9, in part R4. Lesion voxels there count as missed.

    Depth is the Euclidean distance in mm to the outside; the post-processing grid counts layers of 6-neighbours. The
    template's brain is tried only where the scans lie in its space: registered, or with a median Dice of the test
    subjects' brains and the template's of at least 0.9.
    """
    variants = []
    edge = min(bench.scores.prepared(bench.scores.subjects("test")[0]).volume.grid.spacing_mm)
    for voxels in (1, 2, 3):
        mm = voxels * edge
        after = bench.from_maps(f"Eroding by {mm:g} mm", functools.partial(eroded, millimetres=mm))
        title = f"own brain mask eroded by {mm:g} mm ({voxels} voxel edge{'s' if voxels > 1 else ''}, Euclidean)"
        settings = {"mask": "own", "voxels": voxels, "millimetres": mm, "distance": "Euclidean, mm"}
        variants.append(variant_of(f"own-{voxels}", title, settings, bench.pair(bench.stored, after), deployable=True))
    if (elsewhere := _elsewhere(bench)) is not None:
        return Outcome(variants, [elsewhere])
    template = working_template(bench.run.record["preprocessing"]["spacing_mm"])
    depth = depth_mm(template.brain_mask, template.grid.spacing_mm)
    for mm in (0.0, 2.0, 4.0, 6.0):
        change = functools.partial(eroded, millimetres=mm, template=depth)
        after = bench.from_maps(f"Template mask, {mm:g} mm", change)
        title = f"within the template's brain eroded by {mm:g} mm (Euclidean)"
        settings = {"mask": "template", "millimetres": mm, "distance": "Euclidean, mm"}
        variants.append(
            variant_of(f"template-{mm:g}mm", title, settings, bench.pair(bench.stored, after), deployable=True)
        )
    return Outcome(variants)


def calibrate_subject(bench: Bench) -> Outcome:
    """Scores of every subject brought to the scale of calibration: R5. One variant (oracle) leaves lesions out."""
    healthy = [score_quantiles(case, probabilities=TAILED) for case in bench.maps("calibration")]
    tailed = np.mean(healthy, axis=0)
    robust = tailed[[TAILED.index(p) for p in ROBUST]]
    choices: list[tuple[str, str, bool, Callable[[Case], Case]]] = [
        ("scale", "scores scaled to the median of calibration", False, lambda c: _rescaled(c, robust)),
        (
            "quantiles",
            "own 5 to 90 % score quantiles mapped onto those of calibration",
            False,
            lambda c: with_scores_mapped(c, score_quantiles(c), robust),
        ),
        (
            "oracle",
            "the same up to 99.9 %, lesion voxels left out of the quantiles",
            True,
            lambda c: with_scores_mapped(c, score_quantiles(c, probabilities=TAILED, without_lesion=True), tailed),
        ),
    ]
    variants = []
    for name, title, labels, change in choices:
        after = bench.from_maps(f"Calibrating: {name}", change)
        settings = {"reference": dict(zip(map(str, TAILED), tailed.tolist(), strict=True))}
        paired = bench.pair(bench.stored, after)
        variants.append(variant_of(name, title, settings, paired, deployable=not labels, needs_labels=labels))
    return Outcome(variants)


def label_boundary(bench: Bench) -> Outcome:
    """How much a reference that is one voxel tighter or wider would change: R13."""
    variants = []
    for voxels, word in ((-1, "eroded"), (1, "dilated")):
        change: Callable[[Case], Case] = functools.partial(with_moved_boundary, voxels=voxels)
        after = bench.from_maps(f"Reference {word}", change)
        title = f"reference {word} by one voxel"
        paired = bench.pair(bench.stored, after)
        variants.append(variant_of(word, title, {"voxels": voxels}, paired, needs_labels=True))
    return Outcome(variants, _left_out_notes(bench, variants))


def dont_care(bench: Bench) -> Outcome:
    """Without the voxels on either side of the lesion's border: R4b."""
    after = bench.from_maps("Leaving the border out", without_border)
    paired = bench.pair(bench.stored, after)
    title = "one voxel on either side of the lesion's border left out"
    variants = [variant_of("band-1", title, {"voxels": 1}, paired, needs_labels=True)]
    return Outcome(variants, _left_out_notes(bench, variants))


def threshold_grid(bench: Bench) -> Outcome:
    """What a linear grid of thresholds loses against every cut point: R7."""
    exact = bench.cuts(bench.stored)
    coarse = linear_thresholds(bench.stored, exact)
    paired = paired_at(bench.stored, bench.stored, exact, coarse, n_bootstrap=bench.n_bootstrap)
    cut, dice = best_common_threshold(bench.stored["test"])
    grid, found = best_of_linear_grid(bench.stored["test"])
    title = f"threshold from {LINEAR_STEPS} equal steps between the lowest and the highest score"
    variant = variant_of(f"linear-{LINEAR_STEPS}", title, {"steps": LINEAR_STEPS}, paired)
    variant["oracle"] = {
        "needs_labels": True,
        **difference(dice_pairs(bench.stored["test"], bench.stored["test"], cut, grid), bench.n_bootstrap, 0),
    }
    note = f"Threshold chosen on the test labels (oracle): {found:.3f} on the coarse grid, {dice:.3f} exactly."
    return Outcome([variant], [note])


def _elsewhere(bench: Bench) -> str | None:
    """Why the template's brain says nothing about these scans; None where it does."""
    if bench.run.record["preprocessing"]["registration"] != "none":
        return None
    dice = float(np.median([template_dice(bench.scores.prepared(i).volume) for i in bench.scores.subjects("test")]))
    if dice >= LEAST_DICE:
        return None
    return (
        f"The scans were not registered and do not lie in MNI152 space (median Dice of their brains and the template's "
        f"{dice:.2f}, {LEAST_DICE:g} needed): only their own masks were eroded."
    )


def _rescaled(case: Case, reference: Float64[np.ndarray, " q"]) -> Case:
    middle = ROBUST.index(0.5)
    own = score_quantiles(case)[middle]
    return with_scores_mapped(case, np.array([0.0, own]), np.array([0.0, reference[middle]]))


def _left_out_notes(bench: Bench, variants: Sequence[Mapping[str, Any]]) -> list[str]:
    bearing = sum(1 for s in bench.stored["test"] if s.n_lesion)
    notes = []
    for variant in variants:
        n = variant["test"]["healthy"]["n"]
        if n < bearing:
            notes.append(f"{variant['title']}: {bearing - n} of {bearing} test subjects have no lesion voxel left.")
    return notes

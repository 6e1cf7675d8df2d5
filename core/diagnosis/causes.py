"""Known causes of a low Dice, R0 to R17: what each costs in this run, by which formula, or which input is missing.

Three views are never summed: the ladder is ordered, the error map shares out one Dice, and the causes here are
one-at-a-time changes. A what-if's variant is chosen by its gain on *validation* subjects; its gain on test is quoted.
"""

from dataclasses import asdict, replace
from typing import Any

from scipy.stats import linregress

from core.diagnosis.cause_evidence import (
    RUN,
    SEED,
    Cause,
    Evidence,
    as_span,
    chosen_variant,
    cost_of,
    paired_gain,
    signed_text,
    stored_what_if,
    subjects_at,
    what_if_cause,
)
from core.diagnosis.ladder import imbalance
from core.diagnosis.verdict import settings_text
from core.gaussian.running import expected_inflation
from core.metrics.bootstrap import mean_interval, paired_difference


def causes(evidence: Evidence, run_id: str) -> list[dict[str, Any]]:
    """All causes R0..R17 in order, ready for JSON; commands that would measure the missing ones name the run."""
    found = [
        _imbalance(evidence),
        _rung(evidence, "R1", "Lesion outside the scored brain", "reachable", "1 − L1, L1 = 2|G∩V|/(|G∩V|+|G|)"),
        _rung(evidence, "R2", "Resolution of the feature grid", "feature_grid", "L1 − L2, the best map on the cells"),
        _space(evidence),
        _edges(evidence),
        what_if_cause(evidence, "R5", "Intensity differs between scans", ("renormalise", "calibrate-subject")),
        _registration(evidence),
        _threshold(evidence),
        _covariance(evidence),
        what_if_cause(evidence, "R9", "Skull and mask remnants", ("erode-mask",)),
        _brightness(evidence),
        _post_processing(evidence),
        _age(evidence),
        what_if_cause(evidence, "R13", "Quality of the labels", ("label-boundary",)),
        _leakage(evidence),
        _layers(evidence),
        _pooling(evidence),
        _noise(evidence),
    ]
    named = [replace(c, missing=c.missing.replace(RUN, run_id)) if c.missing else c for c in found]
    return [asdict(cause) for cause in named]


def _imbalance(e: Evidence) -> Cause:
    found = imbalance(e.figures, e.protocol, seed=SEED)
    needed = found["fpr_for_dice_half"]
    text = f"Mean false-positive rate {found['fpr']:.2%}"
    text += (
        "; at this recall no false-positive rate gives any subject a Dice of 0.5."
        if needed is None
        else f"; a Dice of 0.5 needs {needed:.3%} ({found['n_half_possible']} of {found['n']} subjects can reach it)."
    )
    return Cause(
        "R0",
        "Lesions are rare",
        f"{found['formula']}, π_ref = {found['reference_prevalence']:.0%}",
        text,
        found["cost"]["mean"],
        found["cost"]["low"],
        found["cost"]["high"],
        found["n"],
        needs_labels=True,
    )


def _rung(e: Evidence, cause_id: str, title: str, rung: str, formula: str) -> Cause:
    row = next(r for r in e.rungs if r["id"] == rung)
    return Cause(
        cause_id,
        title,
        formula,
        f"An oracle that is held back by this alone has a Dice of {row['mean']:.3f}.",
        row["cost"],
        row["cost_low"],
        row["cost_high"],
        len(e.subjects),
        needs_labels=True,
    )


def _space(e: Evidence) -> Cause:
    found = mean_interval([s["error_map"]["native_space"] for s in e.subjects], seed=SEED, purpose="R3")
    return Cause(
        "R3",
        "Evaluated in the scans' own space",
        "D(working grid) − D(native space), each at its own deployed threshold",
        "Resampling the map to the scan's own grid costs this much; negative: it helps.",
        *as_span(found),
    )


def _registration(e: Evidence) -> Cause:
    base = what_if_cause(e, "R6", "Registration", ("register",))
    slope = (((stored_what_if(e, "register") or {}).get("jitter") or {}).get("slope") or {}).get(e.protocol)
    if not slope or slope["per_mm"] is None:
        return base
    return replace(
        base, text=f"{base.text} Moving scan and lesion together changes Dice by {signed_text(slope['per_mm'])} per mm."
    )


def _edges(e: Evidence) -> Cause:
    shares = [cost_of(s, ("brain_edge", "tissue_border")) for s in e.subjects]
    found = mean_interval(shares, seed=SEED, purpose="R4")
    band = what_if_cause(e, "R4", "", ("dont-care",))
    bound = (
        "" if band.cost is None else f" Not judging the voxels beside the lesion's border: {signed_text(band.cost)}."
    )
    return Cause(
        "R4",
        "Edges and partial volume",
        "share of the error map: brain edge + tissue border",
        f"False positives at the brain's edge and at borders of tissue.{bound}",
        *as_span(found),
        needs_labels=True,
    )


def _threshold(e: Evidence) -> Cause:
    rungs = {r["id"]: r for r in e.rungs}
    transfer, common = rungs["deployed_threshold"], rungs["set_threshold"]
    grid = stored_what_if(e, "threshold-grid")
    text = (
        f"The deployed threshold loses {transfer['cost']:.3f} to the best single one, and that one "
        f"{common['cost']:.3f} to a threshold of each subject's own."
    )
    if grid is not None:
        picked = chosen_variant(grid, e.protocol)
        if picked is not None:
            change = picked[1]["gain"]
            text += f" Searching it on 100 linear steps {'loses' if change < 0 else 'gains'} {abs(change):.3f}."
    return Cause(
        "R7",
        "The threshold",
        "L4 − L5: best single threshold on test labels − deployed threshold",
        text,
        transfer["cost"],
        transfer["cost_low"],
        transfer["cost_high"],
        len(e.subjects),
        needs_labels=True,
    )


def _covariance(e: Evidence) -> Cause:
    title = "Fewer scans than features"
    if e.n_features is None or e.n_train is None:
        formula = "D(best covariance estimate) − D(as is), paired"
        return Cause("R8", title, formula, "", missing="A detector with a covariance; memory banks have none.")
    base = what_if_cause(e, "R8", title, ("covariance",))
    text = f"{e.n_train} training scans for {e.n_features} features"
    if e.n_train > e.n_features + 2:
        inflation = expected_inflation(e.n_train, e.n_features)
        text += f": a new healthy scan's squared distance is expected at {inflation:.2f} times its nominal value."
    else:
        text += ": the sample covariance is singular, only the ridge makes it invertible."
    fewer = stored_what_if(e, "fewer-scans")
    curve = " ".join(note for note in (fewer or {}).get("notes", []) if e.protocol in note)
    return Cause(**{**asdict(base), "text": " ".join(part for part in (text, base.text, curve) if part)})


def _brightness(e: Evidence) -> Cause:
    formula = "D(best intensity threshold) − D(this detector), same protocol and subjects"
    title = "A plain intensity threshold does as well"
    if not e.intensity:
        missing = "An evaluated run of intensity-bright or intensity-dark on the same subjects."
        return Cause("R10", title, formula, "", missing=missing)
    own = {r["subject_id"]: r["dice"] for r in subjects_at(e.figures, e.protocol)}
    found = {}
    for name, figures in e.intensity.items():
        other = {r["subject_id"]: r["dice"] for r in subjects_at(figures, e.protocol)}
        ids = [i for i in own if i in other]
        found[name] = paired_difference([other[i] for i in ids], [own[i] for i in ids], seed=SEED)
    best = max(found, key=lambda name: found[name].mean or 0.0)
    dice = {name: figures["protocols"][e.protocol]["mean_dice"] for name, figures in e.intensity.items()}
    told = ", ".join(f"{name} {value:.3f}" for name, value in dice.items())
    here = e.figures["protocols"][e.protocol]["mean_dice"]
    return Cause("R10", title, formula, f"{told}; this run {here:.3f}.", *as_span(found[best]), needs_labels=True)


def _post_processing(e: Evidence) -> Cause:
    title, formula = "Smoothing and post-processing", "D(best setting on validation) − D(shipped setting), on test"
    best = ((e.post_processing or {}).get("best_on_validation") or {}).get(e.protocol)
    if best is None:
        missing = f"The grid (it needs labelled validation subjects): python cli.py post-processing {RUN}"
        return Cause("R11", title, formula, "", deployable=True, kind="what-if", missing=missing)
    return Cause(
        "R11",
        title,
        formula,
        f"Best on validation: {settings_text(best['settings'])}.",
        best["gain"],
        best["gain_low"],
        best["gain_high"],
        best["n"],
        deployable=True,
        kind="what-if",
        what_if="post-processing",
    )


def _age(e: Evidence) -> Cause:
    title = "Training scans of other ages"
    formula = "slope of false-positive mL on healthy test scans over age; as Dice by `nearest-age`"
    alarms = e.figures["protocols"][e.protocol]["false_positive_ml_by_healthy_scan"]
    known = [(e.ages[i], ml) for i, ml in alarms.items() if i in e.ages]
    base = what_if_cause(e, "R12", title, ("nearest-age",))
    if len(known) < 5 or len({age for age, _ in known}) < 2:
        text = f"Ages are known for {len(known)} healthy test scans; a slope needs at least 5."
    else:
        line = linregress(*zip(*known, strict=True))
        text = (
            f"{signed_text(10 * line.slope, 1)} mL false positives per decade of age over {len(known)} healthy scans "
            f"(standard error {10 * line.stderr:.1f})."
        )
    return Cause(**{**asdict(base), "formula": formula, "text": f"{text} {base.text}".strip()})


def _leakage(e: Evidence) -> Cause:
    title = "Test labels in the threshold, or scans in two splits"
    formula = "D(validation threshold) − D(threshold tuned on test): what such a leak would add, as a negative cost"
    text = "No scan stands in two splits: voxels were compared by hash when the run was made."
    if e.shuffled_dice is not None:
        text += (
            f" With shuffled labels the best Dice is {e.shuffled_dice[0]:.4f}; calling everything lesion gives "
            f"{e.shuffled_dice[1]:.4f}."
        )
    if "validation" not in e.figures["protocols"]:
        missing = "Labelled validation subjects, to compare an honest threshold with a tuned one."
        return Cause("R14", title, formula, text, needs_labels=True, missing=missing)
    found = paired_gain(subjects_at(e.figures, "validation"), subjects_at(e.figures, "oracle_set"))
    return Cause("R14", title, formula, text, *as_span(found), needs_labels=True)


def _layers(e: Evidence) -> Cause:
    title, formula = "Choice of layers", "D(best set on validation) − D(this set), same protocol, on test"
    rated = {name: f.get("validation_mean_dice") for name, f in e.sets.items()}
    known = {name: value for name, value in rated.items() if value is not None}
    if len(e.sets) < 2:
        return Cause("R15", title, formula, "", deployable=True, missing="A detector with several layers.")
    if not known:
        return Cause("R15", title, formula, "", deployable=True, missing="Labelled validation subjects.")
    best = max(known, key=lambda name: (known[name], -name.count("+")))
    text = "This is the best set on validation." if best == e.layer_set else f"Best on validation: {best}."
    found = paired_gain(subjects_at(e.sets[best], e.protocol), subjects_at(e.figures, e.protocol))
    return Cause("R15", title, formula, text + _leave_one_out(e), *as_span(found), deployable=True)


def _leave_one_out(e: Evidence) -> str:
    layers = e.layer_set.split("+")
    if len(layers) < 2:
        return ""
    now = e.figures["protocols"][e.protocol]["mean_dice"]
    drops = []
    for layer in layers:
        rest = "+".join(x for x in layers if x != layer)
        if rest in e.sets:
            drops.append(f"{layer} {signed_text(e.sets[rest]['protocols'][e.protocol]['mean_dice'] - now)}")
    return f" Test Dice without one layer: {', '.join(drops)}." if drops else ""


def _pooling(e: Evidence) -> Cause:
    protocol = e.figures["protocols"][e.protocol]
    mean, pooled = protocol["mean_dice"], protocol["pooled_dice"]
    return Cause(
        "R16",
        "How subjects are averaged",
        "pooled Dice − mean Dice; pooled weighs each subject by |segmentation| + |lesion|",
        f"Mean over subjects {mean:.3f}, all voxels pooled {pooled:.3f}.",
        pooled - mean,
        n=protocol["n"],
    )


def _noise(e: Evidence) -> Cause:
    found = mean_interval([s["dice"] for s in e.subjects], seed=SEED, purpose="dice")
    if found.low is None or found.high is None:
        return Cause(
            "R17", "Sampling noise", "half the 95 % interval of the mean", "", missing="At least two subjects."
        )
    half = (found.high - found.low) / 2
    text = f"With {found.n} subjects a difference below about {half:.3f} cannot be told from chance, unless paired."
    return Cause("R17", "Sampling noise", "half the 95 % bootstrap interval of mean Dice", text, half, n=found.n)

"""The report of the bank study: every number is read from the runs, every sentence is computed from the numbers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from core.metrics.bootstrap import Interval, paired_difference
from core.metrics.lesions import SIZE_BINS_ML
from core.runs.evaluated import read_metrics
from core.runs.run_record import Run
from core.study.subject_level import subject_level_text

Runs = Mapping[str, Run]
Facts = Mapping[str, Any]
TITLES = {
    "zscore": "voxel-wise \\|z\\|",
    "dark": "intensity, dark (equalised)",
    "real-random": "Gaussian of the real study, random encoder",
    "real-simclr": "Gaussian of the real study, SimCLR encoder",
    "gaussian": "**Gaussian**, the banks' layers",
    "greedy": "**bank anywhere**, greedy",
    "random": "bank anywhere, random draw",
    "half": "bank anywhere, half greedy half random draw",
    "kmeans": "bank anywhere, k-means",
    "greedy-1": "bank anywhere, greedy, 1 % kept",
    "random-1": "bank anywhere, random draw, 1 % kept",
    "greedy-untrained": "bank anywhere, greedy, untrained encoder",
    "greedy-alone": "bank anywhere, greedy, selected on one layer",
    "weighted-0.05": "bank weighted by position, 0.05 per mm, greedy",
    "weighted-0.2": "bank weighted by position, 0.2 per mm, greedy",
    "within-8mm": "**bank within 8 mm**, random 25 %",
    "within-4mm": "bank within 4 mm, random 25 %",
    "gated-dark": "gated: dark intensity inside the bank's segmentation",
    "gated-zscore": "gated: \\|z\\| inside the bank's segmentation",
}
COMMAND = "python -m benchmarks.bank_study --scans SCANS --runs runs-real"
SUBSETS = ("greedy", "random", "half", "kmeans")
PLACES = ("within-8mm", "within-4mm", "weighted-0.05", "weighted-0.2")
SHORT = {"zscore": "\\|z\\|", "gaussian": "Gaussian", "greedy": "bank anywhere (greedy)"}


def write_report(path: Path, runs: Runs, gate_by: str, left_out: Sequence[str], facts: Facts) -> None:
    """Write the Markdown file. `gate_by`: the bank whose segmentation gates."""
    runs = {kind: runs[kind] for kind in TITLES if kind in runs}
    parts = [
        _head(runs, left_out),
        _winners(runs, gate_by),
        _table(runs),
        _layers(runs),
        _differences(runs, gate_by),
        _position(runs, facts),
        _same_patches(facts),
        _coresets(runs, facts),
        _subjects(runs, facts),
        _selection(runs, facts),
        _index(facts),
        _cost(runs, facts),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _head(runs: Runs, left_out: Sequence[str]) -> str:
    record = runs["gaussian"].record
    split, layers = record["split"], record["recipe"]["features"]["layers"]
    healthy = sum(s["healthy"] for s in record["cohort"]["subjects"] if s["role"] == "test")
    missing = "; ".join(_plain(kind) for kind in left_out)
    return f"""# Memory banks on real heads with planted strokes

Made by `{COMMAND}`
(Python {record["versions"]["python"]}, torch {record["versions"]["torch"]}), after the study of `real_scans.md`, whose
heads, split, planted lesions and SimCLR encoder (300 steps, one seed) are used again: {len(split["train"])} healthy
heads train, {len(split["calibration"])} calibrate, {len(split["validation"])} with planted lesions validate,
{len(split["test"]) - healthy} with planted lesions and {healthy} healthy ones test.

The banks and the Gaussian beside them see the same features: layers {", ".join(layers)}, 4 mm grid, each
feature the mean of the 3×3×3 cells around it (PatchCore's neighbourhood), so that the difference between them is
Gaussian against bank. The two Gaussians of the real study have other layers and no neighbourhood. Banks divide each
layer by its spread. "Within" banks keep a random quarter of all patches and compare a position with those in reach of
it; "anywhere" and "weighted" banks keep {_kept(runs)} of them (PatchCore: 1 %) unless the row says otherwise,
and compare with all that are kept. So within − anywhere is position and subset together.

All numbers are in the scans' own space, raw maps. Intervals are 95 % bootstrap over subjects; these are few, so read
them as rough. Headline layers are chosen on validation. *Oracle* columns chose their threshold on the test labels:
bounds, not results. {f"Not made, for lack of time: {missing}." if left_out else "Every planned row is there."}"""


def _winners(runs: Runs, gate_by: str) -> str:
    rated = {kind: _validation(run) for kind, run in runs.items() if not kind.startswith("gated")}
    best = max(rated, key=lambda kind: rated[kind])
    own = ("gaussian", *(kind for kind in runs if _is_bank(runs, kind)))
    best_feature = max(own, key=lambda kind: rated[kind])
    lines = [
        "## What won",
        "",
        f"- On validation (mean Dice at its one best threshold, working grid) {_title(best)} is best with "
        f"{rated[best]:.3f}; of the detectors over the same features it is {_title(best_feature)} with "
        f"{rated[best_feature]:.3f}"
        + (f", against {rated['gaussian']:.3f} of the Gaussian." if best_feature != "gaussian" else "."),
    ]
    for first, second in (("greedy", "gaussian"), ("within-8mm", "greedy"), ("within-8mm", "gaussian")):
        if {first, second} <= set(runs):
            found = _difference(runs, first, second)
            lines.append(f"- On test, {_plain(first)} − {_plain(second)}: {_signed(found)}, {_verdict(found)}.")
    if best_feature != "zscore" and "zscore" in runs:
        found = _difference(runs, best_feature, "zscore")
        lines.append(f"- On test, the best of them − {_plain('zscore')}: {_signed(found)}, {_verdict(found)}.")
    lines.append(f"- The bank with the best validation Dice, {_title(gate_by)}, is the gate of the gated pipelines.")
    return "\n".join(lines)


def _table(runs: Runs) -> str:
    rows = [
        "## Planted strokes",
        "",
        "| detector | headline layers | validation Dice (working grid) | AUPRC | Dice, healthy threshold "
        "| Dice, validation threshold | oracle, one threshold | oracle ⌈Dice⌉, pooled "
        "| false mL per healthy scan (healthy / validation threshold) |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for kind, run in runs.items():
        metrics, figures = read_metrics(run), _headline(run)
        protocols = figures["protocols"]
        alarms = [protocols[p]["false_positive_ml_per_healthy_scan"] for p in ("healthy", "validation")]
        layers = metrics["headline"].replace("+", " + ") if len(metrics["layers"]) > 1 else "–"
        cells = [
            _title(kind),
            layers,
            f"{_validation(run):.3f}",
            f"{figures['pooled']['auprc']:.3f}",
            _dice(protocols["healthy"]),
            _dice(protocols["validation"]),
            _dice(protocols["oracle_set"]),
            f"{figures['ceil_dice']['dice']:.3f}",
            " / ".join("–" if ml is None else f"{ml:.1f}" for ml in alarms),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _layers(runs: Runs) -> str:
    kinds = [k for k in runs if (k == "gaussian" or _is_bank(runs, k)) and len(read_metrics(runs[k])["layers"]) > 1]
    names = [*read_metrics(runs["gaussian"])["layers"], "+".join(read_metrics(runs["gaussian"])["layers"])]
    rows = [
        "## Layer by layer",
        "",
        "Dice at the validation threshold, and oracle ⌈Dice⌉ (pooled) behind the slash:",
        "",
        "| detector | " + " | ".join(name.replace("+", " + ") for name in names) + " |",
        "|---|" + "--:|" * len(names),
    ]
    for kind in kinds:
        sets = read_metrics(runs[kind])["sets"]
        cells = [
            f"{sets[n]['native']['protocols']['validation']['mean_dice']:.3f} / "
            f"{sets[n]['native']['ceil_dice']['dice']:.3f}"
            for n in names
        ]
        rows.append(f"| {_title(kind)} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _differences(runs: Runs, gate_by: str) -> str:
    banks = [kind for kind in runs if _is_bank(runs, kind)]
    pairs = [(kind, "gaussian") for kind in banks]
    pairs += [(kind, "greedy") for kind in PLACES if kind in runs]
    pairs += [(kind, "zscore") for kind in ("gaussian", *banks)]
    pairs += [(b, a) for n, a in enumerate(SUBSETS) for b in SUBSETS[n + 1 :] if {a, b} <= set(runs)]
    pairs += [(f"{kind}-1", kind) for kind in ("greedy", "random")]
    pairs += [("greedy", "greedy-untrained")] if "greedy-untrained" in runs else []
    for part in ("dark", "zscore"):
        pairs += [(f"gated-{part}", part), (f"gated-{part}", gate_by)] if f"gated-{part}" in runs else []
    rows = [
        "## Paired differences",
        "",
        "Mean Dice at the validation threshold over the same test subjects: headline layers, and all three layers for",
        "detectors that have them, where no choice of layers is in between.",
        "",
        "| difference | headline layers | | all three layers | |",
        "|---|--:|---|--:|---|",
    ]
    for first, second in pairs:
        if not {first, second} <= set(runs) or first == second:
            continue
        cells = []
        for chosen in (_headline, _all_layers):
            if any(chosen(runs[kind]) is None for kind in (first, second)):
                cells += ["", ""]
                continue
            found = _difference(runs, first, second, chosen)
            cells += [_signed(found), _verdict(found)]
        rows.append(f"| {_plain(first)} − {_plain(second)} | " + " | ".join(cells) + " |")
    n = _difference(runs, "greedy", "gaussian").n if "greedy" in runs else 0
    return "\n".join([*rows, "", f"Paired over {n} subjects. Many differences are tested: one in twenty is by chance."])


def _position(runs: Runs, facts: Facts) -> str:
    found = {kind: rows for kind, rows in facts.get("lesions", {}).items() if kind in runs}
    kinds = [k for k in ("zscore", "gaussian", "greedy", *PLACES) if k in found]
    if "greedy" not in kinds:
        return ""
    lines = [
        "## What knowing the position buys, lesion by lesion",
        "",
        f"{len(found['greedy'])} lesions of the test subjects (26-connected, at least 27 mm³; matched one to one, "
        "overlap ≥ 10 % or IoU ≥ 0.25), validation threshold, headline layers. Share of a lesion that is segmented, "
        "whatever the component, in brackets:",
        "",
        "| detector | " + " | ".join(name for name, *_ in SIZE_BINS_ML) + " | all |",
        "|---|" + "--:|" * (len(SIZE_BINS_ML) + 1),
    ]
    for kind in kinds:
        bands = [[r for r in found[kind] if low <= r["volume_ml"] < high] for _, low, high in SIZE_BINS_ML]
        cells = [_found_of(band) for band in [*bands, found[kind]]]
        lines.append(f"| {_title(kind)} | " + " | ".join(cells) + " |")
    lines.append("")
    pairs = [(kind, "greedy") for kind in PLACES if kind in kinds]
    pairs += [(kind, "gaussian") for kind in ("greedy", "within-8mm") if {kind, "gaussian"} <= set(kinds)]
    lines += [_gained(found, first, second) for first, second in pairs]
    return "\n".join(lines)


def _gained(found: Mapping[str, Sequence[Mapping[str, Any]]], first: str, second: str) -> str:
    mine, theirs = ({(r["subject_id"], r["label"]): r for r in found[kind]} for kind in (first, second))
    both = sorted(set(mine) & set(theirs))
    gained = [i for i in both if mine[i]["found"] and not theirs[i]["found"]]
    lost = [i for i in both if theirs[i]["found"] and not mine[i]["found"]]
    changed = len(gained) + len(lost)
    p = binomtest(len(gained), changed).pvalue if changed else 1.0
    subjects = sorted({i for i, _ in both})
    means = [
        [_mean([rows[key]["overlap"] for key in both if key[0] == subject]) for subject in subjects]
        for rows in (mine, theirs)
    ]
    overlap = paired_difference(means[0], means[1], seed=0)
    return (
        f"- {_plain(first)} against {_plain(second)}: finds {len(gained)} lesions that the other misses "
        f"({_millilitres(mine, gained)}) and misses {len(lost)} that it finds ({_millilitres(mine, lost)}); sign test "
        f"p = {p:.2g}. Mean segmented share of a subject's lesions {_signed(overlap)}: {_verdict(overlap)}."
    )


def _same_patches(facts: Facts) -> str:
    found = facts.get("same_patches")
    if not found:
        return ""
    few, many = (f"{found['counts'][key]:,}" for key in ("few", "all"))
    lines = [
        "## The same patches, in reach only or anywhere",
        "",
        "Which part of the difference is position, and which is the number of patches? One random bank, searched in",
        "three ways: AUROC of lesion positions against random others of the same scan, mean over the "
        f"{len(found['subjects'])} test",
        "subjects (no threshold, so no choice of one).",
        "",
        f"| layers | {many} within 8 mm | {many} anywhere | {few} anywhere | position: within − anywhere "
        "| number: many − few |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for layers, rows in found["values"].items():
        columns = {name: [row[name] for row in rows] for name in ("within", "all", "few")}
        gaps = [paired_difference(columns[a], columns[b], seed=0) for a, b in (("within", "all"), ("all", "few"))]
        cells = [f"{_mean(values):.3f}" for values in columns.values()]
        cells += [f"{_signed(gap)}: {_verdict(gap)}" for gap in gaps]
        lines.append(f"| {layers.replace('+', ' + ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _coresets(runs: Runs, facts: Facts) -> str:
    healthy = facts.get("healthy_distances", {})
    kinds = [k for k in TITLES if k in healthy and k != "greedy-alone"]  # scored is enough, judged is not needed
    if not kinds:
        return ""
    lines = [
        "## How well the banks cover healthy heads that they never saw",
        "",
        "Distances of all positions of the calibration heads under all layers (spreads of a layer), and how many",
        "lesion positions of the test heads lie above the 99 % quantile of healthy ones:",
        "",
        "| bank | entries | mean | 99 % | largest | mean in lesions | lesion positions above 99 % of healthy |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for kind in kinds:
        f, entries = healthy[kind], _entries(runs[kind]) if kind in runs else "–"
        lines.append(
            f"| {_title(kind)} | {entries} | {f['mean']:.3f} | {f['p99']:.3f} | {f['largest']:.2f} "
            f"| {f['lesion_mean']:.3f} | {f['lesion_above_p99']:.1%} of {f['n_lesion']} |"
        )
    if {"greedy", "random"} <= set(kinds):
        g, r = healthy["greedy"], healthy["random"]
        lines += [
            "",
            f"Against the random draw, greedy selection makes the mean distance of healthy patches "
            f"{g['mean'] / r['mean'] - 1:+.0%} and the largest {g['largest'] / r['largest'] - 1:+.0%}: "
            "it covers the rare " + ("and" if g["mean"] <= r["mean"] else "at the cost of") + " the typical.",
        ]
    return "\n".join(lines)


def _subjects(runs: Runs, facts: Facts) -> str:
    lines = [
        "## Which scans are ill",
        "",
        "AUROC over test scans, headline layers: by the largest score of the map, and for banks by the re-weighted",
        "largest patch distance (PatchCore, eq. 7).",
        "",
        "| detector | largest score | re-weighted |",
        "|---|---|---|",
    ]
    factors = []
    for kind, run in runs.items():
        found = read_metrics(run).get("subject_level") or facts.get("subject_level", {}).get(kind)
        if found is None:
            continue
        cells = [subject_level_text(found[rule]) for rule in ("maximum", "reweighted")]
        lines.append(f"| {_title(kind)} | " + " | ".join(cells) + " |")
        if found["reweighted"] is not None and _is_bank(runs, kind):
            largest, weighted = (found[rule]["scores"] for rule in ("maximum", "reweighted"))
            factors += [weighted[i] / largest[i] for i in largest]
    if factors:
        lines += [
            "",
            f"Re-weighted over largest score: {min(factors):.2f} to {max(factors):.2f}. The factor is "
            "1 − exp d / Σ exp d over nine neighbours of the nearest entry: with layers divided by their spread "
            f"distances are small, the exponentials nearly alike, and the factor is near 1 − 1/9 = {1 - 1 / 9:.2f}"
            + (": it re-orders next to nothing." if max(factors) - min(factors) < 0.1 else " for most scans."),
        ]
    return "\n".join(lines)


def _selection(runs: Runs, facts: Facts) -> str:
    found = facts.get("alone")
    if not found or not {"greedy", "greedy-alone"} <= set(runs):
        return ""
    layer = found["layer"]
    dice = {}
    for kind in ("greedy", "greedy-alone"):
        figures = read_metrics(runs[kind])["sets"][layer]["native"]
        dice[kind] = {row["subject_id"]: row["dice"] for row in figures["protocols"]["validation"]["subjects"]}
    subjects = sorted(dice["greedy"])
    gap = paired_difference([dice["greedy"][i] for i in subjects], [dice["greedy-alone"][i] for i in subjects], seed=0)
    means = {kind: _mean(list(values.values())) for kind, values in dice.items()}
    return (
        "## One bank for every layer set: what that costs\n\n"
        "Distances under a layer set are exact for the patches that are kept; which are kept was decided on all "
        f"layers. For {layer} alone, greedy selected on all layers against selected on {layer}: rank correlation of "
        f"the distances over all positions {found['rank_correlation']:.3f} (mean of {found['n']} test scans, lowest "
        f"{found['lowest']:.3f}); Dice at the validation threshold {means['greedy']:.3f} against "
        f"{means['greedy-alone']:.3f}, difference {_signed(gap)}: {_verdict(gap)}. A random bank does not depend on "
        "the layers at all."
    )


def _index(facts: Facts) -> str:
    found = facts.get("index", {})
    if not found:
        return ""
    lines = [
        "## Approximate search at real lesions",
        "",
        "A part of the random bank, every patch compared with every entry. Queries at lesion positions of all test",
        "subjects with lesions, and at others of the same scans, against exact distances to the same entries. Recall:",
        "share of positions whose nearest entry is found, all layers together (in brackets: the worst layer set).",
        "Error: how much too large the distance is, over all layer sets.",
        "",
        "| index | recall, lesions | mean / 99 % error, lesions | recall, elsewhere "
        "| mean / 99 % error, elsewhere | audit's recall, healthy | s to build | s per scan | s per scan, exact |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, f in found.items():
        cells = [f"{name.upper()}, {f['entries']:,} entries (nprobe {f['nprobe']}, {f['candidates']} candidates)"]
        for where in ("lesion", "other"):
            a = f[where]
            cells += [
                f"{a['recall']:.1%} ({a['lowest_recall']:.1%}) of {a['n']}",
                f"{a['mean_error']:.2%} / {a['p99_error']:.1%}",
            ]
        cells += [f"{f['audit_recall']:.1%}", f"{f['build_seconds']:.0f}"]
        cells += [f"{f['scan_seconds']:.1f}", f"{f['exact_seconds']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    worse = [n for n, f in found.items() if f["lesion"]["recall"] < f["audit_recall"] - 0.005]
    slower = [n for n, f in found.items() if f["scan_seconds"] >= f["exact_seconds"]]
    said = [
        f"At lesions the recall is lower than the audit at healthy patches says for {_listed(worse)}."
        if worse
        else "Nowhere is the recall at lesions more than half a percent below what the audit at healthy patches says.",
        f"For banks of this size the exact search is at least as fast as {_listed(slower)}."
        if slower
        else "Every index is faster than the exact search.",
    ]
    return "\n".join([*lines, "", " ".join(said)])


def _cost(runs: Runs, facts: Facts) -> str:
    spent = facts.get("features_seconds", {})
    each = f"{spent['seconds'] / spent['scans']:.1f} s" if spent.get("scans") else "not measured"
    lines = [
        "## Size and time",
        "",
        "| detector | entries | MB kept | s to fit | s to score a scan, all layer sets | peak MB of scoring |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for kind, run in runs.items():
        stages, settings = run.record["stages"], run.record.get("settings", {})
        if "detector" not in stages or "scores" not in stages or kind.startswith("gated"):
            continue
        scored = sum(len(run.record["split"][role]) for role in ("calibration", "validation", "test"))
        size = f"{settings['bytes'] / 1e6:.0f}" if "bytes" in settings else "–"
        lines.append(
            f"| {_title(kind)} | {_entries(run)} | {size} | {stages['detector']['seconds']:.0f} "
            f"| {stages['scores']['seconds'] / scored:.2f} | {stages['scores']['peak_mb']:.0f} |"
        )
    return (
        "\n".join(lines)
        + f"\n\nFeatures take {each} per scan; the study computes them once per encoder and keeps them, so that "
        "only the rows that came first paid for them; the Gaussians of the real study pay for their own. Fitting "
        "includes the selection. Cores were shared more or less while a row was made: times are upper bounds, and no "
        "measure of one row against another. Speed is measured in `speed.md`."
    )


def _is_bank(runs: Runs, kind: str) -> bool:
    return bool(runs[kind].record["recipe"]["kind"] == "PatchCore")


def _kept(runs: Runs) -> str:
    """What the banks that are searched anywhere keep, unless the row says otherwise."""
    share = next((runs[k].record["recipe"]["bank"]["coreset_ratio"] for k in SUBSETS if k in runs), 0.0)
    return f"{100 * share:g} %"


def _entries(run: Run) -> str:
    count = run.record.get("settings", {}).get("entries")
    return "–" if count is None else f"{count:,}"


def _validation(run: Run) -> float:
    metrics = read_metrics(run)
    return float(metrics["sets"][metrics["headline"]]["working"]["validation_mean_dice"])


def _headline(run: Run) -> Mapping[str, Any]:
    metrics = read_metrics(run)
    found: Mapping[str, Any] = metrics["sets"][metrics["headline"]]["native"]
    return found


def _all_layers(run: Run) -> Mapping[str, Any] | None:
    metrics = read_metrics(run)
    if len(metrics["layers"]) != 3:
        return None
    found: Mapping[str, Any] = metrics["sets"]["+".join(metrics["layers"])]["native"]
    return found


def _difference(
    runs: Runs, first: str, second: str, chosen: Callable[[Run], Mapping[str, Any] | None] = _headline
) -> Interval:
    dice = []
    for kind in (first, second):
        figures = chosen(runs[kind])
        assert figures is not None
        dice.append({row["subject_id"]: row["dice"] for row in figures["protocols"]["validation"]["subjects"]})
    subjects = sorted(dice[0])
    return paired_difference([dice[0][i] for i in subjects], [dice[1][i] for i in subjects], seed=0)


def _verdict(found: Interval) -> str:
    if found.low is None or found.high is None or found.low <= 0 <= found.high:
        return "no difference that these subjects can show"
    return "better" if found.low > 0 else "worse"


def _signed(found: Interval) -> str:
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _dice(protocol: Mapping[str, Any]) -> str:
    return f"{protocol['mean_dice']:.3f} [{protocol['ci_low']:.3f}, {protocol['ci_high']:.3f}]"


def _found_of(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "–"
    return f"{sum(r['found'] for r in rows)} of {len(rows)} ({_mean([r['overlap'] for r in rows]):.0%})"


def _millilitres(rows: Mapping[Any, Mapping[str, Any]], keys: Sequence[Any]) -> str:
    return ", ".join(f"{rows[key]['volume_ml']:.2g}" for key in keys) + " mL" if keys else "none"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _title(kind: str) -> str:
    return TITLES[kind]


def _plain(kind: str) -> str:
    return SHORT.get(kind, TITLES[kind].replace("*", ""))

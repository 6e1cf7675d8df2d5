"""Sections of the report that an evaluation alone can tell: headline, protocols, layers, lesions, healthy scans."""

from collections.abc import Mapping
from typing import Any

from core.presentation.report.charts import Dot, dots, subject_dots
from core.presentation.report.markup import EMPTY, Column, Html, badge, join, table, tag
from core.presentation.report.repeat import typed
from core.presentation.report.source import Source
from core.presentation.report.words import (
    NOTHING,
    PROTOCOLS,
    capital,
    interval,
    millilitres,
    number,
    percent,
    plural,
    protocol_name,
    signed,
    with_interval,
)
from core.study.run_summary import layer_table

MOST_LAYER_SETS = 18
_KINDS = {"healthy": "deployable", "validation": "labels", "oracle_set": "oracle", "oracle_subject": "oracle"}


def hero(source: Source) -> Html:
    """The number, what it stands on, and the sentence that says what would raise it."""
    found = source.headline
    if found["mean"] is None:
        return tag("div", _healthy_only(source), _verdict(source), kind="hero")
    under = (
        f"95 % interval {interval(found['low'], found['high']) or 'not available'}, "
        f"n = {plural(int(found['n']), 'subject')} with lesions"
    )
    figure = tag(
        "div",
        tag("p", "Mean Dice", kind="eyebrow"),
        tag("p", number(found["mean"]), kind="figure"),
        tag("p", under, kind="under"),
        tag("p", f"Threshold from {protocol_name(source.protocol)}, {found['space']} space.", kind="under"),
        tag("p", f"Prevalence {percent(source.prevalence)} of brain voxels.", kind="under"),
    )
    return tag("div", figure, _verdict(source), kind="hero")


def tiles(source: Source) -> Html:
    """Four figures beside the headline."""
    figures, protocols = source.figures, source.figures["protocols"]
    pooled, found = figures.get("pooled") or {}, _lesions(source)
    other = protocols.get("validation" if source.protocol == "healthy" else "healthy")
    oracle, alarms = protocols.get("oracle_set"), source.deployed.get("false_positive_ml_per_healthy_scan")
    scans = plural(int(figures["n_healthy_subjects"]), "healthy test scan")
    shown: list[tuple[str, str]] = []
    if other and other["mean_dice"] is not None:
        shown.append((number(other["mean_dice"]), f"Dice, threshold from {protocol_name(other['name'])}"))
    if oracle and oracle["mean_dice"] is not None:
        shown.append((number(oracle["mean_dice"]), "Dice, best single threshold on the test set (oracle)"))
    if pooled.get("auprc") is not None:
        shown.append((number(pooled["auprc"]), f"AUPRC, {pooled['lift']:.1f} × prevalence"))
    shown.append((millilitres(alarms), f"false positives per scan, {scans}"))
    if found and len(shown) < 4:
        shown.append((f"{found['found']} of {found['n_lesions']}", "lesions found"))
    return tag("div", *(tag("div", tag("b", value), tag("span", text)) for value, text in shown), kind="tiles")


def protocols(source: Source) -> Html:
    """Every threshold protocol in a chart and in a table, oracles marked."""
    rows: list[list[Html | str | None]] = []
    kinds, shown = [], []
    every = source.figures["protocols"]
    for name in sorted(every, key=lambda p: list(PROTOCOLS).index(p) if p in PROTOCOLS else len(PROTOCOLS)):
        found = every[name]
        marks = [badge("oracle", "oracle")] if found["oracle"] else []
        marks += [badge("needs labels", "labels")] if found["needs_labels"] and not found["oracle"] else []
        marks += [badge("deployed", "deployable")] if name == source.protocol else []
        healthy = found.get("healthy_scans_without_false_positive")
        rows.append(
            [
                join([tag("b", protocol_name(name)), tag("br"), *marks, tag("br"), _soft(found["rule"])]),
                number(found["threshold"]),
                with_interval({"mean": found["mean_dice"], "low": found["ci_low"], "high": found["ci_high"]}),
                number(found.get("pooled_dice")),
                str(found["n"]),
                millilitres(found.get("false_positive_ml_per_healthy_scan")),
                NOTHING if healthy is None else percent(healthy),
            ]
        )
        kinds.append("chosen" if name == source.protocol else "oracle" if found["oracle"] else "")
        if found["mean_dice"] is not None:
            label = protocol_name(name)
            note = "oracle" if found["oracle"] else "needs labels" if found["needs_labels"] else "label-free"
            kind = _KINDS.get(name, "oracle")
            shown.append(Dot(label, found["mean_dice"], found["ci_low"], found["ci_high"], kind, note))
    columns = [
        Column("Threshold from"),
        Column("Threshold", True),
        Column("Mean Dice, 95 % interval", True),
        Column("Pooled Dice", True),
        Column("n", True),
        Column("False positives", True),
        Column("Clean scans", True),
    ]
    return join(
        [
            dots(shown, "mean Dice", lowest=0.0),
            table(columns, rows, kinds),
            tag("p", _optimism(source), kind="caption"),
        ]
    )


def _soft(text: str) -> Html:
    return tag("span", text, kind="soft")


def subjects(source: Source) -> Html:
    """Dice of each test subject over its lesion volume, with what its own best threshold would give."""
    best = source.figures["protocols"].get("oracle_subject", {}).get("subjects", [])
    reach = {row["subject_id"]: row["dice"] for row in best}
    rows = [
        {
            "subject_id": source.called(row["subject_id"]),
            "dice": row["dice"],
            "lesion_ml": row["lesion_ml"],
            "best": reach.get(row["subject_id"]),
        }
        for row in source.deployed["subjects"]
    ]
    chart = subject_dots(rows, source.deployed["mean_dice"])
    if not chart:
        return EMPTY
    told = (
        f"Each point is a test subject at the threshold from {protocol_name(source.protocol)}, {source.space} space "
        f"(n = {len(rows)}). The dotted line above it ends at the Dice of its own best threshold, an oracle."
    )
    return join([chart, tag("p", told, kind="caption")])


def layers(source: Source) -> Html:
    """The layer sets, best on validation first; on the working grid, where all of them were evaluated."""
    every = layer_table(source.metrics)
    if len(every) < 2:
        return EMPTY
    ranked = sorted(every, key=lambda r: (-(r["validation_mean_dice"] or 0.0), -(r["auprc"] or 0.0)))
    kept = [r for n, r in enumerate(ranked) if n < MOST_LAYER_SETS or r["layers"] == source.layer_set]
    columns = [
        Column("Layers"),
        Column("Dice on validation", True),
        Column("Test Dice, healthy threshold", True),
        Column("Test Dice, validation threshold", True),
        Column("⌈Dice⌉ (oracle)", True),
        Column("AUPRC", True),
        Column("AUROC", True),
    ]
    rows = [
        [
            row["layers"].replace("+", " + "),
            number(row["validation_mean_dice"]),
            with_interval(row["healthy"]),
            with_interval(row["validation"]),
            number(row["ceil_dice"]),
            number(row["auprc"]),
            number(row["auroc"]),
        ]
        for row in kept
    ]
    kinds = ["chosen" if row["layers"] == source.layer_set else "" for row in kept]
    left = len(ranked) - len(kept)
    told = (
        f"All of one fit, on the working grid, best on validation first. Headline: {source.metrics['headline']}, "
        f"{source.metrics['headline_rule']}. Choosing a row by its test Dice would be an oracle."
    )
    told += f" {left} more: {typed(source.run, 'compare-layers')}" if left else ""
    return join([table(columns, rows, kinds), tag("p", told, kind="caption")])


def lesion_recall(source: Source) -> Html:
    """Lesions found by size, and false components."""
    if source.layer_set != source.metrics["headline"]:
        return EMPTY
    columns = [Column("Lesion volume")]
    told, by_bin = [], dict[str, list[str]]()
    for name in ("healthy", "validation"):
        found = (source.metrics.get("lesions") or {}).get(name, {}).get("lesions") or {}
        if not found.get("n_lesions"):
            continue
        columns.append(Column(f"Found, threshold from {protocol_name(name)}", True))
        for size, row in found["recall_by_size"].items():
            by_bin.setdefault(size, []).append(_share(row["found"], row["n"]))
        by_bin.setdefault("all", []).append(_share(found["found"], found["n_lesions"]))
        told.append(
            f"Threshold from {protocol_name(name)}: precision {number(found['precision'])}, F1 {number(found['f1'])}, "
            f"{found['false_positives_per_scan']:.1f} false components per lesion-bearing scan."
        )
    if not by_bin:
        return EMPTY
    order = ["< 0.1 mL", "0.1 to 1 mL", "1 to 10 mL", "≥ 10 mL"]
    rows = sorted(by_bin, key=lambda b: order.index(b) if b in order else len(order) + (b == "all"))
    rule = next(iter(source.metrics["lesions"].values()))["lesions"]["rule"]
    kinds = ["chosen" if size == "all" else "" for size in rows]
    return join(
        [
            table(columns, [[size, *by_bin[size]] for size in rows], kinds),
            tag("p", f"{' '.join(told)} A lesion counts as found by: {rule}. Native space.", kind="caption"),
        ]
    )


def healthy_scans(source: Source) -> Html:
    """False positives of each healthy test scan at the deployed threshold."""
    ml = source.deployed.get("false_positive_ml_by_healthy_scan") or {}
    if not ml:
        return EMPTY
    worst = sorted(ml, key=lambda i: -ml[i])[:12]
    told = (
        f"{plural(len(ml), 'healthy test scan')}, mean {millilitres(sum(ml.values()) / len(ml))} of false positives at "
        f"the threshold from {protocol_name(source.protocol)}, {source.space} space."
    )
    told += f" The {len(worst)} with most are shown." if len(worst) < len(ml) else ""
    rows = [[i, millilitres(ml[i])] for i in worst]
    return join(
        [table([Column("Healthy scan"), Column("False positives", True)], rows), tag("p", told, kind="caption")]
    )


def diagnose_first(source: Source) -> Html:
    """How to get the sections that need a diagnosis; what is missing for them."""
    if not _ill(source):
        return tag(
            "p",
            "No test scan has a lesion mask, so there is no Dice to explain. Give labelled scans the role test, then "
            "fit, score and evaluate again.",
            kind="note",
        )
    command = tag("code", typed(source.run, "diagnose"))
    return tag(
        "p",
        "This run is evaluated but not diagnosed, so the ladder, the error map, the causes and the what-ifs are not "
        "here. Diagnose it, then write the report again: ",
        command,
        kind="note",
    )


def _verdict(source: Source) -> Html:
    title = tag("p", "What it says", kind="eyebrow")
    if source.diagnosis is None:
        return tag("div", title, tag("p", _plain_verdict(source), kind="verdict"), diagnose_first(source))
    verdict = source.diagnosis.get("verdict") or {}
    losses = tag("p", _losses(source.diagnosis))
    sentence = tag("p", verdict.get("sentence") or _plain_verdict(source), kind="verdict")
    chosen = verdict.get("chosen_on")
    told = f"Chosen on {chosen}; the gain is then measured on the test subjects." if chosen else None
    if verdict.get("gain") is None:
        told = None
    return tag("div", title, sentence, losses, tag("p", told) if told else None)


def _losses(diagnosis: Mapping[str, Any]) -> str:
    """The steepest step of the ladder and the dearest category of error, in a sentence."""
    steps = [rung for rung in diagnosis["rungs"][1:] if rung.get("cost") is not None]
    errors = list(diagnosis["error_map"])
    if not steps or not errors or diagnosis["dice"]["mean"] is None:
        return ""
    step, error = max(steps, key=lambda r: r["cost"]), max(errors, key=lambda c: c["cost"])
    return (
        f"The steepest step down is “{step['title']}”: {signed(-step['cost'])}. Of all wrong voxels, "
        f"“{error['title']}” cost most: {number(error['cost'])} of the "
        f"{number(1 - diagnosis['dice']['mean'])} Dice that is missing."
    )


def _plain_verdict(source: Source) -> str:
    found, oracle = source.deployed, source.figures["protocols"].get("oracle_subject")
    if found["mean_dice"] is None:
        return "Healthy test scans only: the false positives are known, the Dice is not."
    if not oracle or oracle["mean_dice"] is None:
        return "How far thresholds and maps hold it back is not known yet."
    threshold = oracle["mean_dice"] - found["mean_dice"]
    return (
        f"The best threshold for every subject, an oracle, would add {number(threshold)} Dice; the other "
        f"{number(1 - oracle['mean_dice'])} to a Dice of 1 is in the score maps themselves."
    )


def _healthy_only(source: Source) -> Html:
    scans = plural(int(source.figures["n_healthy_subjects"]), "healthy test scan")
    volume = millilitres(source.deployed.get("false_positive_ml_per_healthy_scan"))
    value, _, unit = volume.partition(" ")
    return tag(
        "div",
        tag("p", "False positives per healthy scan", kind="eyebrow"),
        tag("p", value, tag("small", unit), kind="figure"),
        tag("p", f"{scans}, threshold from {protocol_name(source.protocol)}, {source.space} space.", kind="under"),
    )


def _lesions(source: Source) -> Mapping[str, Any] | None:
    if source.layer_set != source.metrics["headline"]:
        return None
    found = ((source.metrics.get("lesions") or {}).get(source.protocol) or {}).get("lesions") or {}
    return found if found.get("n_lesions") else None


def _optimism(source: Source) -> str:
    told = (
        f"{capital(source.conditions)}. Mean over lesion-bearing test subjects; intervals: 95 % bootstrap over "
        f"subjects. False positives: per healthy test scan "
        f"(n = {source.figures['n_healthy_subjects']}); clean: scans without any."
    )
    optimism = source.figures.get("selection_optimism")
    if optimism is not None:
        told += f" Choosing the threshold on test labels instead of validation labels would add {number(optimism)}."
    return told


def _ill(source: Source) -> bool:
    return bool(source.figures["n_lesion_subjects"])


def _share(found: int, n: int) -> str:
    return f"{found} of {n}" if n else NOTHING

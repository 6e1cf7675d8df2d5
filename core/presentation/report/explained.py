"""Sections of the report that a diagnosis tells: ladder, error map, causes, what-ifs, decisions, limits, lesions."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.presentation.decision_words import density_name
from core.presentation.diagnosis_view import NO_COSTS, best_variant, post_processing_rows, validation_of
from core.presentation.report.charts import Dot, dots, error_bars, ladder, whole
from core.presentation.report.markup import EMPTY, Column, Html, badge, join, table, tag
from core.presentation.report.words import (
    NOTHING,
    capital,
    heat,
    interval,
    millilitres,
    number,
    protocol_name,
    signed,
    with_interval,
)

Rows = list[list[Html | str | None]]


def ladder_section(diagnosis: Mapping[str, Any]) -> Html:
    """The ceilings from 1 to the Dice, and what the feature grid alone would allow, layer by layer."""
    told = (
        f"Read from the top: the best Dice that is still possible at each step, mean over {diagnosis['n']} subjects. "
        "What a step takes away is the block at the end of its bar. The order matters; the last bar is the Dice. "
        "All on the working grid, but for the last, which is in native space."
    )
    definitions = [
        tag("div", tag("dt", rung["title"]), tag("dd", rung.get("definition") or NOTHING))
        for rung in diagnosis["rungs"]
    ]
    return join(
        [
            tag("p", told),
            _legend(["dice", "cost", "hatched", "hollow"]),
            ladder(diagnosis["rungs"]),
            tag("h3", "What each step means"),
            tag("dl", *definitions, kind="glossary"),
            _grid_ceilings(diagnosis.get("layers") or []),
        ]
    )


def error_section(diagnosis: Mapping[str, Any]) -> Html:
    """Dice and the cost of every category of error: together exactly 1."""
    ranked = sorted(diagnosis["error_map"], key=lambda c: -c["cost"])
    if not ranked:
        return EMPTY
    dice = float(diagnosis["dice"]["mean"])
    total = dice + sum(c["cost"] for c in ranked)
    told = (
        f"Every wrong voxel belongs to one category. Dice {number(dice)} and all costs add up to {number(total, 6)}, "
        f"for each of {diagnosis['n']} subjects and in the mean (Shapley values of the voxel counts)."
    )
    columns = [
        Column("Category", wide=True),
        Column("Cost", True),
        Column("Only this put right", True),
        Column("All but this", True),
        Column("What helps", wide=True),
    ]
    rows: Rows = [
        [
            join([tag("b", c["title"]), tag("br"), tag("span", c.get("definition"), kind="soft")]),
            number(c["cost"]),
            signed(c.get("only")),
            signed(c.get("all_but")),
            c.get("advice"),
        ]
        for c in ranked
    ]
    return join(
        [
            tag("p", told),
            whole(dice, ranked),
            _legend(["dice", "fp", "fn", "hollow"]),
            error_bars([c for c in ranked if c["cost"] or c.get("voxels")]),
            table(columns, rows),
        ]
    )


def cause_section(diagnosis: Mapping[str, Any]) -> Html:
    """Known causes with their cost in Dice; what could not be computed says which input is missing."""
    known = [c for c in diagnosis["causes"] if c.get("cost") is not None and c["id"] not in NO_COSTS]
    known.sort(key=lambda c: -c["cost"])
    columns = [
        Column("Cause"),
        Column("What was found", wide=True),
        Column("Dice", True),
        Column("95 % interval", True),
        Column("n", True),
    ]
    rows: Rows = [
        [
            join([tag("b", c["title"]), tag("br"), badge(c["id"]), *_marks(c)]),
            join([c.get("text"), tag("br"), tag("span", c.get("formula") or "", kind="soft")]),
            number(c["cost"]),
            interval(c.get("low"), c.get("high")),
            NOTHING if c.get("n") is None else str(c["n"]),
        ]
        for c in known
    ]
    told = "Each cause is changed by itself against the run as it is; the rows overlap and are not summed."
    return join([tag("p", told), table(columns, rows), _no_costs(diagnosis), _not_computed(diagnosis)])


def _no_costs(diagnosis: Mapping[str, Any]) -> Html:
    """How the Dice is averaged and how sure it is: figures to read it by, nothing that is lost."""
    rows: Rows = [
        [join([tag("b", c["title"]), tag("br"), badge(c["id"])]), c.get("text"), signed(c["cost"])]
        for c in diagnosis["causes"]
        if c["id"] in NO_COSTS and c.get("cost") is not None
    ]
    if not rows:
        return EMPTY
    columns = [Column("Read the Dice by"), Column("What was found", wide=True), Column("Dice", True)]
    return join([tag("h3", "Not a cost, but how to read the Dice"), table(columns, rows)])


def gain_section(diagnosis: Mapping[str, Any]) -> Html:
    """Paired what-ifs: what can be deployed, by its best variant on validation; then what only measures."""
    protocol, what_ifs = str(diagnosis["protocol"]), diagnosis.get("what_ifs") or []
    chosen = [(w, v) for w in what_ifs if (v := best_variant(w, protocol)) is not None and _on_test(v, protocol)]
    others = [
        (w, v)
        for w in what_ifs
        if all(w is not kept for kept, _ in chosen)
        for v in w["variants"]
        if _on_test(v, protocol)
    ]
    offered = _verdict(diagnosis)
    if not chosen and not others:
        return offered
    told = (
        "The run was scored again with one thing changed, on the same subjects; the threshold from "
        f"{protocol_name(protocol)} was derived anew. Working grid on both sides of each pair."
    )
    chosen.sort(key=lambda pair: -(_on_test(pair[1], protocol)["gain"] or 0.0))
    ruled = "Which variant is shown was decided on validation alone; its gain was then measured on test."
    notes = dict.fromkeys(note for what_if, _ in (*chosen, *others) for note in what_if.get("notes") or [])
    parts: list[Html | None] = [offered, tag("p", told)]
    if chosen:
        parts += [tag("p", ruled), _gain_dots(chosen, protocol), _gain_table(chosen, protocol)]
    if others:
        parts += [tag("h3", "Measured only, or nothing to choose on validation"), _gain_table(others, protocol)]
    parts.append(tag("p", " ".join(notes), kind="caption") if notes else None)
    return join(parts)


def _verdict(diagnosis: Mapping[str, Any]) -> Html:
    """The verdict's choice, and the best post-processing on validation beside the run's own setting."""
    parts: list[Html] = []
    sentence = (diagnosis.get("verdict") or {}).get("sentence")
    if sentence:
        parts.append(tag("p", tag("b", sentence)))
    rows = (
        post_processing_rows(dict(diagnosis["post_processing"] or {}), str(diagnosis["protocol"]))
        if _judged(diagnosis)
        else []
    )
    if rows:
        columns = [
            Column("Post-processing", wide=True),
            Column("Dice on validation", True),
            Column("Dice on test", True),
            Column("Gain on test", True),
        ]
        cells: Rows = [
            [
                join([tag("b", capital(row["which"])), tag("br"), row["setting"]]),
                number(row["Dice on validation"]),
                number(row["Dice on test"]),
                row["paired gain on test"],
            ]
            for row in rows
        ]
        parts.append(table(columns, cells))
    return join(parts) if parts else EMPTY


def _judged(diagnosis: Mapping[str, Any]) -> bool:
    found = diagnosis.get("post_processing")
    return found is not None and found["rows"][0].get(diagnosis["protocol"]) is not None


def _gain_dots(chosen: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], protocol: str) -> Html:
    shown = []
    for what_if, variant in chosen:
        test = _on_test(variant, protocol)
        kind = "labels" if variant.get("needs_labels") else "deployable"
        shown.append(Dot(what_if["title"], test["gain"], test.get("low"), test.get("high"), kind, variant["title"]))
    return dots(shown, "gain in test Dice")


def _gain_table(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], protocol: str) -> Html:
    rows: Rows = []
    before = None
    for what_if, variant in pairs:
        test, validation = _on_test(variant, protocol), validation_of(variant, protocol)
        first = what_if is not before
        before = what_if
        rows.append(
            [
                join([_of_what_if(what_if) if first else None, variant["title"], " ", *_marks(variant)]),
                _gain(validation) if validation else None,
                f"{number(test.get('baseline'))} → {number(test.get('variant'))}",
                _gain(test),
                str(test["n"]),
                f"{millilitres(test.get('false_ml_before'))} → {millilitres(test.get('false_ml_after'))}",
            ]
        )
    columns = [
        Column("What if"),
        Column("Gain on validation", True),
        Column("Test Dice", True),
        Column("Gain on test", True),
        Column("n", True),
        Column("False positives", True),
    ]
    return table(columns, rows)


def _of_what_if(what_if: Mapping[str, Any]) -> Html:
    formula = tag("span", what_if.get("formula"), kind="soft")
    return join([tag("b", what_if["title"]), tag("br"), formula, tag("br")])


def _on_test(variant: Mapping[str, Any], protocol: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (variant.get("test") or {}).get(protocol) or {}
    return found if found.get("gain") is not None else {}


def decision_section(diagnosis: Mapping[str, Any]) -> Html:
    """The two-distribution decision in the same terms as a threshold."""
    found = diagnosis.get("decisions") or []
    if not found:
        return EMPTY
    columns = [
        Column("Decision"),
        Column("Threshold", True),
        Column("Test Dice, 95 % interval", True),
        Column("n", True),
    ]
    rows: Rows = [
        [
            join([tag("b", density_name(d)), tag("br"), tag("span", d.get("explain"), kind="soft")]),
            number(d.get("threshold")),
            with_interval(d, "mean_dice"),
            NOTHING if d.get("n") is None else str(d["n"]),
        ]
        for d in found
    ]
    told = (
        "A voxel is anomalous where the density of anomalous scores, times the prior, exceeds that of normal scores; "
        "both densities were fitted to labelled validation subjects, so this needs labels."
    )
    return join([tag("p", told), table(columns, rows)])


def _grid_ceilings(layers: Sequence[Mapping[str, Any]]) -> Html:
    if not layers:
        return EMPTY
    bins = [row["bin"] for row in layers[0].get("by_size") or []]
    columns = [Column("Layer"), Column("Cell", True), Column("Best possible Dice", True)]
    columns += [Column(str(name), True) for name in bins]
    rows: Rows = []
    for layer in layers:
        sizes = {row["bin"]: row for row in layer.get("by_size") or []}
        found = [sizes.get(name) or {} for name in bins]
        cells = [heat(f.get("ceiling"), f"{number(f.get('ceiling'), 2)} (n {f.get('n', NOTHING)})") for f in found]
        told = with_interval({"mean": layer["ceiling"], "low": layer.get("low"), "high": layer.get("high")})
        rows.append([layer["layer"], f"{layer['spacing_mm']:g} mm", told, *cells])
    caption = (
        "The best Dice that cells of this size could give, whatever their features: a perfect choice of cells, or of "
        "a smooth map between them. Right: by lesion volume. Known before anything is trained."
    )
    return join([tag("h3", "What the feature grid allows"), table(columns, rows), tag("p", caption, kind="caption")])


def _not_computed(diagnosis: Mapping[str, Any]) -> Html:
    """Causes without a cost; the commands that they name are said for this run."""
    rows: Rows = []
    for cause in diagnosis["causes"]:
        if cause.get("cost") is None:
            needed = cause.get("missing") or (
                f"a what-if that was not run: {cause['what_if']}" if cause.get("what_if") else cause.get("text")
            )
            said = str(needed or NOTHING).replace(" RUN", f" {diagnosis['run_id']}")
            rows.append([join([badge(cause["id"]), cause["title"]]), said])
    if not rows:
        return EMPTY
    columns = [Column("Cause"), Column("What is missing", wide=True)]
    return join([tag("h3", "Not computed for this run"), table(columns, rows)])


def _gain(found: Mapping[str, Any]) -> str:
    low, high = found.get("low"), found.get("high")
    span = "" if low is None or high is None else f" [{signed(low)}, {signed(high)}]"
    return f"{signed(found['gain'])}{span}"


def _marks(found: Mapping[str, Any]) -> list[Html]:
    marks = [badge("needs labels", "labels")] if found.get("needs_labels") else []
    tried = found.get("kind", "what-if") == "what-if"  # what is computed from the run changes nothing by itself
    return marks + ([badge("deployable", "deployable")] if found.get("deployable") and tried else [])


def _legend(kinds: Sequence[str]) -> Html:
    words = {
        "dice": "Dice",
        "cost": "what the step costs",
        "fp": "false positives",
        "fn": "missed",
        "hatched": "hatched: needs labels",
        "hollow": "hollow: the interval contains 0",
    }
    return tag("p", *(tag("span", tag("i", kind=f"k-{k}"), words[k]) for k in kinds), kind="legend")

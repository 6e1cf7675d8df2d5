"""Best and worst cases as pictures: who is shown, and what stands below each picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.presentation.report.markup import EMPTY, Html, join, tag
from core.presentation.report.pictures import case_pictures, score_stops
from core.presentation.report.repeat import typed
from core.presentation.report.source import Source
from core.presentation.report.words import millilitres, number, percent, protocol_name
from core.study.stored_scores import RunScores, open_scores
from core.types import ScoreMap
from data.errors import BadInput, IntegrityError

MOST = 3
"""Cases shown of the worst, and of the best."""


@dataclass(frozen=True)
class Chosen:
    """A subject to show: why, and its figures at the deployed threshold."""

    subject_id: str
    title: str
    figures: Mapping[str, Any]


def cases(source: Source) -> Html:
    """The worst and the best subjects and the worst healthy scan, in three planes each.

    When scores or prepared scans are no longer beside the run, one sentence says so instead.
    """
    chosen = chosen_cases(source)
    if not chosen:
        return EMPTY
    try:
        scores = open_scores(source.run)
        layers = scores.layer_set(source.layer_set)
        maps = {c.subject_id: scores.score_map(c.subject_id, layers) for c in chosen}
        brightest = _brightest(list(maps.values()), source.working_threshold)
        shown = [_case(source, scores, one, maps[one.subject_id], brightest) for one in chosen]
    except (BadInput, IntegrityError, OSError):
        told = (
            "The scores or the prepared scans of these subjects are not beside the run, or they are damaged, so there "
            "are no pictures. Make them again: "
        )
        return tag("p", told, tag("code", typed(source.run, "score")), kind="note")
    spacing = next(iter(maps.values())).grid.spacing_mm[0]
    return join([_lead(source, spacing), _legend(source, brightest), tag("div", *shown, kind="cases")])


def chosen_cases(source: Source) -> list[Chosen]:
    """Worst and best by Dice at the deployed threshold, nobody twice; the healthy scan with most false positives."""
    rows = sorted(source.deployed["subjects"], key=lambda r: (r["dice"], -r["lesion_ml"], r["subject_id"]))
    worst = rows[: min(MOST, (len(rows) + 1) // 2)]
    best = rows[len(worst) :][::-1][:MOST]
    chosen = [Chosen(r["subject_id"], f"Worst, {k}", r) for k, r in enumerate(worst, 1)]
    chosen += [Chosen(r["subject_id"], f"Best, {k}", r) for k, r in enumerate(best, 1)]
    alarms = source.deployed.get("false_positive_ml_by_healthy_scan") or {}
    if alarms:
        loudest = max(alarms, key=lambda i: (alarms[i], i))
        chosen.append(Chosen(loudest, "Healthy, most false positives", {"false_ml": alarms[loudest]}))
    return chosen


def _case(source: Source, scores: RunScores, chosen: Chosen, score_map: ScoreMap, brightest: float) -> Html:
    pictures = case_pictures(scores.prepared(chosen.subject_id), score_map.scores, source.working_threshold, brightest)
    called = source.called(chosen.subject_id)
    name = f"{called}, {chosen.title}"
    pair = tag(
        "div",
        tag("img", attributes={"src": pictures.scan, "alt": f"Scan of {name}: lesion and segmentation outlined"}),
        tag("img", attributes={"src": pictures.scores, "alt": f"Score map of {name}: lesion outlined"}),
        kind="pair",
    )
    words = [tag("b", called), tag("span", chosen.title), *map(_span, _figures(chosen.figures))]
    words.append(_span(f"voxel {', '.join(map(str, pictures.centre))}"))
    return tag("figure", pair, tag("figcaption", *words), kind="case")


def _figures(figures: Mapping[str, Any]) -> list[str]:
    if "false_ml" in figures:
        return [f"{millilitres(figures['false_ml'])} of false positives"]
    return [
        f"Dice {number(figures['dice'])}",
        f"lesion {millilitres(figures['lesion_ml'])}",
        f"segmented {millilitres(figures['segmented_ml'])}",
        f"{percent(figures['recall'])} of the lesion found" if figures.get("recall") is not None else "recall –",
    ]


def _lead(source: Source, spacing_mm: float) -> Html:
    return tag(
        "p",
        "Axial, coronal and sagittal slices through the largest lesion (of the healthy scan: through the largest false "
        f"positive), left the scan, right its score map. Pictures: working grid, {spacing_mm:g} mm, segmented at "
        f"{number(source.working_threshold)} {source.metrics['unit']} (threshold from "
        f"{protocol_name(source.protocol)}); figures below them: {source.space} space. Radiological convention: the "
        "subject's left is on the right.",
    )


def _legend(source: Source, brightest: float) -> Html:
    stops = ", ".join(f"rgb({r} {g} {b})" for r, g, b in score_stops())
    bar = tag("i", attributes={"style": f"width: 90px; background: linear-gradient(to right, {stops})"})
    keys: Sequence[tuple[str, str]] = (("k-lesion", "true lesion"), ("k-found", "segmentation"))
    words = [tag("span", tag("i", kind=kind), text) for kind, text in keys]
    scale = f"score 0 to {number(brightest, 2)} {source.metrics['unit']}, the same in every picture"
    return tag("p", *words, tag("span", bar, scale), kind="legend")


def _brightest(maps: Sequence[ScoreMap], threshold: float) -> float:
    """One scale for all pictures: the 99.9th percentile of their scores, and at least the threshold."""
    inside = np.concatenate([m.scores[np.isfinite(m.scores)] for m in maps])
    top = float(np.percentile(inside, 99.9)) if inside.size else threshold
    return max(top, threshold, 1e-6)


def _span(text: str) -> Html:
    return tag("span", text)

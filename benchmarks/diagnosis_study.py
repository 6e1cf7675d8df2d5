"""Does the diagnosis keep its word? What-ifs on finished runs, the best one applied, predicted and new Dice compared.

    python -m benchmarks.diagnosis_study --runs runs --run demo-simclr --report docs/results/diagnosis.md

The change is chosen on validation. It is then really made - segmentations written as NIfTI and judged from the files,
or another run fitted with the changed recipe - and its test Dice is put beside the one that the what-if predicted.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from core.detectors import from_recipe
from core.detectors.feature_gaussian import FeatureGaussian
from core.diagnosis.applied import export_post_processed
from core.diagnosis.diagnose import diagnose
from core.diagnosis.postprocessing import run_post_processing
from core.diagnosis.what_if.catalogue import applicable, run_what_if
from core.metrics.bootstrap import mean_interval
from core.progress import Progress, open_progress
from core.recipes import from_json
from core.runs.evaluated import read_metrics
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.study import data_source, evaluation, fitting, scoring
from core.study.stored_scores import open_scores
from data.files import is_committed
from data.nifti import read_labels
from data.prepared import Preprocessing
from data.volume import Mask


def main() -> None:
    """Carry out what is not stored yet, apply the verdict, write the section of each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--run", required=True)
    parser.add_argument("--protocol", choices=("healthy", "validation"), default="healthy")
    parser.add_argument("--skip", nargs="*", default=[], help="what-ifs that take too long here")
    parser.add_argument("--report", type=Path, required=True, help="Markdown file; the section of this run is replaced")
    given = parser.parse_args()
    progress = open_progress()
    run = open_run(given.runs, given.run, "detector")
    for row in applicable(run):
        if row["applies"] and row["name"] not in given.skip:
            run_what_if(run, row["name"], progress, protocol=given.protocol)
    run_post_processing(run, progress)
    found = diagnose(run, progress, protocol=given.protocol)
    outcome = applied(run, found, progress)
    write_section(given.report, run, section(run, found, outcome, given.skip))


def applied(run: Run, found: Mapping[str, Any], progress: Progress) -> dict[str, Any] | None:
    """The verdict's change really made: predicted and measured test Dice. None when there is no such change."""
    verdict = found["verdict"]
    if verdict["gain"] is None:
        return None
    if verdict["what_if"] == "post-processing":
        return _by_files(run, found, progress)
    if verdict["what_if"] == "covariance":
        return _by_refit(run, found, progress)
    return {"how": f"`{verdict['what_if']}` has no place in a recipe yet, so it was not applied."}


def _by_files(run: Run, found: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    scores, verdict = open_scores(run), found["verdict"]
    ids = [s["subject_id"] for s in found["subjects"]]
    with tempfile.TemporaryDirectory() as folder:
        export_post_processed(run, Path(folder), progress, layer_set=found["layer_set"], protocol=found["protocol"])
        dice = []
        for subject_id in ids:
            called = read_labels(Path(folder) / f"{subject_id}_segmentation.nii.gz")
            lesion = scores.prepared(subject_id).native_lesion
            assert lesion is not None
            dice.append(dice_of(Mask(called.voxels > 0, called.grid), lesion))
    return _outcome(
        "segmentations written with `cli.py post-processing --export` and judged from the NIfTI files, native space",
        verdict["after"] - verdict["before"],
        [s["dice"] for s in found["subjects"]],
        dice,
    )


def _by_refit(run: Run, found: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    verdict, layers = found["verdict"], found["layer_set"]
    result = next(r for r in found["what_ifs"] if r["name"] == "covariance")
    settings = next(v for v in result["variants"] if v["id"] == verdict["variant"])["settings"]
    detector = from_recipe({**run.record["recipe"], "weights": ""})
    assert isinstance(detector, FeatureGaussian)
    form = "auto" if settings["covariance"] == "diagonal" else detector.gaussian.form
    detector = replace(detector, gaussian=replace(detector.gaussian, **{**settings, "form": form}))
    cohort = run.record["cohort"]
    source = data_source.DataSource(
        Path(cohort["path"]), cohort["layout"], preprocessing=from_json(Preprocessing, run.record["preprocessing"])
    )
    runs, name = run.directory.parent, f"{run.run_id}-applied"
    parent = run.record["parents"].get("encoder")
    encoder = open_run(runs, parent, "encoder") if parent else None
    other = fitting.fit(runs, source, detector, progress, name=name, run_id=name, encoder_run=encoder)
    if not is_committed(other.directory / "evaluation"):
        evaluation.evaluate_run(scoring.score(other, progress), progress)
    again = read_metrics(open_run(runs, name))["sets"][layers]["working"]["protocols"][found["protocol"]]
    before = read_metrics(run)["sets"][layers]["working"]["protocols"][found["protocol"]]
    return _outcome(
        f"another run (`{name}`) fitted, scored and evaluated with covariance {settings['covariance']}, "
        f"{settings['shrinkage']}, ridge {settings['ridge']:g}; working grid",
        verdict["after"] - verdict["before"],
        [r["dice"] for r in before["subjects"]],
        [r["dice"] for r in again["subjects"]],
    )


def _outcome(how: str, predicted: float, before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    gain = mean_interval([b - a for a, b in zip(before, after, strict=True)], seed=0, purpose="applied")
    assert gain.mean is not None
    return {
        "how": how,
        "predicted": predicted,
        "before": float(np.mean(before)),
        "after": float(np.mean(after)),
        "gain": gain.mean,
        "low": gain.low,
        "high": gain.high,
        "off": gain.mean - predicted,
        "n": gain.n,
    }


def dice_of(called: Mask, lesion: Mask) -> float:
    """Dice of two masks on one grid."""
    assert called.grid.matches(lesion.grid)
    both = int(np.count_nonzero(called.voxels & lesion.voxels))
    return 2.0 * both / (int(np.count_nonzero(called.voxels)) + int(np.count_nonzero(lesion.voxels)))


def section(run: Run, found: Mapping[str, Any], outcome: Mapping[str, Any] | None, skipped: Sequence[str]) -> str:
    """The Markdown of one run."""
    dice = found["dice"]
    lines = [
        f"## {run.name} (`{run.run_id}`), layers {found['layer_set']}",
        "",
        f"Dice **{dice['mean']:.3f}** [{dice['low']:.3f}, {dice['high']:.3f}] in native space, threshold from "
        f"{found['protocol']}, {found['n']} test subjects with lesions.",
        "",
        f"> {found['verdict']['sentence']}",
        "",
        "| rung | Dice | cost | |",
        "|---|--:|--:|---|",
        *(
            f"| {r['title']} | {r['mean']:.3f} | {_span(r['cost'], r['cost_low'], r['cost_high'])} | "
            f"{'oracle' if r['needs_labels'] else 'deployable'} |"
            for r in found["rungs"]
        ),
        "",
        "Error map (adds up with Dice to 1): "
        + " · ".join(
            f"{c['title'].lower()} {c['cost']:.3f}"
            for c in sorted(found["error_map"], key=lambda c: -c["cost"])
            if abs(c["cost"]) >= 0.005
        ),
        "",
        "| cause | cost | needs labels | what was found |",
        "|---|--:|---|---|",
        *(_cause_row(cause) for cause in found["causes"] if cause["cost"] is not None),
        "",
        _decision_text(found["decisions"]),
        "",
        *_outcome_lines(found, outcome),
    ]
    if skipped:
        lines += ["", f"Left out for time: {', '.join(skipped)}."]
    return "\n".join(lines) + "\n"


def _cause_row(cause: Mapping[str, Any]) -> str:
    cost = _span(cause["cost"], cause["low"], cause["high"])
    text = cause["text"].replace("|", "\\|")
    return f"| {cause['id']} {cause['title']} | {cost} | {'yes' if cause['needs_labels'] else ''} | {text} |"


def _decision_text(decisions: Sequence[Mapping[str, Any]]) -> str:
    rows = [d for d in decisions if d.get("mean_dice") is not None]
    if not rows:
        return "Two-distribution decision: no labelled validation subjects."
    best = max(rows, key=lambda d: float(d.get("validation_dice") or 0.0))
    return (
        f"Two-distribution decisions (working grid): {len(rows)} of them; best on validation is {best['name']} over "
        f"{best['over']}: test Dice {_span(best['mean_dice'], best['low'], best['high'], sign='')}."
    )


def _outcome_lines(found: Mapping[str, Any], outcome: Mapping[str, Any] | None) -> list[str]:
    if outcome is None:
        return ["**Applied**: nothing; no deployable change gains on validation."]
    if "gain" not in outcome:
        return [f"**Applied**: {outcome['how']}"]
    return [
        f"**Applied**: {found['verdict']['title']}; {outcome['how']}. Predicted gain {outcome['predicted']:+.3f}, "
        f"measured {_span(outcome['gain'], outcome['low'], outcome['high'])} "
        f"(Dice {outcome['before']:.3f} → {outcome['after']:.3f}, n = {outcome['n']}): off by {outcome['off']:+.3f}."
    ]


def _span(mean: float, low: float | None, high: float | None, sign: str = "+") -> str:
    return f"{mean:{sign}.3f}" + ("" if low is None or high is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]")


def write_section(path: Path, run: Run, text: str) -> None:
    """Put the section into the file, in the place of an earlier one of the same run."""
    start, end = f"<!-- {run.run_id} -->\n", f"<!-- /{run.run_id} -->\n"
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    if start in old and end in old:
        before, _, rest = old.partition(start)
        _, _, after = rest.partition(end)
    else:
        before, after = (old.rstrip("\n") + "\n\n" if old else ""), ""
    path.write_text(before + start + text + end + after, encoding="utf-8")


if __name__ == "__main__":
    main()

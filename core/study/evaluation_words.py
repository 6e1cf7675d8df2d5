"""An evaluation in sentences."""

from collections.abc import Mapping
from typing import Any

from core.runs.run_record import Run
from data.health import is_unknown


def evaluation_words(run: Run, metrics: Mapping[str, Any]) -> list[str]:
    """What a table of an evaluation cannot show: why there is no Dice, and what can be said all the same."""
    figures = metrics["sets"][metrics["headline"]]["native"]
    split, subjects = run.record["split"], run.record["cohort"].get("subjects", [])
    told = []
    if not split.get("calibration") and "healthy" in figures["protocols"]:
        told.append("No scan calibrates this run: its label-free threshold rests on training scans, left out in turn.")
    elif not split.get("calibration"):
        told.append(
            "No scan calibrates this run, so it has no label-free threshold: give healthy subjects that role, or, for "
            "a Gaussian, evaluate it with --leave-one-out."
        )
    if not figures["n_lesion_subjects"]:
        n = len(split.get("test", []))
        told.append(
            f"None of its {n} test scans has a lesion, so there is no Dice to tell."
            if n
            else "No subject is in its test split, so nothing is known of new scans."
        )
        for name in ("healthy", "validation"):
            ml = figures["protocols"].get(name, {}).get("false_positive_ml_per_healthy_scan")
            if ml is not None:
                told.append(
                    f"At the {name} threshold a healthy test scan gets {ml:.2f} mL of false positives "
                    f"(mean of {figures['n_healthy_subjects']})."
                )
        if figures.get("validation_mean_dice") is not None:
            told.append(
                f"On the validation scans, on whose labels the threshold was chosen, the mean Dice is "
                f"{figures['validation_mean_dice']:.3f}: no result."
            )
    judged_all = {row["subject_id"] for protocol in figures["protocols"].values() for row in protocol["subjects"]}
    unknown = [s["subject_id"] for s in subjects
               if is_unknown(s) and s["role"] == "test" and s["subject_id"] not in judged_all]  # fmt: skip
    if unknown:
        told.append(
            f"{len(unknown)} test scan(s) of unknown health ({', '.join(unknown[:5])}): neither Dice nor false "
            f"positives are told of them.{_marked(figures)}"
        )
    return told


def _marked(figures: Mapping[str, Any]) -> str:
    """How much is marked on scans that are neither healthy nor with a lesion, where that was kept."""
    for name, protocol in figures["protocols"].items():
        if ml := protocol.get("marked_ml_by_unclear_scan"):
            mean = sum(ml.values()) / len(ml)
            return f" At the {name} threshold {mean:.2f} mL are marked on such a scan; whether falsely, nobody says."
    return ""

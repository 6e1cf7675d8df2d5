"""Rows of decisions, causes, post-processings and limits for tables."""

from collections.abc import Mapping, Sequence
from typing import Any

PROTOCOL_NAMES = (
    ("healthy", "one threshold, from healthy scans"),
    ("validation", "one threshold, from validation labels"),
    ("oracle_set", "oracle: best one threshold on test"),
    ("oracle_subject", "oracle: best threshold per test subject"),
)
DENSITY_WORDS = {
    "gaussian": "two Gaussians",
    "mixture": "two mixtures of Gaussians",
    "kde": "two smoothed histograms",
    "two kernel densities": "two smoothed histograms",
    "validation share": "lesions as common as in validation",
    "prior = share of lesion voxels in validation": "lesions as common as in validation",
    "validation cut": "the border that is best on validation",
    "cut with the best validation Dice": "the border that is best on validation",
}
"""What is fitted to normal and to anomalous scores, and how the border between them is drawn."""


def decision_rows(diagnosis: Mapping[str, Any], protocols: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Threshold protocols and two-distribution decisions in one list: Dice, interval, which labels each needs.

    `protocols` are those of the layer set on the working grid, where the decisions are counted too.
    """
    rows = []
    for name, title in PROTOCOL_NAMES:
        if (found := protocols.get(name)) is None or found["mean_dice"] is None:
            continue
        labels = "test" if found["oracle"] else "validation" if found["needs_labels"] else "none"
        rows.append(
            {
                "decision": title, "dice": found["mean_dice"], "low": found["ci_low"], "high": found["ci_high"],
                "n": found["n"], "labels": labels, "threshold": found["threshold"], "explain": found["rule"],
            }
        )  # fmt: skip
    for found in diagnosis["decisions"]:
        rows.append(
            {
                "decision": density_name(found),
                "dice": found["mean_dice"], "low": found["low"], "high": found["high"], "n": found["n"],
                "labels": "validation", "threshold": found["threshold"], "explain": found["explain"],
            }
        )  # fmt: skip
    return rows


def unlisted(diagnosis: Mapping[str, Any]) -> list[str]:
    """Subjects whose lesions are all too small for the list of lesions."""
    listed = {row["subject_id"] for row in diagnosis["lesions"]}
    return [s["subject_id"] for s in diagnosis["subjects"] if s["subject_id"] not in listed]


def density_name(decision: Mapping[str, Any]) -> str:
    """A decision by two densities in plain words: what is fitted, over what, and where the border is drawn."""
    name = str(decision["name"])
    head, _, rule = name.partition(": " if ": " in name else ", ")
    for short, told in DENSITY_WORDS.items():
        head = head.replace(f"{short} over", f"{told} over") if head.startswith(f"{short} over") else head
    told = f"{head}: {DENSITY_WORDS.get(rule, rule)}" if rule else head
    return told[0].upper() + told[1:]


def cause_state(cause: Mapping[str, Any], stored: Sequence[str]) -> str:
    """Whether a cause is known, waits for a job, lacks an input, or is none of this detector's."""
    if cause["cost"] is not None:
        return "known"
    missing = cause["missing"] or ""
    if missing.startswith("A detector with"):
        return "does not apply"
    if cause["what_if"] in stored:
        return "done, without a figure"
    return "not run yet" if cause["what_if"] or "cli.py" in missing else "input missing"


def cause_rows(causes: Sequence[Mapping[str, Any]], stored: Sequence[str]) -> list[dict[str, Any]]:
    """One line per cause: what it costs and what was found, or why there is no figure."""
    return [
        {
            "cause": f"{cause['id']} {cause['title']}",
            "costs": cause["cost"],
            "low": cause["low"],
            "high": cause["high"],
            "labels": "test" if cause["needs_labels"] else "none",
            "found": cause["text"]
            if cause["cost"] is not None
            else " ".join(
                part
                for part in (f"{cause_state(cause, stored).capitalize()}.", cause["missing"], cause["text"])
                if part
            ),
        }
        for cause in causes
    ]

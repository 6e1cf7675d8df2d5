"""The runs, their headline numbers with intervals, and what to do first."""

from collections import Counter
from typing import Any

import streamlit as st

from core.metrics.protocols import first_protocol
from core.presentation.figures.results import protocol_dots
from core.runs.listing import open_run
from core.runs.versions import notes_of
from core.study.run_summary import leading, of_comparison
from core.study.subject_level import subject_level_text
from pages._shared import dice_text, every_row, runs_directory, show_versions
from pages._take_over import show_take_over
from pages._text import cells, code, plain

MOST = 24  # runs of one cohort in the figure
TOLD = (
    *("run", "id", "Dice, healthy", "Dice, validation", "Dice, oracle"),
    *("AUPRC", "FP mL", "n", "layers"),
)
COLUMNS = {
    "layers": st.column_config.TextColumn(help="The layer set whose numbers these are."),
    "Dice, healthy": st.column_config.TextColumn(
        help="At the threshold from healthy scans: no label is needed, but behind a gate that validation labels cut."
    ),
    "Dice, validation": st.column_config.TextColumn(help="At the threshold that is best on labelled validation scans."),
    "Dice, oracle": st.column_config.NumberColumn(
        format="%.3f", help="Mean Dice at the single threshold that is best on the test labels: not a result."
    ),
    "AUPRC": st.column_config.NumberColumn(format="%.3f", help="Of all test voxels pooled."),
    "FP mL": st.column_config.NumberColumn(
        format="%.2f", help="False positives per healthy test scan, mL, at the threshold from healthy scans."
    ),
    "n": st.column_config.NumberColumn(help="Test subjects with lesions."),
}


def labels_of(rows: list[dict[str, Any]]) -> list[str]:
    """The names of runs, with the id where another has the same name."""
    count = Counter(row["name"] for row in rows)
    return [str(row["name"]) if count[row["name"]] == 1 else f"{row['name']} · {row['run_id']}" for row in rows]


def most_telling(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All of a few; of many, those that do best on validation labels, in the order of `rows`."""
    if len(rows) <= MOST:
        return rows
    rated = sorted(rows, key=lambda row: -(row.get("validation_mean_dice") or 0.0))[:MOST]
    chosen = {row["run_id"] for row in rated}
    return [row for row in rows if row["run_id"] in chosen]


def show_scan_scores(evaluated: list[dict[str, Any]]) -> None:
    """How well one number per scan tells ill test scans from healthy ones, run by run."""
    known = [(row, row["subject_level"]) for row in evaluated if row.get("subject_level")]
    if not known:
        return
    with st.expander("Ill or healthy: one score per scan", icon=":material/rule:"):
        st.dataframe(
            cells(
                [
                    {
                        "run": row["name"],
                        "id": row["run_id"],
                        "AUROC, highest score": subject_level_text(found["maximum"]),
                        "AUROC, re-weighted": subject_level_text(found["reweighted"]) if found["reweighted"] else None,
                    }
                    for row, found in known
                ]
            ),
            hide_index=True,
            placeholder="–",
        )
        st.caption(
            "AUROC over test scans, ill against healthy, with its 95 % interval: 0.5 is chance, and with few healthy "
            "scans it is coarse. Highest score: of the map inside the brain. Re-weighted: a memory bank's own rule "
            "(PatchCore), which counts a patch more when its nearest healthy patch is rare itself."
        )


st.title("Overview")
rows = every_row()
if not rows:
    st.info("No runs yet. Make the demo study: `python cli.py demo`, or bring your own scans: see the README.")
    st.stop()
compared = [row for row in rows if of_comparison(row["run_id"])]
if compared and len(compared) < len(rows):
    told = "Runs that compare-pretraining made; the Training page has their table. They never lead here."
    if not st.toggle(f"Show the {len(compared)} runs of comparisons", key="comparisons", help=told):
        rows = [row for row in rows if not of_comparison(row["run_id"])]
for row in rows:
    if "problem" in row:
        st.warning(plain(row["problem"]))
evaluated = [row for row in rows if row["evaluated"]]
if not evaluated:
    st.info("No run is evaluated yet. Finish one: `python cli.py score latest`, then `python cli.py evaluate latest`.")

groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
for row in evaluated:
    groups.setdefault((str(row["cohort"]), str(row["fingerprint"])), []).append(row)
for (cohort, _), members in groups.items():
    best = leading(members)
    rule = "validation" if best["dice"].get("validation") else first_protocol(best["dice"])
    found = best["dice"][rule]
    oracle = best["dice"].get("oracle_subject")
    st.subheader(f"Cohort {plain(cohort)}")
    left, middle, right, last = st.columns(4)
    left.metric(
        f"Dice, {plain(rule.removesuffix('_set'))} threshold",
        dice_text(found).split(" ")[0],
        help=f"Test Dice of {plain(best['name'])}, the run that does best on validation: {dice_text(found)}.",
    )
    if best["dice"].get("oracle_set"):
        middle.metric(
            "Dice, oracle threshold",
            f"{best['dice']['oracle_set']['mean']:.3f}",
            help="The same maps. One threshold for all test subjects, chosen on their own labels. Not a result.",
        )
    share = best["prevalence"]
    right.metric("Lesion share of brain", "–" if share is None else f"{100 * share:.2f} %")
    last.metric("Test scans, ill / healthy", f"{best['n_lesion_subjects']:d} / {best['n_healthy_subjects']:d}")
    if found["mean"] is not None and oracle and oracle["mean"] is not None:
        gap = best["dice"]["oracle_set"]["mean"] - found["mean"]
        st.markdown(
            f"**What to do first.** {code(best['name'])} does best on validation; its test Dice is {dice_text(found)}. "
            f"The best single threshold would add {gap:.3f}, one per subject {oracle['mean'] - found['mean']:.3f} "
            f"(both oracles); the remaining {1 - oracle['mean']:.3f} to a Dice of 1 is in the maps themselves: "
            "**Diagnosis** says which errors cost it, **Slices** shows them, **Layers** compares the maps there are."
        )
    if not any(one.get("mean") is not None for row in members for one in row["dice"].values()):
        st.caption(
            "No test scan of these runs has a lesion, so there is no Dice. Their pages tell what can be said in mL."
        )
        continue
    drawn = most_telling(members)
    st.plotly_chart(
        protocol_dots(
            [{"label": label, "dice": r["dice"]} for label, r in zip(labels_of(drawn), drawn, strict=True)],
            "mean Dice over lesion-bearing test subjects, native space",
        ),
        key=f"dots-{cohort}-{members[0]['run_id']}",
        alt="Mean Dice of each run under each threshold protocol",
    )
    st.caption(
        "Bars are 95 % bootstrap intervals over subjects (percentiles). Blue needs no label, orange needs labelled "
        "validation scans (so does a healthy threshold behind a gate that they cut), grey is an oracle: its threshold "
        "saw the test labels."
        + (f" Drawn are the {MOST} of {len(members)} that do best on validation." if len(members) > MOST else "")
    )

if evaluated:
    st.subheader("Evaluated runs")
    st.dataframe(
        cells(
            [
                {
                    "run": row["name"],
                    "id": row["run_id"],
                    "layers": row["headline"],
                    "Dice, healthy": dice_text(row["dice"].get("healthy")),
                    "Dice, validation": dice_text(row["dice"].get("validation")),
                    "Dice, oracle": (row["dice"].get("oracle_set") or {}).get("mean"),
                    "AUPRC": row["auprc"],
                    "FP mL": (row["healthy_fp_ml"] or {}).get("healthy"),
                    "n": row["n_lesion_subjects"],
                    "cohort": row["cohort"],
                }
                for row in evaluated
            ]
        ),
        hide_index=True,
        placeholder="–",
        column_order=TOLD if len(groups) == 1 else (*TOLD[:2], "cohort", *TOLD[2:]),
        column_config=COLUMNS,
    )
    st.caption(
        "Mean Dice in native space, with its 95 % interval, at the threshold from healthy scans and from validation "
        "labels; the oracle saw the test labels. Numbers of different cohorts are not comparable; each stands on "
        "its own scans, prevalence and space. Point at a column's name for its meaning."
    )

show_versions(notes_of((row["run_id"], row["version_notes"]) for row in rows), named=len(rows) > 1, within=st)
others = [row for row in rows if not row["evaluated"]]
if others:
    st.subheader("Encoders and unfinished runs")
    st.dataframe(
        cells(
            [
                {
                    "run": row["name"],
                    "id": row["run_id"],
                    "kind": row["kind"],
                    "status": row["status"],
                    "cohort": row["cohort"],
                    "set aside": row["set_aside"],
                }
                for row in others
            ]
        ),
        hide_index=True,
        placeholder="–",
    )
show_scan_scores(evaluated)
for row in others:
    if row["status"] == "running":
        show_take_over(open_run(runs_directory(), row["run_id"]))

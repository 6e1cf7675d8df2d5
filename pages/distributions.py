"""How far the scores of normal and anomalous voxels are apart, and what prevalence does to Dice."""

import streamlit as st

from core.metrics.confusion import (
    Confusion,
    confusion,
    dice_over_prevalences,
    fit_densities,
    score_bins,
    two_density_confusion,
)
from core.metrics.exact_curve import all_positive_dice, dice_from_rates, fpr_for_dice_half
from core.metrics.protocols import first_protocol, judged
from core.metrics.subject_scores import SubjectScores
from core.metrics.two_densities import Kind, TwoDensities
from core.presentation.figures.results import HEALTHY, ORACLE, VALIDATION, dice_over_prevalence, score_densities
from core.runs.run_record import Run
from core.study.content import whole_content
from core.study.stored_scores import set_id
from pages._shared import (
    dice_text,
    metrics_or_stop,
    pick_layers,
    pick_run,
    scores_of,
    voxels_of,
)
from pages._text import plain, prose

COLOURS = {"healthy": HEALTHY, "validation": VALIDATION, "oracle_set": ORACLE}
HERE = "#2a9d8f"
LABELS = {"healthy": "healthy", "validation": "validation", "oracle_set": "oracle"}
KINDS: dict[Kind, str] = {"gaussian": "one Gaussian each", "mixture": "three Gaussians each", "kde": "kernel densities"}

st.title("Distributions")
run = pick_run()
metrics = metrics_or_stop(run)
scores = scores_of(run)
layers = pick_layers(scores, metrics["headline"])
figures = metrics["sets"][set_id(layers)]["working"]
lesioned = [row["subject_id"] for row in judged(figures)["subjects"]]

if not lesioned:
    st.info("No test subject of this run has a lesion: there is no anomalous distribution. Add labelled test scans.")
    st.stop()
whose = st.sidebar.selectbox(
    "Voxels of",
    ["all test subjects with lesions", *lesioned],
    key="whose",
    bind="query-params",
    persist_state="session",
    help="Pooled over subjects, or one subject by itself.",
)
subjects = [voxels_of(run, i, layers) for i in (lesioned if whose not in lesioned else [whose])]


@st.cache_resource(max_entries=64, show_spinner="Fitting densities")
def densities_of(
    run_id: str, content: str, layer_set: tuple[str, ...], kind: Kind, prior: float | None
) -> TwoDensities:
    """Densities of normal and anomalous validation scores."""
    validation = [voxels_of(run, i, layer_set) for i in scores.subjects("validation")]
    return fit_densities(validation, kind, prior)


def show_counts(found: Confusion) -> None:
    """One row of numbers: what the decision does to the voxels."""
    columns = st.columns(7)
    texts = [
        ("Dice, pooled", "–" if found.pooled_dice is None else f"{found.pooled_dice:.3f}"),
        ("Dice, mean", "–" if found.mean_dice.mean is None else f"{found.mean_dice.mean:.3f}"),
        ("found (TP)", f"{found.true_positives:,}"),
        ("false positives (FP)", f"{found.false_positives:,}"),
        ("missed (FN)", f"{found.misses:,}"),
        ("quiet (TN)", f"{found.true_negatives:,}"),
        ("lesion share", f"{100 * found.prevalence:.2f} %"),
    ]
    for column, (label, value) in zip(columns, texts, strict=True):
        column.metric(label, value)


@st.fragment
def threshold_section(run: Run, subjects: list[SubjectScores]) -> None:
    """Histogram or ECDF with a threshold that can be moved, its counts, and what prevalence does to its Dice."""
    left, middle, right = st.columns(3)
    shape = left.segmented_control(
        "Shape", ["histogram", "ECDF"], default="histogram", required=True, key="shape", bind="query-params"
    )
    vertical = middle.segmented_control(
        "Voxel axis", ["linear", "log"], default="log", required=True, key="yaxis", bind="query-params"
    )
    across = right.segmented_control(
        "Score axis", ["linear", "log"], default="linear", required=True, key="xaxis", bind="query-params"
    )
    bins = score_bins(subjects, logarithmic=across == "log")
    protocols = {k: figures["protocols"][k] for k in COLOURS if k in figures["protocols"]}
    low, high = float(bins.edges[0]), float(bins.edges[-1])
    start = min(max(protocols[first_protocol(protocols)]["threshold"], low), high)
    threshold = st.slider(
        f"Threshold ({plain(scores.unit)})",
        low,
        high,
        start,
        (high - low) / 1000,
        format="%.4g",
        key=f"cut-{set_id(layers)}",
    )
    lines = [(f"{LABELS[k]} {p['threshold']:.3g}", p["threshold"], COLOURS[k]) for k, p in protocols.items()]
    figure = score_densities(
        bins.edges,
        bins.normal,
        bins.anomalous,
        unit=scores.unit,
        thresholds=[*lines, (f"here {threshold:.3g}", threshold, HERE)],
        cumulative=shape == "ECDF",
        log_x=across == "log",
        log_y=vertical == "log",
        counts=vertical == "log" and shape == "histogram",
    )
    st.plotly_chart(figure, key="densities", alt="Scores of normal and anomalous voxels")
    found = confusion(subjects, threshold)
    show_counts(found)
    st.caption(
        "Voxels of the working grid, inside the brain; the mean is over subjects. Separated "
        "curves are not enough: with few lesion voxels the thin right tail of normal tissue outnumbers them. The "
        "oracle line was chosen on these labels."
    )
    prevalence_section(found)


def prevalence_section(found: Confusion) -> None:
    """The formula of Dice at fixed rates, with a slider for the share of lesion voxels."""
    st.subheader("What prevalence does to Dice")
    if found.tpr is None or found.fpr is None:
        return
    percent = st.select_slider(
        "Lesion voxels, % of brain",
        [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0],
        3.0,
        key="prevalence",
        persist_state="session",
    )
    share = percent / 100
    dice = dice_from_rates(share, found.tpr, found.fpr)
    prevalence, curve = dice_over_prevalences(found)
    left, right = st.columns([3, 2])
    left.plotly_chart(
        dice_over_prevalence(prevalence, curve, (found.prevalence, found.pooled_dice or 0.0), (share, dice)),
        key="prevalence-curve",
        alt="Dice over prevalence at fixed rates",
    )
    needed = fpr_for_dice_half(found.prevalence, found.tpr)
    right.markdown(
        f"At this threshold {100 * found.tpr:.1f} % of lesion voxels are found and {100 * found.fpr:.2f} % of normal "
        f"voxels are false positives. Here, with {100 * found.prevalence:.2f} % lesion, that is a pooled Dice of "
        f"**{found.pooled_dice:.3f}**; with {percent:g} % the very same maps would have **{dice:.3f}**. "
        + (
            f"For a Dice of one half at this prevalence the false-positive rate must fall to {100 * needed:.3f} %. "
            if needed > 0
            else "With under a third of lesion voxels found, no false-positive rate gives a Dice of one half. "
        )
        + f"Calling every voxel lesion already gives {all_positive_dice(found.prevalence):.3f}."
    )
    right.latex(r"D = \frac{2\pi T}{\pi(1+T) + (1-\pi)F}")
    right.caption("π share of lesion voxels, T share of them found, F share of normal voxels called lesion.")


threshold_section(run, subjects)

st.subheader("Two distributions instead of one threshold")
if not any(len(voxels_of(run, i, layers).anomalous) for i in scores.subjects("validation")):
    st.info("This run has no labelled validation subjects to fit the two densities on.")
    st.stop()
left, right = st.columns(2)
kind = left.selectbox("Densities", list(KINDS), format_func=KINDS.get, key="kind", bind="query-params")
prior_percent = right.select_slider(
    "Prior share of lesion voxels, %",
    ["as in validation", 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0],
    "as in validation",
    key="prior",
    persist_state="session",
)
prior = None if isinstance(prior_percent, str) else prior_percent / 100
densities = densities_of(run.run_id, whole_content(run), layers, kind, prior)
decided = two_density_confusion(subjects, densities)
st.markdown(
    f"Fitted on log1p of the validation scores ({KINDS[kind]}, prior {100 * densities.prior:.2f} %). "
    + prose(densities.explain())
    + (" The ratio rises with the score: no prior can do more than move one threshold." if densities.monotone else "")
)
show_counts(decided)
reference = figures["protocols"].get("validation") or judged(figures)
st.caption(
    f"Beside it, one threshold from validation: mean Dice over all test subjects "
    f"{dice_text({'mean': reference['mean_dice'], 'low': reference['ci_low'], 'high': reference['ci_high']})}. "
    "Over a single score the two rules differ only where the densities cross more than once."
)

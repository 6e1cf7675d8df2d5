"""Curves of a training: which there are, what they mean, and what belongs beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from core.presentation.figures.results import ANOMALOUS, ORACLE
from core.presentation.figures.training import (
    HARDEST,
    OTHERS,
    PALETTE,
    PARTNERS,
    SHARES,
    Line,
    latest_similarities,
    monitor_curves,
    similarity_map,
)
from core.presentation.training_view import (
    TrainingView,
)
from core.pretraining.training_verdict import share_text
from pages._text import plain

CHANCE_WORDS = {"in-batch": "chance ln(2N−1)", "ccd": "chance, pairs and classes"}
"""How the chance level of a loss is written; for the others it is ln(1 + negatives)."""
OWN_WORDS = {"ccd": "The shifted copies", "dense-shift": "The changed copies", "atlas-shift": "The changed copies"}
KEYED = ("moco", "hard")
KEYED_WORDS = (
    "Two sources: alignment, like the cosines above, compares an embedding of the trained encoder with a key of its "
    "slow copy; uniformity, std and rank compare embeddings of the trained encoder with each other."
)


@dataclass(frozen=True)
class Chart:
    """One chart of values over steps."""

    title: str
    series: Mapping[str, str]
    """Name in the legend of each logged value."""
    lines: Sequence[Line] = ()
    axis: Mapping[str, Any] = field(default_factory=lambda: {"rangemode": "tozero"})
    colours: Sequence[str] = PALETTE
    words: str | None = None
    """What it tells, for the question mark beside the title."""


def show_curves(view: TrainingView) -> None:
    """How hard the task is; what its negatives do, where they are more than a batch; how the embedding is spread."""
    st.subheader("How hard it is", anchor=False)
    _draw_row(view, difficulty_charts(view))
    _show_similarities(view)
    own = own_charts(view)
    if own:
        st.subheader(OWN_WORDS.get(view.kind, "The bank of negatives"), anchor=False)
        _draw_row(view, own)
    st.subheader("How the embedding is spread", anchor=False)
    _draw_row(view, spread_charts())
    if view.kind in KEYED:
        st.caption(KEYED_WORDS)
    with st.expander("How the optimiser goes", icon=":material/speed:"):
        _draw_row(view, optimiser_charts())


def difficulty_charts(view: TrainingView) -> list[Chart]:
    """Is the loss below chance, are partners found, and how far are they from what they are told from."""
    chance = CHANCE_WORDS.get(view.kind, "chance ln(1 + negatives)")
    cosines = {"positive_similarity": "partner", "negative_similarity": "others", "hardness": "hardest other"}
    return [
        Chart(
            "Loss",
            {"loss": "loss"},
            [(chance, view.curves.values["chance"], ORACLE)],
            words="Chance is what an embedding that tells nothing apart would reach. It rises while a bank fills.",
        ),
        Chart(
            f"Top-1 among {view.candidates:,}",
            {"top1": "top-1"},
            [("chance 1/K", view.curves.values["chance_top1"], ORACLE)],
            SHARES,
            words="How often the partner is the most similar of all K candidates.",
        ),
        Chart(
            "Similarity (cosine)",
            {name: text for name, text in cosines.items() if view.curves.has(name)},
            axis={},
            colours=(PARTNERS, OTHERS, HARDEST),
            words="Means over a step: of partners, of all the others, and of the most similar other of each. The task "
            "is hard while the hardest other is as similar as the partner.",
        ),
    ]


def own_charts(view: TrainingView) -> list[Chart]:
    """What only a bank, a class head or changed copies have."""
    epoch = [(f"one epoch, {view.epoch:.0f} steps", view.epoch, ORACLE)] if view.epoch else []
    share = SHARES
    charts = [
        Chart("Bank: share that is filled", {"queue_fill": "filled"}, (), share),
        Chart(
            "Bank: mean age of its entries, steps",
            {"queue_age": "age"},
            epoch,
            words="Entries older than an epoch were made by another encoder. With moco and hard that is meant, for "
            "the key encoder is slow; with queue and slots they are stale.",
        ),
        Chart(
            "Classes of shifted copies: accuracy",
            {"class_accuracy": "accuracy"},
            [(f"chance 1/{view.shifts}", 1 / view.shifts, ORACLE)] if view.shifts else [],
            share,
            words="How often the class head tells how a copy was shifted. Its loss is added to that of the pairs.",
        ),
        Chart("Loss of pairs and of classes", {"contrastive_loss": "pairs", "class_loss": "classes"}),
        Chart(
            "Cosine with the changed copy",
            {"shift_similarity": "changed copy", "positive_similarity": "partner"},
            axis={},
            colours=(HARDEST, PARTNERS),
            words="The same position, its intensity changed by a blob: lower than the partner means that the encoder "
            "sees the change.",
        ),
        Chart("Positions with a changed copy", {"shift_share": "share"}, (), share),
    ]
    return [chart for chart in charts if view.curves.has(next(iter(chart.series)))]


def spread_charts() -> list[Chart]:
    """Do partners lie together, is the space used."""
    return [
        Chart(
            "Alignment and uniformity",
            {"alignment": "alignment", "uniformity": "uniformity"},
            axis={},
            words="Alignment: mean squared distance of partners, 0 is best. Uniformity: how evenly all the others are "
            "spread on the sphere, −4 is best and 0 collapsed.",
        ),
        Chart("Embedding std × √dim", {"embedding_std": "std"}, [("collapse below 0.1", 0.1, ANOMALOUS)]),
        Chart("Effective rank", {"effective_rank": "rank"}, [("collapse below 2", 2.0, ANOMALOUS)]),
    ]


def optimiser_charts() -> list[Chart]:
    """Is the step size sane, is the machine busy."""
    return [
        Chart("Gradient norm", {"gradient_norm": "norm"}),
        Chart("Learning rate", {"lr": "rate"}),
        Chart("Subjects per second", {"examples_per_s": "speed"}),
    ]


def _show_similarities(view: TrainingView) -> None:
    found = view.similarities
    if found is None:
        return
    partners, others, latest = st.columns(3)
    partners.markdown("**Partners: cosine over steps**")
    partners.plotly_chart(
        similarity_map(found, True), key="map-positive", alt="Histograms of partners' cosines over training steps"
    )
    others.markdown("**Others: cosine over steps**")
    others.plotly_chart(
        similarity_map(found, False),
        key="map-negative",
        alt="Histograms of the cosines with what a partner must be told from, over training steps",
    )
    latest.markdown(
        f"**Both at step {found.steps[-1]:,}: {share_text(found.overlap)} overlap**",
        help="Overlap 0 %: one cosine parts partners from others, the task is solved. 100 %: they look alike.",
    )
    latest.plotly_chart(
        latest_similarities(found), key="similarities-latest", alt="The latest cosines of partners and of the others"
    )


def _draw_row(view: TrainingView, charts: Sequence[Chart]) -> None:
    drawn = [chart for chart in charts if any(view.curves.has(name) for name in chart.series)]
    for column, chart in zip(st.columns(max(len(drawn), 1)), drawn, strict=False):
        column.markdown(f"**{plain(chart.title)}**", help=None if chart.words is None else plain(chart.words))
        column.plotly_chart(
            monitor_curves(
                view.curves.steps,
                {text: view.curves.values[name] for name, text in chart.series.items()},
                {text: view.curves.means[name] for name, text in chart.series.items()},
                chart.lines,
                colours=chart.colours,
                axis=chart.axis,
            ),
            key=f"curve-{next(iter(chart.series))}",
            alt=f"{chart.title} over training steps",
        )

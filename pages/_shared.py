"""What every page needs: where the runs are, pickers whose choice is in the address, cached loaders keyed by ids."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import streamlit as st

from core.metrics.subject_scores import SubjectScores
from core.presentation.figures.results import BEHIND_GATE, LABEL_FREE
from core.runs.evaluated import read_metrics
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.runs.versions import noted, notes_by_text
from core.study.content import content_of, subject_content
from core.study.evaluation_words import evaluation_words
from core.study.run_summary import layer_table, leading, run_rows, run_summary
from core.study.stored_scores import RunScores, open_scores
from data.errors import BadInput, EnvironmentProblem, IntegrityError
from pages._text import plain, prose

PROTOCOL_LABELS = {
    "healthy": LABEL_FREE,
    "validation": "validation labels",
    "oracle_set": "oracle: best single threshold on test",
    "oracle_subject": "oracle: best threshold per test subject",
}


def protocol_label(protocol: str, row: Mapping[str, Any]) -> str:
    """A threshold protocol in words; a healthy threshold behind a gate that labels cut is not called label-free."""
    return BEHIND_GATE if protocol == "healthy" and row.get("needs_labels") else PROTOCOL_LABELS[protocol]


FITS = 27.0
"""Wide characters that the sidebar's boxes show of a choice; narrow ones count half."""


@contextmanager
def in_words() -> Iterator[None]:
    """What files are missing or damaged is told on the page with its remedy, and the page ends there."""
    try:
        yield
    except (BadInput, EnvironmentProblem, IntegrityError) as problem:
        st.error(plain(problem), icon=":material/error:")
        st.stop()


def runs_directory() -> Path:
    """The runs directory that the server was started with."""
    return Path(os.environ.get("DICESCOPE_RUNS", "runs"))


def every_row(kind: str | None = None) -> list[dict[str, Any]]:
    """The summary of every run, newest first; what cannot be read at all is named on the page and left out.

    A run whose record is whole and whose evaluation is damaged stays, with its "problem" in words.
    """
    rows, apart = run_rows(runs_directory())
    lost = [row["problem"] for row in rows if row["status"] == "damaged"]
    for problem in (*lost, *apart):
        st.warning(plain(problem))
    return [row for row in rows if row["status"] != "damaged" and kind in (None, row["kind"])]


@in_words()
def pick_run(*, evaluated: bool = True, layered: bool = False) -> Run:
    """The run picker in the sidebar; the page ends with a sentence when there is nothing to pick.

    `layered`: when no run was picked yet, open with one that has layers to combine, if there is any.
    """
    rows = [row for row in every_row("detector") if not evaluated or "evaluation" in row["stages"]]
    if not rows:
        st.info("No evaluated run yet. Make one: `python cli.py demo`")
        st.stop()
    run_id = pick_by_id(
        "Run",
        "run",
        {row["run_id"]: f"{row['name']} · {row['run_id']}" for row in rows},
        str(leading((layered_rows(rows) if layered else []) or rows)["run_id"]),
        "Every page shows the same run until another is picked. The choice is in the address.",
    )
    run = open_run(runs_directory(), run_id)
    show_versions(notes_by_text([run]), named=False)
    return run


def show_versions(notes: Mapping[str, list[str]], *, named: bool, within: Any = None) -> None:
    """In the sidebar (or `within`), what a reader of some runs' numbers has to know of versions, a line each."""
    for note, ids in notes.items():
        text = noted(note, ids) if named else note
        (within or st.sidebar).caption(plain(text))


def layered_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those with more than one layer set, best on validation first."""
    layered = [row for row in rows if row.get("n_layer_sets", 0) > 1]
    return sorted(layered, key=lambda row: -(row.get("validation_mean_dice") or 0.0))


def pick_subject(run: Run, order: list[str], labels: dict[str, str], start: str | None = None) -> str:
    """The subject picker in the sidebar; `start` is shown when none was picked yet, else the first."""
    return pick_by_id(
        "Subject",
        "subject",
        {i: labels.get(i, i) for i in order},
        order[0] if start is None else start,
        "Lowest Dice first, with the lesion volume; then healthy scans, with the volume of false positives (FP). It "
        "opens on the median lesion volume among the half with the lowest Dice.",
    )


def pick_layers(scores: RunScores, headline: str) -> tuple[str, ...]:
    """Which of the fitted layers to combine; falls back to the headline set when none is left."""
    start, options = headline.split("+"), list(scores.layers)
    wanted = _wanted("layers", options, start, "layer")
    if len(options) == 1:
        return scores.layers
    chosen = st.sidebar.pills(
        "Layers",
        options,
        selection_mode="multi",
        format_func=plain,
        default=wanted,
        key="layers",
        persist_state="session",
        on_change=_clicked,
        args=("layers",),
        help="Distances of every combination come from one fit; nothing is refitted.",
    )
    shown = set(chosen or start)
    layers = tuple(layer for layer in options if layer in shown)
    _tell("layers", list(layers))
    return layers


def pick_protocol(protocols: Mapping[str, Any]) -> str:
    """From which scans the deployed threshold comes: those protocols of an evaluation that can be deployed."""
    options = [name for name in ("healthy", "validation") if name in protocols]
    if not options:
        st.info(
            "This run has no threshold to deploy: no scan calibrates it, and no labelled one validates it. "
            "Its oracles stand on the Overview and Slices pages. Give healthy subjects the role calibration."
        )
        st.stop()
    [wanted] = _wanted("protocol", options, options[:1], "threshold")[:1]
    chosen = st.sidebar.segmented_control(
        "Threshold from",
        options,
        default=wanted,
        required=True,
        format_func=plain,
        key="protocol",
        persist_state="session",
        on_change=_clicked,
        args=("protocol",),
        help="How the deployed threshold is chosen: from healthy scans alone, or on labelled validation scans.",
    )
    _tell("protocol", [str(chosen)])
    return str(chosen)


def metrics_or_stop(run: Run) -> dict[str, Any]:
    """The evaluation of a run, or a sentence that says how to get it."""
    try:
        content = content_of(run)
        _check_summary(run.run_id, content)
        metrics = metrics_of(run.run_id, content)
        for sentence in evaluation_words(run, metrics):
            st.info(plain(sentence), icon=":material/info:")
        return metrics
    except BadInput as nothing:
        st.info(plain(nothing))
    except IntegrityError as problem:
        st.error(plain(problem), icon=":material/error:")
    st.stop()


@in_words()
def scores_of(run: Run) -> RunScores:
    """The stored scores of a run."""
    return _scores(run.run_id, content_of(run))


@in_words()
def voxels_of(run: Run, subject_id: str, layers: tuple[str, ...]) -> SubjectScores:
    """In-brain scores of a subject on the working grid, normal and anomalous apart."""
    return _voxels(run.run_id, subject_content(run, subject_id), subject_id, layers)


def tell_in_full(label: str) -> None:
    """Below a box of the sidebar, what the box would cut without a hint; nothing when it fits."""
    if sum(0.5 if c in " .,·|-ijlt" else 1.0 for c in label) > FITS:
        st.sidebar.caption(plain(label))


def dice_text(found: Mapping[str, Any] | None) -> str:
    """A mean with its interval, in words of one line."""
    if not found or found["mean"] is None:
        return "–"
    if found["low"] is None:
        return f"{found['mean']:.3f}"
    return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def protocol_text(protocol: Mapping[str, Any]) -> str:
    """Mean Dice and interval of one protocol of an evaluation."""
    return dice_text({"mean": protocol["mean_dice"], "low": protocol["ci_low"], "high": protocol["ci_high"]})


def pick_by_id(title: str, key: str, labels: dict[str, str], default: str, help_text: str) -> str:
    """A select box in the sidebar whose choice stands in the address by its id.

    Streamlit's own binding would write the label, which changes with every evaluation, and the link would be lost.
    """
    state, told, options = st.session_state, f"{key}-told", list(labels)
    linked = st.query_params.get(key)
    if linked is not None and linked not in labels and linked != state.get(told):
        st.warning(f"The link names a {plain(title.lower())} that is not here: {plain(linked)}. Another one is shown.")
    asked = linked in labels and linked != state.get(told)  # by the address, since this page last wrote it
    known = [state.get(name) for name in (key, told)]  # a first page opened by a link leaves only the second
    wanted = linked if asked else next((name for name in known if name in labels), default)
    index = options.index(str(wanted))  # the browser falls back to it when the page changes
    if key in state and state[key] != wanted:
        state[key], index = wanted, 0
    chosen = st.sidebar.selectbox(
        plain(title), options, index, labels.__getitem__, key=key, persist_state="session", help=prose(help_text)
    )
    tell_in_full(labels[str(chosen)])
    st.query_params[key] = state[told] = str(chosen)
    return str(chosen)


def _wanted(key: str, options: list[str], start: list[str], title: str) -> list[str]:
    """What pills should show: what a new address names, else what was picked, else `start`.

    Streamlit's own binding would drop the choice from a link that another page makes.
    """
    state, linked = st.session_state, st.query_params.get_all(key)
    told, held = state.get(f"{key}-told") or [], state.get(key)
    asked = linked if linked != told else []
    if strange := [name for name in asked if name not in options]:
        st.warning(
            f"The link names a {plain(title)} that is not here: {plain(', '.join(strange))}. "
            f"Here are: {plain(', '.join(options))}. "
            "Without the others, the usual choice is shown."
        )
    if held == [] and not asked:
        return []
    picked = [held] if isinstance(held, str) else held or []
    sources = ([name for name in source if name in options] for source in (asked, picked, told, start))
    wanted = next((source for source in sources if source), start)
    if key in state and picked != wanted:
        state[key] = wanted[0] if isinstance(held, str) else wanted
    return wanted


def _clicked(key: str) -> None:
    """A click is newer than the address that came with it."""
    st.session_state[f"{key}-told"] = st.query_params.get_all(key)


def _tell(key: str, values: list[str]) -> None:
    """The choice into the address, once."""
    st.session_state[f"{key}-told"] = values
    if st.query_params.get_all(key) != values:
        st.query_params[key] = values


@st.cache_resource(max_entries=32, show_spinner=False)
def metrics_of(run_id: str, content: str) -> dict[str, Any]:
    """The evaluation of a run, shared and not to be changed."""
    return read_metrics(open_run(runs_directory(), run_id))


@st.cache_resource(max_entries=32, show_spinner=False)
def table_of(run_id: str, content: str) -> list[dict[str, Any]]:
    """Layer table of a run on the working grid."""
    return layer_table(metrics_of(run_id, content))


@st.cache_resource(max_entries=32, show_spinner=False)
def _check_summary(run_id: str, content: str) -> bool:
    run_summary(open_run(runs_directory(), run_id))
    return True


@st.cache_resource(max_entries=8, show_spinner=False)
def _scores(run_id: str, content: str) -> RunScores:
    return open_scores(open_run(runs_directory(), run_id))


@st.cache_resource(max_entries=256, show_spinner=False)
def _voxels(run_id: str, content: str, subject_id: str, layers: tuple[str, ...]) -> SubjectScores:
    return open_scores(open_run(runs_directory(), run_id)).voxels(subject_id, layers, "working")

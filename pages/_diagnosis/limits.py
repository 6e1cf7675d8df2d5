"""Detection limits: what this detector can find at all, from lesions planted into healthy scans."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from core.presentation.commands import in_shell
from core.presentation.diagnosis_view import job_argv, limit_rows
from core.presentation.figures.limits import sensitivity_curves, sensitivity_map
from core.presentation.figures.results import finish
from core.runs.run_record import Run
from core.study.again import limits_argv
from pages._diagnosis.jobs import job_panel, show_problem
from pages._shared import runs_directory
from pages._text import cells, plain, prose


def show_limits(run: Run, result: Mapping[str, Any] | None, layer_set: str) -> None:
    """Sensitivity over size and contrast, or the job that measures it. No label is needed for it."""
    argv = job_argv("detection-limits", runs_directory(), run.run_id, layer_set)
    if result is None:
        show_problem()
        st.markdown(
            "Lesions of known size, contrast and site are planted into this run's **own healthy scans**, which are "
            "scored again: what can this detector find at all? It needs no label, and it takes minutes to an hour."
        )
        job_panel(argv, label="Plant lesions and score them", key="detection-limits", primary=True)
        return
    _explore(result)
    with st.expander("Make it again"):
        again = limits_argv(run.run_id, layer_set, result)
        where = ["--runs", str(runs_directory().absolute())]
        st.code(in_shell([*again, *where]), language="bash", wrap_lines=True)


@st.fragment
def _explore(result: Mapping[str, Any]) -> None:
    levels = {level["id"]: level for level in result["levels"]}
    sites = list(dict.fromkeys(cell["site"] for cell in result["levels"][0]["cells"]))
    left, right = st.columns([2, 1])
    level = left.selectbox(
        "Threshold",
        list(levels),
        format_func=lambda name: str(levels[name]["title"]),
        key="limit-level",
        bind="query-params",
    )
    site = right.segmented_control("Site", sites, default=sites[0], required=True, format_func=plain, key="limit-site")
    chosen = levels[level]
    st.markdown(
        f"At this threshold healthy scans carry **{chosen['false_positive_ml_per_scan']:.2f} mL** of false positives "
        f"each, in {chosen['false_positive_components_per_scan']:.1f} components. {result['n_lesions']:d} lesions in "
        f"{result['n_scans']:d} scans."
    )
    first, second = st.columns(2, gap="medium")
    for column, figure, key, alt in (
        (first, sensitivity_map(result, level, site), "limit-map", "Sensitivity by size and contrast"),
        (second, sensitivity_curves(result, level, site), "limit-curves", "Sensitivity over contrast for each size"),
    ):
        figure.update_xaxes(title_text="contrast, healthy SD")
        column.plotly_chart(finish(figure, 400), key=key, alt=alt)
    st.caption(
        "Left: how many of the lesions of a size and contrast are found, in percent; negative contrast is darker. "
        "Right: the same as curves with 95 % bands; at contrast 0 stands what is found without a lesion: false."
    )
    st.dataframe(cells(limit_rows(chosen, site)), hide_index=True, alt="Contrast needed for each size")
    st.caption(
        "The contrast, in healthy standard deviations, at which 50 % and 80 % are found. never: not up to the "
        "strongest that was planted. false positives: so many places are called a lesion without one."
    )
    with st.expander("How it was measured"):
        st.markdown("\n".join(f"- {prose(note)}" for note in result["notes"]))

"""Post-processing explorer: every combination was judged beforehand, so the controls answer at once."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from core.diagnosis.verdict import settings_text
from core.presentation.diagnosis_view import SETTING_NAMES, job_argv, post_processing_rows, row_of, start_settings
from core.presentation.figures.diagnosis import setting_lines
from core.runs.run_record import Run
from pages._diagnosis.jobs import job_panel, show_problem
from pages._shared import dice_text, runs_directory
from pages._text import cells, plain, prose


def show_post_processing(run: Run, result: Mapping[str, Any] | None, layer_set: str, protocol: str) -> None:
    """The explorer, or the job that makes its grid."""
    st.subheader("Post-processing: smoothing, median, erosion, smallest component", anchor=False)
    argv = job_argv("post-processing", runs_directory(), run.run_id, layer_set)
    if result is None:
        show_problem()
        st.markdown(
            "Every combination is judged once on all subjects, in some minutes; then the controls here answer at once. "
            "The best is chosen on validation, never on test."
        )
        job_panel(argv, label="Judge every combination", key="post-processing", primary=True)
        return
    if result["rows"][0].get(protocol) is None:
        st.info("Without lesion masks of validation subjects there is only the threshold from healthy scans.")
        return
    _explore(result, protocol)


@st.fragment
def _explore(result: Mapping[str, Any], protocol: str) -> None:
    chosen = _picked(result, protocol)
    row = row_of(result, chosen)
    _show_figures(row[protocol], result["shipped"][protocol], chosen)
    st.plotly_chart(
        setting_lines(result, chosen, protocol), key="setting-lines", alt="Dice along each setting, the others held"
    )
    st.caption(
        "Each panel moves one setting and holds the other three where they are; the ring is where you stand. Choose by "
        "the blue line (validation); the grey one (test) is what the choice gives, and choosing by it is an oracle. "
        "Changes above are against the run's own setting."
    )
    number = st.column_config.NumberColumn(format="%.3f")
    st.dataframe(
        cells(post_processing_rows(result, protocol)),
        hide_index=True,
        column_config=dict.fromkeys(("Dice on validation", "Dice on test"), number)
        | {"setting": st.column_config.TextColumn(width="large")},
        placeholder="–",
        alt="The run's own setting, the best on validation, the best on test",
    )
    for note in result["notes"]:
        st.caption(prose(note))


def _picked(result: Mapping[str, Any], protocol: str) -> dict[str, Any]:
    """Ask for one value of each setting."""
    start = start_settings(result, protocol)
    chosen: dict[str, Any] = {}
    for column, (name, (title, unit)) in zip(st.columns([3, 3, 3, 5]), SETTING_NAMES.items(), strict=True):
        options = [float(value) for value in result["axes"][name]]
        key = f"set-{name}"
        if st.session_state.get(key) not in options:
            st.session_state.pop(key, None)
        chosen[name] = column.segmented_control(
            f"{title}, {unit}",
            options,
            default=float(start[name]),
            required=True,
            format_func=lambda value: "none" if value == 0 else f"{value:g}",
            key=key,
            persist_state="session",
        )
    return chosen


def _show_figures(here: Mapping[str, Any], shipped: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    """What the chosen settings give, beside the run's own."""
    texts = [
        ("Dice on test", here["dice"], shipped["dice"], "{:.3f}", "normal"),
        ("Dice on validation", here["validation_dice"], shipped["validation_dice"], "{:.3f}", "normal"),
        ("FP on healthy scans, mL", here["false_ml"], shipped["false_ml"], "{:.1f}", "inverse"),
    ]
    for column, (label, value, before, form, colour) in zip(st.columns([3, 3, 3, 5]), texts, strict=False):
        digits = form.strip("{:}")
        delta = None if value is None or before is None else f"{value - before:+{digits}}"
        column.metric(label, "–" if value is None else plain(form.format(value)), delta, delta_color=colour)  # type: ignore[arg-type]
    interval = dice_text({"mean": here["dice"], "low": here["low"], "high": here["high"]}).partition(" ")[2]
    gain = dice_text({"mean": here["gain"], "low": here["gain_low"], "high": here["gain_high"]})
    st.markdown(
        f"**{plain(_capital(settings_text(chosen)))}**: test Dice {here['dice']:.3f} {interval}, n = {here['n']:d}; "
        f"paired gain over the run's own setting {gain}. Threshold {here['threshold']:.3g}, derived anew."
    )


def _capital(text: str) -> str:
    return "No post-processing" if text == "none" else text[0].upper() + text[1:]

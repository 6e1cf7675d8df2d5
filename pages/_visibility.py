"""What the Training page says of what an encoder has been taught to ignore, and what a set of views would teach."""

import json
from typing import Any

import pandas as pd
import streamlit as st

from core.presentation.figures.visibility import brightness_bars, taught_away_lines, visibility_dumbbells
from core.pretraining.simclr import SimclrSettings
from core.pretraining.visibility.settings import VisibilitySettings
from core.recipes import as_json
from core.runs.jobs import list_jobs
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.study.content import scans_content
from core.study.visibility import stored_visibility, visibility_before_of_run
from data.errors import BadInput, EnvironmentProblem, IntegrityError
from pages._monitor import start
from pages._shared import runs_directory
from pages._text import cells, plain, prose

_ABOUT = (
    "Every augmentation is an invariance: training asks the encoder not to react to it. A lesion is often a change of "
    "brightness, and so is gamma. Movement is how far the features of a place move, in standard deviations of healthy "
    "tissue; **visibility** is the movement inside lesions divided by the movement under the training's views. Lesions "
    "are planted into copies of healthy training scans; no label is read."
)


def show_visibility(run: Run) -> None:
    """Of a finished encoder run: what was measured, or the button that measures it."""
    st.subheader("What this encoder has been taught to ignore", anchor=False)
    found = stored_visibility(run)
    if found is None:
        _offer(run)
        return
    st.markdown("\n".join(f"- {prose(sentence)}" for sentence in found["sentences"]))
    st.plotly_chart(
        visibility_dumbbells(found["trained"], found["untrained"]),
        key=f"visibility-{run.run_id}",
        alt="Per layer, how far views and lesions move features, and their ratio",
    )
    layers = [one["layer"] for one in found["trained"]["layers"] if one["layer"] != "input"]
    chosen = st.segmented_control(
        "What training changed at layer",
        layers,
        default=layers[-1],
        format_func=plain,
        key=f"visibility-layer-{run.run_id}",
    )
    st.plotly_chart(
        taught_away_lines(found["compared"], str(chosen or layers[-1])),
        key=f"visibility-away-{run.run_id}",
        alt="Movement after training divided by movement before, per kind of view and for lesions",
    )
    with st.expander("Every layer and lesion", icon=":material/table:"):
        st.dataframe(_lesion_table(found["trained"]), hide_index=True, alt="Visibility per layer and kind of lesion")
    st.caption(
        f"{_ABOUT} Measured on {len(found['subjects'])} scans; lines: 95 % intervals over scans; hollow: the same "
        "network before training."
    )


def show_views_before(run: Run, settings: SimclrSettings, key: str = "views-before") -> None:
    """Before training: what the views of `settings` would teach, measured on the training scans of a run when asked."""
    asked = json.dumps({"views": as_json(settings.views), "encoder": as_json(settings.encoder)}, sort_keys=True)
    if st.button(
        "What would these views teach it to ignore?",
        icon=":material/visibility_off:",
        key=key,
        help="Measured on 3 healthy training scans, from the augmentations and an untrained network: about half a "
        "minute.",
    ):
        st.session_state[f"{key}-asked"] = [run.run_id, asked]
    if f"{key}-asked" not in st.session_state:
        return
    run_id, shown = st.session_state[f"{key}-asked"]
    try:
        with st.spinner("Looking at views and lesions in healthy scans"):
            found = _measured(run_id, scans_content(open_run(runs_directory(), run_id)), shown)
    except (BadInput, EnvironmentProblem, IntegrityError, OSError) as problem:
        st.error(plain(problem), icon=":material/error:")
        return
    if shown != asked or run_id != run.run_id:
        st.info("The settings have changed since this was measured. Press the button again.", icon=":material/update:")
    st.markdown("\n".join(f"- {prose(sentence)}" for sentence in found["sentences"]))
    left, right = st.columns(2)
    left.markdown("**Brightness, no network**")
    left.plotly_chart(
        brightness_bars(found["intensity"]), key=f"{key}-brightness",
        alt="How far views and lesions move tissue brightness",
    )  # fmt: skip
    right.markdown("**Features of the untrained network**")
    right.plotly_chart(
        visibility_dumbbells(found["untrained"]), key=f"{key}-layers",
        alt="Per layer of the untrained network, how far views and lesions move features",
    )  # fmt: skip
    st.caption(_ABOUT)


def _offer(run: Run) -> None:
    """The button that starts the measurement, or that it is at work."""
    argv = ["visibility", run.run_id, "--runs", str(runs_directory().absolute())]
    job = next((j for j in list_jobs(runs_directory()) if list(j.argv) == argv), None)
    left, right = st.columns([1, 2], vertical_alignment="center")
    busy = job is not None and job.active
    left.button(
        "Measuring" if busy else "Measure it",
        icon=":material/visibility_off:",
        key="visibility",
        disabled=busy,
        on_click=start,
        args=(argv,),
        width="stretch",
    )
    right.caption(
        "It is being measured; the job is listed below."
        if busy
        else f"{_ABOUT} About half a minute for a small network."
    )


@st.cache_data(max_entries=16, show_spinner=False)
def _measured(run_id: str, content: str, asked: str) -> dict[str, Any]:
    run = open_run(runs_directory(), run_id)
    return visibility_before_of_run(run, json.loads(asked), VisibilitySettings(scans=3))


def _lesion_table(network: dict[str, Any]) -> pd.DataFrame:
    layers = network["layers"]
    rows = [
        {"lesion": lesion["name"]}
        | {one["layer"]: _ratio(one["lesions"][number]["visibility"]["mean"]) for one in layers}
        for number, lesion in enumerate(layers[0]["lesions"])
    ]
    return cells(rows)


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"

"""The form that fits a detector: its fields are those of the chosen recipe, each with the text that stands below it."""

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import streamlit as st

from core.detectors import CATALOGUE, make
from core.detectors.capabilities import LayerSets, can
from core.fields import Setting, settings_of
from core.presentation.commands import fit_argv, in_shell, next_step, steps_that_wait
from core.recipes import with_settings
from core.runs.run_record import Run
from core.types import Detector
from data.cells import number
from data.errors import BadInput
from data.ranges import refuse_out_of_range
from pages._monitor import start
from pages._shared import runs_directory
from pages._text import plain

ELSEWHERE = ("weights", "encoder.")
"""Settings that the encoder's run decides."""
UNITS = {"mm": "mm", "gb": "GB", "voxels": "voxels"}


def fit_form(encoder: Run) -> None:
    """Any detector of the catalogue, with any of its settings, on the scans and the split of an encoder's run."""
    with st.expander("Fit any detector on these scans", icon=":material/tune:"):
        st.fragment(_form)(encoder)
    asked = next_step(runs_directory(), encoder)
    for step in steps_that_wait(runs_directory()):
        if asked is not None and step.run_id == asked.run_id:
            continue  # its button stands above
        left, right = st.columns([1, 2], vertical_alignment="center")
        left.button(
            plain(step.label), icon=":material/play_arrow:", key=f"wait-{step.run_id}", on_click=start,
            args=(list(step.argv),), width="stretch",
        )  # fmt: skip
        right.caption(plain(f"{step.run_id} is fitted and not evaluated yet."))


def _form(encoder: Run) -> None:
    left, right = st.columns(2)
    name = str(left.selectbox("Detector", list(CATALOGUE), key="fit-detector"))
    title = str(right.text_input("Name", name, key=f"fit-{name}-name", max_chars=60)).strip()
    recipe = make(name)
    st.caption(plain(CATALOGUE[name].description))
    try:
        detector = with_settings(recipe, _ask(name, recipe))
        refuse_out_of_range(detector)
        argv = fit_argv(runs_directory(), encoder, detector, title or name)
    except BadInput as problem:
        st.error(plain(problem), icon=":material/error:")
        return
    if st.button("Fit", icon=":material/play_arrow:", type="primary", key="fit-start"):
        start(argv)
        st.rerun()
    st.code(in_shell(argv), language="bash", wrap_lines=True)


def _ask(name: str, recipe: Detector) -> dict[str, Any]:
    """The values of the form, by place; those of other recipes keep their own keys."""
    columns = st.columns(3)
    mine = [one for one in settings_of(recipe) if not (can(recipe, LayerSets) and one.place.startswith(ELSEWHERE))]
    values: dict[str, Any] = {}
    for n, setting in enumerate(mine):
        with columns[n % 3]:
            values[setting.place] = _widget(setting, f"fit-{name}-{setting.place}")
    return values


def _widget(setting: Setting, key: str) -> Any:
    label = plain(_label(setting.place))
    shown: Mapping[str, Any] = {"key": key, "help": plain(setting.text)}
    if get_origin(setting.kind) is Literal:
        options = get_args(setting.kind)
        return st.selectbox(label, options, options.index(setting.value), **shown)
    if isinstance(setting.value, bool):
        return st.checkbox(label, setting.value, **shown)
    if isinstance(setting.value, tuple):
        text = st.text_input(label, " ".join(map(str, setting.value)), **shown)
        return _listed(setting, str(text).replace(",", " ").split())
    if isinstance(setting.value, int | float):
        return _numbered(setting, str(st.text_input(label, f"{setting.value:g}", **shown)))
    return str(st.text_input(label, str(setting.value), **shown)).strip()


def _label(place: str) -> str:
    """A place in words: gaussian: ridge; smoothing, mm."""
    stem, _, unit = place.rpartition("_")
    named = f"{stem}, {UNITS[unit]}" if unit in UNITS else place
    return named.replace("_", " ").replace(".", ": ")


def _listed(setting: Setting, words: list[str]) -> tuple[Any, ...]:
    whole = int in get_args(setting.kind)
    return tuple(_whole(setting, word) if whole else word for word in words)


def _numbered(setting: Setting, text: str) -> int | float:
    return _whole(setting, text) if isinstance(setting.value, int) else _finite(setting, text)


def _whole(setting: Setting, text: str) -> int:
    found = _finite(setting, text)
    if found != int(found):
        raise BadInput(f"{setting.place} is {text!r}. Allowed: a whole number, as in {setting.value}.")
    return int(found)


def _finite(setting: Setting, text: str) -> float:
    found = number(text)
    if found is None:
        raise BadInput(f"{setting.place} is {text!r}. Allowed: a number, as in {setting.value}.")
    return found

"""The form that starts a pretraining: scans, network, views, optimisation."""

from dataclasses import replace
from typing import Any

import streamlit as st

from core.commands import pretrain_argv, scans_at, scans_of
from core.recipes import from_json
from core.simclr import SimclrSettings
from core.store import Run, open_run
from core.views import ViewSettings
from data.errors import BadInput
from data.layout import LAYOUTS
from data.preprocessing import Preprocessing
from pages._monitor import start
from pages._shared import runs_directory

OTHER = "another cohort"
ARCHITECTURES = ("cnn3d", "resnet10_3d", "resnet18_3d", "resnet10_2d", "resnet18_2d")


def pretrain_form(encoders: dict[str, Run], shown: str | None) -> None:
    """Which scans, then one form with the settings; they begin with those of the run whose scans are used."""
    choices = [*encoders, OTHER]
    base = st.selectbox(
        "Scans",
        choices,
        index=choices.index(shown) if shown in choices else 0,
        format_func=lambda i: (
            f"those of {encoders[i].name} · {i}, same split and preparation" if i in encoders else OTHER
        ),
        key="new-base",
        persist_state="session",
        help="With the scans of a run, its training subjects stay the training subjects: nothing leaks.",
    )
    settings = SimclrSettings()
    if base in encoders:
        recipe = {key: value for key, value in encoders[base].record["recipe"].items() if key != "kind"}
        settings = from_json(SimclrSettings, recipe)
    with st.form(f"new-{base}", border=True):
        if base == OTHER:
            _ask_scans()
        _ask_settings(str(base), settings, encoders.get(str(base)))
        st.form_submit_button(
            "Start training",
            icon=":material/play_arrow:",
            type="primary",
            on_click=begin,
            args=(str(base),),
            help="A process of its own. The same settings twice are one run: it is resumed, not repeated.",
        )


def begin(base: str) -> None:
    """Start what the form asks for; the page then shows that run."""
    runs = runs_directory()
    try:
        scans = _scans() if base == OTHER else scans_of(runs, open_run(runs, base))
        argv = pretrain_argv(runs, scans, _settings(base), str(_value(base, "name")).strip() or "simclr")
    except BadInput as problem:
        st.session_state["training_problem"] = str(problem)
        return
    start(argv, show=argv[argv.index("--run-id") + 1])


def _ask_scans() -> None:
    path, layout = st.columns([3, 1])
    path.text_input(
        "Table or folder, on the machine that serves this page",
        key=f"new-{OTHER}-cohort",
        placeholder="/data/ixi or /data/cohort.csv",
    )
    layout.selectbox("Layout", ["auto", *LAYOUTS], key=f"new-{OTHER}-layout")
    contrasts, registration, spacing = st.columns(3)
    contrasts.text_input("Contrasts", "T1", key=f"new-{OTHER}-contrasts", help="As the columns are named: T1, FLAIR.")
    registration.selectbox("Registration to MNI152", ["affine", "centroid", "none"], key=f"new-{OTHER}-registration")
    spacing.number_input("Working grid, mm", 0.5, 8.0, 2.0, 0.5, key=f"new-{OTHER}-spacing")


def _ask_settings(base: str, given: SimclrSettings, run: Run | None) -> None:
    most = len(run.record["split"].get("train", [])) if run is not None else 4096
    crop = given.views.crop_voxels[0] if given.views.crop_voxels else 0
    first, second, third, fourth = st.columns(4)

    def key(name: str) -> str:
        return f"new-{base}-{name}"

    first.text_input("Name", "simclr", key=key("name"), max_chars=60)
    first.selectbox(
        "Encoder", ARCHITECTURES, ARCHITECTURES.index(given.encoder.architecture), key=key("architecture"),
        help="cnn3d: five convolutions. resnet: residual, in 3-D or slice by slice (2d).",
    )  # fmt: skip
    first.number_input(
        "Width", 1, 128, given.encoder.width, key=key("width"), help="Channels of the first stage; the others follow."
    )
    second.number_input("Steps", 1, 1_000_000, given.steps, key=key("steps"))
    second.number_input(
        "Batch size, subjects", 2, max(most, 2), min(given.batch, max(most, 2)), key=key("batch"),
        help=f"Distinct subjects per step, at most the {most} that train. Chance loss is ln(2N − 1)."
        if run is not None else "Distinct subjects per step. Chance loss is ln(2N − 1).",
    )  # fmt: skip
    second.number_input("Seed", 0, 2**31, given.seed, key=key("seed"))
    third.number_input(
        "Temperature", 0.01, 2.0, given.temperature, 0.01, key=key("temperature"),
        help="Lower looks harder at the nearest brains.",
    )  # fmt: skip
    third.number_input("Learning rate", 1e-6, 1.0, given.lr, 1e-5, format="%.6f", key=key("lr"), help="AdamW, at peak.")
    third.number_input(
        "Crop, voxels", 0, 512, crop, 8, key=key("crop"), help="Edge of a random cube, at one place in both views; "
        "0 takes the whole volume.",
    )  # fmt: skip
    fourth.slider(
        "Geometric strength", 0.0, 3.0, given.views.geometric, 0.1, key=key("geometric"),
        help="Flips, affine, elastic. 0 off, 1 as published.",
    )  # fmt: skip
    fourth.slider(
        "Photometric strength", 0.0, 3.0, given.views.photometric, 0.1, key=key("photometric"),
        help="Ghosting, gamma, noise, bias field, blur, patch swaps. 0 off, 1 as published.",
    )  # fmt: skip
    fourth.toggle(
        "First view clean", given.views.first_view_clean, key=key("clean"),
        help="On: one view of each pair is the scan as it is. Off: both are augmented, a harder task.",
    )  # fmt: skip


def _scans() -> Any:
    contrasts = tuple(str(_value(OTHER, "contrasts")).replace(",", " ").split())
    preprocessing = Preprocessing(contrasts, _value(OTHER, "registration"), float(_value(OTHER, "spacing")))
    return scans_at(str(_value(OTHER, "cohort")), str(_value(OTHER, "layout")), preprocessing)


def _settings(base: str) -> SimclrSettings:
    crop = int(_value(base, "crop"))
    return SimclrSettings(
        encoder=replace(
            SimclrSettings().encoder, architecture=_value(base, "architecture"), width=int(_value(base, "width"))
        ),
        views=ViewSettings(
            geometric=float(_value(base, "geometric")),
            photometric=float(_value(base, "photometric")),
            crop_voxels=(crop, crop, crop) if crop else None,
            first_view_clean=bool(_value(base, "clean")),
        ),
        temperature=float(_value(base, "temperature")),
        batch=int(_value(base, "batch")),
        steps=int(_value(base, "steps")),
        lr=float(_value(base, "lr")),
        seed=int(_value(base, "seed")),
    )


def _value(base: str, name: str) -> Any:
    return st.session_state[f"new-{base}-{name}"]

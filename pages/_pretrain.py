"""The form that starts a pretraining: scans, network, negatives, views, optimisation."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import streamlit as st

from core.presentation.commands import pretrain_argv, scans_at, scans_of
from core.pretraining.simclr import SimclrSettings
from core.pretraining.view_settings import VIEW_SETS, ViewSettings
from core.recipes import from_json
from core.runs.listing import open_run
from core.runs.run_record import Run
from data.errors import BadInput
from data.layout import LAYOUTS
from data.prepared import Preprocessing
from pages._choices import ask_choices, choices_from
from pages._monitor import start
from pages._negatives import ask_negatives
from pages._shared import in_words, runs_directory
from pages._text import plain
from pages._visibility import show_views_before

OTHER = "another cohort"
CUSTOM = "custom"
ARCHITECTURES = ("cnn3d", "resnet10_3d", "resnet18_3d", "resnet10_2d", "resnet18_2d")
VIEW_WORDS: Mapping[str, str] = {
    "none": "Nothing is changed: both views are the scan itself, so the partner is found at once. A control.",
    "geometric": "Flips, rotation, scaling, shift and elastic deformation. Brightness is left as it is.",
    "toneless": "Geometric, and ghosting, noise, blur and patch swaps. Gamma and bias field, which change tissue "
    "brightness as lesions do, are off.",
    "mild": "Geometric, and every photometric change at 0.3 of its published strength.",
    "strong": "Geometric and photometric as published, on one view; the other is the scan as it is.",
    "both": "As strong, on both views of each pair: harder.",
    CUSTOM: "Strengths of your own; 0 is off, 1 as published.",
}


def pretrain_form(encoders: Mapping[str, Mapping[str, Any]], shown: str | None) -> None:
    """Which scans, then the settings; they begin with those of the run whose scans are used.

    What is not asked (strides, schedule, weight decay, …) is that run's too; with another cohort, the default.

    A fragment without `st.form`: what a kind of negatives or of views needs is asked as soon as it is picked.
    """
    st.fragment(_form)(encoders, shown)


def _form(encoders: Mapping[str, Mapping[str, Any]], shown: str | None) -> None:
    choices = [*encoders, OTHER]
    base = str(
        st.selectbox(
            "Scans",
            choices,
            index=choices.index(shown) if shown in choices else 0,
            format_func=lambda i: (
                f"those of {encoders[i]['name']} · {i}, same split and preparation" if i in encoders else OTHER
            ),
            key="new-base",
            persist_state="session",
            help="With the scans of a run, its training subjects stay the training subjects: nothing leaks.",
        )
    )
    given, run = SimclrSettings(), None
    if base in encoders:
        with in_words():
            run = open_run(runs_directory(), base)
            given = from_json(SimclrSettings, {k: value for k, value in run.record["recipe"].items() if k != "kind"})
    with st.container(border=True):
        if base == OTHER:
            _ask_scans()
        settings = _ask_settings(base, given, run)
        if run is not None:
            show_views_before(run, settings, key=f"new-{base}-taught")
        asked = st.button(
            "Start training",
            icon=":material/play_arrow:",
            type="primary",
            help="A process of its own. The same settings twice are one run: it is resumed, not repeated.",
        )
        if asked:
            _begin(base, settings)


def _begin(base: str, settings: SimclrSettings) -> None:
    """Start what the form asks for; the whole page then shows that run, for a click here draws this part alone."""
    runs = runs_directory()
    try:
        scans = _scans() if base == OTHER else scans_of(runs, open_run(runs, base))
        argv = pretrain_argv(runs, scans, settings, str(_value(base, "name")).strip() or "simclr")
    except BadInput as problem:
        st.error(plain(problem), icon=":material/error:")
        return
    start(argv)
    if "training_problem" in st.session_state:
        st.error(plain(st.session_state.pop("training_problem")), icon=":material/error:")
        return
    st.session_state["encoder_begun"] = argv[argv.index("--run-id") + 1]
    st.rerun()


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
    ask_choices(_choice_key)


def _choice_key(name: str) -> str:
    return f"new-{OTHER}-choice-{name}"


def _ask_settings(base: str, given: SimclrSettings, run: Run | None) -> SimclrSettings:
    most = len(run.record["split"].get("train", [])) if run is not None else 4096
    crop = given.views.crop_voxels[0] if given.views.crop_voxels else 0

    def key(name: str) -> str:
        return f"new-{base}-{name}"

    first, second, third, fourth = st.columns(4)
    first.text_input("Name", "simclr", key=key("name"), max_chars=60)
    architecture: Any = second.selectbox(
        "Encoder", ARCHITECTURES, ARCHITECTURES.index(given.encoder.architecture), key=key("architecture"),
        help="cnn3d: five convolutions. resnet: residual, in 3-D or slice by slice (2d).",
    )  # fmt: skip
    width = third.number_input(
        "Width", 1, 128, given.encoder.width, key=key("width"), help="Channels of the first stage; the others follow."
    )
    seed = fourth.number_input(
        "Seed", 0, 2**31, given.seed, key=key("seed"),
        help="Of the encoder's initial weights, the projection head, the order of subjects and the views.",
    )  # fmt: skip
    steps = first.number_input("Steps", 1, 1_000_000, given.steps, key=key("steps"))
    batch = second.number_input(
        "Batch size, subjects", 2, max(most, 2), min(given.batch, max(most, 2)), key=key("batch"),
        help=f"Distinct subjects per step, at most the {most} that train." if run is not None
        else "Distinct subjects per step.",
    )  # fmt: skip
    temperature = third.number_input(
        "Temperature", 0.01, 2.0, given.temperature, 0.01, key=key("temperature"),
        help="Lower looks harder at the nearest candidates.",
    )  # fmt: skip
    lr = fourth.number_input(
        "Learning rate", 1e-6, 1.0, given.lr, 1e-5, format="%.6f", key=key("lr"), help="AdamW, at peak."
    )
    st.markdown("**What a view must tell its partner from**")
    negatives = ask_negatives(key, given.negatives, architecture, int(batch))
    st.markdown("**How the two views of a pair differ**")
    views = _ask_views(key, given.views, crop)
    return replace(
        given,
        encoder=replace(given.encoder, architecture=architecture, width=int(width), seed=int(seed)),
        views=views,
        negatives=negatives,
        temperature=float(temperature),
        batch=int(batch),
        steps=int(steps),
        lr=float(lr),
        seed=int(seed),
    )


def _ask_views(key: Callable[[str], str], given: ViewSettings, crop: int) -> ViewSettings:
    """A named set, or strengths of one's own; and the crop, which is no part of a set."""
    alike = [name for name, views in VIEW_SETS.items() if replace(views, crop_voxels=given.crop_voxels) == given]
    picked, edge, told = st.columns([1, 1, 2], vertical_alignment="center")
    names = [*VIEW_SETS, CUSTOM]
    name = picked.selectbox(
        "View set", names, names.index(alike[0] if alike else CUSTOM), key=key("views"),
        help="Every change between the views is something that the encoder is taught to ignore.",
    )  # fmt: skip
    voxels = edge.number_input(
        "Crop, voxels", 0, 512, crop, 8, key=key("crop"), help="Edge of a random cube, at one place in both views; "
        "0 takes the whole volume.",
    )  # fmt: skip
    told.markdown(VIEW_WORDS[name])
    cube = (int(voxels), int(voxels), int(voxels)) if voxels else None
    if name in VIEW_SETS:
        return replace(VIEW_SETS[name], crop_voxels=cube)
    geometric, photometric, tone, clean = st.columns(4, vertical_alignment="center")
    return ViewSettings(
        geometric=geometric.slider(
            "Geometric strength", 0.0, 3.0, given.geometric, 0.1, key=key("geometric"),
            help="Flips, affine, elastic. 0 off, 1 as published.",
        ),
        photometric=photometric.slider(
            "Photometric strength", 0.0, 3.0, given.photometric, 0.1, key=key("photometric"),
            help="Ghosting, gamma, noise, bias field, blur, patch swaps. 0 off, 1 as published.",
        ),
        tone=tone.slider(
            "Tone strength", 0.0, 3.0, given.tone, 0.1, key=key("tone"),
            help="Multiplies gamma and bias field, which change tissue brightness as lesions do. 0 leaves the other "
            "photometric changes alone.",
        ),
        crop_voxels=cube,
        first_view_clean=clean.toggle(
            "First view clean", given.first_view_clean, key=key("clean"),
            help="On: one view of each pair is the scan as it is. Off: both are changed, a harder task.",
        ),
    )  # fmt: skip


def _scans() -> Any:
    contrasts = tuple(str(_value(OTHER, "contrasts")).replace(",", " ").split())
    preprocessing = Preprocessing(contrasts, _value(OTHER, "registration"), float(_value(OTHER, "spacing")))
    choices = choices_from(lambda name: st.session_state[_choice_key(name)])
    return scans_at(str(_value(OTHER, "cohort")), str(_value(OTHER, "layout")), preprocessing, choices)


def _value(base: str, name: str) -> Any:
    return st.session_state[f"new-{base}-{name}"]

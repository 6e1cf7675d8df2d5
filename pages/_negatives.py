"""The form's question against what a view must tell its partner: the kind of negatives and the settings it reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import streamlit as st

from core.presentation.training_view import NEGATIVES_READ
from core.pretraining.simclr import NegativesSettings
from core.pretraining.simclr_settings import Kind
from pages._text import plain

KINDS: Mapping[str, tuple[str, str]] = {
    "in-batch": (
        "other brains of the batch",
        "Positive: the other view of the same brain. Negatives: both views of the other brains of the step. "
        "The plain start, good when the batch is large or brains are hard to tell apart.",
    ),
    "queue": (
        "batch and a queue of earlier brains",
        "Positive: the other view of the same brain. Negatives: the batch and a queue of earlier embeddings of other "
        "brains. Many negatives at little memory, but the older ones come from an earlier state of the network.",
    ),
    "slots": (
        "batch and slots with momentum",
        "Positive: the other view of the same brain. Negatives: the batch and slots into which embeddings are mixed, "
        "as Kovačević 2025 published it. Good for comparison only: filled slots all but freeze.",
    ),
    "moco": (
        "keys of a slow copy of the encoder",
        "Positive: the other view, embedded by a slow copy of the encoder. Negatives: a queue of such keys of other "
        "brains. Many negatives that stay comparable; the usual choice when the batch is small.",
    ),
    "hard": (
        "only the most similar keys",
        "Positive and keys as in moco. Negatives: only those keys of the queue that look most alike. Good when the "
        "task is solved at once; too hard when brains differ little.",
    ),
    "ccd": (
        "shifted copies, and which shift it is",
        "Positive: the other view of the same brain with its eighths in the same order. Negatives: other brains, and "
        "the same brain with its eighths shuffled; a class head also names the order. Good for learning where things "
        "are in a brain (UPD).",
    ),
    "dense": (
        "other places instead of other brains",
        "Positive: the same anatomical place in the other view. Negatives: places far from it in the same brain, and "
        "places of other brains. Good for features that differ from place to place, which localisation needs.",
    ),
    "dense-shift": (
        "other places, and a local change",
        "As dense, and the same place under a local change of brightness is a negative too, so the encoder is not "
        "taught to ignore such a change. Its blobs resemble planted lesions: judge it on real ones.",
    ),
    "atlas": (
        "other places, the same in all brains",
        "Positive: the same anatomical place in every brain of the step. Negatives: places far from it in any brain. "
        "Good before a Gaussian per place, which asks how brains differ there; needs registered scans.",
    ),
    "atlas-shift": (
        "as atlas, and a local change",
        "As atlas, and the same place under a local change of brightness is a negative too, so the encoder is not "
        "taught to ignore such a change. Its blobs resemble planted lesions: judge it on real ones.",
    ),
}
"""What each kind is called, and its positive, its negatives and its use in a sentence or two."""
LAYERS = {"cnn3d": ("stage0", "stage1", "stage2", "stage3", "stage4")}
RESNET_LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class _Ask:
    """A number that is asked for."""

    label: str
    low: float
    high: float
    step: float
    words: str


NUMBERS: Mapping[str, _Ask] = {
    "bank_size": _Ask("Bank size", 4, 1_000_000, 64, "Embeddings that the bank holds, at least two per subject of a "
        "step. The larger, the harder, and the older its entries."),
    "slot_momentum": _Ask("Slot momentum", 0.0, 0.999, 0.01, "Share of the old slot in the new one."),
    "key_momentum": _Ask("Key momentum", 0.0, 0.9999, 0.001, "Share of the old key encoder in the new one, at every "
        "step. 0.99 to 0.999 is usual; nearer to 1 is slower and steadier."),
    "hardest": _Ask("Hardest entries", 1, 100_000, 16, "How many of the most similar entries of the bank count as "
        "negatives. Fewer is harder."),
    "positive_prior": _Ask("Positive prior", 0.0, 0.5, 0.01, "Assumed share of negatives that are positives in truth; "
        "it is taken out of the loss. 0 takes out nothing."),
    "shifts": _Ask("Shifts", 2, 64, 1, "Classes of shuffled copies, the scan as it is among them. Each step embeds so "
        "many copies of every brain, so it takes as many times longer."),
    "class_weight": _Ask("Class weight", 0.0, 10.0, 0.1, "Weight of naming the shift beside finding the partner."),
    "positions": _Ask("Positions per subject", 2, 4096, 16, "Places inside the brain that are compared at each step."),
    "apart_mm": _Ask("Distance apart, mm", 0.0, 100.0, 1.0, "Places of one brain that are nearer than this are not "
        "told apart. Smaller is harder."),
}  # fmt: skip
PAIRS: Mapping[str, _Ask] = {
    "blob_strength": _Ask("Local change, share of the range", 0.01, 1.0, 0.01, "Smallest and largest change of "
        "brightness in a blob, as a share of the scan's range; brighter or darker."),
    "blob_mm": _Ask("Blob size, mm", 0.5, 30.0, 0.5, "Smallest and largest standard deviation of a blob."),
}  # fmt: skip


def ask_negatives(
    key: Callable[[str], str], given: NegativesSettings, architecture: str, batch: int
) -> NegativesSettings:
    """The picker with its sentence, and the settings that the picked kind reads; the others keep their defaults."""
    picked, told = st.columns([2, 3], vertical_alignment="center")
    kinds = [kind for kind in KINDS if kind in get_args(Kind)]
    kind = picked.selectbox(
        "Negatives",
        kinds,
        kinds.index(given.kind),
        format_func=lambda name: f"{name}: {KINDS[name][0]}",
        key=key("kind"),
        help="What a view must tell its partner from.",
    )
    told.markdown(KINDS[kind][1])
    read = NEGATIVES_READ[kind]
    values: dict[str, Any] = {"kind": kind}
    columns = st.columns(4)
    for place, name in enumerate(read):
        with columns[place % 4]:
            values[name] = _ask(name, key(name), given, architecture, batch)
    return replace(NegativesSettings(), **values)


def layers_of(architecture: str) -> Sequence[str]:
    """Layers whose positions can be compared."""
    return LAYERS.get(architecture, RESNET_LAYERS)


def _ask(name: str, key: str, given: NegativesSettings, architecture: str, batch: int) -> Any:
    if name == "layer":
        options = list(layers_of(architecture))
        start = options.index(given.layer) if given.layer in options else 2
        return st.selectbox(
            "Layer", options, start, key=f"{key}-{architecture}",
            help="Whose positions are compared. Stages behind it are not trained.",
        )  # fmt: skip
    if name == "other_subjects":
        return st.selectbox(
            "Places of other subjects", ["anywhere", "apart"], ["anywhere", "apart"].index(given.other_subjects),
            key=key,
            help="anywhere: all are negatives. apart: only those as far away, so that one place in two registered "
            "brains may look alike.",
        )  # fmt: skip
    if name in PAIRS:
        asked = PAIRS[name]
        low, high = getattr(given, name)
        return st.slider(
            plain(asked.label), asked.low, asked.high, (low, high), asked.step, key=key, help=plain(asked.words)
        )
    asked, start = NUMBERS[name], getattr(given, name)
    least = 2 * batch if name == "bank_size" else int(asked.low)
    words: dict[str, Any] = {"key": key, "help": plain(asked.words)}
    if isinstance(start, int):
        whole = st.number_input(plain(asked.label), least, int(asked.high), max(start, least), int(asked.step), **words)
        return int(whole)
    return float(st.number_input(plain(asked.label), asked.low, asked.high, start, asked.step, format="%.4g", **words))

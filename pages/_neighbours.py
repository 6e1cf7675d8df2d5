"""What stands behind one score of a memory bank: the nearest healthy patches, whose they are and how they look."""

from collections.abc import Sequence
from typing import Any

import streamlit as st

from core.diagnosis.neighbours import BankSearch, Neighbour, NeighbourView, open_bank
from core.presentation.neighbour_pictures import pictures_of
from core.presentation.neighbour_words import apart_text, distance_text, mm_text, sentences, share_text
from core.presentation.patch_pictures import Convention
from core.presentation.thumbnails import data_uri
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.study.content import content_of, scans_content
from core.study.run_scans import prepared_of
from core.study.stored_scores import RunScores
from pages._shared import in_words, runs_directory
from pages._text import plain, prose

Voxel = tuple[int, int, int]
WIDTH = 272
"""Screen pixels of a picture: three stand side by side at 1280, all five at 1920."""
SHOWN = 3


@in_words()
def show_neighbours(
    run: Run,
    scores: RunScores,
    subject_id: str,
    layers: tuple[str, ...],
    voxel: Sequence[int],
    convention: Convention = "radiological",
) -> None:
    """The healthy patches that are nearest to the patch at a voxel of the working grid, under a layer set."""
    st.subheader("Nearest healthy patches", anchor=False)
    brain = scores.prepared(subject_id).volume.brain_mask
    x, y, z = (min(int(v), size - 1) for v, size in zip(voxel, brain.shape, strict=True))  # of a run on a larger grid
    if not brain[x, y, z]:
        st.info(
            "The cross-hair is outside the brain: nothing is scored there. "
            "Click inside the brain to see the healthy patches that are nearest to that place."
        )
        return
    content = f"{content_of(run)}-{scans_content(run)}"
    with st.spinner("Looking up the memory bank. The encoder runs once over each scan."):
        view = _view(run.run_id, content, subject_id, layers, (x, y, z))
    st.markdown(" ".join(sentences(view, plain)))
    here, *pictures = _pictures(run.run_id, content, subject_id, layers, (x, y, z), convention)
    with st.container(horizontal=True, gap="small"):
        _card(here, subject_id).caption(f"**Here** · {plain(subject_id)} · {mm_text(view.position_mm)}")
        for number, (one, picture) in enumerate(zip(_shown(view), pictures, strict=True)):
            _card(picture, one.subject_id).caption(_caption(_title(view, number), one))
    st.caption(prose(_notes(scores, view)))


def _card(picture: str, subject_id: str) -> Any:
    """A picture, and room for its caption."""
    card = st.container(width=WIDTH, gap="xsmall")
    card.image(picture, width="stretch", alt=f"Axial, coronal and sagittal cut-out of {subject_id}")
    return card


def _caption(title: str, one: Neighbour) -> str:
    made = f" · {share_text(one.shares)}" if len(one.shares) > 1 else ""
    return (
        f"**{plain(title)}** · {plain(one.subject_id)} · distance **{distance_text(one.distance)}** · "
        f"{apart_text(one.apart_mm)}, {mm_text(one.position_mm)}{made}"
    )


def _shown(view: NeighbourView) -> list[Neighbour]:
    return [*view.nearest, *([] if view.other is None else [view.other])]


def _parted(view: NeighbourView) -> bool:
    return any(len(one.shares) > 1 for one in _shown(view))


def _title(view: NeighbourView, number: int) -> str:
    if number < len(view.nearest):
        return ("Nearest", "Second", "Third")[number]
    return "Anywhere" if view.other_radius_mm is None else f"Within {view.other_radius_mm:g} mm"


def _notes(scores: RunScores, view: NeighbourView) -> str:
    assert scores.layout is not None
    cells = scores.layout.feature_grid.spacing_mm[0]
    notes = [
        f"Distances are feature distances: {view.unit}."
        + (" Percentages: what each layer makes up of the squared distance." if _parted(view) else ""),
        f"Patches lie {cells:g} mm apart; the map is interpolated between them.",
    ]
    settings: Any = scores.detector
    if settings.smoothing_mm or settings.median_voxels:
        notes.append("The map above is smoothed after that.")
    if settings.bank.search != "exact":
        notes.append("The map was searched approximately: its scores can be larger than the distances here.")
    notes.append("Each picture: axial, coronal, sagittal, 48 mm wide, the same greys; the cross opens on the patch.")
    return " ".join(notes)


@st.cache_resource(max_entries=2, show_spinner=False)
def _bank(run_id: str, content: str) -> BankSearch:
    return open_bank(open_run(runs_directory(), run_id))


@st.cache_resource(max_entries=3, show_spinner=False)
def _features(run_id: str, content: str, subject_id: str) -> Any:
    run = open_run(runs_directory(), run_id)
    return _bank(run_id, content).features(prepared_of(run, subject_id).volume)


@st.cache_resource(max_entries=64, show_spinner=False)
def _view(run_id: str, content: str, subject_id: str, layers: tuple[str, ...], voxel: Voxel) -> NeighbourView:
    volume = prepared_of(open_run(runs_directory(), run_id), subject_id).volume
    features = _features(run_id, content, subject_id)
    return _bank(run_id, content).at(volume, features, voxel, layers, SHOWN)


@st.cache_resource(max_entries=16, show_spinner=False)
def _pictures(
    run_id: str, content: str, subject_id: str, layers: tuple[str, ...], voxel: Voxel, convention: Convention
) -> list[str]:
    """In the address itself: a page that is left leaves no request for them behind."""
    run = open_run(runs_directory(), run_id)
    here, shown = pictures_of(run, _view(run_id, content, subject_id, layers, voxel), convention)
    return [data_uri(picture) for picture in (here, *shown)]

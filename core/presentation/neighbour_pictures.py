"""The place and its nearest healthy patches as pictures: for a page, or as one PNG."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from core.diagnosis.neighbours import NeighbourView
from core.presentation.patch_pictures import Convention, labelled_sheet, patch_picture, window_of
from core.runs.run_record import Run
from core.study.run_scans import prepared_of
from data.errors import BadInput
from data.whole_files import clear_litter, write_whole


def pictures_of(
    run: Run, view: NeighbourView, convention: Convention = "radiological"
) -> tuple[UInt8[np.ndarray, "rows columns 3"], list[UInt8[np.ndarray, "rows columns 3"]]]:
    """The place itself, and its neighbours (the one under the other rule last, where there is one): one grey window."""
    here = prepared_of(run, view.subject_id).volume
    neighbours = [*view.nearest, *([] if view.other is None else [view.other])]
    places = [
        (here, view.patch_voxel),
        *((prepared_of(run, one.subject_id).volume, one.voxel) for one in neighbours),
    ]
    window = window_of(places)
    first, *shown = [patch_picture(volume, voxel, window, convention=convention) for volume, voxel in places]
    return first, shown


def save_sheet(path: Path, run: Run, view: NeighbourView, labels: Sequence[str]) -> None:
    """One PNG: the place, then its neighbours, then the one under the other rule, each below its label."""
    here, shown = pictures_of(run, view)
    picture = io.BytesIO()
    Image.fromarray(labelled_sheet([here, *shown], labels)).save(picture, format="PNG")
    clear_litter(path.parent)
    write_whole(path, picture.getvalue())


def refuse_unwritable(picture: Path) -> None:
    """BadInput unless a PNG can be written under this name."""
    do = "Give the path of a .png file in a folder that exists, e.g. --picture place.png"
    if picture.is_dir():
        raise BadInput(f"--picture {picture} is a folder. {do}")
    if picture.suffix.lower() != ".png":
        raise BadInput(f"--picture {picture} ends in {picture.suffix or 'no suffix'}. Allowed: .png. {do}")
    if not picture.parent.is_dir():
        raise BadInput(f"--picture {picture}: there is no folder {picture.parent}. Make it first. {do}")
    if not os.access(picture if picture.exists() else picture.parent, os.W_OK):
        raise BadInput(f"--picture {picture} may not be written to by this user. {do}")

"""What can be asked of a bank about a place, and what is refused."""

import difflib
from collections.abc import Sequence

import numpy as np

from core.detectors import kinds_that_can, plain_name
from core.detectors.capabilities import KeepsPatches
from core.metrics.lesions import components
from core.runs.run_record import Run
from core.study.places import centre_of, refuse_outside
from data.errors import BadInput
from data.prepared import Prepared
from data.volume import Volume


def start_voxel(prepared: Prepared) -> tuple[int, int, int]:
    """A place to begin with: the voxel of the largest lesion that is nearest to its centroid, else `centre_of`."""
    if prepared.lesion is None or not prepared.lesion.voxels.any():
        return centre_of(prepared)
    labels = components(prepared.lesion, min_volume_mm3=0.0)
    voxels = np.argwhere(labels == 1 + int(np.bincount(labels.ravel())[1:].argmax()))
    x, y, z = voxels[np.square(voxels - voxels.mean(axis=0)).sum(1).argmin()]
    return int(x), int(y), int(z)


def refuse_no_bank(run: Run) -> None:
    """BadInput when a run's detector is not a memory bank."""
    kind = run.record["recipe"]["kind"]
    if kind not in kinds_that_can(KeepsPatches):
        raise BadInput(
            f"Run {run.run_id} is {plain_name(kind)}: its scores are not distances to single patches, so there are no "
            "neighbours to show. Fit a memory bank: python cli.py fit COHORT --detector patchcore"
        )


def refuse_no_brain(volume: Volume, voxel: Sequence[int]) -> None:
    """BadInput unless the voxel is one of the brain."""
    refuse_outside(volume, voxel)
    x, y, z = (int(v) for v in voxel)
    if not volume.brain_mask[x, y, z]:
        raise BadInput(
            f"Voxel ({x}, {y}, {z}) of {volume.subject_id!r} lies outside the brain: nothing is scored there. "
            "Choose a voxel of the brain."
        )


def refuse_unknown_layers(run: Run, layers: Sequence[str]) -> None:
    """BadInput unless a run's bank has these layers; read from its record alone."""
    known = tuple(run.record["recipe"]["features"]["layers"])
    missing = [layer for layer in layers if layer not in known]
    if missing:
        raise BadInput(
            f"--layers {'+'.join(layers)}: the bank of run {run.run_id} has no layer {missing[0]!r}. "
            f"Allowed: {', '.join(known)}, joined by +. Choose among them, e.g. --layers {'+'.join(known[:2])}"
        )


def refuse_unknown_subject(run: Run, subject_id: str) -> None:
    """BadInput unless a run has this subject."""
    known = [subject["subject_id"] for subject in run.record["cohort"]["subjects"]]
    if subject_id in known:
        return
    close = difflib.get_close_matches(subject_id, known, n=1)
    some = (run.record["split"].get("test") or known)[:3]
    raise BadInput(
        f"No subject {subject_id!r} in run {run.run_id}. Allowed: its {len(known)} subjects, e.g. {', '.join(some)}. "
        + (f"Did you mean {close[0]!r}?" if close else "Choose one of them, as the Slices page lists them.")
    )

"""What of a lesion mask is lesion, what is ignored, and what nobody has declared."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from data.brain import mask_on_grid
from data.cohort import Subject
from data.nifti import Labels, read_labels
from data.nifti_header import BadScan
from data.volume import Grid, Mask


def lesion_of(
    subject: Subject, grid: Grid, resample_masks: bool, notes: list[str], hashes: dict[str, str]
) -> tuple[Mask | None, Bool[np.ndarray, "x y z"] | None]:
    """Lesion, and what is neither lesion nor healthy tissue, when the mask has such labels."""
    path = subject.lesion_mask
    if path is None:
        if subject.healthy is False:
            notes.append("lesion mask: none given; overlap cannot be measured.")
        return None, None
    labels = lesion_labels(subject)
    hashes["lesion"] = labels.sha256
    notes += [f"lesion mask: {note}" for note in labels.notes]
    positive = lesion_voxels(subject, labels, notes)
    lesion = mask_on_grid(subject, labels, positive, grid, "lesion mask", resample_masks, notes)
    outside = np.asarray(np.isin(labels.voxels, subject.ignore_labels)) if subject.ignore_labels else None
    if outside is None or not outside.any():
        return lesion, None
    ignored = mask_on_grid(subject, labels, outside, grid, "ignored label", resample_masks, notes)
    told = ", ".join(map(str, subject.ignore_labels))
    notes.append(f"lesion mask: label {told} is ignored: {ignored.volume_ml:.2f} ml are neither lesion nor healthy.")
    return Mask(lesion.voxels & ~ignored.voxels, grid), ignored.voxels


def lesion_labels(subject: Subject) -> Labels:
    """The lesion mask of a subject as it lies on the disk, in RAS+ order."""
    assert subject.lesion_mask is not None
    return read_labels(subject.lesion_mask, cut=subject.mask_cut, header_form=subject.header_form)


def lesion_voxels(subject: Subject, labels: Labels, notes: list[str]) -> Bool[np.ndarray, "x y z"]:
    """Which voxels of a lesion mask are lesion; nothing is guessed about a map with several labels."""
    assert subject.lesion_mask is not None
    values = [int(v) for v in np.unique(labels.voxels) if v != 0]
    if any(v < 0 for v in values):
        raise BadScan(
            "E-MASK-NEGATIVE", subject.lesion_mask, f"holds negative labels {values[:8]}.", "Save lesion as 1, rest 0."
        )
    if subject.lesion_labels is not None:
        unknown = sorted(set(values) - set(subject.lesion_labels) - set(subject.ignore_labels))
        if unknown and subject.labels_complete:
            known = f"known are {', '.join(map(str, subject.lesion_labels))} as lesion"
            if subject.ignore_labels:
                known += f" and {', '.join(map(str, subject.ignore_labels))} as ignored"
            raise BadScan(
                "E-MASK-LABELS", subject.lesion_mask, f"holds the labels {unknown[:8]}, of unknown meaning ({known}).",
                _declare([*subject.lesion_labels, *unknown[:8]], unknown[:8]),
            )  # fmt: skip
        if unknown:
            notes.append(f"lesion mask: labels {unknown[:8]} are not declared as lesion and count as tissue.")
        return np.asarray(np.isin(labels.voxels, subject.lesion_labels))
    values = [v for v in values if v not in subject.ignore_labels]
    if len(values) > 1:
        raise BadScan(
            "E-MASK-LABELS", subject.lesion_mask, f"holds the labels {values[:8]}, undeclared.",
            _declare(values[:8], values[1:8]),
        )  # fmt: skip
    if subject.ignore_labels:
        return np.asarray(np.isin(labels.voxels, values))
    if values and values != [1]:
        notes.append(f"lesion mask: its one value {values[0]} is taken as lesion.")
    return labels.voxels > 0


def _declare(lesion: Sequence[int], ignored: Sequence[int]) -> str:
    """How labels are declared."""
    both = " ".join(map(str, lesion)), " ".join(map(str, ignored))
    return (
        f"Say which are lesion and which neither lesion nor healthy: --lesion-labels {both[0]}, or fewer, and "
        f"--ignore-labels {both[1]}; in a table, columns lesion_labels and ignore_labels."
    )


def note_on_lesion(subject: Subject, lesion: Mask, brain: Mask, notes: list[str]) -> None:
    """What is odd about a lesion: empty, outside of the brain, larger than half of it."""
    total = int(np.count_nonzero(lesion.voxels))
    if total == 0:
        notes.append("lesion mask: empty; Dice is undefined, only false positives are counted.")
        return
    if subject.healthy:
        notes.append("lesion mask: not empty although the subject is marked healthy.")
    outside = np.count_nonzero(lesion.voxels & ~brain.voxels) / total
    if outside > 0:
        notes.append(f"lesion mask: {100 * outside:.1f} % lies outside the brain mask and cannot be found.")
    if total > 0.5 * np.count_nonzero(brain.voxels):
        notes.append("lesion mask: larger than half of the brain.")

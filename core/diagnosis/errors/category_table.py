"""The kinds of wrong voxels: names, colours, words and what to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Category:
    """One kind of error, in words for a page."""

    id: str
    kind: Literal["fp", "fn", "space"]
    title: str
    definition: str
    advice: str
    """What would lower it."""


CATEGORIES: tuple[Category, ...] = (
    Category(
        "outside_consensus_brain",
        "fp",
        "Outside the consensus brain",
        "False positive outside the brain that the training scans agree on, less one voxel: skull, eyes, dura.",
        "Improve the brain extraction, or score only inside the eroded consensus brain.",
    ),
    Category(
        "brain_edge",
        "fp",
        "Brain edge",
        "False positive at most 3 mm from the edge of the subject's scored brain.",
        "Erode the scored brain by a voxel or two, or divide scores by what is usual at that distance from the edge.",
    ),
    Category(
        "tissue_border",
        "fp",
        "Tissue border",
        "False positive where the scan's own gradient is in its top 5 %: borders of ventricles, sulci and vessels.",
        "Align better (non-linearly), or smooth more; atrophied brains need training scans of their age.",
    ),
    Category(
        "lesion_halo",
        "fp",
        "Lesion halo",
        "False positive within one feature cell of the lesion, along every axis.",
        "Use a finer layer, smooth less, or raise the threshold: the lesion is found and drawn too large.",
    ),
    Category(
        "unusual_intensity",
        "fp",
        "Unusual but healthy intensity",
        "False positive where the intensity is below the 5th or above the 95th percentile of the training scans there.",
        "Add training scans like these (age, scanner), or use another intensity normalisation.",
    ),
    Category(
        "registration_suspect",
        "fp",
        "Registration suspect",
        "False positive where scan and healthy mean hardly correlate (below 0.3), though anatomy is distinct there.",
        "Look at the alignment of these scans; register with more freedom, or set them aside.",
    ),
    Category(
        "small_component",
        "fp",
        "Small component",
        "False positive in a segmented component of fewer than 8 voxels.",
        "Drop small components, or smooth the score map.",
    ),
    Category(
        "other_false_positive",
        "fp",
        "Other false positive",
        "False positive that fits none of the above.",
        "Look at these voxels: the model finds them unusual though their intensity is not.",
    ),
    Category(
        "unreachable",
        "fn",
        "Unreachable",
        "Lesion voxel outside the scored brain.",
        "Check the brain mask, the field of view and the grids: no threshold finds these.",
    ),
    Category(
        "sub_cell_lesion",
        "fn",
        "Lesion below one feature cell",
        "Missed voxel of a lesion that is smaller than one feature cell.",
        "Use a finer layer or a finer feature grid.",
    ),
    Category(
        "low_contrast",
        "fn",
        "Low contrast",
        "Missed voxel whose intensity is less than 2 healthy standard deviations from the healthy mean there.",
        "Intensity alone cannot show it: use another contrast, or features of texture and shape.",
    ),
    Category(
        "hypo_intense",
        "fn",
        "Dark lesion",
        "Missed voxel that is at least 2 healthy standard deviations darker than the healthy mean there.",
        "Use a detector that sees dark as well as bright, or a contrast in which the lesion is bright.",
    ),
    Category(
        "boundary_shell",
        "fn",
        "Lesion boundary",
        "Missed voxel on the surface of the lesion, one voxel thick.",
        "Lower the threshold or use a finer layer; also compare two raters, who differ most here.",
    ),
    Category(
        "other_missed",
        "fn",
        "Other missed",
        "Missed voxel that fits none of the above: inside a distinctly bright lesion of sufficient size.",
        "Look at its scores by layer: the model calls something usual that its intensity shows.",
    ),
)
FALSE_POSITIVES = tuple(c.id for c in CATEGORIES if c.kind == "fp")
MISSED = tuple(c.id for c in CATEGORIES if c.kind == "fn")
CODES: Mapping[str, int] = {category.id: code for code, category in enumerate(CATEGORIES, start=1)}
"""Value of each category on the label map; 0 is no error."""
HIT = len(CATEGORIES) + 1
"""Value of a lesion voxel that was found."""

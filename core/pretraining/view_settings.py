"""How strongly random views differ, and the named sets of views. Apart from the views, which need torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from data.errors import BadInput


@dataclass(frozen=True)
class ViewSettings:
    """How strongly views differ."""

    geometric: float = 1.0
    """Strength of flips, affine and elastic deformation; 0 switches them off, 1 is as published."""
    photometric: float = 1.0
    """Strength of ghosting, gamma, noise, bias field, blur and patch swaps; 0 switches them off."""
    tone: float = 1.0
    """Multiplies gamma and bias field, which change tissue brightness as lesions do; 0 leaves the others alone."""
    crop_voxels: tuple[int, int, int] | None = None
    """Random crop, at the same place in both views; none takes the whole volume."""
    first_view_clean: bool = True
    """Whether one view of each pair is the scan as it is."""


VIEW_SETS: Mapping[str, ViewSettings] = {
    "none": ViewSettings(geometric=0.0, photometric=0.0),
    "geometric": ViewSettings(photometric=0.0),
    "toneless": ViewSettings(tone=0.0),
    "mild": ViewSettings(photometric=0.3),
    "strong": ViewSettings(),
    "both": ViewSettings(first_view_clean=False),
}
"""Named sets of views that are compared as runs: "strong" is as published, "both" augments both sides of a pair."""


def check_crop(settings: ViewSettings, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The crop of a volume of this shape; BadInput when it does not fit."""
    crop = settings.crop_voxels or shape
    if any(c < 1 or c > n for c, n in zip(crop, shape, strict=True)):
        raise BadInput(f"Crop {crop} does not fit volumes of {shape} voxels. Give at most that, or none.")
    return crop

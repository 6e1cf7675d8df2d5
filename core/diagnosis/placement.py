"""Whether a prepared scan lies in MNI152 space, so that places may be named and the template's brain laid over it."""

from data.errors import BadInput
from data.template import working_template
from data.volume import Volume

LEAST_DICE = 0.9
"""Of a scan's brain and the template's. Affinely registered brains measured 0.95 to 0.97; a shift of 8 mm costs 0.1."""


def template_dice(volume: Volume) -> float:
    """Dice of a volume's brain mask and the template's brain on the working grid; BadInput on another grid."""
    template = working_template(volume.grid.spacing_mm[0])
    if not template.grid.matches(volume.grid):
        raise BadInput(f"{volume.subject_id!r} is not on the working grid of {volume.grid.spacing_mm[0]:g} mm.")
    both = int((volume.brain_mask & template.brain_mask).sum())
    return 2.0 * both / (int(volume.brain_mask.sum()) + int(template.brain_mask.sum()))


def in_template_space(volume: Volume, registration: str) -> bool:
    """Registered by the preparation (`affine`, `centroid`), or put there before: brains overlap with Dice >= 0.9."""
    return registration != "none" or template_dice(volume) >= LEAST_DICE

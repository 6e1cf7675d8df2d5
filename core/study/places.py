"""Places in a scan: where to look, and that they lie in it."""

from collections.abc import Sequence

import numpy as np

from data.errors import BadInput
from data.prepared import Prepared
from data.volume import Volume


def refuse_outside(volume: Volume, voxel: Sequence[int]) -> None:
    """BadInput unless the voxel lies on the volume's grid."""
    shape = volume.grid.shape
    if len(voxel) != 3 or not all(0 <= v < n for v, n in zip(voxel, shape, strict=True)):
        raise BadInput(
            f"Voxel {tuple(voxel)} is not on the working grid of {volume.subject_id!r}. Allowed: 0 0 0 to "
            f"{' '.join(str(n - 1) for n in shape)}."
        )


def centre_of(prepared: Prepared) -> tuple[int, int, int]:
    """Where to cut, as voxel indices: along each axis the slice with most lesion, else the middle of the brain."""
    lesion = None if prepared.lesion is None else prepared.lesion.voxels
    if lesion is not None and lesion.any():
        x, y, z = (int(lesion.sum(axis=others).argmax()) for others in ((1, 2), (0, 2), (0, 1)))
        return x, y, z
    brain = prepared.volume.brain_mask
    x, y, z = (round(float(where.mean())) for where in np.nonzero(brain))
    return x, y, z

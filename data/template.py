"""The MNI152 template that nilearn ships inside its package, and the working grid cut around its brain.

ICBM152 2009a nonlinear symmetric, skull-stripped. Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033.
"""

import functools
import math
import warnings
from typing import Literal

import numpy as np
from jaxtyping import Float32

from data.errors import BadInput
from data.volume import Grid, Volume, resample

_FIRST_VOXEL_MM = (-80.0, -112.0, -74.0)
_BOX_MM = (160.0, 192.0, 160.0)
_MULTIPLE = 8
_BRAIN_THRESHOLD = 0.2


def working_grid(spacing_mm: float = 2.0) -> Grid:
    """The RAS lattice on which detectors work: a box around the MNI152 brain, voxel edges of `spacing_mm`.

    80 x 96 x 80 voxels at 2 mm, where voxel centres coincide with those of MNI152 at 2 mm. Other spacings keep the
    first voxel centre and cover the same box, every side rounded up to a multiple of 8 voxels.
    """
    if not 0.5 <= spacing_mm <= 8.0:
        raise BadInput(f"Working spacing of {spacing_mm} mm. Allowed: 0.5 to 8 mm; 2 mm is usual.")
    x, y, z = (_MULTIPLE * math.ceil(round(side / spacing_mm, 6) / _MULTIPLE) for side in _BOX_MM)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = _FIRST_VOXEL_MM
    return Grid((x, y, z), affine)


@functools.cache
def mni_template(spacing_mm: Literal[1, 2] = 2) -> Volume:
    """The T1 template, intensities 0 to 1, zero outside its brain; the brain is what exceeds 0.2, as in nilearn."""
    from nilearn.datasets import load_mni152_template

    _without_resampling_advice()
    image = load_mni152_template(resolution=spacing_mm)
    values = np.asarray(image.dataobj, dtype=np.float32)
    brain = values > _BRAIN_THRESHOLD
    shape = values.shape
    grid = Grid((shape[0], shape[1], shape[2]), image.affine)
    return Volume(np.where(brain, values, np.float32(0))[None], grid, brain, "MNI152", ("T1",))


@functools.cache
def working_template(spacing_mm: float = 2.0) -> Volume:
    """The template on the working grid: a crop of MNI152 at 2 mm, else its 1 mm version resampled."""
    grid = working_grid(spacing_mm)
    source = mni_template(2 if spacing_mm >= 2 else 1)
    values = resample(source.voxels[0], source.grid, grid)
    brain = resample(source.brain_mask.astype(np.float32), source.grid, grid) >= 0.5
    return Volume(np.where(brain, values, np.float32(0))[None], grid, brain, "MNI152", ("T1",))


@functools.cache
def tissue_probability(tissue: Literal["grey", "white"], spacing_mm: float = 2.0) -> Float32[np.ndarray, "x y z"]:
    """Template intensity of one tissue (0 to 1) on the working grid."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

    load = load_mni152_gm_template if tissue == "grey" else load_mni152_wm_template
    _without_resampling_advice()
    image = load(resolution=2 if spacing_mm >= 2 else 1)
    values = np.asarray(image.dataobj, dtype=np.float32)
    shape = values.shape
    placed = resample(values, Grid((shape[0], shape[1], shape[2]), image.affine), working_grid(spacing_mm))
    placed.setflags(write=False)
    return placed


def _without_resampling_advice() -> None:
    # nilearn hands SciPy a diagonal matrix; SciPy's word on it is advice for nilearn, not for our users.
    warnings.filterwarnings("ignore", message="The behavior of affine_transform", category=UserWarning)

"""Where a subject's brain lies relative to MNI152: one 4x4 matrix, found by antspyx or from centres of mass.

A matrix `world_to_native` maps mm of the template's world to mm of the scan's world. That direction is what pulling
a scan onto the template's grid needs.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64

from data.errors import BadInput
from data.template import working_template
from data.volume import Volume

RegistrationMethod = Literal["affine", "centroid", "none"]
_SEED = 20211
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"
_LITRES = (0.5, 2.5)
_LEAST_DICE = 0.75


def register(volume: Volume, method: RegistrationMethod = "affine") -> Float64[np.ndarray, "4 4"]:
    """The matrix from mm of MNI152 to mm of the scan's world.

    "affine": 12 parameters, mutual information with the T1 template at 2 mm, about 6 s on one core, one thread and a
    fixed seed, so the same scan gives the same matrix on the same machine. The T1 is used where there is one, else
    the first contrast. "centroid": the shift between the centres of the two brain masks. "none": identity.
    Avants et al. 2011, doi:10.1016/j.neuroimage.2010.09.025; Mattes et al. 2003, doi:10.1109/TMI.2003.809072.
    """
    if not volume.brain_mask.any():
        raise BadInput(f"The brain mask of {volume.subject_id!r} is empty. Give a mask with the brain in it.")
    if method == "none":
        return np.eye(4)
    if method == "centroid":
        shift = np.eye(4)
        shift[:3, 3] = _centre_mm(volume) - _centre_mm(working_template())
        return shift
    if method == "affine":
        return _affine(volume)
    raise BadInput(f"Registration {method!r} is unknown. Allowed: affine, centroid, none.")


def alignment_notes(
    volume: Volume, placed_brain: Bool[np.ndarray, "x y z"], template_brain: Bool[np.ndarray, "x y z"]
) -> tuple[str, ...]:
    """What looks wrong about a brain mask and its place on the template, in words; empty when all is well."""
    notes = []
    litres = np.count_nonzero(volume.brain_mask) * volume.grid.voxel_volume_mm3 / 1e6
    if not _LITRES[0] <= litres <= _LITRES[1]:
        notes.append(
            f"The brain mask holds {litres:.2f} L; {_LITRES[0]} to {_LITRES[1]} L is usual. "
            "Check that it covers the brain and nothing else."
        )
    dice = overlap(placed_brain, template_brain)
    if dice < _LEAST_DICE:
        notes.append(
            f"After alignment the brain overlaps that of MNI152 with Dice {dice:.2f}, below {_LEAST_DICE}. "
            "Look at the alignment before trusting a score."
        )
    return tuple(notes)


def overlap(first: Bool[np.ndarray, "x y z"], second: Bool[np.ndarray, "x y z"]) -> float:
    """Dice coefficient of two masks on one grid; 0 when both are empty."""
    total = np.count_nonzero(first) + np.count_nonzero(second)
    return 2.0 * np.count_nonzero(first & second) / total if total else 0.0


def _centre_mm(volume: Volume) -> Float64[np.ndarray, "3"]:
    centre = np.argwhere(volume.brain_mask).mean(axis=0)
    return np.asarray(volume.grid.affine[:3, :3] @ centre + volume.grid.affine[:3, 3], dtype=np.float64)


def _affine(volume: Volume) -> Float64[np.ndarray, "4 4"]:
    contrast = next((n for n, name in enumerate(volume.contrasts) if name.upper() == "T1"), 0)
    template = working_template()
    with _reproducible():
        import ants

        fixed, moving = _ants_image(template, 0), _ants_image(volume, contrast)
        found: Mapping[str, Any] = ants.registration(fixed, moving, type_of_transform="Affine")
        try:
            transform = ants.read_transform(found["fwdtransforms"][0])
            matrix = _ras_matrix(transform.parameters, transform.fixed_parameters)
        finally:
            for path in {*found["fwdtransforms"], *found["invtransforms"]}:
                Path(path).unlink(missing_ok=True)
    if not np.isfinite(matrix).all() or not 0.2 < np.linalg.det(matrix[:3, :3]) < 5.0:
        raise BadInput(
            f"{volume.subject_id!r} could not be aligned with MNI152: the transform found is {matrix.tolist()}. "
            "Check orientation and brain mask, or choose registration 'centroid'."
        )
    return matrix


def _ras_matrix(parameters: Any, centre: Any) -> Float64[np.ndarray, "4 4"]:
    # ITK: y = A (x - c) + t + c in LPS mm, with x in the fixed image (template) and y in the moving one (scan).
    parameters, centre = np.asarray(parameters, dtype=np.float64), np.asarray(centre, dtype=np.float64)
    linear = parameters[:9].reshape(3, 3)
    lps = np.eye(4)
    lps[:3, :3] = linear
    lps[:3, 3] = parameters[9:12] + centre - linear @ centre
    return np.asarray(_LPS @ lps @ _LPS, dtype=np.float64)


def _ants_image(volume: Volume, contrast: int) -> Any:
    import ants

    affine = _LPS @ volume.grid.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    brain = np.where(volume.brain_mask, volume.voxels[contrast], np.float32(0))
    return ants.from_numpy(
        np.ascontiguousarray(brain, dtype=np.float32),
        origin=affine[:3, 3].tolist(),
        spacing=spacing.tolist(),
        direction=affine[:3, :3] / spacing,
    )


@contextlib.contextmanager
def _reproducible() -> Iterator[None]:
    # One ITK thread, since sums over threads differ from run to run, and a fixed seed for the sampling.
    threads = os.environ.get(_THREADS)
    os.environ[_THREADS] = "1"
    import ants.config

    seed = ants.config._random_seed
    ants.config._random_seed = _SEED
    try:
        yield
    finally:
        ants.config._random_seed = seed
        if threads is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = threads

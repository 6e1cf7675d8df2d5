"""A post-processing setting put to use: segmentations of the scored scans in their own space, as NIfTI."""

from pathlib import Path

import numpy as np

from core.diagnosis.postprocessing import find_row, stored_post_processing
from core.progress import Progress
from core.runs.evaluated import read_metrics
from core.runs.run_record import Run
from core.runs.sharing import veil_of
from core.study.cases import case_of
from core.study.map_filters import PostProcessing, apply, segmentation
from core.study.nifti_export import native_voxels, write_each
from core.study.stored_scores import RunScores, open_scores
from core.types import LayerSet
from data.errors import BadInput
from data.names import folder_name
from data.nifti import in_stored_order, write_nifti
from data.prepared import to_native
from data.room import require_room


def export_post_processed(
    run: Run,
    directory: Path,
    progress: Progress,
    *,
    layer_set: str | None = None,
    protocol: str = "healthy",
    settings: PostProcessing | None = None,
    share: bool = False,
) -> list[Path]:
    """Write <subject>_segmentation.nii.gz of validation and test subjects, on the grid of each scan's file.

    With `share` files have pseudonyms instead of ids.

    `settings`: the ones that are best on validation under the protocol when None; the threshold is the one that the
    stored grid chose for them. Cut and component filter work where they were chosen, on the working grid, and the
    segmentation is resampled once (linearly, one half and above). BadInput when the grid is not stored, or has no
    threshold of that protocol.
    """
    scores = open_scores(run)
    layers = scores.layer_set(layer_set or read_metrics(run)["headline"])
    grid = stored_post_processing(run, "+".join(layers))
    if grid is None:
        raise BadInput(
            f"The post-processing grid is not there yet. Make it: python cli.py post-processing {run.as_argument}"
        )
    chosen = settings or _best(grid["best_on_validation"], protocol)
    figures = find_row(grid, chosen)[protocol]
    if figures is None:
        raise BadInput(f"No {protocol!r} threshold in the post-processing grid of {run.run_id}. Allowed: healthy.")
    threshold = figures["threshold"]
    subjects = [i for role in ("validation", "test") for i in scores.subjects(role)]
    voxels = sum(native_voxels(scores, subject_id) for subject_id in subjects)
    require_room(directory, voxels, f"Exporting {len(subjects)} segmentations", at_most=True)
    called = veil_of(run).called if share else folder_name

    def write(subject_id: str) -> list[Path]:
        path = directory / f"{called(subject_id)}_segmentation.nii.gz"
        _write(scores, subject_id, layers, chosen, threshold, path)
        return [path]

    return write_each(subjects, write, directory, "Writing segmentations", progress)


def _write(
    scores: RunScores,
    subject_id: str,
    layers: LayerSet,
    settings: PostProcessing,
    threshold: float,
    path: Path,
) -> None:
    prepared = scores.prepared(subject_id)
    processed = apply(scores, case_of(scores, subject_id, layers), layers, settings)
    called = segmentation(processed, threshold, settings.min_component_mm3, prepared.volume.grid.voxel_volume_mm3)
    inside = np.where(prepared.volume.brain_mask, called.astype(np.float32), np.float32(np.nan))
    native = to_native(inside, prepared.volume.grid, prepared)
    marked = (np.nan_to_num(native, nan=0.0) >= 0.5).astype(np.float32)
    stored, at = in_stored_order(marked, prepared.native_grid, prepared.axes)
    write_nifti(path, stored.astype(np.uint8), at)


def _best(best_on_validation: object, protocol: str) -> PostProcessing:
    best = best_on_validation.get(protocol) if isinstance(best_on_validation, dict) else None
    if best is None:
        raise BadInput(
            "Nothing was chosen on validation: there are no labelled validation subjects. Name the settings yourself."
        )
    return PostProcessing(**best["settings"])

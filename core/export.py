"""Score maps and segmentations as NIfTI in the scans' own space, for any viewer."""

from pathlib import Path

import numpy as np

from core.calibration import Calibration
from core.detectors import LayerSet
from core.evaluation import read_metrics
from core.progress import Progress
from core.run_scores import RunScores, open_scores, set_id
from core.sharing import veil_of
from core.store import Run, stage_done
from data.errors import BadInput
from data.files import clear_litter
from data.names import folder_name
from data.nifti import in_stored_order, write_nifti
from data.room import require_room


def export_maps(
    run: Run, directory: Path, layers: str, progress: Progress, *, display: bool = False, share: bool = False
) -> list[Path]:
    """Write <subject>_score.nii.gz (0 outside the brain) and, once evaluated, <subject>_segmentation.nii.gz.

    Shape, axes and affine are those of the scan's file. `layers` is a layer set joined by +; empty: the headline's, or
    all layers. The segmentation uses the label-free threshold of that layer set in native space. With `display` the
    scores are put on 0..1 by sigmoid((log1p(score) − median) / (q95 − q05)), quantiles from the healthy calibration
    subjects' voxels; order is kept. With `share` files have pseudonyms instead of ids.
    """
    scores = open_scores(run)
    evaluated = stage_done(run, "evaluation")
    metrics = read_metrics(run) if evaluated else None
    chosen = layers or (metrics["headline"] if metrics else set_id(scores.layer_sets[-1]))
    layer_set = scores.layer_set(chosen)
    chosen = set_id(layer_set)
    figures = metrics["sets"][chosen]["native"] if metrics else None
    if layers and metrics and figures is None:
        raise BadInput(f"Layer set {chosen!r} has no native-space threshold. Export single layers or the headline set.")
    subjects = [i for role in ("validation", "test") for i in scores.subjects(role)]
    voxels = sum(int(np.prod(scores.prepared(i).native_grid.shape)) for i in subjects)
    require_room(directory, voxels * (4 if figures is None else 5), f"Exporting {len(subjects)} scans", at_most=True)
    scale = _display_scale(scores, layer_set) if display else None
    called = veil_of(run).called if share else folder_name
    clear_litter(directory)
    written: list[Path] = []
    with progress.task("Writing NIfTI", len(subjects)) as advance:
        for subject_id in subjects:
            prepared = scores.prepared(subject_id)
            native, grid = in_stored_order(
                scores.native_scores(subject_id, layer_set), prepared.native_grid, prepared.axes
            )
            path = directory / f"{called(subject_id)}_score.nii.gz"
            shown = native if scale is None else scale.display(native)
            write_nifti(path, np.nan_to_num(shown, nan=0.0), grid)
            written.append(path)
            if figures is not None:
                threshold = figures["protocols"]["healthy"]["threshold"]
                path = directory / f"{called(subject_id)}_segmentation.nii.gz"
                write_nifti(path, (np.nan_to_num(native, nan=-np.inf) >= threshold).astype(np.uint8), grid)
                written.append(path)
            advance(1, subject_id)
    return written


def _display_scale(scores: RunScores, layers: LayerSet) -> Calibration:
    healthy = [scores.score_map(subject_id, layers) for subject_id in scores.subjects("calibration")]
    return Calibration.fit(healthy)

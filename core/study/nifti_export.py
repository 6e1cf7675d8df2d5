"""Score maps and segmentations as NIfTI in the scans' own space, for any viewer."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from core.metrics.healthy_threshold import Calibration
from core.progress import Progress
from core.runs.evaluated import read_metrics
from core.runs.run_record import Run
from core.runs.sharing import veil_of
from core.runs.stages import stage_done
from core.study.stored_scores import RunScores, open_scores, set_id
from core.types import LayerSet
from data.errors import BadInput, EnvironmentProblem, IntegrityError, together
from data.names import folder_name
from data.nifti import in_stored_order, write_nifti
from data.room import require_room
from data.whole_files import clear_litter


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
    voxels = sum(native_voxels(scores, subject_id) for subject_id in subjects)
    require_room(directory, voxels * (4 if figures is None else 5), f"Exporting {len(subjects)} scans", at_most=True)
    scale = _display_scale(scores, layer_set) if display else None
    threshold = figures["protocols"].get("healthy", {}).get("threshold") if figures is not None else None

    called = veil_of(run).called if share else folder_name

    def write(subject_id: str) -> list[Path]:
        return _export_one(scores, subject_id, layer_set, scale, threshold, directory / called(subject_id))

    return write_each(subjects, write, directory, "Writing NIfTI", progress)


def write_each(
    subjects: Sequence[str], write: Callable[[str], list[Path]], directory: Path, title: str, progress: Progress
) -> list[Path]:
    """The files that `write` makes of every subject. One that cannot be read stops no other; all are named at the end.

    IntegrityError (BadInput where nothing is damaged) after the last one.
    """
    clear_litter(directory)
    written: list[Path] = []
    problems: dict[str, BadInput | EnvironmentProblem | IntegrityError] = {}
    with progress.task(title, len(subjects)) as advance:
        for subject_id in subjects:
            try:
                written += write(subject_id)
            except (BadInput, IntegrityError) as problem:
                problems[subject_id] = problem
            except (OSError, ValueError, EOFError) as problem:
                problems[subject_id] = IntegrityError(f"Its scores or its scan cannot be read: {problem}")
            advance(1, subject_id)
    if problems:
        raise together(problems, f"{len(subjects) - len(problems)} of {len(subjects)} subjects are in {directory}.")
    return written


def _export_one(
    scores: RunScores,
    subject_id: str,
    layers: LayerSet,
    scale: Calibration | None,
    threshold: float | None,
    stem: Path,
) -> list[Path]:
    prepared = scores.prepared(subject_id)
    native, grid = in_stored_order(scores.native_scores(subject_id, layers), prepared.native_grid, prepared.axes)
    path = stem.with_name(f"{stem.name}_score.nii.gz")
    shown = native if scale is None else scale.display(native)
    write_nifti(path, np.nan_to_num(shown, nan=0.0), grid)
    if threshold is None:
        return [path]
    segmentation = stem.with_name(f"{stem.name}_segmentation.nii.gz")
    write_nifti(segmentation, (np.nan_to_num(native, nan=-np.inf) >= threshold).astype(np.uint8), grid)
    return [path, segmentation]


def native_voxels(scores: RunScores, subject_id: str) -> int:
    """Voxels of a scan in its own space; 0 for one that is damaged."""
    try:
        return int(np.prod(scores.prepared(subject_id).native_grid.shape))
    except IntegrityError:  # named when its turn comes
        return 0


def _display_scale(scores: RunScores, layers: LayerSet) -> Calibration:
    healthy = [scores.score_map(subject_id, layers) for subject_id in scores.subjects("calibration")]
    return Calibration.fit(healthy)

"""A post-processing choice put to use: the files that leave hold the Dice that was promised."""

import io
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from core.diagnosis.applied import export_post_processed
from core.diagnosis.postprocessing import find_row, run_post_processing
from core.progress import Progress
from core.runs.listing import open_run
from core.runs.sharing import veil_of
from core.study.cases import case_of
from core.study.map_filters import PostProcessing, apply, segmentation
from core.study.stored_scores import open_scores
from data.errors import BadInput, EnvironmentProblem
from tests.study import TinyStudy


def quiet() -> Progress:
    return Progress(False, io.StringIO())


def test_segmentations_leave_on_the_scans_own_grid_and_close_to_those_that_were_judged(
    own_study: TinyStudy, tmp_path: Path
) -> None:
    run = open_run(own_study.runs, "tiny")
    grid = run_post_processing(run, quiet(), workers=1)
    scores = open_scores(open_run(own_study.runs, "tiny"))
    settings = PostProcessing(**grid["best_on_validation"]["healthy"]["settings"])
    row = find_row(grid, settings)
    paths = export_post_processed(open_run(own_study.runs, "tiny"), tmp_path, quiet())
    assert {p.name for p in paths} == {
        f"{i}_segmentation.nii.gz" for role in ("validation", "test") for i in scores.subjects(role)
    }
    layers = scores.layer_set(grid["layer_set"])
    for subject_id in ("test01", "test02", "test03"):
        written = nib.load(tmp_path / f"{subject_id}_segmentation.nii.gz")
        scan = nib.load(own_study.table.parent / subject_id / "flair.nii.gz")
        assert written.shape == scan.shape
        np.testing.assert_allclose(written.affine, scan.affine, atol=1e-4)
        case = case_of(scores, subject_id, layers)
        judged = segmentation(
            apply(scores, case, layers, settings),
            row["healthy"]["threshold"],
            settings.min_component_mm3,
            case.volume.grid.voxel_volume_mm3,
        )
        ml = float(np.asarray(written.dataobj).sum()) * abs(np.linalg.det(scan.affine[:3, :3])) / 1000
        assert ml == pytest.approx(judged.sum() * case.voxel_ml, rel=0.25, abs=0.5)
    veil = veil_of(run)
    shared = export_post_processed(run, tmp_path / "shared", quiet(), share=True)
    assert {p.name for p in shared} == {
        f"{veil.called(i)}_segmentation.nii.gz" for role in ("validation", "test") for i in scores.subjects(role)
    }
    named = (tmp_path / "test01_segmentation.nii.gz").read_bytes()
    assert (tmp_path / "shared" / f"{veil.called('test01')}_segmentation.nii.gz").read_bytes() == named


def test_an_export_without_room_is_refused_before_it_begins(
    own_study: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(own_study.runs, "tiny")
    run_post_processing(run, quiet(), workers=1)
    monkeypatch.setattr("data.room.shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(EnvironmentProblem, match="Exporting 6 segmentations"):
        export_post_processed(run, tmp_path / "out", quiet())
    assert not (tmp_path / "out").exists()


def test_without_a_grid_the_command_that_makes_it_is_named(own_study: TinyStudy, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cli\.py post-processing tiny"):
        export_post_processed(open_run(own_study.runs, "tiny"), tmp_path, quiet())

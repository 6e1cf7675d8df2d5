"""What a stage will write is said before it starts, and is within a fifth of what it then writes."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from core.diagnosis.limits.detection_limits import run_detection_limits
from core.diagnosis.postprocessing import run_post_processing
from core.diagnosis.what_if.catalogue import run_what_if
from core.disk_plan import (
    evaluation_bytes,
    grid_bytes,
    limits_bytes,
    training_bytes,
)
from core.pretraining.simclr import NegativesSettings, SimclrSettings, pretrain_encoder
from core.pretraining.simclr import bytes_to_train as planned_training
from core.pretraining.view_settings import ViewSettings
from core.pretraining.visibility.settings import VisibilitySettings
from core.progress import Progress
from core.runs.listing import open_run
from core.study import data_source, run_scans
from core.study.stored_scores import open_scores
from core.study.visibility import visibility_of_run
from data.errors import EnvironmentProblem
from data.layout import read_cohort
from data.nifti import claimed_voxels, write_nifti
from data.preprocessing import prepared_bytes
from data.room import require_room
from data.volume import Grid
from models.encoder import make_encoder
from models.settings import EncoderSettings
from tests.study import PREPROCESSING, TinyStudy, small_volumes

SETTINGS = SimclrSettings(
    encoder=EncoderSettings(width=4),
    views=ViewSettings(crop_voxels=(16, 16, 16)),
    steps=3,
    batch=2,
    checkpoint_every=1,
)


def written(*folders: Path) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def test_prepared_scans_are_estimated_within_a_fifth(study: TinyStudy) -> None:
    cohort = read_cohort(study.table, "table")
    estimate = sum(prepared_bytes(subject, PREPROCESSING) for subject in cohort.subjects)
    cache = data_source.cache_directory(study.runs)
    assert estimate == pytest.approx(written(*(path for path in cache.iterdir() if path.is_dir())), rel=0.2)


@pytest.mark.parametrize("kind", ["in-batch", "queue", "moco", "dense"])
def test_a_training_is_estimated_within_a_fifth_at_its_peak_and_counts_what_is_there(tmp_path: Path, kind: str) -> None:
    settings = replace(SETTINGS, negatives=NegativesSettings(kind=kind, bank_size=64))  # type: ignore[arg-type]
    volumes = small_volumes(3)
    peak = planned_training(volumes, settings, tmp_path)

    pretrain_encoder(volumes, settings, tmp_path)
    two, encoder = written(tmp_path / "checkpoints"), written(tmp_path / "encoder")
    assert peak == pytest.approx(1.5 * two + encoder, rel=0.2)
    left = planned_training(volumes, replace(settings, steps=5), tmp_path)
    assert left == pytest.approx(two / 2 + encoder, rel=0.2)
    assert planned_training(volumes, settings, tmp_path) == pytest.approx(encoder, rel=0.2)


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_a_gaussian_is_estimated_within_a_fifth(tmp_path: Path, form: str) -> None:
    _fits_its_estimate("gaussian", tmp_path, form=form)


@pytest.mark.parametrize("covariance", ["diagonal", "shared"])
def test_a_gaussian_of_another_covariance_is_estimated_within_a_fifth(tmp_path: Path, covariance: str) -> None:
    _fits_its_estimate("gaussian", tmp_path, covariance=covariance)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_memory_bank_is_estimated_within_a_fifth(tmp_path: Path, precision: str) -> None:
    _fits_its_estimate("patchcore", tmp_path, precision=precision)


def _fits_its_estimate(kind: str, directory: Path, **settings: object) -> None:
    from core.detectors import make

    detector = make(kind)
    part = "bank" if kind == "patchcore" else "gaussian"
    detector = replace(
        detector,
        encoder=EncoderSettings(width=4),
        features=replace(detector.features, layers=("stage1", "stage2"), grid="8mm"),
        **{part: replace(getattr(detector, part), **settings)},
    )
    told: list[float] = []
    detector.fit(
        small_volumes(4), lambda step, values: told.extend([values["disk_bytes"]] if "disk_bytes" in values else [])
    )
    detector.save(directory / "detector")
    assert told == [pytest.approx(written(directory / "detector"), rel=0.2)]
    assert "on disk" in detector.plan_text_


def test_scores_and_an_evaluation_are_estimated_within_a_fifth(study: TinyStudy) -> None:
    run = open_run(study.runs, "tiny")
    scores = open_scores(run)
    assert scores.layout is not None
    values = len(scores.layer_sets) * len(scores.layout.positions)
    subjects = run_scans.scored_subjects(run)
    assert len(subjects) * grid_bytes(values) == pytest.approx(written(run.directory / "scores"), rel=0.2)
    assert evaluation_bytes(7, 5, 3, 1) == pytest.approx(written(run.directory / "evaluation"), rel=0.2)
    plain = open_run(study.runs, "tiny-intensity")
    grid = int(np.prod(scores.layout.working_grid.shape))
    assert len(subjects) * grid_bytes(grid) == pytest.approx(written(plain.directory / "scores"), rel=0.2)
    assert evaluation_bytes(1, 1, 3, 1) == pytest.approx(written(plain.directory / "evaluation"), rel=0.2)


def test_detection_limits_are_estimated_within_a_fifth(own_study: TinyStudy) -> None:
    asked = {"diameters_mm": (8.0, 12.0), "contrasts_sd": (-3.0, 2.0, 3.0), "sites": ("grey", "white"), "per_cell": 2}
    run = open_run(own_study.runs, "tiny-intensity")
    run_detection_limits(run, Progress(False, io.StringIO()), **asked)  # type: ignore[arg-type]
    assert limits_bytes(12, 5, 2) == pytest.approx(written(run.directory / "detection-limits"), rel=0.2)


def test_what_explains_a_run_is_estimated_within_a_fifth(own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    for module in ("core.diagnosis.postprocessing", "core.study.visibility"):
        monkeypatch.setattr(f"{module}.require_room", lambda place, needed, what, **more: asked.append(needed))
    progress = Progress(False, io.StringIO())
    for run_id in ("tiny", "tiny-intensity"):
        run = open_run(own_study.runs, run_id)
        run_post_processing(run, progress, workers=1)
        assert asked.pop() == pytest.approx(written(run.directory / "post-processing"), rel=0.2)
    encoder = open_run(own_study.runs, "tiny-encoder")
    for settings in (VisibilitySettings(scans=1), VisibilitySettings(scans=3, diameters_mm=(8.0,), draws=1)):
        visibility_of_run(encoder, progress, settings)
        assert asked.pop() == pytest.approx(written(encoder.directory / "visibility"), rel=0.2)
    assert not asked


@pytest.mark.parametrize("what", ["what-if", "post-processing", "visibility"])
def test_what_explains_a_run_asks_for_room_before_it_begins(
    study: TinyStudy, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Progress(False, io.StringIO())
    run = open_run(study.runs, "tiny-encoder" if what == "visibility" else "tiny-intensity")
    before = set(run.directory.rglob("*"))
    monkeypatch.setattr("data.room.shutil.disk_usage", lambda place: SimpleNamespace(free=5000))
    work = {
        "what-if": lambda: run_what_if(run, "erode-mask", progress),
        "post-processing": lambda: run_post_processing(run, progress, workers=1),
        "visibility": lambda: visibility_of_run(run, progress),
    }[what]
    with pytest.raises(EnvironmentProblem, match=r"needs (at most )?\d{5,6} bytes .*free now: 5000 bytes"):
        work()
    assert before == set(run.directory.rglob("*"))


def test_only_what_is_to_come_is_counted() -> None:
    encoder = make_encoder(EncoderSettings(width=4))
    own = training_bytes(1000, encoder, 0, 2, 2)
    cases = {(1, 0): 1000, (9, 0): 3000, (9, 1): 2000, (9, 2): 1000, (9, 3): 0}
    for (to_write, there), expected in cases.items():
        assert training_bytes(1000, encoder, to_write, 2, there) - own == expected


def test_room_is_asked_for_where_the_directory_will_be(tmp_path: Path) -> None:
    require_room(tmp_path / "not" / "yet", 1, "Nothing")
    with pytest.raises(
        EnvironmentProblem, match=rf"A map needs at most \d+ bytes \(.* GB\); free now: \d+ .*at {tmp_path}\."
    ):
        require_room(tmp_path / "not" / "yet", 10**18, "A map", at_most=True)


def test_a_header_is_not_believed_beyond_what_its_file_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    write_nifti(path, np.zeros((10, 11, 12), np.float32), Grid((10, 11, 12), np.eye(4)))
    assert claimed_voxels(path) == 1320
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([30_000] * 3, dtype="<i2").tobytes()
    path.write_bytes(content)
    assert claimed_voxels(path) == path.stat().st_size
    for bad in (b"", b"\x1f\x8b", b"nothing"):
        path.write_bytes(bad)
        assert claimed_voxels(path) == 0
        packed = tmp_path / "scan.nii.gz"
        packed.write_bytes(bad)
        assert claimed_voxels(packed) == 0
    assert claimed_voxels(tmp_path / "missing.nii") == 0


def test_estimating_a_training_draws_nothing(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.random.get_rng_state()
    planned_training(small_volumes(2), SETTINGS, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), expected)

"""The stages of a study: never done twice, refused when wrong, judged in the scans' own space, blind to test labels."""

import dataclasses
import io
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from core.detectors import from_recipe, make
from core.detectors.feature_gaussian import FeatureGaussian
from core.detectors.intensity import Intensity
from core.features.settings import FeatureSettings
from core.pretraining.simclr import NegativesSettings, SimclrSettings
from core.progress import Progress
from core.runs.evaluated import read_metrics
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.runs.store import update_run
from core.study import evaluation, fitted, fitting, preparing, run_scans, scoring, training
from core.study.data_source import DataSource
from core.study.evaluation_words import evaluation_words
from core.study.nifti_export import export_maps
from core.study.preparing import draw_split
from core.study.run_summary import layer_contributions, layer_table, run_summary
from core.study.stored_scores import RunScores, open_scores, set_id
from core.types import Detector
from data.cohort import ROLES, Cohort, Split, Subject
from data.errors import BadInput, EnvironmentProblem, IntegrityError
from data.json_files import write_json
from data.nifti import write_nifti
from data.table import read_table, write_table
from models.settings import EncoderSettings
from tests.study import HEALTHY, ILL, PREPROCESSING, SCAN_GRID, TinyStudy

GAUSSIAN = FeatureGaussian(
    encoder=EncoderSettings(width=4), features=FeatureSettings(layers=("input", "stage1"), grid="8mm")
)


def quiet() -> Progress:
    return Progress(False, io.StringIO())


def source(study: TinyStudy) -> DataSource:
    return DataSource(study.table, preprocessing=PREPROCESSING)


def fit(study: TinyStudy, detector: Detector, run_id: str) -> Run:
    preparing.prepare(study.runs, source(study), quiet(), workers=1)  # no processes for one changed scan
    return fitting.fit(study.runs, source(study), detector, quiet(), name=run_id, run_id=run_id)


def judge(study: TinyStudy, detector: Detector, run_id: str) -> dict[str, Any]:
    """Fit, score and evaluate."""
    return evaluation.evaluate_run(scoring.score(fit(study, detector, run_id), quiet()), quiet(), workers=1)


def change(study: TinyStudy, changed: Callable[[Subject], Subject | None]) -> None:
    """Rewrite the table, subject by subject; None leaves one out."""
    subjects = [new for s in read_table(study.table).subjects if (new := changed(s)) is not None]
    write_table(study.table, subjects)


def committed(runs: Path) -> dict[Path, int]:
    """When each result file was written."""
    inside = ("encoder", "detector", "scores")
    return {p: p.stat().st_mtime_ns for p in runs.rglob("*") if p.is_file() and set(p.parts) & set(inside)}


def tiny(study: TinyStudy) -> RunScores:
    return open_scores(open_run(study.runs, "tiny"))


def rows_of(figures: dict[str, Any], protocol: str) -> dict[str, Any]:
    return {row["subject_id"]: row for row in figures["protocols"][protocol]["subjects"]}


# Resuming


def test_repeating_every_command_computes_nothing_again(own_study: TinyStudy) -> None:
    import cli

    before = committed(own_study.runs)
    assert len(before) > 20
    for name, argv in own_study.commands().items():
        assert "evaluate" in name or cli.main(argv) == 0
    assert committed(own_study.runs) == before


def test_a_finished_run_does_not_load_its_detector_to_score_again(
    study: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "load_detector", lambda run: pytest.fail("loaded"))
    scoring.score(open_run(study.runs, "tiny"), quiet())


def test_a_missing_subject_is_scored_again_with_the_same_bits(own_study: TinyStudy) -> None:
    lost = own_study.runs / "tiny" / "scores" / "test02"
    before = (lost / "distances.npy").read_bytes()
    shutil.rmtree(lost)
    with pytest.raises(BadInput, match=r"1 subject.*test02.*cli\.py score tiny"):
        evaluation.evaluate_run(open_run(own_study.runs, "tiny"), quiet())
    with pytest.raises(BadInput, match=r"cli\.py score tiny"):
        tiny(own_study).score_map("test02", ("input",))
    scoring.score(open_run(own_study.runs, "tiny"), quiet())
    assert (lost / "distances.npy").read_bytes() == before


def test_less_memory_scores_fewer_subjects_at_once_and_the_number_stays_with_the_run(own_study: TinyStudy) -> None:
    scores = own_study.runs / "tiny" / "scores"
    before = {path.parent.name: np.load(path) for path in scores.glob("*/distances.npy")}
    run = open_run(own_study.runs, "tiny")
    settings = {key: value for key, value in run.record["settings"].items() if key != "scored_together"}
    update_run(run, settings=settings)
    shutil.rmtree(scores)
    detector = fitted.load_detector(run)
    assert isinstance(detector, FeatureGaussian)
    assert detector.subjects_together(24) == run.record["settings"]["scored_together"] == 24
    alone = next(gb for gb in np.linspace(0.05, 1, 200_000) if _together(detector, gb) == 1)
    with pytest.raises(EnvironmentProblem, match=r"one subject 0\.\d\d GB.*--memory"):
        scoring.score(open_run(own_study.runs, "tiny"), quiet(), memory_gb=alone / 2)
    run = scoring.score(open_run(own_study.runs, "tiny"), quiet(), memory_gb=float(alone))
    assert run.record["settings"]["scored_together"] == 1
    assert set(before) == {path.parent.name for path in scores.glob("*/distances.npy")}
    for subject_id, distances in before.items():
        np.testing.assert_allclose(np.load(scores / subject_id / "distances.npy"), distances, rtol=1e-4)
    shutil.rmtree(scores / "test01")
    assert scoring.score(run, quiet()).record["settings"]["scored_together"] == 1


def _together(detector: FeatureGaussian, memory_gb: float) -> int:
    try:
        return detector.subjects_together(24, memory_gb)
    except EnvironmentProblem:
        return 0


def test_other_settings_under_the_same_run_id_are_refused_with_the_difference(own_study: TinyStudy) -> None:
    fit(own_study, GAUSSIAN, "mine")
    changed = dataclasses.replace(GAUSSIAN, features=dataclasses.replace(GAUSSIAN.features, grid="16mm"))
    with pytest.raises(BadInput, match=r"grid: '8mm' -> '16mm'"):
        fit(own_study, changed, "mine")
    other = dataclasses.replace(source(own_study), preprocessing=dataclasses.replace(PREPROCESSING, intensity="minmax"))
    preparing.prepare(own_study.runs, other, quiet(), workers=1)
    with pytest.raises(BadInput, match=r"intensity: 'percentile' -> 'minmax'"):
        fitting.fit(own_study.runs, other, GAUSSIAN, quiet(), name="mine", run_id="mine")


def test_other_scans_under_the_same_run_id_are_refused(own_study: TinyStudy) -> None:
    fit(own_study, make("intensity-bright"), "mine")
    scan = read_table(own_study.table)["train02"].scans["FLAIR"]
    image = nib.load(scan)
    write_nifti(scan, np.asarray(image.dataobj, dtype=np.float32) * 2 + 1 * (np.asarray(image.dataobj) > 0), SCAN_GRID)
    with pytest.raises(BadInput, match=r"scans of run mine have changed.*another id or name"):
        fit(own_study, make("intensity-bright"), "mine")


def test_a_run_says_that_it_is_running_while_it_is_resumed(
    own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def fail(self: Intensity, *rest: Any) -> Intensity:
        seen.append(open_run(own_study.runs, "mine").status)
        raise BadInput("not today")

    def watch(run: Run, detector: Detector, chunk: Any) -> None:
        seen.append(open_run(own_study.runs, "mine").status)

    with monkeypatch.context() as patched:
        patched.setattr(Intensity, "fit", fail)
        for _ in range(2):
            with pytest.raises(BadInput, match="not today"):
                fit(own_study, make("intensity-bright"), "mine")
            record = open_run(own_study.runs, "mine").record
            assert (record["status"], record["error"]) == ("failed", "not today")
    run = fit(own_study, make("intensity-bright"), "mine")
    assert (open_run(own_study.runs, "mine").status, open_run(own_study.runs, "mine").record["error"]) == (
        "finished",
        None,
    )
    monkeypatch.setattr(scoring, "_score_chunk", watch)
    scoring.score(run, quiet())
    assert seen == ["running"] * 3


def test_a_damaged_detector_or_encoder_is_an_integrity_error_that_names_the_file(own_study: TinyStudy) -> None:
    stored = next((own_study.runs / "tiny" / "detector").rglob("features.safetensors"))
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"features\.safetensors is damaged"):
        fitted.load_detector(open_run(own_study.runs, "tiny"))
    weights = own_study.runs / "tiny-encoder" / "encoder" / "encoder.safetensors"
    weights.unlink()
    encoder = open_run(own_study.runs, "tiny-encoder")
    with pytest.raises(IntegrityError, match=r"encoder\.safetensors is missing"):
        fitting.fit(own_study.runs, source(own_study), GAUSSIAN, quiet(), name="x", encoder_run=encoder)


def test_a_run_without_a_fitted_detector_or_encoder_says_how_to_finish_it(own_study: TinyStudy) -> None:
    shutil.rmtree(own_study.runs / "tiny" / "detector")
    with pytest.raises(BadInput, match=r"cli\.py fit --run-id tiny"):
        fitted.load_detector(open_run(own_study.runs, "tiny"))
    with pytest.raises(BadInput, match="not fitted yet"):
        open_scores(open_run(own_study.runs, "tiny"))
    shutil.rmtree(own_study.runs / "tiny-encoder" / "encoder")
    encoder = open_run(own_study.runs, "tiny-encoder")
    with pytest.raises(BadInput, match=r"cli\.py pretrain --run-id tiny-encoder"):
        fitting.fit(own_study.runs, source(own_study), GAUSSIAN, quiet(), name="x", encoder_run=encoder)
    with pytest.raises(BadInput, match="takes no encoder"):
        fitting.fit(own_study.runs, source(own_study), make("zscore"), quiet(), name="x", encoder_run=encoder)


# What may be used


def test_a_damaged_scan_is_set_aside_by_name_and_the_others_go_on(own_study: TinyStudy) -> None:
    scan = read_table(own_study.table)["test02"].scans["FLAIR"]
    scan.write_bytes(scan.read_bytes()[:-200])
    metrics = judge(own_study, make("intensity-bright"), "mine")
    record = open_run(own_study.runs, "mine").record["cohort"]
    assert [one["subject_id"] for one in record["set_aside"]] == ["test02"]
    assert str(scan) in record["set_aside"][0]["reason"]
    assert (record["n_total"], len(record["subjects"])) == (12, 11)
    assert metrics["sets"]["intensity"]["native"]["n_lesion_subjects"] == 2
    assert run_summary(open_run(own_study.runs, "mine"))["set_aside"] == 1


def test_fewer_than_two_usable_training_scans_are_refused_with_the_reason(own_study: TinyStudy) -> None:
    for number in (1, 2, 3):
        read_table(own_study.table)[f"train0{number}"].scans["FLAIR"].write_bytes(b"no scan")
    with pytest.raises(BadInput, match=r"1 healthy training.*At least 2.*train01"):
        fit(own_study, make("intensity-bright"), "mine")


def test_the_same_voxels_under_two_ids_are_refused_and_both_are_named(own_study: TinyStudy) -> None:
    cohort = read_table(own_study.table)
    copy = own_study.table.parent / "copy.nii"
    image = nib.load(cohort["train03"].scans["FLAIR"])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine), copy)
    change(own_study, lambda s: dataclasses.replace(s, scans={"FLAIR": copy}) if s.subject_id == "test04" else s)
    with pytest.raises(BadInput, match=r"'test04' \(test\) and 'train03' \(train\)"):
        fit(own_study, make("intensity-bright"), "mine")


@pytest.mark.parametrize("role", ["train", "calibration"])
@pytest.mark.parametrize("called_healthy", [False, True])
def test_subjects_with_lesions_may_not_train_or_calibrate_whatever_they_are_called(
    own_study: TinyStudy, role: str, called_healthy: bool
) -> None:
    change(
        own_study,
        lambda s: dataclasses.replace(s, role=role, healthy=called_healthy) if s.subject_id == "test01" else s,
    )
    reason = rf"test01.*\({role}\).*lesion mask has" if called_healthy else rf"lesions in the {role} split: test01"
    with pytest.raises(BadInput, match=reason):
        fit(own_study, make("intensity-bright"), "mine")


def test_a_split_file_decides_who_is_where_and_unknown_ids_are_named(own_study: TinyStudy, tmp_path: Path) -> None:
    lists = {
        "train": [f"train0{n}" for n in (1, 2, 3)],
        "calibration": ["train04", "calibration01"],
        "test": ["validation01", "test04"],
    }
    write_json(tmp_path / "split.json", lists)
    chosen = dataclasses.replace(source(own_study), split=tmp_path / "split.json")
    study = preparing.prepare(own_study.runs, chosen, quiet())
    assert {role: list(getattr(study.split, role)) for role in ROLES} == {"validation": [], **lists}
    assert [v.subject_id for v in study.volumes("train")] == lists["train"]
    write_json(tmp_path / "split.json", {**lists, "validation": ["nobody"]})
    with pytest.raises(BadInput, match="nobody"):
        preparing.prepare(own_study.runs, chosen, quiet())


@pytest.mark.parametrize("roles", list(itertools.combinations(ROLES, 2)))
def test_a_subject_stands_in_one_split_or_the_split_is_refused(roles: tuple[str, str]) -> None:
    lists: dict[str, tuple[str, ...]] = {role: (f"of {role}",) for role in ROLES}
    Split(**lists)
    with pytest.raises(BadInput, match=f"'of {roles[0]}' is in two splits: {roles[0]} and {roles[1]}"):
        Split(**{**lists, roles[1]: lists[roles[0]]})
    with pytest.raises(BadInput, match="stands twice"):
        Cohort("c", (Subject("a", {}), Subject("a", {})))


def test_a_drawn_split_is_seeded_disjoint_and_trains_on_the_healthy_only() -> None:
    subjects = [Subject(f"s{n:02d}", {}, healthy=n % 3 != 0) for n in range(60)]
    split = draw_split(subjects, seed=1)
    everyone = [i for role in ROLES for i in getattr(split, role)]
    assert sorted(everyone) == [s.subject_id for s in subjects]
    healthy = {s.subject_id for s in subjects if s.healthy}
    assert set(split.train) | set(split.calibration) <= healthy
    assert (len(split.train), len(split.calibration), len(split.validation), len(split.test)) == (28, 6, 8, 18)
    assert draw_split(subjects[::-1], seed=1) == split
    assert draw_split(subjects, seed=2) != split
    Cohort("drawn", tuple(subjects))


# Judging


@pytest.fixture(scope="module")
def relabelled(study: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """The same scans; each lesion mask of the test split is turned by half a turn, and that of test03 is taken away."""
    mine = study.copy(tmp_path_factory.mktemp("relabelled") / "study")

    def turned(subject: Subject) -> Subject:
        if subject.role != "test" or subject.lesion_mask is None:
            return subject
        if subject.subject_id == "test03":
            return dataclasses.replace(subject, lesion_mask=None, healthy=False)
        labels = np.asarray(nib.load(subject.lesion_mask).dataobj)
        brain = np.asarray(nib.load(subject.scans["FLAIR"]).dataobj) > 0
        write_nifti(subject.lesion_mask, (labels[::-1, ::-1] * brain).astype(np.uint8), SCAN_GRID)
        return subject

    change(mine, turned)
    weights = mine.runs / "tiny-encoder" / "encoder"
    features = FeatureSettings(layers=("input", "stage1", "stage2"), grid="8mm")
    judge(mine, FeatureGaussian(weights=str(weights), features=features), "relabelled")
    return mine


def both(study: TinyStudy, relabelled: TinyStudy) -> tuple[dict[str, Any], dict[str, Any]]:
    return (
        read_metrics(open_run(study.runs, "tiny")),
        read_metrics(open_run(relabelled.runs, "relabelled")),
    )


def test_label_free_threshold_ignores_lesions(study: TinyStudy, relabelled: TinyStudy) -> None:
    before, after = both(study, relabelled)
    for name in before["sets"]:
        for space in ("working", "native"):
            if before["sets"][name][space] is not None and after["sets"][name][space] is not None:
                old, new = (m["sets"][name][space]["protocols"] for m in (before, after))
                assert old["healthy"]["threshold"] == new["healthy"]["threshold"]
                assert old["validation"]["threshold"] == new["validation"]["threshold"]
    headline = before["headline"]
    old, new = (m["sets"][headline]["native"]["protocols"]["oracle_set"] for m in (before, after))
    assert old["threshold"] != new["threshold"], "the labels did change"


def test_the_headline_is_chosen_without_test_labels(study: TinyStudy, relabelled: TinyStudy) -> None:
    before, after = both(study, relabelled)
    assert before["headline"] == after["headline"]
    assert before["headline_rule"] == after["headline_rule"]
    assert "validation" in before["headline_rule"]
    scores = [before["sets"][n]["working"]["validation_mean_dice"] for n in before["sets"]]
    assert before["sets"][before["headline"]]["working"]["validation_mean_dice"] == max(scores)


@pytest.mark.parametrize("name", ["zscore", "gaussian"])
def test_scans_of_validation_and_test_change_nothing_that_is_fitted(
    own_study: TinyStudy, tmp_path: Path, name: str
) -> None:
    detector = GAUSSIAN if name == "gaussian" else make(name)
    before = fitted_files(fit(own_study, detector, "before"))
    for number, subject in enumerate(read_table(own_study.table).subjects):
        if subject.role in ("validation", "test"):
            image = nib.load(subject.scans["FLAIR"])
            voxels = np.asarray(image.dataobj)
            noise = np.random.Generator(np.random.Philox(number)).uniform(0.5, 3, voxels.shape)
            write_nifti(subject.scans["FLAIR"], (voxels * noise).astype(np.float32), SCAN_GRID)
    assert fitted_files(fit(own_study, detector, "after")) == before
    for subject in read_table(own_study.table).subjects:
        if subject.role == "train":
            voxels = np.asarray(nib.load(subject.scans["FLAIR"]).dataobj)
            write_nifti(subject.scans["FLAIR"], np.where(voxels > 0, voxels + 100 * (voxels > 500), 0), SCAN_GRID)
            break
    assert fitted_files(fit(own_study, detector, "other")) != before


def fitted_files(run: Run) -> dict[str, bytes]:
    """Arrays and tensors of the detector."""
    directory = run.directory / "detector"
    return {p.name: p.read_bytes() for p in directory.rglob("*") if p.suffix in (".npy", ".npz", ".safetensors")}


def test_an_ill_scan_without_a_mask_counts_neither_as_healthy_nor_as_missed(
    study: TinyStudy, relabelled: TinyStudy
) -> None:
    _, after = both(study, relabelled)
    for space in ("native", "working"):
        figures = after["sets"][after["headline"]][space]
        assert (figures["n_lesion_subjects"], figures["n_healthy_subjects"]) == (2, 1)
        assert list(figures["protocols"]["healthy"]["false_positive_ml_by_healthy_scan"]) == ["test04"]
        assert any("test03" in note for note in figures["notes"])
    assert list(after["lesions"]["healthy"]["healthy_scans"]["scans"]) == ["test04"]


def test_a_healthy_scan_with_an_empty_mask_is_a_healthy_scan(own_study: TinyStudy) -> None:
    empty = own_study.table.parent / "empty.nii.gz"
    write_nifti(empty, np.zeros(SCAN_GRID.shape, dtype=np.uint8), SCAN_GRID)
    healthy = ("test04", "calibration01", "train01")
    change(own_study, lambda s: dataclasses.replace(s, lesion_mask=empty) if s.subject_id in healthy else s)
    figures = judge(own_study, make("intensity-bright"), "mine")
    native = figures["sets"]["intensity"]["native"]
    assert (native["n_lesion_subjects"], native["n_healthy_subjects"]) == (3, 1)
    assert list(figures["lesions"]["healthy"]["healthy_scans"]["scans"]) == ["test04"]


def test_a_healthy_test_scan_never_gets_a_dice(study: TinyStudy) -> None:
    metrics = read_metrics(open_run(study.runs, "tiny"))
    for spaces in metrics["sets"].values():
        for figures in filter(None, spaces.values()):
            assert figures["n_healthy_subjects"] == 1
            for protocol in figures["protocols"].values():
                assert {row["subject_id"] for row in protocol["subjects"]} == {"test01", "test02", "test03"}
            assert set(figures["per_subject_auprc"]["subjects"]) == {"test01", "test02", "test03"}


def test_with_healthy_test_scans_only_there_are_false_positives_and_no_dice(own_study: TinyStudy) -> None:
    change(own_study, lambda s: None if s.subject_id in ILL else s)
    metrics = judge(own_study, make("intensity-bright"), "mine")
    native = metrics["sets"]["intensity"]["native"]
    assert native["protocols"]["healthy"]["mean_dice"] is None
    assert native["protocols"]["healthy"]["false_positive_ml_per_healthy_scan"] > 0
    assert metrics["headline_rule"] == "all fitted layers"
    summary = run_summary(open_run(own_study.runs, "mine"))
    assert (summary["n_lesion_subjects"], summary["ceil_dice"], summary["auprc"]) == (0, None, None)
    json.dumps(metrics, allow_nan=False)


def test_without_calibration_subjects_there_is_no_label_free_threshold_and_it_says_so(own_study: TinyStudy) -> None:
    change(own_study, lambda s: None if s.role == "calibration" else s)
    metrics = judge(own_study, make("intensity-bright"), "mine")
    for space in ("working", "native"):
        assert set(metrics["sets"][metrics["headline"]][space]["protocols"]) == {
            "validation", "oracle_set", "oracle_subject",
        }  # fmt: skip
    words = " ".join(evaluation_words(open_run(own_study.runs, "mine"), metrics))
    assert "no label-free threshold: give healthy subjects that role" in words


def test_native_figures_are_counted_on_the_voxels_of_the_scan_itself(study: TinyStudy) -> None:
    run = open_run(study.runs, "tiny")
    metrics, scores = read_metrics(run), tiny(study)
    layers = scores.layer_set(metrics["headline"])
    cohort = read_table(study.table)
    for protocol in ("healthy", "validation"):
        found = rows_of(metrics["sets"][metrics["headline"]]["native"], protocol)
        for subject_id, row in found.items():
            native = scores.native_scores(subject_id, layers)
            lesion = np.asarray(nib.load(cohort[subject_id].lesion_mask).dataobj) > 0
            assert native.shape == lesion.shape == SCAN_GRID.shape
            cut = np.nan_to_num(native, nan=-np.inf) >= row["threshold"]
            assert row["dice"] == pytest.approx(2 * (cut & lesion).sum() / (cut.sum() + lesion.sum()))
            assert row["lesion_ml"] == pytest.approx(lesion.sum() * SCAN_GRID.voxel_volume_mm3 / 1000)


def test_working_figures_are_counted_on_the_working_grid_and_differ(study: TinyStudy) -> None:
    run = open_run(study.runs, "tiny")
    metrics, scores = read_metrics(run), tiny(study)
    name = metrics["headline"]
    for subject_id, row in rows_of(metrics["sets"][name]["working"], "healthy").items():
        found = scores.score_map(subject_id, scores.layer_set(name)).scores
        lesion = scores.prepared(subject_id).lesion
        assert lesion is not None
        cut = np.nan_to_num(found, nan=-np.inf) >= row["threshold"]
        assert row["dice"] == pytest.approx(2 * (cut & lesion.voxels).sum() / (cut.sum() + lesion.voxels.sum()))
        assert row["dice"] != rows_of(metrics["sets"][name]["native"], "healthy")[subject_id]["dice"]


def test_stored_distances_give_the_maps_that_the_fitted_detector_gives(study: TinyStudy) -> None:
    run, scores = open_run(study.runs, "tiny"), tiny(study)
    detector = fitted.load_detector(run)
    volume = run_scans.prepared_of(run, "test01").volume
    stored = scores.score_map("test01", scores.layer_sets[-1]).scores
    np.testing.assert_allclose(stored, detector.score(volume).scores, rtol=1e-5)
    bright = open_run(study.runs, "tiny-intensity")
    stored = open_scores(bright).score_map("test01", open_scores(bright).layers).scores
    np.testing.assert_array_equal(stored, fitted.load_detector(bright).score(volume).scores)


def test_an_unknown_layer_set_or_subject_names_what_there_is(study: TinyStudy) -> None:
    scores = tiny(study)
    with pytest.raises(BadInput, match=r"'stage9'.*input, stage1, stage2"):
        scores.layer_set("stage9")
    with pytest.raises(BadInput, match="nobody"):
        scores.prepared("nobody")


@pytest.mark.parametrize("protocol", ["quantile", "volume"])
def test_the_operating_point_of_the_label_free_threshold_can_be_asked_for(own_study: TinyStudy, protocol: str) -> None:
    run = open_run(own_study.runs, "tiny")
    if protocol == "quantile":
        metrics = evaluation.evaluate_run(run, quiet(), quantile=0.9, workers=1)
    else:
        metrics = evaluation.evaluate_run(run, quiet(), fp_ml_per_scan=2.0, workers=1)
    threshold = metrics["sets"]["stage1"]["native"]["protocols"]["healthy"]["threshold"]
    scores = open_scores(run)
    calibration = [scores.voxels(i, ("stage1",), "native") for i in scores.subjects("calibration")]
    above = sum(int((s.normal >= threshold).sum()) for s in calibration)
    if protocol == "quantile":
        total = sum(len(s.normal) for s in calibration)
        assert 0.09 < above / total <= 0.1
    else:
        assert 1.9 < above * SCAN_GRID.voxel_volume_mm3 / 1000 / len(calibration) <= 2.0


@pytest.mark.slow
def test_processes_give_the_figures_that_one_process_gives(own_study: TinyStudy) -> None:
    alone = read_metrics(open_run(own_study.runs, "tiny"))
    together = evaluation.evaluate_run(open_run(own_study.runs, "tiny"), quiet(), workers=2)
    assert json.dumps(together, sort_keys=True) == json.dumps(alone, sort_keys=True)


# Taking results away


def test_exported_maps_lie_on_the_grid_of_the_scan(own_study: TinyStudy, tmp_path: Path) -> None:
    run = open_run(own_study.runs, "tiny")
    paths = export_maps(run, tmp_path, "", quiet())
    subjects = [*tiny(own_study).subjects("validation"), *tiny(own_study).subjects("test")]
    wanted = {f"{i}_{what}.nii.gz" for i in subjects for what in ("score", "segmentation")}
    assert {p.name for p in paths} == {p.name for p in tmp_path.glob("*.gz")} == wanted
    metrics = read_metrics(run)
    rows = rows_of(metrics["sets"][metrics["headline"]]["native"], "healthy")
    for subject_id, row in rows.items():
        scan = nib.load(read_table(own_study.table)[subject_id].scans["FLAIR"])
        score, cut = (nib.load(tmp_path / f"{subject_id}_{what}.nii.gz") for what in ("score", "segmentation"))
        for image in (score, cut):
            assert image.shape == scan.shape
            np.testing.assert_allclose(image.affine, scan.affine, atol=1e-4)
        assert int(np.asarray(cut.dataobj).sum()) == row["true_positive_voxels"] + row["false_positive_voxels"]
        assert np.isfinite(np.asarray(score.dataobj)).all()


def test_export_of_one_layer_uses_its_own_threshold_and_an_unquoted_set_is_refused(
    own_study: TinyStudy, tmp_path: Path
) -> None:
    run = open_run(own_study.runs, "tiny")
    metrics = read_metrics(run)
    export_maps(run, tmp_path, "stage1", quiet())
    row = rows_of(metrics["sets"]["stage1"]["native"], "healthy")["test01"]
    cut = np.asarray(nib.load(tmp_path / "test01_segmentation.nii.gz").dataobj)
    assert int(cut.sum()) == row["true_positive_voxels"] + row["false_positive_voxels"]
    unquoted = next(name for name, spaces in metrics["sets"].items() if spaces["native"] is None)
    with pytest.raises(BadInput, match="no native-space threshold"):
        export_maps(run, tmp_path, unquoted, quiet())


def test_before_an_evaluation_only_score_maps_of_all_layers_are_exported(own_study: TinyStudy, tmp_path: Path) -> None:
    shutil.rmtree(own_study.runs / "tiny" / "evaluation")
    run = open_run(own_study.runs, "tiny")
    with pytest.raises(BadInput, match=r"cli\.py evaluate tiny"):
        read_metrics(run)
    paths = export_maps(run, tmp_path, "", quiet())
    assert {p.name.rsplit("_", 1)[1] for p in paths} == {"score.nii.gz"}
    scores = tiny(own_study)
    native = np.nan_to_num(scores.native_scores("test01", scores.layer_sets[-1]), nan=0.0)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "test01_score.nii.gz").dataobj), native)


# In a few numbers


def test_a_summary_quotes_the_headline_in_native_space(study: TinyStudy) -> None:
    run = open_run(study.runs, "tiny")
    metrics, summary = read_metrics(run), run_summary(run)
    native = metrics["sets"][metrics["headline"]]["native"]
    assert (summary["space"], summary["headline"]) == ("native", metrics["headline"])
    assert summary["dice"]["healthy"]["mean"] == native["protocols"]["healthy"]["mean_dice"]
    assert summary["dice"]["oracle_set"]["oracle"]
    assert not summary["dice"]["healthy"]["needs_labels"]
    assert summary["encoder"] == "tiny-encoder"
    assert summary["split"] == {"train": 4, "calibration": 2, "validation": 2, "test": 4}
    unfinished = run_summary(open_run(study.runs, "tiny-encoder"))
    assert not unfinished["evaluated"]
    assert "dice" not in unfinished


def test_the_layer_table_has_each_set_once_and_contributions_add_and_take_away(study: TinyStudy) -> None:
    metrics = read_metrics(open_run(study.runs, "tiny"))
    rows = layer_table(metrics)
    assert sorted(row["layers"] for row in rows) == sorted(set_id(s) for s in tiny(study).layer_sets)
    assert sum(row["headline"] for row in rows) == 1
    auprc = {row["layers"]: row["auprc"] for row in rows}
    for layer, alone, added in layer_contributions(rows, metrics["layers"]):
        rest = "+".join(other for other in metrics["layers"] if other != layer)
        assert alone == auprc[layer]
        assert added == pytest.approx(auprc["input+stage1+stage2"] - auprc[rest])
    assert layer_contributions([{"layers": "a", "auprc": 0.5}], ["a"]) == [("a", 0.5, None)]


def test_every_scan_has_its_place(study: TinyStudy) -> None:
    record = open_run(study.runs, "tiny").record
    assert {s["subject_id"] for s in record["cohort"]["subjects"]} == {*HEALTHY, *ILL}
    assert [s["subject_id"] for s in run_scans.scored_subjects(open_run(study.runs, "tiny"))] == [
        i for role in ROLES[1:] for i in record["split"][role]
    ]
    with pytest.raises(BadInput, match="status"):
        update_run(open_run(study.runs, "tiny"), status="nearly")


# What a second look found


def test_an_encoder_that_saw_the_voxels_of_a_test_scan_under_another_name_is_refused_and_both_are_named(
    own_study: TinyStudy,
) -> None:
    trained = open_run(own_study.runs, "tiny-encoder").record["split"]["train"][0]
    renamed = {"role": "test", "subject_id": "stranger"}
    change(own_study, lambda s: dataclasses.replace(s, **renamed) if s.subject_id == trained else s)
    preparing.prepare(own_study.runs, source(own_study), quiet(), workers=1)
    with pytest.raises(BadInput, match=f"voxels of 1 scan.*{trained} is stranger here"):
        fitting.fit(
            own_study.runs,
            source(own_study),
            GAUSSIAN,
            quiet(),
            name="leak",
            encoder_run=open_run(own_study.runs, "tiny-encoder"),
        )


def test_an_encoder_that_saw_a_test_subject_is_refused_and_the_subject_named(own_study: TinyStudy) -> None:
    encoder = open_run(own_study.runs, "tiny-encoder")
    trained = encoder.record["split"]["train"][0]
    change(own_study, lambda s: dataclasses.replace(s, role="test") if s.subject_id == trained else s)
    preparing.prepare(own_study.runs, source(own_study), quiet(), workers=1)
    with pytest.raises(BadInput, match=f"was trained on 1 subject.*{trained}"):
        fitting.fit(
            own_study.runs, source(own_study), GAUSSIAN, quiet(), name="leak", run_id="leak", encoder_run=encoder
        )


def test_an_encoder_of_scans_prepared_otherwise_is_refused(own_study: TinyStudy) -> None:
    encoder = open_run(own_study.runs, "tiny-encoder")
    other = DataSource(own_study.table, preprocessing=dataclasses.replace(PREPROCESSING, intensity="minmax"))
    with pytest.raises(BadInput, match="prepared otherwise: intensity"):
        fitting.fit(own_study.runs, other, GAUSSIAN, quiet(), name="x", run_id="x", encoder_run=encoder)


def test_a_retrained_encoder_is_not_taken_for_the_one_that_was_fitted(own_study: TinyStudy) -> None:
    run = open_run(own_study.runs, "tiny")
    update_run(run, parents={**run.record["parents"], "encoder_sha256": "0" * 64})
    with pytest.raises(BadInput, match="encoder_sha256"):
        fitting.fit(
            own_study.runs,
            source(own_study),
            from_recipe(run.record["recipe"]),
            quiet(),
            name="tiny",
            run_id="tiny",
            encoder_run=open_run(own_study.runs, "tiny-encoder"),
        )


def test_damaged_scores_are_named_and_never_averaged_in(own_study: TinyStudy) -> None:
    run = open_run(own_study.runs, "tiny")
    path = next((run.directory / "scores").glob("*/distances.npy"))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(IntegrityError, match=path.name):
        evaluation.evaluate_run(run, quiet(), workers=1)


def test_display_maps_keep_the_order_of_the_scores_and_see_no_test_subject(
    own_study: TinyStudy, tmp_path: Path
) -> None:
    run = open_run(own_study.runs, "tiny")
    raw, shown = tmp_path / "raw", tmp_path / "shown"
    export_maps(run, raw, "", quiet())
    export_maps(run, shown, "", quiet(), display=True)
    name = sorted(path.name for path in raw.glob("*_score.nii.gz"))[0]
    scores, display = (np.asarray(nib.load(folder / name).dataobj) for folder in (raw, shown))
    inside = scores > 0
    assert display[inside].min() > 0
    assert display.max() <= 1
    order = np.argsort(scores[inside], kind="stable")
    assert (np.diff(display[inside][order]) >= 0).all()
    assert display[inside].std() > 0.05


# Bad input is refused at the border


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (SimclrSettings(negatives=NegativesSettings(kind="queue", bank_size=-4)), "bank of -4"),
        (SimclrSettings(negatives=NegativesSettings(kind="dense", layer="layer2")), "'layer2' is not in encoder"),
        (SimclrSettings(steps=0), "steps is 0"),
        (SimclrSettings(batch=1), "batch is 1"),
        (SimclrSettings(batch=500), "batch of 500 distinct subjects"),
    ],
)
def test_bad_pretraining_settings_prepare_nothing_and_leave_no_run(
    study: TinyStudy, tmp_path: Path, settings: SimclrSettings, said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        training.pretrain(tmp_path, source(study), settings, quiet(), run_id="bad")
    assert not list(tmp_path.iterdir())


def test_an_even_neighbourhood_prepares_nothing_and_leaves_no_run(study: TinyStudy, tmp_path: Path) -> None:
    even = dataclasses.replace(GAUSSIAN, features=dataclasses.replace(GAUSSIAN.features, neighbourhood=2))
    with pytest.raises(BadInput, match="neighbourhood is 2"):
        fitting.fit(tmp_path, source(study), even, quiet(), name="bad", run_id="bad")
    assert not list(tmp_path.iterdir())


def test_errors_name_a_detector_in_the_words_of_the_catalogue(study: TinyStudy) -> None:
    scores = dataclasses.replace(tiny(study), detector=make("zscore"))
    with pytest.raises(BadInput, match=r"is a voxel-wise \|z\|: it has no layers"):
        scores.layer_set("stage1")

"""A second map inside the segmentation of a first: the detector, the run made of two runs, and its verb."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cli
from core.detectors import from_recipe, recipe_json
from core.detectors.feature_gaussian import FeatureGaussian
from core.detectors.gated import Gated, gated_map
from core.detectors.voxel_zscore import VoxelZScore
from core.features.settings import FeatureSettings
from core.metrics.healthy_threshold import Calibration, threshold_at_fp_ml, threshold_at_quantile
from core.presentation.figures.results import protocol_dots
from core.presentation.report.repeat import commands_of
from core.runs.evaluated import read_metrics
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.study.fitted import load_detector
from core.study.gating import ROUNDING, Part, gated_detector
from core.study.run_summary import run_summary
from core.study.stored_scores import open_scores, set_id
from core.study.subject_level import OF_THE_GATE
from core.types import ScoreMap
from data.errors import BadInput
from data.files import verify_directory
from data.volume import Volume
from models.settings import EncoderSettings
from tests.study import TinyStudy, recommit, small_volumes, with_lesion, write_record

LAYERS = ("stage1", "stage2")


def gaussian() -> FeatureGaussian:
    return FeatureGaussian(encoder=EncoderSettings(width=4), features=FeatureSettings(layers=LAYERS, grid="8mm"))


def gated(threshold: float, **changes: Any) -> Gated:
    parts = {"gate": recipe_json(gaussian()), "second": recipe_json(VoxelZScore()), "gate_layers": ("stage1",)}
    return Gated(
        **(parts | {"gate_rule": "as told", "threshold_from": "validation"} | changes), gate_threshold=threshold
    )


@dataclass(frozen=True)
class Fitted:
    """A gated detector, its parts, and a scan with a lesion."""

    detector: Gated
    gate: FeatureGaussian
    second: VoxelZScore
    ill: Volume
    lesion: np.ndarray

    @property
    def opening(self) -> np.ndarray:
        """Where the gate is open, from the parts alone."""
        distances = self.gate.distances([self.ill], [("stage1",)])[0, 0]
        scores = self.gate.to_map(distances, self.ill).scores
        return np.asarray(np.nan_to_num(scores, nan=-np.inf) >= self.detector.gate_threshold)


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    train = small_volumes(6)
    gate, second = gaussian().fit(train), VoxelZScore().fit(train)
    ill, lesion = with_lesion(small_volumes(1, seed=5)[0], 0.6)
    scores = gate.to_map(gate.distances([ill], [("stage1",)])[0, 0], ill).scores
    detector = gated(float(np.nanquantile(scores, 0.9))).with_parts(gate, second)
    return Fitted(detector, gate, second, ill, lesion)


def test_inside_the_gate_stand_the_second_scores_outside_zero_and_nan_outside_the_brain(fitted: Fitted) -> None:
    found = fitted.detector.score(fitted.ill)
    second = fitted.second.score(fitted.ill).scores
    inside, brain = fitted.opening, fitted.ill.brain_mask
    assert 0.05 < inside[brain].mean() < 0.15
    np.testing.assert_array_equal(found.scores[inside], second[inside])
    assert (found.scores[brain & ~inside] == 0).all()
    assert np.isnan(found.scores[~brain]).all()
    assert np.isfinite(found.scores[brain]).all()
    assert found.unit == Gated.score_unit
    assert np.nanmean(found.scores[fitted.lesion]) > 5 * np.nanmean(found.scores[brain & ~fitted.lesion])


def test_saved_and_loaded_it_gives_the_same_map_and_keeps_both_parts(fitted: Fitted, tmp_path: Path) -> None:
    fitted.detector.save(tmp_path)
    loaded = Gated.load(tmp_path)
    assert loaded.score(fitted.ill).scores.tobytes() == fitted.detector.score(fitted.ill).scores.tobytes()
    assert isinstance(loaded.gate_, FeatureGaussian)
    assert isinstance(VoxelZScore.load(tmp_path / "second"), VoxelZScore)
    assert recipe_json(loaded) == recipe_json(fitted.detector)


def test_its_recipe_survives_json(fitted: Fitted) -> None:
    recipe = json.loads(json.dumps(recipe_json(fitted.detector)))
    again = from_recipe(recipe)
    assert recipe_json(again) == recipe_json(fitted.detector)
    assert isinstance(again, Gated)
    assert again.gate_layers == ("stage1",)


def test_fit_fits_both_parts_and_an_unfitted_one_says_what_to_do(fitted: Fitted, tmp_path: Path) -> None:
    detector = gated(fitted.detector.gate_threshold)
    with pytest.raises(RuntimeError, match="Call fit"):
        detector.score(fitted.ill)
    with pytest.raises(RuntimeError, match="Call fit"):
        detector.save(tmp_path)
    assert detector.fit(small_volumes(6)) is detector
    assert detector.score(fitted.ill).scores.tobytes() == fitted.detector.score(fitted.ill).scores.tobytes()


def test_an_open_gate_is_the_second_map_and_a_shut_one_zero(fitted: Fitted) -> None:
    gate, second = fitted.gate.score(fitted.ill), fitted.second.score(fitted.ill)
    np.testing.assert_array_equal(gated_map(gate, second, 0.0).scores, second.scores)
    assert np.nanmax(gated_map(gate, second, 1e30).scores) == 0
    at = float(np.nanmax(gate.scores))
    assert np.count_nonzero(np.nan_to_num(gated_map(gate, second, at).scores)) == 1


def test_negative_scores_other_scans_and_unknown_parts_are_refused(fitted: Fitted) -> None:
    gate, second = fitted.gate.score(fitted.ill), fitted.second.score(fitted.ill)
    lower = ScoreMap(second.scores - 1, second.grid, second.subject_id, second.unit)
    with pytest.raises(BadInput, match="negative scores"):
        gated_map(gate, lower, 0.0)
    other = ScoreMap(second.scores, second.grid, "sub-other", second.unit)
    with pytest.raises(BadInput, match="sub-other"):
        gated_map(gate, other, 0.0)
    with pytest.raises(BadInput, match="Known: FeatureGaussian"):
        gated(1.0, second={"kind": "Oracle"})
    with pytest.raises(BadInput, match="Allowed: validation, healthy"):
        gated(1.0, threshold_from="test")
    with pytest.raises(BadInput, match="finite"):
        gated(float("nan"))


def test_a_healthy_threshold_over_zeros_does_not_take_the_whole_brain(fitted: Fitted) -> None:
    healthy = [fitted.detector.score(v) for v in small_volumes(3, seed=40)]
    shut = [
        ScoreMap(np.where(np.isnan(m.scores), np.nan, np.float32(0)), m.grid, m.subject_id, m.unit) for m in healthy
    ]
    for maps in (healthy, shut):
        scores = [m.scores[np.isfinite(m.scores)] for m in maps]
        zeros = np.mean(np.concatenate(scores) == 0)
        for quantile in (0.01, 0.5, float(zeros) * 0.9):
            threshold = threshold_at_quantile(scores, quantile)
            assert threshold > 0
            assert np.mean(np.concatenate(scores) >= np.float32(threshold)) <= 1 - zeros + 1e-9
        assert threshold_at_fp_ml(scores, [0.064] * 3, 5.0) > 0
    calibration = Calibration.fit(shut)
    assert not calibration.segment(shut[0]).voxels.any()
    marked = Calibration.fit(shut, quantile=0.5).segment(fitted.detector.score(fitted.ill)).voxels
    assert marked.any()
    assert not marked[~fitted.opening].any()


@dataclass(frozen=True)
class Made:
    """The tiny study with a gated run, made by the verb."""

    study: TinyStudy
    run: Run


@pytest.fixture(scope="module")
def made(study: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> Made:
    own = study.copy(tmp_path_factory.mktemp("gated") / "study")
    assert cli.main(gate_words(own)) == 0
    return Made(own, open_run(own.runs, "tiny-gated"))


def gate_words(study: TinyStudy, *flags: str, run_id: str = "tiny-gated", second: str = "tiny-intensity") -> list[str]:
    return ["gate", "tiny", second, "--run-id", run_id, "--workers", "1", "--runs", str(study.runs), *flags]


def test_the_gates_threshold_is_that_of_its_validation_subjects_and_says_so(made: Made) -> None:
    recipe = made.run.record["recipe"]
    metrics = read_metrics(open_run(made.study.runs, "tiny"))
    protocols = metrics["sets"][metrics["headline"]]["working"]["protocols"]
    assert recipe["threshold_from"] == "validation"
    assert "validation" in recipe["gate_rule"]
    assert "run tiny" in recipe["gate_rule"]
    assert recipe["gate_threshold"] == pytest.approx(protocols["validation"]["threshold"] * (1 - ROUNDING), rel=1e-12)
    assert recipe["gate_threshold"] != protocols["oracle_set"]["threshold"]
    assert recipe["gate_layers"] == metrics["headline"].split("+")
    assert made.run.record["parents"] == {"gate": "tiny", "second": "tiny-intensity"}
    assert (made.run.kind, made.run.status) == ("detector", "finished")


def test_its_stored_maps_are_the_two_runs_maps_combined_and_its_detector_gives_them_back(made: Made) -> None:
    scores = open_scores(made.run)
    gate, second = (open_scores(open_run(made.study.runs, name)) for name in ("tiny", "tiny-intensity"))
    recipe, detector = made.run.record["recipe"], load_detector(made.run)
    for subject_id in ("calibration01", "validation01", "test01"):
        stored = scores.score_map(subject_id, scores.layers).scores
        opening = gate.score_map(subject_id, tuple(recipe["gate_layers"])).scores >= recipe["gate_threshold"]
        plain = second.score_map(subject_id, second.layers).scores
        brain = np.isfinite(plain)
        np.testing.assert_array_equal(stored[brain], np.where(opening, plain, 0)[brain])
        assert np.isnan(stored[~brain]).all()
        again = detector.score(scores.prepared(subject_id).volume).scores
        assert np.count_nonzero(~np.isclose(again[brain], stored[brain], rtol=1e-4)) <= 1


def test_both_detectors_lie_in_it_without_a_second_copy(made: Made) -> None:
    verify_directory(made.run.directory / "detector")
    for folder, name in (("gate", "tiny"), ("second", "tiny-intensity")):
        original = made.study.runs / name / "detector"
        for path in (p for p in original.rglob("*") if p.is_file() and p.parent == original):
            copy = made.run.directory / "detector" / folder / path.name
            assert path.name == "manifest.json" or os.path.samefile(copy, path)


def test_its_subject_level_figures_are_those_of_its_gate(made: Made) -> None:
    own = read_metrics(made.run)["subject_level"]["maximum"]
    assert own["rule"].startswith(OF_THE_GATE)
    gate = open_scores(open_run(made.study.runs, "tiny"))
    layers = tuple(made.run.record["recipe"]["gate_layers"])
    for subject_id, value in own["scores"].items():
        assert value == pytest.approx(float(np.nanmax(gate.score_map(subject_id, layers).scores)))
    theirs = read_metrics(open_run(made.study.runs, "tiny"))["subject_level"]["maximum"]
    assert own["auroc"] == theirs["auroc"]


def test_the_same_command_again_changes_nothing_and_a_killed_one_is_taken_up(made: Made) -> None:
    stored = made.run.directory / "scores" / "test02" / "scores.npy"
    before, written = stored.read_bytes(), stored.stat().st_mtime_ns
    (made.run.directory / "scores" / "test01" / "manifest.json").unlink()
    assert cli.main(gate_words(made.study)) == 0
    assert (stored.read_bytes(), stored.stat().st_mtime_ns) == (before, written)
    assert (made.run.directory / "scores" / "test01" / "manifest.json").is_file()
    assert cli.main(gate_words(made.study, "--layers", "stage1")) == 2  # another run under the same id


def test_runs_of_other_scans_unknown_layers_and_gated_gates_are_refused(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    other = made.study.runs / "tiny-other"
    source = made.study.runs / "tiny-intensity"
    for path in (p for p in source.rglob("*") if p.is_file()):
        (other / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        (other / path.relative_to(source)).write_bytes(path.read_bytes())
    record = json.loads((source / "run.json").read_text())
    subjects, split = record["cohort"]["subjects"], record["split"]
    for field, change, told in (
        ("cohort", {"subjects": [{**subjects[0], "key": "0" * 32}, *subjects[1:]]}, "cohort"),
        ("split", {"validation": [], "test": [*split["validation"], *split["test"]]}, "split"),
        ("preprocessing", {"spacing_mm": 3.0}, "preprocessing"),
    ):
        record = json.loads((source / "run.json").read_text())
        record["run_id"] = "tiny-other"
        record[field] |= change
        write_record(other / "run.json", record)
        capsys.readouterr()
        assert cli.main(gate_words(made.study, run_id="x", second="tiny-other")) == 2
        assert f"differ in {told}" in capsys.readouterr().err
    assert cli.main(gate_words(made.study, "--layers", "stage9", run_id="x")) == 2
    assert cli.main(gate_words(made.study, run_id="x", second="tiny-gated")) == 2
    assert "gated itself" in capsys.readouterr().err
    assert not (made.study.runs / "x").exists()


def test_without_labelled_validation_the_gate_is_cut_at_its_healthy_threshold(made: Made) -> None:
    path = made.study.runs / "tiny" / "evaluation" / "metrics.json"
    before = path.read_text()
    metrics = json.loads(before)
    for one in metrics["sets"].values():
        one["working"]["protocols"].pop("validation")
    recommit(path.parent, {path.name: json.dumps(metrics)})
    try:
        assert cli.main(gate_words(made.study, run_id="tiny-healthy-gate")) == 0
    finally:
        recommit(path.parent, {path.name: before})
    recipe = open_run(made.study.runs, "tiny-healthy-gate").record["recipe"]
    protocols = metrics["sets"][metrics["headline"]]["working"]["protocols"]
    assert recipe["threshold_from"] == "healthy"
    assert recipe["gate_threshold"] == protocols["healthy"]["threshold"]
    assert "quantile" in recipe["gate_rule"]


def test_its_report_names_the_commands_of_both_parts_and_of_the_gate(made: Made) -> None:
    commands = commands_of(made.run, read_metrics(made.run), None)
    verbs = [words[0] for words in commands]
    assert verbs == ["pretrain", "fit", "score", "evaluate", "fit", "score", "evaluate", "gate", "evaluate", "report"]
    gate = commands[verbs.index("gate")]
    assert gate[1:3] == ["tiny", "tiny-intensity"]
    assert gate[gate.index("--layers") + 1] == "+".join(made.run.record["recipe"]["gate_layers"])


def test_other_verbs_take_a_gated_run(made: Made) -> None:
    runs = ["--runs", str(made.study.runs)]
    assert cli.main(["score", "tiny-gated", *runs]) == 0
    assert cli.main(["evaluate", "tiny-gated", *runs, "--workers", "1"]) == 0
    assert cli.main(["runs", *runs]) == 0


def test_behind_a_gate_cut_on_validation_labels_no_threshold_is_called_label_free(made: Made) -> None:
    row = run_summary(made.run)["dice"]
    assert row["healthy"]["needs_labels"]
    metrics = read_metrics(made.run)
    for space in ("working", "native"):
        rule = metrics["sets"][metrics["headline"]][space]["protocols"]["healthy"]["rule"]
        assert rule.count("behind a gate cut on validation labels")
    traces = protocol_dots([{"label": "gated", "dice": row}], "Dice").data
    assert [t.name for t in traces if "label-free" in t.name and t.x[0] is not None] == []
    assert any("behind a gate" in t.name and t.x[0] is not None for t in traces)


def test_another_quantile_evaluates_anew_and_an_impossible_one_makes_nothing(made: Made) -> None:
    assert cli.main(gate_words(made.study, "--quantile", "0.9")) == 0
    metrics = read_metrics(made.run)
    rule = metrics["sets"][metrics["headline"]]["native"]["protocols"]["healthy"]["rule"]
    assert rule.startswith("quantile 0.9 of")
    assert cli.main(gate_words(made.study, "--quantile", "2", run_id="x2")) == 2
    assert not (made.study.runs / "x2").exists()


def test_a_gate_cut_on_healthy_scans_makes_the_whole_pipeline_label_free(made: Made) -> None:
    scores = open_scores(gate := open_run(made.study.runs, "tiny"))
    part = Part(scores, scores.layer_sets[-1], read_metrics(gate))
    detector = gated_detector(part, part, "healthy")
    healthy = part.metrics["sets"][set_id(part.layers)]["working"]["protocols"]["healthy"]
    assert (detector.threshold_from, detector.gate_threshold) == ("healthy", healthy["threshold"])
    assert gated_detector(part, part).threshold_from == "validation"

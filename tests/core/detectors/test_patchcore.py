"""The memory bank as a detector: one bank for every layer set, a score per scan, and every verb on its runs."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import cli
from core.detectors import make
from core.detectors.capabilities import refit
from core.detectors.feature_gaussian import FeatureGaussian
from core.detectors.patchcore import PatchCore
from core.diagnosis.what_if.catalogue import applicable, run_what_if
from core.diagnosis.what_if.scored_again import rescored
from core.features.settings import FeatureSettings
from core.memory_bank import one_patch
from core.memory_bank.settings import BankSettings
from core.presentation.report.repeat import commands_of
from core.progress import Progress
from core.runs.evaluated import read_metrics
from core.runs.listing import open_run
from core.study import data_source, fitting, scoring
from core.study.run_summary import run_summary
from core.study.stored_scores import open_scores, set_id
from core.study.subject_level import subject_level_text, told_apart
from data.errors import BadInput, EnvironmentProblem
from data.volume import Volume
from models.settings import EncoderSettings
from tests.study import SCAN_FLAGS, TinyStudy, small_volumes, with_lesion

LAYERS = ("input", "stage1", "stage2")
RECIPE = PatchCore(
    encoder=EncoderSettings(width=4),
    features=FeatureSettings(layers=LAYERS, grid="8mm", neighbourhood=3),
    bank=BankSettings(coreset_ratio=0.2),
)


def quiet() -> Progress:
    return Progress(False, io.StringIO())


def by(**bank: object) -> PatchCore:
    """The recipe with another bank."""
    return dataclasses.replace(RECIPE, bank=dataclasses.replace(RECIPE.bank, **bank))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def train() -> list[Volume]:
    return small_volumes(5)


@pytest.fixture(scope="module")
def fitted(train: list[Volume]) -> PatchCore:
    return dataclasses.replace(RECIPE).fit(train)


@pytest.fixture(scope="module")
def volumes() -> list[Volume]:
    healthy = small_volumes(2, seed=5)
    return [healthy[0], with_lesion(healthy[1], 0.6)[0]]


@pytest.fixture(scope="module")
def bank_study(study: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """The tiny study with a run of a memory bank, `bank`, evaluated."""
    own = study.copy(tmp_path_factory.mktemp("bank") / "study")
    fit = ["--detector", "patchcore", "--layers", *LAYERS, "--grid", "8mm", "--coreset-ratio", "0.1"]
    for argv in (
        ["fit", str(own.table), *SCAN_FLAGS, "--run-id", "bank", "--encoder", "tiny-encoder", *fit],
        ["score", "bank"],
        ["evaluate", "bank", "--workers", "1"],
    ):
        assert cli.main([*argv, "--runs", str(own.runs)]) == 0
    return own


# One bank, every layer set


def test_a_distance_is_to_the_nearest_kept_patch_of_all_by_the_definition(
    fitted: PatchCore, volumes: list[Volume]
) -> None:
    bank, extractor = fitted.bank_, fitted.extractor_
    assert bank is not None
    assert extractor is not None
    found = fitted.distances(volumes)
    layout = fitted.layout_
    assert found.shape == (7, 2, len(layout.positions))
    for number, layers in enumerate(fitted.layer_sets):
        for v, volume in enumerate(volumes):
            rows = extractor(volume).rows
            squared = np.zeros((len(layout.positions), len(bank)))
            for layer in layers:
                scaled = (rows[layer].double() - bank.means[layer].double()) / bank.spreads[layer]
                mine = scaled[torch.from_numpy(layout.lookup[layer])]
                kept = bank.rows[layer].double()[torch.from_numpy(bank.row_of[layer])]
                squared += torch.cdist(mine, kept).square().numpy()
            np.testing.assert_allclose(found[number, v], np.sqrt(squared.min(1)), rtol=1e-4, atol=5e-4)


def test_every_kept_patch_is_a_neighbourhood_mean_of_a_training_scan(fitted: PatchCore, train: list[Volume]) -> None:
    bank, extractor = fitted.bank_, fitted.extractor_
    assert bank is not None
    assert extractor is not None
    assert extractor.settings.neighbourhood == 3
    for entry in (0, len(bank) // 2, len(bank) - 1):
        rows = extractor(train[int(bank.subject_of[entry])]).rows
        for layer in LAYERS:
            own = rows[layer][int(fitted.layout_.lookup[layer][bank.position_of[entry]])]
            kept = bank.rows[layer][int(bank.row_of[layer][entry])] * bank.spreads[layer] + bank.means[layer]
            torch.testing.assert_close(kept, own, rtol=1e-4, atol=1e-5)


def test_a_narrowed_detector_scores_as_the_whole_one_does_under_that_layer_set(
    fitted: PatchCore, volumes: list[Volume]
) -> None:
    layers = ("input", "stage2")
    less = fitted.narrowed(layers)
    assert less.features.layers == layers
    wanted = fitted.distances(volumes, [layers])
    np.testing.assert_allclose(less.distances(volumes, [layers]), wanted, rtol=1e-6)
    np.testing.assert_allclose(less.distances(volumes)[-1], wanted[0], rtol=1e-6)


def test_a_bank_of_fewer_scans_is_the_bank_of_a_fit_on_them_also_after_narrowing(
    fitted: PatchCore, train: list[Volume], volumes: list[Volume]
) -> None:
    fewer = refit(fitted.narrowed(("stage1",)), train[:3])
    assert isinstance(fewer, PatchCore)
    whole = refit(fitted, train[:3])
    assert isinstance(whole, PatchCore)
    assert whole.bank_ is not None
    assert whole.bank_.subject_ids == tuple(v.subject_id for v in train[:3])
    np.testing.assert_array_equal(fewer.distances(volumes)[0], whole.distances(volumes, [("stage1",)])[0])
    assert np.abs(whole.distances(volumes)[-1] - fitted.distances(volumes)[-1]).max() > 1e-3


def test_a_gaussian_and_a_bank_are_rescored_side_by_side(
    fitted: PatchCore, train: list[Volume], volumes: list[Volume]
) -> None:
    gaussian = FeatureGaussian(
        encoder=EncoderSettings(width=4), features=FeatureSettings(layers=LAYERS, grid="8mm")
    ).fit(train)
    maps = rescored([gaussian, fitted], volumes, LAYERS)
    for detector, scored in zip((gaussian, fitted), maps, strict=True):
        for volume, found in zip(volumes, scored, strict=True):
            np.testing.assert_allclose(found, detector.score(volume).scores, rtol=1e-5)


# The score of a scan


def test_the_score_of_a_scan_is_its_largest_distance_in_the_brain_reweighted(
    fitted: PatchCore, volumes: list[Volume]
) -> None:
    bank, extractor = fitted.bank_, fitted.extractor_
    assert bank is not None
    assert extractor is not None
    volume = volumes[1]
    distances, [scores] = fitted.distances_and_subject_scores([volume])
    np.testing.assert_array_equal(distances, fitted.distances([volume]))
    layout, steps = fitted.layout_, 2
    inside = np.array([volume.brain_mask[tuple(steps * p)] for p in layout.positions])
    assert 0 < inside.sum() < len(inside)
    assert list(scores) == list(fitted.layer_sets)
    for number, layers in enumerate(fitted.layer_sets):
        at = int(np.argmax(np.where(inside, distances[number, 0], -1)))
        near = one_patch.nearest(bank, extractor(volume).rows, at, layers, len(bank))
        entry = near.entry[0]
        joint = torch.cat([bank.rows[la][torch.from_numpy(bank.row_of[la])] for la in layers], 1).double()
        around = torch.cdist(joint[entry : entry + 1], joint)[0].argsort(stable=True)[:9].tolist()
        apart = {int(e): float(d) for e, d in zip(near.entry, near.distance, strict=True)}
        exponents = np.exp([apart[int(e)] for e in around])
        wanted = (1 - np.exp(apart[int(entry)]) / exponents.sum()) * apart[int(entry)]
        assert scores[layers] == pytest.approx(wanted, rel=1e-4)


def test_ill_scans_are_told_from_healthy_ones_by_the_share_of_pairs_in_the_right_order() -> None:
    values = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 1.0}
    healthy = {"a": False, "b": False, "c": True, "d": True}
    found = told_apart(values, healthy)
    assert found["auroc"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert found["low"] <= found["auroc"] <= found["high"]
    assert (found["n_ill"], found["n_healthy"]) == (2, 2)
    assert told_apart(values, healthy) == found
    perfect = told_apart({"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.0}, healthy)
    assert (perfect["auroc"], perfect["low"], perfect["high"]) == (1.0, 1.0, 1.0)
    alone = told_apart({"a": 3.0, "c": 2.0}, healthy)
    assert (alone["auroc"], alone["low"]) == (1.0, None)
    none = told_apart({"a": 3.0}, healthy)
    assert none["auroc"] is None
    assert subject_level_text(none) == subject_level_text(None) == "–"
    assert subject_level_text(alone) == "1.00, 1 ill, 1 healthy"


# Approximate search


def test_an_approximate_bank_is_audited_and_its_index_is_a_cache_that_may_be_lost(
    train: list[Volume], volumes: list[Volume], tmp_path: Path
) -> None:
    detector = by(subset="all", search="ivf", nprobe=2, candidates=2)
    detector.index_cache_ = tmp_path / "cache"
    detector.fit(train)
    settings = detector.fitted_settings()
    assert 0 < settings["recall"] <= 1
    assert settings["mean_error"] >= 0
    assert settings["audit"] in detector.exactness(settings)
    before = detector.distances(volumes)
    exact = by(subset="all").fit(train).distances(volumes)
    assert (before >= exact - 5e-4).all()
    assert any((tmp_path / "cache").rglob("*.faiss"))
    detector.save(tmp_path / "detector")
    assert not any((tmp_path / "detector").rglob("*.faiss"))
    shutil.rmtree(tmp_path / "cache")
    loaded = PatchCore.load(tmp_path / "detector")
    loaded.index_cache_ = tmp_path / "cache"
    np.testing.assert_array_equal(loaded.distances(volumes), before)
    assert any((tmp_path / "cache").rglob("*.faiss"))
    one = loaded.narrowed(("stage1",)).distances(volumes)
    np.testing.assert_allclose(one[0], before[loaded.layer_sets.index(("stage1",))], rtol=1e-6)


def test_what_is_exact_and_what_is_not_is_said_for_each_kind_of_bank() -> None:
    assert "decided on all layers together" in RECIPE.exactness({"entries": 1234})
    assert "1,234 healthy patches" in RECIPE.exactness({"entries": 1234})
    assert "does not depend on the layers" in by(subset="random").exactness({})
    assert "within 12 mm" in by(position="restricted", radius_mm=12.0).exactness({})
    assert "IVF index" in by(search="ivf").exactness({})


def test_a_bank_that_does_not_fit_is_refused_before_any_scan_is_read(train: list[Volume]) -> None:
    heard: list[int] = []
    with pytest.raises(EnvironmentProblem, match="does not fit"):
        dataclasses.replace(RECIPE, memory_gb=1e-3).fit(train, lambda step, values: heard.append(step))
    assert heard == []


def test_the_plan_is_told_first(train: list[Volume]) -> None:
    heard: list[tuple[int, dict[str, float]]] = []
    detector = dataclasses.replace(RECIPE)
    detector.fit(train, lambda step, values: heard.append((step, dict(values))))
    assert heard[0][0] == 0
    assert heard[0][1]["planned_bytes"] > 0
    assert f"of {5 * len(detector.layout_.positions)} patches" in detector.plan_text_


# Runs


def test_a_bank_run_stores_distances_and_a_score_of_every_scan_under_every_layer_set(bank_study: TinyStudy) -> None:
    run = open_run(bank_study.runs, "bank")
    scores = open_scores(run)
    assert len(scores.layer_sets) == 7
    for subject_id in (*scores.subjects("calibration"), *scores.subjects("test")):
        stored = scores.subject_scores(subject_id)
        assert set(stored) == {set_id(layers) for layers in scores.layer_sets}
        assert 0 < stored["input"] < float(scores.distances(subject_id)[0].max()) + 1e-6
    assert run.record["settings"]["entries"] > 100
    assert {run.record["settings"][name] for name in ("subset", "position", "search")} == {
        *("greedy", "anywhere", "exact")
    }
    assert run.record["parents"]["encoder"] == "tiny-encoder"


def test_an_evaluation_tells_ill_scans_from_healthy_ones_by_both_rules_and_other_runs_by_the_maximum(
    bank_study: TinyStudy,
) -> None:
    metrics = read_metrics(open_run(bank_study.runs, "bank"))
    found = metrics["subject_level"]
    scores = open_scores(open_run(bank_study.runs, "bank"))
    layers = scores.layer_set(metrics["headline"])
    for subject_id, value in found["maximum"]["scores"].items():
        assert value == pytest.approx(float(np.nanmax(scores.score_map(subject_id, layers).scores)))
        assert found["reweighted"]["scores"][subject_id] == scores.subject_scores(subject_id)[metrics["headline"]]
    assert (found["maximum"]["n_ill"], found["maximum"]["n_healthy"]) == (3, 1)
    summary = run_summary(open_run(bank_study.runs, "bank"))["subject_level"]
    assert summary["maximum"]["auroc"] == found["maximum"]["auroc"]
    assert "scores" not in summary["maximum"]
    assert run_summary(open_run(bank_study.runs, "tiny"))["subject_level"]["reweighted"] is None


def test_a_lost_scan_of_a_bank_run_is_scored_again_with_the_same_bits(bank_study: TinyStudy, tmp_path: Path) -> None:
    own = bank_study.copy(tmp_path / "own")
    lost = own.runs / "bank" / "scores" / "test02"
    before = {path.name: path.read_bytes() for path in lost.iterdir()}
    assert set(before) == {"distances.npy", "subject.json", "manifest.json"}
    shutil.rmtree(lost)
    scoring.score(open_run(own.runs, "bank"), quiet())
    assert {path.name: path.read_bytes() for path in lost.iterdir()} == before


def test_what_ifs_apply_to_a_bank_but_for_the_covariance_which_says_why(bank_study: TinyStudy, tmp_path: Path) -> None:
    run = open_run(bank_study.copy(tmp_path / "own").runs, "bank")
    rows = {row["name"]: row for row in applicable(run)}
    assert "memory bank" in rows["covariance"]["missing"]
    assert all(rows[name]["applies"] for name in ("erode-mask", "fewer-scans", "shift", "renormalise"))
    result = run_what_if(run, "fewer-scans", quiet())
    assert [variant["settings"]["training_scans"] for variant in result["variants"]] == [2]


def test_the_report_repeats_the_command_that_fitted_the_bank(bank_study: TinyStudy) -> None:
    run = open_run(bank_study.runs, "bank")
    fit = next(words for words in commands_of(run, read_metrics(run), None) if words[0] == "fit")
    assert fit[fit.index("--detector") + 1] == "patchcore"
    assert fit[fit.index("--coreset-ratio") + 1] == "0.1"
    assert "--ridge" not in fit


# Flags


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--detector", "patchcore", "--ridge", "0.1"], r"memory bank and has no Gaussian.*--ridge"),
        (["--detector", "gaussian", "--subset", "random"], r"Gaussian and has no memory bank.*--subset"),
        (["--detector", "zscore", "--coreset-ratio", "0.1"], r"no features.*--coreset-ratio"),
        (["--detector", "patchcore", "--radius-mm", "6"], r"--radius-mm says nothing.*restricted"),
        (["--detector", "patchcore", "--nprobe", "4"], r"--nprobe says nothing.*ivf or hnsw"),
        (["--detector", "patchcore-position", "--search", "ivf"], r"'restricted' is not defined"),
        (["--detector", "patchcore", "--coreset-ratio", "2"], r"coreset_ratio is 2"),
    ],
)
def test_flags_of_another_detector_or_without_effect_are_refused(
    flags: list[str], said: str, study: TinyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fit", str(study.table), *SCAN_FLAGS, "--runs", str(study.runs), *flags]) == 2
    import re

    assert re.search(said, capsys.readouterr().err)


def test_bank_flags_reach_the_recipe_and_the_plan_is_printed_before_the_fit(
    study: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = study.copy(tmp_path / "own")
    flags = ["--detector", "patchcore-position", "--layers", "stage1", "--grid", "8mm", "--radius-mm", "10"]
    flags += ["--subset", "half", "--coreset-ratio", "0.3", "--neighbourhood", "1", "--neighbours", "4", "--width", "4"]
    argv = ["fit", str(own.table), *SCAN_FLAGS, "--runs", str(own.runs), "--run-id", "near", *flags, "--bank-seed", "3"]
    assert cli.main(argv) == 0
    recipe = open_run(own.runs, "near").record["recipe"]
    assert recipe["kind"] == "PatchCore"
    assert recipe["features"]["neighbourhood"] == 1
    wanted = {"radius_mm": 10.0, "subset": "half", "coreset_ratio": 0.3, "neighbours": 4, "seed": 3}
    assert {name: recipe["bank"][name] for name in wanted} == wanted
    assert "Memory bank, half greedy, half random" in capsys.readouterr().err
    assert cli.main(argv) == 0
    assert (
        json.loads((own.runs / "near" / "detector" / "detector.json").read_text())["recipe"]["bank"] == recipe["bank"]
    )


def test_an_unknown_layer_is_refused_before_scans_are_prepared(study: TinyStudy) -> None:
    source = data_source.DataSource(study.table)
    detector = dataclasses.replace(make("patchcore"), features=FeatureSettings(layers=("stage9",)))
    with pytest.raises(BadInput, match="'stage9' is not in the encoder"):
        fitting.fit(study.runs, source, detector, quiet(), name="x", run_id="x")

"""What a detector can find: known detectors get the sensitivity that theory says, and no scan judges itself."""

import dataclasses
import io
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from core.detectors import make
from core.diagnosis.limits import detection_limits, interference
from core.diagnosis.limits.bench import LimitSettings, Scorer, lone_match
from core.diagnosis.limits.detection_limits import measure_limits, run_detection_limits, stored_detection_limits
from core.diagnosis.limits.lesion_shapes import NEIGHBOURHOOD_MM, Lesion, Placed, plant_lesions
from core.diagnosis.limits.planted_lesions import design, healthy_deviation, host_of, share_out
from core.diagnosis.limits.tables import (
    contrast_limits,
    contrast_reaching,
    limit_lines,
    monotone,
    sensitivity_cells,
    wilson,
)
from core.features.settings import FeatureSettings
from core.metrics.healthy_threshold import threshold_at_quantile
from core.metrics.lesions import components, lesion_report
from core.presentation.figures import limits as figures_limits
from core.progress import Progress
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.study import fitting, preparing
from core.study.data_source import DataSource
from core.study.evaluation import evaluate_run
from core.study.stored_scores import open_scores
from core.types import ScoreMap
from data.errors import BadInput, EnvironmentProblem, IntegrityError
from data.json_files import read_json
from data.table import read_table, write_table
from data.template import working_template
from data.volume import Grid, Mask, Volume
from tests.study import ILL, PREPROCESSING, TinyStudy, recommit, small_volumes

SIGMA = 0.02
TINY: dict[str, Any] = {"diameters_mm": (8, 16), "contrasts_sd": (-4, 4), "per_cell": 2}


def quiet() -> Progress:
    return Progress(False, io.StringIO())


def planted_lesions(run: Run, layer_set: str) -> list[dict[str, Any]]:
    """The records that are kept beside the result."""
    stored: list[dict[str, Any]] = read_json(run.directory / detection_limits.DIRECTORY / layer_set / "lesions.json")
    return stored


def settings(**changes: Any) -> LimitSettings:
    wanted = LimitSettings(diameters_mm=(12, 16), contrasts_sd=(-3, 3), sites=("brain",), per_cell=3)
    return dataclasses.replace(wanted, **changes)


def white_noise(n: int, seed: int, spacing: float = 3.0, shape: tuple[int, int, int] = (36, 36, 36)) -> list[Volume]:
    """Brains of nothing but white noise of SD 0.02 around one half, of which nothing is clipped."""
    grid = Grid(shape, np.diag([spacing, spacing, spacing, 1.0]))
    brain = np.ones(shape, dtype=bool)
    noise = np.random.Generator(np.random.Philox(seed)).normal(0.5, SIGMA, (n, *shape)).astype(np.float32)
    return [Volume(one[None], grid, brain, f"noise{seed}-{i}", ("T1",)) for i, one in enumerate(noise)]


def true_z(volumes: Sequence[Volume]) -> list[ScoreMap]:
    """|z| under the true mean and deviation of `white_noise`."""
    return [ScoreMap(np.abs(v.voxels[0] - 0.5) / np.float32(SIGMA), v.grid, v.subject_id, "SD") for v in volumes]


def masked(scores: np.ndarray, volume: Volume) -> ScoreMap:
    return ScoreMap(np.where(volume.brain_mask, scores, np.nan).astype(np.float32), volume.grid, volume.subject_id, "")


def smooth_noise(volume: Volume) -> np.ndarray:
    """The same whatever the intensities, another for every subject."""
    from scipy.ndimage import gaussian_filter

    seed = int.from_bytes(volume.subject_id.encode(), "little") % 2**32
    return gaussian_filter(np.random.Generator(np.random.Philox(seed)).normal(size=volume.grid.shape), 1.5)


def without_seconds(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "seconds"}


def test_a_perfect_detector_finds_every_lesion_without_a_false_positive() -> None:
    volumes = small_volumes(6)
    healthy = {v.subject_id: v.voxels[0] for v in volumes}
    perfect = Scorer(lambda some: [masked(np.abs(v.voxels[0] - healthy[v.subject_id]), v) for v in some], batch=3)
    result, lesions = measure_limits(perfect, volumes[:2], volumes[2:4], volumes[4:], settings(), quiet())
    for level in result["levels"]:
        assert level["false_positive_ml_per_scan"] == 0
        assert all(cell["sensitivity"] == 1 and cell["found_without"] == 0 for cell in level["cells"])
        # Half of the way to contrast 3 from nothing found at 0: the weakest that was planted is found already.
        assert all(row["contrast_sd_50"] == pytest.approx({"darker": -1.5, "brighter": 1.5}[row["sign"]])
                   for row in level["limits"])  # fmt: skip
    assert all(r["covered"][0] == 1 and r["dice"][0] > 0.3 for r in lesions)


def test_a_blind_detector_finds_only_where_its_false_positives_lie_anyway() -> None:
    volumes = small_volumes(8)
    blind = Scorer(lambda some: [masked(smooth_noise(v), v) for v in some])
    result, lesions = measure_limits(blind, volumes[:3], volumes[3:6], volumes[6:], settings(per_cell=9), quiet())
    assert all(r["found"] == r["found_without"] and r["score_rise_sd"] == 0 for r in lesions)
    strictest = result["levels"][1]
    assert strictest["id"] == "fp_0.1"
    assert sum(cell["found"] for cell in strictest["cells"]) == 0
    assert all(row["contrast_sd_50"] is None and row["why_50"].startswith("never") for row in strictest["limits"])
    assert result["influence_mm"] == 0
    assert result["interference"]["largest_change_sd"] == 0


def test_voxelwise_z_on_white_noise_has_the_exceedance_that_theory_gives() -> None:
    given = settings(diameters_mm=(24,), contrasts_sd=(-4, -1, 1, 2, 4), per_cell=18, fp_ml_per_scan=(0.1, 30))
    volumes = white_noise(6, seed=1)
    result, lesions = measure_limits(
        Scorer(true_z, 4), volumes[:2], volumes[2:], white_noise(30, seed=2), given, quiet()
    )
    sigma = float(np.median(healthy_deviation(white_noise(30, seed=2))))
    flat = Volume(np.full((1, 36, 36, 36), 0.5), volumes[0].grid, volumes[0].brain_mask, "flat", ("T1",))
    for number, level in enumerate(result["levels"]):
        threshold = level["threshold"]["mean"]
        voxels = volumes[0].brain_mask.sum()
        budget = {"own": 0.01 * voxels * 0.027, "fp_0.1": 0.1, "fp_30": 30}[level["id"]]
        # Two-sided normal tail: 2 (1 - Φ(τ)) of the brain's volume, at a threshold that is out of sample here.
        assert 2 * norm.sf(threshold) * voxels * 0.027 == pytest.approx(budget, rel=0.6 if budget < 1 else 0.1)
        assert level["false_positive_ml_per_scan"] == pytest.approx(budget, rel=1.0 if budget < 1 else 0.15)
        for contrast in given.contrasts_sd:
            here = [r for r in lesions if r["contrast_sd"] == contrast]
            expected = []
            for record in here:
                lesion = Placed(Lesion(record["number"], 24, contrast, "brain"), tuple(record["centre_mm"]))
                planted, (mark,) = plant_lesions(flat, [lesion], np.full((1, 36, 36, 36), sigma, np.float32), 0)
                shift = (planted.voxels[0].reshape(-1)[mark.inside] - 0.5) / SIGMA
                expected.append(np.mean(norm.sf(threshold - shift) + norm.sf(threshold + shift)))
            assert np.mean([r["covered"][number] for r in here]) == pytest.approx(np.mean(expected), abs=0.025)
            cell = next(c for c in level["cells"] if c["contrast_sd"] == contrast and c["site"] == "all")
            # 26-connected site percolation sets in near 0.1: above it one component holds nearly all voxels.
            if np.mean(expected) > 0.25:
                assert cell["sensitivity"] == 1
            if np.mean(expected) < 0.03:
                assert cell["sensitivity"] == 0


def test_every_cell_of_the_design_has_the_same_number_of_lesions() -> None:
    lesions = design((4, 8), (-1, 1), ("grey", "white", "deep"), 5, seed=3)
    counts = Counter((x.diameter_mm, x.contrast_sd, x.site) for x in lesions)
    assert set(counts.values()) == {5}
    assert len(counts) == 12
    assert [x.number for x in lesions] == list(range(60))
    assert [dataclasses.astuple(x) for x in design((4, 8), (-1, 1), ("grey", "white", "deep"), 5, seed=4)] != [
        dataclasses.astuple(x) for x in lesions
    ]


def test_lesions_of_one_scan_lie_apart_in_their_sites_and_inside_the_brain() -> None:
    template = working_template(4.0)
    hosts = [dataclasses.replace(template, subject_id=name) for name in ("a", "b")]
    places = [host_of(v, ("grey", "white", "deep"), (8, 16)) for v in hosts]
    wanted = design((8, 16), (-2, 2), ("grey", "white", "deep"), 4, seed=0)
    plantings, homeless = share_out(wanted, places, gap_mm=16.0, seed=0)
    assert not homeless
    assert sorted(p.lesion.number for planting in plantings for p in planting.lesions) == list(range(len(wanted)))
    deviation = np.full((1, *template.grid.shape), 0.05, dtype=np.float32)
    for planting in plantings:
        _, marks = plant_lesions(hosts[0], planting.lesions, deviation, 0)
        for (a, first), (b, second) in itertools.combinations(zip(planting.lesions, marks, strict=True), 2):
            assert (
                np.linalg.norm(np.subtract(a.centre_mm, b.centre_mm))
                >= 16 + (a.lesion.diameter_mm + b.lesion.diameter_mm) / 2
            )
            assert not set(first.inside) & set(second.inside)
            assert not set(first.around) & set(second.inside)
        for placed, mark in zip(planting.lesions, marks, strict=True):
            kept = len(mark.inside) * template.grid.voxel_volume_mm3 / (np.pi / 6 * placed.lesion.diameter_mm**3)
            assert kept > (0.6 if placed.lesion.diameter_mm == 16 else 0.4)  # a ball of 8 mm is four voxels
    centres = {site: np.mean([np.abs(p).max() for p in places[0].centres_mm[site]]) for site in ("grey", "deep")}
    assert centres["deep"] < centres["grey"]


def test_a_lesion_fills_the_volume_of_its_ball_and_changes_nothing_elsewhere() -> None:
    (volume,) = white_noise(1, seed=5, spacing=2.0)
    deviation = np.full((1, 36, 36, 36), SIGMA, dtype=np.float32)
    for diameter, contrast in itertools.product((4.0, 6.0, 12.0, 24.0), (-3.0, 2.0)):
        placed = Placed(Lesion(int(diameter), diameter, contrast, "brain"), (35.3, 36.1, 34.8))
        planted, (mark,) = plant_lesions(volume, [placed], deviation, seed=1)
        shift = (planted.voxels[0].astype(np.float64) - volume.voxels[0]) / (contrast * SIGMA)
        assert shift.sum() * 8 == pytest.approx(np.pi / 6 * diameter**3, rel=0.04 if diameter > 5 else 0.1)
        assert shift.min() >= -1e-6
        assert shift.max() <= 1 + 1e-4
        assert shift.reshape(-1)[mark.inside].min() > 0.49
        outside = np.setdiff1d(np.arange(shift.size), mark.around)
        assert np.array_equal(planted.voxels[0].reshape(-1)[outside], volume.voxels[0].reshape(-1)[outside])
        away = np.array(np.unravel_index(mark.around, volume.grid.shape)).T * 2.0 - placed.centre_mm
        assert np.linalg.norm(away, axis=1).max() <= diameter / 2 * 1.31 + NEIGHBOURHOOD_MM


def test_a_lesion_is_clipped_as_the_preparation_clips_and_says_what_is_left_of_its_contrast() -> None:
    (volume,) = white_noise(1, seed=6, spacing=2.0)
    bright = dataclasses.replace(volume, voxels=np.full_like(volume.voxels, 0.95))
    deviation = np.full((1, 36, 36, 36), 0.05, dtype=np.float32)
    placed = Placed(Lesion(0, 12.0, 4.0, "brain"), (36.0, 36.0, 36.0))
    planted, (mark,) = plant_lesions(bright, [placed], deviation, seed=0)
    assert planted.voxels.max() == 1.0
    assert mark.contrast_sd == pytest.approx(1.0, abs=1e-3)
    _, (darker,) = plant_lesions(bright, [Placed(Lesion(0, 12.0, -4.0, "brain"), placed.centre_mm)], deviation, seed=0)
    assert -4.0 <= darker.contrast_sd < -3.3


def test_a_planted_scan_never_sets_its_own_threshold() -> None:
    volumes = white_noise(5, seed=7)
    loud = dataclasses.replace(volumes[1], voxels=0.5 + 3 * (volumes[1].voxels - 0.5))
    results = [
        measure_limits(
            Scorer(true_z),
            [volumes[0], planted, volumes[2]],
            [planted, volumes[0], volumes[3]],
            volumes,
            settings(),
            quiet(),
        )[0]
        for planted in (volumes[1], loud)
    ]
    for level, with_loud in zip(results[0]["levels"], results[1]["levels"], strict=True):
        mine, other, free = (v.subject_id for v in (volumes[1], volumes[0], volumes[3]))
        assert level["threshold"]["by_scan"][mine] == with_loud["threshold"]["by_scan"][mine]
        assert level["threshold"]["by_scan"][other] < with_loud["threshold"]["by_scan"][other]
        assert level["threshold"]["by_scan"][free] < with_loud["threshold"]["by_scan"][free]
    by_hand = threshold_at_quantile([m.scores.reshape(-1) for m in true_z([volumes[0], volumes[2]])], 0.99)
    assert results[0]["levels"][0]["threshold"]["by_scan"][volumes[1].subject_id] == by_hand
    assert results[0]["scans"][0]["thresholds_from"] == 2
    assert results[0]["scans"][2]["thresholds_from"] == 3


def test_one_calibration_scan_that_is_planted_itself_is_refused() -> None:
    volumes = white_noise(3, seed=8)
    with pytest.raises(BadInput, match="cannot set the threshold"):
        measure_limits(Scorer(true_z), volumes[:1], volumes[:1], volumes, settings(), quiet())


def test_a_lone_lesion_is_found_by_the_rule_of_the_lesion_report() -> None:
    rng = np.random.Generator(np.random.Philox(9))
    grid = Grid((14, 14, 14), np.diag([2.0, 2.0, 2.0, 1.0]))
    verdicts = Counter[bool]()
    for _ in range(150):
        lesion = np.zeros(grid.shape, dtype=bool)
        low = rng.integers(2, 6, 3)
        high = low + rng.integers(2, 7, 3)
        lesion[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
        mask = Mask(rng.random(grid.shape) < rng.choice([0.01, 0.05, 0.12, 0.4]), grid)
        report = lesion_report(
            ScoreMap(rng.random(grid.shape).astype(np.float32), grid, "s", ""), mask, Mask(lesion, grid)
        )
        labels = components(mask).reshape(-1)
        found, covered = lone_match(np.flatnonzero(lesion), labels, np.bincount(labels))
        assert (found, covered) == (report.lesions[0].found, pytest.approx(report.lesions[0].overlap))
        verdicts[found] += 1
    assert min(verdicts.values()) > 20


def test_wilson_intervals_are_those_of_the_textbook() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(12, 12)[1] == 1.0


def test_the_monotone_fit_is_isotonic_regression() -> None:
    from sklearn.isotonic import isotonic_regression

    rng = np.random.Generator(np.random.Philox(10))
    for _ in range(20):
        values, weights = rng.random(6), rng.integers(1, 9, 6).astype(float)
        assert monotone(values, weights) == pytest.approx(isotonic_regression(values, sample_weight=weights))


def test_the_contrast_that_reaches_a_sensitivity_is_interpolated_or_says_why_not() -> None:
    assert contrast_reaching(0.5, [1, 2, 3], [0, 4, 8], [10, 10, 10], 0.0) == (pytest.approx(2.25), None)
    assert contrast_reaching(0.8, [-1, -2, -3], [0, 4, 8], [10, 10, 10], 0.0) == (pytest.approx(3.0), None)
    assert contrast_reaching(0.9, [1, 2, 3], [0, 4, 8], [10, 10, 10], 0.0)[0] is None
    assert contrast_reaching(0.5, [1, 2], [8, 9], [10, 10], 0.6)[1] == "reached without any lesion, by false positives"
    # A dip is levelled: 6 of 10 and 4 of 10 become one half each.
    assert contrast_reaching(0.5, [1, 2, 3], [6, 4, 9], [10, 10, 10], 0.0)[0] == pytest.approx(1.0)


def test_limits_run_from_the_weakest_contrast_to_the_strongest_of_each_sign() -> None:
    found = {-3.0: 9, -2.0: 6, -1.0: 2, 1.0: 0, 2.0: 1, 3.0: 3}
    records = [
        {"diameter_mm": 8.0, "contrast_sd": contrast, "site": "grey", "found": [i < n], "found_without": [i < 1]}
        | {"dice": [0.0], "covered": [0.0]}
        for contrast, n in found.items()
        for i in range(10)
    ]
    cells = sensitivity_cells(records, 0)
    assert [(c["contrast_sd"], c["found"], c["n"]) for c in cells if c["site"] == "grey"] == [
        (contrast, n, 10) for contrast, n in found.items()
    ]
    darker, brighter = (row for row in contrast_limits(cells) if row["site"] == "all")
    assert darker["contrast_sd_50"] == pytest.approx(-1.75)  # from 20 % at 1 to 60 % at 2
    assert darker["contrast_sd_80"] == pytest.approx(-2 - 2 / 3)
    assert darker["found_without_lesion"] == pytest.approx(0.1)
    assert (brighter["contrast_sd_50"], brighter["why_50"]) == (None, "never, up to the strongest contrast")


@pytest.mark.parametrize("run_id", ["tiny", "tiny-intensity"])
def test_a_run_of_any_detector_gets_its_limits_twice_the_same(own_study: TinyStudy, run_id: str) -> None:
    run = open_run(own_study.runs, run_id)
    layer_set = "input+stage1" if run_id == "tiny" else None
    first = run_detection_limits(run, quiet(), layer_set=layer_set, **TINY)
    cells = first["levels"][0]["cells"]
    assert {c["n"] for c in cells if c["site"] != "all"} == {2}
    assert {c["n"] for c in cells if c["site"] == "all"} == {6}
    assert [level["id"] for level in first["levels"]] == ["own", "fp_0.1", "fp_1", "fp_5", "fp_20"]
    assert json.loads(json.dumps(first, allow_nan=False)) == first
    assert stored_detection_limits(run, first["layer_set"]) == first
    planted = planted_lesions(run, first["layer_set"])
    assert len(planted) == first["n_lesions"] == 24
    again = run_detection_limits(run, quiet(), layer_set=layer_set, **TINY, seed=1)
    assert without_seconds(again) != without_seconds(first)
    repeated = run_detection_limits(run, quiet(), layer_set=layer_set, **TINY)
    assert without_seconds(repeated) == without_seconds(first)
    assert planted_lesions(run, first["layer_set"]) == planted


def test_a_result_is_read_and_not_computed_again(own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(own_study.runs, "tiny-intensity")
    first = run_detection_limits(run, quiet(), **TINY)
    monkeypatch.setattr(detection_limits, "measure_limits", lambda *given: pytest.fail("computed again"))
    assert run_detection_limits(run, quiet(), **TINY) == first
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        run_detection_limits(run, quiet(), **(TINY | {"per_cell": 1}))


def test_limits_of_another_threshold_rule_or_detector_are_not_shown(own_study: TinyStudy) -> None:
    run = open_run(own_study.runs, "tiny-intensity")
    first = run_detection_limits(run, quiet(), **TINY)
    evaluate_run(run, quiet(), workers=1)
    assert stored_detection_limits(run, "intensity") == first  # the rule is the usual one still
    asked: tuple[dict[str, float], ...] = ({"quantile": 0.9}, {"fp_ml_per_scan": 1.0})
    for changed in asked:
        evaluate_run(run, quiet(), workers=1, **changed)
        assert stored_detection_limits(run, "intensity") is None
    anew = run_detection_limits(run, quiet(), **TINY)
    assert "at most 1 mL" in anew["levels"][0]["title"]
    assert stored_detection_limits(run, "intensity") == anew
    recommit(run.directory / "detector", {"detector.json": "{}"})
    assert stored_detection_limits(run, "intensity") is None


def test_damaged_limits_are_not_shown(own_study: TinyStudy) -> None:
    run = open_run(own_study.runs, "tiny-intensity")
    run_detection_limits(run, quiet(), **TINY)
    path = run.directory / detection_limits.DIRECTORY / "intensity" / "result.json"
    found = path.read_text()
    path.write_text(found.replace('"n_scans"', '"n_scanz"'))
    with pytest.raises(IntegrityError, match=r"result\.json is damaged"):
        stored_detection_limits(run, "intensity")
    run_detection_limits(run, quiet(), **TINY)
    assert path.read_text() == found


def test_limits_in_text_name_contrast_reason_and_number() -> None:
    level = {
        "id": "fp_5", "asked_ml_per_scan": 5.0, "false_positive_ml_per_scan": 3.21,
        "cells": [
            {"diameter_mm": 8.0, "contrast_sd": c, "site": site, "n": n}
            for c, site, n in ((2.0, "all", 6), (4.0, "all", 5), (-4.0, "all", 3), (4.0, "grey", 2))
        ],
        "limits": [
            {"diameter_mm": 8.0, "site": "all", "sign": "brighter", "contrast_sd_50": 2.5, "why_50": None,
             "contrast_sd_80": None, "why_80": "never, up to the strongest contrast"},
            {"diameter_mm": 8.0, "site": "grey", "sign": "brighter", "contrast_sd_50": 1.0, "why_50": None,
             "contrast_sd_80": 2.0, "why_80": None},
        ],
    }  # fmt: skip
    heading, *rows = limit_lines({"levels": [level]})
    assert heading == ["false positives", "diameter", "sign", "50 % found at", "80 % found at", "planted"]
    assert rows == [
        ["5 mL asked (3.2 mL per healthy scan)", "8 mm", "brighter", "+2.5 SD", "never, up to the strongest contrast",
         "11"]
    ]  # fmt: skip


def test_a_stopped_measurement_leaves_the_result_that_was_there(
    own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(own_study.runs, "tiny-intensity")
    first = run_detection_limits(run, quiet(), **TINY)
    monkeypatch.setenv("DICESCOPE_FAULT", "commit.before_manifest:1:enospc")
    monkeypatch.setattr("data.whole_files._fault_hits", Counter())
    with pytest.raises(EnvironmentProblem):
        run_detection_limits(run, quiet(), **TINY, seed=1)
    assert stored_detection_limits(run, "intensity") == first
    assert not list((run.directory / detection_limits.DIRECTORY).glob(".tmp-*"))


def test_padim_with_smoothing_and_two_dimensional_features_is_measured_too(own_study: TinyStudy) -> None:
    source = DataSource(own_study.table, preprocessing=PREPROCESSING)
    padim = make("padim", {"features": FeatureSettings(layers=("layer1",), grid="8mm")})
    run = fitting.fit(own_study.runs, source, padim, quiet(), name="padim", run_id="padim")
    result = run_detection_limits(run, quiet(), **(TINY | {"per_cell": 1}))
    assert result["n_lesions"] == 12
    assert result["gap_mm"] >= 2 * NEIGHBOURHOOD_MM


def test_a_lesion_of_a_real_run_scores_alone_as_it_does_among_others(own_study: TinyStudy) -> None:
    run = open_run(own_study.runs, "tiny")
    result = run_detection_limits(run, quiet(), **(TINY | {"diameters_mm": (8,)}))
    check = result["interference"]
    assert max(check["in_scans_of"]) > 1
    assert check["largest_change_sd"] <= 2 * interference.TOLERANCE_SD
    assert result["together"]
    assert result["n_plantings"] < result["n_lesions"]


def test_a_detector_that_compares_with_the_whole_scan_gets_its_lesions_one_by_one() -> None:
    volumes = white_noise(6, seed=12)

    def relative(some: Sequence[Volume]) -> list[ScoreMap]:
        """|z| above the scan's own mean |z|, exaggerated: a second lesion anywhere hides the first."""
        raw = true_z(some)
        return [dataclasses.replace(m, scores=m.scores - 200 * (m.scores.mean() - np.float32(0.7979))) for m in raw]

    given = settings(contrasts_sd=(-4, 4), diameters_mm=(12, 16))
    result, lesions = measure_limits(Scorer(relative, 4), volumes[:3], volumes[3:], volumes, given, quiet())
    assert result["interference"]["verdicts_changed"] > 0
    assert not result["together"]
    assert result["n_plantings"] == len(lesions) == 12
    assert any("planted alone" in note for note in result["notes"])
    local, _ = measure_limits(Scorer(true_z, 4), volumes[:3], volumes[3:], volumes, given, quiet())
    assert local["together"]
    assert local["n_plantings"] < 12


def test_a_bright_lesion_raises_the_score_of_the_bright_detector(own_study: TinyStudy) -> None:
    result = run_detection_limits(open_run(own_study.runs, "tiny-intensity"), quiet(), **TINY)
    rise = {s["contrast_sd"]: s["score_rise_sd"] for s in result["strength"]
            if s["diameter_mm"] == 16 and s["site"] == "all"}  # fmt: skip
    assert rise[4] > 0 > rise[-4]
    assert [r["sign"] for r in contrast_limits(result["levels"][0]["cells"])[:2]] == ["darker", "brighter"]


def test_the_threshold_is_that_of_the_run_and_calibration_scans_stand_in_for_missing_test_scans(
    own_study: TinyStudy,
) -> None:
    run = open_run(own_study.runs, "tiny-intensity")
    scores = open_scores(run)
    own = threshold_at_quantile([scores.voxels(i, scores.layers, "working").normal
                                 for i in scores.subjects("calibration")], 0.99)  # fmt: skip
    result = run_detection_limits(run, quiet(), **TINY)
    assert [scan["subject_id"] for scan in result["scans"]] == ["test04", "calibration01", "calibration02"]
    assert [scan["thresholds_from"] for scan in result["scans"]] == [2, 1, 1]
    assert result["levels"][0]["threshold"]["by_scan"]["test04"] == own
    assert "leave" in result["hosts_rule"] or "all the other calibration scans" in result["hosts_rule"]


def fitted_on_healthy_scans_alone(study: TinyStudy) -> Run:
    kept = [s for s in read_table(study.table).subjects if s.subject_id not in ILL and s.role != "test"]
    write_table(study.table, kept)
    source = DataSource(study.table, preprocessing=PREPROCESSING)
    preparing.prepare(study.runs, source, quiet(), workers=1)
    return fitting.fit(study.runs, source, make("zscore"), quiet(), name="healthy", run_id="healthy")


def test_a_cohort_without_a_single_labelled_or_test_subject_has_its_limits(own_study: TinyStudy) -> None:
    run = fitted_on_healthy_scans_alone(own_study)
    assert not run.record["split"]["test"]
    assert not run.record["split"]["validation"]
    result = run_detection_limits(run, quiet(), **TINY)
    assert result["n_lesions"] == 24
    assert {scan["subject_id"] for scan in result["scans"]} == {"calibration01", "calibration02"}


def test_what_cannot_be_planted_is_refused_with_what_can(own_study: TinyStudy) -> None:
    run = open_run(own_study.runs, "tiny-intensity")
    with pytest.raises(BadInput, match="Scans test01 cannot be planted"):
        run_detection_limits(run, quiet(), scans=["test01"], **TINY)
    with pytest.raises(BadInput, match="sites grey, white, deep, brain"):
        run_detection_limits(run, quiet(), sites=("cerebellum",), **TINY)
    with pytest.raises(BadInput, match="contrasts other than 0"):
        run_detection_limits(run, quiet(), **(TINY | {"contrasts_sd": (0, 1)}))
    with pytest.raises(BadInput, match="Ask for the site 'brain'"):
        host_of(small_volumes(1)[0], ("grey",), (8,))


def test_a_size_that_fits_nowhere_leaves_its_cells_empty_and_says_so() -> None:
    volumes = white_noise(4, seed=11)
    small = dataclasses.replace(volumes[0], brain_mask=np.pad(np.ones((8, 8, 8), bool), 14))
    wanted = design((6, 60), (2,), ("brain",), 3, seed=0)
    plantings, homeless = share_out(wanted, [host_of(small, ("brain",), (6, 60))], 16.0, seed=0)
    assert {x.diameter_mm for x in homeless} == {60}
    assert len(homeless) == 3
    assert sum(len(p.lesions) for p in plantings) == 3


def test_figures_show_every_number_and_every_size(own_study: TinyStudy) -> None:
    result = run_detection_limits(open_run(own_study.runs, "tiny-intensity"), quiet(), **TINY)
    figure = figures_limits.sensitivity_map(result)
    cells = sensitivity_cells(planted_lesions(open_run(own_study.runs, "tiny-intensity"), "intensity"), 0)
    text = figure.data[1]
    shown = {
        (float(y), float(x.replace("−", "-"))): number for x, y, number in zip(text.x, text.y, text.text, strict=True)
    }
    assert shown == {
        (c["diameter_mm"], c["contrast_sd"]): f"{100 * c['sensitivity']:.0f}" for c in cells if c["site"] == "all"
    }
    curves = figures_limits.sensitivity_curves(result, "fp_5", "white")
    lines = [trace for trace in curves.data if trace.mode == "lines+markers"]
    assert [trace.name for trace in lines] == ["8 mm", "16 mm"]
    assert list(lines[0].x) == [-4, 0, 4]
    assert all("nothing planted" in trace.customdata[1] for trace in lines)
    assert [trace.line.color for trace in lines] == list(figures_limits.SIZES[:2])

"""What-ifs: nothing changed gains nothing, planted causes are undone, and nothing is chosen on the test."""

import dataclasses
import io
import json
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.covariance import OAS, LedoitWolf

from core.detectors.capabilities import refit
from core.detectors.voxel_zscore import VoxelZScore
from core.diagnosis.what_if import of_scans, scored_again, variants
from core.diagnosis.what_if.bench import check_reproduced
from core.diagnosis.what_if.catalogue import CATALOGUE, applicable, best_deployable, run_what_if, stored_what_ifs
from core.diagnosis.what_if.of_scans import jitter_cost, jitter_slope
from core.diagnosis.what_if.paired import best_of_linear_grid, linear_thresholds, paired_evaluation, thresholds_of
from core.disk_plan import what_if_bytes
from core.gaussian.reestimate import reestimate
from core.gaussian.running import fit_gaussian
from core.memory_plan import GaussianSettings
from core.metrics.bootstrap import paired_difference
from core.metrics.exact_curve import best_dice
from core.metrics.subject_scores import SubjectScores, dice_at
from core.progress import Progress
from core.randomness import stream
from core.runs.evaluated import read_metrics
from core.runs.listing import open_run
from core.study.cases import Case
from core.study.data_source import PreparedVolumes, cache_directory
from core.study.evaluation import evaluate_run
from core.study.fitted import load_detector
from core.study.run_scans import prepared_of
from data.errors import BadInput, EnvironmentProblem, IntegrityError
from data.volume import Grid, Volume
from tests.planted import Planted
from tests.study import ILL, small_volumes, with_lesion

SHAPE = (16, 18, 16)
GRID = Grid(SHAPE, np.diag([2.0, 2.0, 2.0, 1.0]))
ROLES = ("calibration", "validation", "test")


def _quiet():
    return Progress(False, io.StringIO())


def _brain():
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    return sum(axis**2 for axis in axes) < 0.9


def _ball(centre, radius=2.5):
    offsets = np.indices(SHAPE) - np.array(centre)[:, None, None, None]
    return (offsets**2).sum(axis=0) <= radius**2


def _case(number, lesion=None, strength=4.0):
    brain = _brain()
    marked = np.zeros(SHAPE, dtype=bool) if lesion is None else lesion & brain
    scores = np.abs(stream(3, "scores", number).normal(size=SHAPE)) + strength * marked
    scores = np.where(brain, scores, np.nan).astype(np.float32)
    volume = Volume(brain[None].astype(np.float32), GRID, brain, f"sub-{number}", ("T1",))
    return Case(f"sub-{number}", lesion is None, volume, marked, scores)


def _sides(centres=((8, 9, 8), (7, 8, 9), (9, 9, 7))):
    return {
        "calibration": [_case(n) for n in (1, 2)],
        "validation": [_case(10 + n, _ball(c)) for n, c in enumerate(centres)],
        "test": [*(_case(20 + n, _ball(c)) for n, c in enumerate(centres)), _case(30)],
    }


def _each(sides, change):
    return {role: [change(case) for case in found] for role, found in sides.items()}


def _run(study, name="tiny"):
    return open_run(study.runs, name)


# what changes nothing gains nothing


def test_a_change_of_nothing_gains_exactly_nothing():
    sides = _sides()
    result = paired_evaluation(sides, _each(sides, lambda case: variants.eroded(case, 0)))
    for protocol in ("healthy", "validation"):
        block = result["test"][protocol]
        assert block["gain"] == block["low"] == block["high"] == 0.0
        assert block["baseline"] == block["variant"] > 0
        assert block["n"] == 3
        assert block["false_ml_before"] == block["false_ml_after"]
        assert result["validation_by_protocol"][protocol]["gain"] == 0.0
    assert result["test"]["healthy"]["false_ml_after"] > 0


def test_changes_of_size_zero_give_back_what_they_were_given():
    case, volume = _case(10, _ball((8, 9, 8))), small_volumes(1)[0]
    assert variants.eroded(case, 0) is case
    assert variants.with_moved_boundary(case, 0) is case
    assert variants.without_border(case, 0) is case
    assert variants.shifted(volume, (0.0, 0.0, 0.0)) is volume
    assert variants.moved(volume, (0.0, 0.0, 0.0)) is volume
    own = variants.score_quantiles(case)
    np.testing.assert_array_equal(variants.with_scores_mapped(case, own, own).scores, case.scores)
    assert scored_again.nested_subset(9, 1, seed=5) == tuple(range(9))


# masks


def test_an_eroded_mask_undoes_a_skull_remnant():
    clean = _sides()
    rim = variants.depth_mm(_brain(), GRID.spacing_mm)
    remnant = _brain() & (rim < 2.1) & (np.arange(SHAPE[2]) > 9)

    def stained(case):
        scores = np.where(remnant, np.float32(9.0), case.scores)
        return case if case.subject_id in ("sub-1", "sub-2") else dataclasses.replace(case, scores=scores)

    dirty = _each(clean, stained)
    lost = paired_evaluation(clean, dirty)["test"]["healthy"]["gain"]
    won = paired_evaluation(dirty, _each(dirty, lambda case: variants.eroded(case, 2.0)))["test"]["healthy"]
    assert lost < -0.15
    assert won["gain"] >= -0.8 * lost
    assert won["false_ml_after"] < 0.2 * won["false_ml_before"]


def test_erosion_cannot_cheat_lesion_voxels_it_drops_are_missed():
    sides = _sides(centres=((8, 9, 1), (8, 9, 2), (7, 9, 1)))
    case = sides["test"][0]
    after = variants.eroded(case, 2.0)
    dropped = case.lesion & ~np.isfinite(after.scores)
    assert dropped.any()
    assert after.voxels.lesion_unreachable_voxels == np.count_nonzero(dropped)
    assert after.voxels.n_lesion == case.voxels.n_lesion
    gained = paired_evaluation(sides, _each(sides, lambda one: variants.eroded(one, 4.0)))["test"]["healthy"]["gain"]
    assert gained < 0


def test_depth_counts_millimetres_from_the_outside_and_holes_are_brain():
    mask = np.zeros((9, 9, 9), dtype=bool)
    mask[1:8, 1:8, 1:8] = True
    mask[4, 4, 4] = False
    depth = variants.depth_mm(mask, (1.0, 2.0, 3.0))
    assert depth[1, 4, 3] == pytest.approx(1.0)
    assert depth[3, 4, 3] == pytest.approx(3.0)
    assert depth[4, 1, 3] == pytest.approx(2.0)
    assert depth[4, 4, 4] == 0.0
    assert depth[4, 4, 3] == pytest.approx(4.0)
    full = variants.depth_mm(np.ones((5, 5, 5), dtype=bool), (1.0, 1.0, 1.0))
    assert full[0, 2, 2] == pytest.approx(1.0)


def test_a_template_depth_cuts_what_lies_outside_the_template():
    case = _case(10, _ball((8, 9, 8)))
    template = variants.depth_mm(_ball((8, 9, 8), 5.0), GRID.spacing_mm)
    kept = np.isfinite(variants.eroded(case, 0.0, template=template).scores)
    np.testing.assert_array_equal(kept, _brain() & _ball((8, 9, 8), 5.0))
    with pytest.raises(BadInput, match="one grid"):
        variants.eroded(case, 0.0, template=template[1:])


# labels


def test_the_boundary_moves_over_faces_and_stays_in_the_brain():
    lesion = np.zeros(SHAPE, dtype=bool)
    lesion[7:10, 7:10, 7:10] = True
    case = _case(10, lesion)
    assert variants.with_moved_boundary(case, 1).lesion.sum() == 27 + 6 * 9
    assert variants.with_moved_boundary(case, -1).lesion.sum() == 1
    rim = np.zeros(SHAPE, dtype=bool)
    rim[np.unravel_index(np.flatnonzero(_brain())[0], SHAPE)] = True
    grown = variants.with_moved_boundary(_case(11, rim), 1)
    assert not (grown.lesion & ~_brain()).any()


def test_the_border_band_is_judged_in_neither_class():
    lesion = np.zeros(SHAPE, dtype=bool)
    lesion[7:10, 7:10, 7:10] = True
    before, after = _case(10, lesion).voxels, variants.without_border(_case(10, lesion)).voxels
    assert len(before.anomalous) - len(after.anomalous) == 26
    assert len(before.normal) - len(after.normal) == 6 * 9
    assert after.lesion_unreachable_voxels == 0


def test_a_subject_whose_lesion_vanishes_is_left_out_of_both_sides():
    sides = _sides()
    tiny = np.zeros(SHAPE, dtype=bool)
    tiny[8, 9, 8] = True
    sides["test"][0] = _case(20, tiny)
    block = paired_evaluation(sides, _each(sides, variants.without_border))["test"]["healthy"]
    assert block["n"] == 2
    assert [row["subject_id"] for row in block["subjects"]] == ["sub-21", "sub-22"]
    assert block["baseline"] == pytest.approx(np.mean([row["before"] for row in block["subjects"]]))


# scores and intensities


def test_a_quantile_map_keeps_order_and_meets_the_reference():
    values = stream(1, "map").gamma(2.0, size=5000).astype(np.float32)
    own = np.quantile(values.astype(float), variants.ROBUST)
    target = np.sqrt(own) + 1
    mapped = variants.quantile_map(values, own, target)
    np.testing.assert_allclose(np.quantile(mapped, variants.ROBUST), target, rtol=1e-3)
    assert (np.diff(mapped[np.argsort(values)]) >= 0).all()
    assert np.isnan(variants.quantile_map(np.array([np.nan], np.float32), own, target)).all()


def test_a_gain_and_an_offset_are_undone_even_in_the_tail():
    values = stream(2, "gain").normal(5, 1, size=3000).astype(np.float32)
    own = np.quantile(1.2 * values.astype(float) + 3, variants.ROBUST)
    reference = np.quantile(values.astype(float), variants.ROBUST)
    for used in (slice(None), [1, 5]):
        back = variants.quantile_map(np.float32(1.2) * values + np.float32(3), own[used], reference[used])
        np.testing.assert_allclose(back, values, atol=1e-4)


def test_calibrating_each_subject_undoes_scores_that_are_scaled_per_subject():
    clean = _sides()
    factors = dict(zip(("sub-20", "sub-21", "sub-22"), (0.6, 1.5, 2.0), strict=True))

    def scaled(case):
        return dataclasses.replace(case, scores=case.scores * np.float32(factors.get(case.subject_id, 1.0)))

    dirty = _each(clean, scaled)
    reference = np.mean([variants.score_quantiles(case) for case in clean["calibration"]], axis=0)
    mended = _each(dirty, lambda c: variants.with_scores_mapped(c, variants.score_quantiles(c), reference))
    lost = paired_evaluation(clean, dirty)["test"]["healthy"]["gain"]
    assert lost < -0.1
    assert paired_evaluation(dirty, mended)["test"]["healthy"]["gain"] > -0.8 * lost


def test_the_deployable_calibration_never_sees_the_lesion_and_the_oracle_does():
    case = _case(10, _ball((8, 9, 8), 4.0))
    other = dataclasses.replace(case, lesion=np.roll(case.lesion, 3, axis=0))
    np.testing.assert_array_equal(variants.score_quantiles(case), variants.score_quantiles(other))
    oracle = [variants.score_quantiles(c, without_lesion=True) for c in (case, other)]
    assert (oracle[0] < oracle[1]).any()


def test_renormalising_recovers_a_test_set_that_is_20_percent_brighter():
    train = small_volumes(6)
    detector = VoxelZScore().fit(train)
    healthy, ill = small_volumes(3, seed=1), [with_lesion(v) for v in small_volumes(5, seed=2)]
    reference = np.mean([variants.intensity_quantiles(v) for v in train], axis=0)

    def brighter(volume):
        return dataclasses.replace(volume, voxels=np.float32(1.2) * volume.voxels)

    def scored(change, test_change):
        def cases(pairs, made):
            volumes = [made(volume) for volume, _ in pairs]
            found = scored_again.rescored([detector], volumes, ("voxelzscore",))[0]
            return [
                Case(v.subject_id, lesion is None, v, np.zeros(v.grid.shape, bool) if lesion is None else lesion, s)
                for (v, lesion), s in zip(pairs, found, strict=True)
            ]

        return {
            "calibration": cases([(v, None) for v in healthy], change),
            "validation": cases(ill[:2], change),
            "test": cases(ill[2:], lambda v: change(test_change(v))),
        }

    as_is, plain = scored(lambda v: v, brighter), scored(lambda v: v, lambda v: v)
    lost = paired_evaluation(plain, as_is)["test"]["healthy"]["gain"]
    assert lost < -0.2
    for affine in (True, False):
        mended = scored(lambda v, a=affine: variants.renormalised(v, reference, affine=a), brighter)
        assert paired_evaluation(as_is, mended)["test"]["healthy"]["gain"] > -0.8 * lost


# moved scans


def test_a_scan_shifted_by_whole_voxels_comes_back_exactly_inside():
    volume = small_volumes(1)[0]
    there = variants.shifted(volume, (4.0, 0.0, 0.0))
    inside = variants.depth_mm(volume.brain_mask, (4.0, 4.0, 4.0)) > 5.0
    np.testing.assert_array_equal(there.voxels[0][1:][inside[1:]], volume.voxels[0][:-1][inside[1:]])
    np.testing.assert_array_equal(there.brain_mask, volume.brain_mask)
    assert (there.voxels[0][~volume.brain_mask] == 0).all()
    back = variants.shifted(there, (-4.0, 0.0, 0.0))
    deep = variants.depth_mm(volume.brain_mask, (4.0, 4.0, 4.0)) > 9.0
    np.testing.assert_array_equal(back.voxels[0][deep], volume.voxels[0][deep])


def test_offsets_are_in_the_world_whatever_the_axes_of_the_grid():
    volume = small_volumes(1)[0]
    flipped = Grid(volume.grid.shape, np.diag([-4.0, 4.0, 4.0, 1.0]))
    right = variants.shifted(dataclasses.replace(volume, grid=flipped), (4.0, 0.0, 0.0))
    np.testing.assert_array_equal(right.voxels, variants.shifted(volume, (-4.0, 0.0, 0.0)).voxels)


def test_scores_of_a_moved_scan_come_home_with_the_lesion():
    volume, _ = with_lesion(small_volumes(1)[0])
    there = variants.moved(volume, (4.0, -4.0, 0.0))
    np.testing.assert_array_equal(there.brain_mask[1:, :-1], volume.brain_mask[:-1, 1:])
    scores = np.where(there.brain_mask, there.voxels[0], np.float32(np.nan))
    home = variants.brought_back(scores, volume, (4.0, -4.0, 0.0))
    np.testing.assert_array_equal(np.isfinite(home), volume.brain_mask)
    np.testing.assert_array_equal(home[volume.brain_mask], volume.voxels[0][volume.brain_mask])


def test_half_a_voxel_moves_a_smooth_scan_by_half_a_voxel():
    shape = (24, 24, 24)
    smooth = gaussian_filter(stream(4, "smooth").normal(size=shape), 4.0)
    brain = np.ones(shape, dtype=bool)
    volume = Volume(smooth[None].astype(np.float32), Grid(shape, np.eye(4)), brain, "s", ("T1",))
    twice = variants.shifted(variants.shifted(volume, (0.5, 0.0, 0.0)), (0.5, 0.0, 0.0)).voxels[0]
    once = variants.shifted(volume, (1.0, 0.0, 0.0)).voxels[0]
    core = (slice(6, -6),) * 3
    assert np.abs(twice - once)[core].max() < 0.01 * np.abs(smooth).max()


def test_the_jitter_slope_is_the_line_that_was_planted():
    rows = {"a": -0.1, "b": -0.3}

    def variant(mm):
        subjects = [{"subject_id": i, "before": 0.8, "after": 0.8 + s * mm} for i, s in rows.items()]
        return {"settings": {"millimetres": mm}, "test": {"healthy": {"subjects": subjects}, "validation": None}}

    slope = jitter_slope([variant(mm) for mm in (0.5, 1.0, 2.0)], "healthy")
    assert slope["per_mm"] == pytest.approx(-0.2)
    assert slope["n"] == 2
    cost = jitter_cost(slope, 1.5)
    assert cost["cost"] == pytest.approx(0.3)
    assert cost["low"] <= cost["cost"] <= cost["high"]
    assert jitter_cost(None, 1.5) is None
    assert jitter_slope([variant(1.0)], "validation") is None


def test_the_oracle_takes_each_labelled_subject_at_its_best_offset_and_no_healthy_one():
    there = {role: [case.voxels for case in cases] for role, cases in _sides().items()}
    noisy = _each(_sides(), lambda c: dataclasses.replace(c, scores=c.scores * np.float32(c.healthy) + 1))
    aligned = of_scans._Aligned({role: [case.voxels for case in cases] for role, cases in noisy.items()})
    aligned.offer(there, (0.0, -2.0, 0.0))
    chosen = aligned.scored()
    assert {offset[1] for _, offset, _ in aligned.best.values()} == {-2.0}
    assert [a is b for a, b in zip(chosen["test"], there["test"], strict=True)] == [True, True, True, False]
    assert chosen["calibration"] == aligned.before["calibration"]


def test_the_boundary_distance_of_a_moved_box_is_between_none_and_the_move():
    mask = np.zeros((20, 20, 20), dtype=bool)
    mask[5:15, 5:15, 5:15] = True
    assert variants.boundary_distance_mm(mask, mask, (2.0, 2.0, 2.0)) == 0.0
    assert 0 < variants.boundary_distance_mm(np.roll(mask, 2, axis=0), mask, (2.0, 2.0, 2.0)) < 4.0


# covariances


def _rows(n, d, positions, seed):
    values = stream(seed, "features").normal(size=(n, positions, d)).astype(np.float32)
    return [
        {"a": torch.from_numpy(v[:, : d // 2].copy()), "b": torch.from_numpy(v[:, d // 2 :].copy())} for v in values
    ]


def _fitted(rows, form, d, positions, settings=None):
    lookup = {"a": np.arange(positions), "b": np.arange(positions)}
    chosen = settings or GaussianSettings(form=form, ridge=1e-3)
    return fit_gaussian(rows, lookup, {"a": d // 2, "b": d - d // 2}, chosen, n_subjects=len(rows))


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_a_diagonal_from_a_full_fit_is_the_diagonal_fit(form):
    rows = _rows(9, 6, 5, 1)
    wanted = GaussianSettings(covariance="diagonal", ridge=0.02)
    derived = reestimate(_fitted(rows, form, 6, 5), wanted)
    fitted = _fitted(rows, "auto", 6, 5, wanted)
    new = _rows(2, 6, 5, 2)
    np.testing.assert_allclose(
        derived.mahalanobis_subsets(new, [("a",), ("a", "b")]),
        fitted.mahalanobis_subsets(new, [("a",), ("a", "b")]),
        rtol=1e-5,
    )


@pytest.mark.parametrize(("rule", "reference"), [("ledoit_wolf", LedoitWolf), ("oas", OAS)])
def test_shrunk_covariances_are_those_of_scikit_learn(rule, reference):
    rows, new = _rows(8, 6, 3, 1), _rows(1, 6, 3, 2)
    changed = reestimate(_fitted(rows, "dual", 6, 3), GaussianSettings(shrinkage=rule))
    found = changed.mahalanobis_subsets(new, [("a", "b")])[0, 0]
    for position in range(3):
        samples = np.array([torch.cat([r["a"][position], r["b"][position]]).numpy() for r in rows], dtype=np.float64)
        point = torch.cat([new[0]["a"][position], new[0]["b"][position]]).numpy().astype(np.float64)
        expected = reference().fit(samples).mahalanobis(point[None])[0]
        assert found[position] ** 2 == pytest.approx(expected, rel=1e-3)


def test_the_same_settings_leave_every_distance_as_it_was():
    gaussian = _fitted(_rows(8, 6, 4, 1), "dual", 6, 4)
    new = _rows(3, 6, 4, 2)
    same = reestimate(gaussian, gaussian.settings)
    np.testing.assert_array_equal(
        same.mahalanobis_subsets(new, [("a", "b")]), gaussian.mahalanobis_subsets(new, [("a", "b")])
    )


def test_with_fewer_scans_than_features_a_diagonal_or_shrunk_covariance_helps():
    positions, d = 600, 24
    gaussian = _fitted(_rows(14, d, positions, 1), "dual", d, positions)
    new = _rows(1, d, positions, 2)
    lesion = np.arange(positions) < 60
    for layer in ("a", "b"):
        new[0][layer][torch.from_numpy(lesion)] += 1.2
    found = {}
    for name, settings in (
        ("full", gaussian.settings),
        ("diagonal", GaussianSettings(covariance="diagonal")),
        ("oas", GaussianSettings(shrinkage="oas")),
    ):
        distances = reestimate(gaussian, settings).mahalanobis_subsets(new, [("a", "b")])[0, 0]
        found[name] = best_dice(distances[lesion], distances[~lesion])[0]
    assert found["diagonal"] > found["full"] + 0.1
    assert found["oas"] > found["full"] + 0.1


def test_what_a_fit_did_not_keep_is_not_made_up():
    rows = _rows(9, 6, 5, 1)
    assert reestimate(_fitted(rows, "primal", 6, 5), GaussianSettings(shrinkage="ledoit_wolf")) is None
    diagonal = _fitted(rows, "auto", 6, 5, GaussianSettings(covariance="diagonal"))
    assert reestimate(diagonal, GaussianSettings()) is None


def test_fewer_scans_are_always_among_more_and_in_order():
    half, quarter = (scored_again.nested_subset(40, parts, seed=7) for parts in (2, 4))
    assert (len(half), len(quarter)) == (20, 10)
    assert set(quarter) < set(half)
    assert list(half) == sorted(half)
    assert half != scored_again.nested_subset(40, 2, seed=8)


# thresholds and pairs


def test_no_threshold_depends_on_test_labels():
    sides = _sides()
    relabelled = sides | {
        "test": [
            dataclasses.replace(c, lesion=np.roll(c.lesion, 4, axis=1) & c.volume.brain_mask) for c in sides["test"]
        ]
    }
    one, other = (paired_evaluation(s, _each(s, lambda c: variants.eroded(c, 2.0))) for s in (sides, relabelled))
    assert one["thresholds"] == other["thresholds"]
    assert one["validation_by_protocol"] == other["validation_by_protocol"]
    assert one["test"] != other["test"]


def test_each_side_has_the_threshold_of_its_own_maps():
    sides = _sides()
    louder = _each(sides, lambda c: dataclasses.replace(c, scores=c.scores * np.float32(2)))
    result = paired_evaluation(sides, louder)
    for protocol in ("healthy", "validation"):
        cuts = result["thresholds"][protocol]
        assert cuts["after"] == pytest.approx(2 * cuts["before"], rel=1e-6)
        assert result["test"][protocol]["gain"] == pytest.approx(0.0, abs=1e-9)


def test_different_subjects_are_not_paired():
    sides = _sides()
    with pytest.raises(BadInput, match="same order"):
        paired_evaluation(sides, sides | {"test": sides["test"][::-1]})


def test_without_labelled_validation_nothing_is_chosen_there():
    sides = _sides() | {"validation": []}
    result = paired_evaluation(sides, sides)
    assert result["validation"] is None
    assert result["test"]["validation"] is None
    assert result["test"]["healthy"]["n"] == 3


def test_the_linear_grid_is_what_trying_every_step_gives():
    test = [case.voxels for case in _sides()["test"]]
    cut, dice = best_of_linear_grid(test, steps=17)
    bearing = [s for s in test if s.n_lesion]
    values = np.concatenate([np.concatenate([s.normal, s.anomalous]) for s in bearing])
    steps = np.linspace(values.min(), values.max(), 17).astype(np.float32)
    tried = [np.mean([dice_at(s, float(t)) for s in bearing]) for t in steps]
    assert dice == pytest.approx(max(tried))
    assert cut == pytest.approx(float(steps[int(np.argmax(tried))]))


def test_a_coarse_grid_loses_on_heavy_tailed_scores_and_never_wins_where_it_is_chosen():
    sides = _sides()
    heavy = _each(sides, lambda c: dataclasses.replace(c, scores=np.exp(2 * c.scores)))
    scored = {role: [c.voxels for c in heavy[role]] for role in ROLES}
    exact = thresholds_of(scored)
    coarse = linear_thresholds(scored, exact, steps=100)
    dice = [np.mean([dice_at(s, cut["validation"]) for s in scored["validation"]]) for cut in (exact, coarse)]
    assert dice[1] < dice[0]
    assert coarse["healthy"] >= exact["healthy"]


# the choice


def _result(name, variant, validation, test, deployable=True):
    def block(gain):
        return (
            None
            if gain is None
            else {"baseline": 0.4, "variant": 0.4 + gain, "gain": gain, "low": 0, "high": 1, "n": 9}
        )

    return {
        "name": name,
        "title": name,
        "variants": [
            {
                "id": variant,
                "title": variant,
                "deployable": deployable,
                "validation_by_protocol": {"healthy": block(validation), "validation": block(None)},
                "test": {"healthy": block(test), "validation": block(None)},
            }
        ],
    }


def test_the_best_is_chosen_on_validation_whatever_the_test_says():
    results = [
        _result("a", "loud on test", 0.01, 0.5),
        _result("b", "good on validation", 0.05, -0.02),
        _result("c", "oracle", 0.9, 0.9, deployable=False),
    ]
    best = best_deployable(results)
    assert (best["what_if"], best["variant"], best["gain"]) == ("b", "good on validation", -0.02)
    assert best["chosen_on"] == "validation"
    assert best_deployable([_result("a", "x", -0.01, 0.5), _result("b", "y", None, 0.5)]) is None
    assert best_deployable(results, "validation") is None


# a run


def test_every_what_if_of_a_small_run_keeps_the_contract(own_study, monkeypatch):
    monkeypatch.setattr(of_scans, "SHIFTS_MM", (4.0,))
    run = _run(own_study)
    headline = read_metrics(run)["headline"]
    working = read_metrics(run)["sets"][headline]["working"]["protocols"]
    assert [row["name"] for row in applicable(run) if not row["applies"]] == ["nearest-age"]
    for row in (row for row in applicable(run) if row["applies"]):
        assert row["cost_text"].startswith("about")
        result = run_what_if(run, row["name"], _quiet())
        stored = json.loads((run.directory / "whatifs" / headline / row["name"] / "result.json").read_text())
        assert stored == json.loads(json.dumps(result))
        assert result["argv"][:3] == ["what-if", "tiny", row["name"]]
        made = run.directory / "whatifs" / headline / row["name"]
        n_test = len(run.record["split"]["test"])
        assert sum(path.stat().st_size for path in made.iterdir()) <= what_if_bytes(n_test)
        for variant in result["variants"]:
            assert not (variant["deployable"] and variant["needs_labels"])
            for protocol in ("healthy", "validation"):
                block = variant["test"][protocol]
                assert block["baseline"] == pytest.approx(working[protocol]["mean_dice"], abs=1e-5)
                rows = block["subjects"]
                again = paired_difference([r["after"] for r in rows], [r["before"] for r in rows], seed=0)
                assert (again.mean, again.low, again.high) == (block["gain"], block["low"], block["high"])
            assert variant["validation"] == variant["validation_by_protocol"]["validation"]
        for cost in result.get("jitter", {}).get("cost", {}).values():
            assert cost["low"] <= cost["cost"] <= cost["high"]
        for variant in result["variants"]:
            if variant["id"] == "oracle-align":
                assert variant["needs_labels"]
                assert set(variant["settings"]["offset_mm"]) == {*ILL}
    assert [r["name"] for r in stored_what_ifs(run, headline)] == [name for name in CATALOGUE if name != "nearest-age"]
    chosen = best_deployable(stored_what_ifs(run, headline))
    assert chosen is None or chosen["validation"]["gain"] > 0


def test_scans_of_the_nearest_age_find_what_hides_among_other_ages(tmp_path):
    """Old brains are darker: what is usual among them is not usual among the young, and the other way round."""
    planted = Planted(tmp_path, "ages")
    result = run_what_if(planted.run(), "nearest-age", _quiet())
    nearest, anyone = result["variants"]
    assert [v["deployable"] for v in (nearest, anyone)] == [True, False]
    assert nearest["test"]["validation"]["gain"] > 0.1
    assert nearest["test"]["validation"]["gain"] > anyone["test"]["validation"]["gain"] + 0.1
    assert len(nearest["settings"]["ages"]) == 3


def test_without_ages_it_is_said_that_they_are_missing(study):
    row = next(r for r in applicable(open_run(study.runs, "tiny")) if r["name"] == "nearest-age")
    assert row["missing"] == "ages: the cohort's table gives none for 12 of 12 subjects"


def test_a_stored_result_is_reused_until_the_evaluation_changes(own_study):
    run = _run(own_study)
    first = run_what_if(run, "dont-care", _quiet(), layer_set="stage1")
    assert first["layer_set"] == "stage1"
    assert run_what_if(run, "dont-care", _quiet(), layer_set="stage1") == first
    evaluate_run(run, _quiet(), quantile=0.95, workers=1)
    assert stored_what_ifs(run, "stage1") == []
    later = run_what_if(run, "dont-care", _quiet(), layer_set="stage1")
    assert later["key"] != first["key"]
    before = [r["variants"][0]["thresholds"]["healthy"]["before"] for r in (first, later)]
    assert before[1] < before[0]


def test_a_write_that_fails_or_a_damaged_result_is_made_good_by_the_same_call(own_study, monkeypatch):
    run = _run(own_study)
    headline = read_metrics(run)["headline"]
    monkeypatch.setattr("data.whole_files._fault_hits", Counter())
    monkeypatch.setenv("DICESCOPE_FAULT", "commit.before_manifest:1:enospc")
    with pytest.raises(EnvironmentProblem):
        run_what_if(run, "dont-care", _quiet())
    monkeypatch.delenv("DICESCOPE_FAULT")
    assert stored_what_ifs(run, headline) == []
    abandoned = run.directory / "whatifs" / headline / ".tmp-new-of-a-killed-process"
    abandoned.mkdir()
    result = run_what_if(run, "dont-care", _quiet())
    assert not abandoned.exists()
    path = run.directory / "whatifs" / headline / "dont-care" / "result.json"
    path.write_text(path.read_text().replace("dont-care", "dont-worry"))
    with pytest.raises(IntegrityError, match=r"result\.json is damaged"):
        stored_what_ifs(run, headline)
    damaged: list[str] = []
    assert stored_what_ifs(run, headline, damaged) == []
    assert len(damaged) == 1
    assert run_what_if(run, "dont-care", _quiet())["variants"] == result["variants"]
    assert len(stored_what_ifs(run, headline)) == 1


def test_what_does_not_apply_is_refused_with_what_does(study):
    run = _run(study, "tiny-intensity")
    rows = {row["name"]: row for row in applicable(run)}
    assert {name for name, row in rows.items() if not row["applies"]} == {
        "renormalise",
        "covariance",
        "fewer-scans",
        "nearest-age",
    }
    assert "rank" in rows["renormalise"]["missing"]
    with pytest.raises(BadInput, match=r"needs a Gaussian over features.*erode-mask"):
        run_what_if(run, "covariance", _quiet())
    with pytest.raises(BadInput, match="these apply: erode-mask"):
        run_what_if(run, "magic", _quiet())
    with pytest.raises(BadInput, match="Allowed: healthy, validation"):
        run_what_if(run, "erode-mask", _quiet(), protocol="test")


def test_a_refit_to_all_scans_gives_the_same_distances(study):
    run = _run(study)
    detector = load_detector(run)
    keys = {s["subject_id"]: s["key"] for s in run.record["cohort"]["subjects"]}
    train = PreparedVolumes(cache_directory(study.runs), tuple(keys[i] for i in run.record["split"]["train"]))
    volumes = [prepared_of(run, i).volume for i in run.record["split"]["test"][:2]]
    everything = detector.features.layers
    same = refit(detector, [train[i] for i in scored_again.nested_subset(len(train), 1, seed=0)])
    own, again = scored_again.rescored([detector, same], volumes, everything)
    for one, other in zip(own, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_narrowed_detector_scores_its_layers_as_the_whole_one_does(study):
    run = _run(study)
    detector = load_detector(run)
    volume = prepared_of(run, run.record["split"]["test"][0]).volume
    for layers in (("input",), ("stage1", "stage2")):
        small = detector.narrowed(layers)
        assert small.features.layers == small.gaussian_.layers == layers
        whole = scored_again.rescored([detector], [volume], layers)[0][0]
        np.testing.assert_allclose(scored_again.rescored([small], [volume], layers)[0][0], whole, rtol=1e-4)


def test_scores_that_the_detector_does_not_give_back_are_an_integrity_error():
    stored = {"calibration": [SubjectScores("s", True, np.ones(9, np.float32), np.empty(0, np.float32), 0.1)]}
    other = {"calibration": [SubjectScores("s", True, np.full(9, 2, np.float32), np.empty(0, np.float32), 0.1)]}
    empty = {"validation": [], "test": []}

    class FakeRun:
        run_id = "r"
        as_argument = "r"

    check_reproduced(FakeRun(), stored | empty, stored | empty)
    with pytest.raises(RuntimeError, match="does not give the stored scores"):
        check_reproduced(FakeRun(), stored | empty, other | empty)

"""Ceilings: exact by brute force, faithful to the pipeline's own drawing, and known for spheres."""

import itertools
import json

import numpy as np
import pytest

from core.diagnosis import ceiling as engine
from core.diagnosis import drawn_lesions
from core.diagnosis.ceiling import layer_table, reachable_dice, subject_ceilings
from core.diagnosis.ceiling_of_masks import ceiling_of_masks, ceiling_rows, lesion_masks
from core.diagnosis.layer_cells import LayerCells, layers_of_layout, voxel_cells
from core.features.layout import feature_layout, positions_near
from core.features.score_maps import masked_score_map, to_score_map
from core.randomness import stream
from core.study.cases import Case
from core.types import FeatureLayout
from data.cohort import Cohort, Subject
from data.errors import BadInput
from data.nifti import write_nifti
from data.volume import Grid, Mask, Volume

SHAPE = (24, 20, 22)
WORKING = Grid(SHAPE, np.diag([2.0, 2.0, 2.0, 1.0]))
STRIDES = {"fine": (1, 1, 1), "same": (2, 2, 2), "coarse": (4, 4, 4), "flat": (4, 4, 2)}
SPHERES = {  # radius: mean of cells 2, 4, 8 (design, 5.3, over 60 random positions)
    2: (0.70, 0.36, 0.10), 3: (0.79, 0.57, 0.23), 5: (0.87, 0.73, 0.49), 8: (0.92, 0.83, 0.66), 12: (0.95, 0.88, 0.77),
}  # fmt: skip


def ball(shape: tuple[int, int, int], centre: tuple[float, ...], radius_mm: float, spacing=(1.0, 1.0, 1.0)):
    offsets = (np.indices(shape) - np.array(centre)[:, None, None, None]) * np.array(spacing)[:, None, None, None]
    return (offsets**2).sum(axis=0) <= radius_mm**2


def make_layout(brain: np.ndarray, strides=STRIDES) -> FeatureLayout:
    stride = (2, 2, 2)
    return feature_layout(WORKING, stride, strides, dict.fromkeys(strides, 1), positions_near(brain, stride))


def make_case(lesion: np.ndarray, brain: np.ndarray) -> Case:
    volume = Volume(np.zeros((1, *SHAPE), np.float32), WORKING, brain, "sub-1", ("T1",))
    return Case("sub-1", False, volume, lesion, np.where(brain, 1, np.nan).astype(np.float32))


def union_ceiling(cells: np.ndarray, lesion: np.ndarray, scorable: np.ndarray) -> float:
    """Best union of cells of one mask: what a subject's ceilings hold for each of its lesions."""
    n = np.bincount(cells[scorable])
    g = np.bincount(cells[lesion & scorable], minlength=len(n))
    touched = np.flatnonzero(g)
    best = engine.best_unions(np.zeros_like(touched), g[touched], n[touched], np.array([lesion.sum()]))
    return float(best[0])


def band_limited_ceiling(layer: LayerCells, lesion: np.ndarray, scorable: np.ndarray) -> float:
    """Best cut of what the pipeline draws of one mask."""
    target = drawn_lesions.targets_of(lesion, scorable, np.zeros(lesion.shape, dtype=np.int32))[0]
    return engine._band(layer, target, drawn_lesions.stray_positions(layer.upsampler, scorable))


def best_cut(drawn: np.ndarray, lesion: np.ndarray, inside: np.ndarray) -> float:
    cuts = np.unique(drawn[inside])
    return max(
        2 * (lesion & inside & (drawn >= t)).sum() / ((inside & (drawn >= t)).sum() + lesion.sum()) for t in cuts
    )


def shares_of(layout: FeatureLayout, layer: LayerCells, lesion: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """The lesion's share of each cell's brain, by overlap of intervals; the last cell of an axis reaches to its end."""
    overlaps = []
    for stride, n_cells, n in zip(layer.stride, layout.layer_grids[layer.layer].shape, brain.shape, strict=True):
        low = stride * (np.arange(n_cells) - 0.5)[:, None]
        high = np.r_[low[1:, 0], np.inf][:, None]
        voxel = np.arange(n)[None]
        overlaps.append(np.clip(np.minimum(voxel + 0.5, high) - np.maximum(voxel - 0.5, low), 0, None))
    total, hit = (
        np.einsum("ax,by,cz,xyz->abc", *overlaps, mask.astype(float), optimize=True) for mask in (brain, lesion & brain)
    )
    return (hit / np.maximum(total, 1e-9))[tuple(layout.layer_positions[layer.layer].T)]


BRAIN = ball(SHAPE, (11, 10, 10), 10.5)
LESION = (ball(SHAPE, (9, 8, 12), 2.3) | ball(SHAPE, (15, 12, 7), 1.6)) & BRAIN


@pytest.mark.parametrize("seed", range(25))
def test_no_union_of_cells_beats_the_union_ceiling_and_one_reaches_it(seed: int) -> None:
    rng = stream(seed, "union")
    cells = rng.integers(0, 9, size=(4, 5, 4)).astype(np.int32)
    scorable = rng.random(cells.shape) < 0.85
    lesion = rng.random(cells.shape) < rng.choice([0.1, 0.4, 0.8])
    best = 0.0
    for chosen in itertools.product([False, True], repeat=9):
        called = np.array(chosen)[cells] & scorable
        best = max(best, 2 * (called & lesion).sum() / (called.sum() + lesion.sum()))
    assert union_ceiling(cells, lesion, scorable) == pytest.approx(best, abs=1e-15)


def test_cells_of_one_voxel_give_what_is_reachable_and_one_cell_gives_all_positive_dice() -> None:
    scorable = BRAIN & (np.indices(SHAPE)[0] > 8)
    one_each = np.arange(BRAIN.size).reshape(SHAPE).astype(np.int32)
    reached, size = (LESION & scorable).sum(), LESION.sum()
    assert 0 < reached < size
    assert union_ceiling(one_each, LESION, scorable) == reachable_dice(LESION, scorable)
    assert reachable_dice(LESION, scorable) == 2 * reached / (reached + size)
    all_positive = 2 * reached / (scorable.sum() + size)
    assert union_ceiling(np.zeros(SHAPE, np.int32), LESION, scorable) == all_positive


def test_a_voxel_belongs_to_the_nearest_cell_and_a_half_way_voxel_to_the_even_one() -> None:
    layer = layers_of_layout(make_layout(np.ones(SHAPE, bool)))[2]
    assert layer.stride == (4, 4, 4)
    along = layer.cells[:, 0, 0]
    cells_of = [int(np.flatnonzero(along[:21:4] == c)[0]) for c in along[:21]]
    assert cells_of == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 5, 5]


def test_a_layer_finer_than_the_feature_grid_has_the_feature_grids_cells() -> None:
    fine, same, coarse, flat = layers_of_layout(make_layout(BRAIN))
    assert fine.stride == same.stride == (2, 2, 2)
    assert fine.cells is same.cells
    assert coarse.cell_mm == (8, 8, 8)
    assert flat.stride == (4, 4, 2)
    assert len(np.unique(coarse.cells)) == coarse.n_cells


def test_voxels_beyond_the_training_brains_belong_to_a_cell_that_was_computed() -> None:
    layer = layers_of_layout(make_layout(ball(SHAPE, (11, 10, 10), 4)))[1]
    assert layer.cells.min() == 0
    assert layer.cells.max() == layer.n_cells - 1
    assert layer.cells[0, 10, 10] == layer.cells[6, 10, 10]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("smoothing_mm", [0.0, 3.0])
def test_the_band_limited_ceiling_is_the_best_cut_of_what_the_pipeline_draws(number: int, smoothing_mm: float) -> None:
    layout = make_layout(BRAIN)
    layer = layers_of_layout(layout, smoothing_mm=smoothing_mm)[number]
    shares = shares_of(layout, layer, LESION, BRAIN)
    values = shares[layout.lookup[layer.layer]].astype(np.float32)
    volume = make_case(LESION, BRAIN).volume
    drawn = to_score_map(values, layout, volume, "", smoothing_mm=smoothing_mm).scores
    expected = best_cut(np.round(drawn, 5), LESION, BRAIN)
    assert band_limited_ceiling(layer, LESION, BRAIN) == pytest.approx(expected, abs=1e-9)
    assert 0.2 < expected < 1


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("median", [0, 3])
def test_beyond_the_training_brains_and_through_a_median_the_pipeline_is_followed(number: int, median: int) -> None:
    layout = make_layout(ball(SHAPE, (11, 10, 10), 7))
    layer = layers_of_layout(layout, median_voxels=median)[number]
    lesion = LESION | (ball(SHAPE, (11, 10, 18), 2.5) & BRAIN)
    case = make_case(lesion, BRAIN)
    values = shares_of(layout, layer, lesion, BRAIN)[layout.lookup[layer.layer]].astype(np.float32)
    drawn = to_score_map(values, layout, case.volume, "", median_voxels=median).scores
    expected = best_cut(np.round(drawn, 5), lesion, BRAIN)
    found = subject_ceilings(case, [layer]).layers[layer.layer]
    assert found.band_limited == pytest.approx(expected, abs=1e-9)
    assert found.best == (found.band_limited if median else max(found.union, found.band_limited))


def test_voxels_at_the_rim_of_the_training_brains_take_the_mean_of_the_positions_that_are_there() -> None:
    layout = make_layout(ball(SHAPE, (11, 10, 10), 7))
    layer = layers_of_layout(layout)[1]
    weight = layer.upsampler.weight
    brain = weight > 1e-6
    lesion = ball(SHAPE, (11, 10, 18), 2.5) & brain
    assert (weight[lesion] < 0.5).any()
    values = shares_of(layout, layer, lesion, brain)[layout.lookup[layer.layer]].astype(np.float32)
    drawn = to_score_map(values, layout, make_case(lesion, brain).volume, "").scores
    expected = best_cut(np.round(drawn, 5), lesion, brain)
    assert band_limited_ceiling(layer, lesion, brain) == pytest.approx(expected, abs=1e-9)


def test_two_lesions_in_one_cell_are_each_judged_without_the_other() -> None:
    first, second = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    first[7:8, 7:10, 7:10] = True
    second[9:10, 7:10, 7:10] = True
    layer = layers_of_layout(make_layout(BRAIN))[2]
    assert len(np.unique(layer.cells[first | second])) == 1
    found = subject_ceilings(make_case(first | second, BRAIN), [layer]).lesions
    for lesion, mine, other in zip(found, (first, second), (second, first), strict=True):
        expected = union_ceiling(layer.cells, mine, BRAIN & ~other)
        assert lesion.layers["coarse"].union == pytest.approx(expected)
        assert expected > union_ceiling(layer.cells, mine, BRAIN)


def test_a_lesion_far_from_uncovered_voxels_is_drawn_the_same_without_them() -> None:
    layer = layers_of_layout(make_layout(BRAIN))[1]
    stray = np.zeros(SHAPE, bool)
    stray[23, 19, 21] = True
    one = ball(SHAPE, (9, 8, 12), 2.3)
    assert band_limited_ceiling(layer, one, BRAIN | stray) == band_limited_ceiling(layer, one, BRAIN) < 1


def test_a_lesion_at_the_end_of_the_grid_belongs_to_the_last_cell() -> None:
    full = np.ones(SHAPE, bool)
    lesion = np.zeros(SHAPE, bool)
    lesion[23:, 8:12, 8:12] = True
    layer = layers_of_layout(make_layout(full))[2]
    assert layer.cells[23, 8, 8] == layer.cells[20, 8, 8]
    assert 0.1 < band_limited_ceiling(layer, lesion, full) < 1


def test_a_lesion_nobody_scores_has_ceiling_zero_and_no_lesion_is_refused() -> None:
    layer = layers_of_layout(make_layout(BRAIN))[1]
    assert band_limited_ceiling(layer, LESION, BRAIN & ~LESION) == 0
    assert union_ceiling(layer.cells, LESION, BRAIN & ~LESION) == 0
    empty = np.zeros(SHAPE, bool)
    for call in (lambda: reachable_dice(empty, BRAIN), lambda: subject_ceilings(make_case(empty, BRAIN), [layer])):
        with pytest.raises(BadInput, match="No lesion voxel"):
            call()


def test_ceilings_of_a_subject_hold_every_layer_and_every_lesion_alone() -> None:
    layers = layers_of_layout(make_layout(BRAIN))
    found = subject_ceilings(make_case(LESION, BRAIN), layers)
    assert list(found.layers) == list(STRIDES)
    assert found.reachable == 1
    assert len(found.lesions) == 2
    first, second = ball(SHAPE, (9, 8, 12), 2.3), ball(SHAPE, (15, 12, 7), 1.6)
    alone = {round(lesion.volume_ml, 6): lesion for lesion in found.lesions}
    for mine, other in ((first, second), (second, first)):
        lesion = alone[round(mine.sum() * 0.008, 6)]
        for layer in layers:
            got = lesion.layers[layer.layer]
            assert got.union == pytest.approx(union_ceiling(layer.cells, mine, BRAIN & ~other), abs=1e-12)
            assert got.best == max(got.union, got.band_limited)
    assert found.of(("coarse", "same")) == max(found.layers["coarse"].best, found.layers["same"].best)
    for layer in layers:
        assert found.layers[layer.layer].union == union_ceiling(layer.cells, LESION, BRAIN)
        assert found.layers[layer.layer].band_limited == band_limited_ceiling(layer, LESION, BRAIN)
    assert found.layers["same"].best > found.layers["coarse"].best


def test_a_lesions_ceiling_does_not_depend_on_the_crop_in_which_it_is_drawn() -> None:
    layer = layers_of_layout(make_layout(BRAIN), smoothing_mm=2.5)[2]
    one = ball(SHAPE, (9, 8, 12), 2.3)
    speck = ball(SHAPE, (17, 13, 6), 0.5)
    assert speck.sum() == 1
    with_speck = subject_ceilings(make_case(one | speck, BRAIN), [layer]).lesions
    assert len(with_speck) == 1
    alone = subject_ceilings(make_case(one, BRAIN & ~speck), [layer]).lesions
    assert with_speck[0].layers["coarse"].band_limited == pytest.approx(
        alone[0].layers["coarse"].band_limited, abs=0.02
    )


def test_without_features_the_ceiling_is_what_is_reachable_and_smoothing_lowers_it() -> None:
    scorable = BRAIN & (np.indices(SHAPE)[0] > 8)
    case = make_case(LESION, scorable)
    sharp = subject_ceilings(case, [voxel_cells("zscore", WORKING)])
    assert sharp.layers["zscore"].best == sharp.reachable == reachable_dice(LESION, scorable)
    smooth = subject_ceilings(case, [voxel_cells("zscore", WORKING, smoothing_mm=4.0)])
    drawn = masked_score_map((LESION & scorable).astype(np.float32), case.volume, "", smoothing_mm=4.0).scores
    expected = best_cut(np.round(drawn, 5), LESION, scorable)
    assert smooth.layers["zscore"].best == pytest.approx(expected, abs=1e-9)
    assert expected < sharp.reachable


def test_the_layer_table_averages_subjects_and_sorts_lesions_by_size() -> None:
    layers = layers_of_layout(make_layout(BRAIN))
    one = subject_ceilings(make_case(LESION, BRAIN), layers)
    two = subject_ceilings(make_case(ball(SHAPE, (11, 10, 10), 5.2), BRAIN), layers)
    table = layer_table([one, two], layers)
    json.dumps(table)
    assert [row["layer"] for row in table] == list(STRIDES)
    for row in table:
        bests = [s.layers[row["layer"]].best for s in (one, two)]
        assert row["ceiling"] == pytest.approx(np.mean(bests))
        assert row["low"] <= row["ceiling"] <= row["high"]
        assert sum(b["n"] for b in row["by_size"]) == 3
    by_size = {b["bin"]: b for b in table[2]["by_size"]}
    assert by_size["< 0.1 mL"]["ceiling"] is None or by_size["< 0.1 mL"]["n"] > 0
    assert by_size["1 to 10 mL"]["ceiling"] == two.lesions[0].layers["coarse"].best


@pytest.mark.parametrize("radius", SPHERES)
def test_spheres_have_the_ceilings_that_the_design_tabulates(radius: int) -> None:
    """Both means are over 60 random places (sub-voxel, sub-cell): within three standard errors and the rounding."""
    shape = (2 * radius + 3,) * 3
    places = radius + 1 + stream(radius, "places").random((60, 3)) - 0.5
    masks = {str(i): Mask(ball(shape, tuple(place), radius), Grid(shape, np.eye(4))) for i, place in enumerate(places)}
    result = ceiling_of_masks(masks, (2.0, 4.0, 8.0), draws=1, seed=1)
    for column, mean in enumerate(SPHERES[radius]):
        found = [row["ceilings"][column]["mean"] for row in result["subjects"]]
        assert result["mean"][column]["mean"] == pytest.approx(np.mean(found))
        assert np.mean(found) == pytest.approx(mean, abs=0.005 + 3 * np.std(found) * np.sqrt(2 / 60))
    if radius == 5:
        assert min(found) < 0.35
        assert max(found) > 0.65


def test_cells_of_masks_are_cubes_in_millimetres_whichever_axis_is_the_long_one() -> None:
    body = np.zeros((24, 24, 6), bool)
    body[8:16, 8:16, 2:4] = True
    flat = Mask(body, Grid(body.shape, np.diag([1.0, 1.0, 4.0, 1.0])))
    turned = Mask(body.transpose(2, 0, 1), Grid((6, 24, 24), np.diag([4.0, 1.0, 1.0, 1.0])))
    rows = ceiling_of_masks({"flat": flat, "turned": turned}, (8.0, 500.0), draws=400)["subjects"]
    one, other = (row["ceilings"] for row in rows)
    assert one[0]["mean"] == pytest.approx(other[0]["mean"], abs=0.03)
    assert one[0]["max"] == other[0]["max"] == 1
    assert one[1]["max"] < 0.001


def test_a_cell_smaller_than_a_voxel_limits_nothing() -> None:
    mask = Mask(LESION, Grid(SHAPE, np.diag([1.0, 2.0, 3.0, 1.0])))
    ceilings = ceiling_of_masks({"a": mask}, (0.5, 1.0, 1.5))["subjects"][0]["ceilings"]
    assert [c["min"] for c in ceilings[:2]] == [1, 1]
    assert ceilings[2]["mean"] < 1


def test_mask_ceilings_equal_brute_force_on_unequal_spacing_and_repeat_with_their_seed() -> None:
    spacing = (1.0, 2.0, 3.0)
    mask = Mask(LESION, Grid(SHAPE, np.diag([*spacing, 1.0])))
    result = ceiling_of_masks({"a": mask}, (7.0,), draws=3, seed=4)
    assert result == ceiling_of_masks({"a": mask}, (7.0,), draws=3, seed=4)
    assert result != ceiling_of_masks({"a": mask}, (7.0,), draws=3, seed=5)
    low = np.argwhere(LESION).min(axis=0)
    expected = []
    padded, everywhere = np.pad(LESION, 8), np.ones(tuple(n + 16 for n in SHAPE), bool)
    for offset in stream(4, "cells over a", 0).random((3, 3)):
        along = [(np.arange(n + 16) - 8 - low[a]) * spacing[a] for a, n in enumerate(SHAPE)]
        numbers = [np.unique(np.floor(mm / 7 + o), return_inverse=True)[1] for mm, o in zip(along, offset, strict=True)]
        cells = (numbers[0][:, None, None] * 100 + numbers[1][:, None]) * 100 + numbers[2]
        expected.append(union_ceiling(cells, padded, everywhere))
    found = result["subjects"][0]["ceilings"][0]
    assert found["mean"] == pytest.approx(np.mean(expected))
    assert (found["min"], found["max"]) == pytest.approx((min(expected), max(expected)))


def test_lesions_of_a_mask_are_judged_alone_and_sorted_by_size() -> None:
    far = np.zeros((40, 40, 40), bool)
    far[4:10, 4:10, 4:10] = True
    both = far.copy()
    both[28:32, 28:32, 28:32] = True
    grid = Grid(both.shape, np.eye(4))
    result = ceiling_of_masks({"both": Mask(both, grid), "far": Mask(far, grid)}, (8.0,), draws=40)
    rows = {row["subject_id"]: row for row in result["subjects"]}
    assert [round(one["volume_ml"], 3) for one in rows["both"]["lesions"]] == [0.216, 0.064]
    alone = ceiling_of_masks({"both": Mask(far, grid)}, (8.0,), draws=40)["subjects"][0]
    assert rows["both"]["lesions"][0]["ceilings"] == alone["ceilings"]
    assert {b["bin"]: b["n"] for b in result["by_size"]} == {
        "< 0.1 mL": 1, "0.1 to 1 mL": 2, "1 to 10 mL": 0, "≥ 10 mL": 0
    }  # fmt: skip
    rows_of_text = ceiling_rows(result)
    assert rows_of_text[0] == ["lesions", "n", "cells of 8 mm"]
    assert rows_of_text[-1][:2] == ["all of a subject", "2"]
    assert rows_of_text[3][2] == "–"
    json.dumps(result)


def test_neighbouring_lesions_do_not_count_against_each_other() -> None:
    """A cell that holds half of each of two lesions is pure for either of them."""
    both = np.zeros((9, 9, 9), bool)
    both[2:4, 2:6, 2:6] = True
    other = np.zeros_like(both)
    other[5:7, 2:6, 2:6] = True
    layer = np.zeros(both.shape, np.int32)
    layer[2:7, 2:6, 2:6] = 1
    assert union_ceiling(layer, both, ~other) == pytest.approx(2 * 32 / (48 + 32))
    grid = Grid(both.shape, np.diag([2.0, 2.0, 2.0, 1.0]))
    lesions = ceiling_of_masks({"a": Mask(both | other, grid)}, (64.0,), draws=5)["subjects"][0]["lesions"]
    alone = ceiling_of_masks({"a": Mask(both, grid)}, (64.0,), draws=5)["subjects"][0]["ceilings"]
    assert len(lesions) == 2
    assert lesions[0]["ceilings"][0]["mean"] > alone[0]["mean"]


def test_masks_without_lesion_are_named_and_nonsense_is_refused() -> None:
    empty, full = Mask(np.zeros(SHAPE, bool), WORKING), Mask(LESION, WORKING)
    assert ceiling_of_masks({"a": empty, "b": full}, (4.0,))["empty"] == ["a"]
    with pytest.raises(BadInput, match="No lesion voxel in any mask"):
        ceiling_of_masks({"a": empty})
    with pytest.raises(BadInput, match="edges above 0"):
        ceiling_of_masks({"b": full}, (0.0,))


def test_lesion_masks_of_a_cohort_are_read_with_their_labels(tmp_path) -> None:
    labels = np.where(LESION, 2, 0) + np.where(BRAIN & ~LESION, 1, 0)
    for name, values in (("one", LESION), ("labelled", labels)):
        write_nifti(tmp_path / f"{name}.nii.gz", values.astype(np.uint8), WORKING)
    one = Subject("one", {}, lesion_mask=tmp_path / "one.nii.gz", healthy=False)
    labelled = Subject("two", {}, lesion_mask=tmp_path / "labelled.nii.gz", healthy=False, lesion_labels=(2,))
    masks = lesion_masks(Cohort("c", (one, labelled, Subject("three", {}))))
    assert list(masks) == ["one", "two"]
    assert all((mask.voxels == LESION).all() for mask in masks.values())
    undeclared = Subject("two", {}, lesion_mask=tmp_path / "labelled.nii.gz", healthy=False)
    with pytest.raises(BadInput, match="lesion_labels"):
        lesion_masks(Cohort("c", (undeclared,)))

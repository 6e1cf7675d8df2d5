"""Feature rows lie where they say, do not depend on who else is there, and come back from disk as they were."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from core.features.extraction import FeatureExtractor, load_extractor, make_extractor
from core.features.layout import feature_layout, feature_stride, load_layout, positions_near
from core.features.settings import FeatureSettings
from data.errors import BadInput
from data.volume import Grid, Volume
from models.encoder import make_encoder
from models.settings import EncoderSettings
from tests.study import small_volumes

CPU = torch.device("cpu")
ENCODER = EncoderSettings(width=4)
LAYERS = ("input", "stage0", "stage1", "stage2")
GRID = Grid((16, 24, 16), np.diag([4.0, 4.0, 4.0, 1.0]))


def extractor(train: list[Volume], encoder: EncoderSettings = ENCODER, **changes: object) -> FeatureExtractor:
    settings = dataclasses.replace(FeatureSettings(layers=LAYERS, grid="8mm"), **changes)
    return make_extractor(make_encoder(encoder), settings, train, CPU)


def world(grid: Grid, indices: np.ndarray) -> np.ndarray:
    return indices @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def ramp(shape: tuple[int, int, int] = (16, 24, 16)) -> Volume:
    x, y, z = np.indices(shape)
    grid = Grid(shape, np.diag([4.0, 4.0, 4.0, 1.0]))
    values = (2.0 * x + 3.0 * y - 1.0 * z)[None].astype(np.float32)
    return Volume(values, grid, np.ones(shape, dtype=bool), "ramp", ("T1",))


def test_cell_i_of_a_layer_lies_on_voxel_stride_times_i() -> None:
    layout = extractor(small_volumes(2)).layout
    for name, stride in {"input": 2, "stage0": 2, "stage1": 2, "stage2": 4}.items():
        cells = layout.layer_positions[name]
        np.testing.assert_allclose(world(layout.layer_grids[name], cells), world(GRID, stride * cells))
    np.testing.assert_allclose(world(layout.feature_grid, layout.positions), world(GRID, 2 * layout.positions))


def test_a_coarse_layer_is_kept_once_and_looked_up_at_the_nearest_cell() -> None:
    layout = extractor(small_volumes(2)).layout
    cells, lookup = layout.layer_positions["stage2"], layout.lookup["stage2"]
    assert len(cells) < len(layout.positions) / 4
    assert len(np.unique(cells, axis=0)) == len(cells)
    inside = np.all(layout.positions * 2 <= (np.array(layout.layer_grids["stage2"].shape) - 1) * 4, axis=1)
    distance = np.abs(world(layout.layer_grids["stage2"], cells[lookup]) - world(layout.feature_grid, layout.positions))
    assert distance[inside].max() <= 8.0
    everywhere = np.argwhere(np.ones(layout.layer_grids["stage2"].shape))
    for row in (0, len(layout.positions) // 2, len(layout.positions) - 1):
        point = world(layout.feature_grid, layout.positions[row])
        nearest = np.linalg.norm(world(layout.layer_grids["stage2"], everywhere) - point, axis=1).min()
        chosen = np.linalg.norm(world(layout.layer_grids["stage2"], cells[lookup[row]]) - point)
        assert chosen == pytest.approx(nearest)


@pytest.mark.parametrize("ratio", [2, 4])
def test_the_positions_that_use_a_coarse_cell_lie_around_it_not_to_one_side(ratio: int) -> None:
    grid = Grid((32, 32, 32), np.eye(4))
    positions = np.argwhere(np.ones(grid.shape))
    layout = feature_layout(grid, (1, 1, 1), {"coarse": (ratio,) * 3}, {"coarse": 1}, positions)
    cells, lookup = layout.layer_positions["coarse"], layout.lookup["coarse"]
    for row, cell in enumerate(cells):
        if (cell > 0).all() and (cell * ratio + ratio < 32).all():
            np.testing.assert_allclose(positions[lookup == row].mean(axis=0), cell * ratio)


@pytest.mark.parametrize("shape", [(16, 24, 16), (17, 21, 13), (9, 18, 25)])
@pytest.mark.parametrize("grid", ["8mm", "12mm", "16mm"])
def test_averaging_a_finer_layer_down_is_centred_so_a_ramp_stays_a_ramp(shape: tuple[int, int, int], grid: str) -> None:
    volume = ramp(shape)
    made = extractor([volume], layers=("input",), grid=grid)
    stride = int(grid.removesuffix("mm")) // 4
    rows = made(volume).rows["input"][:, 0].numpy()
    voxels = stride * made.layout.layer_positions["input"]
    interior = np.all((voxels >= stride) & (voxels + stride < np.array(shape)), axis=1)
    assert interior.any()
    np.testing.assert_allclose(rows[interior], (voxels @ np.array([2.0, 3.0, -1.0]))[interior], atol=1e-3)


def test_an_average_weighs_the_cells_around_it_like_a_triangle() -> None:
    voxels = np.zeros((1, 16, 24, 16), dtype=np.float32)
    voxels[0, 9, 8, 8] = 1.0
    volume = dataclasses.replace(ramp(), voxels=voxels)
    made = extractor([volume], layers=("input",), grid="8mm")
    rows = dict(zip(map(tuple, made.layout.layer_positions["input"]), made(volume).rows["input"][:, 0], strict=True))
    assert float(rows[4, 4, 4]) == pytest.approx(0.25 * 0.5 * 0.5)
    assert float(rows[5, 4, 4]) == pytest.approx(0.25 * 0.5 * 0.5)
    assert float(rows[3, 4, 4]) == 0.0


def test_a_feature_grid_that_is_no_multiple_of_a_finer_layer_is_refused_with_what_would_do() -> None:
    with pytest.raises(BadInput, match=r"12mm.*stage1.*8mm"):
        extractor(small_volumes(2), layers=("input", "stage1"), grid="12mm")


@pytest.mark.parametrize("grid", ["stage9", "5mm", "0mm", "-4mm", "mm"])
def test_a_feature_grid_that_does_not_exist_is_refused(grid: str) -> None:
    with pytest.raises(BadInput, match="stage2"):
        feature_stride(make_encoder(ENCODER), grid, GRID)


def test_a_feature_grid_can_be_named_by_a_layer() -> None:
    assert feature_stride(make_encoder(ENCODER), "stage2", GRID) == (4, 4, 4)
    assert feature_stride(make_encoder(ENCODER), "16mm", GRID) == (4, 4, 4)


def test_positions_are_the_cells_with_a_brain_voxel_within_half_a_stride() -> None:
    support = np.zeros((12, 12, 12), dtype=bool)
    support[4, 4, 4] = True
    assert {tuple(p) for p in positions_near(support, (4, 4, 4))} == {(1, 1, 1)}
    support[:] = False
    support[6, 4, 4] = True
    assert {tuple(p) for p in positions_near(support, (4, 4, 4))} == {(1, 1, 1), (2, 1, 1)}
    with pytest.raises(BadInput, match="brain"):
        positions_near(np.zeros((8, 8, 8), dtype=bool), (2, 2, 2))


def test_channels_are_drawn_by_the_seed_stored_and_taken_from_the_full_rows(tmp_path: Path) -> None:
    train = small_volumes(2)
    full = extractor(train)(train[0])
    drawn, again, other = (
        extractor(train, reduction="draw", max_channels=3, seed=seed)(train[0]) for seed in (0, 0, 1)
    )
    assert {n: r.shape[1] for n, r in drawn.rows.items()} == {"input": 1, "stage0": 3, "stage1": 3, "stage2": 3}
    for name in LAYERS:
        assert torch.equal(drawn.rows[name], again.rows[name])
        columns = {tuple(c.tolist()) for c in full.rows[name].T}
        assert all(tuple(c.tolist()) in columns for c in drawn.rows[name].T)
    assert any(not torch.equal(drawn.rows[n], other.rows[n]) for n in LAYERS)
    made = extractor(train, reduction="draw", max_channels=3)
    made.save(tmp_path)
    settings = dataclasses.replace(made.settings, seed=77)
    loaded = load_extractor(tmp_path, make_encoder(ENCODER), settings, CPU)
    assert torch.equal(loaded(train[0]).rows["stage2"], drawn.rows["stage2"]), "the draw is stored, not repeated"


def test_principal_axes_are_those_of_the_pooled_covariance() -> None:
    train = small_volumes(3)
    made = extractor(train, reduction="pca", max_channels=3)
    full = extractor(train)
    for name in ("stage0", "stage1", "stage2"):
        pooled = np.concatenate([full(v).rows[name].double().numpy() for v in train])
        values, vectors = np.linalg.eigh(np.cov(pooled.T, bias=True))
        wanted = vectors[:, ::-1][:, :3]
        axes = made.projections[name].double().numpy()
        np.testing.assert_allclose(np.abs((wanted * axes).sum(axis=0)), 1.0, atol=1e-4)
        explained = np.var(pooled @ axes, axis=0)
        np.testing.assert_allclose(explained, values[::-1][:3], rtol=1e-4)


@pytest.mark.parametrize("reduction", ["none", "draw", "pca"])
def test_a_saved_and_loaded_extractor_gives_identical_rows(reduction: str, tmp_path: Path) -> None:
    train = small_volumes(3)
    made = extractor(train, reduction=reduction, max_channels=3)
    made.save(tmp_path)
    loaded = load_extractor(tmp_path, make_encoder(ENCODER), made.settings, CPU)
    for name, rows in made(train[1]).rows.items():
        assert torch.equal(rows, loaded(train[1]).rows[name])
    layout = load_layout(tmp_path)
    assert layout.layers == made.layout.layers
    assert dict(layout.channels) == dict(made.layout.channels)
    assert np.array_equal(layout.positions, made.layout.positions)
    for name in LAYERS:
        assert layout.layer_grids[name].matches(made.layout.layer_grids[name])
        assert np.array_equal(layout.lookup[name], made.layout.lookup[name])
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_features_of_a_subject_do_not_depend_on_the_others() -> None:
    train = small_volumes(3)
    made = extractor(train)
    alone = made(train[2])
    made(train[0])
    again = made(train[2])
    for name in LAYERS:
        assert torch.equal(alone.rows[name], again.rows[name])


def test_an_unknown_layer_names_the_layers_that_there_are() -> None:
    with pytest.raises(BadInput, match=r"'stage7'.*input, stage0, stage1"):
        extractor(small_volumes(2), layers=("stage0", "stage7"))
    with pytest.raises(BadInput, match=r"\(none\).*stage0"):
        extractor(small_volumes(2), layers=())


def test_a_volume_on_another_grid_is_refused() -> None:
    made = extractor(small_volumes(2))
    with pytest.raises(BadInput, match="another grid"):
        made(small_volumes(1, shape=(16, 16, 16))[0])


def test_a_two_dimensional_encoder_sees_one_slice_at_a_time() -> None:
    encoder = EncoderSettings(architecture="resnet10_2d", width=4)
    train = small_volumes(2)
    made = extractor(train, encoder, layers=("conv1", "layer2"), grid="4mm")
    assert made.layout.layer_grids["conv1"].shape == (8, 12, 16)
    assert made.layout.layer_grids["layer2"].shape == (4, 6, 16)
    changed = np.array(train[0].voxels)
    changed[:, :, :, 7] += 0.3
    before = made(train[0]).rows["layer2"]
    after = made(dataclasses.replace(train[0], voxels=changed)).rows["layer2"]
    slices = made.layout.layer_positions["layer2"][:, 2]
    moved = (before - after).abs().amax(dim=1).numpy() > 1e-6
    assert moved[slices == 7].any()
    assert not moved[slices != 7].any()


def test_the_layout_follows_from_strides_alone() -> None:
    positions = np.argwhere(np.ones((8, 12, 8))).astype(np.int64)
    layout = feature_layout(
        GRID, (2, 2, 2), {"fine": (1, 1, 1), "coarse": (8, 8, 8)}, {"fine": 1, "coarse": 5}, positions
    )
    assert layout.layer_grids["fine"].shape == (8, 12, 8)
    assert layout.layer_grids["coarse"].shape == (2, 3, 2)
    assert np.array_equal(layout.lookup["fine"], np.arange(len(positions)))
    assert layout.lookup["coarse"].max() == len(layout.layer_positions["coarse"]) - 1

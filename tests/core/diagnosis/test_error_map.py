"""Categories of errors: each planted alone is counted there and nowhere else; counts, records and costs add up."""

import dataclasses
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench_error_map import plain_costs, plain_labels, random_case
from core.diagnosis.errors import error_map as error_map_module
from core.diagnosis.errors import reference as reference_module
from core.diagnosis.errors.categories import CategorySettings, label_errors
from core.diagnosis.errors.category_table import CATEGORIES, CODES, FALSE_POSITIVES, HIT, MISSED
from core.diagnosis.errors.error_map import cell_mm, error_map, error_records
from core.diagnosis.errors.neighbourhoods import window_sums
from core.diagnosis.errors.reference import (
    HealthyReference,
    ReferenceSettings,
    healthy_reference,
    load_reference,
    reference_of,
    save_reference,
)
from core.diagnosis.errors.shapley import shapley_costs
from core.progress import Progress
from core.runs.evaluated import read_metrics
from core.runs.listing import open_run
from core.study.cases import Case, case_of
from core.study.stored_scores import RunScores, open_scores
from data.errors import BadInput, IntegrityError
from data.volume import Grid, Volume
from tests.study import TinyStudy, recommit, small_volumes

GRID = Grid((30, 30, 30), np.diag([2.0, 2.0, 2.0, 1.0]))
BRAIN = np.zeros(GRID.shape, dtype=bool)
BRAIN[3:27, 3:27, 3:27] = True
LESION = (slice(12, 16),) * 3
"""4 × 4 × 4 voxels in the middle: 512 mm³."""
CELL_MM = 4.0
THRESHOLD = 1.0


@dataclasses.dataclass
class Scene:
    """A flat, usual scan in a cube of brain, with nothing found; a test plants what it needs."""

    image: np.ndarray = dataclasses.field(default_factory=lambda: np.full(GRID.shape, 0.5, dtype=np.float32))
    lesion: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(GRID.shape, dtype=bool))
    called: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(GRID.shape, dtype=bool))
    brain: np.ndarray = dataclasses.field(default_factory=lambda: BRAIN.copy())
    core: np.ndarray = dataclasses.field(default_factory=lambda: BRAIN.copy())
    mean: np.ndarray = dataclasses.field(default_factory=lambda: np.full(GRID.shape, 0.5, dtype=np.float32))
    deviation: float = 0.05
    usual: float = 0.3
    """Half the distance from the 5th to the 95th percentile."""

    def case(self) -> Case:
        volume = Volume(self.image[None], GRID, self.brain, "planted", ("T1",))
        scores = np.where(self.brain, np.where(self.called, 2.0, 0.0), np.nan).astype(np.float32)
        return Case("planted", False, volume, self.lesion, scores)

    def reference(self) -> HealthyReference:
        def inside(values: np.ndarray | float) -> np.ndarray:
            return np.where(BRAIN, values, 0).astype(np.float32)

        return HealthyReference(
            GRID,
            inside(self.mean),
            inside(self.deviation),
            inside(self.mean - self.usual),
            inside(self.mean + self.usual),
            BRAIN,
            self.core,
            8,
            "planted",
        )

    def labels(self) -> tuple[dict[str, int], np.ndarray]:
        found = label_errors(self.case(), THRESHOLD, self.reference(), CELL_MM)
        counts = {name: n for name, n in {**found.fp, **found.fn, "hit": found.hits}.items() if n}
        return counts, found.labels


def with_bright_lesion() -> Scene:
    scene = Scene()
    scene.lesion[LESION] = True
    scene.image[LESION] = 0.9
    return scene


def outside() -> Scene:
    scene = Scene()
    scene.core[20:] = False
    scene.called[20:22, 12:16, 12:14] = True
    return scene


def edge() -> Scene:
    scene = Scene()
    scene.called[3:5, 12:16, 12:16] = True
    return scene


def border() -> Scene:
    scene = Scene()
    scene.image[8:12, 8:12, 8:12] = 0.7
    scene.called[7:9, 9:11, 9:11] = True
    return scene


def halo() -> Scene:
    scene = with_bright_lesion()
    scene.called[16:18, 10:18, 10:18] = True
    scene.called[LESION] = True
    return scene


def bright() -> Scene:
    scene = Scene()
    scene.mean[12:14, 12:14, 12:14] = 0.15
    scene.called[12:14, 12:14, 12:14] = True
    return scene


def dark() -> Scene:
    scene = Scene()
    scene.mean[12:14, 12:14, 12:14] = 0.85
    scene.called[12:14, 12:14, 12:14] = True
    return scene


def misaligned() -> Scene:
    """Stripes one voxel wide, dark where the healthy ones are bright: no slope by central differences."""
    scene = Scene()
    stripes = 0.2 * (np.arange(30) % 2) - 0.1
    scene.mean[:] = 0.5 + stripes[:, None, None]
    scene.image[:] = 0.5 - stripes[:, None, None]
    scene.called[12:14, 12:14, 12:14] = True
    return scene


def small() -> Scene:
    scene = Scene()
    scene.called[12:14, 12:14, 12:14] = True
    scene.called[13, 13, 13] = False
    return scene


def other() -> Scene:
    scene = Scene()
    scene.called[12:14, 12:14, 12:14] = True
    return scene


def beyond_the_brain() -> Scene:
    scene = with_bright_lesion()
    scene.brain[LESION] = False
    return scene


def sub_cell() -> Scene:
    scene = Scene()
    scene.lesion[12:14, 12:14, 12:14] = True
    scene.lesion[13, 13, 13] = False
    scene.image[scene.lesion] = 0.9
    return scene


def faint() -> Scene:
    scene = with_bright_lesion()
    scene.image[LESION] = 0.59
    return scene


def hypo() -> Scene:
    scene = with_bright_lesion()
    scene.image[LESION] = 0.35
    return scene


def shell() -> Scene:
    scene = with_bright_lesion()
    scene.called[13:15, 13:15, 13:15] = True
    return scene


def inner() -> Scene:
    scene = with_bright_lesion()
    scene.called[LESION] = True
    scene.called[13:15, 13:15, 13:15] = False
    return scene


PLANTED: list[tuple[Callable[[], Scene], dict[str, int]]] = [
    (outside, {"outside_consensus_brain": 16}),
    (edge, {"brain_edge": 32}),
    (border, {"tissue_border": 8}),
    (halo, {"lesion_halo": 128, "hit": 64}),
    (bright, {"unusual_intensity": 8}),
    (dark, {"unusual_intensity": 8}),
    (misaligned, {"registration_suspect": 8}),
    (small, {"small_component": 7}),
    (other, {"other_false_positive": 8}),
    (beyond_the_brain, {"unreachable": 64}),
    (sub_cell, {"sub_cell_lesion": 7}),
    (faint, {"low_contrast": 64}),
    (hypo, {"hypo_intense": 64}),
    (shell, {"boundary_shell": 56, "hit": 8}),
    (inner, {"other_missed": 8, "hit": 56}),
]


@pytest.mark.parametrize(("plant", "expected"), PLANTED, ids=[plant.__name__ for plant, _ in PLANTED])
def test_an_error_planted_alone_is_counted_in_its_category_and_nowhere_else(plant, expected) -> None:
    scene = plant()
    counts, labels = scene.labels()
    assert counts == expected
    for name in set(expected) - {"hit"}:
        wrong = scene.called & ~scene.lesion if name in FALSE_POSITIVES else scene.lesion & ~scene.called
        assert np.array_equal(labels == CODES[name], wrong)
    assert np.array_equal(labels == HIT, scene.lesion & scene.called & scene.brain)


def test_every_category_is_planted_and_has_its_words() -> None:
    planted = {name for _, expected in PLANTED for name in expected} - {"hit"}
    assert planted == {c.id for c in CATEGORIES} == set(FALSE_POSITIVES) | set(MISSED)
    assert len(CATEGORIES) == 14
    assert sorted(CODES.values()) == list(range(1, 15))
    assert HIT == 15
    for category in CATEGORIES:
        assert category.title
        assert category.definition.endswith(".")
        assert category.advice.endswith(".")


def test_the_first_category_that_fits_wins() -> None:
    scene = edge()
    scene.core[3, 12:16, 12:16] = False
    assert scene.labels()[0] == {"outside_consensus_brain": 16, "brain_edge": 16}
    scene = bright()
    scene.lesion[14:18, 14:18, 14:18] = True
    scene.called |= scene.lesion
    assert scene.labels()[0] == {"lesion_halo": 8, "hit": 64}
    scene = sub_cell()
    scene.image[:] = 0.5
    assert scene.labels()[0] == {"sub_cell_lesion": 7}


def test_the_edge_is_three_millimetres_thick_at_any_spacing() -> None:
    for spacing, layers in ((1.0, 3), (2.0, 2), (3.0, 1), (4.0, 1)):
        grid = Grid(GRID.shape, np.diag([spacing, spacing, spacing, 1.0]))
        scene = Scene()
        scene.called[3:12, 14:16, 14:16] = True
        case, reference = scene.case(), scene.reference()
        volume = Volume(case.volume.voxels, grid, BRAIN, "planted", ("T1",))
        moved = dataclasses.replace(case, volume=volume)
        found = label_errors(moved, THRESHOLD, dataclasses.replace(reference, grid=grid), CELL_MM)
        assert found.fp["brain_edge"] == 4 * layers


def test_the_end_of_the_grid_is_an_edge_too() -> None:
    scene = Scene()
    scene.brain[0:3, 3:27, 3:27] = True
    scene.core[0:3] = True
    scene.called[0, 14:16, 14:16] = True
    assert scene.labels()[0] == {"brain_edge": 4}


def test_a_lesion_is_no_tissue_border_and_the_mask_is_none_either() -> None:
    scene = with_bright_lesion()
    scene.called[11, 12:16, 12:16] = True
    assert scene.labels()[0] == {"lesion_halo": 16, "boundary_shell": 56, "other_missed": 8}
    scene.lesion[:] = False
    assert scene.labels()[0] == {"tissue_border": 16}


def test_the_halo_grows_with_the_feature_cell() -> None:
    scene = with_bright_lesion()
    scene.called[6:12, 12:16, 12:16] = True
    case, reference = scene.case(), scene.reference()
    found = {cell: label_errors(case, THRESHOLD, reference, cell).fp["lesion_halo"] for cell in (1.0, 4.0, 8.0, 11.9)}
    assert found == {1.0: 16, 4.0: 32, 8.0: 64, 11.9: 80}


def test_a_lesion_as_large_as_one_feature_cell_is_not_below_it() -> None:
    scene = sub_cell()
    scene.lesion[13, 13, 13] = True
    scene.image[scene.lesion] = 0.9
    assert scene.labels()[0] == {"boundary_shell": 8}
    case, reference = scene.case(), scene.reference()
    assert label_errors(case, THRESHOLD, reference, 64.0 ** (1 / 3)).fn["sub_cell_lesion"] == 0
    assert label_errors(case, THRESHOLD, reference, 4.1).fn["sub_cell_lesion"] == 8


def test_flat_tissue_is_never_suspected_of_bad_registration() -> None:
    scene = other()
    rng = np.random.Generator(np.random.Philox(1))
    scene.mean += 0.01 * rng.standard_normal(GRID.shape).astype(np.float32)
    scene.image += 0.01 * rng.standard_normal(GRID.shape).astype(np.float32)
    scene.deviation = 0.05
    assert "registration_suspect" not in scene.labels()[0]
    scene.deviation = 0.005
    assert scene.labels()[0].get("registration_suspect", 0) > 0


def test_a_scan_without_error_or_lesion_has_no_label() -> None:
    counts, labels = Scene().labels()
    assert counts == {}
    assert not labels.any()


@pytest.mark.parametrize("seed", range(6))
def test_labels_agree_with_the_definitions_written_out_plainly(seed: int) -> None:
    case, reference = random_scene(seed)
    found = label_errors(case, 1.6, reference, CELL_MM)
    assert np.array_equal(found.labels, plain_labels(case, 1.6, reference, CELL_MM))
    costs = shapley_costs(
        np.array([found.hits]), np.array([list(found.fp.values())]), np.array([list(found.fn.values())])
    )
    if seed == 0:
        assert np.abs(costs.cost[0] - plain_costs(found.labels)).max() < 1e-12


@pytest.mark.parametrize("threshold", [-9.0, 0.0, 1.6, 4.0, 99.0])
def test_counts_add_up_to_those_of_dice_at_any_threshold(threshold: float) -> None:
    case, reference = random_scene(3)
    found = label_errors(case, threshold, reference, CELL_MM)
    assert (found.hits, sum(found.fp.values()), sum(found.fn.values())) == case.voxels.counts(threshold)
    for name, n in {**found.fp, **found.fn}.items():
        assert np.count_nonzero(found.labels == CODES[name]) == n
    assert np.count_nonzero(found.labels == HIT) == found.hits


def test_settings_move_the_borders_between_categories() -> None:
    case, reference = random_scene(4)
    usual = label_errors(case, 1.6, reference, CELL_MM)
    changed = {
        "brain_edge": CategorySettings(edge_mm=0.0),
        "tissue_border": CategorySettings(border_share=0.0),
        "registration_suspect": CategorySettings(least_correlation=-1.0),
        "small_component": CategorySettings(small_voxels=0),
        "low_contrast": CategorySettings(contrast_sd=0.0),
    }
    for name, settings in changed.items():
        found = label_errors(case, 1.6, reference, CELL_MM, settings)
        assert {**usual.fp, **usual.fn}[name] > 0
        assert {**found.fp, **found.fn}[name] == 0
        assert np.array_equal(found.labels, plain_labels(case, 1.6, reference, CELL_MM, settings))


def test_window_sums_are_the_same_one_by_one_and_from_running_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.Generator(np.random.Philox(5))
    fields = [rng.random((7, 9, 8), dtype=np.float32) for _ in range(2)]
    points = np.arange(fields[0].size)
    half, pairs = (1, 2, 3), ((0, 0), (0, 1), (1, 1))
    results = []
    for many in (0, 1e9):
        monkeypatch.setattr("core.diagnosis.errors.neighbourhoods._MANY", many)
        results.append(window_sums(fields, pairs, points, half))
    assert np.abs(results[0] - results[1]).max() < 1e-10
    for at in ((0, 0, 0), (3, 4, 4), (6, 8, 7)):
        box = tuple(slice(max(0, a - h), a + h + 1) for a, h in zip(at, half, strict=True))
        flat = np.ravel_multi_index(at, (7, 9, 8))
        for row, (a, b) in enumerate(pairs):
            assert results[0][row, flat] == pytest.approx((fields[a][box].astype(float) * fields[b][box]).sum())


def test_what_does_not_fit_is_refused() -> None:
    scene = Scene()
    case, reference = scene.case(), scene.reference()
    elsewhere = dataclasses.replace(reference, grid=Grid(GRID.shape, np.diag([1.0, 2.0, 2.0, 1.0])))
    with pytest.raises(BadInput, match="same run"):
        label_errors(case, THRESHOLD, elsewhere, CELL_MM)
    for threshold, cell in ((np.nan, CELL_MM), (THRESHOLD, 0.0)):
        with pytest.raises(BadInput, match="finite score"):
            label_errors(case, threshold, reference, cell)


def test_the_reference_is_numpy_over_the_brains_that_cover_a_voxel() -> None:
    volumes = ragged_volumes(8)
    found = healthy_reference(volumes)
    brains = np.stack([v.brain_mask for v in volumes])
    assert (brains.mean(axis=0) == 0.5).any()
    assert np.array_equal(found.brain, brains.mean(axis=0) >= 0.5)
    values = np.where(brains, np.stack([v.voxels[0] for v in volumes]).astype(np.float64), np.nan)[:, found.brain]
    assert np.abs(found.mean[found.brain] - np.nanmean(values, axis=0)).max() < 1e-6
    assert np.abs(found.deviation[found.brain] - np.nanstd(values, axis=0, ddof=1)).max() < 1e-6
    for quantile, array in ((0.05, found.low), (0.95, found.high)):
        assert np.abs(array[found.brain] - np.nanquantile(values, quantile, axis=0)).max() < 1e-6
    for array in (found.mean, found.deviation, found.low, found.high):
        assert not array[~found.brain].any()
        assert not array.flags.writeable
    assert found.n_subjects == 8


def test_the_core_is_the_consensus_brain_less_one_step() -> None:
    found = healthy_reference(ragged_volumes(5))
    padded = np.pad(found.brain, 1)
    expected = found.brain.copy()
    for axis, step in itertools.product(range(3), (-1, 1)):
        expected &= np.roll(padded, step, axis=axis)[1:-1, 1:-1, 1:-1]
    assert np.array_equal(found.core, expected)
    whole = healthy_reference(ragged_volumes(5), settings=ReferenceSettings(erosion_voxels=0))
    assert np.array_equal(whole.core, whole.brain)


def test_small_blocks_give_the_same_bits_and_every_volume_is_read_once_more_per_block() -> None:
    volumes = ragged_volumes(6)
    read: list[str] = []
    whole = healthy_reference(volumes, read=lambda v: read.append(v.subject_id))
    assert len(read) == 2 * 6
    blocks = healthy_reference(volumes, block_bytes=4 * 6 * 500, read=lambda v: read.append(v.subject_id))
    n_blocks = -(-np.count_nonzero(whole.brain) // 500)
    assert n_blocks > 3
    assert len(read) == 2 * 6 + (1 + n_blocks) * 6
    for name in ("mean", "deviation", "low", "high", "core"):
        assert np.array_equal(getattr(whole, name), getattr(blocks, name))


def test_one_healthy_scan_has_no_spread_and_none_is_refused() -> None:
    (volume,) = ragged_volumes(1)
    found = healthy_reference([volume])
    assert not found.deviation.any()
    assert np.array_equal(found.low, found.high)
    with pytest.raises(BadInput, match="at least one"):
        healthy_reference([])
    with pytest.raises(BadInput, match="same settings"):
        healthy_reference([volume, *small_volumes(1, shape=(16, 20, 16))])


def test_a_reference_comes_back_as_it_was_and_a_damaged_one_does_not(tmp_path: Path) -> None:
    reference = healthy_reference(ragged_volumes(4), "some key")
    save_reference(reference, tmp_path / "kept")
    again = load_reference(tmp_path / "kept")
    assert again.key == "some key"
    assert again.n_subjects == 4
    assert again.grid.matches(reference.grid)
    for name in ("mean", "deviation", "low", "high", "brain", "core"):
        assert np.array_equal(getattr(again, name), getattr(reference, name))
        assert getattr(again, name).dtype == getattr(reference, name).dtype
    damage(tmp_path / "kept" / "mean.npy")
    with pytest.raises(IntegrityError, match=r"mean\.npy"):
        load_reference(tmp_path / "kept")


def test_a_run_keeps_its_reference_until_its_training_scans_change(
    own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(own_study.runs, "tiny")
    computed = counted(monkeypatch, reference_module, "healthy_reference")
    first = reference_of(run, Progress(False, io.StringIO()))
    assert first.n_subjects == 4
    assert reference_of(run).key == first.key
    assert len(computed) == 1
    damage(run.directory / "diagnosis-reference" / "high.npy")
    assert np.array_equal(reference_of(run).high, first.high)
    assert len(computed) == 2
    record = json.loads((run.directory / "run.json").read_text())
    record["split"]["train"] = record["split"]["train"][:3]
    changed = dataclasses.replace(run, record=record)
    assert reference_of(changed).n_subjects == 3
    assert len(computed) == 3
    record["split"]["train"] = ["test01"]
    with pytest.raises(BadInput, match="no healthy training scan"):
        reference_of(changed)


def test_counts_of_a_run_are_those_that_its_evaluation_found(scores: RunScores, tmp_path: Path) -> None:
    reference = reference_of(scores.run)
    for layers in (scores.layer_sets[0], scores.layer_sets[-1]):
        figures = read_metrics(scores.run)["sets"]["+".join(layers)]["working"]["protocols"]
        for protocol in ("healthy", "validation"):
            cut = figures[protocol]["threshold"]
            records = error_records(scores, scores.subjects("test"), layers, cut, reference)
            rows = {row["subject_id"]: row for row in figures[protocol]["subjects"]}
            assert [r["subject_id"] for r in records] == scores.subjects("test")
            for record in records:
                expected = case_of(scores, record["subject_id"], layers).voxels
                assert expected.counts(cut) == (
                    record["hits"],
                    sum(record["fp"].values()),
                    sum(record["fn"].values()),
                )
                assert record["n_lesion"] == expected.n_lesion
            merged = error_map(records)
            assert {s["subject_id"] for s in merged["subjects"]} == {"test01", "test02", "test03"}
            for subject in merged["subjects"]:
                assert subject["dice"] == pytest.approx(rows[subject["subject_id"]]["dice"], abs=1e-12)
            assert merged["dice"]["mean"] == pytest.approx(figures[protocol]["mean_dice"], abs=1e-12)


def test_the_feature_cell_is_that_of_the_finest_layer(scores: RunScores, study: TinyStudy) -> None:
    assert cell_mm(scores, ("stage1", "stage2")) <= cell_mm(scores, ("stage2",))
    assert cell_mm(scores, ("input",)) == pytest.approx(scores.layer_spacing_mm("input"))
    assert cell_mm(open_scores(open_run(study.runs, "tiny-intensity")), ("intensity",)) == 4.0


def test_a_new_subject_never_makes_the_others_be_scanned_again(
    scores: RunScores, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, layers = reference_of(scores.run), scores.layer_sets[0]
    scanned = counted(monkeypatch, error_map_module, "label_errors")
    first = error_records(scores, ["test01", "test02"], layers, 2.0, reference)
    assert len(scanned) == 2
    progress = Progress(False, io.StringIO())
    more = error_records(scores, ["test01", "test02", "test03"], layers, 2.0, reference, progress=progress)
    assert len(scanned) == 3
    assert more[:2] == first
    assert json.loads(json.dumps(more)) == more
    path = scores.run.directory / "diagnosis-errors" / "+".join(layers) / "test01.json"
    path.write_text("{ damaged")
    assert error_records(scores, ["test01"], layers, 2.0, reference) == first[:1]
    assert len(scanned) == 4


def test_a_record_is_counted_anew_when_anything_it_depends_on_changes(
    scores: RunScores, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, layers = reference_of(scores.run), scores.layer_sets[0]
    scanned = counted(monkeypatch, error_map_module, "label_errors")

    def keys_of(threshold: float = 2.0, **changed) -> set[str]:
        arguments = {"scores": scores, "layers": layers, "reference": reference} | changed
        found = error_records(
            arguments["scores"],
            ["test01"],
            arguments["layers"],
            threshold,
            arguments["reference"],
            settings=changed.get("settings", CategorySettings()),
        )
        return {r["key"] for r in found}

    keys = keys_of()
    keys |= keys_of(2.5)
    keys |= keys_of(layers=scores.layer_sets[1])
    keys |= keys_of(reference=dataclasses.replace(reference, key="another"))
    keys |= keys_of(settings=CategorySettings(edge_mm=5.0))
    assert (len(keys), len(scanned)) == (5, 5)
    assert keys_of() | keys_of(2.5) <= keys
    assert len(scanned) == 5
    stored = scores.run.directory / "scores" / "test01" / "distances.npy"
    recommit(stored.parent, {stored.name: stored.read_bytes()[:-1] + b"\x00"})
    assert not keys_of() & keys
    assert len(scanned) == 6


def test_costs_and_dice_add_up_to_one_for_each_subject_and_in_the_mean() -> None:
    records = random_records(40)
    found = error_map(records)
    for subject in found["subjects"]:
        assert abs(subject["dice"] + sum(subject["error_map"].values()) - 1) < 1e-12
    assert abs(found["dice"]["mean"] + sum(e["cost"] for e in found["error_map"]) - 1) < 1e-12
    assert found["space"] == "working"
    assert [e["id"] for e in found["error_map"]] == [c.id for c in CATEGORIES]
    assert found["dice"]["n"] == len(found["subjects"]) == 39


def test_native_space_is_one_more_entry_and_the_sum_stays_one() -> None:
    records = random_records(12)
    working = {s["subject_id"]: s["dice"] for s in error_map(records)["subjects"]}
    native = {name: dice - 0.05 + 0.01 * n for n, (name, dice) in enumerate(working.items())}
    found = error_map(records, native)
    assert found["space"] == "native"
    for n, subject in enumerate(found["subjects"]):
        assert subject["dice"] == pytest.approx(native[subject["subject_id"]], abs=1e-12)
        assert subject["error_map"]["native_space"] == pytest.approx(0.05 - 0.01 * n, abs=1e-12)
        assert abs(subject["dice"] + sum(subject["error_map"].values()) - 1) < 1e-12
    assert abs(found["dice"]["mean"] + sum(e["cost"] for e in found["error_map"]) - 1) < 1e-12
    last = found["error_map"][-1]
    assert (last["id"], last["kind"]) == ("native_space", "space")
    assert last["hollow"] is (last["low"] <= 0 <= last["high"])
    with pytest.raises(BadInput, match="No native Dice for 1"):
        error_map(records, dict(list(native.items())[1:]))


def test_the_map_says_how_much_and_how_sure() -> None:
    records = random_records(30)
    for record in records:
        record["fp"]["brain_edge"] = 0
    found = {e["id"]: e for e in error_map(records)["error_map"]}
    halo = found["lesion_halo"]
    bearing = [r for r in records if r["n_lesion"]]
    assert halo["low"] < halo["cost"] < halo["high"]
    assert halo["hollow"] is False
    assert halo["voxels"] == sum(r["fp"]["lesion_halo"] for r in bearing)
    assert halo["ml"] == pytest.approx(halo["voxels"] * 0.008)
    assert halo["n_subjects"] == sum(r["fp"]["lesion_halo"] > 0 for r in bearing)
    edge_entry = found["brain_edge"]
    assert [edge_entry[k] for k in ("cost", "low", "high", "only", "all_but", "voxels")] == [0, 0, 0, 0, 0, 0]
    assert edge_entry["hollow"] is True
    alone = error_map(bearing[:1])["error_map"][3]
    assert alone["low"] is None
    assert alone["hollow"] is True
    assert error_map(records)["error_map"] == error_map(records)["error_map"]
    with pytest.raises(BadInput, match="No subject with a lesion"):
        error_map([r for r in records if not r["n_lesion"]])


@pytest.fixture
def scores(own_study: TinyStudy) -> RunScores:
    return open_scores(open_run(own_study.runs, "tiny"))


def random_scene(seed: int) -> tuple[Case, HealthyReference]:
    """A case whose brain is not quite the consensus, at 3 mm, with every kind of error in it."""
    grid = Grid((32, 36, 30), np.diag([3.0, 3.0, 3.0, 1.0]))
    made = small_volumes(6, seed=seed, shape=grid.shape)
    volumes = [Volume(v.voxels, grid, v.brain_mask, v.subject_id, v.contrasts) for v in made]
    brain = np.roll(volumes[0].brain_mask, 1, axis=seed % 3)
    return random_case(grid, brain, np.asarray(volumes[0].voxels[0]), seed, 8), healthy_reference(volumes)


def ragged_volumes(n: int) -> list[Volume]:
    """Healthy volumes whose brains differ by random voxels."""
    rng = np.random.Generator(np.random.Philox(8))
    return [
        Volume(v.voxels, v.grid, v.brain_mask & (rng.random(v.grid.shape) < 0.8), v.subject_id, v.contrasts)
        for v in small_volumes(n)
    ]


def random_records(n: int) -> list[dict]:
    """Records with counts of every kind; the last one is of a healthy scan."""
    rng = np.random.Generator(np.random.Philox(9))
    records = []
    for number in range(n):
        fn = {name: int(k) for name, k in zip(MISSED, rng.integers(0, 90, 6), strict=True)}
        hits = int(rng.integers(1, 900))
        if number == n - 1:
            hits, fn = 0, dict.fromkeys(MISSED, 0)
        records.append(
            {
                "subject_id": f"sub-{number:02d}",
                "hits": hits,
                "fp": {name: int(k) for name, k in zip(FALSE_POSITIVES, rng.integers(0, 300, 8), strict=True)},
                "fn": fn,
                "n_lesion": hits + sum(fn.values()),
                "voxel_ml": 0.008,
            }
        )
    return records


def counted(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> list[str]:
    """Let a function of a module be called as ever, and note every call."""
    calls: list[str] = []
    original = getattr(module, name)

    def noted(*arguments, **named):
        calls.append(name)
        return original(*arguments, **named)

    monkeypatch.setattr(module, name, noted)
    return calls


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))

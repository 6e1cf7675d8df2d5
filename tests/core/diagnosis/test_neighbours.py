"""Neighbours of a place in a memory bank: the right patches, the right pictures, the same words everywhere."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
from PIL import Image
from streamlit.testing.v1 import AppTest

import cli
from core.detectors.patchcore import PatchCore
from core.diagnosis.neighbour_questions import start_voxel
from core.diagnosis.neighbours import PLACE, BankSearch, open_bank
from core.features.settings import FeatureSettings
from core.memory_bank import one_patch
from core.memory_bank.settings import BankSettings
from core.presentation.neighbour_words import apart_text, distance_text, mm_text, place_text, row_labels, sentences
from core.presentation.patch_pictures import (
    EDGE_MM,
    GAMMA,
    LABEL,
    MARK_RGB,
    PIXELS,
    cut_out,
    labelled_sheet,
    patch_picture,
    window_of,
)
from core.runs.listing import open_run
from core.study.run_scans import prepared_of
from core.study.stored_scores import open_scores
from data.errors import BadInput
from data.volume import Grid, Volume
from models.settings import EncoderSettings
from pages._text import plain
from tests.study import SCAN_FLAGS, TinyStudy, small_volumes

ROOT = Path(__file__).parents[3]
LAYERS = ("input", "stage1", "stage2")
ENCODER = EncoderSettings(width=4)
FEATURES = FeatureSettings(layers=LAYERS, grid="8mm")


def searching(volumes: Sequence[Volume], **settings: Any) -> BankSearch:
    """A bank of every patch of some volumes, ready to look up neighbours."""
    bank = BankSettings(**({"subset": "all"} | settings))
    return BankSearch.of(PatchCore(encoder=ENCODER, features=FEATURES, bank=bank).fit(volumes))


@pytest.fixture(scope="module")
def volumes() -> list[Volume]:
    return small_volumes(5)


@pytest.fixture(scope="module")
def search(volumes: list[Volume]) -> BankSearch:
    return searching(volumes[:4])


@pytest.fixture(scope="module")
def banks(study: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """The tiny study with an evaluated run that has a position-aware memory bank."""
    own = study.copy(tmp_path_factory.mktemp("banks") / "study")
    runs = ["--runs", str(own.runs)]
    fit = ["--encoder", "tiny-encoder", "--layers", "input", "stage2", "--grid", "8mm", "--coreset-ratio", "0.3"]
    scans = [str(own.table), *runs, *SCAN_FLAGS]
    bank = ["--run-id", "tiny-bank", "--detector", "patchcore-position"]
    assert cli.main(["fit", *scans, *bank, *fit]) == 0
    assert cli.main(["score", "tiny-bank", *runs]) == 0
    assert cli.main(["evaluate", "tiny-bank", *runs, "--workers", "1"]) == 0
    return own


def inner_voxel(volume: Volume) -> tuple[int, int, int]:
    x, y, z = (size // 2 for size in volume.grid.shape)
    return x, y, z


def squared_by_hand(search: BankSearch, volume: Volume, position: int) -> dict[str, np.ndarray]:
    """Squared distances of a patch to every entry, layer by layer, from the stored rows."""
    bank, extractor = search.bank, search.detector.extractor_
    assert extractor is not None
    rows, found = extractor(volume).rows, {}
    for layer in bank.layers:
        mine = (rows[layer][int(bank.lookup[layer][position])] - bank.means[layer]) / bank.spreads[layer]
        theirs = bank.rows[layer][bank.row_of[layer]]
        found[layer] = (mine - theirs).double().square().sum(1).numpy()
    return found


# ---- neighbours -----------------------------------------------------------------------------------------------------


def test_a_scan_under_another_name_is_found_at_distance_zero(search: BankSearch, volumes: list[Volume]) -> None:
    volume = dataclasses.replace(volumes[2], subject_id="another")
    view = search.at(volume, search.features(volume), inner_voxel(volume), LAYERS)
    first = view.nearest[0]
    assert (first.subject_id, first.distance, first.apart_mm) == (volumes[2].subject_id, 0.0, 0.0)
    assert first.voxel == view.patch_voxel
    assert first.shares == {}
    assert view.nearest[1].distance > 0
    assert "left out" not in " ".join(sentences(view))


@pytest.mark.parametrize("position", ["anywhere", "restricted"])
def test_a_subject_of_the_bank_meets_the_others_alone(volumes: list[Volume], position: str) -> None:
    whole, without = (
        searching(some, position=position, scaling="none") for some in (volumes[:4], [volumes[0], *volumes[2:4]])
    )
    volume = volumes[1]
    view, expected = (s.at(volume, s.features(volume), inner_voxel(volume), LAYERS, k=4) for s in (whole, without))
    assert volume.subject_id not in {one.subject_id for one in (*view.nearest, view.other)}
    assert [one.distance for one in view.nearest] == pytest.approx([one.distance for one in expected.nearest])
    assert (view.entries, view.candidates, view.other_candidates) == (
        expected.entries,
        expected.candidates,
        expected.other_candidates,
    )
    assert (view.own, expected.own) == (len(whole.bank) - view.entries, 0)
    assert f"The {view.own:,} patches of this subject are in the bank and left out" in " ".join(sentences(view))


def test_a_bank_of_one_subject_has_no_neighbours_for_it(volumes: list[Volume]) -> None:
    alone = searching(volumes[:1], position="restricted")
    with pytest.raises(BadInput, match=r"own\. Choose another voxel"):
        alone.at(volumes[0], alone.features(volumes[0]), inner_voxel(volumes[0]), LAYERS)


@pytest.mark.parametrize("layers", [("stage1",), ("input", "stage2"), LAYERS])
def test_the_nearest_is_what_brute_force_finds(
    search: BankSearch, volumes: list[Volume], layers: tuple[str, ...]
) -> None:
    volume = volumes[4]
    voxel = inner_voxel(volume)
    position = search.position_at(volume.grid, voxel)
    by_hand = squared_by_hand(search, volume, position)
    squared = np.sort(sum(by_hand[layer] for layer in layers))
    view = search.at(volume, search.features(volume), voxel, layers, k=5)
    assert [one.distance for one in view.nearest] == pytest.approx(list(np.sqrt(squared[:5])), rel=1e-4)
    stored = search.detector.distances([volume], [layers])[0, 0, position]
    assert view.distance == pytest.approx(stored, rel=1e-5)


def test_shares_of_the_layers_are_those_of_the_squared_distance_and_sum_to_one(
    search: BankSearch, volumes: list[Volume]
) -> None:
    volume = volumes[4]
    voxel = inner_voxel(volume)
    position = search.position_at(volume.grid, voxel)
    view = search.at(volume, search.features(volume), voxel, LAYERS)
    assert search.detector.extractor_ is not None
    found = one_patch.nearest(search.bank, search.detector.extractor_(volume).rows, position, LAYERS, 3)
    assert [one.subject_id for one in view.nearest] == list(found.subject_id)
    by_hand = squared_by_hand(search, volume, position)
    for one, entry in zip(view.nearest, found.entry, strict=True):
        parts = {layer: float(part[entry]) for layer, part in by_hand.items()}
        assert sum(one.shares.values()) == pytest.approx(1.0)
        assert dict(one.shares) == pytest.approx({k: v / sum(parts.values()) for k, v in parts.items()}, rel=1e-4)


def test_where_the_place_is_weighed_it_has_a_share_of_its_own(volumes: list[Volume]) -> None:
    search = searching(volumes[:4], position="weighted", position_weight=0.05)
    view = search.at(volumes[4], search.features(volumes[4]), inner_voxel(volumes[4]), LAYERS, k=20)
    assert any(one.apart_mm > 0 for one in view.nearest)
    for one in view.nearest:
        assert sum(one.shares.values()) == pytest.approx(1.0)
        assert one.shares[PLACE] * one.distance**2 == pytest.approx((0.05 * one.apart_mm) ** 2, rel=1e-3, abs=1e-9)
    assert "The way to a patch counts too" in " ".join(sentences(view))


def test_a_restricted_bank_also_says_what_would_be_nearest_anywhere(search: BankSearch, volumes: list[Volume]) -> None:
    near = searching(volumes[:4], position="restricted", radius_mm=8.0)
    volume, voxel = volumes[4], inner_voxel(volumes[4])
    anywhere, restricted = (s.at(volume, s.features(volume), voxel, LAYERS) for s in (search, near))
    assert restricted.other is not None
    assert anywhere.other is not None
    assert all(one.apart_mm <= 8.001 for one in restricted.nearest)
    assert restricted.other.distance == pytest.approx(anywhere.distance)
    assert anywhere.other.distance == pytest.approx(restricted.distance)
    assert restricted.other.distance <= restricted.distance
    assert (restricted.radius_mm, anywhere.radius_mm) == (8.0, None)
    assert restricted.candidates < anywhere.candidates == anywhere.entries == len(search.bank)
    allowed = f"nearest of the {restricted.candidates:,} (of {restricted.entries:,}) healthy patches within 8 mm."
    assert allowed in " ".join(sentences(restricted))
    assert f"nearest of the {anywhere.entries:,} healthy patches." in " ".join(sentences(anywhere))
    assert "If the place did not matter" in " ".join(sentences(restricted))


def test_a_bank_that_keeps_few_patches_of_a_place_says_so(search: BankSearch, volumes: list[Volume]) -> None:
    view = search.at(volumes[4], search.features(volumes[4]), inner_voxel(volumes[4]), LAYERS)
    assert view.other is not None
    far = dataclasses.replace(view.nearest[0], distance=view.other.distance / 2, voxel=(0, 0, 0))
    one, few, many = (
        " ".join(sentences(dataclasses.replace(view, nearest=(far,), other_candidates=n))) for n in (1, 2, 1000)
    )
    assert "Of the 1 patch kept within 8 mm" in one
    assert "Only 1 patch of this place is in the bank: too few to judge" in one
    assert "Only 2 patches of this place are in the bank: too few to judge" in few
    assert "less strange than its own surroundings" not in few
    assert "look 50\u00a0% less strange than its own surroundings do" in many


def test_positions_are_voxels_of_the_working_grid_and_mm_of_its_world(
    search: BankSearch, volumes: list[Volume]
) -> None:
    volume = volumes[4]
    view = search.at(volume, search.features(volume), inner_voxel(volume), LAYERS, k=8)
    for one in view.nearest:
        mm = volume.grid.affine[:3, :3] @ np.array(one.voxel) + volume.grid.affine[:3, 3]
        assert one.position_mm == pytest.approx(tuple(mm))
        assert one.apart_mm == pytest.approx(float(np.linalg.norm(mm - np.array(view.position_mm))))


def test_outside_the_brain_and_off_the_grid_are_refused_in_words(search: BankSearch, volumes: list[Volume]) -> None:
    volume = volumes[4]
    rows = search.features(volume)
    with pytest.raises(BadInput, match="outside the brain"):
        search.at(volume, rows, (0, 0, 0), LAYERS)
    with pytest.raises(BadInput, match="Allowed: 0 0 0 to 15 23 15"):
        search.at(volume, rows, (3, 24, 3), LAYERS)


def test_a_lookup_begins_in_the_largest_lesion(study: TinyStudy) -> None:
    prepared = prepared_of(open_run(study.runs, "tiny"), "test01")
    assert prepared.lesion is not None
    assert prepared.lesion.voxels[start_voxel(prepared)]
    both = np.array(prepared.lesion.voxels)
    both[:2, :2, :2] = True
    largest = np.array(prepared.lesion.voxels)
    lesion = dataclasses.replace(prepared.lesion, voxels=both)
    assert largest[start_voxel(dataclasses.replace(prepared, lesion=lesion))]


def test_numbers_are_told_with_three_digits() -> None:
    assert [distance_text(d) for d in (12.345, 0.01234, 100.4, 4321.9)] == ["12.3", "0.0123", "100", "4322"]
    assert [apart_text(mm) for mm in (0.0, 5.7)] == ["at the same place", "6\u00a0mm away"]
    assert mm_text((-0.4, -2.6, 3.0)) == "(0,\u00a0−3,\u00a03)\u00a0mm"


def test_the_words_say_beside_the_score_why_the_read_out_can_differ(search: BankSearch, volumes: list[Volume]) -> None:
    view = search.at(volumes[4], search.features(volumes[4]), inner_voxel(volumes[4]), LAYERS)
    beside = f"scores {distance_text(view.distance)} (under the cross-hair the map blends several patches"
    assert beside in sentences(view)[0]


def test_every_row_of_a_sheet_is_labelled_with_whose_how_far_and_where(
    search: BankSearch, volumes: list[Volume]
) -> None:
    view = search.at(volumes[4], search.features(volumes[4]), inner_voxel(volumes[4]), LAYERS, k=2)
    here, first, second, within = row_labels(view)
    assert here.startswith(f"Here: {volumes[4].subject_id}, ")
    assert first.startswith(f"Nearest 1: {view.nearest[0].subject_id}, distance {distance_text(view.distance)}, ")
    assert second.startswith("Nearest 2: ")
    assert within.startswith("Within 8 mm: ")
    assert place_text((-12.2, 3.6, -0.4)) == "12\u00a0mm left, 4\u00a0mm front, 0\u00a0mm up"


# ---- pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.0, 2.0, 3.0)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_cut_out_has_its_voxel_in_the_middle(axis: int, spacing: tuple[float, float, float]) -> None:
    shape = (60, 62, 64)
    x, y, z = np.indices(shape, dtype=np.float32)
    voxel = (30, 5, 40)  # near the front: a part lies beyond the scan
    planes = [cut_out(values + 1, voxel, axis, spacing) for values in (x, y, z)]
    rows, columns = planes[0].shape
    assert rows % 2 == columns % 2 == 1
    assert [plane[rows // 2, columns // 2] - 1 for plane in planes] == list(voxel)
    across, up = [k for k in range(3) if k != axis]
    assert (columns, rows) == tuple(2 * round(EDGE_MM / 2 / spacing[k]) + 1 for k in (across, up))
    inside = planes[up][:, columns // 2]
    assert (np.diff(inside[inside > 0]) == -1).all()  # up on the screen is front or top
    inside = planes[across][rows // 2]
    assert (np.diff(inside[inside > 0]) == -1).all()  # the subject's right, or front, is on the left
    assert (planes[1] == 0).any() == (axis != 1)


def test_a_picture_is_three_cut_outs_with_an_open_cross_on_the_voxel() -> None:
    grid = Grid((40, 40, 40), np.diag([2.0, 2.0, 2.0, 1.0]))
    voxels = np.zeros((1, 40, 40, 40), dtype=np.float32)
    voxel = (12, 20, 25)
    voxels[0][voxel] = 1.0
    volume = Volume(voxels, grid, np.ones(grid.shape, dtype=bool), "s", ("T1",))
    picture = patch_picture(volume, voxel, (0.0, 1.0))
    assert picture.shape == (PIXELS, 3 * PIXELS + 12, 3)
    for start in (0, PIXELS + 6, 2 * (PIXELS + 6)):
        panel = picture[:, start : start + PIXELS]
        marked = (panel == MARK_RGB).all(2)
        grey = np.where(marked, 0, panel[..., 0].astype(float))
        centre = [float((grey * at).sum() / grey.sum()) for at in np.indices(grey.shape)]
        assert centre == pytest.approx([(PIXELS - 1) / 2] * 2, abs=0.5)
        assert [float(at[marked].mean()) for at in np.indices(marked.shape)] == pytest.approx([(PIXELS - 1) / 2] * 2)
        assert not marked[PIXELS // 2 - 8 : PIXELS // 2 + 8, PIXELS // 2 - 8 : PIXELS // 2 + 8].any()


def test_the_neurological_convention_mirrors_axial_and_coronal_alone() -> None:
    volume = small_volumes(1)[0]
    radiological, neurological = (
        patch_picture(volume, (6, 12, 8), (0.0, 1.0), convention=convention)
        for convention in ("radiological", "neurological")
    )
    sides = [slice(0, PIXELS), slice(PIXELS + 6, 2 * PIXELS + 6), slice(2 * PIXELS + 12, None)]
    for side in sides[:2]:
        assert np.abs(radiological[:, side][:, ::-1].astype(int) - neurological[:, side]).max() <= 1
    assert np.array_equal(radiological[:, sides[2]], neurological[:, sides[2]])


def test_one_grey_window_shows_equal_values_alike() -> None:
    volume = small_volumes(1)[0]
    darker = dataclasses.replace(volume, voxels=np.array(volume.voxels) / 2)
    bright, dark = (patch_picture(v, (8, 12, 8), (0.0, 1.0)).astype(float) for v in (volume, darker))
    inside = (bright[..., 0] > 80) & (bright[..., 0] != MARK_RGB[0])
    assert (dark[..., 0] / np.maximum(bright[..., 0], 1))[inside] == pytest.approx(0.5**GAMMA, abs=0.02)


def test_the_grey_window_spans_the_tissue_around_the_places() -> None:
    grid = Grid((60, 60, 60), np.diag([2.0, 2.0, 2.0, 1.0]))
    values = np.random.Generator(np.random.Philox(3)).uniform(0.5, 0.8, grid.shape).astype(np.float32)
    values[40:] = 5.0  # bright, but nowhere near
    values[8:11, 10, 10] = 0.1  # outside the brain
    brain = np.ones(grid.shape, dtype=bool)
    brain[8:11, 10, 10] = False
    one = Volume(values[None], grid, brain, "s", ("T1",))
    low, high = window_of([(one, (10, 20, 20))])
    assert 0.5 <= low < 0.51
    assert 0.79 < high <= 0.8
    brighter = dataclasses.replace(one, voxels=np.array(one.voxels) + 0.2)
    both = window_of([(one, (10, 20, 20)), (brighter, (10, 20, 20))])
    assert 0.5 <= both[0] < 0.53
    assert 0.98 < both[1] <= 1.0
    picture = patch_picture(one, (10, 20, 20), (low, high))[:, :PIXELS, 0]
    assert (picture == 255).mean() < 0.05
    assert picture.std() > 40


def test_bright_tissues_are_told_apart() -> None:
    grid = Grid((60, 60, 60), np.diag([2.0, 2.0, 2.0, 1.0]))
    values = np.full(grid.shape, 0.91, dtype=np.float32)  # white matter of a scan whose values are cut at 1
    values[29:32, 29:32, 29:32] = 1.0
    values[:22] = 0.1
    volume = Volume(values[None], grid, np.ones(grid.shape, dtype=bool), "s", ("T1",))
    picture = patch_picture(volume, (30, 30, 30), window_of([(volume, (30, 30, 30))]))[:, :PIXELS, 0].astype(int)
    lesion, around = picture[PIXELS // 2, PIXELS // 2], picture[PIXELS // 4, PIXELS // 4]
    assert lesion - around > 35


def test_a_sheet_names_planes_and_rows_above_the_pictures() -> None:
    picture = np.full((PIXELS, 3 * PIXELS + 12, 3), 90, dtype=np.uint8)
    sheet = labelled_sheet([picture, picture], ["Here: sub-1", "Nearest 1: sub-\u00e4"])
    assert sheet.shape == (LABEL + 2 * (LABEL + PIXELS), 3 * PIXELS + 12, 3)
    planes, here, there = (sheet[at : at + LABEL] for at in (0, LABEL, 2 * LABEL + PIXELS))
    for start in (0, PIXELS + 6, 2 * (PIXELS + 6)):
        assert planes[:, start : start + PIXELS].max() == 255
    assert here.max() == there.max() == 255
    assert not np.array_equal(here, there)
    assert np.array_equal(sheet[2 * LABEL : 2 * LABEL + PIXELS], picture)


# ---- the verb and the page ------------------------------------------------------------------------------------------


def test_the_verb_prints_subjects_distances_and_the_other_rule(
    banks: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["neighbours", "tiny-bank", "test01", "--runs", str(banks.runs)]
    capsys.readouterr()
    assert cli.main([*asked, "--layers", "stage2+input", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    run = open_run(banks.runs, "tiny-bank")
    search, scores = open_bank(run), open_scores(run)
    voxel = tuple(found["voxel"])
    position = search.position_at(prepared_of(run, "test01").volume.grid, voxel)
    stored = scores.distances("test01")[scores.layer_sets.index(("input", "stage2")), position]
    assert found["nearest"][0]["distance"] == pytest.approx(float(stored), rel=1e-4)
    assert {one["subject_id"] for one in found["nearest"]} <= set(scores.subjects("train"))
    picture = tmp_path / "place.png"
    place = ["--voxel", *map(str, voxel), "--count", "2", "--picture", str(picture)]
    assert cli.main([*asked, *place]) == 0
    text = capsys.readouterr().out
    assert found["nearest"][0]["subject_id"] in text
    assert f"The patch here scores {distance_text(found['nearest'][0]['distance'])}" in text
    assert "healthy patches within 8 mm" in text
    assert Image.open(picture).size == (3 * PIXELS + 12, LABEL + 4 * (PIXELS + LABEL))


@pytest.mark.parametrize(
    ("wrong", "parts"),
    [
        (["test01", "--picture", "/nope/x.png"], ["--picture /nope/x.png", "no folder /nope", "Make it first"]),
        (["test01", "--picture", "."], ["--picture . is a folder", "Give the path of a .png file"]),
        (["test01", "--picture", "x.jpg"], ["ends in .jpg", "Allowed: .png"]),
        (["test01", "--count", "0"], ["--count is 0", "Allowed: 1 or more", "e.g. --count 3"]),
        (["tst01"], ["No subject 'tst01' in run tiny-bank", "Allowed: its ", "e.g. test0", "Did you mean 'test01'?"]),
        (["test01", "--layers", "input+no"], ["no layer 'no'", "Allowed: input, stage2", "joined by +"]),
        (["test01", "--voxel", "0", "0", "0"], ["outside the brain", "Choose a voxel of the brain"]),
    ],
)
def test_wrong_arguments_are_told_before_the_bank_is_read(
    banks: TinyStudy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: list[str],
    parts: list[str],
) -> None:
    def never(run: Any) -> None:
        raise AssertionError("The bank was read.")

    monkeypatch.setattr("core.diagnosis.neighbours.open_bank", never)
    capsys.readouterr()
    assert cli.main(["neighbours", "tiny-bank", *wrong, "--runs", str(banks.runs)]) == 2
    told = " ".join(capsys.readouterr().err.split())
    for part in parts:
        assert part in told


def test_the_verb_refuses_a_run_without_a_bank(banks: TinyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["neighbours", "tiny", "test01", "--runs", str(banks.runs)]) == 2
    assert "no neighbours to show" in " ".join(capsys.readouterr().err.split())


def opened(monkeypatch: pytest.MonkeyPatch, runs: Path, **query: str) -> AppTest:
    monkeypatch.setenv("DICESCOPE_RUNS", str(runs))
    monkeypatch.chdir(ROOT)
    st.cache_resource.clear()
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    for key, value in query.items():
        app.query_params[key] = value
    app.switch_page("pages/slices.py")
    return app.run()


def texts(app: Any) -> str:
    return "\n".join(str(e.value) for kind in ("subheader", "markdown", "caption", "info") for e in app.get(kind))


def test_slices_shows_the_neighbours_of_the_cross_hair_for_a_bank_run(
    banks: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(monkeypatch, banks.runs, run="tiny-bank", subject="test01")
    assert not app.exception
    assert not app.error
    text = texts(app)
    assert "Nearest healthy patches" in text
    assert "healthy patches within 8 mm" in text
    assert "each has its own nearest patch" in text
    assert len(app.get("image")) == 5  # here, three neighbours, and the one anywhere
    run = open_run(banks.runs, "tiny-bank")
    prepared = prepared_of(run, "test01")
    search = open_bank(run)
    [told] = re.findall(r"Layer set (\S+)\.", text)
    layers = tuple(told.split("+"))
    view = search.at(prepared.volume, search.features(prepared.volume), start_voxel(prepared), layers)
    assert f"The patch here scores {distance_text(view.distance)}" in text
    for one in view.nearest:
        assert f"{plain(one.subject_id)} · distance **{distance_text(one.distance)}**" in text


def test_a_linked_cross_hair_outside_the_brain_is_told(banks: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(monkeypatch, banks.runs, run="tiny-bank", subject="test01", x="0", y="0", z="0")
    assert not app.exception
    assert "The cross-hair is outside the brain" in texts(app)
    assert not app.get("image")


def test_slices_shows_no_neighbours_for_a_gaussian_run(banks: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(monkeypatch, banks.runs, run="tiny", subject="test01")
    assert not app.exception
    assert "Nearest healthy patches" not in texts(app)


def test_a_subject_called_like_markup_is_shown_as_it_stands() -> None:
    assert plain("sub-01_a") == r"sub\-01\_a"
    assert plain("[x](y) :red[z] <b>*") == r"\[x\]\(y\) \:red\[z\] \<b\>\*"
    assert plain("Ärztin 7") == "Ärztin 7"

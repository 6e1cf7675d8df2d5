"""Same scans, same numbers: nothing that a table, a folder or a machine adds to the scans reaches a result."""

import csv
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import cli
from core.features.layout import feature_layout
from core.features.settings import every_layer_set
from core.gaussian.running import fit_gaussian
from core.memory_bank.bank import MemoryBank
from core.memory_bank.settings import BankSettings
from core.memory_plan import GaussianSettings
from core.pretraining.simclr import SimclrSettings
from core.pretraining.simclr.scans import open_scans
from core.pretraining.simclr.variant import Batch, Setup, view_draws
from core.pretraining.view_settings import ViewSettings
from core.pretraining.views import ViewDraw
from core.pretraining.visibility.changes import lesion_places, view_changes
from core.pretraining.visibility.measure import windows_of
from core.pretraining.visibility.settings import VisibilitySettings
from core.randomness import number_of
from core.runs.listing import open_run
from core.runs.store import update_run
from core.types import FeatureLayout
from data.files import MANIFEST
from data.json_files import read_json
from data.preprocessing import prepare_reading
from data.table import read_table
from data.volume import Grid
from models.encoder import make_encoder
from models.settings import EncoderSettings
from tests.study import PREPROCESSING, SCAN_FLAGS, SIMCLR_FLAGS, small_volumes, write_scans

GAUSSIAN = ("--encoder", "encoder", "--layers", "input", "stage1", "--grid", "8mm")
FITS: dict[str, tuple[str, ...]] = {
    "dual": ("--form", "dual", *GAUSSIAN),
    "primal": ("--form", "primal", "--covariance", "diagonal", *GAUSSIAN),
    "bank": ("--detector", "patchcore", *GAUSSIAN),
    "zscore": ("--detector", "zscore"),
}


@dataclass(frozen=True)
class Made:
    """A study that was computed in one way."""

    runs: Path
    table: Path

    def committed(self) -> dict[str, dict[str, str]]:
        """Hash of every file of every committed directory, those of prepared scans included, by place."""
        return {
            path.parent.relative_to(self.runs).as_posix(): dict(read_json(path)["files"])
            for path in sorted(self.runs.rglob(MANIFEST))
        }


def compute(table: Path, runs: Path, *, workers: int) -> Made:
    """Every verb that writes numbers."""

    def call(*words: str) -> None:
        assert cli.main([*words, "--runs", str(runs)]) == 0, words

    scans, many = (str(table), *SCAN_FLAGS), ("--workers", str(workers))
    call("prepare", *scans, *many)
    call("pretrain", *scans, "--run-id", "encoder", *SIMCLR_FLAGS)
    call("visibility", "encoder")
    for run_id, flags in FITS.items():
        call("fit", *scans, "--run-id", run_id, *flags)
        call("score", run_id)
        call("evaluate", run_id, *many)
    call("diagnose", "dual")
    for name in ("calibrate-subject", "fewer-scans"):
        call("what-if", "dual", name)
    call("post-processing", "dual", *many)
    call("detection-limits", "dual", "--per-cell", "1", "--diameters-mm", "12", "24", "--contrasts-sd", "4")
    return Made(runs, table)


def disordered(table: Path, to: Path, *, link: bool = True) -> Path:
    """The same scans as another table elsewhere: rows backwards, columns turned round, files linked or copied."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    to.mkdir(parents=True)
    columns = list(reversed(rows[0]))
    with (to / "other name.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for number, row in enumerate(reversed(rows)):
            for column in ("FLAIR", "lesion_mask"):
                if row[column]:
                    here = to / f"{number} {column} ü.nii.gz"
                    source = table.parent / row[column]
                    here.symlink_to(source) if link else here.write_bytes(source.read_bytes())
                    row[column] = here.name
            writer.writerow(row)
    return to / "other name.csv"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The study as anybody would compute it."""
    root = tmp_path_factory.mktemp("same")
    return compute(write_scans(root / "scans" / "cohort.csv"), root / "runs", workers=1)


@pytest.fixture(scope="module")
def otherwise(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """The same scans disordered, in a folder whose name says "mask" and "seg", by a relative path, with two workers."""
    root = tmp_path_factory.mktemp("a") / "mask_seg" / "b c" / "ü"
    table = disordered(made.table, root)
    before = Path.cwd()
    os.chdir(root.parent)
    try:
        yield compute(table.relative_to(root.parent), root / "my runs", workers=2)
    finally:
        os.chdir(before)


def test_row_order_folder_names_links_and_workers_change_no_byte_of_any_result(made: Made, otherwise: Made) -> None:
    one, other = made.committed(), otherwise.committed()
    assert list(one) == list(other)
    assert [place for place in one if one[place] != other[place]] == []


def test_a_run_that_was_begun_in_another_order_goes_on_and_is_the_same_run(made: Made, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(made.runs, tmp_path / "runs"))
    run = open_run(runs, "zscore")
    backwards = {role: list(reversed(ids)) for role, ids in run.record["split"].items()}
    update_run(run, split=backwards)
    words = ["fit", str(made.table), *SCAN_FLAGS, "--run-id", "zscore", *FITS["zscore"], "--runs", str(runs)]
    assert cli.main(words) == 0
    assert open_run(runs, "zscore").record["split"] == backwards


# -------------------------------------------------------------------------------------------- draws, and how it lies


def test_what_is_drawn_for_a_subject_does_not_depend_on_who_else_is_there() -> None:
    settings, volumes = VisibilitySettings(scans=9), small_volumes(6, shape=(24, 24, 24))
    few, many = (
        {window.volume.subject_id: window for window in windows_of(some, ViewSettings(), settings)}
        for some in (volumes[3:], volumes)
    )
    for subject_id, window in few.items():
        one, other = (view_changes(w, ViewSettings(), settings) for w in (window, many[subject_id]))
        assert all(torch.equal(a.image, b.image) for a, b in zip(one, other, strict=True))
        assert np.array_equal(lesion_places(window, settings), lesion_places(many[subject_id], settings))


def test_views_of_a_training_are_drawn_by_subject(tmp_path: Path) -> None:
    drawn: list[dict[str, ViewDraw]] = []
    for volumes in (small_volumes(4), small_volumes(5)[1:]):
        settings = SimclrSettings(batch=4, steps=1, encoder=EncoderSettings(width=4), views=ViewSettings())
        scans = open_scans(volumes, settings, torch.device("cpu"))
        samples = tuple(map(number_of, scans.subject_ids))
        setup = Setup(
            settings, make_encoder(settings.encoder), torch.device("cpu"), scans.shape, (4.0,) * 3, 4, samples
        )
        views = view_draws(setup, Batch(1, range(4), [], []))[1]
        drawn.append(dict(zip(scans.subject_ids, views, strict=True)))
    common = drawn[0].keys() & drawn[1].keys()
    assert len(common) == 3
    assert all(drawn[0][i] == drawn[1][i] for i in common)


@pytest.mark.parametrize("axes", ["LPS", "SAR", "PIL", "ASL", "IRP"])
def test_the_order_in_which_a_file_stores_its_axes_changes_no_voxel(tmp_path: Path, axes: str) -> None:
    table = write_scans(tmp_path / "scans" / "cohort.csv")
    subject = read_table(table)["test01"]
    files = (*subject.scans.values(), subject.lesion_mask)
    for path in files:  # places that the header's float32 holds exactly, whichever corner comes first
        exact = np.diag([4.125, 3.875, 4.0, 1.0])
        exact[:3, 3] = -82.25, -113.5, -75.25
        nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), exact), path)
    straight = prepare_reading(subject, PREPROCESSING)
    for path in files:
        image = nib.load(path)
        turn = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(axes))
        )
        nib.save(image.as_reoriented(turn), path)
    turned = prepare_reading(subject, PREPROCESSING)
    assert turned.axes == axes
    assert np.array_equal(turned.volume.voxels, straight.volume.voxels)
    assert np.array_equal(turned.volume.brain_mask, straight.volume.brain_mask)
    assert np.array_equal(turned.native_lesion.voxels, straight.native_lesion.voxels)
    assert turned.voxel_sha256 == straight.voxel_sha256


# --------------------------------------------------------------------------------------- company in the same batch

CHANNELS = {"fine": 1, "middle": 6, "coarse": 33}


def small_layout() -> FeatureLayout:
    """Every cell of a box that no block size divides; layers at one, two and four cells."""
    working = Grid((9, 7, 5), np.diag([4.0, 4.0, 4.0, 1.0]))
    strides = {"fine": (1, 1, 1), "middle": (2, 2, 2), "coarse": (4, 4, 4)}
    return feature_layout(working, (1, 1, 1), strides, CHANNELS, np.argwhere(np.ones(working.shape, dtype=bool)))


LAYOUT = small_layout()
SETS = every_layer_set(tuple(CHANNELS))


def features(n: int, seed: int) -> list[dict[str, torch.Tensor]]:
    random = np.random.default_rng(seed)
    return [
        {
            layer: torch.from_numpy(random.normal(size=(len(cells), CHANNELS[layer])).astype(np.float32))
            for layer, cells in LAYOUT.layer_positions.items()
        }
        for _ in range(n)
    ]


def in_company(search: Callable[[Sequence[dict[str, torch.Tensor]]], Sequence[np.ndarray]], n: int) -> None:
    """The same bits for each of n volumes alone, in small batches and in a large one; one of them was trained on."""
    volumes = [*features(n - 1, seed=2), *features(1, seed=1)]
    together = search(volumes)
    for size in (1, 3, n - 1):
        parts = [search(volumes[start : start + size]) for start in range(0, n, size)]
        for found, whole in zip(zip(*parts, strict=True), together, strict=True):
            assert np.concatenate(found, axis=1).tobytes() == whole.tobytes(), size


@pytest.mark.parametrize(
    ("n", "settings"),
    [
        (9, GaussianSettings()),
        (30, GaussianSettings(form="dual")),
        (30, GaussianSettings(form="primal")),
        (9, GaussianSettings(shrinkage="ledoit_wolf")),
        (9, GaussianSettings(form="dual", shrinkage="oas")),
        (9, GaussianSettings(covariance="diagonal")),
        (9, GaussianSettings(covariance="shared")),
    ],
)
def test_a_gaussian_gives_a_scan_the_same_bits_alone_as_among_others(n: int, settings: GaussianSettings) -> None:
    fitted = fit_gaussian(features(n, 1), LAYOUT.lookup, CHANNELS, settings, n_subjects=n, limit_bytes=1e9)
    in_company(lambda volumes: [fitted.mahalanobis_subsets(volumes, SETS)], 26)


@pytest.mark.parametrize(
    "settings",
    [
        BankSettings(subset="random", coreset_ratio=0.3),
        BankSettings(subset="random", coreset_ratio=0.3, position="weighted"),
        BankSettings(subset="random", coreset_ratio=0.3, position="restricted"),
        BankSettings(subset="all", position="restricted"),
        BankSettings(subset="random", coreset_ratio=0.3, search="ivf"),
    ],
)
@pytest.mark.parametrize("subjects", [4, 17])
def test_a_memory_bank_gives_a_scan_the_same_bits_alone_as_among_others(settings: BankSettings, subjects: int) -> None:
    bank = MemoryBank.build(features(subjects, 1), tuple(map(str, range(subjects))), LAYOUT, settings)

    def search(volumes: Sequence[dict[str, torch.Tensor]]) -> list[np.ndarray]:
        found = bank.search(volumes, SETS)
        return [found.distance, found.entry]

    in_company(search, 8)

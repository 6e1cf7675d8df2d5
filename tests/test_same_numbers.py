"""Same scans, same numbers: nothing that a table, a folder or a machine adds to the scans reaches a result."""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import cli
from core.features import every_layer_set, feature_layout
from core.gaussian import GaussianSettings, fit_gaussian
from core.memory_bank.bank import MemoryBank
from core.memory_bank.settings import BankSettings
from core.types import FeatureLayout
from data.files import MANIFEST, read_json
from data.volume import Grid
from tests.study import SCAN_FLAGS, SIMCLR_FLAGS, write_scans

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


def in_company(distances: Callable[[Sequence[dict[str, torch.Tensor]]], np.ndarray]) -> None:
    """The same bits for a volume alone, in small batches and in a large one; one of them was trained on."""
    volumes = [*features(25, seed=2), *features(1, seed=1)]
    together = distances(volumes)
    for size in (1, 2, 3, 25):
        parts = [distances(volumes[start : start + size]) for start in range(0, len(volumes), size)]
        assert np.concatenate(parts, axis=1).tobytes() == together.tobytes(), size


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
    in_company(lambda volumes: fitted.mahalanobis_subsets(volumes, SETS))


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
    in_company(lambda volumes: bank.search(volumes, SETS).distance)
    in_company(lambda volumes: bank.search(volumes, SETS).entry)

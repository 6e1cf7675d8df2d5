"""Small studies in which nothing is wrong, or exactly one thing: a known cause of a low Dice, planted in the scans."""

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter

from core.detectors import make
from core.progress import Progress
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.study import evaluation, fitting, preparing, scoring
from core.study.data_source import DataSource
from core.types import Detector
from data.cohort import Subject
from data.nifti import write_nifti
from data.prepared import Preprocessing
from data.table import write_table
from data.template import working_template
from data.volume import Grid

Cause = Literal[
    "none", "shift", "gain", "remnant", "field-of-view", "labels", "faint-test", "few-scans", "ages", "tail"
]
ROLES = {"train": 24, "calibration": 4, "validation": 6, "test": 8}
FEW = {"train": 12, "calibration": 2, "validation": 3, "test": 6}
HEALTHY_TEST = 2
FEW_SCANS = 5
SHIFT_MM = 2.0
GAIN = 1.2


@dataclass(frozen=True)
class Planted:
    """One study: a cohort on disk with at most one thing wrong with its validation and test scans."""

    root: Path
    cause: Cause
    spacing_mm: float = 4.0
    """Voxel edge of scans and working grid; below 4 mm there are fewer subjects."""

    @property
    def runs(self) -> Path:
        """Its runs directory."""
        return self.root / "runs"

    def run(self, detector: Detector | None = None, run_id: str = "zscore") -> Run:
        """Fit, score and evaluate a detector on it, unless that is done."""
        table = self.root / "cohort.csv"
        if not table.is_file():
            write_scans(table, self.cause, self.spacing_mm)
        source = DataSource(
            table,
            layout="table",
            preprocessing=Preprocessing(
                contrasts=("T1",), registration="none", spacing_mm=self.spacing_mm, intensity="minmax"
            ),
        )
        progress = Progress(False, io.StringIO())
        preparing.prepare(self.runs, source, progress, workers=1)
        run = fitting.fit(self.runs, source, detector or make("zscore"), progress, name=run_id, run_id=run_id)
        run = scoring.score(run, progress)
        evaluation.evaluate_run(run, progress, workers=1)
        return open_run(self.runs, run_id)


def write_scans(table: Path, cause: Cause, spacing_mm: float) -> None:
    """Heads of one anatomy with noise of their own; the ill ones with one bright ball each."""
    template = working_template(spacing_mm)
    grid, brain = template.grid, template.brain_mask
    anatomy = 0.15 + 0.55 * np.clip(template.voxels[0] / np.percentile(template.voxels[0][brain], 99), 0, 1)
    subjects, seed = [], 0
    for role, count in (ROLES if spacing_mm >= 4 else FEW).items():
        for number in range(FEW_SCANS if cause == "few-scans" and role == "train" else count):
            ill = role == "validation" or (role == "test" and number < count - HEALTHY_TEST)
            name = f"{role}{number:02d}"
            subjects.append(_write(table.parent, name, role, anatomy, grid, brain, seed, ill, cause))
            seed += 1
    write_table(table, subjects)


def _write(
    folder: Path,
    name: str,
    role: str,
    anatomy: np.ndarray,
    grid: Grid,
    brain: np.ndarray,
    seed: int,
    ill: bool,
    cause: Cause,
) -> Subject:
    planted = role == "test" or (role == "validation" and cause != "faint-test")  # as if of the same hospital
    wrong = cause if planted else "none"
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, 0xCA], dtype=np.uint64)))
    spacing = grid.spacing_mm[0]
    smooth = gaussian_filter(rng.standard_normal(grid.shape), 12.0 / spacing)
    values = anatomy + 0.01 * smooth / smooth.std() + 0.015 * rng.standard_normal(grid.shape)
    mask = brain.copy()
    deep = np.argwhere(gaussian_filter(brain.astype(np.float32), 10.0 / spacing) > 0.97)
    deep = deep[deep[:, 2] > grid.shape[2] * 0.45] if cause == "field-of-view" else deep
    centre = deep[rng.integers(len(deep))]
    radius_mm = rng.uniform(11.0, 15.0)
    lesion = brain & (np.linalg.norm((np.indices(grid.shape).T - centre).T * spacing, axis=0) <= radius_mm)
    age = 20.0 + 60.0 * (seed % 3) / 2
    if cause == "ages":
        values = values - 0.003 * (age - 20.0)
    values = values + (0.06 if wrong == "faint-test" else 0.2) * (lesion & ill)
    if wrong == "remnant":
        mask = binary_dilation(brain, iterations=1)
        values = np.where(mask & ~brain, 0.85, values)
    values = np.where(mask, np.clip(values, 0.02, 0.98), 0.0)
    low, high = np.argwhere(brain)[[0, -1]]
    values[tuple(low)], values[tuple(high)] = 0.0, GAIN if wrong == "gain" else 1.0  # what min-max normalises by
    steady = np.argwhere(brain)[len(np.argwhere(brain)) // 2]
    values[tuple(steady)] = 0.6 if wrong == "tail" else 0.5  # one voxel that never varies: a huge score when it does
    if wrong == "field-of-view":
        mask = brain & (np.indices(grid.shape)[2] < centre[2] + 1)
    if wrong == "labels":
        lesion = binary_dilation(lesion) & brain
    if wrong == "shift":
        affine = grid.affine.copy()
        affine[0, 3] += SHIFT_MM
        grid = Grid(grid.shape, affine)
    paths = {what: folder / f"{name}_{what}.nii.gz" for what in ("T1", "brain", "lesion")}
    write_nifti(paths["T1"], values.astype(np.float32), grid)
    write_nifti(paths["brain"], mask.astype(np.uint8), grid)
    if ill:
        write_nifti(paths["lesion"], lesion.astype(np.uint8), grid)
    subject = Subject(name, {"T1": paths["T1"]}, paths["brain"], healthy=not ill, role=role, age=age)
    return dataclasses.replace(subject, lesion_mask=paths["lesion"]) if ill else subject

"""The main job on real scans: IXI T1 heads, planted stroke shapes, real lesion cases. Makes docs/results/real_scans.md.

    python -m benchmarks.real_study --scans ../shared/mri --runs runs-real

Train on healthy heads, calibrate on others, choose on planted validation heads, judge on planted test heads, healthy
test heads, and, in a second cohort, real lesion cases. No subject and no lesion shape stands on both sides.
"""

import argparse
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real_report import write_report
from core.detectors import make
from core.detectors.feature_gaussian import FeatureGaussian
from core.features.settings import FeatureSettings
from core.pretraining.simclr import SimclrSettings
from core.pretraining.view_settings import ViewSettings
from core.progress import Progress, open_progress
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.study import data_source, evaluation, fitting, preparing, scoring, training
from core.types import Detector
from data.cohort import Cohort, Subject
from data.files import is_committed
from data.ixi import read_ixi
from data.planting import plant_cohort, read_shapes
from data.prepared import Preprocessing
from data.table import read_table, write_table
from models.settings import EncoderSettings

SEED = 20261121
COUNTS = {"train": 90, "calibration": 15, "validation": 12, "test": 16, "test_healthy": 10}
SHAPE_ML = (0.5, 60.0)
LAYERS = ("input", "stage0", "stage1", "stage2", "stage3")
ENCODER = EncoderSettings(width=16)
PREPROCESSING = Preprocessing(contrasts=("T1",), registration="affine", resample_masks=True)
DETECTORS = ("bright", "dark", "zscore", "random", "simclr")


def main() -> None:
    """Build what is not there yet, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, required=True, help="folder with ixi_t1_2mm, lesions, stroke_masks_mni")
    parser.add_argument("--runs", type=Path, default=Path("runs-real"))
    parser.add_argument("--steps", type=int, default=300, help="SimCLR steps")
    parser.add_argument("--report", type=Path, default=Path("docs/results/real_scans.md"))
    parser.add_argument("--prepare-only", action="store_true")
    given = parser.parse_args()
    progress = open_progress()
    planted, real = build_tables(given.scans, given.runs)
    sources = {
        "planted": data_source.DataSource(planted, layout="table", preprocessing=PREPROCESSING),
        "real": data_source.DataSource(real, layout="table", preprocessing=PREPROCESSING),
    }
    for source in sources.values():
        preparing.prepare(given.runs, source, progress)
    if given.prepare_only:
        return
    simclr = SimclrSettings(
        encoder=ENCODER,
        views=ViewSettings(crop_voxels=(48, 48, 48)),
        steps=given.steps,
        batch=12,
        seed=SEED,
    )
    encoder = training.pretrain(
        given.runs, sources["planted"], simclr, progress, name="SimCLR, IXI T1", run_id="encoder"
    )
    runs = {
        (cohort, kind): finished(given.runs, source, progress, cohort, kind, encoder)
        for cohort, source in sources.items()
        for kind in DETECTORS
    }
    fresh = {key: open_run(given.runs, run.run_id) for key, run in runs.items()}
    write_report(given.report, open_run(given.runs, encoder.run_id), fresh)


def build_tables(scans: Path, runs: Path) -> tuple[Path, Path]:
    """Split the heads, plant lesions, and write the two cohort tables."""
    directory = runs / ".cohort"
    planted_table, real_table = directory / "planted.csv", directory / "real.csv"
    if planted_table.is_file() and real_table.is_file():
        return planted_table, real_table
    directory.mkdir(parents=True, exist_ok=True)
    heads = read_ixi(scans / "ixi_t1_2mm").subjects
    order = np.random.Generator(np.random.Philox(key=np.array([SEED, 1], dtype=np.uint64))).permutation(len(heads))
    groups: dict[str, list[Subject]] = {}
    start = 0
    for role, count in COUNTS.items():
        groups[role] = [heads[i] for i in order[start : start + count]]
        start += count
    shapes = [s for s in read_shapes(scans / "stroke_masks_mni") if SHAPE_ML[0] <= s.mask.volume_ml <= SHAPE_ML[1]]
    parts = {"validation": shapes[::3], "test": [s for n, s in enumerate(shapes) if n % 3]}
    healthy = [dataclasses.replace(s, role=r) for r in ("train", "calibration") for s in groups[r]]
    healthy += [dataclasses.replace(s, role="test") for s in groups["test_healthy"]]
    ill: list[Subject] = []
    for number, (role, usable) in enumerate(parts.items()):
        target = directory / f"planted-{role}"
        if not (target / "cohort.csv").is_file():
            shutil.rmtree(target, ignore_errors=True)
            plant_cohort(Cohort(role, tuple(groups[role])), usable, target, contrast="T1", seed=SEED + number)
        ill += [dataclasses.replace(s, role=role) for s in read_table(target / "cohort.csv").subjects]
    write_table(planted_table, [*healthy, *ill])
    apart = [s for s in healthy if s.role != "test"] + [s for s in ill if s.role == "validation"]
    write_table(real_table, [*apart, *real_cases(scans / "lesions")])
    return planted_table, real_table


def real_cases(lesions: Path) -> list[Subject]:
    """The cases with a T1: multiple sclerosis, glioma, white-matter hyperintensities of three elderly subjects."""
    cases = [
        Subject("openms_p26", {"T1": lesions / "openms_p26/t1.nii.gz"}, lesion_mask=lesions / "openms_p26/mask.nii.gz"),
        Subject(
            "tcga_du_7294",
            {"T1": lesions / "tcga_du_7294/t1.nii.gz"},
            lesion_mask=lesions / "tcga_du_7294/mask_mav.nii.gz",
            lesion_labels=(1, 2, 4),
        ),
    ]
    for name in ("nichart_S03", "nichart_S07", "nichart_S22"):
        folder = lesions / name
        mask = folder / "wml_auto.nii.gz"
        cases.append(Subject(name, {"T1": folder / "t1.nii.gz"}, folder / "t1_dlmuse.nii.gz", mask))
    return [dataclasses.replace(case, healthy=False, role="test") for case in cases]


def finished(
    runs: Path, source: data_source.DataSource, progress: Progress, cohort: str, kind: str, encoder: Run
) -> Run:
    """Fit, score and evaluate one detector on one cohort, unless that is done."""
    detector, uses = recipe(kind), encoder if kind == "simclr" else None
    run = fitting.fit(
        runs, source, detector, progress, name=f"{kind}, {cohort}", run_id=f"{cohort}-{kind}", encoder_run=uses
    )
    if not is_committed(run.directory / "evaluation"):
        run = scoring.score(run, progress)
        evaluation.evaluate_run(run, progress)
    return run


def recipe(kind: str) -> Detector:
    """The detectors of the table."""
    features = FeatureSettings(layers=LAYERS, grid="4mm")
    recipes: dict[str, Any] = {
        "bright": make("intensity-bright"),
        "dark": make("intensity-dark"),
        "zscore": make("zscore"),
        "random": FeatureGaussian(encoder=ENCODER, features=features),
        "simclr": FeatureGaussian(features=features),
    }
    return recipes[kind]


if __name__ == "__main__":
    main()

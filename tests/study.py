"""A whole study in miniature, built through the command line: scans on disk, an encoder, detectors, an evaluation."""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

import cli
from core.runs.run_record import identity_of_record
from data.cohort import Subject
from data.files import MANIFEST, SCHEMA, read_manifest
from data.hashed import sha256_file
from data.json_files import SEAL, content_digest, sealed, write_sealed_json
from data.nifti import write_nifti
from data.prepared import Preprocessing
from data.table import write_table
from data.template import working_template
from data.volume import Grid, Volume, resample

ROLES = {"train": 4, "calibration": 2, "validation": 2, "test": 4}
HEALTHY = ("train01", "train02", "train03", "train04", "calibration01", "calibration02", "test04")
ILL = ("validation01", "validation02", "test01", "test02", "test03")
PREPROCESSING = Preprocessing(contrasts=("FLAIR",), registration="none", spacing_mm=4.0)
SCAN_FLAGS = (
    "--preprocessing.contrasts", "FLAIR", "--preprocessing.registration", "none", "--preprocessing.spacing-mm", "4",
)  # fmt: skip
SIMCLR_FLAGS = (
    "--simclr.steps", "6", "--simclr.batch", "2", "--simclr.encoder.width", "4", "--simclr.checkpoint-every", "2",
    "--simclr.views.crop-voxels", "32", "32", "32",
)  # fmt: skip
LAYERS = ("input", "stage1", "stage2")
FIT_FLAGS = ("--layers", *LAYERS, "--grid", "8mm")
SCAN_GRID = Grid((42, 52, 42), np.array([[4.1, 0, 0, -82.3], [0, 3.9, 0, -113.4], [0, 0, 4, -75.2], [0, 0, 0, 1.0]]))
"""Neither the working grid's spacing nor its origin, so that native and working space differ."""


@dataclass(frozen=True)
class TinyStudy:
    """Where the study lies. Copy it before changing anything."""

    root: Path

    @property
    def runs(self) -> Path:
        """The runs: tiny-encoder, tiny (Gaussian, evaluated), tiny-intensity (evaluated)."""
        return self.root / "runs"

    @property
    def table(self) -> Path:
        """The cohort's table."""
        return self.root / "scans" / "cohort.csv"

    def copy(self, to: Path) -> "TinyStudy":
        """The same study elsewhere, free to be changed; not what explains it, which other tests may have made."""
        explained = shutil.ignore_patterns("diagnosis*", "whatifs", "post-processing", "detection-limits")
        shutil.copytree(self.root, to, ignore=explained)
        return TinyStudy(to)

    def commands(self) -> dict[str, list[str]]:
        """The command of each stage; repeated, it goes on where it stopped."""
        runs = ["--runs", str(self.runs)]
        scans = [str(self.table), *runs, *SCAN_FLAGS]
        return {
            "prepare": ["prepare", *scans, "--workers", "1"],
            "pretrain": ["pretrain", *scans, "--run-id", "tiny-encoder", *SIMCLR_FLAGS],
            "fit": ["fit", *scans, "--run-id", "tiny", "--encoder", "tiny-encoder", *FIT_FLAGS],
            "score": ["score", "tiny", *runs],
            "evaluate": ["evaluate", "tiny", *runs, "--workers", "1"],
            "fit-intensity": ["fit", *scans, "--run-id", "tiny-intensity", "--detector", "intensity-bright"],
            "score-intensity": ["score", "tiny-intensity", *runs],
            "evaluate-intensity": ["evaluate", "tiny-intensity", *runs, "--workers", "1"],
        }


def build_study(root: Path) -> TinyStudy:
    """Write the scans and run every verb on them."""
    study = TinyStudy(root)
    write_scans(study.table)
    for name, argv in study.commands().items():
        code = cli.main(argv)
        assert code == 0, f"{name} ended with {code}"
    return study


def write_scans(table: Path) -> Path:
    """Twelve scans of the template's brain, each its own shading, noise and (where ill) one bright lesion."""
    ids = [f"{role}{number:02d}" for role, count in ROLES.items() for number in range(1, count + 1)]
    template = working_template(4.0)
    brain = resample(template.brain_mask.astype(np.float32), template.grid, SCAN_GRID) >= 0.5
    anatomy = resample(template.voxels[0], template.grid, SCAN_GRID)
    subjects = []
    for seed, subject_id in enumerate(ids):
        folder = table.parent / subject_id
        values, lesion = _scan(anatomy, brain, seed, ill=subject_id in ILL)
        scan, mask = folder / "flair.nii.gz", folder / "lesion.nii.gz"
        write_nifti(scan, values, SCAN_GRID)
        if subject_id in ILL:
            write_nifti(mask, lesion, SCAN_GRID)
        subjects.append(
            Subject(
                subject_id,
                {"FLAIR": scan},
                lesion_mask=mask if subject_id in ILL else None,
                healthy=subject_id in HEALTHY,
                role=subject_id.rstrip("0123456789"),
            )
        )
    write_table(table, subjects)
    return table


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a changed run.json as the program would: subjects and roles follow the split, and the digest is right."""
    role_of = {i: role for role, ids in record["split"].items() for i in ids}
    cohort = record["cohort"]
    subjects = [
        {**s, "role": role_of[s["subject_id"]]} for s in cohort.get("subjects", []) if s["subject_id"] in role_of
    ]
    fingerprint = content_digest({s["subject_id"]: s["key"] for s in subjects})
    changed = {**cohort, "subjects": subjects, "fingerprint": fingerprint} if "subjects" in cohort else cohort
    changed_record = {key: value for key, value in record.items() if key != SEAL} | {"cohort": changed}
    before = changed_record.get("identity")
    if before is not None:
        changed_record["identity"] = identity_of_record(changed_record)
        for manifest in path.parent.rglob(MANIFEST):
            if read_manifest(manifest.parent)["about"].get("run") not in (None, changed_record["identity"]):
                recommit(manifest.parent, run=changed_record["identity"])
    write_sealed_json(path, changed_record)


def recommit(directory: Path, files: Mapping[str, bytes | str] | None = None, **about: Any) -> None:
    """Change files of a committed directory, and what its manifest says of itself, as another commit would."""
    before = read_manifest(directory)
    for name, content in (files or {}).items():
        data = content.encode() if isinstance(content, str) else content
        (directory / name).unlink()  # it may be another result's too, by a second link
        (directory / name).write_bytes(data)
    digests = {name: sha256_file(directory / name) for name in before["files"]}
    content = sealed({"schema": SCHEMA, "about": {**before["about"], **about}, "files": digests})
    (directory / MANIFEST).write_text(json.dumps(content, indent=1, sort_keys=True))


def small_volumes(n: int, seed: int = 0, shape: tuple[int, int, int] = (16, 24, 16)) -> list[Volume]:
    """Healthy volumes at 4 mm: one smooth anatomy in an ellipsoid, and noise of each one's own."""
    grid = Grid(shape, np.diag([4.0, 4.0, 4.0, 1.0]))
    centred = [np.linspace(-1, 1, size) for size in shape]
    brain = sum(axis**2 for axis in np.meshgrid(*centred, indexing="ij")) < 0.9
    anatomy = gaussian_filter(_normal(99, shape), 2.0)
    anatomy = 0.5 + 0.1 * anatomy / anatomy.std()
    return [
        Volume(
            (np.where(brain, anatomy + 0.02 * _normal(1000 * seed + number, shape), 0))[None].astype(np.float32),
            grid,
            brain,
            f"sub-{number}",
            ("T1",),
        )
        for number in range(n)
    ]


def with_lesion(volume: Volume, change: float = 0.5) -> tuple[Volume, np.ndarray]:
    """The volume with a ball of 3 voxels radius at its centre made brighter (or darker), and the ball."""
    middle = [size // 2 for size in volume.grid.shape]
    offsets = np.indices(volume.grid.shape) - np.array(middle)[:, None, None, None]
    ball = (offsets**2).sum(axis=0) <= 9
    voxels = np.array(volume.voxels)
    voxels[:, ball] += np.float32(change)
    return dataclasses.replace(volume, voxels=voxels, subject_id=f"{volume.subject_id}-ill"), ball


def _scan(anatomy: np.ndarray, brain: np.ndarray, seed: int, *, ill: bool) -> tuple[np.ndarray, np.ndarray]:
    shading = gaussian_filter(_normal(7000 + seed, anatomy.shape), 6.0)
    values = anatomy * (1 + 0.1 * shading / shading.std()) + 0.03 * _normal(seed, anatomy.shape)
    lesion = np.zeros(brain.shape, dtype=bool)
    if ill:
        deep = np.argwhere(gaussian_filter(brain.astype(np.float32), 3.0) > 0.95)
        centre = deep[int(abs(_normal(500 + seed, (1,))[0]) * 1e6) % len(deep)]
        offsets = (np.indices(brain.shape) - centre[:, None, None, None]) * 4.0
        lesion = brain & ((offsets**2).sum(axis=0) <= 11.0**2)
        values = values + 0.4 * lesion
    return np.where(brain, np.maximum(values, 0.05) * 1000, 0).astype(np.float32), lesion.astype(np.uint8)


def _normal(seed: int, shape: Sequence[int]) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, 0x7E57], dtype=np.uint64)))
    return generator.normal(size=tuple(shape))

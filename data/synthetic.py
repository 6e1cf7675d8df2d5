"""The demo cohort: synthetic brains with lesions of known place, size and contrast, written as ordinary NIfTI."""

import csv
import dataclasses
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from data.errors import BadInput, IntegrityError
from data.json_files import read_json, write_json
from data.nifti import write_nifti
from data.synthetic_anatomy import SCANNERS, draw_anatomy, scan, template
from data.synthetic_lesions import SyntheticLesion, add_lesions
from data.volume import Grid
from data.whole_files import clear_litter, write_whole

RECIPE = 3
"""Raised whenever the same seed would give other voxels."""

_README = """Synthetic demo cohort of Dicescope. No person was scanned.

Brains are deformed from the ICBM MNI152 2009 tissue maps that nilearn ships (Fonov et al. 2011,
doi:10.1016/j.neuroimage.2010.07.033); signal, sites, noise and lesions are drawn from seeded generators.
It shows how the programme works and checks its arithmetic; figures on it say nothing about real scans.

cohort.csv     one row per subject; the column healthy says who is; train and calibration are healthy
lesions.json   per subject and lesion: centre (RAS+ mm), diameter, volume, polarity, contrast, site
sub-*/         T1 and FLAIR (2 mm, skull-stripped, int16), brain mask, lesion mask (0/1)
"""


@dataclass(frozen=True)
class DemoSettings:
    """How many subjects, and which."""

    n_train: int = 24
    """Healthy subjects to learn from."""
    n_calibration: int = 8
    """Healthy subjects that set the threshold."""
    n_validation: int = 8
    """Subjects with lesions for choices that need labels."""
    n_test: int = 12
    """Subjects to report on, healthy ones included."""
    n_test_healthy: int = 4
    """How many of the test subjects are healthy."""
    seed: int = 20261121
    """Everything follows from it."""

    def __post_init__(self) -> None:
        counts = (self.n_train, self.n_calibration, self.n_validation, self.n_test, self.n_test_healthy, self.seed)
        if min(counts) < 0 or self.n_test_healthy > self.n_test:
            raise BadInput(
                f"Demo settings {dataclasses.asdict(self)} cannot be used. Allowed: no negative number, and "
                "n_test_healthy at most n_test."
            )


@dataclass(eq=False)
class SyntheticSubject:
    """One synthetic person: two contrasts of one anatomy and the truth about the lesions."""

    t1: Float32[np.ndarray, "x y z"]
    """Whole numbers in scanner units, 0 outside the brain."""
    flair: Float32[np.ndarray, "x y z"]
    brain: Bool[np.ndarray, "x y z"]
    lesion_labels: UInt8[np.ndarray, "x y z"]
    """0 for none, k for lesion k."""
    grid: Grid
    lesions: tuple[SyntheticLesion, ...]
    site: str
    age: float
    sex: str


def synthesise_subject(index: int, *, with_lesions: bool, seed: int) -> SyntheticSubject:
    """The subject of this number, on the 2 mm MNI lattice, cropped to the brain.

    With and without lesions it is the same person, scan and noise, so the two are each other's counterfactual.
    """
    anatomy = draw_anatomy(index, seed)
    images = scan(anatomy, index, seed)
    labels = np.zeros(anatomy.grid.shape, dtype=np.uint8)
    lesions: tuple[SyntheticLesion, ...] = ()
    if with_lesions:
        images, labels, lesions = add_lesions(images, anatomy, index, seed)
    t1, flair = (np.where(anatomy.brain, np.maximum(np.rint(images[c]), 1), 0) for c in ("T1", "FLAIR"))
    return SyntheticSubject(
        t1.astype(np.float32), flair.astype(np.float32), anatomy.brain, labels, anatomy.grid, lesions,
        SCANNERS[index % len(SCANNERS)].name, anatomy.age, anatomy.sex,
    )  # fmt: skip


def write_demo_cohort(
    directory: Path,
    settings: DemoSettings = DemoSettings(),
    monitor: Callable[[int, int, str], None] | None = None,
    workers: int = 2,
) -> Path:
    """Write the cohort and return the path of its table, cohort.csv.

    Every file appears whole or not at all, and finished subjects of the same recipe and seed are kept, so a call
    that was stopped can be repeated. `monitor` hears (subjects done, subjects in all, subject_id) on this thread.
    EnvironmentProblem when the disk is full or closed to us.
    """
    directory = Path(directory)
    plan = list(_plan(settings))
    template()
    clear_litter(directory)
    records: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        jobs = [pool.submit(_subject, directory, *who, settings.seed) for who in plan]
        try:
            for job in as_completed(jobs):
                record = job.result()
                records[record["subject_id"]] = record
                if monitor is not None:
                    monitor(len(records), len(plan), record["subject_id"])
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    ordered = [records[subject_id] for subject_id, *_ in plan]
    write_json(directory / "lesions.json", {r["subject_id"]: r["lesions"] for r in ordered if r["lesions"]})
    write_whole(directory / "README.txt", _README.encode())
    write_whole(directory / "cohort.csv", _table(ordered).encode())
    return directory / "cohort.csv"


def _plan(settings: DemoSettings) -> Iterator[tuple[str, int, str, bool]]:
    # (subject_id, index, role, with lesions); a role's numbers do not move when another role grows.
    n_ill = settings.n_test - settings.n_test_healthy
    for block, (role, count, ill) in enumerate(
        (
            ("train", settings.n_train, 0),
            ("calibration", settings.n_calibration, 0),
            ("validation", settings.n_validation, settings.n_validation),
            ("test", settings.n_test, n_ill),
        )
    ):
        for k in range(count):
            yield f"sub-{role}{k + 1:03d}", 100_002 * block + k, role, k < ill


def _subject(directory: Path, subject_id: str, index: int, role: str, with_lesions: bool, seed: int) -> dict[str, Any]:
    folder = directory / subject_id
    folder.mkdir(parents=True, exist_ok=True)
    clear_litter(folder)
    names = {"T1": "T1", "FLAIR": "FLAIR", "brain_mask": "brain_mask"}
    if with_lesions:
        names["lesion_mask"] = "lesion_mask"
    files = {column: f"{subject_id}/{subject_id}_{name}.nii.gz" for column, name in names.items()}
    made_from = {"recipe": RECIPE, "seed": seed, "index": index, "role": role, "with_lesions": with_lesions}
    note = folder / f"{subject_id}.json"
    known = _finished(note)
    if (
        known is not None
        and known.get("made_from") == made_from
        and all((directory / f).is_file() for f in files.values())
    ):
        return known
    subject = synthesise_subject(index, with_lesions=with_lesions, seed=seed)
    arrays: dict[str, np.ndarray] = {
        "T1": subject.t1.astype(np.int16), "FLAIR": subject.flair.astype(np.int16),
        "brain_mask": subject.brain, "lesion_mask": subject.lesion_labels > 0,
    }  # fmt: skip
    note.unlink(missing_ok=True)
    for column, file in files.items():
        write_nifti(directory / file, arrays[column], subject.grid, description="synthetic")
    record: dict[str, Any] = {
        "subject_id": subject_id, "files": files, "made_from": made_from, "role": role, "site": subject.site,
        "age": subject.age, "sex": subject.sex, "lesions": [dataclasses.asdict(lesion) for lesion in subject.lesions],
    }  # fmt: skip
    write_json(note, record)
    return record


def _finished(note: Path) -> dict[str, Any] | None:
    if not note.is_file():
        return None
    try:
        known = read_json(note)
    except IntegrityError:
        return None
    return known if isinstance(known, dict) else None


def _table(records: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    masks = ("T1", "FLAIR", "brain_mask", "lesion_mask")
    known = ("role", "site", "age", "sex")
    writer.writerow(["subject_id", *masks, "healthy", *known])
    for record in records:
        files = [record["files"].get(column, "") for column in masks]
        healthy = "false" if record["made_from"]["with_lesions"] else "true"
        writer.writerow([record["subject_id"], *files, healthy, *(record[column] for column in known)])
    return text.getvalue()

"""Prepare: split by subject, then read, register, resample and normalise every scan."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core.progress import Progress
from core.study.data_source import DataSource, Study, cache_directory
from core.study.doubts import set_doubted_aside
from data.cohort import ROLES, SAY_HEALTH, Cohort, Split, Subject, check_healthy, split_by_roles
from data.errors import BadInput
from data.layout import read_cohort
from data.preprocessing import PreparedCohort, prepare_cohort
from data.ranges import check_range
from data.reading import refuse_leakage
from data.split_file import read_split


def prepare(runs: Path, source: DataSource, progress: Progress, workers: int = 2) -> Study:
    """Split by subject, then read, register, resample and normalise every subject (cached); refuse leakage.

    What is wrong with the cohort, the split or a setting is BadInput before any scan is prepared.
    """
    check_range("workers", workers)
    check_range("split_seed", source.seed)
    cohort = read_cohort(source.cohort, source.layout, source.choices).in_order()
    asked = split_of(cohort, source)
    check_healthy(cohort, asked)
    _require_training(asked, cohort)
    with progress.task("Preparing scans", len(cohort.subjects)) as advance:
        done = 0

        def monitor(number: int, total: int, text: str) -> None:
            nonlocal done
            advance(number - done, text)
            done = number

        prepared = prepare_cohort(cohort, source.preprocessing, cache_directory(runs), workers=workers, monitor=monitor)
    prepared = set_doubted_aside(cohort, asked, prepared, progress)
    split = _readable(asked, prepared)
    apart = [i for i in prepared.keys if not in_split(split, i)]
    if apart:
        progress.say(f"note: {len(apart)} of {len(cohort.subjects)} subjects are in no split: {', '.join(apart[:5])}.")
    _check_called_healthy(cohort, split, prepared)
    refuse_leakage(split, prepared.voxel_hashes)
    return Study(source, cohort, split, prepared)


def split_of(cohort: Cohort, source: DataSource) -> Split:
    """The split that was given, the table's, or a seeded draw."""
    if source.split is not None:
        return read_split(source.split, cohort)
    if any(s.role for s in cohort.subjects):
        return split_by_roles(cohort.subjects)
    return draw_split(cohort.subjects, source.seed)


def draw_split(subjects: Sequence[Subject], seed: int) -> Split:
    """Seeded: 70 % of the healthy train, 15 % calibrate, 15 % test; of the ill 40 % validate, 60 % test.

    Who is of unknown health is in no split: neither Dice nor false positives could be told of it.
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, 0x5911], dtype=np.uint64)))
    healthy = sorted(s.subject_id for s in subjects if s.healthy)
    ill = sorted(s.subject_id for s in subjects if s.healthy is False)
    healthy = [healthy[i] for i in generator.permutation(len(healthy))]
    ill = [ill[i] for i in generator.permutation(len(ill))]
    first, second = round(0.7 * len(healthy)), round(0.85 * len(healthy))
    third = round(0.4 * len(ill))
    return Split(
        train=tuple(sorted(healthy[:first])),
        calibration=tuple(sorted(healthy[first:second])),
        validation=tuple(sorted(ill[:third])),
        test=tuple(sorted(healthy[second:] + ill[third:])),
    )


def _require_training(split: Split, cohort: Cohort) -> None:
    if len(split.train) >= 2:
        return
    known = sum(bool(s.healthy) for s in cohort.subjects)
    unknown = [s for s in cohort.subjects if s.healthy is None]
    message = (
        f"The split has {len(split.train)} healthy training subject(s). At least 2 are needed. Give more subjects "
        "the role train, in the table or in the split file."
    )
    if unknown:
        message = (
            f"{len(split.train)} healthy training subject(s): of {len(cohort.subjects)} subjects {known} are known to "
            f"be healthy, of {len(unknown)} it is unknown ({unknown[0].subject_id}: {unknown[0].health_from}). "
            f"At least 2 are needed. {SAY_HEALTH}"
        )
    raise BadInput(
        " ".join([message, *[note for note in cohort.notes if "looks like" in note or "seems to" in note][:3]])
    )


def _readable(split: Split, prepared: PreparedCohort) -> Split:
    kept = {role: tuple(i for i in getattr(split, role) if i in prepared.keys) for role in ROLES}
    if len(kept["train"]) < 2:
        aside = "; ".join(f"{s.subject_id}: {s.reason}" for s in prepared.set_aside[:3])
        raise BadInput(
            f"{len(kept['train'])} healthy training subject(s) can be used. At least 2 are needed. "
            f"Set aside: {len(prepared.set_aside)}. {aside}"
        )
    return Split(**kept)


def _check_called_healthy(cohort: Cohort, split: Split, prepared: PreparedCohort) -> None:
    for subject in cohort.subjects:
        masked = subject.healthy and subject.lesion_mask is not None and subject.subject_id in prepared.keys
        if not masked or not in_split(split, subject.subject_id):
            continue
        lesion = prepared.load(subject.subject_id).native_lesion
        if lesion is not None and lesion.voxels.any():
            raise BadInput(
                f"Subject {subject.subject_id!r} ({split.role_of(subject.subject_id)}) is called healthy, and its "
                f"lesion mask has {lesion.volume_ml:.2f} mL: {subject.lesion_mask}. Correct the table or the mask."
            )


def in_split(split: Split, subject_id: str) -> bool:
    """Whether a subject stands in one of the four lists."""
    return any(subject_id in getattr(split, role) for role in ROLES)

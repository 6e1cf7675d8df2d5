"""Scans from the terminal: read, prepared, planted into."""

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from core.progress import open_progress
from core.recipes import as_json
from data.choices import Choices, choices_of
from data.cohort import SAY_HEALTH
from data.errors import BadInput
from data.health import grouped, health_summary
from data.prepared import Preprocessing
from verbs.shared import EXIT_BAD_INPUT, EXIT_OK, RUNS, Verbs, print_json

if TYPE_CHECKING:
    from core.study.data_source import DataSource


@dataclass(frozen=True)
class Masks:
    """What of the preparation matters for reading."""

    resample_masks: bool = False
    """Whether a mask on another grid than its scan is resampled (with a note) instead of refused."""


@dataclass(frozen=True)
class CheckVerb(Choices):
    """Read every scan of a cohort strictly, name the bad ones with cause and remedy; exit 2 if there is any.

    Example: python cli.py check scans/cohort.csv
    """

    cohort: tyro.conf.Positional[Path]
    """A table (CSV, TSV) or a folder (BIDS, IXI, BraTS, nnU-Net, WMH), or a cohort.toml."""
    layout: str = "auto"
    """table, bids, ixi, brats, nnunet, wmh, ms, joined, or auto."""
    contrasts: tuple[str, ...] = ()
    """Contrasts to read; all of the first subject when not given."""
    preprocessing: Masks = field(default_factory=Masks)
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Scans(Choices):
    """What every verb that works on a split cohort takes."""

    cohort: tyro.conf.Positional[Path]
    """A table (CSV, TSV) or a folder (BIDS, IXI, BraTS, nnU-Net, WMH), or a cohort.toml."""
    runs: Path = RUNS
    """Directory that holds the runs."""
    layout: str = "auto"
    """table, bids, ixi, brats, nnunet, wmh, ms, joined, or auto."""
    split: Path | None = None
    """JSON with the lists train, calibration, validation, test; else the table's roles, else a seeded draw."""
    split_seed: int = 0
    """Seed of the drawn split."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class PrepareVerb(Scans):
    """Register, resample and normalise every scan into the cache; later verbs reuse it.

    Example: python cli.py prepare scans/cohort.csv --preprocessing.contrasts T1 --preprocessing.registration affine
    """

    workers: int = 2
    """Processes."""


@dataclass(frozen=True)
class PlantVerb(Choices):
    """Plant lesions of given shapes into healthy scans: NIfTI files and a table that is read like any cohort.

    Example: python cli.py plant healthy.csv shapes/ planted/ --seed 1
    """

    cohort: tyro.conf.Positional[Path]
    """Healthy scans: a table or a folder."""
    shapes: tyro.conf.Positional[Path]
    """Folder of lesion masks in MNI space (NIfTI)."""
    out: tyro.conf.Positional[Path]
    """Folder to write."""
    layout: str = "auto"
    """table, bids, ixi, brats, nnunet, wmh, ms, joined, or auto."""
    contrast: str = "T1"
    """Contrast to plant into."""
    role: Literal["validation", "test"] = "test"
    """Split of the planted scans in the written table."""
    seed: int = 0
    """Of shapes, strengths and places."""
    preprocessing: Masks = field(default_factory=Masks)
    workers: int = 2
    """Processes."""


def _check(arguments: CheckVerb) -> int:
    from data.layout import read_cohort
    from data.reading import check_cohort

    cohort = read_cohort(arguments.cohort, arguments.layout, choices_of(arguments))
    contrasts = arguments.contrasts or tuple(cohort.subjects[0].scans)
    resample = arguments.preprocessing.resample_masks
    with open_progress().task("Reading scans", len(cohort.subjects)) as advance:
        check = check_cohort(cohort, contrasts, monitor=lambda _, text: advance(1, text), resample_masks=resample)
    health = health_summary([(s.healthy, s.health_from) for s in cohort.subjects])
    if arguments.json:
        print_json({**as_json(check), "notes": list(cohort.notes), "health": health})
    else:
        print(f"{len(check.facts)} of {check.n_total} subjects can be read ({', '.join(contrasts)}). {health}")
        _print_notes(cohort.notes, [(facts.subject_id, note) for facts in check.facts for note in facts.notes])
        for one in check.set_aside:
            print(f"set aside: {one.subject_id} [{one.code}] {one.cause}")
        for first, second in check.duplicates:
            print(f"duplicate: {first} and {second} hold the same voxels. Remove one of them.")
    return EXIT_BAD_INPUT if check.set_aside or check.duplicates else EXIT_OK


def _print_notes(cohort: Sequence[str], subjects: Sequence[tuple[str, str]]) -> None:
    for note in (*cohort, *grouped(subjects)):
        print(f"note: {note}")


def _prepare(arguments: PrepareVerb) -> int:
    from core.study import preparing

    study = preparing.prepare(arguments.runs, source_of(arguments), open_progress(), workers=arguments.workers)
    counts = {role: len(getattr(study.split, role)) for role in ("train", "calibration", "validation", "test")}
    aside = [as_json(s) for s in study.prepared.set_aside]
    notes = study.prepared.notes()
    health = health_summary([(s.healthy, s.health_from) for s in study.cohort.subjects])
    if arguments.json:
        print_json(
            {
                "prepared": len(study.prepared.keys),
                "of": len(study.cohort.subjects),
                "split": counts,
                "health": health,
                "set_aside": aside,
                "notes": list(study.cohort.notes),
                "subject_notes": {subject_id: list(told) for subject_id, told in notes.items()},
            }
        )
    else:
        print(
            f"{len(study.prepared.keys)} of {len(study.cohort.subjects)} subjects are prepared: "
            + ", ".join(f"{n} {role}" for role, n in counts.items())
            + f". {health}"
        )
        _print_notes(study.cohort.notes, [(i, note) for i, told in notes.items() for note in told])
        for one in study.prepared.set_aside:
            print(f"set aside: {one.subject_id} [{one.code}] {one.cause}")
    return EXIT_OK


def _plant(arguments: PlantVerb) -> int:
    from data.layout import read_cohort
    from data.planting import plant_cohort, read_shapes

    cohort = read_cohort(arguments.cohort, arguments.layout, choices_of(arguments))
    if not any(s.healthy for s in cohort.subjects):
        raise BadInput(
            f"Of the {len(cohort.subjects)} subjects none is known to be healthy "
            f"({cohort.subjects[0].health_from or 'nobody says'}). {SAY_HEALTH}"
        )
    chosen = tuple(dataclasses.replace(s, role=arguments.role) for s in cohort.subjects if s.healthy)
    table = plant_cohort(
        dataclasses.replace(cohort, subjects=chosen),
        read_shapes(arguments.shapes),
        arguments.out,
        contrast=arguments.contrast,
        seed=arguments.seed,
        workers=arguments.workers,
        resample_masks=arguments.preprocessing.resample_masks,
    )
    planted = len(read_cohort(table, "table").subjects)
    check = f"python cli.py check {shlex.quote(str(table))}"
    print(f"Planted {planted} of {len(cohort.subjects)} scans: {table}. Check it: {check}")
    return EXIT_OK


def source_of(arguments: Scans) -> "DataSource":
    """The scans, split and preparation that a verb was asked for."""
    from core.study.data_source import DataSource

    return DataSource(
        cohort=arguments.cohort,
        layout=arguments.layout,
        split=arguments.split,
        seed=arguments.split_seed,
        preprocessing=arguments.preprocessing,
        choices=choices_of(arguments),
    )


VERBS: Verbs = {
    "check": (CheckVerb, _check),
    "prepare": (PrepareVerb, _prepare),
    "plant": (PlantVerb, _plant),
}

"""One front door for data on disk: a literal table of layouts, each a function from a path to a Cohort."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data import brats, ixi
from data.bids import read_bids
from data.brats import read_brats
from data.challenges import fits_cases, read_cases
from data.choices import NOTHING, Choices
from data.cohort import Cohort, Subject
from data.folders import OTHER_SUFFIXES, BadDataset, scans_under, stem
from data.ixi import read_ixi
from data.joined import read_joined
from data.table import read_table
from data.wmh_ms import fits_ms, fits_wmh, read_ms, read_wmh

TABLE_SUFFIXES = (".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class Layout:
    """How to read a layout, how to tell it by its files, and what it looks like in words."""

    read: Callable[[Path, Choices], Cohort]
    fits: Callable[[Sequence[Path]], bool]
    looks_like: str


LAYOUTS = {
    "table": Layout(read_table, lambda paths: False, "a .csv or .tsv file with subject_id and one column per contrast"),
    "bids": Layout(
        read_bids, lambda paths: any(re.match(r"sub-[^_]+_.*(T1w|T2w|FLAIR|PDw)$", stem(p)) for p in paths),
        "a folder with sub-01/anat/sub-01_T1w.nii.gz",
    ),
    "ixi": Layout(
        read_ixi, lambda paths: any(ixi.NAME.match(stem(p)) for p in paths), "a folder with IXI012-HH-1211-T1.nii.gz"
    ),
    "brats": Layout(
        read_brats, lambda paths: any(brats.match_name(p) for p in paths),
        "a folder with BraTS2021_00000_flair.nii.gz, BraTS-GLI-00000-000-t2f.nii.gz or UPENN-GBM-00001_11_T1.nii.gz",
    ),
    "nnunet": Layout(
        read_cases, lambda paths: fits_cases([p.parent.name for p in paths]),
        "a folder with imagesTr and labelsTr, of nnU-Net (CASE_0000.nii.gz) or the Decathlon (4-D)",
    ),
    "wmh": Layout(read_wmh, fits_wmh, "a folder with Utrecht/0/pre/FLAIR.nii.gz and Utrecht/0/wmh.nii.gz"),
    "ms": Layout(
        read_ms, fits_ms, "a folder with Patient_01/Preprocessed_Data/FLAIR_preprocessed.nii.gz (MSSEG) or "
        "flair/1_FLAIR_isovox.nii.gz (Shifts)",
    ),
    "joined": Layout(
        lambda path, choices: read_joined(path, choices, read_cohort), lambda paths: False,
        "a cohort.toml that joins several of these",
    ),
}  # fmt: skip


def read_cohort(path: Path, layout: str = "auto", choices: Choices = NOTHING) -> Cohort:
    """The cohort at a path; "auto" tells the layout by the file names. BadDataset says what was looked for."""
    path = Path(path)
    if layout == "auto":
        layout = _recognised(path, choices)
    if layout not in LAYOUTS:
        raise BadDataset(
            "E-LAYOUT-NAME", path, f"there is no layout {layout!r}.", f"There are: auto, {', '.join(LAYOUTS)}."
        )
    cohort = LAYOUTS[layout].read(path, choices)
    said = Choices(keep=choices.keep) if layout == "joined" else choices  # its sources have heard the others
    cohort = replace(cohort, subjects=tuple(_with_choices(s, said) for s in cohort.subjects))
    strange = sorted(set(choices.keep) - {s.subject_id for s in cohort.subjects})
    if strange:
        raise BadDataset(
            "E-DATA-KEEP", path, f"has no subject {', '.join(map(repr, strange[:3]))}, which --keep names.",
            "Name subjects as check does.",
        )  # fmt: skip
    return _with_note_on_roles(_with_note_on_ids(cohort))


def _with_choices(subject: Subject, choices: Choices) -> Subject:
    """The subject as the user declares it: what labels mean, which volume, which orientation, where to cut."""
    said: dict[str, object] = {}
    if subject.lesion_mask is not None and (choices.lesion_labels or choices.ignore_labels):
        lesion = choices.lesion_labels or subject.lesion_labels
        ignored = set(choices.ignore_labels or subject.ignore_labels)
        if choices.lesion_labels:
            said["labels_complete"] = False  # what the user does not name is tissue, and is said
            ignored -= set(choices.lesion_labels) - set(choices.ignore_labels)
        elif lesion is not None:
            lesion = tuple(label for label in lesion if label not in ignored)
        said |= {"lesion_labels": lesion, "ignore_labels": tuple(sorted(ignored))}
    if choices.volume is not None and not subject.volumes:
        said["volumes"] = dict.fromkeys(subject.scans, choices.volume)
    if choices.header_form:
        said["header_form"] = choices.header_form
    if subject.subject_id in choices.keep:
        said["kept"] = True
    if choices.mask_cut is not None:
        said["mask_cut"] = choices.mask_cut
    return replace(subject, **said) if said else subject  # type: ignore[arg-type]


def _recognised(path: Path, choices: Choices) -> str:
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return "table"
    if path.is_file() and path.suffix.lower() == ".toml":
        return "joined"
    known = "; ".join(f"{name}: {layout.looks_like}" for name, layout in LAYOUTS.items())
    if not path.is_dir():
        raise BadDataset(
            "E-LAYOUT-PATH", path, "is no folder and no table." if path.exists() else "does not exist.",
            ("Save the workbook as CSV UTF-8. " if path.suffix.lower() in (".xlsx", ".xls", ".ods") else "")
            + f"Give one of these. {known}.",
        )  # fmt: skip
    files, left_out = scans_under(path, follow_symlinks=choices.follow_symlinks)
    fitting = [name for name, layout in LAYOUTS.items() if layout.fits(files)]
    if fitting == ["brats", "nnunet"]:
        fitting = ["nnunet"]  # cases of the Decathlon are called after BraTS
    if len(fitting) == 1:
        return fitting[0]
    seen = f"{len(files)} NIfTI files" + (f" such as {', '.join(stem(f) for f in files[:3])}" if files else "")
    links = f", {len(left_out)} links that lead out of it or in circles: --follow-symlinks follows them"
    others = sorted({s for f in _some_files(path) for s in OTHER_SUFFIXES if f.name.lower().endswith(s)})
    unread = f", and files that are not read ({', '.join(others)}): convert them to .nii.gz" if others else ""
    held = f"{seen}{links if left_out else ''}{unread}"
    cause = f"fits {' and '.join(fitting)}." if fitting else f"fits no known layout; it holds {held}."
    raise BadDataset("E-LAYOUT-UNCLEAR", path, cause, f"Name the layout (--layout), or write a table. {known}.")


def _some_files(path: Path, most: int = 5000) -> list[Path]:
    found: list[Path] = []
    for file in path.rglob("*"):
        found.append(file)
        if len(found) >= most:
            break
    return found


def _with_note_on_ids(cohort: Cohort) -> Cohort:
    """The cohort, with a note on ids that differ only by case or leading zeros (sub-01, sub-001)."""
    seen: dict[str, str] = {}
    notes = list(cohort.notes)
    for subject in cohort.subjects:
        key = re.sub(r"(?<!\d)0+(?=\d)", "", subject.subject_id.casefold())
        if key in seen:
            notes.append(f"Ids {seen[key]!r} and {subject.subject_id!r} nearly agree: perhaps one person twice.")
        seen.setdefault(key, subject.subject_id)
    return replace(cohort, notes=tuple(notes))


def _with_note_on_roles(cohort: Cohort) -> Cohort:
    """The cohort, with a note on the ill whom their table wants to learn from: that will be refused."""
    notes = [
        f"{s.subject_id} has role {s.role} and is ill ({s.health_from or 'called ill'}): only the healthy may train "
        "and calibrate. Give it the role validation or test."
        for s in cohort.subjects
        if s.healthy is False and s.role in ("train", "calibration")
    ]
    return replace(cohort, notes=(*cohort.notes, *(note for note in notes if note not in cohort.notes)))

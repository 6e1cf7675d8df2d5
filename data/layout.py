"""One front door for data on disk: a literal table of layouts, each a function from a path to a Cohort."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data import brats, ixi
from data.bids import read_bids
from data.brats import read_brats
from data.cohort import Cohort
from data.folders import BadDataset, scans_under, stem
from data.ixi import read_ixi
from data.table import read_table

TABLE_SUFFIXES = (".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class Layout:
    """How to read a layout, how to tell it by its file names, and what it looks like in words."""

    read: Callable[[Path], Cohort]
    fits: Callable[[Sequence[str]], bool]
    looks_like: str


LAYOUTS = {
    "table": Layout(read_table, lambda names: False, "a .csv or .tsv file with subject_id and one column per contrast"),
    "bids": Layout(
        read_bids, lambda names: any(re.match(r"sub-[^_]+_.*(T1w|T2w|FLAIR|PDw)$", n) for n in names),
        "a folder with sub-01/anat/sub-01_T1w.nii.gz",
    ),
    "ixi": Layout(
        read_ixi, lambda names: any(ixi.NAME.match(n) for n in names), "a folder with IXI012-HH-1211-T1.nii.gz"
    ),
    "brats": Layout(
        read_brats, lambda names: any(brats.OLD.match(n) or brats.NEW.match(n) for n in names),
        "a folder with BraTS2021_00000_flair.nii.gz or BraTS-GLI-00000-000-t2f.nii.gz",
    ),
}  # fmt: skip


def read_cohort(path: Path, layout: str = "auto") -> Cohort:
    """The cohort at a path; "auto" tells the layout by the file names. BadDataset says what was looked for."""
    path = Path(path)
    if layout == "auto":
        layout = _recognised(path)
    if layout not in LAYOUTS:
        raise BadDataset(
            "E-LAYOUT-NAME", path, f"there is no layout {layout!r}.", f"There are: auto, {', '.join(LAYOUTS)}."
        )
    return _with_note_on_ids(LAYOUTS[layout].read(path))


def _recognised(path: Path) -> str:
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return "table"
    known = "; ".join(f"{name}: {layout.looks_like}" for name, layout in LAYOUTS.items())
    if not path.is_dir():
        raise BadDataset(
            "E-LAYOUT-PATH", path, "is no folder and no table." if path.exists() else "does not exist.",
            f"Give one of these. {known}.",
        )  # fmt: skip
    files, left_out = scans_under(path)
    names = [stem(file) for file in files]
    fitting = [name for name, layout in LAYOUTS.items() if layout.fits(names)]
    if len(fitting) == 1:
        return fitting[0]
    seen = f"{len(names)} NIfTI files" + (f" such as {', '.join(names[:3])}" if names else "")
    hidden = f", {len(left_out)} links out of it" if left_out else ""
    cause = f"fits {' and '.join(fitting)}." if fitting else f"fits no known layout; it holds {seen}{hidden}."
    raise BadDataset("E-LAYOUT-UNCLEAR", path, cause, f"Name the layout, or write a table. {known}.")


def _with_note_on_ids(cohort: Cohort) -> Cohort:
    """The cohort, with a note on ids that differ only by case or leading zeros (sub-01, sub-001)."""
    seen: dict[str, str] = {}
    notes = list(cohort.notes)
    for subject in cohort.subjects:
        key = re.sub(r"(?<!\d)0+(?=\d)", "", subject.subject_id.casefold())
        if key in seen:
            notes.append(f"Ids {seen[key]!r} and {subject.subject_id!r} nearly agree: perhaps one person twice.")
        seen.setdefault(key, subject.subject_id)
    return Cohort(cohort.name, cohort.subjects, cohort.citation, tuple(notes))

"""A cohort as a table: one row per subject, one column per contrast. The layout for everybody's own data."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from data.cells import age, is_age, plain_word, truth, without_accents
from data.choices import NOTHING, Choices
from data.cohort import ROLES, Cohort, Subject, contrast_name
from data.folders import BadDataset, stem
from data.groups import group_columns
from data.health import health_of, notes_on_health
from data.health_words import LOOSE_MASK_WORDS
from data.signs import note_on_column
from data.table_rows import (
    files_of_subject,
    is_there,
    looks_like_file,
    looks_like_path,
    path_in_cell,
    read_rows,
    relative_path,
    why_not_there,
)
from data.whole_files import write_whole

RESERVED = (
    *("subject_id", "brain_mask", "lesion_mask", "role", "healthy", "site", "age", "sex", "lesion_labels"),
    "ignore_labels",
)
_HEALTHY = {True: "true", False: "false", None: ""}
_ID_WORDS = ("id", "subject", "subjectid", "participantid", "participant", "patient", "patientid", "case", "caseid")
"""Names, without separators, under which tables keep what is called subject_id here."""
_SAME_CONTRAST = {"t1w": "t1", "t2w": "t2", "pdw": "pd", "t1gd": "t1c", "t1ce": "t1c"}
"""Other names of a contrast, in lower case: T1w and T1 are one."""
_CONTRASTS = ("t1", "t2", "pd", "flair", "t1c", "dwi", "adc", "swi", "t2star")
_MORE_CONTRASTS = re.compile(
    r"t[12](?:\*|map|n|f|post|pre|.?gd|.?flair|.?space|.?tse)?|fl(?:air)?|mprage|spgr|pd|mr[ai]|tof|swi|swan|gre|dwi|dti|"
    r"b\d+|adc|fa|md|rd|ad|asl|cb[fv]|mtr|mtt|tmax|qsm|r2s?|bold|epi|scan|image|img|nifti|channel\d+|pet|ct|stir|dir|mp2rage|uni"
)
"""Other names of contrasts, in lower case: what else is taken as one is said."""


def read_table(path: Path, choices: Choices = NOTHING) -> Cohort:
    """The cohort of a CSV or TSV file, with paths relative to the table; no scan is opened.

    Columns: subject_id; one per contrast, named by it; and, as wanted, brain_mask, lesion_mask, role (train,
    calibration, validation, test), healthy, group or diagnosis, site, age, sex, lesion_labels ("1;2;4"),
    ignore_labels. Health: see `data.health`. A column of masks under another name is no contrast: it is named, and
    whose row fills it is not taken as healthy. Other columns without paths are left out with a note. A file that is
    missing sets its subject aside when read.
    """
    path = Path(path)
    header, rows = read_rows(path)
    header, rows, notes = _own_names(path, header, rows)
    if "subject_id" not in header:
        meant = next((c for c in header if plain_word(c) in _ID_WORDS), None)
        raise BadDataset(
            "E-TABLE-COLUMNS", path, f"has no column subject_id. It has: {', '.join(header) or 'none'}.",
            f"Call the column {meant!r} subject_id." if meant else "Add it.",
        )  # fmt: skip
    if not rows:
        raise BadDataset("E-TABLE-EMPTY", path, "has no rows.", "Add one row per subject.")
    cells = {c: [row[c] for _, row in rows] for c in header}
    free = [c for c in header if c not in RESERVED]
    masks = [c for c in free if any(map(looks_like_file, cells[c])) and _holds_masks(c, cells[c])]
    contrasts = [c for c in free if c not in masks and any(map(looks_like_path, cells[c]))]
    if not contrasts:
        raise BadDataset(
            "E-TABLE-COLUMNS", path, f"has no column with scans. It has: {', '.join(header)}.",
            "Add a column named by its contrast, for example t1, with paths to .nii.gz files.",
        )  # fmt: skip
    notes += [_note_on_masks(c, header) for c in masks]
    notes += [
        f"Column {c!r} is taken as scans of a contrast. If it holds masks, call it lesion_mask or brain_mask."
        for c in contrasts
        if _MORE_CONTRASTS.fullmatch(contrast_name(c).casefold()) is None and c.casefold() not in _CONTRASTS
    ]
    used = {*RESERVED, *contrasts, *masks}
    for column in (c for c in header if c not in used and c not in group_columns(header)):
        said = note_on_column(column, cells[column], "the table")
        notes.append(said or f"Column {column!r} holds no scans and was left out.")
    _refuse_repeats(path, rows)
    subjects = [_subject(path, line, row, contrasts, masks, choices) for line, row in rows]
    notes += [
        f"Subject {row['subject_id']!r}: age {row['age']!r} is no one number and was left out."
        for _, row in rows
        if row.get("age") and age(row["age"]) is None
    ]
    notes += [
        f"Subject {s.subject_id!r}: {file} does not exist{why_not_there(row, table=path)}."
        for s, (_, row) in zip(subjects, rows, strict=True) for file in files_of_subject(s) if not is_there(file)
    ]  # fmt: skip
    notes += notes_on_health([(s.subject_id, s.healthy, s.health_from) for s in subjects], "the table")
    return Cohort(path.stem, tuple(subjects), notes=tuple(notes))


def _own_names(
    path: Path, header: list[str], rows: list[tuple[int, dict[str, str]]]
) -> tuple[list[str], list[tuple[int, dict[str, str]]], list[str]]:
    """Reserved columns in their own spelling, and T1w as T1; with notes on what was renamed."""
    names: dict[str, str] = {}
    lower = {c.casefold() for c in header}
    for column in header:
        own = column.casefold()
        if own in RESERVED and column != own:
            names[column] = own
        elif own in _SAME_CONTRAST and _SAME_CONTRAST[own] not in lower:
            names[column] = _SAME_CONTRAST[own].upper()
    if not names:
        return header, rows, []
    called = [names.get(column, column) for column in header]
    twice = [new for new in names.values() if called.count(new) > 1]
    if twice:
        both = ", ".join(column for column in header if names.get(column, column) == twice[0])
        raise BadDataset("E-TABLE-COLUMNS", path, f"has {both}, which are one: {twice[0]}.", "Keep one of them.")
    notes = [f"Column {old!r} is taken as {new}." for old, new in names.items() if old.casefold() != new.casefold()
             or new == "subject_id"]  # fmt: skip
    renamed = [(line, {names.get(c, c): cell for c, cell in row.items()}) for line, row in rows]
    return [names.get(c, c) for c in header], renamed, notes


def _holds_masks(column: str, cells: Sequence[str]) -> bool:
    """Whether a column with paths holds masks, by its name or by the names of its files."""
    if contrast_name(column).casefold() in _CONTRASTS:
        return False
    return LOOSE_MASK_WORDS.search(without_accents(column)) is not None or any(map(_is_mask_file, cells))


def _is_mask_file(cell: str) -> bool:
    """Whether a path is called like a mask: ...lesion_mask.nii.gz, ..._seg.nii, gtv.nii.gz."""
    name = stem(Path(cell.replace("\\", "/")))
    ends = (
        r"(?:mask[es]?|maschera|mascara|masque|seg|segm|segmentation|lesions?|lasion(?:en)?|lesione|labels?|[rv]ois?|"
        r"gtv|tumou?r|tumeur|infar[ck]t|wmh|stroke|_gt|_les|truth|delineation|contours?|plaques?|hyperintensit(?:y|ies))$"
    )
    return re.search(ends, without_accents(name)) is not None


def _note_on_masks(column: str, header: Sequence[str]) -> str:
    """What is said of a column of masks under another name, and what to do: a free name, or one mask of both."""
    told = f"Column {column!r} looks like masks and was not used: "
    if "brain" in column.casefold():
        return told + "call it brain_mask, or take it away."
    if "lesion_mask" in header:
        return (
            f"{told}there is a column lesion_mask already. If these are lesions too, put both into one mask; if they "
            "are none, take the column away."
        )
    return told + "call it lesion_mask, or brain_mask if it is the brain."


def write_table(path: Path, subjects: Sequence[Subject]) -> None:
    """Write subjects as a table that `read_table` reads back, paths relative to it. Tabs for .tsv, else commas."""
    path = Path(path)
    contrasts = list(dict.fromkeys(name for s in subjects for name in s.scans))
    clash = [c for c in contrasts if c in RESERVED]
    if clash:
        raise BadDataset("E-TABLE-COLUMNS", path, f"contrast {clash[0]!r} is a reserved column.", "Rename it.")
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t" if path.suffix == ".tsv" else ",", lineterminator="\n")
    writer.writerow(["subject_id", *contrasts, *RESERVED[1:]])
    for s in subjects:
        scans = [relative_path(path, s.scans.get(name)) for name in contrasts]
        known = [s.role or "", _HEALTHY[s.healthy], s.site or "", "" if s.age is None else f"{s.age:g}"]
        labels = "" if s.lesion_labels is None else ";".join(map(str, s.lesion_labels))
        ignored = ";".join(map(str, s.ignore_labels))
        masks = [relative_path(path, s.brain_mask), relative_path(path, s.lesion_mask)]
        writer.writerow([s.subject_id, *scans, *masks, *known, s.sex or "", labels, ignored])
    write_whole(path, text.getvalue().encode())


def _subject(
    table: Path, line: int, row: dict[str, str], contrasts: list[str], masks: list[str], choices: Choices
) -> Subject:
    def wrong(column: str, allowed: str) -> BadDataset:
        return BadDataset(
            "E-TABLE-VALUE", table, f"row {line}: {column} is {row[column]!r}.", f"Allowed: {allowed}. Correct it."
        )

    subject_id = row["subject_id"]
    if not subject_id:
        raise BadDataset("E-TABLE-VALUE", table, f"row {line} has no subject_id.", "Every row needs one.")
    role = row.get("role", "").lower() or None
    if role is not None and role not in ROLES:
        raise wrong("role", ", ".join(ROLES) + " or nothing")
    if truth(row.get("lesion_mask", "")) is True:
        raise wrong("lesion_mask", "a path, or nothing where there is no mask")
    lesion_mask = (
        None if truth(row.get("lesion_mask", "")) is False else path_in_cell(table, row.get("lesion_mask", ""))
    )
    if row.get("healthy") and truth(row["healthy"]) is None:
        raise wrong("healthy", "true or false")
    if row.get("age") and not is_age(row["age"]):
        raise wrong("age", "a number, a range such as 45-50, unknown or n/a")
    labels = []
    for column in ("lesion_labels", "ignore_labels"):
        try:
            labels.append(tuple(_label(x) for x in re.split(r"[;,\s]+", row.get(column, "")) if x))
        except (ValueError, OverflowError):
            raise wrong(column, 'whole numbers above 0 like "1;2;4"') from None
    scans = {c: file for c in contrasts if (file := path_in_cell(table, row[c])) is not None}
    health = health_of(
        row,
        "the table",
        choices,
        mask="lesion_mask" if lesion_mask is not None else "",
        unused=[
            *(f"column {c!r}" for c in masks if row[c]),
            *(f"{row[c]} in column {c!r}" for c in contrasts if _is_mask_file(row[c])),
        ],
        role=role,
        used=(*RESERVED, *contrasts, *masks),
    )
    return Subject(
        subject_id, scans, path_in_cell(table, row.get("brain_mask", "")), lesion_mask, health.healthy, role,
        row.get("site") or None, age(row.get("age", "")), row.get("sex") or None, labels[0] or None, labels[1],
        health_from=health.word,
    )  # fmt: skip


def _label(text: str) -> int:
    """A whole number, also as a spreadsheet writes it: 1.0."""
    value = float(text)
    if value != int(value) or value < 1:
        raise ValueError(text)
    return int(value)


def _refuse_repeats(path: Path, rows: list[tuple[int, dict[str, str]]]) -> None:
    seen: dict[str, tuple[int, str]] = {}
    for line, row in rows:
        key = row["subject_id"].casefold()
        if key in seen:
            raise BadDataset(
                "E-TABLE-REPEAT", path,
                f"rows {seen[key][0]} and {line} are both subject {row['subject_id']!r} (or differ only by case).",
                "One row per subject; give the second its own id or remove it.",
            )  # fmt: skip
        seen[key] = (line, row["subject_id"])

"""A cohort as a table: one row per subject, one column per contrast. The layout for everybody's own data."""

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.cells import age, clean, is_age, plain_word, truth, without_accents
from data.choices import NOTHING, Choices
from data.cohort import ROLES, Cohort, Subject, contrast_name
from data.files import write_whole
from data.folders import MORE_SUFFIXES, OTHER_SUFFIXES, SCAN_SUFFIXES, BadDataset, stem
from data.groups import group_columns
from data.health import health_of, notes_on_health
from data.health_words import LOOSE_MASK_WORDS
from data.signs import note_on_column

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
    masks = [c for c in free if any(map(_looks_like_file, cells[c])) and _holds_masks(c, cells[c])]
    contrasts = [c for c in free if c not in masks and any(map(_looks_like_path, cells[c]))]
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
        f"Subject {s.subject_id!r}: {file} does not exist{_why_not(row, table=path)}."
        for s, (_, row) in zip(subjects, rows, strict=True) for file in _files(s) if not _there(file)
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
        scans = [_relative(path, s.scans.get(name)) for name in contrasts]
        known = [s.role or "", _HEALTHY[s.healthy], s.site or "", "" if s.age is None else f"{s.age:g}"]
        labels = "" if s.lesion_labels is None else ";".join(map(str, s.lesion_labels))
        ignored = ";".join(map(str, s.ignore_labels))
        masks = [_relative(path, s.brain_mask), _relative(path, s.lesion_mask)]
        writer.writerow([s.subject_id, *scans, *masks, *known, s.sex or "", labels, ignored])
    write_whole(path, text.getvalue().encode())


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Header and rows (line number, cells) of a CSV or TSV file; BOM, CRLF and blank lines do no harm."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise BadDataset("E-TABLE-TEXT", path, "is not UTF-8 text.", _not_text(path)) from None
    except OSError as error:
        raise BadDataset(
            "E-TABLE-READ", path, f"cannot be read ({error.strerror or error}).", "Check the path."
        ) from None
    first, _, rest = text.partition("\n")
    asked = re.fullmatch(r"sep=(.)\r?", first.strip("\ufeff"), re.IGNORECASE)  # as Excel writes it for itself
    if asked:
        text, first = rest, rest.partition("\n")[0]
    delimiter = asked[1] if asked else "\t" if "\t" in first else ";" if first.count(";") > first.count(",") else ","
    try:
        lines = _lines(text, delimiter)
    except csv.Error as error:
        raise BadDataset("E-TABLE-TEXT", path, f"is not a valid table ({error}).", "Save it again as CSV.") from None
    header = [cell.strip() for cell in lines[0]] if lines else []
    while (
        header
        and header[-1] == ""
        and not any(cells[len(header) - 1 :] != [""] * len(cells[len(header) - 1 :]) for cells in lines[1:])
    ):  # a spreadsheet's empty columns
        header.pop()
    doubled = sorted({c for c in header if header.count(c) > 1})
    if doubled or "" in header:
        named = repr(doubled[0]) + " twice" if doubled and doubled[0] else "without a name"
        raise BadDataset("E-TABLE-COLUMNS", path, f"has a column {named}.", "Give every column its own name.")
    rows = []
    for line, cells in enumerate(lines[1:], start=3 if asked else 2):
        while len(cells) > len(header) and not cells[-1].strip():
            cells.pop()
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise BadDataset(
                "E-TABLE-ROW", path, f"row {line} has {len(cells)} cells, the header {len(header)}.",
                "Quote cells that hold the separator.",
            )  # fmt: skip
        row = zip(header, cells, strict=True)
        rows.append((line, {c: cell.strip() if c == "subject_id" else clean(cell) for c, cell in row}))
    return header, rows


def _lines(text: str, delimiter: str) -> list[list[str]]:
    """The cells of each line. Quotation marks of a TSV that quote no cell are signs like others, as in BIDS."""
    try:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error:
        if delimiter != "\t":
            raise
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=csv.QUOTE_NONE))


def _not_text(path: Path) -> str:
    """What to do with a table that is none."""
    start = path.read_bytes()[:4]
    if start.startswith(b"PK"):
        return "It is an Excel workbook under another name: save it as CSV UTF-8."
    return "Save it as CSV UTF-8." + (" (It is UTF-16.)" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "")


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
    lesion_mask = None if truth(row.get("lesion_mask", "")) is False else _path(table, row.get("lesion_mask", ""))
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
    scans = {c: file for c in contrasts if (file := _path(table, row[c])) is not None}
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
        subject_id, scans, _path(table, row.get("brain_mask", "")), lesion_mask, health.healthy, role,
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


def _looks_like_path(cell: str) -> bool:
    return cell.lower().endswith((*SCAN_SUFFIXES, *OTHER_SUFFIXES))


def _looks_like_file(cell: str) -> bool:
    """A path, also of a format that holds no scans but perhaps a mask."""
    return _looks_like_path(cell) or cell.lower().endswith(MORE_SUFFIXES)


def _path(table: Path, cell: str) -> Path | None:
    if not cell:
        return None
    if "\0" in cell:
        raise BadDataset("E-TABLE-VALUE", table, f"a path holds a zero byte: {cell!r}.", "Correct the cell.")
    if re.match(r"[A-Za-z]:[\\/]", cell) is None and "\\" in cell and not (table.parent / cell).exists():
        cell = cell.replace("\\", "/")  # as Windows writes it
    return Path(os.path.normpath(table.parent / cell))


def _why_not(row: Mapping[str, str], table: Path) -> str:
    """What in the cells of a row cannot be a path here, in words."""
    for cell in row.values():
        if _looks_like_path(cell):
            if cell.startswith("~"):
                return " (~ is not replaced by a home folder: write the whole path)"
            if "$" in cell or re.search(r"%\w+%", cell):
                return " (variables such as $DATA are not replaced: write the whole path)"
            if "://" in cell:
                return " (an address such as file:// is no path: write the path alone)"
            if re.match(r"[A-Za-z]:[\\/]", cell):
                return " (a path of Windows: write it relative to the table)"
    return ""


def _files(subject: Subject) -> list[Path]:
    masks = [p for p in (subject.brain_mask, subject.lesion_mask) if p is not None]
    return [*subject.scans.values(), *masks]


def _there(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:
        return False


def _relative(table: Path, file: Path | None) -> str:
    return "" if file is None else Path(os.path.relpath(file.absolute(), table.parent.absolute())).as_posix()

"""A cohort as a table: one row per subject, one column per contrast. The layout for everybody's own data."""

import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

from data.cohort import ROLES, Cohort, Subject
from data.files import write_whole
from data.folders import SCAN_SUFFIXES, BadDataset

RESERVED = ("subject_id", "brain_mask", "lesion_mask", "role", "healthy", "site", "age", "sex", "lesion_labels")
_NOTHING = ("", "n/a", "na", "nan", "none")
_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def read_table(path: Path) -> Cohort:
    """The cohort of a CSV or TSV file, with paths relative to the table; no scan is opened.

    Columns: subject_id; one per contrast, named by it; and, as wanted, brain_mask, lesion_mask, role (train,
    calibration, validation, test), healthy (default: no lesion mask), site, age, sex, lesion_labels ("1;2;4").
    Columns that hold no paths are left out with a note. A file that is missing sets its subject aside when read.
    """
    path = Path(path)
    header, rows = read_rows(path)
    if "subject_id" not in header:
        raise BadDataset(
            "E-TABLE-COLUMNS", path, f"has no column subject_id. It has: {', '.join(header) or 'none'}.", "Add it."
        )
    if not rows:
        raise BadDataset("E-TABLE-EMPTY", path, "has no rows.", "Add one row per subject.")
    contrasts = [c for c in header if c not in RESERVED and any(_looks_like_path(row[c]) for _, row in rows)]
    if not contrasts:
        raise BadDataset(
            "E-TABLE-COLUMNS", path, f"has no column with scans. It has: {', '.join(header)}.",
            "Add a column named by its contrast, for example t1, with paths to .nii.gz files.",
        )  # fmt: skip
    ignored = [c for c in header if c not in RESERVED and c not in contrasts]
    notes = [f"Column {c!r} holds no scans and was left out." for c in ignored]
    subjects = [_subject(path, line, row, contrasts) for line, row in rows]
    _refuse_repeats(path, rows)
    assumed = [
        s.subject_id
        for s, (_, row) in zip(subjects, rows, strict=True)
        if s.lesion_mask is None and not row.get("healthy") and s.role not in ("train", "calibration")
    ]
    notes += [
        f"Subject {s.subject_id!r}: {file} does not exist." for s in subjects for file in _files(s) if not _there(file)
    ]
    if assumed:
        notes.append(
            f"{len(assumed)} subjects without lesion mask and without an entry under healthy are taken as healthy: "
            f"{', '.join(assumed[:5])}. If they are ill, say so in a column healthy (false)."
        )
    return Cohort(path.stem, tuple(subjects), notes=tuple(notes))


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
        known = [s.role or "", "true" if s.healthy else "false", s.site or "", "" if s.age is None else f"{s.age:g}"]
        labels = "" if s.lesion_labels is None else ";".join(map(str, s.lesion_labels))
        masks = [_relative(path, s.brain_mask), _relative(path, s.lesion_mask)]
        writer.writerow([s.subject_id, *scans, *masks, *known, s.sex or "", labels])
    write_whole(path, text.getvalue().encode())


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Header and rows (line number, cells) of a CSV or TSV file; BOM, CRLF and blank lines do no harm."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise BadDataset("E-TABLE-TEXT", path, "is not UTF-8 text.", "Save it as CSV UTF-8.") from None
    except OSError as error:
        raise BadDataset(
            "E-TABLE-READ", path, f"cannot be read ({error.strerror or error}).", "Check the path."
        ) from None
    first = text.partition("\n")[0]
    delimiter = "\t" if "\t" in first else ";" if first.count(";") > first.count(",") else ","
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise BadDataset("E-TABLE-TEXT", path, f"is not a valid table ({error}).", "Save it again as CSV.") from None
    header = [cell.strip() for cell in lines[0]] if lines else []
    doubled = sorted({c for c in header if header.count(c) > 1})
    if doubled or "" in header:
        named = repr(doubled[0]) + " twice" if doubled and doubled[0] else "without a name"
        raise BadDataset("E-TABLE-COLUMNS", path, f"has a column {named}.", "Give every column its own name.")
    rows = []
    for line, cells in enumerate(lines[1:], start=2):
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


def clean(cell: str) -> str:
    """The cell without surrounding blanks; "" for n/a and its like."""
    return "" if cell.strip().lower() in _NOTHING else cell.strip()


def number(text: str) -> float | None:
    """A finite number, or None. Ages like "45+" lose their sign."""
    try:
        value = float(text.rstrip("+"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _subject(table: Path, line: int, row: dict[str, str], contrasts: list[str]) -> Subject:
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
    lesion_mask = _path(table, row.get("lesion_mask", ""))
    healthy = row.get("healthy", "").lower()
    if healthy and healthy not in _TRUTH:
        raise wrong("healthy", "true or false")
    if row.get("age") and number(row["age"]) is None:
        raise wrong("age", "a number or n/a")
    try:
        labels = tuple(int(x) for x in row.get("lesion_labels", "").replace(",", ";").split(";") if x.strip())
    except ValueError:
        raise wrong("lesion_labels", 'whole numbers like "1;2;4"') from None
    scans = {c: file for c in contrasts if (file := _path(table, row[c])) is not None}
    return Subject(
        subject_id, scans, _path(table, row.get("brain_mask", "")), lesion_mask,
        _TRUTH[healthy] if healthy else lesion_mask is None, role, row.get("site") or None,
        number(row.get("age", "")), row.get("sex") or None, labels or None,
    )  # fmt: skip


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
    return cell.lower().endswith((*SCAN_SUFFIXES, ".hdr", ".img", ".mgz", ".nii.zst"))


def _path(table: Path, cell: str) -> Path | None:
    if not cell:
        return None
    if "\0" in cell:
        raise BadDataset("E-TABLE-VALUE", table, f"a path holds a zero byte: {cell!r}.", "Correct the cell.")
    return Path(os.path.normpath(table.parent / cell))


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

"""Rows of a table in whatever way it was saved: encodings, separators, quotes, and paths in cells."""

import csv
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path

from data.cells import clean
from data.cohort import Subject
from data.folders import MORE_SUFFIXES, OTHER_SUFFIXES, SCAN_SUFFIXES, BadDataset


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


def looks_like_path(cell: str) -> bool:
    """Whether a cell seems to hold a path."""
    return cell.lower().endswith((*SCAN_SUFFIXES, *OTHER_SUFFIXES))


def looks_like_file(cell: str) -> bool:
    """A path, also of a format that holds no scans but perhaps a mask."""
    return looks_like_path(cell) or cell.lower().endswith(MORE_SUFFIXES)


def path_in_cell(table: Path, cell: str) -> Path | None:
    """A cell's path, relative to its table; None for an empty cell."""
    if not cell:
        return None
    if "\0" in cell:
        raise BadDataset("E-TABLE-VALUE", table, f"a path holds a zero byte: {cell!r}.", "Correct the cell.")
    if re.match(r"[A-Za-z]:[\\/]", cell) is None and "\\" in cell and not (table.parent / cell).exists():
        cell = cell.replace("\\", "/")  # as Windows writes it
    return Path(os.path.normpath(table.parent / cell))


def why_not_there(row: Mapping[str, str], table: Path) -> str:
    """What in the cells of a row cannot be a path here, in words."""
    for cell in row.values():
        if looks_like_path(cell):
            if cell.startswith("~"):
                return " (~ is not replaced by a home folder: write the whole path)"
            if "$" in cell or re.search(r"%\w+%", cell):
                return " (variables such as $DATA are not replaced: write the whole path)"
            if "://" in cell:
                return " (an address such as file:// is no path: write the path alone)"
            if re.match(r"[A-Za-z]:[\\/]", cell):
                return " (a path of Windows: write it relative to the table)"
    return ""


def files_of_subject(subject: Subject) -> list[Path]:
    """Scans and masks of a subject."""
    masks = [p for p in (subject.brain_mask, subject.lesion_mask) if p is not None]
    return [*subject.scans.values(), *masks]


def is_there(file: Path) -> bool:
    """Whether a file is there; false where it cannot be asked."""
    try:
        return file.is_file()
    except OSError:
        return False


def relative_path(table: Path, file: Path | None) -> str:
    """A file as a cell of a table says it, relative to the table; '' for none."""
    return "" if file is None else Path(os.path.relpath(file.absolute(), table.parent.absolute())).as_posix()

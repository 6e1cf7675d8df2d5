"""What the tables of a BIDS folder say of its people: participants, sessions, scans, phenotype, and their sidecars.

Ids are matched as the folders are called, and where only one of each can be meant, without zeros and separators.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.bids_names import NOT_DATA, plain_id
from data.cells import truth
from data.folders import BadDataset
from data.groups import group_columns, health_columns
from data.health import FITS_NOBODY, hear
from data.signs import is_sign, note_on_column
from data.table_rows import read_rows

RESERVED = ("participant_id", "session_id", "age", "sex", "gender", "site", "role", "healthy", "handedness")
"""Columns that the specification or this reader names."""
_ONCE = ("participant_id", "healthy", "role")
_SUFFIXES = (".tsv", ".csv")
_VISITS = ("session_id", "session", "visit", "visit_id", "timepoint")
Levels = Mapping[str, Mapping[str, str]]


@dataclass
class People:
    """What is said of each subject, by the name of its folder."""

    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    levels: dict[str, Levels] = field(default_factory=dict)
    """What the sidecar of a subject's table declares of the values of each column."""
    sources: dict[str, str] = field(default_factory=dict)
    """The name of the table in which a subject stands."""
    doubts: dict[str, str] = field(default_factory=dict)
    """Why a row that fits nobody may be that of a subject."""


def read_people(root: Path, homes: Mapping[str, Sequence[Path]], notes: list[str]) -> People:
    """What participants.tsv, sessions, scans and phenotype tables say of the subjects.

    `homes`: the folders of each. BadDataset when a table or a sidecar cannot be understood.
    """
    people = People()
    found: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    tables = _participants(root, notes)
    for table in tables:
        rows, header = _rows_by_id(table, found)
        columns += [column for column in header if column not in columns]
        levels = _levels(table.with_suffix(".json"))
        for name, row in rows.items():
            found[name] = row
            people.levels[name], people.sources[name] = levels, table.name
    _match(people, found, list(homes), notes)
    _hear_side_tables(root, people, homes, notes)
    for column in (c for c in columns if c not in (*RESERVED, *group_columns(columns))):
        said = note_on_column(column, [row.get(column, "") for row in people.rows.values()], "participants.tsv")
        notes += [said] if said else []
    return people


def _participants(root: Path, notes: list[str]) -> list[Path]:
    """participants.tsv of the data set and of its sites; a .csv where there is no .tsv."""
    tables: list[Path] = []
    for folder in (root, *sorted(path for path in root.glob("*") if _may_be_site(path))):
        there = {path.name.casefold(): path for path in _files(folder)}
        tsv, csv = there.get("participants.tsv"), there.get("participants.csv")
        tables += [tsv or csv] if tsv or csv else []  # type: ignore[list-item]
        place = (folder.relative_to(root) / "participants").as_posix()
        if csv:
            notes.append(f"{place}.csv is read as a participants.tsv." if not tsv else f"{place}.csv is not read.")
        if not (tsv or csv) and "participants.xlsx" in there:
            notes.append(f"{place}.xlsx is not read: save it as participants.tsv.")
    if not tables:
        notes.append("There is no participants.tsv; ages, sites and groups are unknown.")
    return tables


def _may_be_site(path: Path) -> bool:
    name = path.name.casefold()
    return path.is_dir() and name not in (*NOT_DATA, "derivatives") and not name.startswith((".", "sub-"))


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in sorted(folder.iterdir()) if path.is_file()]
    except OSError:
        return []  # said where the scans are looked for


def _rows_by_id(table: Path, known: Mapping[str, object]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The rows of participants.tsv by sub-ID, and its columns. Rows of several sessions are joined."""
    header, lines = read_rows(table)
    header = _own_names(table, header)
    if "participant_id" not in header:
        raise BadDataset("E-BIDS-PARTICIPANTS", table, "has no column participant_id.", "Add it.")
    visits = any(column.casefold() in _VISITS for column in header)
    rows: dict[str, dict[str, str]] = {}
    for line, cells in lines:
        row = {_own_name(column): cell for column, cell in cells.items()}
        name = _with_sub(row["participant_id"])
        if name in known or (name in rows and not visits):
            raise BadDataset(
                "E-BIDS-PARTICIPANTS", table, f"row {line} repeats {name}.",
                "Keep one row per person, or say in a column session_id which visit a row is of.",
            )  # fmt: skip
        if row.get("healthy") and truth(row["healthy"]) is None:
            raise BadDataset(
                "E-BIDS-VALUE", table, f"row {line}: healthy is {row['healthy']!r}.", "Allowed: true or false, 1 or 0."
            )
        first = rows.setdefault(name, row)
        if first is not row:
            _join(first, row)
    return rows, header


def _own_names(table: Path, header: Sequence[str]) -> list[str]:
    """The columns as they are called here. BadDataset when two are one, and it matters which."""
    own = [_own_name(column) for column in header]
    twice = next((name for name in _ONCE if own.count(name) > 1), "")
    if twice:
        both = ", ".join(column for column in header if _own_name(column) == twice)
        raise BadDataset("E-BIDS-PARTICIPANTS", table, f"has {both}, which are one.", "Keep one of them.")
    return list(dict.fromkeys(own))


def _own_name(column: str) -> str:
    """Columns that the specification names, however they are written."""
    return column.casefold() if column.casefold() in RESERVED else column


def _with_sub(name: str) -> str:
    return f"sub-{name[4:]}" if name.casefold().startswith("sub-") else f"sub-{name}"


def _join(first: dict[str, str], row: Mapping[str, str]) -> None:
    """Add what a later visit says to a person's row: of ages and the like the first counts."""
    for column, cell in row.items():
        if not cell:
            continue
        if column in RESERVED and column != "healthy":
            first[column] = first.get(column) or cell
        elif not first.get(column):
            first[column] = cell
        elif _speaks(column, cell) or _speaks(column, first[column]):
            hear(first, column, cell)


def _speaks(column: str, cell: str) -> bool:
    """Whether an entry is about health or illness."""
    return column == "healthy" or bool(group_columns([column]) or health_columns([column])) or is_sign(column, cell)


def _match(people: People, found: Mapping[str, dict[str, str]], ids: Sequence[str], notes: list[str]) -> None:
    """Give each subject its row: that of its id, else the only one that can be meant; the others are said."""
    rows_of, ids_of = Counter(map(plain_id, found)), {plain_id(name): name for name in ids}
    many = Counter(map(plain_id, ids))
    free: list[str] = []
    for name, row in found.items():
        plain = plain_id(name)
        owner = name if name in ids else ids_of[plain] if rows_of[plain] == many[plain] == 1 else ""
        if not owner:
            free.append(name)
            notes.append(f"{name} is in {people.sources[name]} but has no scan.")
            continue
        if owner != name:
            notes.append(f"Row {row['participant_id']} of {people.sources[name]} is taken as that of {owner}.")
        people.rows[owner] = row
        people.levels[owner], people.sources[owner] = people.levels[name], people.sources[name]
    if found:
        notes += [f"{name} is not in participants.tsv." for name in sorted(ids) if name not in people.rows]
    for name in ids:
        like = next((other for other in free if plain_id(other) == plain_id(name)), "")
        if like or (free and name not in people.rows):
            people.doubts[name] = f"row {like or free[0]} of participants.tsv {FITS_NOBODY} and may be meant for it"


def _hear_side_tables(root: Path, people: People, homes: Mapping[str, Sequence[Path]], notes: list[str]) -> None:
    """Add what tables of phenotypes, sessions and scans say of health, groups and signs of illness."""
    bases = (root, *sorted(path for path in root.glob("*") if _may_be_site(path)))
    tables = [(path, "") for base in bases for path in _tables(base / "phenotype")]
    for name, folders in homes.items():
        beside = [path for folder in folders for path in _tables(folder)]
        tables += [(path, name) for path in beside if path.stem.casefold().endswith(("_sessions", "_scans"))]
    for path, owner in tables:
        header, lines = read_rows(path)
        if not owner and not any(_own_name(column) == "participant_id" for column in header):
            notes.append(f"{path.relative_to(root).as_posix()} has no column participant_id and was left out.")
            continue
        levels = _levels(path.with_suffix(".json"))
        for _, cells in lines:
            row = {_own_name(column): cell for column, cell in cells.items()}
            name = owner or _subject_of(row["participant_id"], list(homes))
            if name:
                _hear_row(people, name, row, levels)


def _tables(folder: Path) -> list[Path]:
    """The tables in a folder and below."""
    return [path for path in sorted(folder.rglob("*")) if path.suffix.casefold() in _SUFFIXES and path.is_file()]


def _subject_of(told: str, ids: Sequence[str]) -> str:
    """The subject that an id means, "" when none or several can be meant."""
    if _with_sub(told) in ids:
        return _with_sub(told)
    fitting = [name for name in ids if plain_id(name) == plain_id(told)]
    return fitting[0] if len(fitting) == 1 else ""


def _hear_row(people: People, name: str, row: Mapping[str, str], levels: Levels) -> None:
    known = people.rows.setdefault(name, {})
    told = [column for column, cell in row.items() if cell and _speaks(column, cell) and column != "participant_id"]
    for column in told:
        neither = column == "healthy" and truth(row[column]) is None
        hear(known, "healthy 2" if neither else column, row[column])
    people.levels[name] = {**levels, **people.levels.get(name, {})}


def _levels(path: Path) -> Levels:
    """What a sidecar declares of the values of each column. BadDataset when it is there and cannot be read: what it
    says of a word would be guessed."""
    try:
        told = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise BadDataset("E-BIDS-JSON", path, f"cannot be read ({error}).", "Repair it, or take it away.") from None
    found: dict[str, Mapping[str, str]] = {}
    for column, about in told.items() if isinstance(told, dict) else ():
        levels = about.get("Levels") if isinstance(about, dict) else None
        if isinstance(levels, dict):
            texts = {str(v): m if isinstance(m, str) else str(m.get("Description", "")) if isinstance(m, dict) else ""
                     for v, m in levels.items()}  # fmt: skip
            found[column] = texts
    return found

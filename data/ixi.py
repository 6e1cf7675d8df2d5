"""IXI, healthy heads from three London sites: https://brain-development.org/ixi-dataset (CC BY-SA 3.0)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from data.cells import number, without_accents
from data.choices import NOTHING, Choices
from data.cohort import Cohort, Subject
from data.folders import SCAN_SUFFIXES, BadDataset, look_under, refuse_twins, stem
from data.health import Health, health_of, hear, notes_on_health
from data.health_words import LOOSE_MASK_WORDS
from data.table_rows import read_rows

NAME = re.compile(r"^(?P<id>IXI\d{3}-(HH|Guys|IOP)-\d+)[-_](?P<rest>.+)$")
CITATION = "IXI dataset, https://brain-development.org/ixi-dataset, CC BY-SA 3.0."
_CONTRASTS = ("t1", "t2", "pd", "mra")
_BRAIN_WORDS = {"t1", "t2", "pd", "mra", "brain", "mask", "dlmuse", "bet", "bet2", "hd", "hdbet", "synthstrip", "robex"}
_PERSON = re.compile(r"IXI[-_]?(\d{3})(?!\d)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\da-z])0*(\d{1,3})(?!\d)", re.IGNORECASE)
_OF_IXI_CSV = (
    *("IXI_ID", "HEIGHT", "WEIGHT", "ETHNIC_ID", "MARITAL_ID", "OCCUPATION_ID", "QUALIFICATION_ID", "DOB"),
    *("DATE_AVAILABLE", "STUDY_DATE", "AGE"),
)
"""The columns of the published IXI.csv, besides that of the sex; none is about health."""


def read_ixi(root: Path, choices: Choices = NOTHING) -> Cohort:
    """IXI012-HH-1211-T1.nii.gz, or _T1 with _dlmuse or _mask beside it, in any folders; IXI.csv gives age and sex.

    All subjects are healthy, on the word of the data set, but one with a file that looks like a lesion mask: that is
    unknown. The site is HH, Guys or IOP. A second visit of a person is left out with a note.
    """
    seen = look_under(root, follow_symlinks=choices.follow_symlinks)
    files = [file for file in seen.files if file.name.lower().endswith(SCAN_SUFFIXES)]
    refuse_twins(files)
    notes = list(seen.notes)
    found: dict[str, dict[str, Path]] = {}
    doubts: dict[str, str] = {}
    for file in (*seen.files, *seen.closed):
        match = NAME.match(stem(file))
        kind = _kind(match["rest"]) if match and file in files else None
        if match is None or kind is None:
            _doubt(root, file, match["rest"] if match else "", doubts, notes)
        elif kind in (kinds := found.setdefault(match["id"], {})):
            notes.append(f"{file.relative_to(root)} is a second {kind} and was left out.")
        else:
            kinds[kind] = file
    people = _people(root, notes)
    persons = {name.split("-")[0] for name in found}
    notes += [
        f"{place} looks like a lesion mask, of whom is not clear. Name it after its head (IXI012-HH-1211-lesion)."
        for person, place in doubts.items()
        if person not in persons
    ]
    subjects: dict[str, Subject] = {}
    for name, kinds in sorted(found.items()):
        person, site, _ = name.split("-")
        scans = {c: kinds[c] for c in _CONTRASTS if c in kinds}
        if not scans or person in subjects:
            notes.append(f"{name}: " + ("no scan" if not scans else f"a second visit of {person}") + "; left out.")
            continue
        one = people.get(person, _Person())
        health = _health(one, doubts.get(person, ""), choices)
        subjects[person] = Subject(
            name, scans, kinds.get("mask"), healthy=health.healthy, site=site, age=one.age, sex=one.sex,
            health_from=health.word,
        )  # fmt: skip
    if not subjects:
        raise BadDataset("E-IXI-EMPTY", root, "holds no IXI scan.", "Names look like IXI012-HH-1211-T1.nii.gz.")
    notes += notes_on_health(
        [(s.subject_id, s.healthy, s.health_from) for s in subjects.values()], "a table of your own"
    )
    return Cohort("ixi", tuple(subjects.values()), CITATION, tuple(notes))


def _kind(rest: str) -> str | None:
    rest = rest.lower()
    if rest in _CONTRASTS:
        return rest
    words = set(re.split(r"[^a-z0-9]+", rest)) - {""}
    return "mask" if words <= _BRAIN_WORDS and words & {"mask", "dlmuse"} else None


def _doubt(root: Path, file: Path, rest: str, doubts: dict[str, str], notes: list[str]) -> None:
    """Note a file that is no scan; whose it is when it looks like a lesion mask: by id, or by the number of one."""
    place = file.relative_to(root).as_posix()
    if file.name.lower().endswith(SCAN_SUFFIXES):
        notes.append(f"{place} is no IXI scan or mask and was left out.")
    if LOOSE_MASK_WORDS.search(without_accents(rest or place)) is None:
        return
    named = _PERSON.search(place) or _NUMBER.fullmatch(stem(file)) or _NUMBER.search(stem(file))
    doubts[f"IXI{int(named[1]):03d}" if named else place] = place


@dataclass(frozen=True)
class _Person:
    """What IXI.csv says of somebody."""

    age: float | None = None
    sex: str | None = None
    row: Mapping[str, str] = field(default_factory=dict)
    """Columns that IXI.csv has not by itself."""


def _health(person: _Person, doubt: str, choices: Choices) -> Health:
    """Healthy on the word of the data set, unless a file or an own column of IXI.csv speaks against it."""
    asked = replace(choices, healthy_unless_masked=True)
    health = health_of(person.row, "IXI.csv", asked, unused=[doubt] if doubt else [])
    return Health(True, "IXI holds healthy people") if health.word == "--healthy-unless-masked" else health


def _people(root: Path, notes: list[str]) -> dict[str, _Person]:
    """What IXI.csv says, by IXI012 and so on; the first row of a person with an age counts for it."""
    table = next((t for t in (root / "IXI.csv", root.parent / "IXI.csv") if t.is_file()), None)
    if table is None:
        return {}
    header, rows = read_rows(table)
    if "IXI_ID" not in header:
        notes.append(f"{table.name} has no column IXI_ID and was left out.")
        return {}
    sex_column = next((c for c in header if c.upper().startswith("SEX")), "")
    people: dict[str, _Person] = {}
    for line, row in rows:
        ident = number(row["IXI_ID"])
        if ident is None:
            notes.append(f"{table.name}, row {line}: IXI_ID {row['IXI_ID']!r} is no number; row left out.")
            continue
        known = people.get(person := f"IXI{int(ident):03d}", _Person())
        age = number(row.get("AGE", ""))
        sex = {"1": "M", "2": "F"}.get(row.get(sex_column, ""), row.get(sex_column, ""))
        own = dict(known.row)
        for column in (c for c in header if row[c] and c not in (*_OF_IXI_CSV, sex_column)):
            hear(own, column, row[column])
        people[person] = _Person(
            known.age or (age if age is not None and age > 0 else None), known.sex or sex or None, own
        )
    return people

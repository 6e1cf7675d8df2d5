"""IXI, healthy heads from three London sites: https://brain-development.org/ixi-dataset (CC BY-SA 3.0)."""

import re
from pathlib import Path

from data.cells import number
from data.choices import NOTHING, Choices
from data.cohort import Cohort, Subject
from data.folders import BadDataset, refuse_twins, scans_under, stem
from data.health import notes_on_health
from data.table import read_rows

NAME = re.compile(r"^(?P<id>IXI\d{3}-(HH|Guys|IOP)-\d+)[-_](?P<rest>.+)$")
CITATION = "IXI dataset, https://brain-development.org/ixi-dataset, CC BY-SA 3.0."
_CONTRASTS = ("t1", "t2", "pd", "mra")
_BRAIN_WORDS = {"t1", "t2", "pd", "mra", "brain", "mask", "dlmuse", "bet", "bet2", "hd", "hdbet", "synthstrip", "robex"}
_LESION = re.compile(r"lesion|tumou?r|stroke|infarct|wmh|seg|label|roi|msk|mask", re.IGNORECASE)
_PERSON = re.compile(r"IXI\d{3}", re.IGNORECASE)


def read_ixi(root: Path, choices: Choices = NOTHING) -> Cohort:
    """IXI012-HH-1211-T1.nii.gz, or _T1 with _dlmuse or _mask beside it, in any folders; IXI.csv gives age and sex.

    All subjects are healthy, on the word of the data set, but one with a file that looks like a lesion mask: that is
    unknown. The site is HH, Guys or IOP. A second visit of a person is left out with a note.
    """
    files, left_out = scans_under(root, follow_symlinks=choices.follow_symlinks)
    refuse_twins(files)
    notes = list(left_out)
    found: dict[str, dict[str, Path]] = {}
    doubts: dict[str, str] = {}
    for file in files:
        match = NAME.match(stem(file))
        kind = _kind(match["rest"]) if match else None
        if match is None or kind is None:
            notes.append(f"{file.relative_to(root)} is no IXI scan or mask and was left out.")
            place = file.relative_to(root).as_posix()
            named = _PERSON.search(place)
            if named and _LESION.search(match["rest"] if match else place):
                doubts[named[0].upper()] = place
        elif kind in (kinds := found.setdefault(match["id"], {})):
            notes.append(f"{file.relative_to(root)} is a second {kind} and was left out.")
        else:
            kinds[kind] = file
    ages, sexes = _demographics(root, notes)
    subjects: dict[str, Subject] = {}
    for name, kinds in sorted(found.items()):
        person, site, _ = name.split("-")
        scans = {c: kinds[c] for c in _CONTRASTS if c in kinds}
        if not scans or person in subjects:
            notes.append(f"{name}: " + ("no scan" if not scans else f"a second visit of {person}") + "; left out.")
            continue
        healthy: bool | None = True
        word = "IXI holds healthy people"
        if person in doubts:
            healthy, word = None, f"{doubts[person]} looks like a lesion mask and is not used"
        subjects[person] = Subject(
            name, scans, kinds.get("mask"), healthy=healthy, site=site, age=ages.get(person), sex=sexes.get(person),
            health_from=word,
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


def _demographics(root: Path, notes: list[str]) -> tuple[dict[str, float], dict[str, str]]:
    ages: dict[str, float] = {}
    sexes: dict[str, str] = {}
    table = next((t for t in (root / "IXI.csv", root.parent / "IXI.csv") if t.is_file()), None)
    if table is None:
        return ages, sexes
    header, rows = read_rows(table)
    sex_column = next((c for c in header if c.upper().startswith("SEX")), None)
    if "IXI_ID" not in header:
        notes.append(f"{table.name} has no column IXI_ID and was left out.")
        return ages, sexes
    for line, row in rows:
        ident = number(row["IXI_ID"])
        if ident is None:
            notes.append(f"{table.name}, row {line}: IXI_ID {row['IXI_ID']!r} is no number; row left out.")
            continue
        person = f"IXI{int(ident):03d}"
        age = number(row.get("AGE", ""))
        if age is not None and age > 0:
            ages.setdefault(person, age)
        if sex_column and row[sex_column]:
            sexes.setdefault(person, {"1": "M", "2": "F"}.get(row[sex_column], row[sex_column]))
    return ages, sexes

"""BIDS: raw scans under sub-*, masks beside them or under derivatives, people in participants.tsv.

https://bids-specification.readthedocs.io, v1.10.
"""

from dataclasses import dataclass
from pathlib import Path

from data.cohort import ROLES, Cohort, Subject
from data.folders import BadDataset, scans_under, stem
from data.table import number, read_rows

CONTROL_GROUPS = ("control", "controls", "healthy", "hc", "con")
"""Values of the group column that mean a healthy person."""
_SUFFIXES = {"T1w": "t1", "T2w": "t2", "FLAIR": "flair", "PDw": "pd", "T2starw": "t2star"}
_NATIVE_SPACES = ("", "orig", "T1w", "T2w", "FLAIR", "individual", "scanner", "native")


def read_bids(root: Path, *, follow_symlinks: bool = False) -> Cohort:
    """Subjects of a BIDS folder; contrasts t1, t1c (with a ce entity), t2, flair, pd from the raw scans.

    Brain mask: desc-brain_mask. Lesion mask: a mask or roi whose label or desc holds "lesion". Both in native space,
    beside the scans or under derivatives. Of several sessions and runs the first is taken, with a note.
    participants.tsv may give age, sex, site, role, healthy or group; without the last two, no lesion mask is healthy.
    """
    files, left_out = scans_under(root, follow_symlinks=follow_symlinks)
    notes = list(left_out)
    parsed = [image for file in files if (image := _parse(root, file, notes)) is not None]
    people = _participants(root, notes)
    ids = sorted({image.subject for image in parsed if image.contrast})
    if not ids:
        raise BadDataset("E-BIDS-EMPTY", root, "holds no sub-*/anat/*_T1w.nii.gz or the like.", "Check the folder.")
    notes += [f"{name} is in participants.tsv but has no scan." for name in sorted(set(people) - set(ids))]
    if people:
        notes += [f"{name} is not in participants.tsv." for name in ids if name not in people]
    subjects = [_subject(root, name, [i for i in parsed if i.subject == name], people.get(name, {}), notes)
                for name in ids]  # fmt: skip
    return Cohort(root.resolve().name or "bids", tuple(subjects), notes=tuple(notes))


@dataclass(frozen=True)
class _Image:
    path: Path
    subject: str
    session: str
    contrast: str
    mask: str
    """brain, lesion, or nothing."""


def _parse(root: Path, file: Path, notes: list[str]) -> _Image | None:
    *parts, suffix = stem(file).split("_")
    entities = dict(part.split("-", 1) for part in parts if "-" in part)
    if "sub" not in entities:
        return None
    derived = "derivatives" in file.relative_to(root).parts
    label = (entities.get("label", "") + " " + entities.get("desc", "")).lower()
    mask = contrast = ""
    if suffix in ("mask", "roi") and ("lesion" in label or "brain" in label):
        mask = "lesion" if "lesion" in label else "brain"
        if entities.get("space", "") not in _NATIVE_SPACES:
            notes.append(f"{file.relative_to(root)} lies in another space than the scan and was left out.")
            return None
    elif suffix in _SUFFIXES and not derived:
        contrast = _SUFFIXES[suffix] + ("c" if "ce" in entities else "")
    else:
        return None
    return _Image(file, f"sub-{entities['sub']}", entities.get("ses", ""), contrast, mask)


def _subject(root: Path, name: str, images: list[_Image], person: dict[str, str], notes: list[str]) -> Subject:
    session = min(image.session for image in images if image.contrast)
    later = sorted({image.session for image in images} - {session, ""})
    if later:
        notes.append(f"{name}: session {session} taken, {', '.join(later)} left out; one person is one subject.")
    here = [image for image in images if image.session in (session, "")]
    scans: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for image in here:
        kept = scans if image.contrast else masks
        first = kept.setdefault(image.contrast or image.mask, image.path)
        if first is not image.path:
            notes.append(f"{image.path.relative_to(root)} left out, {first.name} comes first.")
    role = person.get("role", "").lower() or None
    if role not in (None, *ROLES):
        raise BadDataset(
            "E-BIDS-ROLE", root / "participants.tsv", f"{name} has role {role!r}.", f"Allowed: {', '.join(ROLES)}."
        )
    return Subject(
        name, scans, masks.get("brain"), masks.get("lesion"), _healthy(person, masks), role,
        person.get("site") or None, number(person.get("age", "")), person.get("sex") or None,
    )  # fmt: skip


def _healthy(person: dict[str, str], masks: dict[str, Path]) -> bool:
    stated = person.get("healthy", "").lower()
    if stated in ("1", "true", "yes", "0", "false", "no"):
        return stated in ("1", "true", "yes")
    if person.get("group"):
        return person["group"].lower() in CONTROL_GROUPS
    return "lesion" not in masks


def _participants(root: Path, notes: list[str]) -> dict[str, dict[str, str]]:
    table = root / "participants.tsv"
    if not table.is_file():
        notes.append("There is no participants.tsv; ages, sites and groups are unknown.")
        return {}
    header, rows = read_rows(table)
    if "participant_id" not in header:
        raise BadDataset("E-BIDS-PARTICIPANTS", table, "has no column participant_id.", "Add it.")
    people: dict[str, dict[str, str]] = {}
    for line, row in rows:
        name = row["participant_id"] if row["participant_id"].startswith("sub-") else f"sub-{row['participant_id']}"
        if name in people:
            raise BadDataset("E-BIDS-PARTICIPANTS", table, f"row {line} repeats {name}.", "Keep one row per person.")
        people[name] = row
    return people

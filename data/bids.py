"""BIDS: raw scans under sub-*, masks beside them or under derivatives, people in participants.tsv.

https://bids-specification.readthedocs.io, v1.10, and what published data sets do besides: ATLAS R2.0 (scan and mask in
one template space), ISLES (_msk), ivadomed (T2w_lesion-manual), masks in another session or folder of derivatives.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data.bids_images import SPEAK_AGAINST, Image, images_of, is_orphan, is_read, where
from data.bids_names import entities_of, names_of_mask, not_data
from data.bids_people import RESERVED, People, read_people
from data.cells import age
from data.choices import NOTHING, Choices
from data.cohort import ROLES, Cohort, Subject
from data.folders import BadDataset, look_under, refuse_twins, stem
from data.health import health_of, notes_on_health

_FIRST = re.compile(r"base|^bl\d*$|^pre|^init|^m?0+$|screen|first|acute|^t0|^v0|^y0")
_LATER = re.compile(r"follow|^fu|post|late|final|last|chronic|month|year|week|^m\d|^y\d|^w\d|^v[1-9]|^t[1-9]")
_UNUSUAL = ("inv", "part", "echo", "flip", "mt", "rec", "chunk")
"""Entities of one of several images that belong together: a scan without them comes first."""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def read_bids(root: Path, choices: Choices = NOTHING) -> Cohort:
    """Subjects of a BIDS folder; contrasts t1, t1c (by ce, or an acq that says so), t2, flair, pd from the raw scans.

    Lesion mask: a mask, roi, dseg, probseg, seg or msk whose label, desc or name speaks of a lesion, in the space of
    the scans, beside them or under derivatives. Brain mask: desc-brain_mask. Of several sessions the first that holds
    scan and lesion mask is taken; a contrast that it lacks comes from another one. What is left out, and what looks
    like a mask and is not used, is said. Health: see `data.health`; nobody is healthy because no mask was found.
    """
    seen = look_under(root, follow_symlinks=choices.follow_symlinks)
    notes = list(seen.notes)
    found = images_of(root, seen, choices)
    parsed = [image for image in found.values() if image is not None]
    files = [file for file in seen.files if is_read(file)]
    refuse_twins(files, {image.path for image in parsed})
    _refuse_two_places(root, parsed)
    ids = sorted({image.subject for image in parsed if image.kind == "scan"})
    if not ids:
        links = f" {len(seen.closed)} links lead out of it: --follow-symlinks follows them." if seen.closed else ""
        raise BadDataset("E-BIDS-EMPTY", root, "holds no sub-*/anat/*_T1w.nii.gz or the like." + links,
                         "Check the folder.")  # fmt: skip
    notes += _notes_on_files(root, files, parsed, ids, choices)
    orphans = [where(root, file) for file, image in found.items() if image is None and is_orphan(root, file, seen)]
    if orphans:
        notes.append(
            f"{_some(orphans)} look like lesion masks, of whom is not clear, "
            "so nobody is healthy for want of a mask. Name them after their subjects (sub-01_label-lesion_mask.nii.gz)."
        )
        choices = replace(choices, healthy_unless_masked=False)
    people = read_people(root, {name: _homes(root, name, parsed) for name in ids}, notes)
    images: dict[str, list[Image]] = {name: [] for name in ids}
    for image in parsed:
        images.get(image.subject, []).append(image)
    subjects = [_Chosen(root, name, images[name], choices, notes).subject(people) for name in ids]
    notes += notes_on_health([(s.subject_id, s.healthy, s.health_from) for s in subjects], "participants.tsv")
    return Cohort(root.resolve().name or "bids", tuple(subjects), notes=tuple(notes))


def _notes_on_files(
    root: Path, files: Sequence[Path], parsed: Sequence[Image], ids: Sequence[str], choices: Choices
) -> list[str]:
    """What is said of files that are not read, of masks of whom there is no scan, and of a label that nothing has."""
    notes: list[str] = []
    if apart := [file for file in files if not_data(root, file)]:
        notes.append(f"{len(apart)} scans in {', '.join(sorted({not_data(root, f) for f in apart}))} are not read.")
    for kind, told in _TOLD.items():
        if places := [where(root, image.path) for image in parsed if image.kind == kind]:
            notes.append(f"{_some(places)} {told}")
    strange = [i for i in parsed if i.kind in ("lesion", "doubtful", "unread", "apart") and i.subject not in ids]
    if strange:
        whose = _some(sorted({image.subject for image in strange}))
        notes.append(f"{_some([where(root, i.path) for i in strange])}: masks of {whose}, of whom there is no scan.")
    if choices.label and not any(image.kind == "lesion" for image in parsed):
        masks = [image for image in parsed if image.kind in ("doubtful", "brain")]
        there = sorted({name for image in masks for name in names_of_mask(*entities_of(stem(image.path)))})
        notes.append(
            f"No mask has the label {choices.label!r} of --label. There are: {', '.join(there) or 'no masks'}."
        )
    return notes


_TOLD = {
    "unread": "look like lesion masks in a format or a place that is not read. Convert them to NIfTI.",
    "apart": "look like lesion masks in a folder that is not read. Move them beside the scans or to derivatives.",
    "closed": "may be or hold lesion masks and were not looked into. Make them readable, or say --follow-symlinks.",
    "phase": "are phases or parts of an image, no scans, and were left out.",
}
"""What is said of images of a kind that is not used."""


def _homes(root: Path, name: str, images: Sequence[Image]) -> list[Path]:
    """The folders that are called after a subject and hold its scans."""
    homes = [
        parent
        for image in images
        if image.subject == name and image.kind == "scan"
        for parent in image.path.parents
        if parent.name == name and parent.is_relative_to(root)
    ]
    return list(dict.fromkeys(homes))


@dataclass
class _Chosen:
    """Which of a subject's files are taken."""

    root: Path
    name: str
    images: list[Image]
    choices: Choices
    notes: list[str]
    lesion: Image | None = None
    brain: Image | None = None
    scans: dict[str, Path] = field(default_factory=dict)

    def subject(self, people: People) -> Subject:
        person = people.rows.get(self.name, {})
        space = self._space()
        session = self._session(space)
        self._take_scans(space, session)
        self.lesion = self._mask("lesion", space, session)
        self.brain = self._mask("brain", space, session)
        unused = [i for i in self.images if i.kind in SPEAK_AGAINST and i is not self.lesion]
        self._note_unused([where(self.root, image.path) for image in unused if image.kind in ("lesion", "doubtful")])
        role = person.get("role", "").casefold() or None
        if role not in (None, *ROLES):
            raise BadDataset(
                "E-BIDS-ROLE", self.root / "participants.tsv", f"{self.name} has role {role!r}.",
                f"Allowed: {', '.join(ROLES)}.",
            )  # fmt: skip
        health = health_of(
            person,
            people.sources.get(self.name, "participants.tsv"),
            self.choices,
            mask="" if self.lesion is None else where(self.root, self.lesion.path),
            unused=[where(self.root, image.path) for image in unused],
            role=role,
            used=RESERVED,
            levels=people.levels.get(self.name, {}),
            doubt=people.doubts.get(self.name, ""),
        )
        return Subject(
            self.name, self.scans, self.brain.path if self.brain else None, self.lesion.path if self.lesion else None,
            health.healthy, role, person.get("site") or None, age(person.get("age", "")),
            person.get("sex") or person.get("gender") or None, health_from=health.word,
        )  # fmt: skip

    def _note_unused(self, places: Sequence[str]) -> None:
        if places:
            flag = "--session, --space or --label" if self.lesion is None else "--session, --space, --run or --label"
            self.notes.append(
                f"{self.name}: {_some(places)} looks like a lesion mask and is not used; {flag} chooses another one."
            )

    def _space(self) -> str:
        """The space of the scans that are taken: the asked one, else the scanner's own, else one that has masks."""
        there = {i.space for i in self.images if i.kind == "scan"}
        if self.choices.space and self.choices.space in there:
            return self.choices.space
        if self.choices.space:
            self.notes.append(f"{self.name}: has no scan in space {self.choices.space!r}.")
        if "" in there:
            return ""
        masked = {i.space for i in self.images if i.kind == "lesion"}
        return min(there, key=lambda space: (space not in masked, natural(space)))

    def _session(self, space: str) -> str:
        scans = [i for i in self.images if i.kind == "scan" and i.space == space]
        there = {i.session for i in scans}
        if self.choices.session:
            wanted = self.choices.session.removeprefix("ses-")
            if wanted in there:
                return wanted
            self.notes.append(f"{self.name}: has no session {wanted!r}; it has {', '.join(sorted(there))}.")
        masked = {i.session for i in self.images if i.kind == "lesion" and i.space == space}
        first, *others = sorted(there, key=lambda s: (s not in masked, _session_order(s)))
        others = sorted(set(others) - {"", first}, key=_session_order)
        if others:
            self.notes.append(
                f"{self.name}: session {first} taken, {', '.join(others)} left out; one person is one subject."
            )
        return first

    def _take_scans(self, space: str, session: str) -> None:
        scans = [i for i in self.images if i.kind == "scan" and i.space == space]
        away = sorted({i.space for i in self.images if i.kind == "scan"} - {space})
        if away:
            self.notes.append(
                f"{self.name}: scans in space {', '.join(a or 'native' for a in away)} left out; --space takes them."
            )
        for contrast in dict.fromkeys(i.contrast for i in scans):
            fitting = sorted((i for i in scans if i.contrast == contrast), key=lambda i: self._order(i, session))
            taken = fitting[0]
            self.scans[contrast] = taken.path
            if contrast.endswith("c") and "ce" not in taken.entities:
                name = where(self.root, taken.path)
                self.notes.append(f"{name} is taken as {contrast.upper()}: its acq names a contrast agent.")
            if taken.session not in (session, ""):
                self.notes.append(
                    f"{self.name}: {contrast.upper()} is of session {taken.session}; session {session} has none."
                )
            twice = [i.path.name for i in fitting[1:] if i.session in (session, taken.session)]
            self.notes += [f"{self.name}: {name} left out, {taken.path.name} comes first." for name in twice]

    def _mask(self, kind: str, space: str, session: str) -> Image | None:
        fitting = [i for i in self.images if i.kind == kind]
        here = sorted((i for i in fitting if i.space == space), key=lambda i: self._order(i, session))
        if not here and fitting:
            place = where(self.root, fitting[0].path)
            way = self._way_to(fitting[0])
            self.notes.append(f"{place} lies in another space than the scan and was left out; {way}")
        if not here:
            return None
        if here[0].session not in (session, ""):
            self.notes.append(f"{self.name}: the {kind} mask is of session {here[0].session}, the scan of {session}.")
        if kind == "brain":
            self.notes += [f"{where(self.root, i.path)} left out, {here[0].path.name} comes first." for i in here[1:]]
        return here[0]

    def _way_to(self, mask: Image) -> str:
        """How a mask in another space can be used: with the scan of that space, where there is one."""
        if any(i.kind == "scan" and i.space == mask.space for i in self.images):
            return f"--space {mask.space} chooses it and its scan." if mask.space else "leave --space away."
        return (
            f"no raw scan lies in space {mask.space}: resample the mask onto the scan, or write a table with both in "
            "one space."
        )

    def _order(self, image: Image, session: str) -> tuple[object, ...]:
        entities, choices = image.entities, self.choices
        asked = [(choices.run, "run"), (choices.acq, "acq")]
        missed = tuple(bool(want) and not _same(entities.get(key, ""), want) for want, key in asked)
        runs = natural(entities.get("run", ""))
        where = (image.session != session, _session_order(image.session))
        words = len(image.path.name)
        return (
            *missed,
            *where,
            any(key in image.entities for key in _UNUSUAL),
            natural(entities.get("acq", "")),
            runs,
            words,
            image.path.as_posix(),
        )


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A key under which 2 comes before 10, and nothing before everything."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part)


def _session_order(session: str) -> tuple[object, ...]:
    word = session.casefold()
    rank = 0 if _FIRST.search(word) else 2 if _LATER.search(word) and not word.isdecimal() else 1
    return (rank if session else -1, natural(word))


def _same(value: str, wanted: str) -> bool:
    return natural(value.casefold()) == natural(re.sub(r"^(run|acq)-", "", wanted.casefold()))


def _refuse_two_places(root: Path, images: Sequence[Image]) -> None:
    """BadDataset when one id has scans below two folders: two people of two sites, perhaps."""
    homes: dict[str, str] = {}
    for image in images:
        if image.kind != "scan":
            continue
        parts = image.path.relative_to(root).parts
        at = next((n for n, part in enumerate(parts[:-1]) if part == image.subject), len(parts) - 1)
        home = "/".join(parts[:at])
        first = homes.setdefault(image.subject, home)
        if first != home:
            raise BadDataset(
                "E-BIDS-TWICE", root,
                f"{image.subject} stands in {first or '.'} and in {home or '.'}: perhaps two people.",
                "Read each folder by itself, or join them in a cohort.toml, each with a prefix.",
            )  # fmt: skip

"""BIDS: raw scans under sub-*, masks beside them or under derivatives, people in participants.tsv.

https://bids-specification.readthedocs.io, v1.10, and what published data sets do besides: ATLAS R2.0 (scan and mask in
one template space), ISLES (_msk), ivadomed (T2w_lesion-manual), masks in another session or folder of derivatives.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data.bids_names import (
    ELSEWHERE,
    SUFFIXES,
    entities_of,
    folders_of,
    kind_of_mask,
    lesion_named,
    looks_like_lesion,
    names_of_mask,
    not_data,
    owner_of,
    plain_id,
)
from data.bids_people import RESERVED, People, read_people
from data.cells import age
from data.choices import NOTHING, Choices
from data.cohort import ROLES, Cohort, Subject
from data.folders import SCAN_SUFFIXES, BadDataset, Found, look_under, refuse_twins, stem
from data.health import health_of, notes_on_health

_NATIVE_SPACES = ("", "orig", "t1w", "t2w", "flair", "individual", "scanner", "native", "anat")
_FIRST = re.compile(r"base|^bl\d*$|^pre|^init|^m?0+$|screen|first|acute|^t0|^v0|^y0")
_LATER = re.compile(r"follow|^fu|post|late|final|last|chronic|month|year|week|^m\d|^y\d|^w\d|^v[1-9]|^t[1-9]")
_WITH_CONTRAST = re.compile(r"gad|gd|contrast|enhanced|kontrast|mitkm|^t1c|^ce$")
_WITHOUT_CONTRAST = re.compile(r"pre|non|without|ohne|native")
_PARTIAL = ("phase", "imag", "real")
"""Parts of a complex image that look nothing like the scan."""
_UNUSUAL = ("inv", "part", "echo", "flip", "mt", "rec", "chunk")
"""Entities of one of several images that belong together: a scan without them comes first."""


def read_bids(root: Path, choices: Choices = NOTHING) -> Cohort:
    """Subjects of a BIDS folder; contrasts t1, t1c (with a ce entity), t2, flair, pd from the raw scans.

    Lesion mask: a mask, roi, dseg, probseg, seg or msk whose label, desc or name speaks of a lesion, in the space of
    the scans, beside them or under derivatives. Brain mask: desc-brain_mask. Of several sessions the first that holds
    scan and lesion mask is taken; a contrast that it lacks comes from another one. What is left out, and what looks
    like a mask and is not used, is said. Health: see `data.health`; nobody is healthy because no mask was found.
    """
    seen = look_under(root, follow_symlinks=choices.follow_symlinks)
    notes = list(seen.notes)
    images_of = _images(root, seen, choices)
    parsed = [image for image in images_of.values() if image is not None]
    files = [file for file in seen.files if _is_read(file)]
    refuse_twins(files, {image.path for image in parsed})
    _refuse_two_places(root, parsed)
    ids = sorted({image.subject for image in parsed if image.kind == "scan"})
    if not ids:
        links = f" {len(seen.closed)} links lead out of it: --follow-symlinks follows them." if seen.closed else ""
        raise BadDataset("E-BIDS-EMPTY", root, "holds no sub-*/anat/*_T1w.nii.gz or the like." + links,
                         "Check the folder.")  # fmt: skip
    notes += _notes_on_files(root, files, parsed, ids, choices)
    orphans = [
        _where(root, file) for file, image in images_of.items() if image is None and _is_orphan(root, file, seen)
    ]
    if orphans:
        notes.append(
            f"{_some(orphans)} look like lesion masks, of whom is not clear, "
            "so nobody is healthy for want of a mask. Name them after their subjects (sub-01_label-lesion_mask.nii.gz)."
        )
        choices = replace(choices, healthy_unless_masked=False)
    people = read_people(root, {name: _homes(root, name, parsed) for name in ids}, notes)
    images: dict[str, list[_Image]] = {name: [] for name in ids}
    for image in parsed:
        images.get(image.subject, []).append(image)
    subjects = [_Chosen(root, name, images[name], choices, notes).subject(people) for name in ids]
    notes += notes_on_health([(s.subject_id, s.healthy, s.health_from) for s in subjects], "participants.tsv")
    return Cohort(root.resolve().name or "bids", tuple(subjects), notes=tuple(notes))


def _images(root: Path, seen: Found, choices: Choices) -> dict[Path, "_Image | None"]:
    """What each file, and each link or folder that was not looked into, is of whom."""
    scans = [_parse(root, file, choices, {}) for file in seen.files if _is_read(file)]
    named = {image.subject for image in scans if image is not None and image.kind == "scan"}
    spelt = Counter(map(plain_id, named))
    known = {plain_id(name): name for name in named if spelt[plain_id(name)] == 1}
    images = {file: _parse(root, file, choices, known) for file in seen.files}
    return images | {place: _parse_closed(root, place, known) for place in seen.closed}


def _notes_on_files(
    root: Path, files: Sequence[Path], parsed: Sequence["_Image"], ids: Sequence[str], choices: Choices
) -> list[str]:
    """What is said of files that are not read, of masks of whom there is no scan, and of a label that nothing has."""
    notes: list[str] = []
    if apart := [file for file in files if not_data(root, file)]:
        notes.append(f"{len(apart)} scans in {', '.join(sorted({not_data(root, f) for f in apart}))} are not read.")
    for kind, told in _TOLD.items():
        if places := [_where(root, image.path) for image in parsed if image.kind == kind]:
            notes.append(f"{_some(places)} {told}")
    strange = [i for i in parsed if i.kind in ("lesion", "doubtful", "unread", "apart") and i.subject not in ids]
    if strange:
        whose = _some(sorted({image.subject for image in strange}))
        notes.append(f"{_some([_where(root, i.path) for i in strange])}: masks of {whose}, of whom there is no scan.")
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


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _homes(root: Path, name: str, images: Sequence["_Image"]) -> list[Path]:
    """The folders that are called after a subject and hold its scans."""
    homes = [
        parent
        for image in images
        if image.subject == name and image.kind == "scan"
        for parent in image.path.parents
        if parent.name == name and parent.is_relative_to(root)
    ]
    return list(dict.fromkeys(homes))


@dataclass(frozen=True)
class _Image:
    path: Path
    subject: str
    entities: Mapping[str, str]
    kind: str
    """scan, lesion, brain, doubtful (looks like a mask, of what is not clear), unread (a mask in another format), apart
    (a mask in a folder that is not read), closed (a link or folder that may hold one), phase (no scan)."""
    contrast: str = ""

    @property
    def session(self) -> str:
        return self.entities.get("ses", "")

    @property
    def space(self) -> str:
        """Empty for the scanner's own."""
        space = self.entities.get("space", "")
        return "" if space.casefold() in _NATIVE_SPACES else space


def _parse(root: Path, file: Path, choices: Choices, ids: Mapping[str, str]) -> _Image | None:
    """What a file is of whom; None for what is nothing of a person's head. `ids`: subjects with scans, by plain id."""
    folders = folders_of(root, file)
    entities, rest = entities_of(stem(file))
    owner = owner_of(root, file, entities, ids)
    if owner is None:
        return None
    exact = owner == f"sub-{entities.get('sub', '')}"
    if "task" in entities or "freesurfer" in folders or any(part in ELSEWHERE for part in folders):
        kind = "doubtful" if lesion_named(entities, rest) else None
    elif exact and _is_scan(entities, rest):
        if not _is_read(file) or not_data(root, file) or any(part.startswith("derivative") for part in folders):
            return None
        if entities.get("part") in _PARTIAL:
            return _Image(file, owner, entities, "phase")
        return _Image(file, owner, entities, "scan", SUFFIXES[rest[0]] + ("c" if _has_contrast(entities) else ""))
    else:
        kind = kind_of_mask(entities, rest, folders, choices.label)
    kind = _as_it_lies(root, file, kind, lesion_named(entities, rest))
    if kind == "lesion" and not exact:
        below = [part.casefold() for part in file.relative_to(root).parts[:-1]]
        kind = "lesion" if owner.removeprefix("sub-").casefold() in below or owner.casefold() in below else "doubtful"
    return None if kind is None else _Image(file, owner, entities, kind)


def _is_scan(entities: Mapping[str, str], rest: Sequence[str]) -> bool:
    return len(rest) == 1 and rest[0] in SUFFIXES and not {"desc", "label", "mask"} & entities.keys()


def _has_contrast(entities: Mapping[str, str]) -> bool:
    """Whether a scan was made with a contrast agent: by its ce entity, or by the name of its acquisition."""
    if "ce" in entities:
        return True
    word = entities.get("acq", "").casefold()
    return _WITH_CONTRAST.search(word) is not None and _WITHOUT_CONTRAST.search(word) is None


def _as_it_lies(root: Path, file: Path, kind: str | None, named: bool) -> str | None:
    """The kind of a mask, when it lies where it is read and in a format that is; else what it is instead."""
    if kind not in ("lesion", "doubtful"):
        return None if not_data(root, file) or not _is_read(file) else kind
    name = file.name.casefold()
    if name.endswith((".mgz", ".mgh", ".dcm", ".ima")) and not named:
        return None  # FreeSurfer's folders hold masks of brain and tissue, series have a file per slice
    if not_data(root, file):
        return "apart"
    return kind if _is_read(file) else "unread"


def _parse_closed(root: Path, place: Path, ids: Mapping[str, str]) -> _Image | None:
    """Of whom a link or folder may hold a lesion mask that was not looked into; None when it is of nobody."""
    entities, rest = entities_of(stem(place))
    owner = owner_of(root, place, entities, ids)
    if owner is None and place.name.startswith("sub-"):
        owner = ids.get(plain_id(place.name))
    if owner is None or not (lesion_named(entities, rest) or _may_hold_lesions(root, place)):
        return None
    return _Image(place, owner, entities, "closed")


def _may_hold_lesions(root: Path, place: Path) -> bool:
    """Whether a link looks as if it led to lesion masks; of a folder that cannot be read it is not known."""
    return not place.is_symlink() or looks_like_lesion(root, place, folder=True)


def _is_orphan(root: Path, file: Path, seen: Found) -> bool:
    """Whether what is nobody's looks like a lesion mask."""
    entities, _ = entities_of(stem(file))
    owned = "sub" in entities or any(part.startswith("sub-") for part in file.relative_to(root).parts)
    if file in seen.closed:
        return not owned and _may_hold_lesions(root, file)
    return not owned and looks_like_lesion(root, file)


def _is_read(file: Path) -> bool:
    return file.name.lower().endswith(SCAN_SUFFIXES)


def _where(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


_SPEAK_AGAINST = ("lesion", "doubtful", "unread", "apart", "closed")
"""Kinds of images that speak against the health of their subject."""


@dataclass
class _Chosen:
    """Which of a subject's files are taken."""

    root: Path
    name: str
    images: list[_Image]
    choices: Choices
    notes: list[str]
    lesion: _Image | None = None
    brain: _Image | None = None
    scans: dict[str, Path] = field(default_factory=dict)

    def subject(self, people: People) -> Subject:
        person = people.rows.get(self.name, {})
        space = self._space()
        session = self._session(space)
        self._take_scans(space, session)
        self.lesion = self._mask("lesion", space, session)
        self.brain = self._mask("brain", space, session)
        unused = [i for i in self.images if i.kind in _SPEAK_AGAINST and i is not self.lesion]
        self._note_unused([_where(self.root, image.path) for image in unused if image.kind in ("lesion", "doubtful")])
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
            mask="" if self.lesion is None else _where(self.root, self.lesion.path),
            unused=[_where(self.root, image.path) for image in unused],
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
                name = _where(self.root, taken.path)
                self.notes.append(f"{name} is taken as {contrast.upper()}: its acq names a contrast agent.")
            if taken.session not in (session, ""):
                self.notes.append(
                    f"{self.name}: {contrast.upper()} is of session {taken.session}; session {session} has none."
                )
            twice = [i.path.name for i in fitting[1:] if i.session in (session, taken.session)]
            self.notes += [f"{self.name}: {name} left out, {taken.path.name} comes first." for name in twice]

    def _mask(self, kind: str, space: str, session: str) -> _Image | None:
        fitting = [i for i in self.images if i.kind == kind]
        here = sorted((i for i in fitting if i.space == space), key=lambda i: self._order(i, session))
        if not here and fitting:
            place = _where(self.root, fitting[0].path)
            way = self._way_to(fitting[0])
            self.notes.append(f"{place} lies in another space than the scan and was left out; {way}")
        if not here:
            return None
        if here[0].session not in (session, ""):
            self.notes.append(f"{self.name}: the {kind} mask is of session {here[0].session}, the scan of {session}.")
        if kind == "brain":
            self.notes += [f"{_where(self.root, i.path)} left out, {here[0].path.name} comes first." for i in here[1:]]
        return here[0]

    def _way_to(self, mask: _Image) -> str:
        """How a mask in another space can be used: with the scan of that space, where there is one."""
        if any(i.kind == "scan" and i.space == mask.space for i in self.images):
            return f"--space {mask.space} chooses it and its scan." if mask.space else "leave --space away."
        return (
            f"no raw scan lies in space {mask.space}: resample the mask onto the scan, or write a table with both in "
            "one space."
        )

    def _order(self, image: _Image, session: str) -> tuple[object, ...]:
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


def _refuse_two_places(root: Path, images: Sequence[_Image]) -> None:
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

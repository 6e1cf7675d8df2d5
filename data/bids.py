"""BIDS: raw scans under sub-*, masks beside them or under derivatives, people in participants.tsv.

https://bids-specification.readthedocs.io, v1.10, and what published data sets do besides: ATLAS R2.0 (scan and mask in
one template space), ISLES (_msk), ivadomed (T2w_lesion-manual), masks in another session or folder of derivatives.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data.cells import number, truth
from data.choices import NOTHING, Choices
from data.cohort import ROLES, Cohort, Subject
from data.folders import OTHER_SUFFIXES, SCAN_SUFFIXES, BadDataset, refuse_twins, scans_under, stem
from data.health import group_columns, health_of, is_sign, note_on_column, notes_on_health
from data.health_words import MASK_WORDS
from data.table import read_rows

_SUFFIXES = {"T1w": "t1", "T2w": "t2", "FLAIR": "flair", "PDw": "pd", "T2starw": "t2star"}
_NATIVE_SPACES = ("", "orig", "t1w", "t2w", "flair", "individual", "scanner", "native", "anat")
_NOT_DATA = ("sourcedata", "code", "stimuli", "phenotype", "tmp")
"""Folders of a data set that hold no data of it."""
_ELSEWHERE = ("func", "fmap", "perf", "meg", "eeg", "ieeg", "beh", "pet", "mrs", "nirs", "motion", "micr")
_MASK_SUFFIXES = ("mask", "roi", "msk", "seg", "segm", "segmentation", "label", "labels", "dseg", "probseg")
_LESION = re.compile(
    r"lesion|msk|stroke|infarct|isch(?:a?e)m|penumbra|tumou?r|glioma|gbm|metast|mening|wmh|hyperint|hypoint|\broi\b|"
    r"o?edema|ha?emorr?h?ag|ha?ematom|microbleed|anomal|abnormal|patholog|\bfcd\b|cavity|resect|annotation|delineation"
)
_BRAIN = re.compile(r"\bbrain\b|\bbrainmask\b|dlmuse|skullstrip|\bbet\b|synthstrip|\bhdbet\b|\brobex\b")
_TISSUE = re.compile(
    r"\b(?:gm|wm|csf|cord|sc|seg-manual|disc|discs|eye|eyes|skull|scalp|head|bold|fast|nonzero|defacemask|ribbon|cortex|"
    r"cortical|subcortical|gr[ae]y|white|gr[ae]ymatter|whitematter|brainstem|hippo\w*|thalam\w*|ventricles?|cerebell\w*|"
    r"tissues?|spinalcord|vertebrae?)\b|aseg|aparc|synthseg|atlas|parc(?:ellation)?\b"
)
_FIRST = re.compile(r"base|^bl\d*$|^pre|^init|^m?0+$|screen|first|acute|^t0|^v0|^y0")
_LATER = re.compile(r"follow|^fu|post|late|final|last|chronic|month|year|week|^m\d|^y\d|^w\d|^v[1-9]|^t[1-9]")
_RESERVED = ("participant_id", "age", "sex", "gender", "site", "role", "healthy", "handedness")


def read_bids(root: Path, choices: Choices = NOTHING) -> Cohort:
    """Subjects of a BIDS folder; contrasts t1, t1c (with a ce entity), t2, flair, pd from the raw scans.

    Lesion mask: a mask, roi, dseg, probseg, seg or msk whose label, desc or name speaks of a lesion, in the space of
    the scans, beside them or under derivatives. Brain mask: desc-brain_mask. Of several sessions the first that holds
    scan and lesion mask is taken; a contrast that it lacks comes from another one. What is left out, and what looks
    like a mask and is not used, is said. Health: see `data.health`; nobody is healthy because no mask was found.
    """
    everything, left_out = scans_under(
        root, follow_symlinks=choices.follow_symlinks, suffixes=(*SCAN_SUFFIXES, *OTHER_SUFFIXES)
    )
    files = tuple(file for file in everything if _is_read(file))
    notes = list(left_out)
    apart = [file for file in files if _not_data(root, file)]
    if apart:
        notes.append(f"{len(apart)} scans in {', '.join(sorted({_not_data(root, f) for f in apart}))} are not read.")
    named = {i.subject for f in files if (i := _parse(root, f, choices, {})) is not None and i.kind == "scan"}
    spelt = Counter(map(_plain_id, named))
    known = {_plain_id(name): name for name in named if spelt[_plain_id(name)] == 1}
    images_of = {file: _parse(root, file, choices, known) for file in everything}
    parsed = [image for image in images_of.values() if image is not None]
    refuse_twins(files, {image.path for image in parsed})
    unread = [image.path for image in parsed if image.kind == "unread"]
    if unread:
        told = ", ".join(_where(root, path) for path in unread[:3]) + (" ..." if len(unread) > 3 else "")
        notes.append(f"{told} look like lesion masks in a format that is not read. Convert them to NIfTI.")
    _refuse_two_places(root, parsed)
    orphans = [_where(root, file) for file, image in images_of.items() if image is None and _is_orphan(root, file)]
    if orphans:
        told = ", ".join(orphans[:3]) + (" ..." if len(orphans) > 3 else "")
        notes.append(
            f"{told} look like lesion masks, of whom is not clear, "
            "so nobody is healthy for want of a mask. Name them after their subjects (sub-01_label-lesion_mask.nii.gz)."
        )
        choices = replace(choices, healthy_unless_masked=False)
    people, header = _participants(root, notes)
    levels = _levels(root)
    ids = sorted({image.subject for image in parsed if image.kind == "scan"})
    if not ids:
        links = f" {len(left_out)} links lead out of it: --follow-symlinks follows them." if left_out else ""
        raise BadDataset("E-BIDS-EMPTY", root, "holds no sub-*/anat/*_T1w.nii.gz or the like." + links,
                         "Check the folder.")  # fmt: skip
    _add_diagnoses(root, people, ids)
    notes += [f"{name} is in participants.tsv but has no scan." for name in sorted(set(people) - set(ids))]
    if people:
        notes += [f"{name} is not in participants.tsv." for name in ids if name not in people]
    for column in (c for c in header if c not in (*_RESERVED, *group_columns(header))):
        said = note_on_column(column, [row.get(column, "") for row in people.values()], "participants.tsv")
        notes += [said] if said else []
    images: dict[str, list[_Image]] = {name: [] for name in ids}
    for image in parsed:
        images.get(image.subject, []).append(image)
    subjects = [_Chosen(root, name, images[name], choices, notes).subject(people.get(name, {}), levels) for name in ids]
    notes += notes_on_health([(s.subject_id, s.healthy, s.health_from) for s in subjects], "participants.tsv")
    return Cohort(root.resolve().name or "bids", tuple(subjects), notes=tuple(notes))


@dataclass(frozen=True)
class _Image:
    path: Path
    subject: str
    entities: Mapping[str, str]
    kind: str
    """scan, lesion, brain, doubtful (looks like a mask, of what is not clear), unread (a mask in another format)."""
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
    folders = [part.casefold() for part in file.relative_to(root).parts[:-1]]
    if _not_data(root, file):
        return None
    entities, rest = _entities(stem(file))
    owner = _owner(root, file, entities, ids)
    if owner is None or not rest:
        return None
    exact = owner == f"sub-{entities.get('sub', '')}"
    said = _LESION.search(" ".join([*rest, entities.get("label", ""), entities.get("desc", "")]).casefold())
    elsewhere = "task" in entities or "freesurfer" in folders or any(part in _ELSEWHERE for part in folders)
    if elsewhere:
        return _Image(file, owner, entities, "doubtful" if _is_read(file) else "unread") if said else None
    derived = any(part.startswith("derivative") for part in folders)
    plain = not {"desc", "label", "mask"} & entities.keys()
    if exact and len(rest) == 1 and rest[0] in _SUFFIXES and plain:
        if derived or not _is_read(file):
            return None
        return _Image(file, owner, entities, "scan", _SUFFIXES[rest[0]] + ("c" if "ce" in entities else ""))
    kind = _kind_of_mask(entities, rest, folders, choices)
    if not _is_read(file):
        surfer = file.name.lower().endswith((".mgz", ".mgh"))  # its folders hold masks of brain and tissue
        return (
            _Image(file, owner, entities, "unread") if kind == "lesion" or (kind == "doubtful" and not surfer) else None
        )
    if kind == "lesion" and not exact:
        kind = "lesion" if owner.removeprefix("sub-") in folders or owner in folders else "doubtful"
    return None if kind is None else _Image(file, owner, entities, kind)


def _entities(name: str) -> tuple[dict[str, str], list[str]]:
    """Entities of a file's name, and the words behind them: T1w, lesion-manual."""
    entities: dict[str, str] = {}
    rest: list[str] = []
    for part in name.split("_"):
        key, dash, value = part.partition("-")
        if dash and not rest and key.casefold() not in ("lesion", "seg"):
            entities.setdefault(key.casefold(), value)
        else:
            rest.append(part)
    return entities, rest


def _owner(root: Path, file: Path, entities: Mapping[str, str], ids: Mapping[str, str]) -> str | None:
    """Whose file it is: by its sub entity, by its folder, or by an id that stands in its path in another spelling."""
    if entities.get("sub"):
        name = f"sub-{entities['sub']}"
        return ids.get(_plain_id(name), name)
    folder = next((part for part in reversed(file.relative_to(root).parts[:-1]) if part.startswith("sub-")), "")
    if folder:
        return ids.get(_plain_id(folder), folder)
    words = re.split(r"[^A-Za-z0-9]+", f"{file.parent.name} {stem(file)}")
    return next((ids[_plain_id(word)] for word in words if word and _plain_id(word) in ids), None)


def _plain_id(name: str) -> str:
    """An id without sub-, leading zeros and case."""
    return re.sub(r"^sub[-_]?", "", name.casefold()).lstrip("0")


def _kind_of_mask(
    entities: Mapping[str, str], rest: Sequence[str], folders: Sequence[str], choices: Choices
) -> str | None:
    """lesion, brain, doubtful; None for what is no mask, or one of known tissue."""
    names = [entities.get(key, "") for key in ("label", "desc", "mask")] + [r for r in rest if r not in _SUFFIXES]
    told = " ".join(names).casefold()
    suffix = re.split(r"[^a-z]", rest[-1].casefold())[0]
    if choices.label and choices.label.casefold() in [*(name.casefold() for name in names), rest[-1].casefold()]:
        return "lesion"
    lesion = bool(_LESION.search(told))
    masklike = suffix in _MASK_SUFFIXES or lesion or bool(MASK_WORDS.search(told)) or "mask" in entities
    if not masklike:
        return None
    if _BRAIN.search(told) and not lesion:
        return "brain" if suffix in ("mask", "brain") and "dwi" not in folders else None
    if lesion:
        return "doubtful" if choices.label else "lesion"
    below = folders[folders.index("derivatives") + 1 :] if "derivatives" in folders else folders
    if any(_LESION.search(folder) or folder in ("masks", "manual_masks", "rois") for folder in below):
        return None if _TISSUE.search(told) else "doubtful"
    if _TISSUE.search(told) or (suffix in ("dseg", "probseg") and len(told.split()) == 1):
        return None  # BIDS: a dseg without label is a map of tissues
    return "doubtful"


def _is_read(file: Path) -> bool:
    return file.name.lower().endswith(SCAN_SUFFIXES)


def _where(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _is_orphan(root: Path, file: Path) -> bool:
    """Whether a file that is nobody's looks like a lesion mask, by its name or its folders."""
    if _not_data(root, file) or _TISSUE.search(stem(file).casefold().replace("_", " ")):
        return False
    return _LESION.search(_where(root, file).casefold()) is not None


def _not_data(root: Path, file: Path) -> str:
    """The folder on the way to a file that holds no data of a data set, such as sourcedata."""
    return next((part for part in file.relative_to(root).parts[:-1] if part.casefold() in _NOT_DATA), "")


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

    def subject(self, person: Mapping[str, str], levels: Mapping[str, Mapping[str, str]]) -> Subject:
        space = self._space()
        session = self._session(space)
        self._take_scans(space, session)
        self.lesion = self._mask("lesion", space, session)
        self.brain = self._mask("brain", space, session)
        unused = [i for i in self.images if i.kind in ("lesion", "doubtful", "unread") and i is not self.lesion]
        said = [_where(self.root, image.path) for image in unused if image.kind != "unread"]
        if said:
            flag = "--session, --space or --label" if self.lesion is None else "--session, --space, --run or --label"
            self.notes.append(
                f"{self.name}: {', '.join(said[:3])}{' ...' if len(said) > 3 else ''} looks like a lesion mask and is "
                f"not used; {flag} chooses another one."
            )
        role = person.get("role", "").casefold() or None
        if role not in (None, *ROLES):
            raise BadDataset(
                "E-BIDS-ROLE", self.root / "participants.tsv", f"{self.name} has role {role!r}.",
                f"Allowed: {', '.join(ROLES)}.",
            )  # fmt: skip
        health = health_of(
            person,
            "participants.tsv",
            self.choices,
            mask="" if self.lesion is None else _where(self.root, self.lesion.path),
            unused=[_where(self.root, image.path) for image in unused],
            role=role,
            used=_RESERVED,
            levels=levels,
        )
        return Subject(
            self.name, self.scans, self.brain.path if self.brain else None, self.lesion.path if self.lesion else None,
            health.healthy, role, person.get("site") or None, number(person.get("age", "")),
            person.get("sex") or person.get("gender") or None, health_from=health.word,
        )  # fmt: skip

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
            self.notes.append(f"{place} lies in another space than the scan and was left out; --space chooses.")
        if not here:
            return None
        if here[0].session not in (session, ""):
            self.notes.append(f"{self.name}: the {kind} mask is of session {here[0].session}, the scan of {session}.")
        if kind == "brain":
            self.notes += [f"{_where(self.root, i.path)} left out, {here[0].path.name} comes first." for i in here[1:]]
        return here[0]

    def _order(self, image: _Image, session: str) -> tuple[object, ...]:
        entities, choices = image.entities, self.choices
        asked = [(choices.run, "run"), (choices.acq, "acq")]
        missed = tuple(bool(want) and not _same(entities.get(key, ""), want) for want, key in asked)
        runs = natural(entities.get("run", ""))
        where = (image.session != session, _session_order(image.session))
        words = len(image.path.name)
        return (*missed, *where, natural(entities.get("acq", "")), runs, words, image.path.as_posix())


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


def _participants(root: Path, notes: list[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    tables = [path for path in (root / "participants.tsv", *sorted(root.glob("*/participants.tsv")))
              if path.is_file() and "derivatives" not in path.parts]  # fmt: skip
    if not tables:
        notes.append("There is no participants.tsv; ages, sites and groups are unknown.")
        return {}, []
    people: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    for table in tables:
        header, rows = read_rows(table)
        header = [_own_name(column) for column in header]
        if "participant_id" not in header:
            raise BadDataset("E-BIDS-PARTICIPANTS", table, "has no column participant_id.", "Add it.")
        columns += [column for column in header if column not in columns]
        for line, cells in rows:
            row = {_own_name(column): cell for column, cell in cells.items()}
            name = row["participant_id"] if row["participant_id"].startswith("sub-") else f"sub-{row['participant_id']}"
            if name in people:
                raise BadDataset(
                    "E-BIDS-PARTICIPANTS", table, f"row {line} repeats {name}.", "Keep one row per person."
                )
            if row.get("healthy") and truth(row["healthy"]) is None:
                raise BadDataset(
                    "E-BIDS-VALUE",
                    table,
                    f"row {line}: healthy is {row['healthy']!r}.",
                    "Allowed: true or false, 1 or 0.",
                )
            people[name] = row
    return people, columns


def _add_diagnoses(root: Path, people: dict[str, dict[str, str]], ids: Sequence[str]) -> None:
    """What sessions.tsv and phenotype tables say of groups and diagnoses, where participants.tsv says nothing of it."""
    tables = [(path, "") for path in sorted((root / "phenotype").glob("*.tsv"))]
    tables += [(root / name / f"{name}_sessions.tsv", name) for name in ids]
    for path, owner in tables:
        if not path.is_file():
            continue
        header, rows = read_rows(path)
        for _, row in rows:
            name = owner or row.get("participant_id", "")
            name = name if name.startswith("sub-") else f"sub-{name}"
            if name not in ids:
                continue
            known = people.setdefault(name, {})
            told = [
                c
                for c in header
                if row[c] and c not in _RESERVED and (c in group_columns(header) or is_sign(c, row[c]))
            ]
            for column in told:
                free = column
                while known.get(free, row[column]) != row[column]:  # of several visits, the one that says ill is heard
                    free += " 2"
                known[free] = row[column]


def _own_name(column: str) -> str:
    """Columns that the specification names, however they are written."""
    return column.casefold() if column.casefold() in _RESERVED else column


def _levels(root: Path) -> dict[str, dict[str, str]]:
    """What participants.json declares of the values of each column. BadDataset when it is there and cannot be read:
    what it says of a word would be guessed."""
    path = root / "participants.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise BadDataset("E-BIDS-JSON", path, f"cannot be read ({error}).", "Repair it, or take it away.") from None
    found: dict[str, dict[str, str]] = {}
    for column, about in told.items() if isinstance(told, dict) else ():
        levels = about.get("Levels") if isinstance(about, dict) else None
        if isinstance(levels, dict):
            texts = {str(v): m if isinstance(m, str) else str(m.get("Description", "")) if isinstance(m, dict) else ""
                     for v, m in levels.items()}  # fmt: skip
            found[column] = texts
    return found

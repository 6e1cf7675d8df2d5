"""The files of a BIDS tree, each as an image of somebody: a scan, a mask of a lesion or the brain, or a doubt."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.bids_names import (
    ELSEWHERE,
    SUFFIXES,
    entities_of,
    folders_of,
    kind_of_mask,
    lesion_named,
    looks_like_lesion,
    not_data,
    owner_of,
    plain_id,
)
from data.choices import Choices
from data.folders import SCAN_SUFFIXES, Found, stem

_NATIVE_SPACES = ("", "orig", "t1w", "t2w", "flair", "individual", "scanner", "native", "anat")
_WITH_CONTRAST = re.compile(r"gad|gd|contrast|enhanced|kontrast|mitkm|^t1c|^ce$")
_WITHOUT_CONTRAST = re.compile(r"pre|non|without|ohne|native")
_PARTIAL = ("phase", "imag", "real")
"""Parts of a complex image that look nothing like the scan."""


@dataclass(frozen=True)
class Image:
    """A file of a subject, and what it is taken for."""

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


def _parse(root: Path, file: Path, choices: Choices, ids: Mapping[str, str]) -> Image | None:
    """What a file is of whom; None for what is nothing of a person's head. `ids`: subjects with scans, by plain id."""
    folders = folders_of(root, file)
    entities, rest = entities_of(stem(file))
    owner = owner_of(root, file, entities, ids)
    if owner is None:
        return None
    exact = owner == f"sub-{entities.get('sub', '')}"
    if "task" in entities or "freesurfer" in folders or any(part in ELSEWHERE for part in folders):
        named = lesion_named(entities, rest) or entities.get("label", "").casefold() == "core"
        kind = "doubtful" if named else None
    elif exact and _is_scan(entities, rest):
        if not is_read(file) or not_data(root, file) or any(part.startswith("derivative") for part in folders):
            return None
        if entities.get("part") in _PARTIAL:
            return Image(file, owner, entities, "phase")
        return Image(file, owner, entities, "scan", SUFFIXES[rest[0]] + ("c" if _has_contrast(entities) else ""))
    else:
        kind = kind_of_mask(entities, rest, folders, choices.label)
    kind = _as_it_lies(root, file, kind, lesion_named(entities, rest))
    if kind == "lesion" and not exact:
        below = [part.casefold() for part in file.relative_to(root).parts[:-1]]
        kind = "lesion" if owner.removeprefix("sub-").casefold() in below or owner.casefold() in below else "doubtful"
    return None if kind is None else Image(file, owner, entities, kind)


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
        return None if not_data(root, file) or not is_read(file) else kind
    name = file.name.casefold()
    if name.endswith((".mgz", ".mgh", ".dcm", ".ima")) and not named:
        return None  # FreeSurfer's folders hold masks of brain and tissue, series have a file per slice
    if not_data(root, file):
        return "apart"
    return kind if is_read(file) else "unread"


def _parse_closed(root: Path, place: Path, ids: Mapping[str, str]) -> Image | None:
    """Of whom a link or folder may hold a lesion mask that was not looked into; None when it is of nobody."""
    entities, rest = entities_of(stem(place))
    owner = owner_of(root, place, entities, ids)
    if owner is None and place.name.startswith("sub-"):
        owner = ids.get(plain_id(place.name))
    if owner is None or not (lesion_named(entities, rest) or _may_hold_lesions(root, place)):
        return None
    return Image(place, owner, entities, "closed")


def _may_hold_lesions(root: Path, place: Path) -> bool:
    """Whether a link looks as if it led to lesion masks; of a folder that cannot be read it is not known."""
    return not place.is_symlink() or looks_like_lesion(root, place, folder=True)


def is_orphan(root: Path, file: Path, seen: Found) -> bool:
    """Whether what is nobody's looks like a lesion mask."""
    entities, _ = entities_of(stem(file))
    owned = "sub" in entities or any(part.startswith("sub-") for part in file.relative_to(root).parts)
    if file in seen.closed:
        return not owned and _may_hold_lesions(root, file)
    return not owned and looks_like_lesion(root, file)


def is_read(file: Path) -> bool:
    """Whether a file is of a format that is read."""
    return file.name.lower().endswith(SCAN_SUFFIXES)


def where(root: Path, path: Path) -> str:
    """A path below the root of a data set, as it is told."""
    return path.relative_to(root).as_posix()


SPEAK_AGAINST = ("lesion", "doubtful", "unread", "apart", "closed")
"""Kinds of images that speak against the health of their subject."""


def images_of(root: Path, seen: Found, choices: Choices) -> dict[Path, Image | None]:
    """What each file, and each link or folder that was not looked into, is of whom."""
    scans = [_parse(root, file, choices, {}) for file in seen.files if is_read(file)]
    named = {image.subject for image in scans if image is not None and image.kind == "scan"}
    spelt = Counter(map(plain_id, named))
    known = {plain_id(name): name for name in named if spelt[plain_id(name)] == 1}
    images = {file: _parse(root, file, choices, known) for file in seen.files}
    return images | {place: _parse_closed(root, place, known) for place in seen.closed}

"""Walking a data set's folder: links that leave it are not followed silently, names that collide are refused."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from data.errors import BadInput

SCAN_SUFFIXES = (".nii.gz", ".nii")
OTHER_SUFFIXES = (
    *(".hdr", ".img", ".mgz", ".mgh", ".nii.zst", ".nii.bz2", ".nii.xz", ".nii.zip", ".nrrd", ".nhdr", ".mha", ".mhd"),
    *(".mnc", ".mif", ".mif.gz", ".gipl", ".gipl.gz", ".brik", ".brik.gz", ".dcm", ".ima"),
)
"""Of scans in formats that are not read: refused where they are given, named where they lie."""
MORE_SUFFIXES = (
    ".voi",
    ".roi",
    ".npy",
    ".npz",
    ".mat",
    ".h5",
    ".hdf5",
    ".pkl",
    ".vtk",
    ".stl",
    ".tif",
    ".tiff",
    ".rtss",
)
"""Of formats that may hold a mask: named where the file is called like one."""
EVERY_SUFFIX = (*SCAN_SUFFIXES, *OTHER_SUFFIXES, *MORE_SUFFIXES)
_LONG_ONES_FIRST = sorted(EVERY_SUFFIX, key=len, reverse=True)


class BadDataset(BadInput):
    """A data set that cannot be understood: `code` names the fault, `path` the place."""

    def __init__(self, code: str, path: Path, cause: str, remedy: str) -> None:
        super().__init__(f"{code}: {path}: {cause} {remedy}")
        self.code = code
        self.path = path


@dataclass(frozen=True)
class Found:
    """The files of a data set, what was left out in words, and the links and folders that were not looked into."""

    files: tuple[Path, ...]
    notes: tuple[str, ...]
    closed: tuple[Path, ...]


def scans_under(
    root: Path, *, follow_symlinks: bool = False, suffixes: tuple[str, ...] = SCAN_SUFFIXES
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """All .nii and .nii.gz files under a folder in sorted order, and notes on what was left out.

    Links to places inside the folder count (datalad), links that leave it only with `follow_symlinks`. Whoever uses
    them asks `refuse_twins` of what it uses.
    """
    found = look_under(root, follow_symlinks=follow_symlinks, suffixes=suffixes)
    return found.files, found.notes


def look_under(root: Path, *, follow_symlinks: bool = False, suffixes: tuple[str, ...] = EVERY_SUFFIX) -> Found:
    """As `scans_under`, with the links and folders that were not looked into: what lies there is not known."""
    if not root.is_dir():
        raise BadDataset("E-DATA-ROOT", root, "is not a folder.", "Give the folder that holds the subjects.")
    home = root.resolve()
    files: list[Path] = []
    notes: list[str] = []
    closed: list[Path] = []
    visited: dict[Path, str] = {}

    def unreadable(error: OSError) -> None:
        place = Path(error.filename or root)
        closed.append(place)
        notes.append(f"{_below(root, place)} cannot be read ({error.strerror or error}); what lies there is not known.")

    def taken(link: Path) -> bool:
        why = _why_left_out(link, home, follow_symlinks)
        if why:
            notes.append(f"{link.relative_to(root)} {why}.")
            closed.append(link)
        return not why

    for place, folders, names in os.walk(root, followlinks=True, onerror=unreadable):
        here = Path(place).resolve()
        if here in visited:
            notes.append(f"{_below(root, Path(place))} is the folder {visited[here]} once more and was left out.")
            folders.clear()
            continue
        visited[here] = _below(root, Path(place))
        folders[:] = [n for n in sorted(folders) if taken(Path(place, n)) and not n.startswith(".")]
        wanted = sorted(n for n in names if n.lower().endswith(suffixes) and not n.startswith("."))
        files += [Path(place, n) for n in wanted if taken(Path(place, n))]
    return Found(tuple(sorted(files)), tuple(notes), tuple(closed))


def _below(root: Path, place: Path) -> str:
    return place.relative_to(root).as_posix() if place.is_relative_to(root) else place.as_posix()


def stem(path: Path) -> str:
    """File name without .nii, .nii.gz or the suffix of another format."""
    name = path.name
    for suffix in _LONG_ONES_FIRST:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _why_left_out(link: Path, home: Path, follow_symlinks: bool) -> str:
    """Why a link is not taken; "" when it is none, or one that is taken. A link to nothing is: its scan is missing."""
    if not link.is_symlink():
        return ""
    try:
        end = link.resolve()
    except (OSError, RuntimeError):  # RuntimeError: how Python before 3.13 tells of a loop
        return "is a link that leads back to itself and was left out"
    if follow_symlinks or end.is_relative_to(home):
        return ""
    return "leads out of the data set and was not followed (--follow-symlinks does)"


def refuse_twins(paths: Iterable[Path], used: Collection[Path] | None = None) -> None:
    """BadDataset when names differ only by case, or a .nii lies beside a .nii.gz of the same name.

    `used`: only what is the twin of one of these matters.
    """
    owners: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path in paths:
        owners[_same_name(str(path.parent)), _same_name(stem(path))].append(path)
    for twins in owners.values():
        if len(twins) > 1 and (used is None or any(path in used for path in twins)):
            raise BadDataset(
                "E-DATA-TWINS", twins[0], f"and {twins[1].name} are the same name but for case, accents' coding or "
                "packing.",
                "Which one is meant is not clear; remove or rename one.",
            )  # fmt: skip


def _same_name(name: str) -> str:
    """Equal for names that some file system takes for one: case, and é as one sign or as two."""
    return unicodedata.normalize("NFC", name).casefold()

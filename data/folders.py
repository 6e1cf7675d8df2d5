"""Walking a data set's folder: links that leave it are not followed silently, names that collide are refused."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from data.errors import BadInput

SCAN_SUFFIXES = (".nii.gz", ".nii")
OTHER_SUFFIXES = (".hdr", ".img", ".mgz", ".mgh", ".nii.zst", ".nrrd", ".mha", ".mhd", ".dcm", ".ima")
"""Of scans in formats that are not read: refused where they are given, named where they lie."""


class BadDataset(BadInput):
    """A data set that cannot be understood: `code` names the fault, `path` the place."""

    def __init__(self, code: str, path: Path, cause: str, remedy: str) -> None:
        super().__init__(f"{code}: {path}: {cause} {remedy}")
        self.code = code
        self.path = path


def scans_under(
    root: Path, *, follow_symlinks: bool = False, suffixes: tuple[str, ...] = SCAN_SUFFIXES
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """All .nii and .nii.gz files under a folder in sorted order, and notes on what was left out.

    Links to places inside the folder count (datalad), links that leave it only with `follow_symlinks`. Whoever uses
    them asks `refuse_twins` of what it uses.
    """
    if not root.is_dir():
        raise BadDataset("E-DATA-ROOT", root, "is not a folder.", "Give the folder that holds the subjects.")
    home = root.resolve()
    found: list[Path] = []
    left_out: list[str] = []
    visited: set[Path] = set()
    for place, folders, names in os.walk(root, followlinks=True):
        here = Path(place).resolve()
        if here in visited:
            folders.clear()
            continue
        visited.add(here)
        kept = []
        for name in sorted(folders):
            link = Path(place, name)
            if why := _why_left_out(link, home, follow_symlinks):
                left_out.append(f"{link.relative_to(root)} {why}.")
            elif not name.startswith("."):
                kept.append(name)
        folders[:] = kept
        for name in sorted(n for n in names if n.lower().endswith(suffixes) and not n.startswith(".")):
            link = Path(place, name)
            if why := _why_left_out(link, home, follow_symlinks):
                left_out.append(f"{link.relative_to(root)} {why}.")
            else:
                found.append(link)
    return tuple(sorted(found)), tuple(left_out)


def stem(path: Path) -> str:
    """File name without .nii, .nii.gz or the suffix of another format."""
    name = path.name
    for suffix in (*SCAN_SUFFIXES, *OTHER_SUFFIXES):
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

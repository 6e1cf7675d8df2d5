"""Room on the disk, asked for before work begins: better refused at once than stopped after an hour."""

import shutil
from pathlib import Path

from data.errors import EnvironmentProblem

NPY_HEADER = 128
"""Bytes of a .npy file before its numbers."""
MANIFEST_BYTES, PER_FILE = 320, 90
"""Of a manifest: what it says of itself, and a line per file."""


def require_room(directory: Path, needed: int, what: str, *, at_most: bool = False) -> None:
    """EnvironmentProblem when fewer than `needed` bytes are free where `directory` is, or would be made.

    `at_most`: what is written is compressed, and `needed` its size before that.
    """
    place = _existing(directory)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise EnvironmentProblem(
            f"{what} needs {'at most ' if at_most else ''}{needed} bytes ({size(needed)}); free now: {free} bytes "
            f"({size(free)}) at {place}. Make room there or choose another directory, and repeat the command. "
            "Nothing was computed for it yet."
        )


def committed_bytes(*files: int) -> int:
    """Of a committed directory with files of these sizes, its manifest counted."""
    return sum(files) + MANIFEST_BYTES + PER_FILE * len(files)


def size(n_bytes: float) -> str:
    """Bytes as a person reads them."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= step:
            return f"{n_bytes / step:.3g} {unit}"
    return f"{n_bytes:.0f} bytes"


def _existing(directory: Path) -> Path:
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return directory

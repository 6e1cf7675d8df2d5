"""SHA-256 of files, remembered for as long as a file is the same."""

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

Identity = tuple[int, int, int, int, int]
_READ_AT_ONCE = 1 << 20
"""Bytes up to which a file is hashed in one piece."""
CLOCK_STEP_NS = 100_000_000
"""Files changed less long ago are hashed again: two changes within one step of a file system's clock look like one."""
_hashed: dict[str, tuple[Identity, str]] = {}


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size <= _READ_AT_ONCE:  # thousands of small files are hashed for one list
            return hashlib.sha256(file.read()).hexdigest()
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_identity(path: str | Path) -> Identity:
    """What changes when a file is written or replaced: device, number, size, time of writing, time of any change."""
    state = os.stat(path)
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def known_sha256(path: Path) -> str:
    """`sha256_file`, computed once per process as long as the file stays the same one."""
    before = file_identity(path)
    known = _hashed.get(str(path))
    if known is not None and known[0] == before:
        return known[1]
    digest = sha256_file(path)
    if time.time_ns() - before[-1] > CLOCK_STEP_NS:
        _hashed[str(path)] = (before, digest)
    return digest


def hashed_files() -> dict[str, tuple[Identity, str]]:
    """What this process has hashed so far, to be told to a process that it starts: see `tell_hashed`."""
    return dict(_hashed)


def tell_hashed(known: Mapping[str, tuple[Identity, str]]) -> None:
    """Take over what the starting process has hashed; a file that was changed since has another identity."""
    _hashed.update(known)

"""What was read from many files, remembered by the identity of each: in this process, and in an index beside them.

An identity is device, inode, size and the times of the last change of content and inode. A value is believed only
while every file has the identity under which it was read. The index is rebuilt when it is missing, damaged or made by
another version of this program, and silently left out where nothing can be written.
"""

import contextlib
import gc
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.whole_files import clear_litter, replace_whole

TICK_NS = 20_000_000
"""Two changes within one tick of the file system's clock look alike: a file is read only when it is older than that."""
WORTH_WRITING = 32
"""Values made anew before the index is written again."""
_held: dict[tuple[Path, str], dict[str, tuple[str, Any]]] = {}
_unsaved: dict[tuple[Path, str], int] = {}


@dataclass(frozen=True)
class Identity:
    """Which files these are, each as it is now."""

    text: str
    """Equal as long as no file was changed, replaced, removed or added."""
    changed_ns: int
    """When the last of them was changed, by the file system's clock."""


def identity_of(*paths: str | Path) -> Identity:
    """The identity of some files, of which any may be missing."""
    parts, newest = [], 0
    for path in paths:
        try:
            found = os.stat(path)
        except OSError:
            parts.append("-")
            continue
        parts.append(f"{found.st_dev}.{found.st_ino}.{found.st_size}.{found.st_mtime_ns}.{found.st_ctime_ns}")
        newest = max(newest, found.st_ctime_ns)
    return Identity(" ".join(parts), newest)


def remembered(
    index: Path, maker: str, wanted: Mapping[str, Identity], make: Callable[[str], tuple[Any, bool]]
) -> dict[str, Any]:
    """A value for each name: the one that is known of this identity, else what `make` says.

    `make` gives a JSON value and whether it may be remembered. `maker` changes whenever `make` does. The values are
    shared and not to be changed.
    """
    place = index, maker
    if place not in _held:
        _held[place] = _read(index, maker)
    known = _held[place]
    fresh: dict[str, tuple[str, Any]] = {}
    values: dict[str, Any] = {}
    with _no_collection():
        for name, found in wanted.items():
            if name in known and known[name][0] == found.text:
                values[name] = known[name][1]
                continue
            _let_settle(found)
            values[name], keep = make(name)
            if keep:
                fresh[name] = (found.text, values[name])
    if fresh or known.keys() - wanted.keys():
        _held[place] = {name: entry for name, entry in (known | fresh).items() if name in wanted}
    _unsaved[place] = _unsaved.get(place, 0) + len(fresh)
    if _unsaved[place] >= WORTH_WRITING:
        _unsaved[place] = 0
        _write(index, maker, _held[place])
    return values


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No search for cycles: JSON has none, and over thousands of files a tenth of the time goes into it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _let_settle(found: Identity) -> None:
    age = time.time_ns() - found.changed_ns
    if 0 <= age < TICK_NS:
        time.sleep((TICK_NS - age) / 1e9)


def _read(index: Path, maker: str) -> dict[str, tuple[str, Any]]:
    """The entries of an index file; none when it is missing, damaged, or of another maker."""
    try:
        head, _, body = index.read_bytes().partition(b"\n")
        if json.loads(head) != {"maker": maker, "sha256": hashlib.sha256(body).hexdigest()}:
            return {}
        return {str(name): (str(text), value) for name, (text, value) in json.loads(body).items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _write(index: Path, maker: str, entries: Mapping[str, tuple[str, Any]]) -> None:
    with contextlib.suppress(OSError):
        body = json.dumps(entries, allow_nan=False, separators=(",", ":")).encode()
        head = json.dumps({"maker": maker, "sha256": hashlib.sha256(body).hexdigest()}).encode()
        clear_litter(index.parent)
        replace_whole(index, head + b"\n" + body)

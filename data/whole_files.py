"""Files that are whole or not there: written beside and put into place; litter, fences, points for tests."""

import contextlib
import errno
import os
import re
import shutil
import signal
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from data import trouble
from data.errors import EnvironmentProblem
from data.processes import host_tag, process_tag

if TYPE_CHECKING:
    pass

_UNFINISHED = ".tmp-"
_ASIDE = _UNFINISHED + "old-"
_OWNED = re.compile(r"\.tmp-(?:new-|old-)?(?P<tag>(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{8})-[0-9a-f]{32}")
_FAULTS = {name.lower(): getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO", "ESTALE")}
_fault_hits: Counter[str] = Counter()
_fences: dict[Path, Callable[[], None]] = {}


def scratch_name(kind: str = "") -> str:
    """A name for something unfinished that tells whose it is, so that `clear_litter` takes only what the dead left."""
    return f"{_UNFINISHED}{kind}{process_tag(os.getpid())}-{uuid.uuid4().hex}"


def clear_litter(parent: Path) -> None:
    """Remove what processes of this machine that are gone left unfinished in `parent`; the living keep theirs.

    What cannot be told (another machine's, an older version's) stays. Never raises: litter does no harm.
    """
    with contextlib.suppress(OSError):
        for entry in list(parent.iterdir()):
            if _owner(entry.name) == "dead":
                _clear(entry)


def remove_unfinished(parent: Path) -> None:
    """Clear scratch that killed processes left in `parent`; put back what a kill between renames hid.

    Only for the one who may write in `parent`: whatever is not a living process's of this machine goes.
    """
    if not parent.is_dir():
        return
    for entry in list(parent.iterdir()):
        if entry.name.startswith(_UNFINISHED) and _owner(entry.name) != "alive":
            _clear(entry)


def _owner(name: str) -> str:
    """Whose scratch it is: alive, dead, or unknown."""
    found = _OWNED.fullmatch(name)
    if found is None or found["host"] != host_tag():
        return "unknown"
    return "alive" if process_tag(int(found["pid"])) == found["tag"] else "dead"


def _clear(entry: Path) -> None:
    if entry.is_symlink() or not entry.is_dir():  # what a link leads to is not ours
        entry.unlink(missing_ok=True)
        return
    if entry.name.startswith(_ASIDE):
        for hidden in list(entry.iterdir()):
            if not (entry.parent / hidden.name).exists():
                hidden.rename(entry.parent / hidden.name)
    shutil.rmtree(entry, ignore_errors=True)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file atomically. EnvironmentProblem when it cannot be written; what was there before is then intact."""
    try:
        replace_whole(path, content)
    except OSError as error:
        raise EnvironmentProblem(
            f"Could not write {path}: {error.strerror or error}. "
            f"{trouble.remedy(error, path.parent, f'{len(content)} bytes')} "
            "The file that was there before is intact."
        ) from error


def replace_whole(path: Path, content: bytes) -> None:
    """`write_whole` for those who tell of an OSError themselves."""
    scratch = path.with_name(scratch_name())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        faultpoint("file.before_rename")
        check_fences(path)
        scratch.replace(path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise


@contextlib.contextmanager
def fenced(directory: Path, check: Callable[[], None]) -> Iterator[None]:
    """For the length of the block, this process commits below `directory` only while `check` raises nothing."""
    place = directory.resolve()
    before = _fences.get(place)
    _fences[place] = check
    try:
        yield
    finally:
        if before is None:
            del _fences[place]
        else:
            _fences[place] = before


def faultpoint(site: str) -> None:
    """A place where a test can make this process fail; does nothing unless the environment asks for it.

    DICESCOPE_FAULT="site:n:kill" kills the process at the n-th visit of the site, "site:n:enospc" fills its disk; so
    do the other errors of `_FAULTS`. "*" for n means every visit.
    """
    wanted = os.environ.get("DICESCOPE_FAULT")
    if not wanted:
        return
    name, visit, action = wanted.split(":")
    _fault_hits[site] += 1
    if site != name or visit not in ("*", str(_fault_hits[site])):
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    number = _FAULTS[action]
    raise OSError(number, os.strerror(number))


def check_fences(target: Path) -> None:
    """Raise when a fence around this work has fallen: another writer took over."""
    place = target.parent.resolve()
    for fence, check in list(_fences.items()):
        if place == fence or fence in place.parents:
            check()


def sync_folder(path: Path) -> None:
    """Wait until the entries of a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

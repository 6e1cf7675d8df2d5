"""What the system says when it refuses a file, in words: the cause and what to do, by the number of the error."""

import errno
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
UNSTEADY = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EHOSTDOWN, errno.EREMOTEIO})
"""A disk or a network file system that may answer when it is asked again."""
TOO_LONG = frozenset({errno.ENAMETOOLONG})
TOO_MANY = frozenset({errno.EMFILE, errno.ENFILE})
_PAUSES_SECONDS = (0.2, 1.0)

_T = TypeVar("_T")


def remedy(error: OSError, directory: Path, needs: str = "") -> str:
    """Why nothing could be written below `directory`, and what to do. `needs`: what it takes, such as "7 bytes"."""
    number = error.errno
    if number is None or number in FULL:  # numpy reports a short write without a number
        why = "Your quota there is used up. " if number == errno.EDQUOT else ""
        takes = f"It needs {needs}; " if needs else ""
        room = f"{takes}{'free' if takes else 'Free'} now: {free(directory)}."
        return f"{why}{room} Make room or choose another directory."
    if number in READ_ONLY:
        why = "the file system there is read-only" if number == errno.EROFS else "this account may not write there"
        return f"{why[0].upper()}{why[1:]}. Choose another directory, or make this one writable."
    if number in UNSTEADY:
        return (
            "The disk or the network file system there is in trouble. Repeat the command; when it happens again, check "
            "the disk and its connection, or choose another directory."
        )
    if number in TOO_LONG:
        return "A name or the whole path is longer than that file system allows. Choose shorter names or another place."
    if number in TOO_MANY:
        return "Too many files are open at once. Use fewer workers, or raise the limit (ulimit -n)."
    return f"Check {_existing(directory)}: whether it is a directory, and whether its disk works."


def is_trouble(error: OSError) -> bool:
    """Whether an error is about disk, permission or network, not about a file that is simply not there."""
    return error.errno in FULL | READ_ONLY | UNSTEADY | TOO_LONG | TOO_MANY


def patiently(read: Callable[[], _T]) -> _T:
    """What `read` gives. Where a disk or a network file system stumbles, it is asked again twice, with pauses."""
    for pause in _PAUSES_SECONDS:
        try:
            return read()
        except OSError as error:
            if error.errno not in UNSTEADY:
                raise
        time.sleep(pause)
    return read()


def free(directory: Path) -> str:
    """How many bytes are free where a directory is, or would be."""
    place = _existing(directory)
    try:
        return f"{shutil.disk_usage(place).free} bytes at {place}"
    except OSError as error:
        return f"not known at {place} ({error.strerror})"


def _existing(directory: Path) -> Path:
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return directory

"""Files that are there whole or not at all: a commit is a directory rename, and a manifest says what is in it."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import EnvironmentProblem, IntegrityError

MANIFEST = "manifest.json"
_UNFINISHED = ".tmp-"
_ASIDE = _UNFINISHED + "old-"
_fault_hits: Counter[str] = Counter()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def committed_directory(target: Path) -> Iterator[Path]:
    """A scratch directory that becomes `target` when the block ends without an error.

    Files are synced, the manifest is written last, the rename is the commit, and an older `target` is replaced.
    A process killed at any moment leaves either the old directory or the new one, and at most a scratch directory
    that `remove_unfinished` clears.
    """
    scratch = target.parent / f"{_UNFINISHED}new-{uuid.uuid4().hex}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir()
        yield scratch
        faultpoint("commit.before_manifest")
        _write_manifest(scratch)
        faultpoint("commit.after_manifest")
        _swap(scratch, target)
    except OSError as error:
        needed = _bytes_in(scratch)
        shutil.rmtree(scratch, ignore_errors=True)
        if not _is_about(error, target.parent):
            raise
        raise EnvironmentProblem(
            f"Could not write {target}: {error.strerror or error}. It needs more than {needed} bytes; free now: "
            f"{_free(target.parent)}. Make room or choose another directory; what was committed before is intact."
        ) from error
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def verify_directory(directory: Path) -> None:
    """Raise IntegrityError unless every file of a committed directory has the bytes that its manifest names."""
    manifest = directory / MANIFEST
    if not manifest.is_file():
        raise IntegrityError(f"{directory} has no {MANIFEST}: it was never committed. Delete it and run again.")
    try:
        files = json.loads(manifest.read_text())["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{manifest} is damaged. Delete {directory} and run again.") from error
    for name, digest in files.items():
        path = directory / name
        if not path.is_file() or sha256_file(path) != digest:
            raise IntegrityError(
                f"{path} is {'damaged' if path.is_file() else 'missing'}: its bytes are not those of the manifest. "
                f"Delete {directory} and run the command again; it is computed anew."
            )


def is_committed(directory: Path) -> bool:
    """Whether the directory carries a manifest (its bytes are not checked)."""
    return (directory / MANIFEST).is_file()


def remove_unfinished(parent: Path) -> None:
    """Clear scratch directories that killed processes left in `parent`; put back what a kill between renames hid.

    Only for the one who may write in `parent`: it would also clear the scratch of a living writer.
    """
    if not parent.is_dir():
        return
    entries = list(parent.iterdir())
    for aside in (entry for entry in entries if entry.name.startswith(_ASIDE)):
        for hidden in aside.iterdir():
            if not (parent / hidden.name).exists():
                hidden.rename(parent / hidden.name)
    for entry in (entry for entry in entries if entry.name.startswith(_UNFINISHED)):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically; keys sorted, so equal values give equal bytes."""
    scratch = path.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, sort_keys=True, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        faultpoint("json.before_rename")
        scratch.replace(path)
        _sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise EnvironmentProblem(
            f"Could not write {path}: {error.strerror or error}. Free now: {_free(path.parent)}. "
            "Make room or choose another directory; the file that was there before is intact."
        ) from error
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """The value in a JSON file. IntegrityError when it does not parse."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise IntegrityError(f"{path} is not valid JSON: {error}. It was damaged or edited.") from error


def faultpoint(site: str) -> None:
    """A place where a test can make this process fail; does nothing unless the environment asks for it.

    DICESCOPE_FAULT="site:n:kill" kills the process at the n-th visit of the site, "site:n:enospc" fills its disk.
    """
    wanted = os.environ.get("DICESCOPE_FAULT")
    if not wanted:
        return
    name, visit, action = wanted.split(":")
    _fault_hits[site] += 1
    if site != name or _fault_hits[site] != int(visit):
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_manifest(scratch: Path) -> None:
    files = {}
    for path in sorted(p for p in scratch.rglob("*") if p.is_file()):
        files[path.relative_to(scratch).as_posix()] = sha256_file(path)
        _sync(path)
    (scratch / MANIFEST).write_text(json.dumps({"schema": 1, "files": files}, indent=1, sort_keys=True))
    _sync(scratch / MANIFEST)
    _sync(scratch)


def _swap(scratch: Path, target: Path) -> None:
    if not target.exists():
        scratch.rename(target)
        faultpoint("commit.after_rename")
        _sync(target.parent)
        return
    aside = target.parent / f"{_ASIDE}{uuid.uuid4().hex}"
    aside.mkdir()
    target.rename(aside / target.name)
    try:
        faultpoint("commit.between_renames")
        scratch.rename(target)
    except BaseException:
        (aside / target.name).rename(target)
        aside.rmdir()
        raise
    faultpoint("commit.after_rename")
    _sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(directory: Path) -> str:
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return f"{shutil.disk_usage(directory).free} bytes at {directory}"


def _bytes_in(directory: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return 0


def _is_about(error: OSError, parent: Path) -> bool:
    # An error that names a file elsewhere (a scan that is missing) is not about writing here.
    if not isinstance(error.filename, str):
        return True
    named = Path(error.filename).resolve()
    return named.is_relative_to(parent.resolve()) or parent.resolve().is_relative_to(named)

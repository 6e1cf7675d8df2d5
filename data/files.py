"""Files that are there whole or not at all: a commit is a directory rename, and a manifest says what is in it."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import EnvironmentProblem, IntegrityError

MANIFEST = "manifest.json"
_UNFINISHED = ".tmp-"


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
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.parent / f"{_UNFINISHED}{target.name}-{uuid.uuid4().hex}"
    scratch.mkdir()
    try:
        yield scratch
        _write_manifest(scratch)
        _swap(scratch, target)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise EnvironmentProblem(
            f"Could not write {target}: {error.strerror or error}. "
            f"Free {_free(target.parent)}. Make room or choose another directory; the last commit is untouched."
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
    """Clear scratch directories that killed processes left in `parent`; put back what a kill between renames hid."""
    if not parent.is_dir():
        return
    for entry in parent.iterdir():
        if entry.name.startswith(_UNFINISHED + "old-"):
            target = parent / entry.name[len(_UNFINISHED + "old-"):].rsplit("-", 1)[0]
            if not target.exists():
                entry.rename(target)
                continue
        if entry.name.startswith(_UNFINISHED):
            shutil.rmtree(entry, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically; keys sorted, so equal values give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{_UNFINISHED}{path.name}-{uuid.uuid4().hex}")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, sort_keys=True, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise EnvironmentProblem(f"Could not write {path}: {error.strerror or error}. Free {_free(path.parent)}.") from error
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """The value in a JSON file. IntegrityError when it does not parse."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise IntegrityError(f"{path} is not valid JSON: {error}. It was damaged or edited.") from error


def _write_manifest(scratch: Path) -> None:
    files = {}
    for path in sorted(p for p in scratch.rglob("*") if p.is_file()):
        files[path.relative_to(scratch).as_posix()] = sha256_file(path)
        _sync(path)
    (scratch / MANIFEST).write_text(json.dumps({"schema": 1, "files": files}, indent=1, sort_keys=True))
    _sync(scratch / MANIFEST)
    _sync(scratch)


def _swap(scratch: Path, target: Path) -> None:
    if target.exists():
        aside = target.parent / f"{_UNFINISHED}old-{target.name}-{uuid.uuid4().hex}"
        target.rename(aside)
        scratch.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        scratch.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(directory: Path) -> str:
    return f"{shutil.disk_usage(directory).free / 1e6:.0f} MB at {directory}"

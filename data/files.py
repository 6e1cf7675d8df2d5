"""Files that are there whole or not at all: a commit is a directory rename, and a manifest says what is in it."""

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from data import trouble
from data.errors import BadInput, EnvironmentProblem, IntegrityError
from data.hashed import CLOCK_STEP_NS, Identity, file_identity, known_sha256, sha256_file
from data.json_files import SEAL, read_json, readable_json, sealed, without_seal
from data.whole_files import check_fences, faultpoint, scratch_name, sync_folder

if TYPE_CHECKING:
    import numpy as np


MANIFEST = "manifest.json"
SCHEMA = 2
"""Of manifests: 2 says what it is about and carries a digest of itself; 1 named files only, and can still be read."""
_SINCE_2 = ("run",)
"""What only manifests of schema 2 can belong to: a manifest of schema 1 is not taken for one of theirs."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ONE_LINE = json.JSONEncoder(sort_keys=True, separators=(",", ": "), allow_nan=False)
_ANYONES = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|\.nfs.*")
"""What file browsers and network file systems leave beside files."""
_manifests: dict[str, tuple[Identity, dict[str, Any]]] = {}


@contextlib.contextmanager
def committed_directory(
    target: Path, *, within: Path | None = None, about: Mapping[str, Any] | None = None
) -> Iterator[Path]:
    """A scratch directory that becomes `target` when the block ends without an error.

    Files are synced, the manifest is written last, the rename is the commit, and an older `target` is replaced, if it
    carries a manifest of this program. `within` is the directory that must hold `target` whatever names and links say
    (its own parent when not given); `about` stands in the manifest: whose and which result it is.
    A process killed at any moment leaves either the old directory or the new one, and at most a scratch directory
    that `remove_unfinished` clears. BadInput, before anything is written, when `target` lies elsewhere or is
    somebody else's.
    """
    refuse_outside(target, target.parent if within is None else within)
    _refuse_foreign(target, in_our_tree=within is not None)
    scratch = target.parent / scratch_name("new-")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir()
        yield scratch
        faultpoint("commit.before_manifest")
        _write_manifest(scratch, about or {})
        faultpoint("commit.after_manifest")
        _refuse_foreign(target, in_our_tree=within is not None, scratch=scratch)
        check_fences(target)
        _swap(scratch, target)
    except OSError as error:
        needed = _bytes_in(scratch) + getattr(error, "needed_bytes", 0)  # tensors say what they take
        remedy = trouble.remedy(error, target.parent, f"more than {needed} bytes")
        shutil.rmtree(scratch, ignore_errors=True)
        if not _is_about(error, target.parent):
            raise
        raise EnvironmentProblem(
            f"Could not write {target}: {error.strerror or error}. {remedy} What was committed before is intact."
        ) from error
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def refuse_outside(target: Path, within: Path) -> None:
    """BadInput unless `target` is a place below `within`, links followed, and its last name is an ordinary one."""
    inside = target.name not in ("", ".", "..") and "\0" not in str(target) and ".." not in target.parts
    if inside and target.parent.resolve() != within.resolve():
        inside = target.parent.resolve().is_relative_to(within.resolve())
    if not inside or target.is_symlink():
        raise BadInput(
            f"{str(target)!r} is not a place below {within}{', but a link' if target.is_symlink() else ''}. "
            "Nothing was written. Use names without '..' and remove links out of the directory."
        )


def refuse_links(directory: Path) -> None:
    """BadInput when an entry of a directory of ours is a link out of it: whoever writes or clears up there would reach
    what is somebody else's."""
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(directory.resolve()):
                raise BadInput(
                    f"{entry.path} is a link out of {directory.name}. Nothing was written. Remove the link, or put "
                    "what it leads to in its place."
                )


def verify_directory(directory: Path, about: Mapping[str, Any] | None = None) -> None:
    """Raise IntegrityError unless every file of a committed directory has the bytes that its manifest names.

    `about`: what the manifest must say of itself, for results that could have been exchanged for others of their kind.
    """
    for name in read_manifest(directory, about)["files"]:
        committed_file(directory, name)


def committed_file(directory: Path, name: str, about: Mapping[str, Any] | None = None) -> Path:
    """The path of one file of a committed directory, whose bytes are those that were committed.

    Each file is hashed once per process as long as it stays the same file. IntegrityError names the one that is
    damaged, missing or not part of the commit.
    """
    manifest, path = read_manifest(directory, about), directory / name
    digest = manifest["files"].get(name)
    try:
        wrong = "missing" if digest is None or not path.is_file() else "damaged"
        good = wrong == "damaged" and known_sha256(path) == digest
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}. {_again(directory, manifest)}") from error
    if not good:
        raise IntegrityError(
            f"{path} is {wrong}: its bytes are not those of the manifest. {_again(directory, manifest)}"
        )
    return path


def read_committed_json(directory: Path, name: str, about: Mapping[str, Any] | None = None) -> Any:
    """The value of a JSON file of a committed directory. IntegrityError unless it is what was committed."""
    return read_json(committed_file(directory, name, about))


def load_committed_array(directory: Path, name: str, about: Mapping[str, Any] | None = None) -> "np.ndarray":
    """A .npy file of a committed directory, memory-mapped and read-only; verified like `committed_file`."""
    import numpy as np  # here, so that lists and help come without it

    path = committed_file(directory, name, about)
    try:
        stored: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise IntegrityError(f"{path} is no array: {error}. {_again(directory, read_manifest(directory))}") from error
    return stored


def read_manifest(directory: Path, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The manifest of a committed directory: `files` (name to SHA-256) and `about`. IntegrityError when it is damaged,
    or says that this is something else than `about`. It is not to be changed."""
    path = os.path.join(directory, MANIFEST)
    try:
        identity = file_identity(path)
        known = _manifests.get(path)
        if known is not None and known[0] == identity:
            manifest = known[1]
        else:
            manifest = _parsed_manifest(Path(path))
            if time.time_ns() - identity[-1] > CLOCK_STEP_NS:
                _manifests[path] = (identity, manifest)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IntegrityError(
            f"{directory} has no {MANIFEST}: it was never committed. Delete it and run again."
        ) from error
    except OSError as error:
        raise IntegrityError(
            f"{path} cannot be read: {error.strerror}. Delete {directory} and run the command again."
        ) from error
    for key, value in (about or {}).items():
        told = manifest["about"].get(key)
        unsaid = manifest["schema"] < SCHEMA and key not in _SINCE_2
        if told != value and not (told is None and unsaid):
            raise IntegrityError(
                f"{directory} holds something else: {key} is {told!r}, here {value!r} belongs. "
                f"{_again(directory, manifest)}"
            )
    return manifest


def manifest_sha256(directory: Path) -> str:
    """SHA-256 that stands for a whole committed directory: of its verified manifest, which names every file's."""
    read_manifest(directory)
    return known_sha256(directory / MANIFEST)


def is_committed(directory: Path) -> bool:
    """Whether the directory carries a manifest (its bytes are not checked)."""
    return os.path.isfile(os.path.join(directory, MANIFEST))


def _write_manifest(scratch: Path, about: Mapping[str, Any]) -> None:
    files = {}
    for path in sorted(p for p in scratch.rglob("*") if p.is_file()):
        files[path.relative_to(scratch).as_posix()] = sha256_file(path)
        sync_folder(path)
    (scratch / MANIFEST).write_text(_manifest_text({"schema": SCHEMA, "about": dict(about), "files": files}))
    sync_folder(scratch / MANIFEST)
    sync_folder(scratch)


def _manifest_text(content: Mapping[str, Any]) -> str:
    return readable_json(sealed(content))


def _in_one_line(text: str) -> str:
    """`readable_json` without its line breaks and indents, as `_ONE_LINE` writes it, which is ten times as fast."""
    return "".join(line.lstrip(" ") for line in text.split("\n"))


def _parsed_manifest(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        manifest: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError):
        raise _damaged(path) from None
    if not _is_manifest(manifest):
        raise _damaged(path)
    if manifest["schema"] == 1 and SEAL not in manifest:
        return {"schema": 1, "about": {}, "files": manifest["files"]}
    manifest = without_seal(manifest)
    try:
        good = _in_one_line(text) == _ONE_LINE.encode(sealed(manifest))  # as written, with the seal that belongs to it
    except (ValueError, RecursionError):
        good = False
    if not good:
        raise _damaged(path)
    if manifest["schema"] > SCHEMA:
        raise BadInput(
            f"{path} was written by a newer version (schema {manifest['schema']}, this one reads {SCHEMA}). "
            "Use that version."
        )
    return manifest


def _damaged(path: Path) -> IntegrityError:
    return IntegrityError(f"{path} is damaged. Delete {path.parent} and run the command again; it is computed anew.")


def _is_manifest(value: Any) -> bool:
    files = value.get("files") if isinstance(value, dict) else None
    return (
        isinstance(files, dict)
        and isinstance(value.get("schema"), int)
        and isinstance(value.get("about", {}), dict)
        and all(isinstance(d, str) and _DIGEST.fullmatch(d) and _is_inside(name) for name, d in files.items())
    )


def _is_inside(name: str) -> bool:
    parts = set(name.split("/"))
    return not parts <= {"", "."} and not name.startswith("/") and ".." not in parts and "\0" not in name


def _again(directory: Path, manifest: Mapping[str, Any]) -> str:
    made_by = manifest["about"].get("made_by")
    again = f"repeat `{made_by}`" if made_by else "run the command again"
    return f"Delete {directory} and {again}; it is computed anew."


def _refuse_foreign(target: Path, in_our_tree: bool, scratch: Path | None = None) -> None:
    """BadInput when a commit would replace what is not a commit of ours, or would take other files with it.

    In a tree of ours a manifest that is damaged or was deleted takes nothing along when each file there is one that
    `scratch` brings anew; elsewhere the folder may be anybody's.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise BadInput(f"{target} is a file. Nothing was written. Give the name of a new directory.")
    there = [name for name in _names_in(target) if not _ANYONES.fullmatch(PurePosixPath(name).name)]
    if not there:
        return
    ours = _files_of_commit(target)
    if ours is None and in_our_tree:
        if scratch is None:  # what it will bring is not known yet
            return
        ours = {MANIFEST, *_names_in(scratch)}
    strange = sorted(set(there) - (ours or set()))
    if strange:
        raise BadInput(
            f"{target} holds what is not of a result that can be replaced: {', '.join(strange[:3])}"
            f"{' and more' if len(strange) > 3 else ''}. Nothing was written. Move these files elsewhere, or delete "
            f"{target} if nothing in it is needed."
        )


def _names_in(directory: Path) -> list[str]:
    """Whatever is in a directory, but for the folders that hold something."""
    return [
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    ]


def _files_of_commit(target: Path) -> set[str] | None:
    """Names that a readable manifest of ours lists, and its own; None where there is no such manifest."""
    with contextlib.suppress(IntegrityError, OSError):
        return {MANIFEST, *_parsed_manifest(target / MANIFEST)["files"]}
    return None


def _swap(scratch: Path, target: Path) -> None:
    if not target.exists():
        scratch.rename(target)
        faultpoint("commit.after_rename")
        sync_folder(target.parent)
        return
    aside = target.parent / scratch_name("old-")
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
    sync_folder(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


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

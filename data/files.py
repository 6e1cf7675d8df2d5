"""Files that are there whole or not at all: a commit is a directory rename, and a manifest says what is in it."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from data import trouble
from data.errors import BadInput, EnvironmentProblem, IntegrityError
from data.processes import host_tag, process_tag

if TYPE_CHECKING:
    import numpy as np

Identity = tuple[int, int, int, int, int]

MANIFEST = "manifest.json"
SCHEMA = 2
"""Of manifests: 2 says what it is about and carries a digest of itself; 1 named files only, and can still be read."""
_SINCE_2 = ("run",)
"""What only manifests of schema 2 can belong to: a manifest of schema 1 is not taken for one of theirs."""
SEAL = "sha256"
"""Under this key a JSON file holds the digest of the rest of it."""
_UNFINISHED = ".tmp-"
_ASIDE = _UNFINISHED + "old-"
_OWNED = re.compile(r"\.tmp-(?:new-|old-)?(?P<tag>(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{8})-[0-9a-f]{32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_READ_AT_ONCE = 1 << 20
"""Bytes up to which a file is hashed in one piece."""
_quoted = json.encoder.encode_basestring_ascii
_COMPACT = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
_ONE_LINE = json.JSONEncoder(sort_keys=True, separators=(",", ": "), allow_nan=False)
_ANYONES = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|\.nfs.*")
"""What file browsers and network file systems leave beside files."""
_CLOCK_STEP_NS = 100_000_000
"""Files changed less long ago are hashed again: two changes within one step of a file system's clock look like one."""
_FAULTS = {name.lower(): getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO", "ESTALE")}
_fault_hits: Counter[str] = Counter()
_hashed: dict[str, tuple[Identity, str]] = {}
_manifests: dict[str, tuple[Identity, dict[str, Any]]] = {}
_fences: dict[Path, Callable[[], None]] = {}


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
    if time.time_ns() - before[-1] > _CLOCK_STEP_NS:
        _hashed[str(path)] = (before, digest)
    return digest


def hashed_files() -> dict[str, tuple[Identity, str]]:
    """What this process has hashed so far, to be told to a process that it starts: see `tell_hashed`."""
    return dict(_hashed)


def tell_hashed(known: Mapping[str, tuple[Identity, str]]) -> None:
    """Take over what the starting process has hashed; a file that was changed since has another identity."""
    _hashed.update(known)


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
        _check_fences(target)
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
            if time.time_ns() - identity[-1] > _CLOCK_STEP_NS:
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


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically; keys sorted, so equal values give equal bytes."""
    write_whole(path, _readable_json(value).encode())


def _readable_json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False)


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
        _check_fences(path)
        scratch.replace(path)
        _sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise


def read_json(path: Path) -> Any:
    """The value in a JSON file. IntegrityError when it does not parse."""
    return parsed_json(read_text(path), path)


def read_text(path: Path) -> str:
    """The text of a JSON file. IntegrityError when its bytes are none."""
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise _no_json(path, error) from error


def parsed_json(text: str, path: Path) -> Any:
    """The value that the text of a file stands for. IntegrityError when it does not parse."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_json(path, error) from error


def _no_json(path: Path, error: Exception) -> IntegrityError:
    return IntegrityError(f"{path} is not valid JSON: {error}. It was damaged or edited.")


def write_sealed_json(path: Path, value: Mapping[str, Any]) -> None:
    """`write_json` of a mapping with a digest of itself, for results that stand outside a committed directory."""
    write_json(path, sealed(value))


def read_sealed_json(path: Path) -> dict[str, Any]:
    """What `write_sealed_json` wrote. IntegrityError unless it is what was written."""
    value = read_json(path)
    if not isinstance(value, dict) or not keeps_seal(value):
        raise IntegrityError(f"{path} is not what was written: it was damaged or edited. Delete it.")
    return without_seal(value)


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with the digest of its content under `SEAL`."""
    return {**value, SEAL: content_digest(value)}


def without_seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """A sealed mapping as it was before."""
    return {key: item for key, item in value.items() if key != SEAL}


def keeps_seal(value: Mapping[str, Any]) -> bool:
    """Whether a mapping that was read carries the digest of the rest of it; what could not be written never does."""
    try:
        return bool(value.get(SEAL) == content_digest(without_seal(value)))
    except (ValueError, RecursionError):  # NaN, infinity, or deeper than can be written
        return False


def content_digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys. ValueError for NaN and infinity."""
    return hashlib.sha256(compact_json(value).encode()).hexdigest()


def compact_json(value: Any) -> str:
    """A JSON value on one line, keys sorted: what digests are made of. ValueError for NaN and infinity."""
    return _COMPACT.encode(value)


def digest_with_known(value: Mapping[str, Any], known: Mapping[str, str]) -> str:
    """`content_digest` of a mapping, given the `compact_json` of some of its values: many records share a cohort."""
    parts: list[str] = []
    others: dict[str, Any] = {}
    for key in sorted(value):
        if key not in known:
            others[key] = value[key]
            continue
        parts += [compact_json(others)[1:-1], f"{_quoted(key)}:{known[key]}"]
        others = {}
    text = ",".join(filter(None, (*parts, compact_json(others)[1:-1])))
    return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()


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


def _check_fences(target: Path) -> None:
    place = target.parent.resolve()
    for fence, check in list(_fences.items()):
        if place == fence or fence in place.parents:
            check()


def _write_manifest(scratch: Path, about: Mapping[str, Any]) -> None:
    files = {}
    for path in sorted(p for p in scratch.rglob("*") if p.is_file()):
        files[path.relative_to(scratch).as_posix()] = sha256_file(path)
        _sync(path)
    (scratch / MANIFEST).write_text(_manifest_text({"schema": SCHEMA, "about": dict(about), "files": files}))
    _sync(scratch / MANIFEST)
    _sync(scratch)


def _manifest_text(content: Mapping[str, Any]) -> str:
    return _readable_json(sealed(content))


def _in_one_line(text: str) -> str:
    """`_readable_json` without its line breaks and indents, as `_ONE_LINE` writes it, which is ten times as fast."""
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
        _sync(target.parent)
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
    _sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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

"""The bytes of a NIfTI file, packed or not: every one of them read, none invented."""

import contextlib
import hashlib
import os
import resource
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import psutil

from data import trouble
from data.nifti_header import Header, parse_header, refuse
from data.whole_files import faultpoint

DEFLATE_LIMIT = 1032
"""Deflate cannot expand a byte into more than this (zlib technical notes)."""
_CHUNK = 1 << 20
_POINTERS = (b"version https://git-lfs", b"/annex/objects", b".git/annex", b"../.git/annex")


def _free_memory() -> int:
    """Bytes that this process can still take: what the system has left, or less under a limit of its address space."""
    free = int(psutil.virtual_memory().available)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        free = min(free, limit - int(psutil.Process().memory_info().vms))
    return max(0, free)


def read_bytes(path: Path, max_bytes: int, needed: Callable[[Header], int], form: str) -> tuple[Header, bytearray, str]:
    """Header, all bytes of the uncompressed file, and the hash of the file as it lies on the disk."""
    faultpoint(f"read.{path.parent.name}/{path.name}")
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
        _check_start(path, start, size)
        file.seek(0)
        chunks = _chunks(file, digest)
        stream = _inflated(path, chunks) if path.name.lower().endswith(".gz") else chunks
        header, buffer = _fill(path, stream, size, max_bytes, needed, form)
    return header, buffer, digest.hexdigest()


def check_name(path: Path) -> None:
    """BadScan for names of formats that are not read, with what converts them."""
    name = path.name.lower()
    if name.endswith((".hdr", ".img", ".hdr.gz", ".img.gz")):
        refuse(
            "E-NII-PAIR", path, "is half of an Analyze or NIfTI pair; such pairs lose their orientation easily.",
            "Convert it to one file: nib-convert or dcm2niix to .nii.gz.",
        )  # fmt: skip
    if name.endswith((".mgz", ".mgh")):
        refuse("E-NII-MGZ", path, "is a FreeSurfer volume.", "Convert it: mri_convert in.mgz out.nii.gz.")
    if name.endswith((".zst", ".bz2", ".xz", ".zip")):
        refuse("E-NII-PACKING", path, "is packed in a way that is not read.", "Unpack it, then gzip it to .nii.gz.")
    if not name.endswith((".nii", ".nii.gz")):
        refuse("E-NII-NAME", path, "is not a .nii or .nii.gz file.", "Convert it to NIfTI.")


def refuse_unreadable(path: Path, error: OSError) -> NoReturn:
    """Raise BadScan for a file that the system does not give; the same words wherever it is noticed."""
    refuse("E-NII-READ", path, f"cannot be read ({error.strerror or error}).", _remedy_for(path, error))


def _remedy_for(path: Path, error: OSError) -> str:
    if error.errno in trouble.UNSTEADY:
        return (
            "It was tried three times: the disk or the network file system is in trouble. Run again when it is well; "
            "the other subjects go on without it."
        )
    with contextlib.suppress(OSError):
        if path.is_symlink() and "annex" in os.readlink(path):
            return "Its content was not downloaded: run datalad get on it."
    return "Check that it exists and may be read; the other subjects go on without it."


def _check_start(path: Path, start: bytes, size: int) -> None:
    packed = path.name.lower().endswith(".gz")
    if size == 0:
        refuse("E-NII-EMPTY", path, "has 0 bytes: a copy or download did not finish.", "Get the file again.")
    if any(mark in start[:200] for mark in _POINTERS):
        refuse(
            "E-NII-POINTER", path, "is a text pointer, the scan itself was not downloaded.",
            "Run datalad get (git-annex) or git lfs pull on it.",
        )  # fmt: skip
    if packed and start[:2] != b"\x1f\x8b":
        refuse("E-NII-NOT-GZIP", path, "is named .gz but is not gzip.", "Rename it to .nii if it is plain NIfTI.")
    if not packed and start[:2] == b"\x1f\x8b":
        refuse("E-NII-IS-GZIP", path, "is named .nii but is gzip.", "Rename it to .nii.gz.")


def _chunks(file: Any, digest: Any) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        yield chunk


def _inflated(path: Path, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The decompressed stream in bounded pieces; zlib checks CRC and length at the end of every member."""
    member = zlib.decompressobj(wbits=31)
    pending = b""
    for chunk in chunks:
        pending += chunk
        while pending:
            if member.eof:
                if pending[0] != 0x1F:
                    refuse(
                        "E-NII-GZIP-TRAILING", path, "has bytes after the end of its gzip stream.",
                        "Two files may have been joined; get it again.",
                    )  # fmt: skip
                member = zlib.decompressobj(wbits=31)
            try:
                piece = member.decompress(pending, _CHUNK)
            except zlib.error as error:
                refuse(
                    "E-NII-GZIP-CRC", path, f"is damaged: its gzip check failed ({error}); voxels may be wrong.",
                    "Get the file again; libraries that skip this check would show a wrong scan.",
                )  # fmt: skip
            pending = member.unused_data if member.eof else member.unconsumed_tail
            if piece:
                yield piece
    if not member.eof:
        # A piece cut at _CHUNK may leave output inside zlib although no input is left.
        try:
            while piece := member.decompress(b"", _CHUNK):
                yield piece
        except zlib.error as error:
            refuse("E-NII-GZIP-CRC", path, f"is damaged: its gzip check failed ({error}).", "Get the file again.")
    if not member.eof:
        refuse(
            "E-NII-GZIP-TRUNC", path, "ends before its gzip stream does: a copy or download was cut.",
            "Get the file again.",
        )  # fmt: skip


def _fill(
    path: Path, stream: Iterator[bytes], size: int, max_bytes: int, needed: Callable[[Header], int], form: str
) -> tuple[Header, bytearray]:
    """Header and all bytes of the uncompressed file; memory is taken after the header was believed."""
    head = bytearray()
    for piece in stream:
        head += piece
        if len(head) >= 544:
            break
    header = parse_header(path, bytes(head[:544]), form)
    total = header.file_bytes
    _check_size(path, total, size, max_bytes)
    free = _free_memory()
    if needed(header) > free:
        refuse(
            "E-NII-MEMORY", path, f"needs {needed(header) / 2**30:.2f} GiB of memory to be read, free are "
            f"{free / 2**30:.2f} GiB.", "End other work, use fewer workers, or resample it to a coarser grid first.",
        )  # fmt: skip
    buffer = bytearray(total)
    filled = 0

    def put(piece: bytes | bytearray) -> int:
        if filled + len(piece) > total:
            refuse(
                "E-NII-SIZE", path, f"holds more than the {total} bytes that its header speaks of.",
                "Header and data do not belong together; get the file again.",
            )  # fmt: skip
        buffer[filled : filled + len(piece)] = piece
        return filled + len(piece)

    filled = put(head)
    for piece in stream:
        filled = put(piece)
    if filled < total:
        refuse(
            "E-NII-SIZE", path, f"holds {filled} bytes, its header speaks of {total}.",
            "The file was cut or its header is wrong; get it again.",
        )  # fmt: skip
    return header, buffer


def _check_size(path: Path, total: int, size: int, max_bytes: int) -> None:
    packed = path.name.lower().endswith(".gz")
    if packed and total > DEFLATE_LIMIT * size:
        refuse(
            "E-NII-BOMB", path, f"claims {total} bytes in a gzip file of {size}: impossible.",
            "The header lies or the file is damaged; get it again.",
        )  # fmt: skip
    if not packed and total != size:
        refuse(
            "E-NII-SIZE", path, f"has {size} bytes, its header speaks of {total}.",
            "The file was cut or its header is wrong; get it again.",
        )  # fmt: skip
    if total > max_bytes:
        refuse(
            "E-NII-TOO-LARGE", path, f"needs {total / 2**30:.1f} GiB, the limit is {max_bytes / 2**30:.1f} GiB.",
            "Resample it to a coarser grid first.",
        )  # fmt: skip

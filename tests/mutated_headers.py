"""Scans with mutated headers, many of them, in a process of its own: what came of each, and how long the slowest took.

Run as `python -m tests.mutated_headers FOLDER FIRST LAST`; prints JSON. A crash or a hang shows in the exit code.
"""

import faulthandler
import gc
import json
import random
import resource
import sys
import time
import warnings
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil

from data.errors import BadInput
from data.nifti import Labels, Scan, read_labels, read_scan

SHAPE = (9, 10, 11)
AFFINE = np.array([[2.0, 0, 0, -9], [0, 2.0, 0, -7], [0, 0, 3.0, 5], [0, 0, 0, 1]])
MEMORY_BYTES = 256 << 20
"""How much a reader may take beyond what the imports took."""
HANG_SECONDS = 60.0


def sources() -> list[tuple[bytes, int]]:
    """Files that are right, and the length of what comes before their voxels: both versions, both byte orders."""
    draw = np.random.Generator(np.random.Philox(7))
    made = []
    for image, size in ((nib.Nifti1Image, 352), (nib.Nifti2Image, 544)):
        for order in ("<", ">"):
            for kind in ("f4", "i2"):
                stored = draw.integers(0, 300, SHAPE).astype(np.dtype(order + kind))
                header = image.header_class(endianness=order)
                header.set_data_dtype(stored.dtype)
                one = image(stored, AFFINE, header)
                one.set_qform(AFFINE, 1)
                one.header.set_xyzt_units("mm")
                one.header.set_slope_inter(1.0, 0.0)
                one.header["vox_offset"] = size
                one.header["magic"] = b"n+1" if size == 352 else b"n+2"
                made.append((one.header.binaryblock + b"\0" * 4 + stored.tobytes(order="F"), size))
    return made


def mutated(block: bytes, size: int, draw: random.Random) -> bytes:
    """Some bytes of the header replaced, mostly by those that make numbers extreme."""
    changed = bytearray(block)
    for _ in range(draw.choice((1, 1, 2, 8, 40))):
        changed[draw.randrange(size)] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
    return bytes(changed)


def broken(read: Scan | Labels) -> str:
    """Which promise about a volume that was read does not hold; "" when all do."""
    promises = {
        "shape": read.voxels.shape == read.grid.shape and min(read.voxels.shape) >= 1,
        "type": read.voxels.dtype == (np.float32 if isinstance(read, Scan) else np.int32),
        "order": read.voxels.flags.c_contiguous and not read.voxels.flags.writeable,
        "affine": bool(np.isfinite(read.grid.affine).all()),
        "spacing": 0.01 <= min(read.grid.spacing_mm) <= max(read.grid.spacing_mm) <= 100,
        "orientation": read.grid.orientation == "RAS",
        "counted": bool(np.isfinite(read.voxels).all()) or any("NaN or infinite" in note for note in read.notes),
        "hash": len(read.sha256) == 64,
    }
    return ", ".join(name for name, holds in promises.items() if not holds)


def main(folder: Path, first: int, last: int) -> None:
    """Read the mutations `first` to `last` - 1 and print what happened."""
    warnings.simplefilter("error", RuntimeWarning)
    blocks = sources()
    outcomes = {"read": 0, "refused": 0}
    bad: list[str] = []
    slowest = 0.0
    room = int(psutil.Process().memory_info().vms) + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    gc.freeze()
    for seed in range(first, last):
        draw = random.Random(seed)
        content = mutated(*blocks[seed % len(blocks)], draw)
        packed, reader = draw.random() < 0.3, read_labels if draw.random() < 0.3 else read_scan
        path = folder / f"{first}.nii{'.gz' if packed else ''}"
        path.write_bytes(zlib.compress(content, 1, 31) if packed else content)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        began = time.process_time()
        try:
            problem = broken(reader(path))
            outcomes["read"] += 1
        except BadInput as error:
            outcomes["refused"] += 1
            problem = "" if str(path) in str(error) else f"the file is not named: {error}"
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        slowest = max(slowest, time.process_time() - began)
        if problem:
            bad.append(f"seed {seed}: {problem}")
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({**outcomes, "bad": bad[:20], "slowest": slowest}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

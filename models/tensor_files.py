"""Tensors in safetensors files, the only place that writes or reads them: whatever goes wrong is an error of Python's.

The library has one error for everything, a full disk included, which nobody who guards against OSError would catch.
"""

import errno
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_NUMBER = re.compile(r"\(os error (\d+)\)")


class TensorsNotWritten(OSError):
    """The disk refused a file of tensors; `needed_bytes` is what it takes."""

    needed_bytes: int = 0


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors under their names, with the rights that any new file gets.

    OSError with the system's number and the file's name when the disk refuses: full, over quota, read-only, broken.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.touch()  # the library leaves its files unreadable to a group that may read all others
    rights = path.stat().st_mode
    try:
        save_file(plain, path)
        os.chmod(path, rights)
    except SafetensorError as error:
        if path.stat().st_size == 0:
            path.unlink()
        raise _refused(error, path, tensor_bytes(plain)) from error


def load_tensors(path: Path, device: str = "cpu", leave_out: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors of a file by name, but for those to be left out.

    ValueError when it is no whole file of tensors, OSError when it cannot be read.
    """
    with path.open("rb"):  # for an error that names the file and says why
        pass
    try:
        with safe_open(path, framework="pt", device=device) as file:
            return {name: file.get_tensor(name) for name in file.keys() if name not in leave_out}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from error


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape by name, of which only the beginning of the file is read. Errors as in `load_tensors`."""
    with path.open("rb"):
        pass
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from error


def tensor_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the file that holds these tensors: the numbers, and about a hundred for each name."""
    return sum(tensor.numel() * tensor.element_size() + len(name) + 70 for name, tensor in tensors.items()) + 16


def _refused(error: SafetensorError, path: Path, needed: int) -> OSError:
    number = _NUMBER.search(str(error))
    if number is None and "I/O" not in str(error):
        raise error
    code = int(number.group(1)) if number else errno.EIO
    refused = TensorsNotWritten(code, os.strerror(code), str(path))
    refused.needed_bytes = needed
    return refused

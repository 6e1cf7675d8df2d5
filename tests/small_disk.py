"""A disk of a given size, full when a test says so: a real one where this account may mount, else a limit on files."""

import contextlib
import hashlib
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_BALLAST = "ballast"
_PAGE = 4096


@dataclass
class Disk:
    """A directory that is a file system of its own (`real`), or is treated as one."""

    root: Path
    real: bool
    patch: pytest.MonkeyPatch

    def fill(self, leave: int) -> None:
        """Let about `leave` bytes stay free."""
        self.empty()
        if self.real:
            free = shutil.disk_usage(self.root).free
            with (self.root / _BALLAST).open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(free - leave, _PAGE) // _PAGE * _PAGE)
            return
        before = shutil.disk_usage(self.root)
        self.patch.setattr(shutil, "disk_usage", lambda path: type(before)(before.total, before.total - leave, leave))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (leave, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def empty(self) -> None:
        """Make room again."""
        (self.root / _BALLAST).unlink(missing_ok=True)
        if not self.real:
            self.patch.undo()
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    def content(self) -> dict[str, str]:
        """SHA-256 of every file but locks, which come and go."""
        return {
            path.relative_to(self.root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and "lock" not in path.parts and path.name != _BALLAST
        }


@contextlib.contextmanager
def small_disk(root: Path, megabytes: int) -> Iterator[Disk]:
    """A tmpfs at `root` for the length of the block."""
    root.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}M", "dicescope-test", str(root)]
    real = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(root, real, patch)
        try:
            yield disk
        finally:
            disk.empty()
            if real:
                subprocess.run(["umount", "-l", str(root)], check=True)

"""Which process is which: a number alone is used again, a number with its start is not."""

import functools
import hashlib
import os
import platform
from pathlib import Path

import psutil


def process_started(pid: int) -> str | None:
    """When a process began, as a text that identifies it even if its number is used again; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if fields[0] in "ZX" else f"{fields[19]} ticks"
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except (OSError, IndexError):
        return None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f} s"
    except psutil.Error:
        return None


def boot() -> str:
    """What tells this start of the machine from every other."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"


def pid_namespace() -> str:
    """Within what process numbers mean the same: containers of one machine have their own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


@functools.cache
def host_tag() -> str:
    """Eight hexadecimal digits for this machine, this namespace of process numbers, whatever it is booted since."""
    return hashlib.sha256(f"{platform.node()} {pid_namespace()}".encode()).hexdigest()[:8]


def process_tag(pid: int) -> str | None:
    """A process in a file's name, host-number-start; None when it is gone."""
    started = process_started(pid)
    if started is None:
        return None
    return f"{host_tag()}-{pid}-{hashlib.sha256(f'{boot()} {started}'.encode()).hexdigest()[:8]}"

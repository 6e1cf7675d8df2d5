"""Where numbers come from: versions, source commit, fingerprints of content, peak memory."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from data.errors import BadInput

_NUMERIC = (
    *("torch", "numpy", "scipy", "nibabel", "nilearn", "monai", "scikit-learn", "antspyx"),
    *("connected-components-3d", "faiss-gpu", "faiss-cpu"),
)
"""Packages whose code makes numbers, or whose files do (nilearn: the template)."""
VERSION = "0.2.0"
"""Of Dicescope, as a run records it."""
_PACKAGES = (*_NUMERIC, "safetensors", "streamlit")


def environment() -> dict[str, str]:
    """Versions of Python, the system and the packages that numbers depend on. Nothing is imported for it."""
    versions = {"dicescope": VERSION, "python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def numeric_versions() -> dict[str, str]:
    """What numbers depend on: the packages that make them, and Python as far as its minor version."""
    return _numeric(environment())


def numeric_differences(recorded: Mapping[str, Any], present: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(package, version recorded, version now) where they differ; a package that is on one side only is not judged."""
    then, now = _numeric(recorded), _numeric(present)
    return [(name, then[name], now[name]) for name in then if name in now and then[name] != now[name]]


def _numeric(versions: Mapping[str, Any]) -> dict[str, str]:
    found = {name: str(versions[name]) for name in _NUMERIC if versions.get(name)}
    if versions.get("python"):
        found["python"] = ".".join(str(versions["python"]).split(".")[:2])
    return found


def threads() -> dict[str, Any]:
    """With how many threads, and by which routines, this process adds up: other ones may round otherwise."""
    found: dict[str, Any] = {
        name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ
    }
    torch, faiss = sys.modules.get("torch"), sys.modules.get("faiss")  # nothing is imported for it
    if torch is not None:
        found["torch"] = int(torch.get_num_threads())
        found["torch_kernels"] = str(torch.backends.cpu.get_cpu_capability())
    if faiss is not None:
        found["faiss"] = int(faiss.omp_get_max_threads())
    with contextlib.suppress(ImportError):
        from threadpoolctl import threadpool_info

        pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
        found["blas"] = sorted(
            f"{pool['internal_api']} {pool.get('architecture', '')} {pool['num_threads']}" for pool in pools
        )
    return found


def computed_by() -> str:
    """In a few words what decides how sums are rounded here: threads and processor; equal ones give equal bits."""
    known = threads()
    return f"{known.get('torch', 1)} threads, {known.get('torch_kernels', platform.machine())}"


def git_commit() -> str | None:
    """The commit of this program's source, "-dirty" when files differ from it; None outside a git work tree."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def fingerprint(value: Any) -> str:
    """SHA-256 of a value's canonical JSON: equal for equal content, whatever the order of keys."""
    try:
        text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise BadInput(f"Cannot fingerprint a value with NaN or infinity in it: {error}.") from error
    return hashlib.sha256(text.encode()).hexdigest()


def plain(value: Any) -> Any:
    """The same content as JSON types: dataclasses and mappings as objects, tuples as lists, sets sorted, paths as text.

    BadInput for what has no such form.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, PurePath):
        return value.as_posix()
    numpy = sys.modules.get("numpy")  # nothing is imported for it
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        return plain(value.tolist())
    raise BadInput(f"A {type(value).__name__} has no JSON form. Give numbers, text, lists, mappings or dataclasses.")


def peak_memory_mb() -> float:
    """Largest resident memory of this process since `reset_peak_memory` (where the system can), in MB."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        kilobytes = next(line for line in lines if line.startswith("VmHWM:")).split()[1]
        return round(int(kilobytes) * 1024 / 1e6, 1)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(largest * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def reset_peak_memory() -> None:
    """Let the peak be counted from now on. Linux only; elsewhere it stays the peak since the start."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")

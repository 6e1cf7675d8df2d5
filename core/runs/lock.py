"""One writer per directory: a lock that survives network file systems, and that a dead process cannot keep.

`lock/000007/owner.json` names the holder of generation 7. A generation is taken by renaming a prepared directory
to its number, which the file system grants to one process only; the highest number is the current one, and the
next may be taken once the current is released or its holder is dead. The number is also the fencing token: a writer
that was thought dead and comes back finds a higher one and may no longer commit.
"""

import contextlib
import contextvars
import datetime
import os
import platform
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from data import trouble
from data.errors import BadInput, EnvironmentProblem, IntegrityError, Interrupted
from data.json_files import read_json, write_json
from data.processes import boot, pid_namespace, process_started
from data.whole_files import clear_litter, fenced, scratch_name

HEARTBEAT_SECONDS = 5.0
SILENT_BEATS = 3
"""A holder that cannot be asked is taken for dead after this many missed heartbeats, and only on request."""
_NEW = ".new-"
"""So earlier versions called a prepared generation."""
_taking_over = contextvars.ContextVar("taking_over", default=False)
_seen: dict[Path, tuple[int, bytes, float]] = {}


@contextlib.contextmanager
def taking_over(wanted: bool = True) -> Iterator[None]:
    """Locks that are taken within the block are also taken from holders that cannot be asked and are silent.

    Said once, where a command begins (`--take-over`), and heard by every lock that the command needs.
    """
    token = _taking_over.set(wanted)
    try:
        yield
    finally:
        _taking_over.reset(token)


@contextlib.contextmanager
def hold_lock(
    directory: Path, take_over: bool | None = None, heartbeat_seconds: float = HEARTBEAT_SECONDS
) -> Iterator[int]:
    """Be the one writer of `directory` for the length of the block; yields the generation (the fencing token).

    The lock of a dead process on this machine is taken over. `take_over` also takes the lock of a process that cannot
    be asked (another machine, or stopped), after three heartbeats of silence; not given, `taking_over` decides.
    Whoever loses the lock within the block commits nothing more below `directory`, and is Interrupted.
    BadInput when somebody else is writing; it says since when, which process and where.
    """
    locks = directory / "lock"
    if locks.is_symlink():
        raise BadInput(f"{locks} is a link. Nothing was written. Remove the link and repeat the command.")
    wanted = _taking_over.get() if take_over is None else take_over
    while (generation := _try_to_take(locks, wanted, heartbeat_seconds)) is None:
        time.sleep(0.01)
    mine = locks / f"{generation:06d}"
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(mine / "heartbeat", heartbeat_seconds, ended), daemon=True)
    beating.start()
    try:
        with fenced(directory, lambda: check_fence(directory, generation)):
            yield generation
    except Interrupted:
        raise
    except Exception as error:
        # Whoever took over may have cleared what this one was writing: that is the cause, not the missing file.
        if directory.is_dir() and _highest(locks) != generation:
            raise _lost(directory, generation) from error
        raise
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(OSError):
            (mine / "owner.json").rename(mine / "released.json")


def lock_holder(directory: Path) -> dict[str, Any] | None:
    """Who writes in `directory` now (pid, host, since, ...), or None when nobody does or the holder is dead."""
    generation = _highest(directory / "lock")
    owner = _owner(directory / "lock" / f"{generation:06d}")
    return None if owner is None or _certainly_dead(owner) else owner


def unasked_holder(directory: Path) -> dict[str, Any] | None:
    """Who holds the lock and cannot be asked whether it goes on: a process of another machine, or a stopped one."""
    generation = _highest(directory / "lock")
    owner = _owner(directory / "lock" / f"{generation:06d}")
    return None if owner is None or _certainly_dead(owner) or _answers(owner) else owner


def silent_holder(directory: Path) -> dict[str, Any] | None:
    """The `unasked_holder`, once this process has seen it silent for three heartbeats.

    None at the first look: silence is the difference between looks, never a clock of another machine.
    """
    owner = unasked_holder(directory)
    if owner is None:
        _seen.pop(directory, None)
        return None
    generation = _highest(directory / "lock")
    beat, now = _heartbeat(directory / "lock" / f"{generation:06d}"), time.monotonic()
    number, before, since = _seen.get(directory, (0, b"", now))
    if (number, before) != (generation, beat):
        _seen[directory] = (generation, beat, now)
        return None
    return owner if now - since >= SILENT_BEATS * _interval(owner) else None


def check_fence(directory: Path, generation: int) -> None:
    """Raise Interrupted when somebody has taken over the lock since `generation` was given."""
    if _highest(directory / "lock") != generation:
        raise _lost(directory, generation)


def this_process() -> dict[str, Any]:
    """What identifies this process: number, start, machine, and which boot of it."""
    return {
        "pid": os.getpid(),
        "process_started": process_started(os.getpid()),
        "host": platform.node(),
        "boot": boot(),
        "pid_namespace": pid_namespace(),
    }


def is_alive(process: dict[str, Any]) -> bool:
    """Whether a process described by `this_process` still runs on this machine."""
    started = process.get("process_started")
    return bool(
        process.get("host") == platform.node()
        and process.get("boot") == boot()
        and started is not None
        and process_started(int(process["pid"])) == started
    )


def _try_to_take(locks: Path, take_over: bool, heartbeat_seconds: float) -> int | None:
    """The generation when it is ours; None when the race was lost and must be looked at again."""
    current = _highest(locks)
    owner = _owner(locks / f"{current:06d}")
    if owner is not None and not _certainly_dead(owner):
        if not take_over:
            raise BadInput(_refusal(locks.parent, owner))
        _watch_silence(locks / f"{current:06d}", owner)
    prepared = _prepare(locks, heartbeat_seconds)
    wanted = locks / f"{current + 1:06d}"
    try:
        prepared.rename(wanted)
    except OSError:
        shutil.rmtree(prepared, ignore_errors=True)
        return None
    if _highest(locks) != current + 1:  # older generations are pruned: ours may be a reused, outdated number
        shutil.rmtree(wanted, ignore_errors=True)
        return None
    _prune(locks, below=current + 1)
    _clear_prepared(locks)
    return current + 1


def _lost(directory: Path, generation: int) -> Interrupted:
    return Interrupted(
        f"Another process took over {directory} (lock {_highest(directory / 'lock')}, ours was {generation}). "
        "Nothing of this one is committed any more. Follow the other one, or start a new run."
    )


def _prepare(locks: Path, heartbeat_seconds: float) -> Path:
    prepared = locks / scratch_name("new-")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    try:
        prepared.mkdir(parents=True)
        (prepared / "heartbeat").write_bytes(b"0".rjust(20))
    except OSError as error:
        raise EnvironmentProblem(
            f"Cannot write in {locks.parent}: {error.strerror}. {trouble.remedy(error, locks.parent)}"
        ) from error
    write_json(prepared / "owner.json", this_process() | {"since": now, "heartbeat_seconds": heartbeat_seconds})
    return prepared


def _highest(locks: Path) -> int:
    try:
        return max((int(name) for name in os.listdir(locks) if name.isdecimal()), default=0)
    except OSError:
        return 0


def _owner(generation: Path) -> dict[str, Any] | None:
    """Who holds it; None when it is released (or nobody ever held it)."""
    try:
        owner = read_json(generation / "owner.json")
    except (OSError, IntegrityError):
        return None
    return owner if isinstance(owner, dict) and isinstance(owner.get("pid"), int) else None


def _certainly_dead(owner: dict[str, Any]) -> bool:
    if owner.get("host") != platform.node():
        return False
    if owner.get("boot") != boot():
        return True
    return bool(owner.get("pid_namespace") == pid_namespace()) and not is_alive(owner)


def _answers(owner: dict[str, Any]) -> bool:
    """Whether the holder can be asked and goes on: a process of this machine that is not stopped."""
    if owner.get("host") != platform.node() or owner.get("pid_namespace") != pid_namespace():
        return False
    try:
        return bool(psutil.Process(owner["pid"]).status() != psutil.STATUS_STOPPED)
    except psutil.Error:
        return True


def _refusal(directory: Path, owner: dict[str, Any]) -> str:
    if _answers(owner):
        otherwise = "."
    elif owner.get("host") == platform.node():
        otherwise = "; if that process is stopped or out of sight for good, repeat the command with --take-over."
    else:
        otherwise = "; if that machine is gone, repeat the command with --take-over."
    return (
        f"{directory.name} is being written: running since {owner.get('since')}, process {owner['pid']} on "
        f"{owner.get('host')}. Attach to it (open the run in the dashboard), or start a new run{otherwise}"
    )


def _watch_silence(generation: Path, owner: dict[str, Any]) -> None:
    # The change of the counter is watched, not a clock: clocks of two machines differ, and jump.
    before = _heartbeat(generation)
    deadline = time.monotonic() + SILENT_BEATS * _interval(owner)
    while time.monotonic() < deadline:
        time.sleep(min(0.2, max(deadline - time.monotonic(), 0.0)))
        if _heartbeat(generation) != before:
            raise BadInput(_refusal(generation.parent.parent, owner) + " It gives signs of life: not taken over.")


def _interval(owner: dict[str, Any]) -> float:
    """Seconds between the heartbeats of a holder; the usual ones when its record says something else than a length."""
    told = owner.get("heartbeat_seconds")
    return float(told) if isinstance(told, int | float) and 0 < told < 3600 else HEARTBEAT_SECONDS


def _heartbeat(generation: Path) -> bytes:
    try:
        return (generation / "heartbeat").read_bytes()
    except OSError:
        return b""


def _beat(heartbeat: Path, seconds: float, ended: threading.Event) -> None:
    count = 0
    while not ended.wait(seconds):
        count += 1
        # Same length in place: needs no room on a full disk.
        with contextlib.suppress(OSError), heartbeat.open("r+b") as file:
            file.write(str(count).encode().rjust(20))


def _prune(locks: Path, below: int) -> None:
    for name in os.listdir(locks):
        if len(name) == 6 and name.isdecimal() and int(name) < below:
            shutil.rmtree(locks / name, ignore_errors=True)


def _clear_prepared(locks: Path) -> None:
    """Remove what processes that are gone had prepared for taking the lock; whoever still tries keeps its own."""
    clear_litter(locks)
    for prepared in [locks / name for name in os.listdir(locks) if name.startswith(_NEW)]:
        owner = _owner(prepared)
        if owner is not None and _certainly_dead(owner):
            shutil.rmtree(prepared, ignore_errors=True)

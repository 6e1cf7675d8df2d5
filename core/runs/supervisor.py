"""The process beside a job: it starts the command, waits for its end, and writes down what it was."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from core.runs.lock import this_process
from data.json_files import write_json
from data.processes import process_started

NICENESS = 10
"""The dashboard stays quick while a job computes on the same cores."""
_LOOK_SECONDS = 0.05


def _out_of_memory_kills() -> int | None:
    """How many processes the kernel has killed so far for want of memory, here or anywhere; None where it says not."""
    counts = []
    for path in (Path("/proc/vmstat"), *group_files("memory.events", "memory.oom_control")):
        with contextlib.suppress(OSError, ValueError):
            words = (line.split() for line in path.read_text().splitlines())
            counts += [int(word[1]) for word in words if len(word) == 2 and word[0] == "oom_kill"]
    return sum(counts) if counts else None


def group_files(of_version_2: str, of_version_1: str) -> list[Path]:
    """Where Linux keeps a figure of the memory group of this process (cgroup, versions 2 and 1)."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "":
                found.append(Path("/sys/fs/cgroup", group.strip("/"), of_version_2))
            elif "memory" in controllers.split(","):
                found.append(Path("/sys/fs/cgroup/memory", group.strip("/"), of_version_1))
    return found


def supervise(directory: Path) -> None:
    """Run the job's command to its end and write down how it ended."""
    if os.fork():
        os._exit(0)
    os.setsid()
    for name in (signal.SIGHUP, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    write_json(directory / "supervisor.json", this_process())
    record = json.loads((directory / "job.json").read_text())
    if (directory / "stop.json").exists():
        write_json(directory / "returncode.json", {"returncode": 5, "peak_mb": 0.0})
        return
    os.nice(NICENESS)
    kills = _out_of_memory_kills()
    with (directory / "log.txt").open("ab") as log:
        child = subprocess.Popen(
            record["command"],
            cwd=record["cwd"],
            env=os.environ | {"DICESCOPE_JOB": str(directory), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(child.pid, signal.SIGTERM))
    started = this_process() | {"pid": child.pid, "process_started": process_started(child.pid)}
    write_json(directory / "child.json", started)
    if (directory / "stop.json").exists():  # asked to stop before the child was known
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
    # The child stays a zombie until its group is cleared, so its number cannot be anyone else's yet. Looked at, since
    # waiting without taking the zombie away (waitid) is not to be had on every system.
    while process_started(child.pid) is not None:
        time.sleep(_LOOK_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    per_unit = 1 if sys.platform == "darwin" else 1024
    kills_after = _out_of_memory_kills()
    ended = {
        "returncode": child.returncode,
        "peak_mb": round(usage.ru_maxrss * per_unit / 1e6, 1),
        "out_of_memory_kills": None if kills is None or kills_after is None else kills_after - kills,
    }
    write_json(directory / "returncode.json", ended)

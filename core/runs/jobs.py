"""Start, follow and stop a command of `cli.py` as a process whose life does not depend on the browser.

`runs/.jobs/<job_id>/` holds job.json (what was asked), log.txt, supervisor.json and child.json (who runs), and
returncode.json (how it ended). A small supervisor outlives the server that started it and writes the last one.
"""

import contextlib
import datetime
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from core.runs.lock import is_alive, this_process
from core.runs.store import claim_sequence
from core.runs.supervisor import group_files, supervise
from data.errors import BadInput, EnvironmentProblem, IntegrityError
from data.json_files import read_json, write_json
from data.processes import process_started
from data.whole_files import clear_litter, scratch_name

PROJECT = Path(__file__).resolve().parents[2]
CLI = PROJECT / "cli.py"
_NEARLY_ALL = 0.8
"""A process that held more of the memory than this was probably killed for it, where the kernel does not say."""
_ENDINGS = {
    0: "Finished.",
    2: "Bad input: something that was given cannot be used.",
    3: "The environment stood in the way: disk, memory or permission.",
    4: "A file is not what its manifest says.",
    5: "Interrupted. The same command resumes it.",
    6: "A bug of this program.",
}


@dataclass(frozen=True)
class Job:
    """One started command, as it stood when it was read."""

    job_id: str
    argv: tuple[str, ...]
    """The verb of cli.py and its flags."""
    pid: int | None
    """Of the child, which leads its own process group."""
    process_started: str | None
    created: str
    sequence: int
    run_id: str | None
    """The run it works on, once it has said so."""
    log: Path
    status: str
    """waiting, running, finished, failed, stopped or killed."""
    returncode: int | None
    diagnosis: str
    """In words: how it ended and what to do."""

    @property
    def active(self) -> bool:
        """Whether it still waits or runs."""
        return self.status in ("waiting", "running")


def start_job(runs: Path, argv: Sequence[str], *, token: str | None = None) -> Job:
    """Start `python cli.py ARGV` in the background. The same `token` again (a double click) gives the same job.

    No shell is involved. The child is told no more than its arguments.
    """
    if not argv or not argv[0] or argv[0].startswith("-") or any("\0" in part for part in argv):
        raise BadInput(f"{list(argv)!r} is no command. Give a verb and its flags, such as ['runs', '--json'].")
    key = uuid.uuid4().hex if token is None else hashlib.sha256(token.encode()).hexdigest()
    root = runs.absolute() / ".jobs"
    directory = root / f"job-{key[:12]}"
    if directory.is_dir():
        return _read(directory)
    clear_litter(root)
    scratch = root / scratch_name()
    write_json(
        scratch / "job.json",
        {
            "argv": list(argv),
            "command": [sys.executable, str(CLI), *argv],
            "cwd": str(Path.cwd()),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "sequence": claim_sequence(root),
            "starter": this_process(),
        },
    )
    (scratch / "log.txt").touch()
    try:
        scratch.rename(directory)
    except OSError:  # the other click was quicker
        shutil.rmtree(scratch, ignore_errors=True)
        return _read(directory)
    _start_supervisor(directory)
    return _read(directory)


def list_jobs(runs: Path) -> list[Job]:
    """All jobs, newest first. One with a damaged record is listed as failed and hides no other."""
    try:
        names = [name for name in os.listdir(runs / ".jobs") if name.startswith("job-")]
    except OSError:
        return []
    jobs = [_read(runs.absolute() / ".jobs" / name) for name in names]
    return sorted(jobs, key=lambda job: job.sequence, reverse=True)


def read_job(runs: Path, job_id: str) -> Job:
    """The job with this id, as it stands now. BadInput when there is none."""
    root = runs.absolute() / ".jobs"
    names = sorted(n for n in os.listdir(root) if n.startswith("job-")) if root.is_dir() else []
    if job_id not in names:
        raise BadInput(f"No job {job_id!r}. There are: {', '.join(names[:8]) or 'none yet'}.")
    return _read(root / job_id)


def log_tail(job: Job, n_lines: int = 50) -> str:
    """The last lines of what the job printed; reads at most 200 bytes per line from the end of the log."""
    try:
        with job.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max(200 * n_lines, 4096)))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-n_lines:])


def follow_job(runs: Path, job_id: str, every_seconds: float = 0.5) -> Iterator[str]:
    """What the job prints, piece by piece, until it has ended."""
    position = 0
    while True:
        job = read_job(runs, job_id)
        with contextlib.suppress(OSError), job.log.open("rb") as file:
            file.seek(position)
            piece = file.read()
            position += len(piece)
            if piece:
                yield piece.decode(errors="replace")
        if not job.active:
            return
        time.sleep(every_seconds)


def stop_job(job: Job) -> Job:
    """Ask a job to stop (SIGTERM to its own process group); asked a second time, it is killed.

    Nothing is signalled unless process number *and* start time are still those of the job.
    """
    directory = job.log.parent
    now = _read(directory)
    if not now.active:
        return now
    asked_before = (directory / "stop.json").exists()
    write_json(directory / "stop.json", {"times": 2 if asked_before else 1})
    if now.pid is not None and process_started(now.pid) == now.process_started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(now.pid, signal.SIGKILL if asked_before else signal.SIGTERM)
    return _read(directory)


def _read(directory: Path) -> Job:
    ended = _ended(directory)  # first: files only appear, so later reads are never older
    record = _asked(directory)
    child = _process(_json(directory / "child.json"))
    if not ended:
        ended = _ended(directory)
    status, diagnosis = _judge(directory, record, child, ended)
    run_id = _json(directory / "run.json").get("run_id")
    return Job(
        job_id=directory.name,
        argv=tuple(record.get("argv", ())),
        pid=child.get("pid"),
        process_started=child.get("process_started"),
        created=str(record.get("created", "")),
        sequence=_whole(record.get("sequence")) or 0,
        run_id=str(run_id) if run_id else None,
        log=directory / "log.txt",
        status=status,
        returncode=ended.get("returncode"),
        diagnosis=diagnosis,
    )


def _judge(directory: Path, record: dict[str, Any], child: dict[str, Any], ended: dict[str, Any]) -> tuple[str, str]:
    if not record:
        return "failed", f"{directory / 'job.json'} is missing or damaged. Delete {directory} and start again."
    if ended:
        return _ending(directory, ended)
    if child and is_alive(child):
        return "running", "Running."
    guardian = _process(_json(directory / "supervisor.json")) or _process(record.get("starter"))
    if guardian and is_alive(guardian):
        return ("running", "Ending.") if child else ("waiting", "Starting.")
    if ended := _ended(directory):
        return _ending(directory, ended)
    if child:
        return "killed", (
            "It ended without a word: the machine was restarted, or the process and its supervisor were killed. "
            "Run the same command again; finished stages are used again."
        )
    return "failed", "It never started: the server ended first. Start it again."


def _ending(directory: Path, ended: dict[str, Any]) -> tuple[str, str]:
    code: int = ended["returncode"]
    stopped = (directory / "stop.json").exists()
    if code == 0:
        return "finished", _ENDINGS[0]
    if code == 5 or (stopped and (code < 0 or code in (130, 143))):
        return "stopped", "Stopped on request. The same command resumes it; finished stages are used again."
    last = _last_line(directory / "log.txt")
    if code == -signal.SIGKILL:
        return "killed", _killed(ended)
    if code < 0:
        return "killed", f"Ended by signal {-code} ({_signal_name(-code)}) from outside. Last line: {last}"
    return "failed", f"{_ENDINGS.get(code, f'Ended with code {code}.')} Last line: {last}"


def _killed(ended: dict[str, Any]) -> str:
    """Who killed it, as far as there are signs: the kernel counts those whom it kills for want of memory."""
    peak, limit = ended["peak_mb"], _memory_limit_mb()
    rss = f"peak RSS {peak:.0f} MB of {limit:.0f} MB on this machine"
    again = "then run the same command again; finished stages are used again."
    kills = ended["out_of_memory_kills"]
    if kills or (kills is None and peak > _NEARLY_ALL * limit):
        sign = "the system was out of memory while it ran" if kills else "its count of such kills cannot be read"
        return (
            f"Killed by the system, probably memory: {rss}, and {sign}. Use a coarser spacing, fewer layers or fewer "
            f"subjects, {again}"
        )
    return (
        f"Killed by signal 9 (SIGKILL): by hand, or by a scheduler whose time or memory limit was reached; the system "
        f"shows no lack of memory ({rss}). Find out who ended it, {again}"
    )


def _asked(directory: Path) -> dict[str, Any]:
    """What was asked for; empty when the record is missing or not one of ours."""
    record = _json(directory / "job.json")
    argv = record.get("argv")
    return record if isinstance(argv, list) and all(isinstance(part, str) for part in argv) else {}


def _ended(directory: Path) -> dict[str, Any]:
    """How it ended; empty when it has not, or when nothing says how."""
    told = _json(directory / "returncode.json")
    if _whole(told.get("returncode")) is None:
        return {}
    peak = told.get("peak_mb")
    return {
        "returncode": told["returncode"],
        "peak_mb": float(peak) if isinstance(peak, int | float) and 0 <= peak < 1e12 else 0.0,
        "out_of_memory_kills": _whole(told.get("out_of_memory_kills")),
    }


def _process(value: Any) -> dict[str, Any]:
    """A description of a process by `this_process`; empty when it is none."""
    number = _whole(value.get("pid")) if isinstance(value, dict) else None
    started = value.get("process_started") if isinstance(value, dict) else None
    return dict(value) if number is not None and number > 0 and isinstance(started, str | None) else {}


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62 else None


def _memory_limit_mb() -> float:
    """Memory of this machine, or of this group of processes where that is less, in MB."""
    total = float(psutil.virtual_memory().total)
    for path in group_files("memory.max", "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, float(path.read_text()))
    return total / 1e6


def _json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, IntegrityError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4096))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip()[:500] if lines else "(nothing was printed)"
    return "(the log is gone)"


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return "unknown"


def _start_supervisor(directory: Path) -> None:
    # The process started here forks and ends at once, so nothing of ours is the supervisor's parent for long.
    command = [sys.executable, "-m", "core.runs.jobs", "--supervise", str(directory)]
    with (directory / "log.txt").open("ab") as log:
        done = subprocess.run(
            command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False, timeout=60
        )
    if done.returncode != 0:
        write_json(directory / "returncode.json", {"returncode": 3, "peak_mb": 0.0})
        raise EnvironmentProblem(f"The job could not be started: {_last_line(directory / 'log.txt')}")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--supervise":
        sys.exit("This is started by the dashboard: python -m core.runs.jobs --supervise DIRECTORY")
    supervise(Path(sys.argv[2]))

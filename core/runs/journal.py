"""The journal of a run: one JSON line per event, appended, readable while it grows.

Only training takes lines back, when it computes steps again after an interruption (`drop_lines`).
"""

import contextlib
import datetime
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from core.runs.provenance import plain
from data.whole_files import replace_whole

JOURNAL = "events.jsonl"
_WARN_EVERY_SECONDS = 60.0
_lost: dict[Path, int] = {}
_warned: dict[Path, float] = {}


def append_line(path: Path, kind: str, values: Mapping[str, Any]) -> bool:
    """Append one event; False when the disk refused it.

    Work goes on without its journal: one warning a minute, and a note in the journal where lines are missing.
    Numbers that are not finite become null, since JSON has no word for them.
    """
    try:
        lost = _lost.get(path, 0)
        if lost:
            _write(path, "note", {"message": f"{lost} event(s) are missing here: the disk refused them."})
            _lost[path] = 0
        _write(path, kind, values)
    except OSError as error:
        _lost[path] = _lost.get(path, 0) + 1
        now = time.monotonic()
        if now - _warned.get(path, -math.inf) >= _WARN_EVERY_SECONDS:
            _warned[path] = now
            print(f"Journal {path} cannot be written ({error.strerror or error}); the work goes on.", file=sys.stderr)
        return False
    return True


def read_lines(path: Path, after: int = 0) -> list[dict[str, Any]]:
    """The events behind byte `after`, each with the byte `offset` where it ends (give the last one as next `after`).

    Never raises: a damaged line becomes an event of kind "note", and a line without its end is left for next time.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(after, 0))
            content = file.read()
    except OSError:
        return []
    events = []
    offset = max(after, 0)
    for line in _split(content):
        if not line.endswith(b"\n"):
            break
        offset += len(line)
        if line.strip():
            events.append(_parse(line) | {"offset": offset})
    return events


def steps_of(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The training steps among events, ascending. A step that comes again supersedes all from it on: a resumed run
    computes anew what no checkpoint held."""
    steps: list[dict[str, Any]] = []
    for event in events:
        if is_step(event):
            while steps and steps[-1]["step"] >= event["step"]:
                steps.pop()
            steps.append(dict(event))
    return steps


def is_step(event: Mapping[str, Any]) -> bool:
    """Whether an event is a step of training, and not a note or a line that something else wrote."""
    step = event.get("step")
    return event.get("kind", "step") == "step" and isinstance(step, int) and not isinstance(step, bool) and step > 0


def drop_lines(path: Path, dropped: Callable[[Mapping[str, Any]], bool]) -> bool:
    """Take the events for which `dropped` holds out of the journal, and a last line that was never ended.

    All others stay byte by byte, damaged ones too. When the dropped lines stand last, the file is cut, which takes no
    room on a full disk. False, with a warning, when the disk refuses; then nothing has changed.
    """
    try:
        lines = _split(path.read_bytes())
        kept = [line for line in lines if line.endswith(b"\n") and not (line.strip() and dropped(_parse(line)))]
        if kept == lines:
            return True
        if kept == lines[: len(kept)]:
            os.truncate(path, sum(map(len, kept)))
            return True
        replace_whole(path, b"".join(kept))
    except FileNotFoundError:
        return True
    except OSError as error:
        print(f"Journal {path} cannot be shortened ({error.strerror or error}); the work goes on.", file=sys.stderr)
        return False
    return True


def sync(path: Path) -> None:
    """Have the disk take what was appended, as far as it can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write(path: Path, kind: str, values: Mapping[str, Any]) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    event = {"kind": kind, "time": now} | _finite(plain(values))
    line = json.dumps(event, ensure_ascii=True).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # a predecessor was killed within its last line
            line = b"\n" + line
        written = os.write(descriptor, line)
        if written != len(line):
            raise OSError(None, "the disk took only part of the line")
    finally:
        os.close(descriptor)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if isinstance(event, dict):
        return event
    return {"kind": "note", "message": f"A line of {len(line)} bytes is damaged and was left out."}


def _split(content: bytes) -> list[bytes]:
    pieces = content.split(b"\n")
    return [piece + b"\n" for piece in pieces[:-1]] + ([pieces[-1]] if pieces[-1] else [])


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value

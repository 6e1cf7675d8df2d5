"""How far is it, and how long still: a bar on a terminal, a plain line now and then anywhere else.

Everything goes to stderr, so that the standard output of `--json` stays for machines.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, TextIO

import rich.console
import rich.markup
import rich.progress

LINE_EVERY_SECONDS = 3.0


class Advance(Protocol):
    """Report `steps` more done; `note` says which (a subject, a layer)."""

    def __call__(self, steps: float = 1, note: str = "") -> None:
        """Report it."""
        ...


@dataclass
class Progress:
    """Shows tasks, one after another or nested, as bars (`terminal`) or as plain lines."""

    terminal: bool
    stream: TextIO
    line_every_seconds: float = LINE_EVERY_SECONDS
    _bars: rich.progress.Progress | None = field(default=None, repr=False)
    _open_tasks: int = field(default=0, repr=False)

    @contextlib.contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Advance]:
        """`with progress.task("Preparing scans", 12) as advance: advance(1, "sub-01")`. No `total`: it is unknown."""
        with (self._bar if self.terminal else self._lines)(description, total) as advance:
            yield advance

    @contextlib.contextmanager
    def _bar(self, description: str, total: float | None) -> Iterator[Advance]:
        if self._bars is None:
            self._bars = _rich_bars(self.stream)
            self._bars.start()
        bars = self._bars
        self._open_tasks += 1
        task = bars.add_task(rich.markup.escape(description), total=total, note="")

        def advance(steps: float = 1, note: str = "") -> None:
            bars.update(task, advance=steps, note=rich.markup.escape(note))

        try:
            yield advance
        finally:
            self._open_tasks -= 1
            if not self._open_tasks:
                bars.stop()
                self._bars = None

    @contextlib.contextmanager
    def _lines(self, description: str, total: float | None) -> Iterator[Advance]:
        began = said = time.monotonic()
        done = 0.0

        def advance(steps: float = 1, note: str = "") -> None:
            nonlocal done, said
            done += steps
            now = time.monotonic()
            if now - said >= self.line_every_seconds:
                said = now
                self.say(f"{description}: {_how_far(done, total, now - began)}{': ' if note else ''}{note}")

        self.say(f"{description} ..." if total is None else f"{description}: {total:g} to do")
        yield advance
        self.say(f"{description}: {done:g} done in {_duration(time.monotonic() - began)}")

    def say(self, line: str) -> None:
        """Print one line; a bar that is being shown stays below it."""
        if self._bars is not None:
            self._bars.console.print(line, markup=False)
            return
        # A log that cannot be written to must not stop the work.
        with contextlib.suppress(OSError, ValueError):
            print(line, file=self.stream, flush=True)


def open_progress(stream_is_terminal: bool | None = None, stream: TextIO | None = None) -> Progress:
    """Progress on stderr; bars when it is a terminal, unless told."""
    chosen = sys.stderr if stream is None else stream
    return Progress(chosen.isatty() if stream_is_terminal is None else stream_is_terminal, chosen)


def _rich_bars(stream: TextIO) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[note]}"),
        console=rich.console.Console(file=stream, force_terminal=True),
    )


def _how_far(done: float, total: float | None, seconds: float) -> str:
    if not total or done <= 0:
        return f"{done:g} done"
    left = max(total - done, 0) * seconds / done
    return f"{done:g} of {total:g} ({100 * done / total:.0f} %), about {_duration(left)} left"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

"""Work shared out to processes, one piece at a time: a process that dies stops its piece and no other."""

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any, TypeVar

from data.errors import EnvironmentProblem

_T = TypeVar("_T")
_HOPELESS = 8
"""After so many deaths and nothing done, it is not about the pieces."""
_PATIENCE_SECONDS = 3.0
"""A worker that was asked to end has this long to clear up after itself."""


@dataclass(frozen=True)
class Died:
    """What came of a piece of work whose process was ended twice, the second time with nothing beside it."""

    exitcode: int | None

    @property
    def words(self) -> str:
        """How the last of the two processes ended."""
        if self.exitcode is not None and self.exitcode < 0:
            with contextlib.suppress(ValueError):
                return f"by signal {-self.exitcode} ({signal.Signals(-self.exitcode).name})"
        return f"with code {self.exitcode}"

    @property
    def cause(self) -> str:
        """What is the matter, most likely, and what to do."""
        return (
            f"its process was ended twice, {self.words}, the second time with nothing beside it: most likely it needs "
            "more memory than there is, or a damaged file crashes a library. Give it more memory, or check its files "
            "and take it out"
        )


def shared_out(
    work: Callable[..., _T],
    given: Sequence[tuple[Any, ...]],
    workers: int,
    *,
    threads: int | None = None,
    first: Callable[[], None] | None = None,
) -> Iterator[tuple[int, _T | Died]]:
    """`work(*given[i])` for every i in `workers` processes: pairs (i, result) in the order in which they are done.

    A piece whose process dies is tried once more when all others are done, in a process of its own; after a second
    death its result is `Died`. EnvironmentProblem when processes die one after the other and nothing gets done at all.
    What `work` raises is raised here. `threads`: of the numeric libraries in each process,
    `first`: what each does before its first piece.
    Spawned, not forked: a forked copy of a process that runs torch or ITK threads can hang.
    """
    waiting = deque(range(len(given)))
    suspects: deque[int] = deque()
    alone: set[int] = set()
    crew: list[_Worker] = []
    n_done = n_deaths = 0
    try:
        while waiting or suspects or any(worker.piece is not None for worker in crew):
            if not waiting and suspects and all(worker.piece is None for worker in crew):
                _dismiss(crew)
                alone.add(suspects[0])
                waiting.append(suspects.popleft())
            _hand_out(crew, waiting, work, given, 1 if alone else max(workers, 1), threads, first)
            for worker in _ready(crew):
                piece, worker.piece = worker.piece, None
                assert piece is not None
                answer = worker.answer()
                if answer is not None:
                    n_done += 1
                    yield piece, _result(answer)
                    continue
                n_deaths += 1
                crew.remove(worker)
                worker.ask_to_end()
                exitcode = worker.end()
                if not n_done and len(given) > 1 and n_deaths >= min(_HOPELESS, 2 * len(given)):
                    raise EnvironmentProblem(
                        f"{n_deaths} processes were ended from outside, the last {Died(exitcode).words}, and none got "
                        "anything done: most likely there is not enough memory. Make memory free and run again; what "
                        "was done before is kept."
                    )
                if piece in alone:
                    yield piece, Died(exitcode)
                else:
                    suspects.append(piece)
    finally:
        _dismiss(crew)


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    connection: Connection
    piece: int | None = None

    def answer(self) -> tuple[bool, Any] | None:
        """What it sent back; None when it died instead."""
        try:
            done, value = self.connection.recv()
            if done:
                return True, value
            try:
                error = self.connection.recv()
            except (EOFError, OSError):
                return None
            except Exception:  # an error whose class cannot be made again from its text
                return False, RuntimeError(value)
        except (EOFError, OSError):
            return None
        error.add_note(value)
        return False, error

    def ask_to_end(self) -> None:
        self.connection.close()
        if self.piece is not None:
            self.process.terminate()

    def end(self) -> int | None:
        """Its exit code, once it is gone; it is killed when it does not listen."""
        self.process.join(_PATIENCE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode


def _hand_out(
    crew: "list[_Worker]",
    waiting: deque[int],
    work: Callable[..., Any],
    given: Sequence[tuple[Any, ...]],
    most: int,
    threads: int | None,
    first: Callable[[], None] | None,
) -> None:
    while waiting:
        idle = next((worker for worker in crew if worker.piece is None), None)
        if idle is None:
            if len(crew) >= most:
                return
            idle = _hire(threads, first)
            crew.append(idle)
        idle.piece = waiting.popleft()
        with contextlib.suppress(OSError):  # one that died before its work is noticed when it is listened to
            idle.connection.send((work, given[idle.piece]))


def _ready(crew: "list[_Worker]") -> "list[_Worker]":
    heard = wait([worker.connection for worker in crew if worker.piece is not None])
    return [worker for worker in crew if worker.connection in heard]


def _dismiss(crew: "list[_Worker]") -> None:
    for worker in crew:
        worker.ask_to_end()
    while crew:
        crew.pop().end()


def _hire(threads: int | None, first: Callable[[], None] | None) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, first), daemon=True)
    with _threads_told(threads), _main_hidden():
        process.start()
    theirs.close()
    return _Worker(process, ours)


@contextlib.contextmanager
def _threads_told(threads: int | None) -> Iterator[None]:
    """The number of threads in the environment that a process inherits at its start."""
    if threads is None:
        yield
        return
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


@contextlib.contextmanager
def _main_hidden() -> Iterator[None]:
    """Keep a process that starts from running this one's main script again: a page of the app, or a script of a user
    without `if __name__ == "__main__"`. What a worker needs, it imports by name."""
    main, nobody = sys.modules["__main__"], ModuleType("__main__")
    sys.modules["__main__"] = nobody
    try:
        yield
    finally:
        if sys.modules["__main__"] is nobody:
            sys.modules["__main__"] = main


def _serve(connection: Connection, first: Callable[[], None] | None) -> None:
    """The life of a worker: one piece after the other, until its employer closes the connection or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the employer, who ends this one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that scratch directories are cleared
    if first is not None:
        first()
    with contextlib.suppress(EOFError, OSError):
        while True:
            work, arguments = connection.recv()
            try:
                connection.send((True, work(*arguments)))
            except Exception as error:
                told = traceback.format_exc()
                connection.send((False, told))
                try:
                    connection.send(error)
                except Exception:  # one that cannot be sent
                    connection.send(RuntimeError(told))


def _result(answer: tuple[bool, Any]) -> Any:
    done, value = answer
    if not done:
        raise value
    return value

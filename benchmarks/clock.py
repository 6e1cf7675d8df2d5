"""How every benchmark measures: one thread, CPU time of the process, both sides in turn, medians."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from threadpoolctl import threadpool_limits

Ours = TypeVar("Ours")
Theirs = TypeVar("Theirs")


@dataclass(frozen=True)
class Timing(Generic[Ours, Theirs]):
    """Median CPU seconds of both sides, and what they last returned."""

    seconds: float
    reference_seconds: float
    value: Ours
    reference: Theirs

    @property
    def ratio(self) -> float:
        """How many times longer the reference takes."""
        return self.reference_seconds / self.seconds


def side_by_side(
    ours: Callable[[], Ours], theirs: Callable[[], Theirs], rounds: int, their_rounds: int | None = None
) -> Timing[Ours, Theirs]:
    """Time both in turn, so that drift of the machine hits both; ours runs once before, to warm up.

    `their_rounds`, at least one, is for a reference that takes minutes.
    """
    value = ours()
    fast, slow = [], []
    for i in range(rounds):
        seconds, value = cpu_seconds(ours)
        fast.append(seconds)
        if i < (rounds if their_rounds is None else their_rounds):
            seconds, reference = cpu_seconds(theirs)
            slow.append(seconds)
    return Timing(statistics.median(fast), statistics.median(slow), value, reference)


def median_seconds(call: Callable[[], Ours], rounds: int) -> tuple[float, Ours]:
    """Median CPU seconds after one call to warm up, and what the last call returned."""
    call()
    seconds = []
    for _ in range(rounds):
        spent, value = cpu_seconds(call)
        seconds.append(spent)
    return statistics.median(seconds), value


def cpu_seconds(call: Callable[[], Ours]) -> tuple[float, Ours]:
    """CPU seconds of this process for one call, and what it returned."""
    start = time.process_time()
    value = call()
    return time.process_time() - start, value


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread in torch and in every BLAS, so that CPU time is comparable."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)

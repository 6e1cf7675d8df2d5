"""Where the numbers are computed, and by how many threads. One process today."""

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

_state = threading.Lock()
_usual: list[int] = []
"""Torch's threads as they were before the pools that are at work, one entry for each of them."""


def device() -> torch.device:
    """The first accelerator, else the CPU. DICESCOPE_DEVICE=cpu forces the CPU."""
    wanted = os.environ.get("DICESCOPE_DEVICE", "")
    if wanted:
        return torch.device(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def threads(where: torch.device) -> int:
    """How many tasks may compute at once on a device: torch's threads, whatever pools beside this one have set."""
    with _state:
        return 1 if where.type != "cpu" else _usual[0] if _usual else torch.get_num_threads()


@contextlib.contextmanager
def each_on_one_thread(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose workers compute alone: teams of threads inside the threads would fight for the cores.

    Torch keeps one number of threads for a whole process. The last pool to end gives it back, so a search beside
    another one, or after it, has all threads too. What is not begun when an error comes is given up.
    """
    with _state:
        _usual.append(_usual[0] if _usual else torch.get_num_threads())
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        with _state:
            usual = _usual.pop()
            if not _usual:
                torch.set_num_threads(usual)

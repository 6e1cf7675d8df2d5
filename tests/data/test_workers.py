import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data.errors import EnvironmentProblem
from data.workers import Died, shared_out

ROOT = Path(__file__).resolve().parents[2]


def triple(number: int) -> int:
    return 3 * number


def die_at(number: int, fatal: int, notes: str) -> int:
    with (Path(notes) / f"{number}-{os.getpid()}").open("x"):
        pass
    if number == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_once(number: int, notes: str) -> int:
    first = not (Path(notes) / "died").exists()
    if number == 2 and first:
        (Path(notes) / "died").touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    return number


def complain(number: int) -> int:
    raise KeyError(f"no {number}")


class TwoWords(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def complain_badly(number: int) -> int:
    raise TwoWords("does not", "travel")


def threads() -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def sleep_long(number: int, notes: str) -> None:
    (Path(notes) / str(os.getpid())).touch()
    time.sleep(60)


def test_every_piece_is_worked_on_once_whatever_the_number_of_workers():
    for workers in (1, 3):
        assert dict(shared_out(triple, [(n,) for n in range(7)], workers)) == {n: 3 * n for n in range(7)}
    assert list(shared_out(triple, [], 2)) == []


def test_a_piece_that_kills_its_process_stops_no_other_and_is_tried_twice(tmp_path):
    found = dict(shared_out(die_at, [(n, 3, str(tmp_path)) for n in range(6)], 2))
    assert {n for n, outcome in found.items() if isinstance(outcome, Died)} == {3}
    assert found[3].exitcode == -signal.SIGKILL
    assert "SIGKILL" in found[3].words
    tried = [name.name.split("-") for name in tmp_path.iterdir()]
    assert sorted(int(number) for number, _ in tried) == [0, 1, 2, 3, 3, 4, 5]
    last = {pid for number, pid in tried if number == "3"}
    assert len(last) == 2
    assert [found[n] for n in (0, 1, 2, 4, 5)] == [0, 1, 2, 4, 5]


def test_a_piece_whose_process_dies_once_is_done_at_the_second_try(tmp_path):
    assert dict(shared_out(die_once, [(n, str(tmp_path)) for n in range(4)], 2)) == {n: n for n in range(4)}


def test_when_nothing_but_deaths_comes_of_it_the_environment_is_named(tmp_path):
    for count in (2, 30):
        with pytest.raises(EnvironmentProblem, match=r"SIGKILL.*memory"):
            list(shared_out(die_at, [(n, n, str(tmp_path)) for n in range(count)], 2))
    assert len(list(tmp_path.iterdir())) <= 4 + 9


def test_what_the_work_raises_is_raised_here_with_its_traceback():
    with pytest.raises(KeyError, match="no 0") as raised:
        list(shared_out(complain, [(0,)], 2))
    assert "in complain" in raised.value.__notes__[0]
    with pytest.raises(RuntimeError, match="does nottravel"):
        list(shared_out(complain_badly, [(0,)], 2))


def test_threads_are_told_to_the_workers_only(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert dict(shared_out(threads, [()], 1, threads=1)) == {0: "1"}
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_who_is_interrupted_leaves_no_process_behind(tmp_path):
    work = shared_out(sleep_long, [(n, str(tmp_path)) for n in range(2)], 2)

    def interrupt(*_: object) -> None:
        if len(list(tmp_path.iterdir())) == 2:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            next(work)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert [name for name in os.listdir(tmp_path) if psutil.pid_exists(int(name))] == []


def test_no_worker_runs_the_script_of_its_employer_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(  # as a user writes one: nothing asks whether it is the main module
        "import math, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from data.workers import shared_out\n"
        "print('begun')\n"
        "print(sorted(shared_out(math.sqrt, [(1,), (4,)], 2)))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "begun\n[(0, 1.0), (1, 2.0)]\n", done.stderr

"""A run whose writer does not answer: every verb and page can go on in its place, and it commits nothing more."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import cli
from core.presentation.commands import take_over_argv
from core.runs import lock as locks
from core.runs import store
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.runs.store import update_run
from data.errors import BadInput, Interrupted
from data.files import committed_directory
from data.json_files import read_json, write_json
from tests.study import TinyStudy

ROOT = Path(__file__).resolve().parents[3]
ELSEWHERE = {"pid": 1, "process_started": "1 ticks", "host": "node-17", "boot": "b", "pid_namespace": "p"}
WRITING = (
    "demo", "pretrain", "fit", "score", "evaluate", "gate", "compare-pretraining", "diagnose", "what-if",
    "post-processing", "detection-limits", "report", "visibility",
)  # fmt: skip


@pytest.fixture(scope="module")
def own(study: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return study.copy(tmp_path_factory.mktemp("taken") / "study")


def held_elsewhere(run: Run, heartbeat_seconds: float = 0.05) -> None:
    """As if a process of another machine held the lock of the run and was gone."""
    number = max((int(p.name) for p in (run.directory / "lock").glob("[0-9]*")), default=0) + 1
    owner = ELSEWHERE | {"since": "2026-11-20T10:00:00+00:00", "heartbeat_seconds": heartbeat_seconds}
    write_json(run.directory / "lock" / f"{number:06d}" / "owner.json", owner)


@pytest.mark.parametrize("verb", WRITING)
def test_every_verb_that_takes_a_lock_can_take_it_over(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    assert "--take-over" in capsys.readouterr().out


def test_no_verb_that_writes_no_run_has_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in sorted(set(cli.VERBS) - set(WRITING)):
        assert cli.main([verb, "--help"]) == 0
        assert "--take-over" not in capsys.readouterr().out, verb


@pytest.mark.parametrize(
    "argv",
    [["evaluate", "tiny", "--workers", "1"], ["score", "tiny"], ["post-processing", "tiny", "--workers", "1"],
     ["gate", "tiny-intensity", "tiny", "--run-id", "gated", "--workers", "1"]],
)  # fmt: skip
def test_a_run_whose_machine_is_gone_is_refused_and_then_taken_over(
    own: TinyStudy, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ["--runs", str(own.runs)]
    if argv[0] == "gate":
        assert cli.main([*argv, *runs]) == 0
    run = open_run(own.runs, "gated" if argv[0] == "gate" else "tiny")
    if argv[0] == "score":  # what is scored already needs no lock
        shutil.rmtree(run.directory / "scores" / "test01")
    held_elsewhere(run)
    capsys.readouterr()
    assert cli.main([*argv, *runs]) == 2
    assert "--take-over" in capsys.readouterr().err
    assert cli.main([*argv, *runs, "--take-over"]) == 0
    assert locks.lock_holder(run.directory) is None


def test_who_gives_signs_of_life_is_not_taken_over(own: TinyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    run = open_run(own.runs, "tiny-intensity")
    with store.lock(run, heartbeat_seconds=0.05):
        argv = ["evaluate", "tiny-intensity", "--runs", str(own.runs), "--take-over"]
        assert cli.main(argv) == 2
        assert "signs of life" in capsys.readouterr().err


HOLD = """
import sys
from pathlib import Path
from core.runs import listing, store
p = Path(sys.argv[1])
with store.lock(listing.open_run(p.parent, p.name), heartbeat_seconds=0.1) as run:
    print("held", flush=True)
    sys.stdin.readline()
    from data.files import committed_directory; from data.json_files import write_json
    if sys.argv[2] == "commit":
        with committed_directory(run.directory / "scores" / "sub-01") as scratch:
            (scratch / "w").write_text("late")
    elif sys.argv[2] == "json":
        write_json(run.directory / "training.json", {"late": True})
    else:
        store.update_run(run, status="finished")
"""


@pytest.fixture
def stopped(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Run, subprocess.Popen]]:
    """A run, and a process that holds its lock and was stopped in the middle of its work."""
    run = store.create_run(tmp_path / "runs", kind="detector", name="x", recipe={})
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.directory), request.param],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    os.kill(process.pid, signal.SIGSTOP)
    yield run, process
    process.kill()
    process.wait()


@pytest.mark.parametrize("stopped", ["commit", "json", "update"], indirect=True)
def test_a_stopped_process_that_comes_back_commits_nothing_by_any_way(stopped: tuple[Run, subprocess.Popen]) -> None:
    run, zombie = stopped
    deadline = time.monotonic() + 10
    while locks.unasked_holder(run.directory) is None:
        assert time.monotonic() < deadline
    with pytest.raises(BadInput, match="--take-over"):
        store.lock(run).__enter__()
    with locks.taking_over(), store.lock(run) as held:
        with committed_directory(held.directory / "scores" / "sub-01") as scratch:
            (scratch / "w").write_text("mine")
        before = read_json(run.directory / "run.json")
        os.kill(zombie.pid, signal.SIGCONT)
        _, complaint = zombie.communicate(b"\n", timeout=30)
    assert b"Interrupted: Another process took over" in complaint
    assert (run.directory / "scores" / "sub-01" / "w").read_text() == "mine"
    assert not (run.directory / "training.json").exists()
    assert read_json(run.directory / "run.json") == before
    assert [p.name for p in run.directory.rglob(".tmp-*")] == []


def test_whatever_a_lost_writer_stumbles_over_is_told_as_the_loss(tmp_path: Path) -> None:
    run = store.create_run(tmp_path / "runs", kind="detector", name="x", recipe={})

    def stumble() -> None:
        with store.lock(run):
            (run.directory / "lock" / "000002").mkdir()
            raise FileNotFoundError("the scratch that the other one cleared")

    with pytest.raises(Interrupted, match="took over"):
        stumble()


def test_what_a_killed_taker_had_prepared_is_cleared_by_the_next(tmp_path: Path) -> None:
    run = store.create_run(tmp_path / "runs", kind="detector", name="x", recipe={})
    code = "import sys, pathlib; from core.runs.lock import hold_lock; hold_lock(pathlib.Path(sys.argv[1])).__enter__()"
    killed = subprocess.run(
        [sys.executable, "-c", code, str(run.directory)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "DICESCOPE_FAULT": "file.before_rename:1:kill"},
    )
    assert killed.returncode == -signal.SIGKILL
    gone = locks.this_process() | {"process_started": "1 ticks"}
    write_json(run.directory / "lock" / ".new-0123" / "owner.json", gone)
    assert len(os.listdir(run.directory / "lock")) == 2
    with store.lock(run):
        assert [name for name in os.listdir(run.directory / "lock") if name.startswith(".")] == []


def test_silence_is_seen_between_two_looks_and_never_at_the_first(own: TinyStudy) -> None:
    run = open_run(own.runs, "tiny-encoder")
    held_elsewhere(run)
    assert locks.unasked_holder(run.directory) is not None
    assert locks.silent_holder(run.directory) is None
    time.sleep(0.2)
    holder = locks.silent_holder(run.directory)
    assert holder is not None
    assert holder["host"] == "node-17"
    beats = max((run.directory / "lock").glob("[0-9]*")) / "heartbeat"
    beats.write_bytes(b"1".rjust(20))
    assert locks.silent_holder(run.directory) is None
    with store.lock(run, take_over=True):
        assert locks.silent_holder(run.directory) is None


def test_the_page_offers_the_command_that_goes_on(own: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setenv("DICESCOPE_RUNS", str(own.runs))
    monkeypatch.setattr("pages._take_over.start_once", lambda runs, argv: started.append(list(argv)))
    run = update_run(open_run(own.runs, "tiny-encoder"), status="running")
    (run.directory / "encoder").rename(run.directory / ".encoder")
    held_elsewhere(run)
    try:
        for page in ("pages/overview.py", "pages/training.py"):
            app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
            app.switch_page(page).run()
            time.sleep(0.3)
            app.run()
            assert not app.exception
            button = next(b for b in app.button if b.label == "Take over")
            button.click().run()
            argv = started.pop()
            assert argv == take_over_argv(own.runs, run)
            assert argv[0] == "pretrain"
            assert argv[-1] == "--take-over"
            assert re.search(r"process 1 on node-17", " ".join(t.value for t in app.text))
    finally:
        (run.directory / ".encoder").rename(run.directory / "encoder")
        update_run(open_run(own.runs, "tiny-encoder"), status="finished")


def test_a_resumed_command_does_not_take_over_again(own: TinyStudy) -> None:
    run = open_run(own.runs, "tiny")
    assert take_over_argv(own.runs, run) is None
    (run.directory / "evaluation").rename(run.directory / ".evaluation")
    try:
        argv = take_over_argv(own.runs, run)
        assert argv is not None
        assert (argv[0], argv[-1]) == ("evaluate", "--take-over")
    finally:
        (run.directory / ".evaluation").rename(run.directory / "evaluation")

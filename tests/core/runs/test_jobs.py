import io
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from core.progress import open_progress
from core.runs import jobs, supervisor
from data.errors import BadInput

PROJECT = Path(__file__).resolve().parents[3]
FAKE_CLI = """
import os, signal, sys, time
from pathlib import Path
verb = sys.argv[1]
print("argv", sys.argv[1:])
if verb == "exit":
    print("the last line")
    sys.exit(int(sys.argv[2]))
if verb == "oom":
    hog = bytearray(60_000_000)
    os.kill(os.getpid(), signal.SIGKILL)
if verb == "wait":
    if "--stubborn" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "--gentle" in sys.argv:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    if "--children" in sys.argv:
        import subprocess
        print("child", subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid)
    print("ready")
    end = time.time() + 60
    while time.time() < end and not Path(sys.argv[2]).exists():
        time.sleep(0.02)
if verb == "run":
    from core.runs import store
    store.create_run(Path(sys.argv[2]), kind="demo", name="x", recipe={}, run_id="from-a-job")
"""


@pytest.fixture
def runs(tmp_path, monkeypatch):
    cli = tmp_path / "cli.py"
    cli.write_text(FAKE_CLI)
    monkeypatch.setattr(jobs, "CLI", cli)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    runs = tmp_path / "runs"
    yield runs
    for job in jobs.list_jobs(runs):
        jobs.stop_job(jobs.stop_job(job))


def wait_for(runs: Path, job: jobs.Job, until) -> jobs.Job:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        job = jobs.read_job(runs, job.job_id)
        if until(job):
            return job
        time.sleep(0.02)
    raise AssertionError(f"still {job} with log {jobs.log_tail(job)}")


def ended(job: jobs.Job) -> bool:
    return not job.active


def ready(job: jobs.Job) -> bool:
    return "ready" in jobs.log_tail(job)


def test_a_job_runs_its_verb_without_a_shell_and_keeps_its_log(runs):
    hostile = "; touch pwned $(id) `id` \"'\n"
    job = wait_for(runs, jobs.start_job(runs, ["exit", "0", hostile, "--töne"]), ended)
    assert (job.status, job.returncode, job.diagnosis) == ("finished", 0, "Finished.")
    assert repr(["exit", "0", hostile, "--töne"]) in jobs.log_tail(job)
    assert "".join(jobs.follow_job(runs, job.job_id)) == job.log.read_text()
    assert jobs.log_tail(job, 1) == "the last line"


@pytest.mark.parametrize("argv", [[], [""], ["--help"], ["fit", "a\0b"]])
def test_what_is_no_command_is_refused(runs, argv):
    with pytest.raises(BadInput, match="no command"):
        jobs.start_job(runs, argv)


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [(2, "failed", "Bad input"), (3, "failed", "memory or permission"), (4, "failed", "manifest"),
     (5, "stopped", "resumes"), (6, "failed", "bug of this program"), (9, "failed", "code 9")],
)  # fmt: skip
def test_an_exit_code_is_told_in_words(tmp_path, code, status, words):
    directory = tmp_path / ".jobs" / "job-1"
    jobs.write_json(directory / "job.json", {"argv": ["fit"], "starter": {"pid": 1}, "sequence": 1})
    jobs.write_json(directory / "returncode.json", {"returncode": code})
    (directory / "log.txt").write_text("first\nNo such layer.\n\n")
    job = jobs.read_job(tmp_path, "job-1")
    assert (job.status, job.returncode) == (status, code)
    assert words in job.diagnosis
    assert status == "stopped" or "No such layer." in job.diagnosis


def test_a_kill_by_hand_is_not_called_a_want_of_memory(runs):
    job = wait_for(runs, jobs.start_job(runs, ["oom"]), ended)
    assert (job.status, job.returncode) == ("killed", -signal.SIGKILL)
    assert "SIGKILL" in job.diagnosis
    assert "by hand" in job.diagnosis
    assert "probably memory" not in job.diagnosis
    assert int(job.diagnosis.split("peak RSS ")[1].split(" MB")[0]) >= 60


@pytest.mark.parametrize(
    ("kills", "peak_mb", "memory"), [(1, 60.0, True), (0, 1e9, False), (None, 1e9, True), (None, 60.0, False)]
)
def test_a_job_killed_by_the_system_is_told_with_its_memory(runs, kills, peak_mb, memory):
    directory = runs / ".jobs" / "job-1"
    jobs.write_json(directory / "job.json", {"argv": ["fit"], "starter": {"pid": 1}, "sequence": 1})
    told = {"returncode": -9, "peak_mb": peak_mb, "out_of_memory_kills": kills}
    jobs.write_json(directory / "returncode.json", told)
    job = jobs.read_job(runs, "job-1")
    assert job.status == "killed"
    assert ("probably memory: peak RSS" in job.diagnosis) == memory
    assert f"peak RSS {peak_mb:.0f} MB" in job.diagnosis


def test_the_kernel_counts_of_kills_for_memory_are_read(tmp_path, monkeypatch):
    count = supervisor._out_of_memory_kills()
    assert count is None or count >= 0
    (tmp_path / "memory.events").write_text("low 0\noom 2\noom_kill 3\n")
    monkeypatch.setattr(supervisor, "group_files", lambda *names: [tmp_path / "memory.events", tmp_path / "missing"])
    assert supervisor._out_of_memory_kills() == (count or 0) + 3


def test_a_job_ends_on_a_system_that_cannot_wait_without_taking(runs, tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import os\nif hasattr(os, 'waitid'): del os.waitid\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{PROJECT}")
    job = wait_for(runs, jobs.start_job(runs, ["exit", "3"]), ended)
    assert (job.status, job.returncode) == ("failed", 3)
    job = wait_for(runs, jobs.start_job(runs, ["wait", str(tmp_path / "no"), "--children"]), ready)
    child = int(jobs.log_tail(job).split("child ")[1].split()[0])
    os.kill(job.pid, signal.SIGKILL)
    assert wait_for(runs, job, ended).returncode == -signal.SIGKILL
    assert jobs.process_started(child) is None


RECORDS = ("job.json", "child.json", "supervisor.json", "returncode.json", "run.json", "stop.json")
DAMAGE = [
    b"", b"{", b"[]", b"null", b"3", b'"text"', b"\xff\xfe\x00", b"[" * 100_000, b"{}", b'{"pid": "x", "sequence": []}',
    b'{"argv": 3, "starter": 5}', b'{"argv": [1, null], "sequence": 1e400}', b'{"argv": ["fit"], "sequence": "many"}',
    b'{"pid": -1, "process_started": null}', b'{"pid": true, "process_started": {}}', b'{"pid": 1e99, "host": 3}',
    b'{"returncode": null}', b'{"returncode": "0"}', b'{"returncode": -9, "peak_mb": "much"}', b'{"run_id": {"a": 1}}',
    b'{"returncode": -99}', b'{"argv": ["fit"], "starter": {"pid": null}}', b'{"returncode": 1' + b"0" * 5000 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("record", RECORDS)
def test_no_damage_to_a_record_of_a_job_is_more_than_a_sentence(runs, record):
    here = jobs.this_process() | {"process_started": "12 ticks"}
    for number, damage in enumerate(DAMAGE):
        directory = runs / ".jobs" / f"job-{number}"
        jobs.write_json(directory / "job.json", {"argv": ["fit"], "starter": here, "sequence": number})
        jobs.write_json(directory / "child.json", here)
        (directory / record).write_bytes(damage)
    (runs / ".jobs" / "job-empty").mkdir()
    (runs / ".jobs" / "job-file").write_text("")
    found = jobs.list_jobs(runs)
    assert len(found) == len(DAMAGE) + 2
    for job in found:
        assert not job.active
        assert job.diagnosis.endswith((".", "(the log is gone)"))
        assert jobs.stop_job(job).status == job.status
        assert isinstance(jobs.log_tail(job), str)


def test_what_a_killed_start_left_is_cleared_at_the_next(runs):
    code = "import sys, pathlib; from core.runs import jobs; jobs.start_job(pathlib.Path(sys.argv[1]), ['exit', '0'])"
    killed = subprocess.run(
        [sys.executable, "-c", code, str(runs)], env=os.environ | {"DICESCOPE_FAULT": "file.before_rename:1:kill"}
    )
    assert killed.returncode == -signal.SIGKILL
    assert [p.name for p in (runs / ".jobs").iterdir() if p.name.startswith(".tmp-")] != []
    wait_for(runs, jobs.start_job(runs, ["exit", "0"]), ended)
    assert [p.name for p in (runs / ".jobs").iterdir() if p.name.startswith(".tmp-")] == []


def test_a_job_outlives_the_server_that_started_it(runs, tmp_path):
    code = (
        "import sys, os, signal; from pathlib import Path; from core.runs import jobs; jobs.CLI = Path(sys.argv[2])\n"
        "print(jobs.start_job(Path(sys.argv[1]), ['wait', sys.argv[3]]).job_id, flush=True)\n"
        "os.killpg(os.getpgrp(), signal.SIGKILL)"
    )
    stop = tmp_path / "stop"
    server = subprocess.Popen(
        [sys.executable, "-c", code, str(runs), str(jobs.CLI), str(stop)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    job_id = server.communicate(timeout=20)[0].decode().strip()
    assert server.returncode == -signal.SIGKILL
    job = wait_for(runs, jobs.read_job(runs, job_id), ready)
    assert job.status == "running"
    assert os.getpgid(job.pid) == job.pid
    assert psutil.Process(job.pid).nice() >= min(19, psutil.Process().nice() + supervisor.NICENESS)
    stop.touch()
    assert wait_for(runs, job, ended).status == "finished"


def test_stopping_ends_the_job_and_its_children_but_not_us(runs, tmp_path):
    job = wait_for(runs, jobs.start_job(runs, ["wait", str(tmp_path / "no"), "--children"]), ready)
    child = int(jobs.log_tail(job).split("child ")[1].split()[0])
    jobs.stop_job(job)
    job = wait_for(runs, job, ended)
    assert (job.status, job.returncode) == ("stopped", -signal.SIGTERM)
    assert jobs.process_started(child) is None
    assert jobs.stop_job(job) == job


def test_a_job_that_ends_itself_when_asked_can_be_resumed(runs, tmp_path):
    job = wait_for(runs, jobs.start_job(runs, ["wait", str(tmp_path / "no"), "--gentle"]), ready)
    jobs.stop_job(job)
    job = wait_for(runs, job, ended)
    assert (job.status, job.returncode) == ("stopped", 5)


def test_a_job_that_does_not_listen_is_killed_at_the_second_request(runs, tmp_path):
    job = wait_for(runs, jobs.start_job(runs, ["wait", str(tmp_path / "no"), "--stubborn"]), ready)
    jobs.stop_job(job)
    time.sleep(0.2)
    assert jobs.read_job(runs, job.job_id).status == "running"
    jobs.stop_job(job)
    job = wait_for(runs, job, ended)
    assert (job.status, job.returncode) == ("stopped", -signal.SIGKILL)


def test_a_process_that_only_has_the_same_number_is_never_signalled(runs, tmp_path):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], start_new_session=True)
    directory = runs / ".jobs" / "job-old"
    here = jobs.this_process()
    jobs.write_json(directory / "job.json", {"argv": ["fit"], "starter": here, "sequence": 1})
    jobs.write_json(directory / "supervisor.json", here)
    jobs.write_json(directory / "child.json", here | {"pid": bystander.pid, "process_started": "12 ticks"})
    jobs.stop_job(jobs.stop_job(jobs.read_job(runs, "job-old")))
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_a_job_whose_machine_restarted_is_told_as_killed(runs):
    directory = runs / ".jobs" / "job-old"
    gone = jobs.this_process() | {"boot": "before"}
    jobs.write_json(directory / "job.json", {"argv": ["fit"], "starter": gone, "sequence": 1})
    assert jobs.read_job(runs, "job-old").status == "failed"
    jobs.write_json(directory / "child.json", gone)
    job = jobs.read_job(runs, "job-old")
    assert job.status == "killed"
    assert "restarted" in job.diagnosis


def test_clicks_with_one_token_start_one_job(runs):
    with ThreadPoolExecutor(4) as pool:
        clicked = list(pool.map(lambda _: jobs.start_job(runs, ["exit", "0"], token="click"), range(4)))
    assert len({job.job_id for job in clicked}) == 1
    job = wait_for(runs, clicked[0], ended)
    assert job.log.read_text().count("argv") == 1
    other = jobs.start_job(runs, ["exit", "0"], token="another click")
    wait_for(runs, other, ended)
    assert [listed.job_id for listed in jobs.list_jobs(runs)] == [other.job_id, job.job_id]


def test_a_damaged_record_hides_no_other_job(runs):
    jobs.write_json(runs / ".jobs" / "job-good" / "returncode.json", {"returncode": 0})
    jobs.write_json(runs / ".jobs" / "job-good" / "job.json", {"argv": ["fit"], "sequence": 1})
    (runs / ".jobs" / "job-bad").mkdir()
    (runs / ".jobs" / "job-bad" / "job.json").write_text("{")
    assert {job.job_id: job.status for job in jobs.list_jobs(runs)} == {"job-good": "finished", "job-bad": "failed"}
    for job_id in ("../..", "", "job-none", "/etc"):
        with pytest.raises(BadInput, match="No job"):
            jobs.read_job(runs, job_id)


def test_a_job_knows_the_run_it_works_on(runs):
    job = wait_for(runs, jobs.start_job(runs, ["run", str(runs)]), ended)
    assert (job.status, job.run_id) == ("finished", "from-a-job"), jobs.log_tail(job)


def test_progress_off_a_terminal_is_a_line_now_and_then(monkeypatch):
    clock = iter(range(0, 1000))
    monkeypatch.setattr("core.progress.time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    with open_progress(False, stream).task("Preparing scans", 10) as advance:
        for number in range(10):
            advance(1, f"sub-{number:02d}")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "Preparing scans: 10 to do"
    assert lines[1] == "Preparing scans: 3 of 10 (30 %), about 7 s left: sub-02"
    assert lines[-1] == "Preparing scans: 10 done in 11 s"
    assert len(lines) == 5


def test_progress_keeps_standard_output_free(capsys):
    with open_progress().task("Fitting") as advance:
        advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert "Fitting: 1 done" in err


def test_progress_on_a_terminal_draws_bars_even_nested_and_with_markup_in_names():
    stream = io.StringIO()
    progress = open_progress(True, stream)
    with progress.task("Outer [bold]", 2) as outer, progress.task("Inner", 1) as inner:
        inner(1, "[/red] sub-01")
        outer()
    with progress.task("Again", 1) as again:
        again()
    assert all(word in stream.getvalue() for word in ("Outer [bold]", "Inner", "[/red] sub-01", "Again"))

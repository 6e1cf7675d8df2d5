import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from core.runs import journal, listing, run_record, stages, store
from core.runs.evaluated import read_metrics
from core.runs.lock import hold_lock, this_process
from data.errors import BadInput, EnvironmentProblem, IntegrityError, Interrupted
from data.files import verify_directory
from data.json_files import (
    compact_json,
    content_digest,
    digest_with_known,
    read_json,
    sealed,
    without_seal,
    write_json,
    write_sealed_json,
)

PROJECT = Path(__file__).resolve().parents[3]
RECIPE = {"method": "padim", "shrinkage": 0.1, "layers": ["layer1", "layer2"]}


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def run(runs):
    return store.create_run(runs, kind="detector", name="PaDiM", recipe=RECIPE, seed=3)


def python(code: str, *arguments: str, **popen) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(PROJECT)} | popen.pop("env", {})
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, stdout=subprocess.PIPE, **popen)


def test_a_run_says_what_was_asked_and_with_which_versions(run):
    record = read_json(run.directory / "run.json")
    assert run.run_id.split("_")[1:] == ["padim", store.fingerprint(RECIPE)[:4]]
    assert (record["recipe"], record["seed"], record["status"], record["error"]) == (RECIPE, 3, "running", None)
    assert record["versions"]["numpy"] == np.__version__
    assert set(record) >= {"schema", "created", "sequence", "cohort", "split", "git_commit", "parents", "stages"}


def test_equal_recipes_on_one_day_get_different_ids(runs):
    ids = {store.create_run(runs, kind="detector", name="x", recipe=RECIPE).run_id for _ in range(4)}
    assert len(ids) == 4


@pytest.mark.parametrize("name", ["../../etc", "Größe: <b>1</b>", "", "a\0b", "x" * 300, ".hidden", "数"])
def test_any_name_gives_a_folder_inside_the_runs_directory(runs, name):
    run = store.create_run(runs, kind="demo", name=name, recipe={})
    assert run.directory.resolve().parent == runs.resolve()
    assert listing.open_run(runs, run.run_id).name == name


@pytest.mark.parametrize("run_id", ["../x", "a/b", "", ".x", "a b", "a\0", "x" * 101, "-x"])
def test_an_id_that_could_leave_the_folder_is_refused(runs, run_id):
    with pytest.raises(BadInput, match="cannot name a run"):
        store.create_run(runs, kind="demo", name="x", recipe={}, run_id=run_id)


def test_a_chosen_id_is_given_once(runs):
    store.create_run(runs, kind="demo", name="x", recipe={}, run_id="mine")
    with pytest.raises(BadInput, match="already"):
        store.create_run(runs, kind="demo", name="x", recipe={}, run_id="mine")
    assert [p.name for p in runs.iterdir() if p.name.startswith(".tmp")] == []


def _create(runs: Path, barrier, answers) -> None:
    barrier.wait()
    for _ in range(10):
        created = store.create_run(runs, kind="demo", name="race", recipe={})
        answers.put((created.run_id, created.sequence))


def test_runs_created_at_once_by_two_processes_share_neither_id_nor_number(runs):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_create, args=(runs, barrier, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    got = [answers.get(timeout=20) for _ in range(20)]
    for process in processes:
        process.join()
    assert len({run_id for run_id, _ in got}) == 20
    assert sorted(number for _, number in got) == list(range(1, 21))


def test_a_folder_that_cannot_be_written_is_refused_before_computing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match=r"Cannot (write|read)"):
        store.create_run(tmp_path / "file", kind="demo", name="x", recipe={})


def test_updating_merges_stages_and_leaves_the_rest(run):
    store.update_run(run, stages={"encoder": {"seconds": 1.0}})
    store.update_run(run, status="failed", error="No space.")
    again = store.update_run(run, stages={"detector": {"seconds": 2.0}})
    assert again.record["stages"] == {"encoder": {"seconds": 1.0}, "detector": {"seconds": 2.0}}
    assert (again.status, again.record["error"], again.record["recipe"]) == ("failed", "No space.", RECIPE)
    assert store.update_run(run, status="running").record["error"] is None
    with pytest.raises(BadInput, match="There are: running"):
        store.update_run(run, status="done")


def test_a_kill_while_updating_keeps_the_old_record(run):
    code = (
        "import sys; from core.runs import listing, store; from pathlib import Path; p = Path(sys.argv[1]);"
        "store.update_run(listing.open_run(p.parent, p.name), status='finished')"
    )
    process = python(code, str(run.directory), env={"DICESCOPE_FAULT": "file.before_rename:1:kill"})
    assert process.wait(20) == -signal.SIGKILL
    assert listing.open_run(run.directory.parent, run.run_id).status == "running"
    with store.lock(run):
        pass
    assert sorted(p.name for p in run.directory.iterdir()) == ["lock", "run.json"]


# Opening


def test_latest_follows_the_order_of_creation_whatever_the_clock_says(runs):
    made = [store.create_run(runs, kind=kind, name="x", recipe={}) for kind in ("encoder", "detector", "encoder")]
    for age, run in enumerate(made):
        os.utime(run.directory / "run.json", (4e9 - age * 1e9, 4e9 - age * 1e9))
        write_sealed_json(
            run.directory / "run.json", run.record | {"created": f"{2100 - 60 * age}-01-01T00:00:00+00:00"}
        )
    assert listing.open_run(runs, "latest").run_id == made[2].run_id
    assert listing.open_run(runs, "latest", kind="detector").run_id == made[1].run_id
    assert [r.sequence for r in listing.list_runs(runs)[0]] == [3, 2, 1]


def test_a_run_opens_by_id_by_path_and_by_a_unique_beginning(runs, run, monkeypatch):
    monkeypatch.chdir(runs.parent)
    for which in (run.run_id, run.run_id[:-2], str(run.directory), f"runs/{run.run_id}", f"./runs/{run.run_id}/"):
        assert listing.open_run(runs, which).run_id == run.run_id
    other = store.create_run(runs, kind="detector", name="PaDiM", recipe=RECIPE)
    assert listing.open_run(runs, run.run_id).run_id == run.run_id
    with pytest.raises(BadInput, match="fits several") as caught:
        listing.open_run(runs, run.run_id[:-2])
    assert other.run_id in str(caught.value)


def test_no_name_reaches_a_folder_outside(runs, run, tmp_path, monkeypatch):
    outside = store.create_run(tmp_path / "elsewhere", kind="demo", name="x", recipe={})
    (runs / "link").symlink_to(outside.directory)
    monkeypatch.chdir(runs.parent)
    for which in (
        f"../elsewhere/{outside.run_id}", str(outside.directory), "..", ".", "/", "", "\0", "a/\0", "link", "runs/link",
        f"runs/../elsewhere/{outside.run_id}", "%2e%2e", f"{run.run_id}/../../elsewhere/{outside.run_id}", ".sequence",
    ):  # fmt: skip
        with pytest.raises(BadInput):
            listing.open_run(runs, which)


def test_a_path_to_a_run_of_the_same_name_elsewhere_does_not_open_ours(runs, tmp_path):
    for root in (runs, tmp_path / "elsewhere"):
        store.create_run(root, kind="demo", name="x", recipe={}, run_id="same")
    assert listing.open_run(runs, str(runs / "same")).run_id == "same"
    with pytest.raises(BadInput, match="--runs"):
        listing.open_run(runs, str(tmp_path / "elsewhere" / "same"))


def test_an_empty_folder_says_how_to_make_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"No runs in \./runs yet\. Make one: python cli\.py demo"):
        listing.open_run(Path("runs"), "latest")
    assert listing.list_runs(Path("runs")) == ([], [])


def test_an_unknown_run_or_kind_lists_what_there_is(runs, run):
    with pytest.raises(BadInput, match=run.run_id):
        listing.open_run(runs, "2001")
    with pytest.raises(BadInput, match="It has: detector"):
        listing.open_run(runs, "latest", kind="encoder")
    with pytest.raises(BadInput, match=r"'encoder' is needed.*has no run of kind 'encoder' yet"):
        listing.open_run(runs, run.run_id, kind="encoder")


def test_a_run_of_another_kind_is_refused_with_the_newest_five_that_fit(runs):
    encoder = store.create_run(runs, kind="encoder", name="e", recipe={})
    made = [store.create_run(runs, kind="detector", name=f"d{n}", recipe={}).run_id for n in range(6)]
    with pytest.raises(BadInput) as refused:
        listing.open_run(runs, encoder.run_id, kind="detector")
    assert str(refused.value).endswith(f"There are: {', '.join(made[:0:-1])} and more.")


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"run_id": 3}', b"[" * 100_000, b'{"schema": "1"}']
)
def test_a_damaged_record_is_named_and_hides_no_other(runs, run, damage):
    other = store.create_run(runs, kind="demo", name="good", recipe={})
    (run.directory / "run.json").write_bytes(damage)
    found, problems = listing.list_runs(runs)
    assert [r.run_id for r in found] == [other.run_id]
    assert len(problems) == 1
    assert run.run_id in problems[0]
    assert listing.open_run(runs, "latest").run_id == other.run_id
    with pytest.raises(IntegrityError, match=r"run\.json"):
        listing.open_run(runs, run.run_id)


def test_a_record_of_a_newer_version_is_refused(runs, run):
    write_json(run.directory / "run.json", run.record | {"schema": 99})
    with pytest.raises(BadInput, match="newer version"):
        listing.open_run(runs, run.run_id)


def test_a_thousand_runs_are_listed_quickly(runs, run):
    text = (run.directory / "run.json").read_text()
    for number in range(1000):
        (runs / f"r{number:04d}").mkdir()
        (runs / f"r{number:04d}" / "run.json").write_text(text)
    began = time.perf_counter()
    assert len(listing.list_runs(runs)[0]) == 1001
    assert time.perf_counter() - began < 1.5


def test_a_run_deleted_while_it_is_shown_gives_a_sentence(run):
    run.directory.rename(run.directory.with_name("renamed"))
    assert store.read_events(run) == []
    assert not stages.stage_done(run, "detector")
    for use in (lambda: store.update_run(run, status="failed"), lambda: store.lock(run).__enter__()):
        with pytest.raises(BadInput, match="deleted or renamed"):
            use()
    with pytest.raises(BadInput, match="deleted or renamed"), stages.stage(run, "detector"):
        pass
    assert not run.directory.exists()


# Stages


def test_a_stage_is_committed_with_its_seconds_and_memory(run):
    assert not stages.stage_done(run, "scores/sub-01")
    with stages.stage(run, "scores/sub-01") as scratch:
        np.save(scratch / "map.npy", np.zeros(3))
        time.sleep(0.02)
    assert stages.stage_done(run, "scores/sub-01", verify=True)
    verify_directory(run.directory / "scores" / "sub-01")
    figures = read_json(run.directory / "run.json")["stages"]["scores/sub-01"]
    assert figures["seconds"] >= 0.02
    assert 5 < figures["peak_mb"] < 20_000
    (run.directory / "scores" / "sub-01" / "map.npy").write_bytes(b"x")
    assert stages.stage_done(run, "scores/sub-01")
    assert not stages.stage_done(run, "scores/sub-01", verify=True)


def test_a_stage_that_fails_leaves_nothing(run):
    with pytest.raises(ZeroDivisionError), stages.stage(run, "detector"):
        _ = 1 / 0
    assert not stages.stage_done(run, "detector")
    assert read_json(run.directory / "run.json")["stages"] == {}


@pytest.mark.parametrize("name", ["../x", "/etc", "", "a/../../x", "a\0", ".tmp-x", "."])
def test_a_stage_cannot_leave_its_run(run, name):
    with pytest.raises(BadInput, match="cannot name a stage"):
        stages.stage_done(run, name)


def test_a_stage_does_not_follow_a_link_out_of_the_run(run, tmp_path):
    (run.directory / "scores").symlink_to(tmp_path)
    with pytest.raises(BadInput, match="link"):
        stages.stage_done(run, "scores/x")


# Journal


def test_a_journal_is_read_from_where_one_left_off(run):
    assert store.read_events(run) == []
    for step in range(3):
        assert store.append_event(run, "step", {"step": step, "loss": np.float32(0.5)})
    first = store.read_events(run)
    assert [event["step"] for event in first] == [0, 1, 2]
    store.append_event(run, "step", {"step": 3, "loss": float("nan")})
    new = store.read_events(run, after=first[-1]["offset"])
    assert [(event["step"], event["loss"]) for event in new] == [(3, None)]
    assert store.read_events(run, after=new[-1]["offset"]) == []
    assert store.read_events(run, after=10**9) == []


def test_a_journal_torn_at_any_byte_of_its_last_line_keeps_the_others_and_goes_on(run):
    for step in range(3):
        store.append_event(run, "step", {"step": step, "note": "é\n"})
    path = run.directory / journal.JOURNAL
    whole = path.read_bytes()
    begin = whole.rstrip(b"\n").rindex(b"\n") + 1
    for cut in range(begin, len(whole)):
        path.write_bytes(whole[:cut])
        assert [event["step"] for event in store.read_events(run)] == [0, 1]
        store.append_event(run, "step", {"step": 9})
        after = store.read_events(run)
        assert [event["step"] for event in after if event["kind"] == "step"] in ([0, 1, 9], [0, 1, 2, 9])
        assert len([event for event in after if event["kind"] == "note"]) == (
            0 if cut in (begin, len(whole) - 1) else 1
        )


@pytest.mark.parametrize("garbage", [b"\xff\x00\xfe", b"[1]", b"{", b"NaN", b"[" * 50_000, b"{}\r{"])
def test_garbage_in_a_journal_becomes_a_note(run, garbage):
    store.append_event(run, "step", {"step": 1})
    with (run.directory / journal.JOURNAL).open("ab") as file:
        file.write(garbage + b"\n\n")
    store.append_event(run, "step", {"step": 2})
    assert [event["kind"] for event in store.read_events(run)] == ["step", "note", "step"]


def test_a_full_disk_stops_the_journal_but_not_the_work_and_the_gap_is_marked(run, monkeypatch, capsys):
    store.append_event(run, "step", {"step": 0})
    real = os.write

    def refuse(descriptor, line):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal.os, "write", refuse)
    assert [store.append_event(run, "step", {"step": step}) for step in (1, 2, 3)] == [False] * 3
    monkeypatch.setattr(journal.os, "write", real)
    assert store.append_event(run, "step", {"step": 4})
    assert capsys.readouterr().err.count("No space left") == 1
    events = store.read_events(run)
    assert [event["kind"] for event in events] == ["step", "note", "step"]
    assert events[1]["message"].startswith("3 event(s)")


# Fingerprints and resuming


def test_a_fingerprint_depends_on_content_only():
    @dataclass(frozen=True)
    class Recipe:
        b: tuple[int, ...]
        a: float

    assert store.fingerprint(Recipe((1, 2), 0.5)) == store.fingerprint({"a": 0.5, "b": [1, 2]})
    assert store.fingerprint({"a": 0.5, "b": np.array([1, 2])}) == store.fingerprint({"b": (1, 2), "a": 0.5})
    assert store.fingerprint({"a": 1}) != store.fingerprint({"a": 2})
    assert store.fingerprint({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    for bad in (float("nan"), object()):
        with pytest.raises(BadInput):
            store.fingerprint(bad)


def test_resuming_with_another_recipe_is_refused_with_the_difference(run):
    store.check_same(run, {"recipe": RECIPE, "seed": 3})
    store.check_same(run, {"settings": {"workers": 2}}, may_change=["settings.workers"])
    with pytest.raises(BadInput, match=r"recipe\.shrinkage: 0\.1 -> 0\.2"):
        store.check_same(run, {"recipe": RECIPE | {"shrinkage": 0.2}})


# The lock

HOLD = """
import sys, time
from pathlib import Path
from core.runs.lock import hold_lock, this_process
with hold_lock(Path(sys.argv[1]), heartbeat_seconds=0.1):
    print("held", flush=True)
    time.sleep(60)
"""


def _race(directory: Path, barrier, answers) -> None:
    for _ in range(100):
        barrier.wait()
        try:
            with hold_lock(directory):
                answers.put("writes")
                barrier.wait()
        except BadInput as error:
            answers.put(str(error))
            barrier.wait()


def test_of_two_processes_exactly_one_writes(run):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_race, args=(run.directory, barrier, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    got = [answers.get(timeout=30) for _ in range(200)]
    for process in processes:
        process.join()
    assert got.count("writes") == 100
    refused = [text for text in got if text != "writes"]
    assert all("is being written: running since" in text and "process" in text for text in refused)


def test_the_lock_of_a_living_process_is_refused_even_with_take_over(run):
    with store.lock(run, heartbeat_seconds=0.1):
        with pytest.raises(BadInput, match=rf"running since .* process {os.getpid()} on .*Attach.*start a new run"):
            store.lock(run).__enter__()
        with pytest.raises(BadInput, match="signs of life"):
            store.lock(run, take_over=True).__enter__()
    with store.lock(run):
        pass


def test_the_lock_of_a_killed_process_is_taken_over_by_one_of_many(run):
    for _ in range(5):
        holder = python(HOLD, str(run.directory))
        assert holder.stdout.readline() == b"held\n"
        assert listing.current_status(run) == "running"
        holder.kill()
        holder.wait()
        assert listing.current_status(run) == "interrupted"
        context = multiprocessing.get_context("fork")
        barrier, answers = context.Barrier(3), context.Queue()
        takers = [context.Process(target=_take_once, args=(run.directory, barrier, answers)) for _ in range(3)]
        for taker in takers:
            taker.start()
        got = [answers.get(timeout=20) for _ in takers]
        for taker in takers:
            taker.join()
        assert sorted(got) == [False, False, True]


def _take_once(directory: Path, barrier, answers) -> None:
    barrier.wait()
    try:
        with hold_lock(directory):
            answers.put(True)
            barrier.wait()
    except BadInput:
        answers.put(False)
        barrier.wait()


def test_a_living_process_that_only_has_the_number_of_the_dead_holder_does_not_keep_the_lock(run):
    owner = this_process() | {"process_started": "12 ticks", "since": "2026-11-20T10:00:00+00:00"}
    write_json(run.directory / "lock" / "000001" / "owner.json", owner)
    assert listing.current_status(run) == "interrupted"
    with store.lock(run) as held:
        assert held.generation == 2


def test_another_machine_is_believed_until_take_over_finds_it_silent(run):
    generation = run.directory / "lock" / "000004"
    owner = {"pid": 1, "process_started": "1 ticks", "host": "node-17", "boot": "b", "pid_namespace": "p"}
    write_json(generation / "owner.json", owner | {"since": "2026-11-20T10:00:00+00:00", "heartbeat_seconds": 0.05})
    with pytest.raises(BadInput, match=r"process 1 on node-17.*--take-over"):
        store.lock(run).__enter__()
    with store.lock(run, take_over=True) as held:
        assert held.generation == 5


def test_a_writer_that_was_taken_over_commits_nothing_more(run):
    with store.lock(run, heartbeat_seconds=0.05) as held, stages.stage(held, "encoder") as scratch:
        (scratch / "w").write_text("early")
    code = HOLD.replace("time.sleep(60)", "sys.stdin.readline()").replace(
        "with hold_lock(Path(sys.argv[1]), heartbeat_seconds=0.1):",
        "from core.runs import listing, stages, store; p = Path(sys.argv[1])\n"
        "with store.lock(listing.open_run(p.parent, p.name), heartbeat_seconds=0.1) as r, stages.stage(r, 'detector'):",
    )
    zombie = python(code, str(run.directory), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert zombie.stdout.readline() == b"held\n"
    os.kill(zombie.pid, signal.SIGSTOP)
    with store.lock(run, take_over=True) as held:
        os.kill(zombie.pid, signal.SIGCONT)
        _, complaint = zombie.communicate(b"\n", timeout=20)
        assert b"Interrupted: Another process took over" in complaint
        assert not stages.stage_done(held, "detector")
        with stages.stage(held, "detector") as scratch:
            (scratch / "w").write_text("mine")
    assert (run.directory / "detector" / "w").read_text() == "mine"


def test_an_update_after_losing_the_lock_is_refused(run):
    with store.lock(run) as held:
        (run.directory / "lock" / "000002").mkdir()
        with pytest.raises(Interrupted, match="took over"):
            store.update_run(held, status="finished")


def test_taking_the_lock_repairs_what_a_kill_left_between_renames(run):
    with stages.stage(run, "scores/sub-01") as scratch:
        (scratch / "w").write_text("old")
    code = (
        "import sys; from core.runs import listing, stages, store; from pathlib import Path; p = Path(sys.argv[1])\n"
        "with stages.stage(listing.open_run(p.parent, p.name), 'scores/sub-01') as s: (s / 'w').write_text('new')"
    )
    process = python(code, str(run.directory), env={"DICESCOPE_FAULT": "commit.between_renames:1:kill"})
    assert process.wait(20) == -signal.SIGKILL
    assert not stages.stage_done(run, "scores/sub-01")
    with store.lock(run) as held:
        assert stages.stage_done(held, "scores/sub-01", verify=True)
    assert [p.name for p in (run.directory / "scores").iterdir()] == ["sub-01"]


def test_a_run_without_a_lock_keeps_its_written_status(run):
    assert listing.current_status(run) == "running"
    assert listing.current_status(store.update_run(run, status="finished")) == "finished"


def test_a_printed_command_finds_the_run_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for runs, more in (
        (Path("runs"), ""),
        (Path("my runs"), " --runs 'my runs'"),
        (tmp_path / "x", f" --runs {tmp_path}/x"),
    ):
        run = store.create_run(runs, kind="detector", name="one", recipe={"kind": "A"}, run_id="one")
        assert run.as_argument == f"one{more}"
        with pytest.raises(BadInput, match=re.escape(f"python cli.py evaluate one{more}")):
            read_metrics(run)


def test_a_record_is_judged_by_its_pieces_as_it_would_be_as_a_whole(tmp_path: Path) -> None:
    """The seal and the identity are formed from parts, and what runs share is judged once: nothing else may differ."""
    value = {"b": [1.5e-7, None, "é\u2028"], "a": {"z": {}, 'q"': True}, "ä": "x"}
    for known in ("", "a", "b", "ä", "ab", "bä", "aä", "abä"):
        told = {key: compact_json(value[key]) for key in known}
        assert digest_with_known(value, told) == content_digest(value)
    assert digest_with_known({}, {}) == content_digest({})
    one = {"subject_id": "a", "key": "k", "role": "train", "healthy": True}
    cohort = {"fingerprint": content_digest({"a": "k"}), "subjects": [one], "notes": ["n"]}
    for number, name in enumerate(("first", "second")):
        run = store.create_run(
            tmp_path, kind="detector", name=name, recipe={"n": number}, cohort=cohort, split={"train": ["a"]}
        )
        assert run.record["identity"] == run_record.identity_of_record(run_record.read_run(run.directory).record)
    path = run.directory / "run.json"
    sound = json.loads(path.read_text())
    for changed in ({"split": {"test": ["a"]}}, {"cohort": {**cohort, "notes": 1}}, {"seed": 7}):
        write_json(path, sealed({**without_seal(sound), **changed}))
        with pytest.raises(IntegrityError):
            run_record.read_run(run.directory)
    write_json(path, sealed({**without_seal(sound), "cohort": {**cohort, "notes": ["other"]}}))
    assert run_record.read_run(run.directory).record["cohort"]["notes"] == ["other"]
    write_json(path, sound)
    assert run_record.read_run(run.directory).name == "second"

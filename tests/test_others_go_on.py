"""One bad subject, map, layer set, what-if or moment stops no other, is named, and is never counted twice."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import cli
from core.diagnosis.diagnose import diagnose
from core.metrics.dice import evaluate
from core.metrics.protocols import thresholds
from core.metrics.subject_scores import SubjectScores
from core.progress import Progress
from core.runs import stages, store
from core.runs.evaluated import looks_at_test, read_metrics
from core.runs.journal import append_line
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.runs.store import read_events
from core.study.evaluation import evaluate_run
from core.study.stored_scores import open_scores
from data import trouble
from data.errors import BadInput, EnvironmentProblem, IntegrityError, together
from data.files import committed_directory
from data.json_files import read_json, write_json
from data.nifti import read_labels, write_nifti
from data.planting import LesionShape, plant_cohort, read_records
from data.table import read_table
from data.volume import Mask
from tests.data.test_planting import ball
from tests.data.test_planting import cohort as healthy_pair
from tests.planted import Planted, write_scans
from tests.study import TinyStudy

ROOT = Path(__file__).resolve().parent.parent
FAULT = "DICESCOPE_FAULT"


def quiet() -> Progress:
    return Progress(False, io.StringIO())


@pytest.fixture
def own(study: TinyStudy, tmp_path: Path) -> TinyStudy:
    return study.copy(tmp_path / "study")


def prepare(own: TinyStudy, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict, str]:
    """`prepare` from nothing, in two processes: exit code, what it says as JSON, and on standard error."""
    shutil.rmtree(own.runs / ".cache", ignore_errors=True)
    argv = [word for word in own.commands()["prepare"] if word not in ("--workers", "1")]
    capsys.readouterr()
    code = cli.main([*argv, "--workers", "2", "--json", *more])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out.strip() else {}, err


# Processes that die


def test_a_subject_that_kills_its_process_is_set_aside_and_the_others_are_prepared(own, capsys, monkeypatch):
    monkeypatch.setenv(FAULT, "prepare.train02:*:kill")
    code, found, _ = prepare(own, capsys)
    assert code == 0
    assert found["prepared"] == found["of"] - 1
    (aside,) = found["set_aside"]
    assert (aside["subject_id"], aside["code"]) == ("train02", "E-ENDED")
    assert all(word in aside["reason"] for word in ("ended twice", "SIGKILL", "memory", "take it out"))
    # Alone with what is left to do, it still does not take the command with it.
    assert cli.main([*own.commands()["prepare"][:-2], "--workers", "2"]) == 0
    assert "train02 [E-ENDED]" in capsys.readouterr().out


def test_when_every_process_is_ended_the_environment_is_named(own, capsys, monkeypatch):
    monkeypatch.setenv(FAULT, "commit.before_manifest:*:kill")
    code, _, err = prepare(own, capsys)
    assert code == 3
    assert "not enough memory" in err
    monkeypatch.delenv(FAULT)
    assert len(list((own.runs / ".cache" / "prepared").glob(".tmp-*"))) > 0
    code, found, _ = prepare(own, capsys)
    assert (code, found["set_aside"]) == (0, [])
    assert list((own.runs / ".cache" / "prepared").glob(".tmp-*")) == []


def test_what_killed_preparing_left_is_cleared_at_the_next_start(own, capsys):
    cache = own.runs / ".cache" / "prepared"
    entry = next(p for p in cache.iterdir() if p.is_dir())
    code = (
        "import sys, pathlib; from data.files import committed_directory as c; "
        "p = pathlib.Path(sys.argv[1]); s = c(p / 'x'); s.__enter__(); import os; os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(cache)], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert len(list(cache.glob(".tmp-*"))) == 1
    assert cli.main(own.commands()["prepare"]) == 0
    assert list(cache.glob(".tmp-*")) == []
    assert entry.is_dir()


def test_a_planting_that_kills_its_process_leaves_the_other_planted(tmp_path, monkeypatch):
    monkeypatch.setenv(FAULT, "plant.h0:*:kill")
    shapes = [LesionShape("right", ball((38.0, -12.0, 8.0), 14.0))]
    plant_cohort(healthy_pair(tmp_path), shapes, tmp_path / "out", workers=2)
    assert [r.subject_id for r in read_records(tmp_path / "out")] == ["h1"]
    (aside,) = read_json(tmp_path / "out" / "lesions.json")["set_aside"]
    assert (aside["subject_id"], aside["code"]) == ("h0", "E-ENDED")


def test_a_layer_set_that_kills_its_process_is_named_when_the_others_are_done(own, capsys, monkeypatch):
    run = open_run(own.runs, "tiny")
    before = (run.directory / "evaluation" / "manifest.json").read_bytes()
    monkeypatch.setenv(FAULT, "evaluate.input+stage1:*:kill")
    assert cli.main(["evaluate", "tiny", "--runs", str(own.runs), "--workers", "2", "--quantile", "0.9"]) == 3
    err = capsys.readouterr().err
    assert "input+stage1 could not be evaluated, 6 of 7 could" in err
    assert "ended twice" in err
    assert (run.directory / "evaluation" / "manifest.json").read_bytes() == before


# Disks that stumble


def test_a_scan_on_a_file_system_that_stumbles_once_is_read(own, capsys, monkeypatch):
    monkeypatch.setenv(FAULT, "read.train02/flair.nii.gz:1:estale")
    monkeypatch.setattr(trouble, "_PAUSES_SECONDS", (0.0, 0.0))
    code, found, _ = prepare(own, capsys)
    assert (code, found["set_aside"]) == (0, [])


@pytest.mark.parametrize("fault", ["eio", "estale"])
def test_a_scan_that_stays_unreadable_is_set_aside_after_three_tries(own, capsys, monkeypatch, fault):
    monkeypatch.setenv(FAULT, f"read.train02/flair.nii.gz:*:{fault}")
    code, found, _ = prepare(own, capsys)
    assert code == 0
    (aside,) = found["set_aside"]
    assert (aside["subject_id"], aside["code"]) == ("train02", "E-NII-READ")
    assert "tried three times" in aside["reason"]


def test_only_what_may_pass_is_tried_again(monkeypatch):
    monkeypatch.setattr(trouble, "_PAUSES_SECONDS", (0.0, 0.0))
    for number, tries in ((errno.EIO, 3), (errno.ESTALE, 3), (errno.ENOENT, 1), (errno.EACCES, 1), (errno.ENOSPC, 1)):
        seen = []

        def read(number: int = number, seen: list[int] = seen) -> None:
            seen.append(number)
            raise OSError(number, os.strerror(number))

        with pytest.raises(OSError, match=os.strerror(number)):
            trouble.patiently(read)
        assert len(seen) == tries


@pytest.mark.parametrize(
    ("number", "wanted", "never"),
    [
        (errno.ENOSPC, ("more than 7 bytes", "free now: ", "Make room"), ("read-only",)),
        (errno.EDQUOT, ("quota", "more than 7 bytes", "Make room"), ("read-only",)),
        (errno.EROFS, ("read-only", "another directory", "writable"), ("Make room", "bytes")),
        (errno.EACCES, ("may not write", "another directory", "writable"), ("Make room", "bytes")),
        (errno.EPERM, ("may not write",), ("Make room", "bytes")),
        (errno.EIO, ("in trouble", "Repeat"), ("Make room", "read-only")),
        (errno.ESTALE, ("network file system", "Repeat"), ("Make room", "read-only")),
        (errno.ENAMETOOLONG, ("longer than", "shorter"), ("Make room",)),
        (errno.EMFILE, ("Too many files",), ("Make room",)),
        (errno.ENOTDIR, ("whether it is a directory",), ("Make room",)),
    ],
)
def test_a_refusal_is_told_by_its_cause_wherever_something_is_written(tmp_path, monkeypatch, number, wanted, never):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    told = [trouble.remedy(OSError(number, "x"), tmp_path / "not" / "there", "more than 7 bytes")]
    monkeypatch.setattr("data.files.os.fsync", refuse)
    for write in (_commit, _json, _nifti):
        with pytest.raises(EnvironmentProblem) as refused:
            write(tmp_path)
        told.append(str(refused.value))
    for text in told:
        assert all(word.lower() in text.lower() for word in wanted if "bytes" not in word), text
        assert not any(word in text for word in never), text
    assert all(word in told[0] for word in wanted)
    assert list(tmp_path.iterdir()) == []


def _commit(directory: Path) -> None:
    with committed_directory(directory / "x") as scratch:
        (scratch / "w").write_text("w")


def _json(directory: Path) -> None:
    write_json(directory / "x.json", {})


def _nifti(directory: Path) -> None:
    mask = ball((0.0, 0.0, 0.0))
    write_nifti(directory / "x.nii.gz", mask.voxels.astype(np.uint8), mask.grid)


def test_a_refused_lock_is_told_by_its_cause(tmp_path, monkeypatch):
    run = store.create_run(tmp_path, kind="demo", name="x", recipe={})
    for number, word, never in ((errno.ENOSPC, "Make room", "writable"), (errno.EROFS, "writable", "Make room")):
        failure = OSError(number, os.strerror(number))
        with monkeypatch.context() as patched:
            patched.setattr(
                "core.runs.lock.Path.write_bytes", lambda *_, failure=failure: (_ for _ in ()).throw(failure)
            )
            with pytest.raises(EnvironmentProblem) as refused:
                store.lock(run).__enter__()
        assert word in str(refused.value)
        assert never not in str(refused.value)


# Maps and what-ifs


def damage(path: Path) -> None:
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_damaged_map_does_not_keep_the_others_from_being_exported(own, tmp_path, capsys):
    damage(own.runs / "tiny" / "scores" / "test02" / "distances.npy")
    argv = ["score", "tiny", "--runs", str(own.runs), "--export", str(tmp_path / "maps")]
    assert cli.main(argv) == 4
    err = capsys.readouterr().err
    assert "test02: " in err
    assert "damaged" in err
    assert "5 of 6 subjects" in err
    names = {p.name.rsplit("_", 1)[0] for p in (tmp_path / "maps").iterdir()}
    assert names == {"validation01", "validation02", "test01", "test03", "test04"}


def test_a_damaged_scan_does_not_keep_the_others_from_being_scored(own, capsys):
    run = open_run(own.runs, "tiny")
    shutil.rmtree(run.directory / "scores")
    keys = {s["subject_id"]: s["key"] for s in run.record["cohort"]["subjects"]}
    damage(own.runs / ".cache" / "prepared" / keys["test02"] / "voxels.npy")
    assert cli.main(["score", "tiny", "--runs", str(own.runs)]) == 4
    err = capsys.readouterr().err
    assert "test02: " in err
    assert "voxels.npy is damaged" in err
    scored = {p.name for p in (run.directory / "scores").iterdir()}
    assert scored == {i for i in keys if not i.startswith("train")} - {"test02"}
    shutil.rmtree(own.runs / ".cache" / "prepared" / keys["test02"])
    assert cli.main([*own.commands()["prepare"]]) == 0
    assert cli.main(["score", "tiny", "--runs", str(own.runs)]) == 0


def test_several_what_ifs_go_on_after_one_that_fails(own, capsys):
    argv = ["what-if", "tiny", "--runs", str(own.runs)]
    assert cli.main([*argv, "threshold-grid", "no-such", "erode-mask", "--json"]) == 2
    out, err = capsys.readouterr()
    assert [found["name"] for found in json.loads(out)] == ["threshold-grid", "erode-mask"]
    assert "no-such: " in err
    assert "2 of 3 what-ifs are done" in err
    assert cli.main([*argv, "no-such"]) == 2
    assert cli.main([*argv, "threshold-grid", "--json"]) == 0
    assert "stored already" in capsys.readouterr().err


def test_the_gravest_of_several_problems_gives_the_exit_code():
    kinds = {"a": BadInput("one"), "b": IntegrityError("two"), "c": EnvironmentProblem("three")}
    error = together(kinds, "The rest is done.")
    assert type(error) is IntegrityError
    assert str(error).splitlines() == ["a: one", "b: two", "c: three", "The rest is done."]
    assert type(together({"a": kinds["a"], "c": kinds["c"]}, "")) is EnvironmentProblem


# Looks at the test set


def evaluate_killed_at(run: Run, fault: str, *more: str) -> int:
    argv = ["evaluate", run.run_id, "--runs", str(run.directory.parent), "--workers", "1", *more]
    environment = os.environ | {FAULT: fault, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *argv], env=environment, capture_output=True, check=False
    ).returncode


def test_a_look_is_counted_once_however_often_its_process_is_killed(own):
    run = open_run(own.runs, "tiny-intensity")
    looks = looks_at_test(run)
    for moment in ("commit.after_rename:1:kill", "commit.after_rename:1:kill"):
        evaluate_killed_at(run, moment, "--quantile", "0.9")
        assert looks_at_test(run) == looks + 1
    evaluate_run(run, quiet(), quantile=0.9, workers=1)
    assert looks_at_test(run) == looks + 1
    evaluate_run(run, quiet(), quantile=0.9, workers=1)
    assert looks_at_test(run) == looks + 2
    evaluate_run(run, quiet(), quantile=0.8, workers=1)
    assert looks_at_test(run) == looks + 3


def test_a_look_whose_process_was_killed_stays_counted_when_another_replaces_it(own):
    run = open_run(own.runs, "tiny-intensity")
    looks = looks_at_test(run)
    assert evaluate_killed_at(run, "commit.after_rename:1:kill", "--quantile", "0.9") == -signal.SIGKILL
    evaluate_run(run, quiet(), quantile=0.8, workers=1)
    assert looks_at_test(run) == looks + 2


def test_looks_of_earlier_versions_count_one_each(own):
    run = open_run(own.runs, "tiny-intensity")
    (run.directory / "events.jsonl").unlink()
    for _ in range(3):
        append_line(run.directory / "events.jsonl", "evaluated", {"test_subjects": 4})
    assert looks_at_test(run) == 3
    evaluate_run(run, quiet(), quantile=0.9, workers=1)
    assert looks_at_test(run) == 4
    assert sum(event["kind"] == "evaluated" for event in read_events(run)) == 4


# Lesions that nothing can reach


def out_of_reach(n: int) -> list[SubjectScores]:
    rng = np.random.default_rng(0)
    return [
        SubjectScores(f"s{i}", False, rng.random(50, dtype=np.float32), np.empty(0, np.float32), 0.001, 9)
        for i in range(n)
    ]


def test_lesions_outside_the_scored_brain_are_judged_as_missed():
    calibration = [SubjectScores("c", True, np.linspace(0, 1, 50, dtype=np.float32), np.empty(0, np.float32), 0.001)]
    test = out_of_reach(3)
    protocols = thresholds([], calibration, test)
    figures = evaluate(test, protocols, n_bootstrap=50)
    for name in ("healthy", "oracle_set", "oracle_subject"):
        assert figures["protocols"][name]["mean_dice"] == 0
    assert np.isfinite(protocols.oracle_set.threshold)
    assert sum(s.counts(protocols.oracle_set.threshold)[1] for s in test) == 0
    assert "no lesion voxel is scored" in protocols.oracle_set.rule
    assert figures["ceil_dice"]["dice"] == 0
    assert any("outside the scored brain" in note for note in figures["notes"])
    json.dumps(figures, allow_nan=False)


def test_a_run_whose_lesions_lie_outside_the_brain_is_read_by_every_verb(tmp_path, capsys):
    planted = Planted(tmp_path / "own", "none")
    write_scans(planted.root / "cohort.csv", "none", planted.spacing_mm)
    for subject in read_table(planted.root / "cohort.csv").subjects:
        if subject.role == "test" and subject.lesion_mask is not None:
            labels = read_labels(subject.lesion_mask)
            corner = Mask(np.zeros(labels.grid.shape, dtype=bool), labels.grid).voxels.copy()
            corner[:3, :3, :3] = True
            write_nifti(subject.lesion_mask, corner.astype(np.uint8), labels.grid)
    run = planted.run(run_id="out-of-reach")
    metrics = read_metrics(run)
    figures = metrics["sets"][metrics["headline"]]
    for space in ("working", "native"):
        assert figures[space]["n_lesion_subjects"] > 0
        assert figures[space]["protocols"]["healthy"]["mean_dice"] == 0
        assert any("outside the scored brain" in note for note in figures[space]["notes"])
    runs = ["--runs", str(planted.runs)]
    capsys.readouterr()
    for argv in (
        ["runs"], ["compare-layers", "out-of-reach"], ["diagnose", "out-of-reach"],
        ["report", "out-of-reach", "--out", str(tmp_path / "report.html")],
        ["what-if", "out-of-reach"], ["post-processing", "out-of-reach", "--workers", "1"],
        ["score", "out-of-reach", "--export", str(tmp_path / "maps")],
    ):  # fmt: skip
        assert cli.main([*argv, *runs]) == 0, (argv, capsys.readouterr().err)
    assert cli.main(["what-if", "out-of-reach", "threshold-grid", *runs]) == 2
    assert "inside the scored brain" in capsys.readouterr().err


# Those who compute beside the writer


def test_several_diagnoses_and_a_writer_at_once_lose_nothing(own):
    run = open_run(own.runs, "tiny")
    argv = [sys.executable, str(ROOT / "cli.py"), "diagnose", "tiny", "--runs", str(own.runs), "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    other = subprocess.Popen(argv, env=environment, stdout=-1, stderr=-1)
    ended, problems = threading.Event(), []

    def write() -> None:
        while not ended.is_set():
            with store.lock(run) as held, stages.stage(held, "pooled-counts/x") as scratch:
                (scratch / "w").write_text("w")

    def look() -> None:
        try:
            diagnose(run, quiet())
        except Exception as problem:
            problems.append(problem)

    threads = [threading.Thread(target=target) for target in (write, look, look)]
    for thread in threads:
        thread.start()
    told, complaint = other.communicate(timeout=400)
    ended.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert other.returncode == 0, complaint
    assert json.loads(told)["dice"] == diagnose(run, quiet())["dice"]
    assert [p.name for p in run.directory.rglob(".tmp-*")] == []


def test_a_read_of_scores_is_not_disturbed_by_a_writer_that_clears_up(own):
    run = open_run(own.runs, "tiny")
    target = run.directory / "diagnosis-reference"
    with committed_directory(target, within=run.directory) as scratch:
        (scratch / "w").write_text("w")
        with store.lock(run):
            assert (scratch / "w").read_text() == "w"
    assert open_scores(run).subjects("test")

"""The terminal's front door: every verb explains itself, speaks JSON, and ends with the code that says why."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import cli
from core.detectors import CATALOGUE
from core.runs.listing import list_runs, open_run
from data.table import read_table
from tests.study import SCAN_FLAGS, SIMCLR_FLAGS, TinyStudy
from verbs import runs

ROOT = Path(__file__).resolve().parents[2]


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    capsys.readouterr()
    code = cli.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out, err


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"[│╭╮╰╯─]", " ", text))


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_has_a_help_with_an_example_that_begins_with_the_verb(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0
    example = re.search(r"Example: python cli\.py (\S+)", one_line(out))
    assert example is not None
    assert example[1] == verb


@pytest.mark.parametrize("verb", [v for v in cli.VERBS if v not in ("demo",)])
def test_the_example_of_every_verb_parses(verb: str) -> None:
    import shlex

    import tyro

    kind = cli.kind_of(verb)
    example = re.search(r"Example: python cli\.py \S+(.*)", kind.__doc__ or "")
    assert example is not None
    words = shlex.split(example[1])
    tyro.cli(cli.kind_of(verb, words), args=words)


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_the_list_of_verbs_says_of_each_what_its_own_help_says(verb: str) -> None:
    kind = cli.kind_of(verb)
    assert (kind.__doc__ or "").strip().splitlines()[0] == cli.VERBS[verb][1]


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_without_a_verb_all_verbs_are_listed(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert all(re.search(rf"^  {verb} ", out, re.M) for verb in cli.VERBS)


def test_an_unknown_verb_or_flag_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "guess")
    assert (code, out) == (2, "")
    assert "'guess'" in err
    assert "compare-layers" in err
    assert run(capsys, "runs", "--colour", "red")[0] == 2


@pytest.mark.parametrize(
    "stage", ["prepare", "pretrain", "fit", "score", "evaluate", "compare-layers", "check", "runs", "detectors"]
)
def test_json_output_is_json_and_nothing_else(
    stage: str, own_study: TinyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = own_study.commands() | {
        "compare-layers": ["compare-layers", "tiny", "--runs", str(own_study.runs)],
        "check": ["check", str(own_study.table)],
        "runs": ["runs", "--runs", str(own_study.runs)],
        "detectors": ["detectors"],
    }
    code, out, _ = run(capsys, *argv[stage], "--json")
    found = json.loads(out)
    assert code == 0
    wanted: dict[str, Any] = {
        "prepare": lambda: found["prepared"] == found["of"] == 12 and found["split"]["train"] == 4,
        "pretrain": lambda: found["run_id"] == "tiny-encoder",
        "fit": lambda: Path(found["directory"]) == own_study.runs / "tiny",
        "score": lambda: found["run_id"] == "tiny",
        "evaluate": lambda: found["sets"][found["headline"]]["native"]["n_lesion_subjects"] == 3,
        "compare-layers": lambda: len(found) == 7 and sum(row["headline"] for row in found) == 1,
        "check": lambda: len(found["facts"]) == 12 and found["set_aside"] == [],
        "runs": lambda: {row["run_id"] for row in found} == {"tiny", "tiny-encoder", "tiny-intensity"},
        "detectors": lambda: set(found) == set(CATALOGUE) and all(row["description"] for row in found.values()),
    }
    assert wanted[stage]()


def test_tables_on_the_terminal_show_every_threshold_protocol(
    study: TinyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "runs", "--runs", study.runs)
    assert code == 0
    for word in ("Dice healthy", "Dice validation", "Dice oracle", "tiny-intensity", "finished"):
        assert word in out
    code, out, _ = run(capsys, "compare-layers", "tiny", "--runs", study.runs)
    assert code == 0
    assert "input+stage1+stage2" in out
    code, out, _ = run(capsys, "detectors")
    assert all(name in out for name in CATALOGUE)


def test_check_names_every_bad_scan_and_every_pair_of_copies(
    own_study: TinyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = read_table(own_study.table)
    bad = {i: cohort[i].scans["FLAIR"] for i in ("train02", "test01", "test03")}
    bad["train02"].write_bytes(bad["train02"].read_bytes()[:-100])
    bad["test01"].write_bytes(b"")
    bad["test03"].unlink()
    shutil.copy(cohort["train01"].scans["FLAIR"], cohort["test04"].scans["FLAIR"])
    code, out, _ = run(capsys, "check", own_study.table)
    assert code == 2
    assert "9 of 12 subjects can be read" in out
    for subject_id, path in bad.items():
        assert re.search(rf"set aside: {subject_id} \[E-[A-Z-]+\] .*{re.escape(str(path))}", out)
    assert re.search(r"duplicate: (train01 and test04|test04 and train01)", out)
    code, out, _ = run(capsys, "check", own_study.table, "--json")
    assert code == 2
    assert [one["subject_id"] for one in json.loads(out)["set_aside"]] == list(bad)


def test_check_and_prepare_say_the_same_of_a_missing_scan_and_its_code_once(
    own_study: TinyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = read_table(own_study.table)["test02"].scans["FLAIR"]
    scan.unlink()
    told = [
        next(line for line in run(capsys, *words)[1].splitlines() if line.startswith("set aside: "))
        for words in (["check", own_study.table], own_study.commands()["prepare"])
    ]
    assert told[0] == told[1]
    assert told[0].startswith(f"set aside: test02 [E-NII-READ] {scan}: cannot be read (No such file or directory).")
    assert told[0].count("E-NII-READ") == 1


def test_prepare_says_how_many_of_how_many_and_who_was_set_aside(
    own_study: TinyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = read_table(own_study.table)["test02"].scans["FLAIR"]
    scan.write_bytes(scan.read_bytes()[:-100])
    code, out, _ = run(capsys, *own_study.commands()["prepare"])
    assert code == 0
    assert "11 of 12 subjects are prepared: 4 train, 2 calibration, 2 validation, 3 test." in out
    assert re.search(r"set aside: test02 \[E-", out)


@pytest.mark.parametrize(
    "argv",
    [
        ["check", "nowhere.csv"],
        ["prepare", "nowhere"],
        ["score", "no-such-run"],
        ["evaluate", "tiny-encoder"],
        ["compare-layers", "../tiny"],
        ["fit", "COHORT", "--detector", "gausian"],
        ["fit", "COHORT", "--detector", "zscore", "--layers", "stage0"],
        ["fit", "COHORT", "--layers", "stage9"],
        ["fit", "COHORT", "--grid", "5mm"],
        ["fit", "COHORT", "--encoder", "no-such-run"],
        ["fit", "COHORT", "--run-id", "../elsewhere", "--detector", "zscore"],
        ["fit", "COHORT", "--width", "5"],
        ["pretrain", "COHORT", "--simclr.encoder.width", "5"],
        ["pretrain", "COHORT", "--simclr.batch", "99"],
        ["pretrain", "COHORT", "--simclr.steps", "0"],
        ["evaluate", "tiny-intensity", "--quantile", "1.5"],
        ["app", "--port", "99999"],
    ],
    ids=" ".join,
)
def test_what_the_user_got_wrong_is_exit_2_one_error_and_no_traceback(
    argv: list[str], own_study: TinyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(own_study.table) if word == "COHORT" else word for word in argv]
    words += ["--runs", str(own_study.runs)] if argv[0] != "check" else []
    words += SCAN_FLAGS if argv[0] in ("fit", "pretrain") else []
    if argv[0] == "pretrain":
        usual = list(SIMCLR_FLAGS)
        if argv[2] in usual:
            del usual[usual.index(argv[2]) : usual.index(argv[2]) + 2]
        words += usual
    code, out, err = run(capsys, *words)
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert err.count("Error: ") == 1


def test_a_failed_stage_is_written_into_the_run(own_study: TinyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*own_study.commands()["fit"], "--memory", "0.000001", "--run-id", "bad"]
    assert run(capsys, *words)[0] == 3
    record = open_run(own_study.runs, "bad").record
    assert record["status"] == "failed"
    assert "at its peak" in record["error"]


def test_an_unknown_layer_is_refused_before_there_is_a_run(
    own_study: TinyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", own_study.table, "--runs", own_study.runs, *SCAN_FLAGS, "--layers", "stage9", "--run-id", "bad"]
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "stage9" in err
    assert "It has: input" in err
    assert not (own_study.runs / "bad").exists()


def test_too_little_memory_is_exit_3_with_what_is_needed(
    own_study: TinyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *own_study.commands()["fit"], "--memory", "0.000001", "--run-id", "small")
    assert code == 3
    assert re.search(r"at its peak \d", err)


def test_runs_that_cannot_be_written_are_exit_3(own_study: TinyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    (own_study.root / "file").write_text("not a directory")
    for stage in ("prepare", "fit", "pretrain"):
        words = [
            w.replace(str(own_study.runs), str(own_study.root / "file" / "runs")) for w in own_study.commands()[stage]
        ]
        code, _, err = run(capsys, *words)
        assert code == 3, err
        assert "file" in err


def test_a_tampered_detector_is_exit_4_and_the_file_is_named(
    own_study: TinyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(own_study.runs / "tiny" / "scores" / "test01")
    stored = own_study.runs / "tiny" / "detector" / "detector.json"
    stored.write_text(stored.read_text().replace("8mm", "4mm"))
    code, _, err = run(capsys, "score", "tiny", "--runs", own_study.runs)
    assert code == 4
    assert str(stored) in err


def test_a_tampered_prepared_scan_is_exit_4_or_made_anew(
    own_study: TinyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(own_study.runs / "tiny" / "scores" / "test01")
    subjects = open_run(own_study.runs, "tiny").record["cohort"]["subjects"]
    key = next(s["key"] for s in subjects if s["subject_id"] == "test01")
    stored = own_study.runs / ".cache" / "prepared" / key / "voxels.npy"
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    code, _, err = run(capsys, "score", "tiny", "--runs", own_study.runs)
    assert code == 4
    assert str(stored) in err


def test_a_bug_of_ours_is_exit_6_with_the_lines_to_report(
    study: TinyStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(runs.VERBS, "runs", (runs.RunsVerb, lambda arguments: 1 // 0))
    code, _, err = run(capsys, "runs")
    assert code == 6
    assert "ZeroDivisionError" in err
    assert "bug of Dicescope" in err


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_training_is_exit_5_and_the_same_command_goes_on(own_study: TinyStudy, stop: signal.Signals) -> None:
    words = own_study.commands()["pretrain"]
    words[words.index("tiny-encoder")] = "stopped"
    words[words.index("--simclr.steps") + 1] = "100000"
    words[words.index("--simclr.checkpoint-every") + 1] = "50000"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "cli.py", *words], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(90, child.kill)
    watchdog.start()
    assert child.stderr is not None
    while not (own_study.runs / "stopped" / "events.jsonl").is_file() and child.poll() is None:
        threading.Event().wait(0.05)
    threading.Event().wait(0.3)
    child.send_signal(stop)
    said = child.stderr.read()
    assert child.wait() == 5, said
    watchdog.cancel()
    assert "same command" in said
    assert open_run(own_study.runs, "stopped").status == "interrupted"
    assert list((own_study.runs / "stopped" / "checkpoints").glob("step-*"))


def test_a_run_is_meant_by_its_id_its_beginning_its_path_or_latest(
    own_study: TinyStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_study.root)
    for which in ("tiny-intensity", "tiny-i", own_study.runs / "tiny-intensity", "runs/tiny-intensity", "latest"):
        code, out, err = run(capsys, "score", which, "--runs", own_study.runs, "--json")
        assert code == 0, err
        assert json.loads(out)["run_id"] == "tiny-intensity"
    code, _, err = run(capsys, "score", "t", "--runs", own_study.runs)
    assert code == 2
    assert "fits several runs" in err


def test_an_unreadable_run_is_a_problem_in_words_and_the_others_are_listed(
    own_study: TinyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_study.runs / "tiny" / "run.json").write_text("{")
    code, out, err = run(capsys, "runs", "--runs", own_study.runs, "--json")
    assert code == 4
    rows = json.loads(out)
    assert {row["run_id"] for row in rows if "problem" not in row} == {"tiny-encoder", "tiny-intensity"}
    assert [row["run_id"] for row in rows if "problem" in row] == ["tiny"]
    assert "problem:" in err
    assert "run.json" in err


def test_no_runs_yet_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "runs", "--runs", tmp_path / "none")
    assert code == 0
    assert "python cli.py demo" in out
    code, _, err = run(capsys, "score", "--runs", tmp_path / "none")
    assert code == 2
    assert "python cli.py demo" in err


def test_score_says_what_is_really_next(own_study: TinyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    where = f" --runs {own_study.runs}"
    code, out, _ = run(capsys, "score", "tiny", "--runs", own_study.runs)
    assert code == 0
    assert "evaluated already" in out
    assert out.rstrip().endswith(f"python cli.py app{where}")
    shutil.rmtree(own_study.runs / "tiny" / "evaluation")
    code, out, _ = run(capsys, "score", "tiny", "--runs", own_study.runs)
    assert out.rstrip().endswith(f"python cli.py evaluate tiny{where}")


def test_a_busy_port_is_said_with_a_free_one_and_no_address_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, out, err = run(capsys, "app", "--runs", tmp_path, "--port", port)
        assert (code, out) == (3, "")
        found = re.fullmatch(rf"Error: Port {port} is in use, try --port (\d+)\n", err)
        assert found is not None
        with socket.socket() as mine:
            mine.bind(("127.0.0.1", int(found[1])))


def test_score_exports_maps_for_any_viewer(
    own_study: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "maps"
    code, _, err = run(capsys, "score", "tiny", "--runs", own_study.runs, "--export", out, "--layers", "stage1")
    assert code == 0
    assert "12 NIfTI files" in err
    assert len(list(out.glob("*.nii.gz"))) == 12


def test_an_encoder_file_can_be_given(own_study: TinyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    weights = own_study.runs / "tiny-encoder" / "encoder" / "encoder.safetensors"
    words = ["fit", own_study.table, "--runs", own_study.runs, *SCAN_FLAGS, "--layers", "stage1", "--grid", "8mm"]
    code, out, err = run(capsys, *words, "--encoder", weights, "--width", "4", "--run-id", "of-file", "--json")
    assert code == 0, err
    assert json.loads(out)["run_id"] == "of-file"
    code, _, err = run(capsys, *words, "--encoder", weights, "--width", "8", "--run-id", "wrong")
    assert code == 2, err
    assert "do not fit" in err
    assert len(list_runs(own_study.runs)[0]) == 5

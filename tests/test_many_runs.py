"""Many runs, damaged ones among them: a listing reads only what changed, hides nothing, believes nothing old."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

import cli
from core.runs import remembered
from core.runs.listing import list_heads, open_run
from core.runs.remembered import identity_of
from core.runs.store import create_run, update_run
from core.study.run_summary import run_rows
from data.errors import BadInput
from data.json_files import SEAL, sealed, write_sealed_json
from data.nifti import read_labels, write_nifti
from tests.study import TinyStudy
from verbs.runs import NEWEST

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("overview", "slices", "layers", "distributions", "diagnosis", "training", "data", "report")
N = 2000


def made(runs: Path, count: int) -> None:
    for number in range(count):
        run = create_run(runs, kind="detector", name=f"run {number}", recipe={"kind": "A"}, run_id=f"r{number:03d}")
        update_run(run, status="finished")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The JSON files that are read from now on, by the names of their runs' folders."""
    seen: list[str] = []
    original = Path.read_text

    def reading(self: Path, *arguments: Any, **named: Any) -> str:
        if self.suffix == ".json":
            seen.append(self.parent.name)
        return original(self, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", reading)
    return seen


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> Iterator[None]:
    remembered._held.clear()
    yield
    remembered._held.clear()


# What is remembered


def test_a_second_listing_reads_nothing_and_a_changed_run_is_read_alone(tmp_path: Path, read: list[str]) -> None:
    made(tmp_path, 40)
    read.clear()
    first = run_rows(tmp_path)[0]
    assert set(read) == {f"r{number:03d}" for number in range(40)}
    read.clear()
    assert run_rows(tmp_path)[0] == first
    assert read == []
    os.utime(tmp_path / "r007" / "run.json")
    run_rows(tmp_path)
    assert set(read) == {"r007"}


def test_another_process_reads_only_what_changed_since(tmp_path: Path, read: list[str]) -> None:
    made(tmp_path, 40)
    first = run_rows(tmp_path)[0]
    remembered._held.clear()  # as a new process begins
    update_run(open_run(tmp_path, "r003"), status="failed", error="no reason")
    shutil.rmtree(tmp_path / "r004")
    read.clear()
    rows = run_rows(tmp_path)[0]
    assert set(read) == {"r003"}
    assert {row["run_id"]: row["status"] for row in rows}["r003"] == "failed"
    unchanged = [row for row in first if row["run_id"] not in ("r003", "r004")]
    assert [row for row in rows if row["run_id"] != "r003"] == unchanged


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: index.write_bytes(index.read_bytes()[:-20]),
        lambda index: index.write_bytes(index.read_bytes().replace(b'"run 5"', b'"run 6"')),
        lambda index: index.write_bytes(b"\xff\xfe"),
        lambda index: index.write_bytes(b"[]\n[]"),
        lambda index: index.write_bytes(b""),
        lambda index: index.unlink(),
        lambda index: (index.unlink(), index.mkdir()),
    ],
)
def test_a_damaged_index_is_no_index(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    made(tmp_path, 40)
    first = run_rows(tmp_path)[0]
    damage(tmp_path / ".cache" / "index" / "rows.json")
    remembered._held.clear()
    assert run_rows(tmp_path)[0] == first


def test_a_list_that_was_killed_while_it_wrote_its_index_leaves_nothing_for_ever(tmp_path: Path) -> None:
    made(tmp_path, 40)
    killed = {**os.environ, "DICESCOPE_FAULT": "file.before_rename:1:kill"}
    argv = [sys.executable, "cli.py", "runs", "--runs", str(tmp_path)]
    assert subprocess.run(argv, cwd=ROOT, env=killed, capture_output=True, check=False).returncode == -signal.SIGKILL
    index = tmp_path / ".cache" / "index"
    assert [path.name.startswith(".tmp-") for path in index.iterdir()] == [True]
    subprocess.run(argv, cwd=ROOT, capture_output=True, check=True)
    assert [path.name for path in index.iterdir()] == ["rows.json"]


def test_an_index_is_not_believed_for_other_files_under_the_same_names(tmp_path: Path) -> None:
    made(tmp_path / "one", 40)
    run_rows(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    record = json.loads((tmp_path / "two" / "r005" / "run.json").read_text())
    del record[SEAL]
    times = os.stat(tmp_path / "one" / "r005" / "run.json")
    write_sealed_json(tmp_path / "two" / "r005" / "run.json", record | {"name": "run X"})
    os.utime(tmp_path / "two" / "r005" / "run.json", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert {row["run_id"]: row["name"] for row in run_rows(tmp_path / "two")[0]}["r005"] == "run X"


def test_a_change_in_the_same_moment_with_the_same_size_is_seen(tmp_path: Path) -> None:
    made(tmp_path, 1)
    record = tmp_path / "r000" / "run.json"
    content = record.read_bytes()
    for _ in range(5):
        for written in (content.replace(b'"finished"', b'"finishxd"'), content):
            with record.open("r+b") as file:
                file.write(written)
            [row] = run_rows(tmp_path)[0]
            assert ("problem" in row) == (written != content)


def test_where_nothing_can_be_written_runs_are_listed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, 40)

    def refuse(self: Path, *arguments: Any, **named: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert len(run_rows(tmp_path)[0]) == 40
    assert len(list_heads(tmp_path)[0]) == 40
    assert not (tmp_path / ".cache").exists()


def test_latest_and_a_run_by_id_read_one_record(tmp_path: Path, read: list[str]) -> None:
    made(tmp_path, 40)
    assert open_run(tmp_path, "latest").run_id == "r039"
    read.clear()
    assert open_run(tmp_path, "latest", "detector").run_id == "r039"
    assert open_run(tmp_path, "r012").run_id == "r012"
    assert read == ["r039", "r012"]


def test_a_file_that_is_gone_has_an_identity_too(tmp_path: Path) -> None:
    path = tmp_path / "a"
    gone = identity_of(path)
    path.write_text("x")
    there = identity_of(path)
    assert gone.text != there.text
    path.unlink()
    assert identity_of(path).text == gone.text


# Two thousand runs


@pytest.fixture(scope="module")
def many(study: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluated detectors and encoders, with evaluations of the size that a real cohort has."""
    runs = tmp_path_factory.mktemp("many")
    for number in range(N):
        source = study.runs / ("tiny-encoder" if number % 8 == 7 else "tiny")
        target = runs / f"run-{number:04d}"
        target.mkdir()
        shutil.copy(source / "run.json", target)
        for name in ("evaluation", "detector", "encoder"):
            if (source / name).is_dir():
                (target / name).mkdir()
                for file in ("manifest.json", "metrics.json", "headline.json", "levels.json"):
                    if (source / name / file).is_file():
                        shutil.copy(source / name / file, target / name)
    return runs


def cpu_seconds(argv: list[str]) -> tuple[float, subprocess.CompletedProcess[str]]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "cli.py", *argv], cwd=ROOT, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_two_thousand_runs_are_listed_within_two_seconds_of_work(many: Path, more: list[str]) -> None:
    argv = ["runs", "--runs", str(many), *more]
    cpu_seconds(argv)
    spent, done = cpu_seconds(argv)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum("run-" in line for line in lines) == N
    assert spent < 2.0


def test_a_terminal_gets_the_newest_and_the_way_to_the_others(
    many: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert cli.main(["runs", "--runs", str(many)]) == 0
    out = capsys.readouterr().out
    assert f"and {N - NEWEST:,} more: python cli.py runs --all --runs {many}" in out
    assert cli.main(["runs", "--runs", str(many), "--all"]) == 0
    assert sum(line.startswith("run-") for line in capsys.readouterr().out.splitlines()) == N


def opened(monkeypatch: pytest.MonkeyPatch, name: str, runs: Path, **query: str) -> AppTest:
    monkeypatch.setenv("DICESCOPE_RUNS", str(runs))
    monkeypatch.chdir(ROOT)
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120)
    for key, value in query.items():
        app.query_params[key] = value
    if name != "overview":
        app.switch_page(f"pages/{name}.py")
    return app.run()


def test_the_overview_of_two_thousand_runs_reads_only_what_changed(
    many: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    app = opened(monkeypatch, "overview", many)
    assert not app.exception
    read.clear()
    before = resource.getrusage(resource.RUSAGE_SELF)
    app.run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert read == []
    assert after.ru_utime - before.ru_utime < 2.0
    os.utime(many / "run-0100" / "run.json")
    app.run()
    assert read
    assert set(read) <= {"run-0100", "evaluation"}


# Damaged runs among whole ones


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        for key in keys:
            del record[key]

    return change


def with_value(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for name in parents:
            record = record[int(name)] if isinstance(record, list) else record[name]
        record[last] = value

    return change


EDITS = {
    "cohort a list": with_value("cohort", []),
    "split null": with_value("split", None),
    "split of numbers": with_value("split.test", [1, 2]),
    "split one text": with_value("split.train", "train01"),
    "recipe a number": with_value("recipe", 3),
    "kind of recipe a list": with_value("recipe.kind", ["Intensity"]),
    "subjects a mapping": with_value("cohort.subjects", {}),
    "a subject null": with_value("cohort.subjects", [None]),
    "a key a number": with_value("cohort.subjects.0.key", 7),
    "set aside a text": with_value("cohort.set_aside", "x"),
    "parents a list": with_value("parents", ["tiny-encoder"]),
    "a parent a list": with_value("parents", {"encoder": ["x"]}),
    "created a number": with_value("created", 20261121),
    "sequence not a number": with_value("sequence", float("nan")),
    "a time NaN": with_value("stages.detector.seconds", float("nan")),
    "half a letter": with_value("name", "\ud800"),
    "no recipe": without("recipe"),
    "no split": without("split"),
    "no cohort": without("cohort"),
}


def edit(record: Path, change: Callable[[dict[str, Any]], None]) -> None:
    found = json.loads(record.read_text())
    change(found)
    if SEAL in found:  # by somebody who knows how a record is sealed, where it can be
        del found[SEAL]
        with contextlib.suppress(ValueError):
            found = sealed(found)
    record.write_text(json.dumps(found))


def damages(run: Path) -> dict[str, Callable[[], object]]:
    record, evaluation = run / "run.json", run / "evaluation"
    return {
        "empty": lambda: record.write_bytes(b""),
        "not JSON": lambda: record.write_bytes(b"{"),
        "not UTF-8": lambda: record.write_bytes(b'{"name": "\xff"}'),
        "a list": lambda: record.write_text("[]"),
        "deep": lambda: record.write_bytes(b"[" * 100_000),
        "metrics cut": lambda: (evaluation / "metrics.json").write_text('{"sets": '),
        "metrics a list": lambda: (evaluation / "metrics.json").write_text("[]"),
        "metrics not UTF-8": lambda: (evaluation / "metrics.json").write_bytes(b"\xff\xfe"),
        "manifest gone": lambda: (evaluation / "manifest.json").unlink(),
        "metrics gone": lambda: (evaluation / "metrics.json").unlink(),
        "metrics NaN": lambda: edit(evaluation / "metrics.json", not_a_number),
        **{name: lambda change=change: edit(record, change) for name, change in EDITS.items()},
    }


def not_a_number(metrics: dict[str, Any]) -> None:
    metrics["sets"][metrics["headline"]]["native"]["protocols"]["healthy"]["mean_dice"] = float("nan")


@pytest.mark.parametrize("damage", list(damages(Path())))
def test_a_damaged_run_is_listed_with_its_problem_and_hides_no_other(
    own_study: TinyStudy, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damages(own_study.runs / "tiny")[damage]()
    for more in ([], ["--json"]):
        capsys.readouterr()
        code = cli.main(["runs", "--runs", str(own_study.runs), *more])
        out, err = capsys.readouterr()
        assert code == 4, err
        assert "Traceback" not in err
        assert "problem: " in err
        assert str(own_study.runs / "tiny") in err or "evaluate tiny" in err
        assert "tiny-encoder" in out
        assert "tiny-intensity" in out
    rows = {row["run_id"]: row for row in json.loads(out)}
    assert "problem" in rows["tiny"]
    assert rows["tiny-intensity"]["dice"]["healthy"]["mean"] is not None
    assert open_run(own_study.runs, "latest").run_id == "tiny-intensity"
    with pytest.raises(BadInput, match="tiny-intensity"):
        open_run(own_study.runs, "tiny-encoder", "detector")


def test_a_run_whose_detector_was_deleted_for_its_size_keeps_its_numbers(
    own_study: TinyStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(own_study.runs / "tiny" / "detector")
    assert cli.main(["runs", "--runs", str(own_study.runs), "--json"]) == 0
    rows = {row["run_id"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["tiny"]["dice"]["healthy"]["mean"] is not None
    assert cli.main(["diagnose", "tiny", "--runs", str(own_study.runs)]) == 2
    assert "not fitted" in capsys.readouterr().err
    app = opened(monkeypatch, "slices", own_study.runs, run="tiny")
    assert not app.exception
    assert "not fitted" in " ".join(str(error.value) for error in app.error)


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("damage", ["not UTF-8", "cohort a list", "metrics cut"])
def test_a_page_shows_the_other_runs_and_names_the_damaged_one(
    own_study: TinyStudy, damage: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damages(own_study.runs / "tiny")[damage]()
    st.cache_resource.clear()
    app = opened(monkeypatch, name, own_study.runs, run="tiny-intensity")
    assert not app.exception
    lost = damage in ("not UTF-8", "cohort a list")
    told = " ".join(str(warning.value) for warning in app.warning)
    if lost or name == "overview":
        assert "tiny" in told
    if name not in ("overview", "training"):
        assert app.selectbox(key="run").value == "tiny-intensity"
        assert not app.error


# A run made anew under an old id


def swap(runs: Path, first: str, second: str) -> None:
    """The second run under the id of the first, every file with the old one's time."""
    times = {p.relative_to(runs / first): os.stat(p) for p in (runs / first).rglob("*") if p.is_file()}
    shutil.rmtree(runs / first)
    shutil.copytree(runs / second, runs / first)
    for path, found in times.items():
        if (runs / first / path).is_file():
            os.utime(runs / first / path, ns=(found.st_atime_ns, found.st_mtime_ns))


def texts(app: AppTest) -> list[str]:
    kinds = ("markdown", "caption", "success", "error", "info")
    told = [str(element.value) for kind in kinds for element in app.get(kind)]
    return told + [table.value.to_csv() for table in app.dataframe]


@pytest.mark.parametrize("name", ["overview", "slices", "distributions", "layers", "diagnosis", "report"])
def test_a_run_made_anew_under_its_id_shows_its_own_numbers(
    own_study: TinyStudy, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    st.cache_resource.clear()
    shutil.copytree(own_study.runs / "tiny-intensity", own_study.runs / "aaa")
    old = opened(monkeypatch, name, own_study.runs, run="aaa")
    assert not old.exception
    swap(own_study.runs, "aaa", "tiny")
    warm = opened(monkeypatch, name, own_study.runs, run="aaa")
    st.cache_resource.clear()
    fresh = opened(monkeypatch, name, own_study.runs, run="aaa")
    assert not warm.exception
    assert texts(warm) == texts(fresh)
    assert texts(warm) != texts(old)


def test_lesion_volumes_and_the_verdict_on_leakage_are_those_of_the_scans_that_are_there(
    own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    st.cache_resource.clear()
    app = opened(monkeypatch, "data", own_study.runs, run="tiny-intensity")
    assert "all 12 scans" in " ".join(texts(app))
    before = app.dataframe[2].value.set_index("subject")["lesion mL"]
    record = own_study.runs / "tiny-intensity" / "run.json"
    times = os.stat(record)
    mask = own_study.table.parent / "test01" / "lesion.nii.gz"
    labels = read_labels(mask)
    smaller = labels.voxels.copy()
    smaller[: smaller.shape[0] // 2 + 1] = 0
    if smaller.sum() in (0, labels.voxels.sum()):
        smaller = np.where(np.arange(smaller.size).reshape(smaller.shape) % 2, labels.voxels, 0)
    write_nifti(mask, smaller.astype(np.uint8), labels.grid)
    (own_study.table.parent / "test02" / "flair.nii.gz").unlink()
    shutil.rmtree(own_study.runs / "tiny-intensity")
    assert cli.main(own_study.commands()["fit-intensity"]) == 0
    os.utime(record, ns=(times.st_atime_ns, times.st_mtime_ns))
    app = opened(monkeypatch, "data", own_study.runs, run="tiny-intensity")
    assert not app.exception
    assert "all 11 scans" in " ".join(texts(app))
    after = app.dataframe[3].value.set_index("subject")["lesion mL"]
    assert after["test01"] < before["test01"]

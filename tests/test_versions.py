"""Versions that a run was made with are compared with those that are here, wherever its numbers are shown."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cli
from core.runs import provenance
from core.runs.listing import open_run
from core.runs.provenance import environment, numeric_differences, numeric_versions
from core.runs.run_record import Run
from core.runs.store import create_run, lose_equal_bits, update_run
from core.runs.versions import note_resumed, noted, notes_by_text, version_notes
from core.study.fitted import load_detector
from core.study.run_scans import prepared_of
from data.errors import BadInput, IntegrityError
from data.schemas import check_schema
from models.encoder import load_encoder
from tests.study import TinyStudy

OLD = "0.0.1"


def made_with(runs: Path, **old: str) -> Run:
    run = create_run(runs, kind="detector", name="r", recipe={"kind": "VoxelZScore"}, run_id="r")
    return Run(run.directory, run.record | {"versions": environment() | old})


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let other versions be installed here."""

    def change(**other: str) -> None:
        here = environment() | other
        monkeypatch.setattr(provenance, "environment", lambda: here)

    return change


def test_what_makes_numbers_is_recorded() -> None:
    assert {"python", "torch", "numpy", "scipy", "nilearn", "monai", "scikit-learn", "connected-components-3d"} <= set(
        numeric_versions()
    )
    assert any(name.startswith("faiss") for name in environment())


def test_the_same_versions_need_no_note(tmp_path: Path) -> None:
    assert version_notes(made_with(tmp_path)) == []
    assert version_notes(made_with(tmp_path / "b", streamlit=OLD, platform="Linux-1", safetensors=OLD)) == []


@pytest.mark.parametrize("package", ["torch", "numpy", "scipy", "nilearn", "scikit-learn", "connected-components-3d"])
def test_another_version_of_what_makes_numbers_is_one_sentence(package: str, tmp_path: Path) -> None:
    [note] = version_notes(made_with(tmp_path, **{package: OLD}))
    assert note.startswith(f"Made with {package} {OLD}, here is {package} {numeric_versions()[package]}: numbers may")


def test_python_is_compared_by_its_minor_version(tmp_path: Path) -> None:
    major, minor, *_ = environment()["python"].split(".")
    assert version_notes(made_with(tmp_path, python=f"{major}.{minor}.99")) == []
    assert "python 3.1" in version_notes(made_with(tmp_path / "b", python="3.1.7"))[0]


def test_a_package_that_was_not_recorded_or_is_not_here_is_not_judged() -> None:
    assert numeric_differences({}, {"torch": "1"}) == []
    assert numeric_differences({"faiss-cpu": "1"}, {"faiss-gpu": "2"}) == []


@pytest.mark.parametrize("record", [None, [], "x", {"torch": ["1"]}, {"torch": "<img src=x>"}])
def test_a_strange_record_of_versions_hides_nothing_and_breaks_nothing(record: Any, tmp_path: Path) -> None:
    run = made_with(tmp_path)
    told = " ".join(version_notes(Run(run.directory, run.record | {"versions": record})))
    assert "torch" in told if isinstance(record, dict) else told == ""


def test_a_stage_keeps_versions_only_when_they_are_not_those_of_the_beginning(
    tmp_path: Path, pretend: Callable[..., None]
) -> None:
    run = create_run(tmp_path, kind="detector", name="r", recipe={"kind": "VoxelZScore"})
    run = update_run(run, stages={"detector": {"seconds": 1}})
    assert run.record["stages"]["detector"] == {"seconds": 1}
    import core.runs.store

    pretend(torch="99.0")
    assert core.runs.store.numeric_versions()["torch"] == "99.0"
    run = update_run(run, stages={"evaluation": {"seconds": 1}})
    assert run.record["stages"]["evaluation"]["versions"] == {"torch": "99.0"}
    assert any("stage evaluation ran with torch 99.0" in note for note in version_notes(run))


def test_work_that_goes_on_with_other_versions_loses_the_claim_of_equal_bits_for_good(
    tmp_path: Path, pretend: Callable[..., None]
) -> None:
    run = create_run(tmp_path, kind="encoder", name="r", recipe={"kind": "SimCLR"})
    assert note_resumed(run, "training").record["equal_bits"] == {"claimed": True, "reasons": []}
    pretend(torch="99.0")
    for _ in range(2):
        run = note_resumed(run, "training, at step 4,")
    held = open_run(tmp_path, run.run_id).record["equal_bits"]
    assert held["claimed"] is False
    assert len(held["reasons"]) == 1
    assert "step 4, went on with other versions (torch" in held["reasons"][0]
    assert "99.0" in version_notes(run)[-1]
    assert lose_equal_bits(run, "threads").record["equal_bits"]["reasons"] == [*held["reasons"], "threads"]


def test_many_runs_of_the_same_versions_share_one_line(tmp_path: Path) -> None:
    runs = [Run(tmp_path / f"r{n}", {"run_id": f"r{n}", "versions": {"torch": OLD}}) for n in range(5)]
    [(note, ids)] = notes_by_text(runs).items()
    assert noted(note, ids).startswith("r0, r1, r2 and 2 more: Made with torch")


@pytest.mark.parametrize(
    "words",
    [
        ["runs"], ["score", "tiny"], ["evaluate", "tiny", "--workers", "1"], ["compare-layers", "tiny"],
        ["diagnose", "tiny"], ["what-if", "tiny"], ["report", "tiny", "--out", "OUT"], ["fit"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_every_verb_that_shows_a_runs_numbers_tells_of_other_versions(
    words: list[str],
    own_study: TinyStudy,
    tmp_path: Path,
    pretend: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretend(scipy="99.0")
    argv = [str(tmp_path / "r.html") if word == "OUT" else word for word in words]
    argv = own_study.commands()["fit"] if words == ["fit"] else [*argv, "--runs", str(own_study.runs)]
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    told = out if words == ["runs"] else err
    assert "here is scipy 99.0: numbers may differ" in told.replace("\n", " ")
    if words[0] == "report":
        assert "here is scipy 99.0" in (tmp_path / "r.html").read_text()


def test_json_of_runs_carries_the_notes(
    study: TinyStudy, pretend: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(scipy="99.0")
    assert cli.main(["runs", "--runs", str(study.runs), "--json"]) == 0
    assert all("scipy 99.0" in row["version_notes"][0] for row in json.loads(capsys.readouterr().out))


def test_a_training_that_goes_on_with_another_version_says_so_in_its_record(
    own_study: TinyStudy, pretend: Callable[..., None]
) -> None:
    encoder = open_run(own_study.runs, "tiny-encoder").directory
    shutil.rmtree(encoder / "encoder")
    pretend(torch="99.0")
    assert cli.main(own_study.commands()["pretrain"]) == 0
    held = open_run(own_study.runs, "tiny-encoder").record["equal_bits"]
    assert (held["claimed"], len(held["reasons"])) == (False, 1)


@pytest.mark.parametrize("value", [{"schema": 2}, {"schema": 10**6}])
def test_a_newer_schema_needs_a_newer_program(value: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="needs a newer Dicescope"):
        check_schema(tmp_path / "x.json", value, 1)
    check_schema(tmp_path / "x.json", {}, 1)
    check_schema(tmp_path / "x.json", {"schema": 1}, 2)


@pytest.mark.parametrize("value", [{"schema": 0}, {"schema": "1"}, {"schema": True}, {"schema": None}, [], 1.5, None])
def test_a_schema_that_is_no_number_is_damage(value: Any, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="damaged"):
        check_schema(tmp_path / "x.json", value, 1)


def rewritten(path: Path) -> None:
    """The same file by a newer program, its commit signed again."""
    from data.files import MANIFEST, committed_directory, read_manifest

    root = next(parent for parent in path.parents if (parent / MANIFEST).is_file())
    kept = shutil.copytree(root, root.with_name("kept"))
    with committed_directory(root, within=root.parent, about=read_manifest(root)["about"]) as scratch:
        shutil.copytree(kept, scratch, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        copy = scratch / path.relative_to(root)
        copy.write_text(json.dumps(json.loads(copy.read_text()) | {"schema": 99}))
    shutil.rmtree(kept)


@pytest.mark.parametrize("name", ["detector.json", "features.json", "encoder/encoder.json", "gaussian/gaussian.json"])
def test_every_file_of_a_fitted_detector_is_refused_when_it_is_newer(name: str, own_study: TinyStudy) -> None:
    run = open_run(own_study.runs, "tiny")
    rewritten(run.directory / "detector" / name)
    with pytest.raises(BadInput, match="needs a newer Dicescope"):
        load_detector(run)


def test_a_newer_prepared_scan_and_a_newer_encoder_are_refused(own_study: TinyStudy) -> None:
    run = open_run(own_study.runs, "tiny")
    subject = run.record["cohort"]["subjects"][0]
    rewritten(own_study.runs / ".cache" / "prepared" / subject["key"] / "record.json")
    with pytest.raises(BadInput, match="needs a newer Dicescope"):
        prepared_of(run, subject["subject_id"])
    encoder = open_run(own_study.runs, "tiny-encoder").directory / "encoder"
    rewritten(encoder / "encoder.json")
    with pytest.raises(ValueError, match="needs a newer Dicescope"):
        load_encoder(encoder)
    assert cli.main([*own_study.commands()["fit"], "--run-id", "another"]) == 2

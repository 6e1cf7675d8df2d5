"""A full disk: refused before anything is computed, or stopped with exit 3; nothing is lost, and the same command
finishes once there is room, with the bits of an undisturbed one."""

import errno
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import cli
from core.runs.journal import append_line, read_lines, steps_of
from data.errors import EnvironmentProblem
from data.files import committed_directory
from data.json_files import write_json
from data.nifti import write_nifti
from data.volume import Grid
from models.tensor_files import save_tensors
from tests.small_disk import Disk, small_disk
from tests.study import FIT_FLAGS, SCAN_FLAGS, SIMCLR_FLAGS, TinyStudy

LITTLE = 64 * 1024
"""Enough for locks, run.json and lines of the journal, too little for any result."""
SAID = re.compile(r"needs (?:more than |at most )?[1-9]\d* bytes.*free now: \d+", re.S)
ASK_FOR_ROOM = (
    "core.study.training", "core.study.fitting", "core.study.scoring",
    "core.study.evaluation", "core.study.gating", "core.study.nifti_export", "data.preprocessing", "data.planting",
)  # fmt: skip
MAY_CHANGE = ("run.json", "events.jsonl", "index.json")
"""Status, journal, and the hashes of files that were read."""
WITH_ESTIMATE = ("prepare", "pretrain", "dual", "primal", "bank", "zscore", "score", "evaluate", "export", "gate")
WRITERS = (*WITH_ESTIMATE, "report")


@pytest.fixture(scope="module")
def disk(study: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    with small_disk(tmp_path_factory.mktemp("full") / "disk", 128) as found:
        study.copy(found.root / "study")
        yield found


def command(disk: Disk, what: str) -> list[str]:
    """A command that writes something new into the study of the disk."""
    study = TinyStudy(disk.root / "study")
    runs = ["--runs", str(study.runs)]
    scans = [str(study.table), *runs, *SCAN_FLAGS]
    fit = ["fit", *scans, "--encoder", "tiny-encoder", *FIT_FLAGS, "--run-id"]
    without = {"score": "scores", "evaluate": "evaluation"}
    if what in without:
        shutil.copytree(study.runs / "tiny", study.runs / what, dirs_exist_ok=True)
        shutil.rmtree(study.runs / what / without[what])
    return {
        "prepare": ["prepare", *scans[:-1], "5", "--workers", "1"],
        "pretrain": ["pretrain", *scans, "--run-id", "pretrain", *SIMCLR_FLAGS],
        "dual": [*fit, "dual", "--form", "dual"],
        "primal": [*fit, "primal", "--form", "primal"],
        "bank": [*fit, "bank", "--detector", "patchcore", "--coreset-ratio", "0.1"],
        "zscore": ["fit", *scans, "--run-id", "zscore", "--detector", "zscore"],
        "score": ["score", "score", *runs],
        "evaluate": ["evaluate", "evaluate", *runs, "--workers", "1"],
        "export": ["score", "tiny", *runs, "--export", str(disk.root / "maps")],
        "report": ["report", "tiny", *runs, "--out", str(disk.root / "report.html")],
        "gate": ["gate", "tiny-intensity", "tiny", *runs, "--run-id", "gate", "--workers", "1"],
    }[what]


SAME_AS = {
    "pretrain": ("pretrain/encoder", "tiny-encoder/encoder", "encoder.safetensors"),
    "dual": ("dual/detector/gaussian", "tiny/detector/gaussian", "gaussian.safetensors"),
    "score": ("score/scores/test01", "tiny/scores/test01", "distances.npy"),
    "evaluate": ("evaluate/evaluation", "tiny/evaluation", "metrics.json"),
}
"""What a command made, and the same thing in the undisturbed study."""


@pytest.mark.parametrize("what", WITH_ESTIMATE)
def test_a_disk_that_is_too_small_is_refused_before_anything_is_computed(
    disk: Disk, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = command(disk, what)
    disk.fill(LITTLE)
    before = disk.content()
    assert cli.main(argv) == 3
    said = capsys.readouterr().err
    disk.empty()
    assert SAID.search(said), said
    assert "Nothing was computed" in said
    after = disk.content()
    changed = {name for name, digest in before.items() if after.get(name) != digest}
    assert {Path(name).name for name in changed} <= {"run.json", "index.json"}
    new = {Path(name).name for name in after.keys() - before.keys() if ".sequence" not in name}
    assert new <= {"run.json"}


@pytest.mark.parametrize("what", WRITERS)
def test_a_disk_that_fills_up_while_it_is_written_stops_the_work_and_loses_nothing(
    disk: Disk, study: TinyStudy, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = command(disk, what)
    for module in ASK_FOR_ROOM:
        monkeypatch.setattr(f"{module}.require_room", lambda *asked, **more: None)
    disk.fill(LITTLE)
    before = {name: digest for name, digest in disk.content().items() if not name.endswith(MAY_CHANGE)}
    assert cli.main(argv) == 3
    said = capsys.readouterr().err
    assert SAID.search(said), said
    after = disk.content()
    assert before.items() <= after.items()
    assert not [name for name in after if ".tmp-" in name]
    disk.empty()
    assert cli.main(argv) == 0, capsys.readouterr().err
    if what in SAME_AS:
        mine, other, name = SAME_AS[what]
        assert (disk.root / "study" / "runs" / mine / name).read_bytes() == (study.runs / other / name).read_bytes()


def test_planting_asks_for_room_before_it_registers_anybody(
    disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lesion = np.zeros((10, 10, 10), np.uint8)
    lesion[3:7, 3:7, 3:7] = 1
    write_nifti(tmp_path / "shapes" / "one.nii.gz", lesion, Grid((10, 10, 10), np.diag([4.0, 4.0, 4.0, 1.0])))
    table = str(disk.root / "study" / "scans" / "cohort.csv")
    disk.fill(LITTLE)
    code = cli.main(["plant", table, str(tmp_path / "shapes"), str(disk.root / "planted"), "--contrast", "FLAIR"])
    said = capsys.readouterr().err
    assert code == 3
    assert SAID.search(said), said
    assert not (disk.root / "planted").exists()


def test_training_goes_on_without_its_journal_and_marks_the_gap(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2) as disk:
        journal = disk.root / "events.jsonl"
        assert append_line(journal, "step", {"step": 1})
        disk.fill(0)
        long = {"text": "x" * 8000}
        assert [append_line(journal, "step", {"step": step, **long}) for step in (2, 3)] == [False, False]
        disk.empty()
        assert append_line(journal, "step", {"step": 4})
        told = read_lines(journal)
        assert [step["step"] for step in steps_of(told)] == [1, 4]
        assert any("2 event(s) are missing here" in event.get("message", "") for event in told)


@pytest.mark.parametrize("write", [
    lambda path: save_tensors(path / "a.safetensors", {"a": torch.zeros(100_000)}),
    lambda path: np.save(path / "a.npy", np.zeros(100_000)),
    lambda path: np.savez(path / "a.npz", a=np.zeros(100_000)),
    lambda path: write_json(path / "a.json", "x" * 400_000),
    lambda path: (path / "a.txt").write_text("x" * 400_000),
    lambda path: write_nifti(path / "a.nii", np.zeros((50, 50, 50), np.float32), Grid((50, 50, 50), np.eye(4))),
])  # fmt: skip
def test_whatever_is_written_into_a_commit_a_full_disk_is_told_with_needed_and_free_bytes(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    with small_disk(tmp_path / "disk", 2) as disk:
        disk.fill(LITTLE)
        with pytest.raises(EnvironmentProblem, match=SAID), committed_directory(disk.root / "result") as scratch:
            write(scratch)
        assert [path.name for path in disk.root.iterdir() if path.name != "ballast"] == []


def test_tensors_that_find_no_room_are_an_error_of_the_system_with_number_name_and_bytes(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2) as disk:
        disk.fill(LITTLE)
        path = disk.root / "weights.safetensors"
        with pytest.raises(OSError, match="weights") as found:
            save_tensors(path, {"a": torch.zeros(100_000)})
        assert found.value.errno in (errno.ENOSPC, errno.EFBIG)
        assert found.value.needed_bytes >= 400_000
        assert not path.exists()

import errno
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from data.errors import EnvironmentProblem, IntegrityError
from data.files import (
    committed_directory,
    is_committed,
    read_json,
    remove_unfinished,
    verify_directory,
    write_json,
)

PROJECT = Path(__file__).resolve().parent.parent
SITES = ("commit.before_manifest", "commit.after_manifest", "commit.between_renames", "commit.after_rename")
COMMIT_NEW = """
import sys
from collections import Counter
from pathlib import Path
from data.files import committed_directory
with committed_directory(Path(sys.argv[1])) as scratch:
    (scratch / "weights.bin").write_bytes(b"new" * 1000)
"""


def commit(target: Path, content: bytes) -> None:
    with committed_directory(target) as scratch:
        (scratch / "weights.bin").write_bytes(content)


def commit_elsewhere(target: Path, fault: str) -> int:
    environment = os.environ | {"DICESCOPE_FAULT": fault, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(
        [sys.executable, "-c", COMMIT_NEW, str(target)], env=environment, capture_output=True
    ).returncode


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("there_before", [False, True])
def test_a_kill_at_any_step_of_a_commit_leaves_the_old_or_the_new_whole(tmp_path, site, there_before):
    target = tmp_path / "detector"
    if there_before:
        commit(target, b"old")
    if site == "commit.between_renames" and not there_before:
        assert commit_elsewhere(target, f"{site}:1:kill") == 0
        return
    assert commit_elsewhere(target, f"{site}:1:kill") == -signal.SIGKILL
    remove_unfinished(tmp_path)
    if site == "commit.after_rename":
        assert (target / "weights.bin").read_bytes() == b"new" * 1000
        verify_directory(target)
    elif there_before:
        assert (target / "weights.bin").read_bytes() == b"old"
        verify_directory(target)
    else:
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] in ([target.name], [])


@pytest.mark.parametrize("site", SITES[:3])
def test_a_full_disk_keeps_the_old_commit_and_says_how_many_bytes(tmp_path, site, monkeypatch):
    target = tmp_path / "detector"
    commit(target, b"old")
    monkeypatch.setattr("data.files._fault_hits", Counter())
    monkeypatch.setenv("DICESCOPE_FAULT", f"{site}:1:enospc")
    with pytest.raises(EnvironmentProblem, match=r"No space left.*needs more than \d{4} bytes; free now: \d+ bytes"):
        commit(target, b"x" * 5000)
    assert (target / "weights.bin").read_bytes() == b"old"
    verify_directory(target)
    assert [path.name for path in tmp_path.iterdir()] == ["detector"]


def test_a_missing_file_elsewhere_is_not_reported_as_a_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError), committed_directory(tmp_path / "out" / "scores"):
        Path("/nowhere/scan.nii.gz").read_bytes()


def test_a_directory_that_cannot_be_written_is_an_environment_problem(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="Could not write"):
        commit(tmp_path / "file" / "detector", b"x")
    with pytest.raises(EnvironmentProblem, match="Could not write"):
        write_json(tmp_path / "file" / "run.json", {})


def test_names_as_long_as_the_file_system_allows_can_be_committed_and_replaced(tmp_path):
    target = tmp_path / ("s" * 255)
    commit(target, b"old")
    commit(target, b"new")
    assert (target / "weights.bin").read_bytes() == b"new"


def test_a_target_whose_name_begins_with_old_is_not_taken_for_a_hidden_commit(tmp_path):
    leftover = tmp_path / ".tmp-new-abc"
    leftover.mkdir()
    commit(tmp_path / "old-detector", b"old")
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["old-detector"]


def test_every_flipped_byte_of_a_commit_is_found(tmp_path):
    commit(tmp_path / "d", bytes(range(256)) * 40)
    file = tmp_path / "d" / "weights.bin"
    good = file.read_bytes()
    for position in range(0, len(good), 997):
        file.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(IntegrityError, match=r"weights\.bin is damaged"):
            verify_directory(tmp_path / "d")
    file.write_bytes(good)
    verify_directory(tmp_path / "d")


def test_an_error_inside_the_block_commits_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), committed_directory(tmp_path / "d"):
        _ = 1 / 0
    assert not is_committed(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_json_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"a": float("nan")})

    def refuse(self, other):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(EnvironmentProblem, match="No space left"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]

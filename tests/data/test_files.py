import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from data import hashed, whole_files
from data.errors import BadInput, EnvironmentProblem, IntegrityError
from data.files import committed_directory, committed_file, is_committed, read_committed_json, verify_directory
from data.json_files import read_json, read_sealed_json, sealed, write_json, write_sealed_json
from data.whole_files import remove_unfinished

PROJECT = Path(__file__).resolve().parents[2]
SITES = ("commit.before_manifest", "commit.after_manifest", "commit.between_renames", "commit.after_rename")
COMMIT_NEW = """
import sys
import time
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
    monkeypatch.setattr("data.whole_files._fault_hits", Counter())
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


def test_a_folder_that_is_not_ours_is_never_replaced(tmp_path):
    raw = tmp_path / "scans" / "test01"
    raw.mkdir(parents=True)
    (raw / "T1.nii.gz").write_bytes(b"precious")
    with pytest.raises(BadInput, match=r"T1\.nii\.gz.*Nothing was written"):
        commit(raw, b"x")
    (raw / "manifest.json").write_text('{"name": "some web site", "files": ["T1.nii.gz"]}')
    with pytest.raises(BadInput, match="Nothing was written"):
        commit(raw, b"x")
    assert (raw / "T1.nii.gz").read_bytes() == b"precious"
    assert [path.name for path in raw.parent.iterdir()] == ["test01"]


def test_a_file_that_somebody_laid_into_a_commit_is_not_lost_with_it(tmp_path):
    commit(tmp_path / "d", b"old")
    (tmp_path / "d" / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"notes\.txt"):
        commit(tmp_path / "d", b"new")
    assert (tmp_path / "d" / "notes.txt").read_text() == "mine"
    (tmp_path / "d" / "notes.txt").rename(tmp_path / "d" / ".DS_Store")
    commit(tmp_path / "d", b"new")
    assert (tmp_path / "d" / "weights.bin").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/elsewhere/out", ".."])
def test_a_commit_stays_below_the_directory_that_must_hold_it(tmp_path, name):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(BadInput, match="not a place below"), committed_directory(run / name, within=run) as scratch:
        (scratch / "x").write_bytes(b"x")
    assert [path.name for path in tmp_path.rglob("*")] == ["run"]


def test_a_link_out_of_the_directory_is_not_followed_by_a_commit(tmp_path):
    run, precious = tmp_path / "run", tmp_path / "precious"
    run.mkdir()
    commit(precious / "sub-01", b"precious")
    (run / "scores").symlink_to(precious)
    (run / "evaluation").symlink_to(precious / "sub-01")
    for target in (run / "scores" / "sub-01", run / "evaluation"):
        with pytest.raises(BadInput, match="not a place below"), committed_directory(target, within=run):
            pass
    assert (precious / "sub-01" / "weights.bin").read_bytes() == b"precious"


def test_every_flipped_byte_of_a_manifest_is_found(tmp_path):
    with committed_directory(tmp_path / "d", about={"subject_id": "sub-01"}) as scratch:
        (scratch / "a.bin").write_bytes(b"a")
    manifest = tmp_path / "d" / "manifest.json"
    good = manifest.read_bytes()
    for position in range(len(good)):
        for bit in (1, 32, 128):
            manifest.write_bytes(good[:position] + bytes([good[position] ^ bit]) + good[position + 1 :])
            with pytest.raises(IntegrityError):
                verify_directory(tmp_path / "d")
    manifest.write_bytes(good)
    verify_directory(tmp_path / "d", about={"subject_id": "sub-01"})


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "3", "[" * 100_000, "\xff", '{"schema": 1}', '{"schema": 1, "files": []}'),
        *('{"schema": 2, "files": {}}', '{"schema": 1, "files": {"x": 3}}'),
        '{"schema": 1, "files": {"../../x": "' + "0" * 64 + '"}}',
    ],
)
def test_a_manifest_of_another_form_is_damaged_whatever_it_is(tmp_path, text):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(IntegrityError, match="damaged"):
        verify_directory(tmp_path / "d")


def test_a_manifest_of_a_newer_version_is_refused_not_guessed(tmp_path):
    commit(tmp_path / "d", b"x")
    manifest = tmp_path / "d" / "manifest.json"
    content = read_json(manifest) | {"schema": 99}
    content.pop("sha256")
    manifest.write_text(json.dumps(sealed(content), indent=1, sort_keys=True))
    with pytest.raises(BadInput, match="newer version"):
        verify_directory(tmp_path / "d")


def test_a_commit_of_before_manifests_had_a_digest_is_still_read(tmp_path):
    commit(tmp_path / "d", b"x")
    files = read_json(tmp_path / "d" / "manifest.json")["files"]
    (tmp_path / "d" / "manifest.json").write_text(json.dumps({"schema": 1, "files": files}))
    verify_directory(tmp_path / "d", about={"subject_id": "sub-01"})
    (tmp_path / "d" / "weights.bin").write_bytes(b"y")
    with pytest.raises(IntegrityError):
        verify_directory(tmp_path / "d")


def test_results_that_were_exchanged_for_each_other_are_noticed(tmp_path):
    for subject in ("sub-01", "sub-02"):
        with committed_directory(tmp_path / subject, about={"subject_id": subject}) as scratch:
            (scratch / "scores.json").write_text("1")
    (tmp_path / "sub-01").rename(tmp_path / "x")
    (tmp_path / "sub-02").rename(tmp_path / "sub-01")
    verify_directory(tmp_path / "sub-01")
    with pytest.raises(IntegrityError, match=r"'sub-02'.*'sub-01' belongs"):
        read_committed_json(tmp_path / "sub-01", "scores.json", about={"subject_id": "sub-01"})


def test_a_file_is_hashed_once_and_again_when_it_was_touched(tmp_path, monkeypatch):
    commit(tmp_path / "d", b"x" * 1000)
    file, seen = tmp_path / "d" / "weights.bin", []
    time.sleep(0.2)  # longer than a step of a file system's clock
    real = hashed.sha256_file
    monkeypatch.setattr(hashed, "sha256_file", lambda path: seen.append(path.name) or real(path))
    for _ in range(3):
        committed_file(tmp_path / "d", "weights.bin")
    assert seen == ["weights.bin"]
    state = file.stat()
    file.write_bytes(b"y" * 1000)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # same size, same time of writing
    with pytest.raises(IntegrityError, match="is damaged"):
        committed_file(tmp_path / "d", "weights.bin")


def test_a_file_that_no_manifest_names_is_not_read(tmp_path):
    commit(tmp_path / "d", b"x")
    (tmp_path / "d" / "levels.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"levels\.json is missing"):
        read_committed_json(tmp_path / "d", "levels.json")


def test_a_sealed_file_tells_when_a_value_in_it_was_changed(tmp_path):
    path = tmp_path / "facts.json"
    write_sealed_json(path, {"hits": 12, "key": "a"})
    assert read_sealed_json(path) == {"hits": 12, "key": "a"}
    path.write_text(path.read_text().replace("12", "13"))
    with pytest.raises(IntegrityError, match="damaged or edited"):
        read_sealed_json(path)
    for text in ("[]", "{}", "null", ""):
        path.write_text(text)
        with pytest.raises(IntegrityError):
            read_sealed_json(path)


def test_litter_of_the_dead_is_cleared_and_that_of_the_living_is_kept(tmp_path):
    code = (
        "import sys; from pathlib import Path; from data.files import scratch_name;"
        "d = Path(sys.argv[1]); (d / scratch_name('new-')).mkdir(); (d / scratch_name()).write_text('x');"
        "(d / scratch_name('old-') / 'kept').mkdir(parents=True)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=os.environ | {"PYTHONPATH": str(PROJECT)}, check=True
    )
    mine = tmp_path / whole_files.scratch_name("new-")
    mine.mkdir()
    unknown = tmp_path / ".tmp-new-abc"
    unknown.mkdir()
    (tmp_path / ".tmp-notes.txt").write_text("not of this program")
    whole_files.clear_litter(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([mine.name, unknown.name, ".tmp-notes.txt", "kept"])
    remove_unfinished(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([mine.name, "kept"])

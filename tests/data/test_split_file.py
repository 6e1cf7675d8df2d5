"""A split file is judged before any scan is prepared: what it holds, whom it names, and in words what is wrong."""

import json
from pathlib import Path

import pytest

import cli
from core.study.data_source import cache_directory
from data.cohort import Cohort, Split, Subject
from data.errors import BadInput
from data.split_file import read_split
from tests.study import SCAN_FLAGS, write_scans

COHORT = Cohort("four", tuple(Subject(i, {}) for i in ("a", "b", "c", "1")))
GOOD = {"train": ["a", "b"], "calibration": ["c"], "test": ["1"]}
BAD = {
    "a wrong name": ('{"train": ["a", "b"], "tests": ["c"]}', "'tests'.*train, calibration, validation, test"),
    "an extra key": ('{"train": ["a", "b"], "note": "mine"}', "'note'"),
    "a list": ('["a", "b"]', "holds a list"),
    "a number": ("5", "holds a number"),
    "null": ("null", "holds null"),
    "true": ("true", "holds true"),
    "a text": ('"train"', "holds a text"),
    "a number for a list": ('{"train": 5}', "'train' is a number"),
    "a text for a list": ('{"train": "ab"}', "'train' is a text"),
    "null for a list": ('{"train": null}', "'train' is null"),
    "an object for a list": ('{"train": {"a": 1}}', "'train' is an object"),
    "a number for an id": ('{"train": ["a", 1]}', r"'train' holds a number \(1\)"),
    "a list for an id": ('{"train": [["a"]]}', "'train' holds a list"),
    "null for an id": ('{"train": [null]}', "'train' holds null"),
    "an object for an id": ('{"train": [{}]}', "'train' holds an object"),
    "an id twice": ('{"train": ["a", "b", "a"]}', "'train' has 'a' more than once"),
    "an id in two lists": ('{"train": ["a", "b"], "test": ["b"]}', "'b' is in two splits: train and test"),
    "a list twice": ('{"train": ["a"], "train": ["b"]}', "has 'train' more than once"),
    "an unknown id": ('{"train": ["a", "zz"]}', "1 subject.*lacks: 'zz'"),
    "no JSON": ("{train: [a]}", "is not valid JSON"),
    "nothing": ("", "is not valid JSON"),
    "deep nesting": ("[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize(("text", "said"), BAD.values(), ids=BAD.keys())
def test_what_is_no_split_is_bad_input_that_names_the_file(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=said) as caught:
        read_split(path, COHORT)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes('{"train": ["ä"]}'.encode("latin-1"))
    for name, said in (("nowhere", "No such file"), ("latin", "is not UTF-8"), ("", "is a folder")):
        with pytest.raises(BadInput, match=said):
            read_split(tmp_path / name, COHORT)
    with pytest.raises(BadInput, match=r"cannot be read|null"):
        read_split(tmp_path / "a\0b", COHORT)


def test_a_good_file_is_the_split_and_a_list_that_is_not_there_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert read_split(path, COHORT) == Split(("a", "b"), ("c",), (), ("1",))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scans(tmp_path_factory.mktemp("scans") / "cohort.csv")


@pytest.mark.parametrize("verb", ["prepare", "fit", "pretrain", "visibility-before", "compare-pretraining"])
@pytest.mark.parametrize(
    "text", [BAD["a wrong name"][0], BAD["a list"][0], BAD["a number for an id"][0], BAD["no JSON"][0], None]
)
def test_every_verb_refuses_it_with_exit_2_before_a_scan_is_prepared(
    verb: str, text: str | None, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, runs = tmp_path / "split.json", tmp_path / "runs"
    if text is not None:
        path.write_text(text)
    assert cli.main([verb, str(table), *SCAN_FLAGS, "--runs", str(runs), "--split", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
    assert not cache_directory(runs).exists()
    assert not runs.exists()


@pytest.mark.parametrize("ids", [[], ["train01"], ["train01", "test01"]], ids=["none", "one", "one ill"])
def test_a_split_without_two_healthy_training_scans_is_refused_before_a_scan_is_prepared(
    ids: list[str], table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, runs = tmp_path / "split.json", tmp_path / "runs"
    path.write_text(json.dumps({"train": ids, "calibration": ["calibration01"]}))
    assert cli.main(["prepare", str(table), *SCAN_FLAGS, "--runs", str(runs), "--split", str(path)]) == 2
    assert "train" in capsys.readouterr().err
    assert not runs.exists()


def test_a_cohort_or_a_layout_that_is_not_there_is_refused_before_anything_is_written(
    table: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    assert cli.main(["prepare", str(tmp_path / "nowhere.csv"), "--runs", str(runs)]) == 2
    assert cli.main(["prepare", str(table), "--layout", "foo", "--runs", str(runs)]) == 2
    assert not runs.exists()

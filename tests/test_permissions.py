"""A runs directory that other accounts may write into is told, once per command and on standard error only."""

import grp
import json
import os
import pwd
from pathlib import Path

import pytest

import cli
from data.permissions import doors_open
from tests.study import TinyStudy


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for run in ("a", "b"):
        (tmp_path / "runs" / run).mkdir(parents=True, mode=0o755)
    (tmp_path / "runs").chmod(0o755)
    return tmp_path / "runs"


def test_what_only_its_owner_may_write_is_no_cause_for_a_word(runs: Path) -> None:
    assert doors_open(runs) == ()
    assert doors_open(runs / "none yet") == ()
    assert doors_open(None) == ()


@pytest.mark.parametrize("where", [".", "a"])
def test_a_directory_that_everybody_may_write_is_named_with_the_remedy(runs: Path, where: str) -> None:
    (runs / where).chmod(0o777)
    (warning,) = doors_open(runs)
    assert str(runs / where) in warning
    assert "every account of this machine" in warning
    assert f"chmod -R go-w {runs}" in warning


def test_a_group_of_others_counts_and_the_groups_that_belong_to_one_account_do_not(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.chmod(0o775)
    me, mine = pwd.getpwuid(os.getuid()), grp.getgrgid(runs.stat().st_gid)
    own = grp.struct_group((me.pw_name, "x", me.pw_gid, []))
    monkeypatch.setattr("data.permissions.grp.getgrgid", lambda gid: own)
    monkeypatch.setattr("data.permissions.pwd.getpwuid", lambda uid: me)
    assert (doors_open(runs) == ()) is (me.pw_gid == mine.gr_gid)
    shared = grp.struct_group(("lab", "x", me.pw_gid, ["ada", me.pw_name]))
    monkeypatch.setattr("data.permissions.grp.getgrgid", lambda gid: shared)
    assert "the group lab" in doors_open(runs)[0]


def test_many_open_folders_are_one_sentence(runs: Path) -> None:
    for run in ("a", "b"):
        (runs / run).chmod(0o777)
    (warning,) = doors_open(runs)
    assert "and 1 more of its folders" in warning


def test_verbs_warn_on_standard_error_and_keep_standard_output_clean(
    own_study: TinyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["runs", "--runs", str(own_study.runs), "--json"]) == 0
    assert "warning" not in capsys.readouterr().err
    own_study.runs.chmod(0o777)
    assert cli.main(["runs", "--runs", str(own_study.runs), "--json"]) == 0
    said = capsys.readouterr()
    assert said.err.count("warning: ") == 1
    assert len(json.loads(said.out)) == 3

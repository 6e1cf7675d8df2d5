"""Runs that can only be read are read by every verb and page that reads; what would be kept is done without."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

import cli
from core.runs import stages
from tests.study import FIT_FLAGS, SCAN_FLAGS, TinyStudy

ROOT = Path(__file__).parents[1]
PAGES = ("overview", "slices", "layers", "distributions", "diagnosis", "training", "data", "report")


@pytest.fixture(scope="module")
def sealed(study: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyStudy]:
    """A copy of the study, with a memory bank, on a file system that is mounted read-only."""
    own = study.copy(tmp_path_factory.mktemp("sealed") / "study")
    bank = ["fit", str(own.table), "--runs", str(own.runs), *SCAN_FLAGS, "--run-id", "bank", "--detector", "patchcore"]
    assert cli.main([*bank, "--encoder", "tiny-encoder", *FIT_FLAGS, "--search", "hnsw"]) == 0
    for verb in ("score", "evaluate"):
        assert cli.main([verb, "bank", "--runs", str(own.runs)]) == 0
    unseal = seal(own.runs)
    with pytest.raises(OSError):  # noqa: PT011
        (own.runs / "tiny" / "new").write_text("")
    yield own
    unseal()


def seal(directory: Path) -> Callable[[], object]:
    """Let nobody write below a directory: by a read-only mount, or, for whom modes hold, by its modes."""
    mount = subprocess.run(["mount", "--bind", directory, directory], capture_output=True, check=False)
    if mount.returncode == 0:
        subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
        return lambda: subprocess.run(["umount", "-l", directory], check=True)
    assert os.getuid() != 0, f"root is refused by no mode, and cannot mount here: {mount.stderr.decode()}"
    subprocess.run(["chmod", "-R", "a-w", directory], check=True)
    return lambda: subprocess.run(["chmod", "-R", "u+w", directory], check=True)


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_unkept", set())


READING = {
    "runs": ["runs"],
    "compare-layers": ["compare-layers", "tiny"],
    "diagnose": ["diagnose", "tiny"],
    "what-if": ["what-if", "tiny"],
    "report": ["report", "tiny", "--out", "{out}/report.html"],
    "score": ["score", "tiny"],
    "export": ["score", "tiny", "--export", "{out}/maps"],
    "neighbours": ["neighbours", "bank", "test01"],
}


@pytest.mark.parametrize("name", READING)
def test_a_reading_verb_works_where_nothing_can_be_written(
    sealed: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    words = [word.format(out=tmp_path) for word in READING[name]]
    assert cli.main([*words, "--runs", str(sealed.runs)]) == 0
    said = capsys.readouterr().err
    assert said.count("keeps nothing") <= 1
    assert name != "diagnose" or "note: run tiny keeps nothing of what is computed now" in said


def test_a_diagnosis_that_cannot_be_kept_is_the_one_that_is_kept(
    sealed: TinyStudy, own_study: TinyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for runs in (sealed.runs, own_study.runs):
        assert cli.main(["diagnose", "tiny", "--runs", str(runs), "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_runs_that_can_only_be_read(sealed: TinyStudy, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("DICESCOPE_RUNS", str(sealed.runs))
    monkeypatch.chdir(ROOT)
    st.cache_resource.clear()
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120)
    if name != "overview":
        app.switch_page(f"pages/{name}.py")
    app.run()
    assert not app.exception
    assert not app.error

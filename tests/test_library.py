"""The page on the library runs as it stands, and the version is one everywhere."""

import re
import tomllib
from pathlib import Path

import pytest

from core.runs.listing import open_run
from core.runs.provenance import VERSION, environment
from tests.study import TinyStudy

ROOT = Path(__file__).resolve().parent.parent


def test_the_example_of_the_library_runs_as_it_stands(
    own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(own_study.root)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/library.md", "exec"), names)
    run = open_run(own_study.runs, "by-hand")
    assert run.record["recipe"]["floor"] == 0.1
    assert run.record["versions"]["dicescope"] == VERSION
    assert "healthy standard deviations" in capsys.readouterr().out


def test_the_version_is_one_everywhere() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION
    assert f"version: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {VERSION}" in (ROOT / "CHANGELOG.md").read_text()
    assert environment()["dicescope"] == VERSION

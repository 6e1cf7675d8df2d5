"""A detector of one class and one row: every verb, every page and the report take it without another edit."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

import cli
from core.detectors import CATALOGUE, Row, kinds, make, plain_name, recipe_json
from core.detectors.capabilities import (
    Covariance,
    KeepsPatches,
    LayerSets,
    LeavesOut,
    OnlyRanks,
    OwnFilters,
    Refits,
    ScanScores,
    SearchIndex,
    TellsSize,
    TwoParts,
    can,
    members,
    own_filters,
)
from core.recipes import as_json, from_json
from core.runs.listing import open_run
from core.types import Monitor, ScoreMap, silent
from data.json_files import read_json, write_json
from data.volume import Volume
from tests.study import SCAN_FLAGS, TinyStudy

ROOT = Path(__file__).parents[3]
PAGES = ("overview", "slices", "layers", "distributions", "diagnosis", "data", "report")


@dataclass(eq=False)
class Newcomer:
    """How far a voxel lies from the healthy mean at its place: all that a detector must have, and two settings."""

    score_unit: ClassVar[str] = "distance from the healthy mean"
    plain_name: ClassVar[str] = "a newcomer"

    power: float = 1.0
    """Of the distance."""
    side: Literal["both", "bright"] = "both"
    """Which side of the mean is anomalous."""

    mean_: np.ndarray | None = field(default=None, init=False, repr=False)

    def fit(self, train: Sequence[Volume], monitor: Monitor = silent) -> Self:
        """The mean at every voxel."""
        self.mean_ = np.mean([volume.voxels[0] for volume in train], axis=0)
        return self

    def score(self, volume: Volume) -> ScoreMap:
        """The distance from it."""
        assert self.mean_ is not None
        apart = volume.voxels[0] - self.mean_
        distance = np.abs(apart) if self.side == "both" else np.maximum(apart, 0)
        scores = np.where(volume.brain_mask, distance**self.power, np.nan)
        return ScoreMap(scores.astype(np.float32), volume.grid, volume.subject_id, self.score_unit)

    def save(self, directory: Path) -> None:
        """Recipe and mean."""
        assert self.mean_ is not None
        write_json(directory / "detector.json", {"recipe": as_json(self)})
        np.save(directory / "mean.npy", self.mean_)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """What `save` wrote."""
        detector = from_json(cls, read_json(directory / "detector.json")["recipe"])
        detector.mean_ = np.load(directory / "mean.npy", allow_pickle=False)
        return detector


@pytest.fixture
def _row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one row."""
    monkeypatch.setitem(CATALOGUE, "newcomer", Row(Newcomer(), "distance from the healthy mean"))  # type: ignore[arg-type]


@pytest.mark.usefixtures("_row")
def test_a_newcomer_goes_through_every_verb_and_page(
    own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runs = ["--runs", str(own_study.runs)]
    fit = ["fit", str(own_study.table), *runs, *SCAN_FLAGS, "--detector", "newcomer", "--run-id", "new"]
    commands = [
        [*fit, "--power", "0.5", "--side", "bright"],
        ["score", "new", *runs],
        ["evaluate", "new", *runs, "--workers", "1"],
        ["what-if", "new", "erode-mask", *runs],
        ["what-if", "new", "fewer-scans", *runs],
        ["post-processing", "new", *runs, "--workers", "1"],
        ["diagnose", "new", *runs],
        ["report", "new", *runs, "--out", str(tmp_path / "report.html")],
        ["gate", "new", "tiny-intensity", *runs, "--run-id", "gated"],
        ["detectors", "--json"],
    ]
    for command in commands:
        assert cli.main(command) == 0, (command, capsys.readouterr().err)
    catalogue = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))
    assert catalogue["newcomer"]["power"] == 1.0
    run = open_run(own_study.runs, "new")
    assert run.record["recipe"] == {"kind": "Newcomer", "power": 0.5, "side": "bright"}
    assert "--power 0.5 --side bright" in (tmp_path / "report.html").read_text()
    monkeypatch.setenv("DICESCOPE_RUNS", str(own_study.runs))
    monkeypatch.chdir(ROOT)
    st.cache_resource.clear()
    for name in PAGES:
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
        app.query_params["run"] = "new"
        if name != "overview":
            app.switch_page(f"pages/{name}.py")
        app.run()
        assert not app.exception, (name, app.exception)


@pytest.mark.usefixtures("_row")
def test_a_newcomer_has_what_it_has_and_nothing_else() -> None:
    new = make("newcomer", {"power": 2.0})
    assert recipe_json(new) == {"kind": "Newcomer", "power": 2.0, "side": "both"}
    assert kinds()["Newcomer"] is Newcomer
    assert plain_name("Newcomer") == "a newcomer"
    more = (LayerSets, ScanScores, LeavesOut, Refits, Covariance, KeepsPatches, SearchIndex, TwoParts, OnlyRanks)
    assert not [capability for capability in (*more, TellsSize, OwnFilters) if can(new, capability)]
    assert own_filters(new) == (0.0, 0)


@pytest.mark.usefixtures("_row")
def test_flags_of_others_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "x.csv", "--detector", "newcomer", "--ridge", "1"]) == 2
    assert "Detector 'newcomer' has no features. Leave out: --ridge." in capsys.readouterr().err
    assert cli.main(["fit", "x.csv", "--power", "2"]) == 2
    assert "has a Gaussian and has no such setting. Leave out: --power." in capsys.readouterr().err
    assert cli.main(["fit", "x.csv", "--detector", "newcomer", "--power", "nan"]) == 2
    assert "--power is nan" in capsys.readouterr().err


CAN = {
    "gaussian": {LayerSets, LeavesOut, Refits, Covariance, OwnFilters},
    "patchcore": {LayerSets, ScanScores, Refits, KeepsPatches, SearchIndex, OwnFilters},
    "zscore": {TellsSize, OwnFilters},
    "intensity-dark": {OnlyRanks, OwnFilters},
}


@pytest.mark.parametrize("name", CAN)
def test_what_the_detectors_of_the_catalogue_can(name: str) -> None:
    every = (LayerSets, ScanScores, LeavesOut, Refits, Covariance, KeepsPatches, SearchIndex, TwoParts, OnlyRanks,
             TellsSize, OwnFilters)  # fmt: skip
    assert {capability for capability in every if can(make(name), capability)} == CAN[name]


def test_a_capability_names_what_those_that_it_builds_on_name() -> None:
    assert {"fit", "score", "save", "load"} <= members(OwnFilters) <= members(LayerSets) <= members(Covariance)
    assert "left_out" in members(LeavesOut) - members(LayerSets)

"""Causes of a low Dice, planted alone, are found: each has the largest cost, and about what a repaired study gains."""

import functools
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.detectors.feature_gaussian import FeatureGaussian
from core.diagnosis.diagnose import diagnose
from core.diagnosis.what_if import of_scans
from core.diagnosis.what_if.catalogue import applicable, run_what_if
from core.features.settings import FeatureSettings
from core.memory_plan import GaussianSettings
from core.metrics.subject_scores import dice_at
from core.progress import Progress
from core.runs.evaluated import read_metrics
from core.runs.run_record import Run
from core.study.stored_scores import open_scores
from models.settings import EncoderSettings
from tests.planted import SHIFT_MM, Cause, Planted

PROTOCOL = "validation"
OWN_BAR: dict[Cause, str] = {
    "gain": "R5",
    "remnant": "R9",
    "field-of-view": "R1",
    "labels": "R13",
}
NOT_CHANGES = ("R0", "R14", "R16", "R17")
"""A property of the task, a check, a way to average, and noise: nothing that a repaired study would gain."""


@pytest.fixture(scope="module", autouse=True)
def few_offsets() -> Iterator[None]:
    """Registration is tried at 2 mm to either side alone: that is what is planted, and each offset scores anew."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(of_scans, "SHIFTS_MM", (SHIFT_MM,))
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("planted")


@functools.cache
def study(root: Path, cause: Cause, spacing_mm: float = 4.0) -> Run:
    return Planted(root / f"{cause}-{spacing_mm:g}", cause, spacing_mm).run()


@functools.cache
def diagnosed(root: Path, cause: Cause, spacing_mm: float = 4.0) -> dict[str, Any]:
    return with_what_ifs(study(root, cause, spacing_mm))


def with_what_ifs(run: Run) -> dict[str, Any]:
    quiet = Progress(False, io.StringIO())
    for row in applicable(run):
        if row["applies"] and row["name"] not in ("shift", "fewer-scans", "nearest-age"):
            run_what_if(run, row["name"], quiet)
    return diagnose(run, quiet, protocol=PROTOCOL)


def dice(run: Run, protocol: str = PROTOCOL) -> float:
    (figures,) = read_metrics(run)["sets"].values()
    return float(figures["working"]["protocols"][protocol]["mean_dice"])


def costs(found: dict[str, Any]) -> dict[str, float]:
    return {c["id"]: c["cost"] for c in found["causes"] if c["cost"] is not None and c["id"] not in NOT_CHANGES}


def test_without_a_cause_no_bar_is_large(root: Path) -> None:
    assert dice(study(root, "none")) > 0.97
    assert max(costs(diagnosed(root, "none")).values()) < 0.05


@pytest.mark.parametrize("cause", list(OWN_BAR))
def test_a_cause_planted_alone_has_the_largest_bar_and_costs_what_its_repair_gains(root: Path, cause: Cause) -> None:
    gained = dice(study(root, "none")) - dice(study(root, cause))
    bars = costs(diagnosed(root, cause))
    own = bars.pop(OWN_BAR[cause])
    assert gained > 0.1
    assert own > max(bars.values()), bars
    assert own == pytest.approx(gained, rel=0.2)


@pytest.mark.slow
def test_a_registration_error_of_2_mm_planted_alone_has_the_largest_bar_and_costs_what_its_repair_gains(
    root: Path,
) -> None:
    gained = dice(study(root, "none", 2.0)) - dice(study(root, "shift", 2.0))
    bars = costs(diagnosed(root, "shift", 2.0))
    own = bars.pop("R6")
    assert gained > 0.1
    assert own > max(bars.values()), bars
    assert own == pytest.approx(gained, rel=0.2)


def test_too_few_scans_planted_alone_have_the_largest_bar_and_cost_what_another_covariance_gains(root: Path) -> None:
    features = FeatureSettings(layers=("stage0",), grid="4mm")
    full = FeatureGaussian(encoder=EncoderSettings(width=4), features=features, gaussian=GaussianSettings(ridge=1e-8))
    repaired = replace(full, gaussian=replace(full.gaussian, covariance="diagonal"))
    scans = Planted(root / "few-scans", "few-scans")  # as many as features and one
    gained = dice(scans.run(repaired, "repaired")) - dice(run := scans.run(full, "full"))
    bars = costs(with_what_ifs(run))
    own = bars.pop("R8")
    assert gained > 0.1
    assert own > max(bars.values()), bars
    assert own == pytest.approx(gained, rel=0.2)


def test_a_coarse_threshold_grid_planted_alone_has_the_largest_bar_and_costs_what_an_exact_search_gains(
    root: Path,
) -> None:
    features = FeatureSettings(layers=("input",), grid="4mm")
    gaussian = GaussianSettings(ridge=1e-10)  # no floor: a voxel that never varied in training has a huge score
    run = Planted(root / "tail", "tail").run(FeatureGaussian(features=features, gaussian=gaussian), "input")
    bars = costs(with_what_ifs(run))
    (variant,) = run_what_if(run, "threshold-grid", Progress(False, io.StringIO()))["variants"]
    own = -variant["test"][PROTOCOL]["gain"]
    scores = open_scores(run)
    validation = scores.voxels_of(scores.subjects("validation"), scores.layers, "working")
    test = scores.voxels_of(scores.subjects("test"), scores.layers, "working")
    everything = np.concatenate([part for s in validation for part in (s.normal, s.anomalous)])
    steps = np.linspace(everything.min(), everything.max(), 100)
    coarse = max(steps, key=lambda t: np.mean([dice_at(s, t) for s in validation]))
    gained = dice(run) - np.mean([dice_at(s, coarse) for s in test if s.n_lesion])
    assert gained > 0.1
    assert own > max(bars.values()), bars
    assert own == pytest.approx(gained, rel=0.2)


def test_a_threshold_tuned_on_test_labels_shows_as_what_it_would_add(root: Path) -> None:
    found = diagnosed(root, "faint-test")
    added = dice(study(root, "faint-test"), "oracle_set") - dice(study(root, "faint-test"))
    bars = {c["id"]: c["cost"] for c in found["causes"] if c["cost"] is not None and c["id"] not in ("R0", "R17")}
    assert added > 0.3
    assert bars["R14"] == pytest.approx(-added, abs=1e-9)
    assert min(bars, key=lambda name: bars[name]) == "R14"
    assert bars["R7"] == pytest.approx(added, rel=0.2)
    assert max((c for c in bars if c != "R7"), key=lambda c: bars[c]) != "R14"

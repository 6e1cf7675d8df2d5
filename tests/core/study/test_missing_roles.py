"""Runs that lack a role: no calibration, no test, all healthy, of unknown health. What can be said is said."""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

import cli
from core.detectors.feature_gaussian import FeatureGaussian
from core.detectors.intensity import Intensity
from core.features.settings import FeatureSettings
from core.progress import Progress
from core.runs.run_record import Run
from core.study import fitting, scoring
from core.study.data_source import DataSource
from core.study.evaluation import evaluate_run
from core.study.evaluation_words import evaluation_words
from core.study.run_summary import run_rows
from core.study.stored_scores import open_scores
from core.types import Detector
from data.cohort import Subject
from data.errors import BadInput
from data.table import read_table, write_table
from models.settings import EncoderSettings
from tests.study import PREPROCESSING, TinyStudy

ROOT = Path(cli.__file__).resolve().parent
PAGES = ("overview", "slices", "layers", "distributions", "diagnosis", "training", "data", "report")


def quiet() -> Progress:
    return Progress(False, io.StringIO())


def run_on(
    study: TinyStudy,
    run_id: str,
    changed: Callable[[Subject], Subject | None],
    detector: Detector | None = None,
) -> Run:
    """Intensity (or another detector), fitted and scored on the table as changed."""
    subjects = [new for s in read_table(study.table).subjects if (new := changed(s)) is not None]
    table = study.table.with_name(f"{run_id}.csv")
    write_table(table, subjects)
    source = DataSource(table, preprocessing=PREPROCESSING)
    run = fitting.fit(study.runs, source, detector or Intensity(), quiet(), name=run_id, run_id=run_id)
    return scoring.score(run, quiet())


def without_calibration(subject: Subject) -> Subject:
    return dataclasses.replace(subject, role="train") if subject.role == "calibration" else subject


def all_healthy(subject: Subject) -> Subject | None:
    return None if subject.role == "test" and not subject.healthy else subject


def nobody_knows(subject: Subject) -> Subject | None:
    if subject.role != "test":
        return subject
    return dataclasses.replace(subject, healthy=None) if subject.healthy else None


def no_test(subject: Subject) -> Subject | None:
    return dataclasses.replace(subject, role="validation") if subject.role == "test" and not subject.healthy else (
        None if subject.role == "test" else subject
    )  # fmt: skip


def opened(monkeypatch: pytest.MonkeyPatch, runs: Path, name: str, run_id: str) -> AppTest:
    monkeypatch.setenv("DICESCOPE_RUNS", str(runs))
    monkeypatch.chdir(ROOT)
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120)
    app.query_params["run"] = run_id
    if name != "overview":
        app.switch_page(f"pages/{name}.py")
    return app.run()


def everywhere(monkeypatch: pytest.MonkeyPatch, study: TinyStudy, run: Run, words: str) -> None:
    """Every page opens, the four that tell of an evaluation say what is the matter, and a report can be written."""
    for name in PAGES:
        app = opened(monkeypatch, study.runs, name, run.run_id)
        assert not app.exception, (name, app.exception[0].message)
        if name == "overview" and "Dice to tell" in words:
            assert any("there is no Dice" in str(caption.value) for caption in app.caption)
            assert {str(m.value) for m in app.metric if m.label == "Lesion share of brain"} >= {"–"}
        if name in ("slices", "layers", "distributions", "diagnosis"):
            assert any(words in str(info.value) for info in app.info), (name, [i.value for i in app.info])
    document = study.root / f"{run.run_id}.html"
    assert cli.main(["report", run.run_id, "--runs", str(study.runs), "--out", str(document)]) == 0
    assert document.stat().st_size > 10_000


def test_without_calibration_there_is_what_needs_none(
    own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_on(own_study, "uncalibrated", without_calibration)
    assert cli.main(["evaluate", run.run_id, "--runs", str(own_study.runs), "--workers", "1"]) == 0
    assert "no label-free threshold" in capsys.readouterr().out
    [row] = [r for r in run_rows(own_study.runs)[0] if r["run_id"] == run.run_id]
    assert "problem" not in row
    assert "healthy" not in row["dice"]
    assert row["dice"]["validation"]["mean"] > 0
    assert row["dice"]["oracle_set"]["mean"] >= row["dice"]["validation"]["mean"]
    assert row["auprc"] > 0
    everywhere(monkeypatch, own_study, run, "no label-free threshold")
    runs = ["--runs", str(own_study.runs)]
    assert cli.main(["diagnose", run.run_id, *runs]) == 2
    assert "--protocol validation" in capsys.readouterr().err
    assert cli.main(["diagnose", run.run_id, "--protocol", "validation", *runs]) == 0
    assert cli.main(["score", run.run_id, *runs, "--export", str(own_study.runs / "maps")]) == 0
    assert cli.main(["compare-layers", run.run_id, *runs]) == 0


def test_a_test_set_without_lesions_is_told_in_millilitres(
    own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_on(own_study, "healthy-test", all_healthy)
    words = " ".join(evaluation_words(run, evaluate_run(run, quiet(), workers=1)))
    assert "has a lesion, so there is no Dice to tell" in words
    assert "At the healthy threshold a healthy test scan gets" in words
    assert "At the validation threshold a healthy test scan gets" in words
    assert "mL of false positives" in words
    everywhere(monkeypatch, own_study, run, "has a lesion, so there is no Dice to tell")


def test_scans_of_unknown_health_are_counted_nowhere(own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_on(own_study, "unknown", nobody_knows)
    metrics: dict[str, Any] = evaluate_run(run, quiet(), workers=1)
    words = " ".join(evaluation_words(run, metrics))
    assert "of unknown health" in words
    assert "mL are marked on such a scan" in words
    assert metrics["sets"][metrics["headline"]]["native"]["n_healthy_subjects"] == 0
    assert metrics["subject_level"]["maximum"]["n_ill"] == metrics["subject_level"]["maximum"]["n_healthy"] == 0
    everywhere(monkeypatch, own_study, run, "of unknown health")
    data = opened(monkeypatch, own_study.runs, "data", run.run_id)
    assert any("unknown" in str(metric.label).lower() for metric in data.metric)


def test_an_empty_test_set_says_what_validation_shows(own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_on(own_study, "no-test", no_test)
    words = " ".join(evaluation_words(run, evaluate_run(run, quiet(), workers=1)))
    assert "No subject is in its test split" in words
    assert "On the validation scans" in words
    everywhere(monkeypatch, own_study, run, "No subject is in its test split")


def test_validation_alone_is_judged(own_study: TinyStudy) -> None:
    def alone(subject: Subject) -> Subject | None:
        return None if subject.role == "test" else without_calibration(subject)

    run = run_on(own_study, "validation-alone", alone)
    words = " ".join(evaluation_words(run, evaluate_run(run, quiet(), workers=1)))
    assert "No subject is in its test split" in words
    assert "no label-free threshold" in words


def test_without_calibration_and_lesions_there_is_no_threshold(own_study: TinyStudy) -> None:
    def neither(subject: Subject) -> Subject | None:
        changed = without_calibration(subject)
        return None if subject.healthy is False else changed

    run = run_on(own_study, "neither", neither)
    with pytest.raises(BadInput, match="no threshold to judge it at"):
        evaluate_run(run, quiet(), workers=1)


def test_the_data_page_says_on_whose_word(own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(monkeypatch, own_study.runs, "data", "tiny")
    told = [str(c.value).replace("\\", "") for c in app.caption]
    assert any("On whose word: healthy 'true' in the table (6)" in text for text in told), told


def gaussian() -> FeatureGaussian:
    return FeatureGaussian(
        features=FeatureSettings(layers=("input", "stage1"), grid="8mm", reduction="none"),
        encoder=EncoderSettings(width=4),
    )


def test_training_scans_left_out_in_turn_calibrate_as_refits_would(
    own_study: TinyStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_on(own_study, "left-out", without_calibration, gaussian())
    where = ["--runs", str(own_study.runs), "--workers", "1"]
    assert cli.main(["evaluate", run.run_id, *where]) == 0
    assert "--leave-one-out" in capsys.readouterr().out
    assert cli.main(["evaluate", run.run_id, *where, "--leave-one-out"]) == 0
    assert "left out in turn" in capsys.readouterr().out
    [row] = [r for r in run_rows(own_study.runs)[0] if r["run_id"] == run.run_id]
    assert row["dice"]["healthy"]["threshold"] > 0
    assert row["dice"]["healthy"]["needs_labels"] is False
    left = open_scores(run).left_out()
    someone = sorted(run.record["split"]["train"])[1]

    def without_someone(subject: Subject) -> Subject:
        changed = without_calibration(subject)
        return dataclasses.replace(changed, role="test") if subject.subject_id == someone else changed

    refit = open_scores(run_on(own_study, "refit", without_someone, gaussian()))
    np.testing.assert_allclose(left.distances(someone), refit.distances(someone), rtol=2e-3)
    everywhere(monkeypatch, own_study, run, "left out in turn")


def test_leave_one_out_is_refused_where_it_says_nothing(
    own_study: TinyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", "tiny", "--runs", str(own_study.runs), "--leave-one-out"]) == 2
    assert "Leave --leave-one-out away" in capsys.readouterr().err
    run = run_on(own_study, "no-gaussian", without_calibration)
    assert cli.main(["evaluate", run.run_id, "--runs", str(own_study.runs), "--leave-one-out"]) == 2
    assert "does not know the scores of its training scans" in capsys.readouterr().err

"""The diagnosis of a run as a whole: its promises hold for every subject, and it says the same through every door."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

import cli
from core.diagnosis.diagnose import diagnose, stored_diagnosis
from core.diagnosis.errors.category_table import CATEGORIES
from core.diagnosis.ladder import RUNGS
from core.diagnosis.what_if.catalogue import run_what_if
from core.progress import Progress
from core.runs.evaluated import read_metrics
from core.runs.listing import open_run
from core.study.evaluation import evaluate_run
from data.errors import BadInput
from tests.study import TinyStudy

PROTOCOLS = ("healthy", "validation")


def quiet() -> Progress:
    return Progress(False, io.StringIO())


@pytest.fixture(scope="module")
def own(study: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return study.copy(tmp_path_factory.mktemp("diagnosed") / "study")


@pytest.fixture(scope="module", params=[("tiny", p) for p in PROTOCOLS] + [("tiny-intensity", "healthy")])
def found(own: TinyStudy, request: pytest.FixtureRequest) -> dict[str, Any]:
    run_id, protocol = request.param
    return diagnose(open_run(own.runs, run_id), quiet(), protocol=protocol)


def test_dice_and_all_costs_are_one_for_every_subject_and_for_the_mean(found: dict[str, Any]) -> None:
    for subject in found["subjects"]:
        assert subject["dice"] + sum(subject["error_map"].values()) == pytest.approx(1, abs=1e-12)
    assert found["dice"]["mean"] + sum(c["cost"] for c in found["error_map"]) == pytest.approx(1, abs=1e-12)


def test_rungs_and_categories_come_in_order_and_only_descend(own: TinyStudy, found: dict[str, Any]) -> None:
    again = stored_diagnosis(open_run(own.runs, found["run_id"]), found["layer_set"], found["protocol"])
    for told in (found, json.loads(json.dumps(again))):
        for subject in told["subjects"]:
            assert list(subject["ladder"]) == [rung.id for rung in RUNGS]
            assert list(subject["error_map"]) == [*(c.id for c in CATEGORIES), "native_space"]
            values = list(subject["ladder"].values())
            assert values == sorted(values, reverse=True)
            assert values[0] == 1
            assert values[-1] == pytest.approx(subject["dice"], abs=1e-12)
        means = [rung["mean"] for rung in told["rungs"]]
        assert means == sorted(means, reverse=True)


def test_its_figures_are_those_of_the_evaluation(own: TinyStudy, found: dict[str, Any]) -> None:
    figures = read_metrics(open_run(own.runs, found["run_id"]))["sets"][found["layer_set"]]
    headline = figures["native"]["protocols"][found["protocol"]]
    for told in (found["dice"], found["rungs"][-1]):
        assert (told["mean"], told["low"], told["high"]) == pytest.approx(
            (headline["mean_dice"], headline["ci_low"], headline["ci_high"]), abs=1e-12
        )
    rungs = {rung["id"]: rung for rung in found["rungs"]}
    working = figures["working"]["protocols"]
    for rung, protocol in (("subject_threshold", "oracle_subject"), ("set_threshold", "oracle_set")):
        assert rungs[rung]["measured"] == pytest.approx(working[protocol]["mean_dice"], abs=1e-12)
        assert rungs[rung]["needs_labels"]
    by_id = {row["subject_id"]: row for row in headline["subjects"]}
    assert {s["subject_id"] for s in found["subjects"]} == set(by_id)
    for subject in found["subjects"]:
        assert subject["dice"] == pytest.approx(by_id[subject["subject_id"]]["dice"], abs=1e-12)
        counts = subject["counts"]
        row = next(r for r in working[found["protocol"]]["subjects"] if r["subject_id"] == subject["subject_id"])
        assert counts["hits"] == row["true_positive_voxels"]
        assert sum(counts["fp"].values()) == row["false_positive_voxels"]
        assert sum(counts["fn"].values()) == row["missed_voxels"]


def test_every_cause_has_a_cost_with_a_formula_or_says_what_is_missing(found: dict[str, Any]) -> None:
    assert [c["id"] for c in found["causes"]] == [f"R{n}" for n in range(18)]
    for cause in found["causes"]:
        assert (cause["cost"] is None) == (cause["missing"] is not None)
        assert cause["formula"]
        assert cause["cost"] is None or cause["text"]
        assert "RUN" not in (cause["missing"] or "")
        assert not (cause["deployable"] and cause["needs_labels"])


def test_lesions_stand_where_the_lesion_is_and_say_why_they_were_missed(own: TinyStudy, found: dict[str, Any]) -> None:
    from core.study.stored_scores import open_scores

    scores = open_scores(open_run(own.runs, found["run_id"]))
    assert found["lesions"]
    for lesion in found["lesions"]:
        mask = scores.prepared(lesion["subject_id"]).lesion
        assert mask is not None
        assert mask.voxels[tuple(lesion["voxel"])]
        assert (lesion["why"] == "found") == lesion["found"]
        assert 0 <= lesion["ceiling"] <= 1


def test_a_verdict_is_chosen_on_validation_and_quotes_test(own: TinyStudy) -> None:
    run = open_run(own.runs, "tiny")
    assert "not measured yet" in diagnose(run, quiet())["verdict"]["sentence"]
    result = run_what_if(run, "erode-mask", quiet())
    told = diagnose(run, quiet())
    gains = {v["id"]: v["validation_by_protocol"]["healthy"]["gain"] for v in result["variants"]}
    best = max(gains, key=lambda name: gains[name])
    r9 = next(c for c in told["causes"] if c["id"] == "R9")
    if gains[best] > 0:
        variant = next(v for v in result["variants"] if v["id"] == best)
        assert told["verdict"]["variant"] == best
        assert told["verdict"]["gain"] == r9["cost"] == variant["test"]["healthy"]["gain"]
    else:
        assert told["verdict"]["gain"] is None
        assert r9["cost"] == 0


def test_a_set_without_native_figures_is_evaluated_there(own: TinyStudy) -> None:
    run = open_run(own.runs, "tiny")
    metrics = read_metrics(run)
    name = next(name for name, found in metrics["sets"].items() if found["native"] is None)
    told = diagnose(run, quiet(), layer_set=name)
    assert told["layer_set"] == name
    assert told["dice"]["mean"] == pytest.approx(told["rungs"][-1]["mean"], abs=1e-12)


def test_a_new_evaluation_makes_the_stored_diagnosis_void(own: TinyStudy, tmp_path: Path) -> None:
    fresh = own.copy(tmp_path / "study")
    run = open_run(fresh.runs, "tiny-intensity")
    diagnose(run, quiet())
    name = read_metrics(run)["headline"]
    assert stored_diagnosis(run, name, "healthy") is not None
    assert stored_diagnosis(run, name, "validation") is None
    evaluate_run(run, quiet(), quantile=0.95, workers=1)
    assert stored_diagnosis(open_run(fresh.runs, "tiny-intensity"), name, "healthy") is None


def test_what_cannot_be_diagnosed_says_why(own: TinyStudy) -> None:
    run = open_run(own.runs, "tiny")
    with pytest.raises(BadInput, match="Allowed: healthy, validation"):
        diagnose(run, quiet(), protocol="oracle_set")
    with pytest.raises(BadInput, match="stage9"):
        diagnose(run, quiet(), layer_set="stage9")


def test_the_command_line_says_the_same(own: TinyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["diagnose", "tiny", "--runs", str(own.runs), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(json.dumps(diagnose(open_run(own.runs, "tiny"), quiet())))
    assert cli.main(["diagnose", "tiny", "--runs", str(own.runs)]) == 0
    text = capsys.readouterr().out
    assert told["verdict"]["sentence"] in text
    assert all(rung["title"] in text for rung in told["rungs"])


def test_ceilings_need_no_run_and_no_scan(own: TinyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    masks = sorted(str(p) for p in own.table.parent.glob("test0*/lesion.nii.gz"))
    assert cli.main(["ceiling", *masks, "--cells-mm", "4", "16", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["subjects"]) == len(masks) == 3
    fine, coarse = (row["mean"] for row in told["mean"])
    assert 1 >= fine > coarse > 0
    assert cli.main(["ceiling", str(own.table)]) == 0
    assert "Oracle" in capsys.readouterr().out
    assert cli.main(["ceiling"]) == 2
    assert "Give a cohort" in capsys.readouterr().err

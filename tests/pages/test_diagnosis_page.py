"""The Diagnosis page: tables and links from a diagnosis, figures by the drawing rule, and the page as a script."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import streamlit as st
from playwright.sync_api import expect, sync_playwright
from streamlit.testing.v1 import AppTest

from core.diagnosis.strata import strata
from core.diagnosis.verdict import settings_text
from core.presentation.decision_words import cause_state, decision_rows, density_name, unlisted
from core.presentation.diagnosis_view import (
    bars,
    best_variant,
    concentration,
    drivers,
    gain_words,
    job_argv,
    largest,
    limit_rows,
    post_processing_rows,
    row_of,
    slices_address,
    slices_query,
    start_settings,
    variant_rows,
)
from core.presentation.figures import diagnosis as figures_diagnosis
from core.runs.jobs import Job
from core.runs.listing import open_run
from data.errors import BadInput
from pages import _shared
from pages._diagnosis import jobs, load
from tests.browser import FLAGS, find_chromium, serve
from tests.diagnosis_example import example, limits_example, post_processing_example
from tests.study import TinyStudy

ROOT = Path(__file__).parents[2]
SECTIONS = ("Where it is lost", "Causes and what-ifs", "Decision rules", "Detection limits", "Lesions and groups")
LAYERS = ["input", "stage1", "stage2"]
ILL = ("test01", "test02", "test03")
Opener = Callable[..., AppTest]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return example()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, study: TinyStudy) -> Opener:
    """Opens the page on the tiny study with an example stored as its diagnosis."""

    def open_page(shown: dict[str, Any] | None = None, *, stored: bool = True, **query: str | list[str]) -> AppTest:
        diagnosis = (shown or example(ILL, run_id="tiny", layer_set="stage1")) if stored else None
        monkeypatch.setattr(load, "stored_diagnosis", lambda run, layer_set, protocol: diagnosis)
        monkeypatch.setenv("DICESCOPE_RUNS", str(study.runs))
        monkeypatch.chdir(ROOT)
        st.cache_resource.clear()
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
        for key, value in {"run": "tiny", "layers": ["stage1"], **query}.items():
            app.query_params[key] = value
        app.switch_page("pages/diagnosis.py")
        return app.run()

    return open_page


def words(app: AppTest) -> str:
    kinds = ("title", "subheader", "markdown", "caption", "info", "warning", "error", "success", "code")
    texts = [str(element.value) for kind in kinds for element in app.get(kind)]
    return "\n".join([*texts, *(f"{m.label} {m.value}" for m in app.metric)])


def job(argv: list[str], status: str, log: Path) -> Job:
    log.write_text("Scoring scans: 3 of 12\n")
    return Job("job-1", tuple(argv), 1, "0", "2026-01-01", 1, "tiny", log, status, None, "It went wrong.")


# What the page computes


def test_the_example_adds_up_to_one(found: dict[str, Any]) -> None:
    for subject in found["subjects"]:
        assert subject["dice"] + sum(subject["error_map"].values()) == pytest.approx(1, abs=1e-12)
    assert found["dice"]["mean"] + sum(c["cost"] for c in found["error_map"]) == pytest.approx(1, abs=1e-12)


def test_the_subjects_behind_a_bar_make_up_its_cost_and_the_costliest_stands_first(found: dict[str, Any]) -> None:
    for bar in bars(found):
        rows = drivers(found, bar.key)
        assert {row["subject"] for row in rows} == {s["subject_id"] for s in found["subjects"]}
        assert np.mean([row["cost"] for row in rows]) == pytest.approx(bar.cost, abs=1e-12)
        costs = [row["cost"] for row in rows]
        assert costs == sorted(costs, reverse=True)


def test_bars_of_the_two_views_are_told_apart_though_they_share_a_name(found: dict[str, Any]) -> None:
    keys = [bar.key for bar in bars(found)]
    assert len(keys) == len(set(keys)) == len(found["rungs"]) - 1 + len(found["error_map"])
    assert {"ladder.native_space", "errors.native_space"} <= set(keys)


def test_a_hollow_bar_is_never_called_the_largest_while_another_is_clear_of_zero(found: dict[str, Any]) -> None:
    rows = [dict(c, hollow=False, cost=0.1) for c in found["error_map"]]
    rows[3] |= {"hollow": True, "cost": 0.9}
    rows[5]["cost"] = 0.2
    picked = largest([bar for bar in bars(found | {"error_map": rows}) if bar.key.startswith("errors.")])
    assert picked is not None
    assert picked.key == f"errors.{rows[5]['id']}"


def test_half_of_a_cost_is_counted_from_the_costliest() -> None:
    assert concentration([{"cost": c} for c in (5.0, 3.0, 1.0, 1.0)]) == 1
    assert concentration([{"cost": c} for c in (4.0, 3.0, 2.0, 1.0)]) == 2
    assert concentration([{"cost": c} for c in (1.0, 1.0, 1.0, 1.0, -9.0)]) == 2
    assert concentration([{"cost": 0.0}, {"cost": -1.0}]) is None


def test_a_link_to_slices_says_run_subject_layers_voxel_and_category(found: dict[str, Any]) -> None:
    shown = found | {"layer_set": "input+stage1"}
    link = urlsplit(slices_address(slices_query(shown, "a&b=c", voxel=[1, 2, 3], bar="errors.brain_edge")))
    assert link.path == "slices"
    query = parse_qs(link.query)
    assert query["subject"] == ["a&b=c"]
    assert query["layers"] == ["input", "stage1"]
    assert [query[axis] for axis in "xyz"] == [["1"], ["2"], ["3"]]
    assert (query["categories"], query["category"], query["threshold"]) == (["1"], ["brain_edge"], ["healthy"])
    assert "categories" not in slices_query(shown, "a", bar="ladder.feature_grid")
    assert "category" not in slices_query(shown, "a", bar="errors.native_space")


def test_thresholds_and_densities_stand_in_one_list_and_oracles_are_named(found: dict[str, Any]) -> None:
    protocol = {"ci_low": 0.1, "ci_high": 0.3, "n": 12, "threshold": 3.0, "rule": "q", "mean_dice": 0.2}
    rows = decision_rows(
        found,
        {
            "healthy": protocol | {"oracle": False, "needs_labels": False},
            "validation": protocol | {"oracle": False, "needs_labels": True},
            "oracle_subject": protocol | {"oracle": True, "needs_labels": True, "threshold": None},
        },
    )
    assert [row["labels"] for row in rows] == ["none", "validation", "test", *["validation"] * 6]
    assert all(("oracle" in row["decision"]) == (row["labels"] == "test") for row in rows)
    assert [row["dice"] for row in rows[3:]] == [d["mean_dice"] for d in found["decisions"]]


def test_a_decision_by_two_densities_is_named_in_plain_words() -> None:
    name = "two kernel densities over the score: cut with the best validation Dice"
    assert (
        density_name({"name": name}) == "Two smoothed histograms over the score: the border that is best on validation"
    )
    assert density_name({"name": "kde over score, validation share"}).endswith(": lesions as common as in validation")


def test_a_subject_whose_lesions_are_too_small_for_the_list_is_named(found: dict[str, Any]) -> None:
    first = found["subjects"][0]["subject_id"]
    assert unlisted(found) == []
    assert unlisted(found | {"lesions": [r for r in found["lesions"] if r["subject_id"] != first]}) == [first]


def test_an_evaluation_of_another_run_makes_the_page_read_again(own_study: TinyStudy) -> None:
    run = open_run(own_study.runs, "tiny")
    before = load._content(run)
    assert load._content(run) == before
    os.utime(own_study.runs / "tiny-intensity" / "evaluation" / "manifest.json", ns=(1, 1))
    assert load._content(run) != before


def test_the_best_variant_is_chosen_on_validation_whatever_test_says(found: dict[str, Any]) -> None:
    what_if = json.loads(json.dumps(found["what_ifs"][0]))
    assert best_variant(what_if, "healthy")["id"] == "2mm"
    what_if["variants"][2]["test"]["healthy"]["gain"] = 0.9
    assert best_variant(what_if, "healthy")["id"] == "2mm"
    what_if["variants"][2]["validation_by_protocol"]["healthy"]["gain"] = 0.5
    assert best_variant(what_if, "healthy")["id"] == "3mm"
    what_if["variants"][2]["deployable"] = False
    assert best_variant(what_if, "healthy")["id"] == "2mm"
    what_if["variants"][0]["validation_by_protocol"] = {"healthy": {"gain": 0.7}, "validation": None}
    assert best_variant(what_if, "healthy")["id"] == "1mm"
    rows = variant_rows(what_if, "healthy")
    assert [row["best on validation"] for row in rows] == [True, False, False]
    assert [row["test gain"] for row in rows] == [0.03, 0.081, 0.9]
    assert variant_rows(what_if, "validation")[0]["test gain"] is None


def test_a_what_if_without_validation_labels_has_no_best_variant(found: dict[str, Any]) -> None:
    what_if = json.loads(json.dumps(found["what_ifs"][0]))
    for variant in what_if["variants"]:
        variant["validation"] = None
        variant["validation_by_protocol"] = {"healthy": None, "validation": None}
    assert best_variant(what_if, "healthy") is None
    assert gain_words(what_if, "healthy").startswith(
        "No validation labels to choose on. On test: mask eroded by 1 mm +"
    )


def test_no_star_stands_where_nothing_gains_on_validation(found: dict[str, Any]) -> None:
    what_if = json.loads(json.dumps(found["what_ifs"][0]))
    for variant in what_if["variants"]:
        variant["validation_by_protocol"]["healthy"]["gain"] = -0.01
    assert best_variant(what_if, "healthy") is None
    assert not any(row["best on validation"] for row in variant_rows(what_if, "healthy"))
    assert gain_words(what_if, "healthy").startswith("Nothing gains on validation")


def test_a_what_if_that_only_measures_shows_its_gains_and_one_without_a_subject_says_why(
    found: dict[str, Any],
) -> None:
    what_if = json.loads(json.dumps(found["what_ifs"][0]))
    for variant in what_if["variants"]:
        variant["deployable"] = False
    what_if["variants"][0]["test"]["healthy"]["gain"] = -0.004
    told = gain_words(what_if, "healthy")
    assert told.startswith("Measures only: mask eroded by 1 mm −0.004")
    for variant in what_if["variants"]:
        variant["test"]["healthy"] |= {"gain": None, "low": None, "high": None, "n": 0}
    assert "n = 0" in gain_words(what_if, "healthy")
    assert variant_rows(what_if, "healthy")[0]["test gain"] is None


def test_a_step_below_the_ceilings_is_made_of_plain_measured_dice() -> None:
    subject = {"subject_id": "a", "dice": 0.2, "ladder": {"feature_grid": 0.9, "set_threshold": 0.5, "deployed": 0.5}}
    measured = {"feature_grid": 0.8, "set_threshold": 0.4, "deployed": 0.5}
    diagnosis = {
        "rungs": [{"id": name} for name in measured],
        "subjects": [subject | {"measured": measured}],
    }
    assert drivers(diagnosis, "ladder.set_threshold")[0]["cost"] == pytest.approx(0.9 - 0.4)
    assert drivers(diagnosis, "ladder.deployed")[0]["cost"] == pytest.approx(-0.1)


def test_a_cause_says_whether_it_is_known_or_what_it_waits_for() -> None:
    cause = {"cost": None, "what_if": "shift", "missing": "Not measured yet: python cli.py what-if tiny shift"}
    assert cause_state(cause | {"cost": 0.1}, []) == "known"
    assert cause_state(cause, []) == "not run yet"
    assert cause_state(cause, ["shift"]) == "done, without a figure"
    grid = cause | {"what_if": None, "missing": "The grid: python cli.py post-processing tiny"}
    assert cause_state(grid, []) == "not run yet"
    assert cause_state(cause | {"what_if": None, "missing": "Labelled validation subjects."}, []) == "input missing"
    other = cause | {"what_if": None, "missing": "A detector with several layers."}
    assert cause_state(other, []) == "does not apply"


def test_groups_count_every_lesion_once_and_give_its_recall(found: dict[str, Any]) -> None:
    groups = strata(found["lesions"], found["subjects"])
    for name in ("size", "contrast", "region"):
        assert sum(row["n"] for row in groups[name]) == len(found["lesions"])
        hits = sum(row["recall"] * row["n"] for row in groups[name])
        assert hits == pytest.approx(sum(row["found"] for row in found["lesions"]))
    for name in ("site", "age", "sex"):
        assert sum(row["n"] for row in groups[name]) == len(found["subjects"])
    [frontal] = [row for row in groups["region"] if row["bin"] == "frontal lobe"]
    members = [row["found"] for row in found["lesions"] if row["region"] == "frontal lobe"]
    assert frontal["recall"] == pytest.approx(np.mean(members))


def test_groups_that_nobody_recorded_are_left_out_and_one_subject_has_no_interval(found: dict[str, Any]) -> None:
    subjects = [s | {"site": None, "age": None, "sex": ""} for s in found["subjects"]]
    lesions = [row | {"region": None, "contrast_sd": None} for row in found["lesions"]]
    assert set(strata(lesions, subjects)) == {"size"}
    alone = [row for row in found["lesions"] if row["subject_id"] == found["lesions"][0]["subject_id"]]
    assert {row["low"] for row in strata(alone, [])["size"]} == {None}


def test_intervals_of_recall_come_from_whole_subjects() -> None:
    lesions = [{"subject_id": f"s{k // 10}", "volume_ml": 2.0, "found": k < 10} for k in range(20)]
    [row] = strata(lesions, [])["size"]
    assert (row["recall"], row["low"], row["high"]) == (0.5, 0.0, 1.0)


def test_post_processing_is_looked_up_and_the_oracle_is_called_one() -> None:
    result = post_processing_example()
    start = start_settings(result, "healthy")
    best = row_of(result, start)
    assert best["healthy"]["validation_dice"] == max(row["healthy"]["validation_dice"] for row in result["rows"])
    which = [row["which"] for row in post_processing_rows(result, "healthy")]
    assert which == ["the run's own", "best on validation", "oracle: best on test"]
    unlabelled = result | {"best_on_validation": None}
    assert start_settings(unlabelled, "healthy") == result["shipped"]["healthy"]["settings"]
    assert len(post_processing_rows(unlabelled, "healthy")) == 2
    assert settings_text({**dict.fromkeys(start, 0.0), "smoothing_mm": 2.0}) == "Gaussian of 2 mm"


def test_the_contrast_that_is_needed_is_given_for_each_size_or_never() -> None:
    rows = limit_rows(limits_example()["levels"][0], "all")
    assert [row["diameter, mm"] for row in rows] == ["4", "8", "16"]
    assert rows[0]["brighter, 80 % found"] == "never"
    assert rows[2]["brighter, 50 % found"].endswith("SD")
    assert rows[2]["darker, 50 % found"].startswith("−")


# What the figures show


def test_the_ladder_goes_down_from_one_to_the_dice_without_a_gap(found: dict[str, Any]) -> None:
    whole, steps, reached = figures_diagnosis.ladder(found["rungs"], found["dice"]).data
    assert whole.x == (1.0,)
    ends = np.array(steps.base) + np.array(steps.x)
    assert steps.base[0] == 1.0
    assert ends[:-1] == pytest.approx(np.array(steps.base)[1:], abs=1e-12)
    assert ends[-1] == pytest.approx(found["rungs"][-1]["mean"], abs=1e-12)
    assert reached.x == (found["dice"]["mean"],)
    keys = [bar.key for bar in bars(found) if bar.key.startswith("ladder.")]
    assert [data[0] for data in steps.customdata] == keys


def test_solid_hatched_and_hollow_bars_keep_the_drawing_rule(found: dict[str, Any]) -> None:
    rungs = [dict(r) for r in found["rungs"]]
    rungs[1]["hollow"] = True
    figure = figures_diagnosis.ladder(rungs, found["dice"])
    marker = figure.data[1].marker
    for rung, colour, outline, shape in zip(
        rungs[1:], marker.color, marker.line.color, marker.pattern.shape, strict=True
    ):
        assert (colour == "rgba(0,0,0,0)") == rung["hollow"]
        assert (shape == "/") == (rung["needs_labels"] and not rung["hollow"])
        assert outline == (figures_diagnosis.ORACLE if rung["needs_labels"] else figures_diagnosis.HEALTHY)


def test_whiskers_end_where_the_interval_of_the_cost_does(found: dict[str, Any]) -> None:
    steps = figures_diagnosis.ladder(found["rungs"], found["dice"]).data[1]
    ends = np.array(steps.base) + np.array(steps.x)
    for rung, base, end, up, down in zip(
        found["rungs"][1:], steps.base, ends, steps.error_x.array, steps.error_x.arrayminus, strict=True
    ):
        assert base - (end + up) == pytest.approx(rung["cost_low"], abs=1e-12)
        assert base - (end - down) == pytest.approx(rung["cost_high"], abs=1e-12)
    errors = figures_diagnosis.error_bars(found["error_map"]).data[0]
    tops = np.array(errors.x) + np.array(errors.error_x.array)
    assert sorted(tops) == pytest.approx(sorted(c["high"] for c in found["error_map"]))


def test_error_bars_are_sorted_and_their_colour_says_which_kind(found: dict[str, Any]) -> None:
    bar = figures_diagnosis.error_bars(found["error_map"], "errors.halo").data[0]
    assert list(bar.x) == sorted(bar.x, reverse=True)
    for name, colour in zip(bar.y, bar.marker.line.color, strict=True):
        if name.startswith("FN"):
            assert colour == figures_diagnosis.MISSED
    widths = dict(zip([data[0] for data in bar.customdata], bar.marker.line.width, strict=True))
    assert max(widths, key=lambda key: widths[key]) == "errors.halo"


def test_markup_in_a_title_stays_text_in_a_figure(found: dict[str, Any]) -> None:
    rungs = [dict(r) for r in found["rungs"]]
    rungs[1]["title"] = rungs[1]["definition"] = "<img src=x> & <a href='x'>"
    text = figures_diagnosis.ladder(rungs, found["dice"]).to_json()
    assert "<img" not in text.replace("\\u003c", "<")
    assert "&lt;img" in text


def test_a_gain_whose_interval_contains_zero_is_an_open_dot() -> None:
    rows = [
        {"label": "a", "gain": 0.1, "low": 0.05, "high": 0.2, "n": 9, "deployable": True},
        {"label": "b", "gain": 0.1, "low": -0.05, "high": 0.2, "n": 9, "deployable": True},
        {"label": "c", "gain": 0.1, "low": None, "high": None, "n": 1, "deployable": False},
    ]
    deployable, oracle = figures_diagnosis.gain_dots(rows).data
    assert deployable.marker.symbol == ("circle", "circle-open")
    assert oracle.marker.symbol == ("circle-open",)
    assert oracle.marker.color == figures_diagnosis.ORACLE


def test_gains_stand_below_the_name_of_their_what_if_and_no_two_share_a_line() -> None:
    row = {"gain": 0.1, "low": 0.05, "high": 0.2, "n": 9, "deployable": True}
    long = "a variant whose name takes more than one line of forty-four letters, and more than two of them"
    rows = [row | {"group": g, "label": v} for g, v in (("one", "a"), ("one", long), ("two", "a"))]
    figure = figures_diagnosis.gain_dots(rows)
    axis = figure.layout.yaxis
    assert [text.partition("<br>")[0] for text in axis.ticktext] == [
        "<b>one</b>", "a", long[:44].rpartition(" ")[0], "<b>two</b>", "a",
    ]  # fmt: skip
    heights = [1 + text.count("<br>") for text in axis.ticktext]
    for k in range(4):
        assert axis.tickvals[k + 1] - axis.tickvals[k] >= (heights[k] + heights[k + 1]) / 2 - 1e-9
    assert set(figure.data[0].y) <= set(axis.tickvals)


def test_a_ring_stands_on_the_chosen_setting_in_every_panel() -> None:
    result = post_processing_example()
    chosen = start_settings(result, "healthy")
    figure = figures_diagnosis.setting_lines(result, chosen, "healthy")
    assert len(figure.data) == 8
    here = row_of(result, chosen)["healthy"]
    for line in figure.data:
        [ring] = [k for k, symbol in enumerate(line.marker.symbol) if symbol == "circle-open"]
        assert line.y[ring] in (here["dice"], here["validation_dice"])


# The page


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_shows_the_stored_diagnosis_at_once(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    monkeypatch.setattr(load, "stored_detection_limits", lambda run, layer_set: limits_example())
    shown = example(ILL, run_id="tiny", layer_set="stage1") | {"post_processing": post_processing_example()}
    app = opened(shown, section=section)
    assert not app.exception
    assert not app.error
    assert [title.value for title in app.title] == ["Diagnosis"]
    assert app.metric[0].value == f"{shown['dice']['mean']:.3f}"
    assert shown["verdict"]["sentence"] in words(app)
    assert sum(len(app.get(kind)) for kind in ("plotly_chart", "arrow_data_frame")) > 0


def test_what_was_never_diagnosed_is_computed_once_for_the_layers_and_the_threshold(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def diagnose(run: Any, progress: Any, *, layer_set: str, protocol: str) -> dict[str, Any]:
        asked.append((layer_set, protocol))
        return example(ILL, run_id=run.run_id, layer_set=layer_set, protocol=protocol)

    monkeypatch.setattr(load, "diagnose", diagnose)
    app = opened(stored=False)
    asked.clear()
    app.pills(key="layers").set_value(LAYERS).run()
    app.run()
    next(g for g in app.get("button_group") if g.key == "protocol").set_value("validation").run()
    assert not app.exception
    assert asked == [("+".join(LAYERS), "healthy"), ("+".join(LAYERS), "validation")]


def test_why_a_run_cannot_be_diagnosed_is_said_in_words(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise BadInput("There is no such threshold. Allowed: healthy.")

    monkeypatch.setattr(load, "diagnose", refuse)
    app = opened(stored=False)
    assert not app.exception
    assert "Allowed: healthy" in app.error[0].value


def test_the_subjects_of_the_chosen_bar_are_shown_and_the_bar_is_in_the_address(opened: Opener) -> None:
    shown = example(ILL, run_id="tiny", layer_set="stage1")
    app = opened(shown, bar="ladder.feature_grid")
    assert app.selectbox(key="bar").value == "ladder.feature_grid"
    for key in ("ladder.feature_grid", "errors.low_contrast"):
        app.selectbox(key="bar").set_value(key).run()
        rows = drivers(shown, key)
        table = app.dataframe[-1].value
        assert list(table["subject"]) == [row["subject"] for row in rows]
        assert list(table["cost"]) == pytest.approx([row["cost"] for row in rows])
        assert ("categories=1" in table["look"][0]) == key.startswith("errors.")
        assert app.query_params["bar"] in (key, [key])


def test_a_bar_in_the_address_that_is_not_there_gives_way_to_the_costliest(opened: Opener) -> None:
    shown = example(ILL, run_id="tiny", layer_set="stage1")
    app = opened(shown, bar="errors.nonsense")
    assert not app.exception
    picked = largest([bar for bar in bars(shown) if bar.key.startswith("errors.")])
    assert picked is not None
    assert app.selectbox(key="bar").value == picked.key


def test_a_what_if_is_started_as_a_job_with_the_words_of_a_terminal(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, study: TinyStudy
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(jobs, "start_once", lambda runs, argv: started.append(argv))
    app = opened(section="Causes and what-ifs")
    app.button(key="start-shift").click().run()
    assert not app.exception
    assert started == [["what-if", "tiny", "shift", "--runs", str(study.runs.absolute()), "--layers", "stage1"]]


def test_what_stands_in_the_way_of_a_job_is_said(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(runs: Path, argv: list[str]) -> None:
        raise BadInput("The disk is full.")

    monkeypatch.setattr(jobs, "start_once", refuse)
    app = opened(section="Detection limits")
    app.button(key="start-detection-limits").click().run()
    assert [error.value for error in app.error] == ["The disk is full."]


def test_a_job_at_work_shows_its_last_words_and_can_be_stopped_a_failed_one_says_why(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, study: TinyStudy, tmp_path: Path
) -> None:
    argv = job_argv("post-processing", study.runs, "tiny", "stage1")
    for status in ("running", "failed"):
        now = job(argv, status, tmp_path / "log.txt")
        monkeypatch.setattr(jobs, "list_jobs", lambda runs, now=now: [now])
        app = opened(section="Decision rules")
        keys = {button.key for button in app.button}
        assert not app.exception
        assert ("stop-post-processing" in keys) == (status == "running")
        assert ("start-post-processing" in keys) == (status == "failed")
        assert ("Scoring scans: 3 of 12" in words(app)) or status == "failed"
        assert ("It went wrong." in words(app)) == (status == "failed")


def test_controls_of_the_explorer_answer_with_the_stored_figures(opened: Opener) -> None:
    result = post_processing_example()
    app = opened(
        example(ILL, run_id="tiny", layer_set="stage1") | {"post_processing": result}, section="Decision rules"
    )
    wanted = {"smoothing_mm": 0.0, "median_voxels": 3.0, "erosion_voxels": 2.0, "min_component_mm3": 100.0}
    for name, value in wanted.items():
        next(g for g in app.get("button_group") if g.key == f"set-{name}").set_value(value).run()
    assert not app.exception
    here = row_of(result, wanted)["healthy"]
    values = {m.label: m.value for m in app.metric}
    assert values["Dice on test"] == f"{here['dice']:.3f}"
    assert values["Dice on validation"] == f"{here['validation_dice']:.3f}"


def test_without_a_lesion_in_the_test_scans_the_detection_limits_remain(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _shared.metrics_of

    def emptied(run_id: str, version: str) -> dict[str, Any]:
        found = json.loads(json.dumps(real(run_id, version)))
        for figures in found["sets"].values():
            for space in figures.values():
                for protocol in space["protocols"].values() if space else ():
                    protocol["subjects"] = []
        return found

    monkeypatch.setattr(_shared, "metrics_of", emptied)
    app = opened()
    assert not app.exception
    assert "no Dice to explain" in words(app)
    assert "start-detection-limits" in {button.key for button in app.button}


@pytest.mark.browser
def test_a_click_on_a_bar_shows_its_subjects_and_its_link_stands_on_the_same_run_in_slices(
    own_study: TinyStudy,
) -> None:
    with serve(ROOT / "asgi.py", DICESCOPE_RUNS=str(own_study.runs)) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        page.set_default_timeout(60_000)
        page.goto(f"{address}/diagnosis?run=tiny-intensity")
        expect(page.get_by_text("beginning with")).to_be_visible(timeout=60_000)
        steps = page.locator(".js-plotly-plot").first.locator(".barlayer .point path")
        expect(steps).to_have_count(8, timeout=60_000)  # the text can be there before the bars are
        widths = [step.bounding_box()["width"] for step in steps.all()]
        widest = 1 + int(np.argmax(widths[1:-1]))
        steps.nth(widest).click(force=True)  # plotly listens on a sheet above its bars
        page.wait_for_url("**bar=ladder.*")
        errors = page.locator(".js-plotly-plot").nth(1).locator(".barlayer .point path")
        expect(errors).to_have_count(15, timeout=60_000)
        expect(errors.first).to_be_visible(timeout=60_000)
        errors.first.click(force=True)
        page.wait_for_url("**bar=errors.*")
        clicked = parse_qs(urlsplit(page.url).query)["bar"][0]
        link = page.locator("a", has_text="beginning with")  # it follows the address, once the page is drawn anew
        expect(link).to_have_attribute("href", re.compile("category="), timeout=60_000)
        link.click()
        page.wait_for_url("**/slices?**")
        page.wait_for_selector('[data-testid=panel][data-ready="1"]')
        query = parse_qs(urlsplit(page.url).query)
        browser.close()
    assert query["run"] == ["tiny-intensity"]
    assert query["category"] == [clicked.removeprefix("errors.")]


@pytest.mark.browser
def test_a_run_that_a_link_opens_stays_the_run_when_the_page_changes_at_once(study: TinyStudy) -> None:
    with serve(ROOT / "asgi.py", DICESCOPE_RUNS=str(study.runs)) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        page.set_default_timeout(60_000)
        found = []
        for run in ("tiny", "tiny-intensity"):
            page.goto(f"{address}/slices?run={run}")
            page.wait_for_selector('[data-testid=panel][data-ready="1"]')
            page.get_by_role("link", name="Distributions").click()
            page.wait_for_url("**/distributions?**")
            found.append(parse_qs(urlsplit(page.url).query)["run"])
        browser.close()
    assert found == [["tiny"], ["tiny-intensity"]]


@pytest.mark.browser
def test_the_link_of_another_layer_set_shows_that_set_in_slices_and_back_returns(study: TinyStudy) -> None:
    with serve(ROOT / "asgi.py", DICESCOPE_RUNS=str(study.runs)) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        page.set_default_timeout(60_000)
        page.goto(f"{address}/diagnosis?run=tiny&layers=stage2&bar=errors.brain_edge&protocol=validation")
        page.get_by_text("beginning with").click()
        page.wait_for_url("**/slices?**")
        page.wait_for_selector('[data-testid=panel][data-ready="1"]')
        expect(page.get_by_text("Layer set stage2.")).to_be_visible(timeout=60_000)
        page.wait_for_url("**plane=axial**")
        query = parse_qs(urlsplit(page.url).query)
        page.go_back()
        page.wait_for_timeout(1500)
        page.go_back()
        page.wait_for_url("**/diagnosis?**")
        expect(page.get_by_text("beginning with")).to_be_visible(timeout=60_000)
        there = parse_qs(urlsplit(page.url).query)
        browser.close()
    assert (query["layers"], query["threshold"]) == (["stage2"], ["validation"])
    assert (there["layers"], there["protocol"]) == (["stage2"], ["validation"])


def test_layers_and_thresholds_of_a_link_that_are_not_here_are_told(opened: Opener) -> None:
    app = opened(layers="stage9", protocol="oracle")
    assert not app.exception
    told = " ".join(warning.value for warning in app.warning)
    assert "stage9" in told
    assert "oracle" in told
    assert not app.run().warning
    assert app.query_params["protocol"] in ("healthy", ["healthy"])

"""Every page as a script: with a study, without one, with a damaged one; and its numbers against the evaluation's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from core.metrics.confusion import confusion, score_bins, two_density_confusion
from core.metrics.exact_curve import all_positive_dice, dice_from_rates
from core.metrics.subject_scores import SubjectScores
from core.metrics.two_densities import TwoDensities
from core.presentation.figures import results as figures
from core.runs.listing import open_run
from core.study.run_summary import cohort_title, run_summary
from core.study.stored_scores import open_scores, set_id
from data.errors import IntegrityError
from pages._view import opening_subject
from tests.study import TinyStudy, recommit, write_record

ROOT = Path(__file__).parents[2]
PAGES = ("overview", "slices", "layers", "distributions", "diagnosis", "training", "data", "report")
KINDS = {"gaussian": "one Gaussian each", "mixture": "three Gaussians each", "kde": "kernel densities"}
RUN_PAGES = ("slices", "layers", "distributions", "diagnosis", "report")
MARKUP = '"><img src=x onerror=alert(1)>'
Opener = Callable[..., AppTest]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opener:
    """Opens a page of the dashboard on a runs directory."""

    def open_page(name: str, runs: Path, **query: str | list[str]) -> AppTest:
        monkeypatch.setenv("DICESCOPE_RUNS", str(runs))
        monkeypatch.chdir(ROOT)
        st.cache_resource.clear()
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
        for key, value in query.items():
            app.query_params[key] = value
        return go(app, name)

    return open_page


def go(app: AppTest, name: str) -> AppTest:
    """The same browser on another page."""
    if name != "overview":
        app.switch_page(f"pages/{name}.py")
    return app.run()


def words(app: AppTest) -> str:
    """All text on the page and in its sidebar."""
    kinds = ("title", "subheader", "markdown", "caption", "info", "warning", "error", "success")
    texts = [element.value for kind in kinds for element in app.get(kind)]
    texts += [f"{m.label} {m.value}" for m in app.metric]
    return "\n".join(map(str, texts))


def metrics_of(study: TinyStudy, run: str = "tiny") -> dict[str, Any]:
    return json.loads((study.runs / run / "evaluation" / "metrics.json").read_text())


def shown(app: AppTest) -> dict[str, str]:
    """The last value under each metric label."""
    return {m.label: m.value for m in app.metric}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_the_study(opened: Opener, study: TinyStudy, name: str) -> None:
    app = opened(name, study.runs)
    assert not app.exception
    assert not app.error
    assert [title.value for title in app.title] == [name.capitalize()]


@pytest.mark.parametrize("name", PAGES)
def test_without_runs_a_page_says_which_command_makes_some(opened: Opener, tmp_path: Path, name: str) -> None:
    app = opened(name, tmp_path / "runs")
    assert not app.exception
    assert "python cli.py demo" in words(app)
    assert [title.value for title in app.title] == [name.capitalize()]


@pytest.mark.parametrize("name", PAGES)
def test_a_run_that_is_not_evaluated_is_no_error(opened: Opener, own_study: TinyStudy, name: str) -> None:
    shutil.rmtree(own_study.runs / "tiny" / "evaluation")
    shutil.rmtree(own_study.runs / "tiny-intensity")
    app = opened(name, own_study.runs, run="tiny")
    assert not app.exception
    assert not app.error
    if name in ("overview", *RUN_PAGES):
        assert "python cli.py evaluate" in words(app)


def damaged_json(evaluation: Path) -> None:
    (evaluation / "metrics.json").write_text('{"sets": ')


def other_json(evaluation: Path) -> None:
    (evaluation / "metrics.json").write_text('{"headline": "input"}')


def no_file(evaluation: Path) -> None:
    (evaluation / "metrics.json").unlink()


@pytest.mark.parametrize("damage", [damaged_json, other_json, no_file])
def test_a_damaged_evaluation_is_named_with_its_remedy_and_the_other_runs_stay(
    opened: Opener, own_study: TinyStudy, damage: Callable[[Path], None]
) -> None:
    damage(own_study.runs / "tiny" / "evaluation")
    app = opened("overview", own_study.runs)
    assert not app.exception
    assert "python cli.py evaluate tiny" in app.warning[0].value
    assert "intensity-bright" in words(app)
    for name in RUN_PAGES:
        page = opened(name, own_study.runs, run="tiny")
        assert not page.exception
        assert "python cli.py evaluate tiny" in page.error[0].value
    with pytest.raises(IntegrityError, match="evaluate tiny"):
        run_summary(open_run(own_study.runs, "tiny"))


@pytest.mark.parametrize("name", ["slices", "layers", "distributions"])
def test_damaged_scores_are_told_in_words(opened: Opener, own_study: TinyStudy, name: str) -> None:
    shutil.rmtree(own_study.runs / "tiny" / "scores")
    (own_study.runs / "tiny" / "evaluation" / "levels.json").write_text("{")
    app = opened(name, own_study.runs, run="tiny")
    assert not app.exception
    assert app.error
    assert [title.value for title in app.title] == [name.capitalize()]


@pytest.mark.parametrize("name", ["overview", *RUN_PAGES, "data"])
def test_a_run_that_was_deleted_since_it_was_picked_gives_way_to_another(
    opened: Opener, own_study: TinyStudy, name: str
) -> None:
    app = opened("data", own_study.runs)
    app.selectbox(key="run").set_value("tiny-intensity").run()
    shutil.rmtree(own_study.runs / "tiny-intensity")
    go(app, name)
    assert not app.exception
    assert not app.error
    if name != "overview":
        assert app.selectbox(key="run").value == "tiny"


def test_a_run_that_ends_is_seen_without_a_restart(opened: Opener, own_study: TinyStudy) -> None:
    shutil.rmtree(own_study.runs / "tiny" / "evaluation")
    record = own_study.runs / "tiny" / "run.json"
    finished = record.read_text()
    write_record(record, json.loads(finished) | {"status": "failed"})
    app = opened("overview", own_study.runs)
    unfinished = app.dataframe[1].value.set_index("id")
    assert unfinished.loc["tiny", "status"] == "failed"
    record.write_text(finished)
    app.run()
    assert app.dataframe[1].value.set_index("id").loc["tiny", "status"] == "finished"


def test_the_overview_shows_every_protocol_and_calls_the_oracle_oracle(opened: Opener, study: TinyStudy) -> None:
    app = opened("overview", study.runs)
    table = app.dataframe[0].value.set_index("id")
    found = metrics_of(study)
    protocols = found["sets"][found["headline"]]["native"]["protocols"]
    for name in ("healthy", "validation"):
        assert table.loc["tiny", f"Dice, {name}"].startswith(f"{protocols[name]['mean_dice']:.3f} [")
    assert table.loc["tiny", "Dice, oracle"] == protocols["oracle_set"]["mean_dice"]
    assert sum("oracle" in column for column in table.columns) == 1
    assert shown(app)["Dice, oracle threshold"] == f"{protocols['oracle_set']['mean_dice']:.3f}"
    assert "its threshold saw the test labels" in words(app)


def test_a_table_called_cohort_is_named_after_its_folder(opened: Opener, study: TinyStudy) -> None:
    assert "Cohort scans" in [s.value for s in opened("overview", study.runs).subheader]
    assert cohort_title({"name": "cohort", "path": "/data/.demo-cohort/cohort.csv"}) == "demo-cohort"
    assert cohort_title({"name": "ixi", "path": "/data/x/ixi.csv"}) == "ixi"


def test_runs_of_one_name_stay_apart_in_the_chart(
    opened: Opener, own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = own_study.runs / "tiny" / "run.json"
    write_record(record, json.loads(record.read_text()) | {"name": "intensity-bright"})
    drawn: list[list[str]] = []
    dots = figures.protocol_dots
    monkeypatch.setattr(
        figures, "protocol_dots", lambda rows, title: drawn.append([r["label"] for r in rows]) or dots(rows, title)
    )
    opened("overview", own_study.runs)
    assert sorted(drawn[0]) == ["intensity-bright · tiny", "intensity-bright · tiny-intensity"]


def test_the_exact_dice_of_a_subject_is_the_evaluations(opened: Opener, study: TinyStudy) -> None:
    app = opened("slices", study.runs, run="tiny", subject="test02", layers=["stage1"])
    sets = metrics_of(study)["sets"]
    [exact] = [m.value for m in app.markdown if m.value.startswith("Exact Dice")]
    for key in ("healthy", "validation", "oracle_set"):
        [row] = [r for r in sets["stage1"]["working"]["protocols"][key]["subjects"] if r["subject_id"] == "test02"]
        assert f"**{row['dice']:.3f}**" in exact
    assert exact.index("healthy") < exact.index("validation labels") < exact.index("oracle")


def test_layers_change_the_numbers_without_a_refit(opened: Opener, study: TinyStudy) -> None:
    app = opened("distributions", study.runs, run="tiny")
    counts = {}
    for layers in (["input"], ["stage1"], ["input", "stage2"], []):
        app.pills(key="layers").set_value(layers).run()
        assert not app.exception
        counts["+".join(layers)] = shown(app)["false positives (FP)"], app.slider[0].value
    assert len(set(counts.values())) == 4
    headline = metrics_of(study)["headline"]
    assert counts[""][1] == pytest.approx(
        metrics_of(study)["sets"][headline]["working"]["protocols"]["healthy"]["threshold"], rel=1e-6
    )


@pytest.fixture
def voxels(study: TinyStudy) -> Callable[[str], list[SubjectScores]]:
    """Scores of all layers together, by role."""
    scores = open_scores(open_run(study.runs, "tiny"))
    return lambda role: [
        s for s in scores.voxels_of(scores.subjects(role), scores.layers, "working") if s.n_lesion or role != "test"
    ]


def test_counts_at_a_threshold_are_those_of_the_voxels(
    opened: Opener, study: TinyStudy, voxels: Callable[[str], list[SubjectScores]]
) -> None:
    app = opened("distributions", study.runs, run="tiny", layers=["input", "stage1", "stage2"])
    subjects = voxels("test")
    threshold = float(np.quantile(np.concatenate([s.normal for s in subjects]), 0.98))
    app.slider[0].set_value(threshold).run()
    at = app.slider[0].value
    hits = sum(int((s.anomalous >= at).sum()) for s in subjects)
    alarms = sum(int((s.normal >= at).sum()) for s in subjects)
    found = confusion(subjects, at)
    assert (hits, alarms) == (found.true_positives, found.false_positives)
    counts = {m.label: m.value for m in reversed(app.metric)}
    assert (counts["found (TP)"], counts["false positives (FP)"]) == (f"{hits:,}", f"{alarms:,}")
    assert counts["Dice, pooled"] == f"{found.pooled_dice:.3f}"
    assert counts["Dice, mean"] == f"{found.mean_dice.mean:.3f}"
    app.select_slider(key="prevalence").set_value(10.0).run()
    text = words(app)
    assert found.tpr is not None
    assert found.fpr is not None
    assert f"**{dice_from_rates(0.1, found.tpr, found.fpr):.3f}**" in text
    assert f"{all_positive_dice(found.prevalence):.3f}" in text


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_density_decision_is_fitted_on_validation_and_counted_on_test(
    opened: Opener, study: TinyStudy, voxels: Callable[[str], list[SubjectScores]], kind: str
) -> None:
    app = opened("distributions", study.runs, run="tiny", layers=["input", "stage1", "stage2"], kind=KINDS[kind])
    assert app.selectbox(key="kind").value == kind
    validation = voxels("validation")
    densities = TwoDensities.fit(
        np.concatenate([s.normal for s in validation]), np.concatenate([s.anomalous for s in validation]), kind, None
    )
    found = two_density_confusion(voxels("test"), densities)
    assert shown(app)["found (TP)"] == f"{found.true_positives:,}"
    assert shown(app)["false positives (FP)"] == f"{found.false_positives:,}"


def test_axes_and_subject_may_change_after_the_threshold_was_moved(opened: Opener, study: TinyStudy) -> None:
    app = opened("distributions", study.runs, run="tiny")
    app.slider[0].set_value(app.slider[0].max).run()
    for key, value in (("xaxis", "log"), ("shape", "ECDF"), ("yaxis", "linear"), ("xaxis", "linear")):
        next(g for g in app.get("button_group") if g.key == key).set_value(value).run()
        assert not app.exception
        assert not app.error
    app.selectbox(key="whose").set_value("test01").run()
    assert not app.exception
    assert app.slider[0].min <= app.slider[0].value <= app.slider[0].max


def test_every_threshold_has_a_line_and_an_uncut_label_in_the_legend_on_both_axes() -> None:
    counts = np.array([1, 2, 3, 4])
    for log_x in (False, True):
        figure = figures.score_densities(
            np.geomspace(1, 1000, 5), counts, counts, unit="d",
            thresholds=[("a", 10.0, "#111"), ("b", 10.0, "#222"), ("none", float("inf"), "#333")],
            cumulative=False, log_x=log_x, log_y=False, counts=True,
        )  # fmt: skip
        assert [(line.x0, line.name, line.showlegend) for line in figure.layout.shapes] == [
            (10.0, "a", True), (10.0, "b", True),
        ]  # fmt: skip
        assert not figure.layout.annotations


@pytest.mark.parametrize("page", ["#ffffff", "#0e1117"])
def test_points_of_layer_sets_can_be_seen_on_a_light_and_on_a_dark_page(page: str) -> None:
    def luminance(colour: str) -> float:
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    row = {"layers": "a", "n_layers": 1, "auprc": 0.1, "ceil_dice": 0.2, "healthy": None}
    scale = figures.layer_scatter([row], []).data[0].marker.colorscale
    for _, colour in scale:
        low, high = sorted([luminance(colour), luminance(page)])
        assert (high + 0.05) / (low + 0.05) > 2.5


def test_bins_hold_every_voxel(voxels: Callable[[str], list[SubjectScores]]) -> None:
    subjects = voxels("test")
    for logarithmic in (False, True):
        bins = score_bins(subjects, logarithmic=logarithmic)
        assert bins.normal.sum() == sum(len(s.normal) for s in subjects)
        assert bins.anomalous.sum() == sum(len(s.anomalous) for s in subjects)


def test_every_layer_set_can_be_shown_and_stands_in_the_table(opened: Opener, study: TinyStudy) -> None:
    app = opened("layers", study.runs, run="tiny", sets=["stage1"])
    assert app.multiselect(key="sets").value == ["stage1"]
    sets = [set_id(s) for s in open_scores(open_run(study.runs, "tiny")).layer_sets]
    app.multiselect(key="sets").set_value(sets[:4]).run()
    assert not app.exception
    table = app.dataframe[0].value
    assert set(table["layers"]) == set(sets)
    found = metrics_of(study)["sets"]["stage1"]["working"]
    [row] = table[table["layers"] == "stage1"].to_dict("records")
    assert row["AUPRC"] == found["pooled"]["auprc"]
    healthy = found["protocols"]["healthy"]
    assert row["Dice, healthy"] == f"{healthy['mean_dice']:.3f} [{healthy['ci_low']:.3f}, {healthy['ci_high']:.3f}]"


def test_layers_opens_on_a_run_that_has_some_and_elsewhere_offers_those_that_have(
    opened: Opener, study: TinyStudy
) -> None:
    app = opened("layers", study.runs)
    assert app.selectbox(key="run").value == "tiny"
    assert len(app.multiselect) == 1
    app = opened("layers", study.runs, run="tiny-intensity")
    assert "scores voxels directly" in app.info[0].value
    assert not app.multiselect
    [offer] = [button for button in app.button if "tiny" in button.label]
    offer.click().run()
    assert not app.exception
    assert app.selectbox(key="run").value == "tiny"
    assert len(app.multiselect) == 1


def test_layers_without_any_layered_run_says_how_to_get_one(opened: Opener, own_study: TinyStudy) -> None:
    shutil.rmtree(own_study.runs / "tiny")
    assert "cli.py fit" in words(opened("layers", own_study.runs))


def test_slices_opens_on_the_median_lesion_of_the_lower_half_of_dice(opened: Opener, study: TinyStudy) -> None:
    rows = [
        {"subject_id": f"s{n}", "dice": dice, "lesion_ml": ml}
        for n, (dice, ml) in enumerate([(0.0, 0.03), (0.9, 5.0), (0.1, 4.0), (0.8, 2.0), (0.2, 60.0), (0.7, 1.0)])
    ]
    metrics = {"headline": "a", "sets": {"a": {"native": {"protocols": {"healthy": {"subjects": rows}}}}}}
    assert opening_subject(metrics) == "s2"
    rows.clear()
    assert opening_subject(metrics) is None
    assert opened("slices", study.runs).selectbox(key="subject").value == opening_subject(metrics_of(study))
    assert opened("slices", study.runs, subject="test03").selectbox(key="subject").value == "test03"


def test_a_choice_that_the_sidebar_would_cut_is_told_in_full_below_it(opened: Opener, own_study: TinyStudy) -> None:
    app = opened("slices", own_study.runs, run="tiny")
    assert "gaussian · tiny" not in [caption.value for caption in app.sidebar.caption]
    record = own_study.runs / "tiny" / "run.json"
    name = "a Gaussian over every layer of the encoder"
    write_record(record, json.loads(record.read_text()) | {"name": name})
    app = opened("slices", own_study.runs, run="tiny")
    assert f"{name} · tiny" in [caption.value for caption in app.sidebar.caption]


def test_a_subject_named_like_markup_is_shown_as_text(opened: Opener, own_study: TinyStudy) -> None:
    named = json.dumps(MARKUP)[1:-1]
    record = own_study.runs / "tiny" / "run.json"
    write_record(record, json.loads(record.read_text().replace("test02", named)))
    evaluation = own_study.runs / "tiny" / "evaluation"
    recommit(evaluation, {"metrics.json": (evaluation / "metrics.json").read_text().replace("test02", named)})
    key = next(s["key"] for s in json.loads(record.read_text())["cohort"]["subjects"] if s["subject_id"] == MARKUP)
    entry = own_study.runs / ".cache" / "prepared" / key
    prepared = json.loads((entry / "record.json").read_text().replace("test02", named))
    recommit(entry, {"record.json": json.dumps({k: v for k, v in prepared.items() if k != "made_from"})})
    app = opened("data", own_study.runs, run="tiny")
    assert not app.exception
    assert any(MARKUP in table.value["subject"].tolist() for table in app.dataframe if "subject" in table.value)
    assert not [m for m in [*app.markdown, *app.caption] if m.allow_html]


def test_the_state_of_a_view_is_read_from_the_address_and_nonsense_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pages import _view

    monkeypatch.setattr(_view.st, "query_params", {"x": "3", "y": "99", "z": "-1", "threshold": "4.5", "plane": "up"})
    assert _view.state_from_address((10, 10, 10)) == {"x": 3, "threshold": 4.5}
    shared = {"threshold": "validation", "convention": "neurological", "plane": "coronal"}
    monkeypatch.setattr(_view.st, "query_params", {"x": "nan"} | shared)
    assert _view.state_from_address((10, 10, 10)) == shared


def test_no_page_lets_text_through_as_markup() -> None:
    for path in [*(ROOT / "pages").rglob("*.py"), ROOT / "app.py", ROOT / "asgi.py"]:
        source = path.read_text(encoding="utf-8")
        assert "unsafe_allow" not in source, path
        assert "st.html(" not in source, path
        framed = source.count(".iframe(")
        assert framed == 0 or (path.name == "report.py" and source.count(".iframe(framed(") == framed == 1), path

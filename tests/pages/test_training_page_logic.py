"""What the Training page reads and starts: curves, states, commands that say every setting, one job per click."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import tyro
from streamlit.testing.v1 import AppTest

from core.presentation import commands, training_view
from core.presentation.commands import (
    Scans,
    next_step,
    pretrain_argv,
    pretrain_id,
    resume_argv,
    scans_at,
    scans_of,
    start_once,
)
from core.presentation.figures import training as figures_training
from core.presentation.training_view import (
    NEGATIVES_READ,
    asked_name,
    asked_run_id,
    can_resume,
    duration,
    headline,
    job_of_run,
    next_advice,
    read_on,
    read_training,
    settings_groups,
    similarities_of,
    state_of,
    thinned,
)
from core.pretraining.simclr import NegativesSettings, SimclrSettings
from core.pretraining.simclr_settings import Kind
from core.pretraining.view_settings import VIEW_SETS, ViewSettings
from core.recipes import as_json
from core.runs.jobs import Job
from core.runs.listing import list_runs, open_run
from core.runs.run_record import Run
from core.runs.store import create_run, read_events, update_run
from data.errors import BadInput
from data.files import committed_directory
from data.prepared import Preprocessing
from models.encoder import make_encoder
from models.settings import EncoderSettings
from pages._negatives import KINDS, layers_of
from pages._pretrain import ARCHITECTURES, VIEW_WORDS
from tests.study import write_record
from verbs.fit import PretrainVerb, fit_verb

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = SimclrSettings(
    encoder=EncoderSettings(width=4, architecture="resnet10_3d"),
    views=ViewSettings(geometric=0.5, crop_voxels=(24, 24, 24), first_view_clean=False),
    steps=120,
    batch=4,
    lr=2e-4,
)
SPLIT = {"train": ["a", "b", "c", "d"], "calibration": ["e"], "validation": [], "test": ["f"]}


def an_encoder(
    runs: Path,
    run_id: str = "enc-1",
    steps_done: int = 120,
    status: str = "finished",
    negatives: NegativesSettings | None = None,
) -> Run:
    recipe = {"kind": "SimCLR", **as_json(dataclasses.replace(SETTINGS, negatives=negatives or NegativesSettings()))}
    cohort = {"name": "own", "path": "/scans/own.csv", "layout": "table", "subjects": [], "set_aside": []}
    run = create_run(
        runs, kind="encoder", name="my encoder", recipe=recipe, cohort=cohort, split=SPLIT,
        preprocessing=as_json(Preprocessing(("FLAIR",), "none")), run_id=run_id,
    )  # fmt: skip
    lines = [json.dumps(event(step)) for step in range(1, steps_done + 1)]
    (run.directory / "events.jsonl").write_text("\n".join(lines) + "\n")
    (run.directory / "training.json").write_text("{}")
    if status == "finished":
        with committed_directory(run.directory / "encoder") as scratch:
            (scratch / "weights").write_text("w")
    return update_run(run, status=status)


def write_events(run: Run, events: list[dict[str, Any]]) -> None:
    (run.directory / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events))


def event(step: int, **other: float) -> dict[str, float]:
    usual = {
        "loss": 1.5 - 0.005 * step, "top1": 0.5, "alignment": 0.2, "uniformity": -1.5, "embedding_std": 0.7,
        "effective_rank": 4.0, "chance": math.log(7), "total": 120, "seconds": 2.0, "examples_per_s": 2.0,
    }  # fmt: skip
    return {"step": step, **usual, **other}


def a_job(argv: list[str], status: str, run_id: str | None = None, job_id: str = "job-1") -> Job:
    return Job(job_id, tuple(argv), 1, "0", "2026-01-01T00:00:00", 1, run_id, Path("none"), status, 0, "In words.")


def test_thinned_curves_keep_the_first_and_the_last_step_and_no_more_points_than_asked() -> None:
    curves = thinned([event(step) for step in range(1, 5001)], points=300)
    assert len(curves.steps) <= 300
    assert (curves.steps[0], curves.steps[-1]) == (1, 5000)
    assert len(curves.values["loss"]) == len(curves.means["loss"]) == len(curves.steps)


def test_running_means_are_those_of_a_slow_sum_and_skip_what_was_not_logged() -> None:
    events = [event(step, loss=float(step % 7)) for step in range(1, 201)]
    del events[100]["loss"]
    curves = thinned(events)
    window = 8  # a twenty-fifth of 200
    for place in (0, 3, 100, 104, 199):
        known = [e["loss"] for e in events[max(0, place + 1 - window) : place + 1] if "loss" in e]
        assert curves.means["loss"][place] == pytest.approx(sum(known) / len(known))
    assert curves.values["loss"][100] is None


def test_time_left_is_steps_left_at_the_median_of_recent_steps(tmp_path: Path) -> None:
    run = an_encoder(tmp_path, steps_done=40, status="running")
    view = read_training(run)
    assert (view.step, view.total, view.share) == (40, 120, pytest.approx(1 / 3))
    assert view.seconds_left == pytest.approx(80 * 2.0)
    assert (view.candidates, view.chance) == (7, pytest.approx(math.log(7)))


def test_chance_and_candidates_come_from_the_journal_and_are_lines_over_steps(tmp_path: Path) -> None:
    run = an_encoder(tmp_path, steps_done=0, negatives=NegativesSettings("moco"))
    filling = [event(s, candidates=1 + 8 * s, chance=math.log(1 + 8 * s)) for s in range(1, 11)]
    write_events(run, filling)
    view = read_training(run)
    assert (view.kind, view.candidates, view.chance) == ("moco", 81, pytest.approx(math.log(81)))
    assert view.curves.values["chance_top1"] == tuple(pytest.approx(1 / (1 + 8 * s)) for s in range(1, 11))
    assert view.curves.values["chance"][0] == pytest.approx(math.log(9))


def test_a_journal_that_logged_no_chance_falls_back_to_that_of_its_batch(tmp_path: Path) -> None:
    run = an_encoder(tmp_path, steps_done=0)
    write_events(run, [{"step": 1, "loss": 1.0}])
    view = read_training(run)
    assert (view.candidates, view.chance, view.chance_top1) == (7, pytest.approx(math.log(7)), pytest.approx(1 / 7))


def test_histograms_become_shares_over_at_most_so_many_steps_and_keep_the_last() -> None:
    events = [
        event(s) | ({"positive_histogram": [0, 0, 4, 4], "negative_histogram": [s, 0, s, 0]} if s % 10 == 0 else {})
        for s in range(1, 2001)
    ]
    found = similarities_of(events, columns=50)
    assert found is not None
    assert (len(found.steps), found.steps[0], found.steps[-1]) == (50, 10, 2000)
    assert found.positive.sum(axis=1) == pytest.approx(1)
    assert found.negative[-1].tolist() == [0.5, 0, 0.5, 0]
    assert found.edges.tolist() == [-1, -0.5, 0, 0.5, 1]
    assert found.overlap == pytest.approx(0.5)
    assert similarities_of([event(1)]) is None


def test_a_map_of_similarities_shows_every_histogram_in_percent_and_no_range_that_was_never_filled() -> None:
    [found] = [similarities_of([event(1) | {"positive_histogram": [0, 0, 1, 3], "negative_histogram": [0, 2, 2, 0]}])]
    assert found is not None
    drawn = figures_training.similarity_map(found, positive=True)
    assert drawn.data[0].z.tolist() == [[0], [0], [25], [75]]
    assert drawn.data[0].x == (0, 1)  # no column left of step 0
    assert drawn.data[0].y.tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert drawn.layout.yaxis.range == (-0.5, 1)
    assert [(bars.name, list(bars.y)) for bars in figures_training.latest_similarities(found).data] == [
        ("others", [0, 50, 50, 0]), ("partners", [0, 0, 25, 75]),
    ]  # fmt: skip


def test_each_map_of_similarities_has_a_scale_of_its_own_and_columns_from_step_0_to_the_last() -> None:
    bins = {"positive_histogram": [0, 0, 0, 0, 8], "negative_histogram": [2, 2, 2, 2, 0]}
    found = similarities_of([event(step) | bins for step in (1, 10, 20)])
    assert found is not None
    partners, others = (figures_training.similarity_map(found, positive).data[0] for positive in (True, False))
    assert (partners.zmax, others.zmax) == (100, 25)
    assert partners.x == (0, 5.5, 15, 20)


def test_a_chance_level_is_named_in_the_legend_and_never_written_over_a_curve() -> None:
    curve = {"loss": [3.0, 2.0]}
    drawn = figures_training.monitor_curves([1, 9], curve, curve, [("chance", 3.1, "grey"), ("own", [3, 4], "grey")])
    assert not drawn.layout.annotations
    assert [(line.name, list(line.x), list(line.y)) for line in drawn.data if line.showlegend] == [
        ("chance", [0, 9], [3.1, 3.1]), ("own", [1, 9], [3, 4]),
    ]  # fmt: skip


def test_in_moco_both_sources_of_the_spread_are_named_and_minus_is_a_minus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_encoder(tmp_path, negatives=NegativesSettings("moco"))
    page = open_page(tmp_path, monkeypatch)
    assert {metric.label: metric.value for metric in page.metric}["Uniformity"] == "−1.50"
    assert any("a key of its slow copy" in caption.value for caption in page.caption)


def test_every_setting_of_the_negatives_is_read_by_some_kind_and_every_kind_is_explained() -> None:
    fields = {field.name for field in dataclasses.fields(NegativesSettings)} - {"kind"}
    kinds = set(get_args(Kind))
    assert {name for kind in kinds for name in NEGATIVES_READ[kind]} == fields
    assert kinds <= set(KINDS)
    assert set(VIEW_WORDS) - {"custom"} == set(VIEW_SETS)


def test_layers_that_the_form_offers_are_those_of_the_encoder() -> None:
    for architecture in ARCHITECTURES:
        encoder = make_encoder(EncoderSettings(width=4, architecture=architecture))
        assert tuple(layers_of(architecture)) == tuple(tap.name for tap in encoder.taps[1:])


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_command_carries_the_settings_of_every_kind(tmp_path: Path, kind: Any) -> None:
    negatives = NegativesSettings(kind, bank_size=64, positive_prior=0.05, apart_mm=8.0, blob_mm=(1.5, 3.0))
    settings = dataclasses.replace(
        SETTINGS, negatives=negatives, views=dataclasses.replace(VIEW_SETS["toneless"], crop_voxels=(24, 24, 24))
    )
    argv = pretrain_argv(tmp_path, Scans("/c.csv", "table", "/s.json", Preprocessing(("T1",))), settings, "x")
    assert tyro.cli(PretrainVerb, args=argv[1:]).simclr == settings


def test_a_run_without_a_step_can_be_read_and_is_too_early_to_judge(tmp_path: Path) -> None:
    view = read_training(an_encoder(tmp_path, steps_done=0, status="running"))
    assert (view.step, view.seconds_left, view.curves.steps) == (0, None, ())
    assert view.verdict.state == "too early"


def test_a_finished_run_is_not_told_to_go_on_and_a_stopped_one_is_told_to_resume(tmp_path: Path) -> None:
    view = read_training(an_encoder(tmp_path))
    assert view.verdict.state == "learning"
    assert headline(view, "finished") == "Trained"
    assert "Fit a detector" in next_advice(view, "finished")
    assert "Fit" not in next_advice(view, "finished", fitted=True)
    assert headline(view, "running") == "Learning"
    assert "Resume" in next_advice(view, "stopped")
    assert next_advice(view, "running") == view.verdict.advice


def test_a_journal_is_read_on_from_its_last_event_and_anew_after_a_resumed_run_rewrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = an_encoder(tmp_path, steps_done=60, status="running")
    file = run.directory / "events.jsonl"
    asked: list[int] = []

    def spy(run: Run, after: int = 0) -> list[dict[str, Any]]:
        asked.append(after)
        return read_events(run, after)

    monkeypatch.setattr(training_view, "read_events", spy)
    first = read_on(run)
    assert read_on(run, first) is first
    with file.open("a") as journal:
        journal.write(json.dumps({"kind": "note"}) + "\n" + json.dumps(event(61)) + "\n" + '{"step": 62, "lo')
    second = read_on(run, first)
    last_line = len(json.dumps(event(60))) + 1
    whole = file.stat().st_size - len('{"step": 62, "lo')
    tail = len(json.dumps(event(61))) + 1
    assert asked == [0, *[whole - tail - len('{"kind": "note"}\n') - last_line] * 2]
    assert [e["step"] for e in second.steps] == list(range(1, 62))
    file.write_text("".join(json.dumps(event(step, loss=9.0)) + "\n" for step in range(1, 71)))
    third = read_on(run, second)
    assert [e["loss"] for e in third.steps] == [9.0] * 70
    assert read_training(run, third) == read_training(run)


@pytest.mark.parametrize(
    ("job_status", "run_status", "state", "resumable"),
    [
        ("running", "running", "running", False),
        ("stopped", "interrupted", "stopped", True),
        ("killed", "running", "killed", True),
        ("failed", "failed", "failed", True),
        ("finished", "finished", "finished", False),
        ("stopped", "finished", "finished", False),
    ],
)
def test_state_of_a_run_and_its_job(
    tmp_path: Path, job_status: str, run_status: str, state: str, resumable: bool
) -> None:
    run = an_encoder(tmp_path, steps_done=3, status=run_status)
    job = a_job(["pretrain", "x", "--run-id", "enc-1"], job_status)
    assert state_of(run, job) == state
    assert can_resume(run, job) is resumable


def test_a_job_that_has_no_run_yet_is_preparing_and_is_found_by_the_id_it_asked_for() -> None:
    job = a_job(["pretrain", "x", "--name=mine", "--run-id", "new-1"], "running")
    assert state_of(None, job) == "preparing"
    assert job_of_run([job], "new-1") is job
    assert job_of_run([job], "new-2") is None
    assert (asked_run_id(job), asked_name(job)) == ("new-1", "mine")
    assert not can_resume(None, job)


def test_the_command_of_a_pretraining_says_every_setting(tmp_path: Path) -> None:
    scans = Scans("/scans/c.csv", "table", "/s.json", Preprocessing(("T1", "FLAIR"), "centroid", 3.0))
    argv = pretrain_argv(tmp_path, scans, SETTINGS, "-odd name")
    parsed = tyro.cli(PretrainVerb, args=argv[1:])
    two_contrasts = dataclasses.replace(SETTINGS, encoder=dataclasses.replace(SETTINGS.encoder, in_channels=2))
    assert argv[0] == "pretrain"
    assert parsed.simclr == two_contrasts
    assert parsed.preprocessing == scans.preprocessing
    assert (parsed.name, str(parsed.cohort), str(parsed.split)) == ("-odd name", "/scans/c.csv", "/s.json")
    assert parsed.run_id == pretrain_id(scans, two_contrasts, "-odd name")


def test_the_run_id_follows_from_name_scans_and_settings() -> None:
    scans, other = Scans("/a.csv"), dataclasses.replace(SETTINGS, seed=1)
    assert pretrain_id(scans, SETTINGS, "x") == pretrain_id(scans, SETTINGS, "x")
    assert pretrain_id(scans, SETTINGS, "x") != pretrain_id(scans, other, "x")
    assert pretrain_id(scans, SETTINGS, "x") != pretrain_id(Scans("/b.csv"), SETTINGS, "x")


def test_a_run_made_on_a_terminal_is_resumed_with_its_own_settings_split_and_id(tmp_path: Path) -> None:
    run = an_encoder(tmp_path, steps_done=5, status="interrupted")
    parsed = tyro.cli(PretrainVerb, args=resume_argv(tmp_path, run, None)[1:])
    assert parsed.simclr == SETTINGS
    assert (parsed.run_id, parsed.name, parsed.layout) == ("enc-1", "my encoder", "table")
    assert parsed.preprocessing == Preprocessing(("FLAIR",), "none")
    assert parsed.split is not None
    assert json.loads(parsed.split.read_text()) == SPLIT


def test_a_job_is_resumed_with_its_own_words(tmp_path: Path) -> None:
    words = ["pretrain", "x", "--run-id", "enc-1"]
    assert resume_argv(tmp_path, an_encoder(tmp_path), a_job(words, "killed")) == words


def test_a_file_with_a_split_is_no_run(tmp_path: Path) -> None:
    scans_of(tmp_path, an_encoder(tmp_path))
    runs, problems = list_runs(tmp_path)
    assert ([run.run_id for run in runs], problems) == (["enc-1"], [])


def test_a_path_where_nothing_is_makes_no_command(tmp_path: Path) -> None:
    for path in ("", "  ", str(tmp_path / "nothing.csv")):
        with pytest.raises(BadInput, match="No cohort at"):
            scans_at(path, "auto", Preprocessing())


def test_two_clicks_start_one_job_and_a_click_after_its_end_starts_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = recorded(monkeypatch, [])
    start_once(tmp_path, ["pretrain", "x"])
    start_once(tmp_path, ["pretrain", "x"])
    assert len(set(started)) == 1  # the same token twice is the same job (core.runs.jobs)
    recorded(monkeypatch, [a_job(["pretrain", "x"], "running", job_id="job-9")])
    assert start_once(tmp_path, ["pretrain", "x"]).job_id == "job-9"
    again = recorded(monkeypatch, [a_job(["pretrain", "x"], "stopped")])
    start_once(tmp_path, ["pretrain", "x"])
    assert len(again) == 1
    assert again[0] != started[0]


def test_after_an_encoder_comes_fit_then_score_then_evaluate_then_nothing(tmp_path: Path) -> None:
    encoder = an_encoder(tmp_path)
    step = next_step(tmp_path, encoder)
    assert step is not None
    parsed = tyro.cli(fit_verb(step.argv[1:]), args=list(step.argv[1:]))
    assert (parsed.encoder, parsed.detector, parsed.run_id) == ("enc-1", "gaussian", "enc-1-gaussian")
    detector = create_run(
        tmp_path, kind="detector", name="g", recipe={}, split=SPLIT, parents={"encoder": "enc-1"}, run_id=step.run_id
    )
    verbs = []
    for made in ("detector", "scores/e", "scores/f", "evaluation"):
        found = next_step(tmp_path, encoder)
        assert found is not None
        verbs.append(found.argv[0])
        with committed_directory(detector.directory / made) as scratch:
            (scratch / "x").write_text("x")
    assert verbs == ["fit", "score", "score", "evaluate"]
    assert next_step(tmp_path, encoder) is None


def test_settings_are_shown_in_words(tmp_path: Path) -> None:
    groups = settings_groups(an_encoder(tmp_path))
    assert ("first view clean", "no") in groups["Views"]
    assert ("crop voxels", "24 24 24") in groups["Views"]
    assert ("lr", "0.0002") in groups["Training"]
    assert groups["Negatives"] == [("variant", "in-batch")]
    moco = settings_groups(an_encoder(tmp_path, "enc-2", negatives=NegativesSettings("moco", bank_size=256)))
    assert moco["Negatives"] == [("variant", "moco"), ("bank size", "256"), ("key momentum", "0.99")]
    assert ("training subjects", "4") in groups["Scans"]
    assert [duration(s) for s in (None, 9, 61, 7260)] == ["–", "9 s", "1 min 1 s", "2 h 1 min"]


def test_an_empty_page_says_the_command_and_offers_the_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = open_page(tmp_path, monkeypatch)
    assert any("python cli.py demo" in info.value for info in page.info)
    assert "Start training" in [b.label for b in page.button]


def test_the_page_shows_the_verdict_in_words_and_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_encoder(tmp_path)
    page = open_page(tmp_path, monkeypatch)
    assert any(box.value.startswith("**Trained.**") for box in page.success)
    numbers = {metric.label: metric.value for metric in page.metric}
    assert (numbers["Loss"], numbers["Top-1"]) == (f"{1.5 - 0.005 * 114.5:.3f}", "50 %")
    assert "Fit a Gaussian on this encoder" in [b.label for b in page.button]


def test_a_run_that_the_sidebar_would_cut_is_told_in_full_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_encoder(tmp_path, "an-encoder-with-a-long-name-of-its-own")
    page = open_page(tmp_path, monkeypatch)
    assert "my encoder · an-encoder-with-a-long-name-of-its-own" in [c.value for c in page.sidebar.caption]


def test_a_collapsed_run_is_an_error_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = an_encoder(tmp_path, steps_done=0)
    lines = [json.dumps(event(step, embedding_std=0.7 if step < 60 else 0.01)) for step in range(1, 121)]
    (run.directory / "events.jsonl").write_text("\n".join(lines) + "\n")
    page = open_page(tmp_path, monkeypatch)
    assert any("Collapsed." in box.value and "learning rate" in box.value for box in page.error)


def test_the_form_starts_one_training_on_the_split_of_the_run_it_begins_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_encoder(tmp_path)
    words: list[list[str]] = []

    def fake(runs: Path, argv: Any) -> None:
        words.append(list(argv))

    monkeypatch.setattr("pages._monitor.start_once", fake)
    page = open_page(tmp_path, monkeypatch)
    page.number_input(key="new-enc-1-steps").set_value(33)
    next(b for b in page.button if b.label == "Start training").click().run()
    assert not page.exception
    parsed = tyro.cli(PretrainVerb, args=words[0][1:])
    assert (parsed.simclr.steps, parsed.simclr.batch, parsed.simclr.encoder.width) == (33, 4, 4)
    assert parsed.split is not None
    assert json.loads(parsed.split.read_text())["train"] == SPLIT["train"]


def test_the_form_asks_for_what_the_picked_kind_reads_at_once_and_starts_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_encoder(tmp_path)
    words: list[list[str]] = []
    monkeypatch.setattr("pages._monitor.start_once", lambda runs, argv: words.append(list(argv)))
    page = open_page(tmp_path, monkeypatch)
    assert "Bank size" not in [n.label for n in page.number_input]
    page.selectbox(key="new-enc-1-kind").set_value("hard").run()
    labels = [n.label for n in page.number_input]
    assert {"Bank size", "Key momentum", "Hardest entries", "Positive prior"} <= set(labels)
    assert "Shifts" not in labels
    page.number_input(key="new-enc-1-hardest").set_value(16)
    page.selectbox(key="new-enc-1-views").set_value("toneless").run()
    assert "Tone strength" not in [s.label for s in page.slider]
    next(b for b in page.button if b.label == "Start training").click().run()
    asked = tyro.cli(PretrainVerb, args=words[0][1:]).simclr
    assert asked.negatives == NegativesSettings("hard", hardest=16)
    assert asked.views == dataclasses.replace(VIEW_SETS["toneless"], crop_voxels=(24, 24, 24))
    page.selectbox(key="new-enc-1-views").set_value("custom").run()
    assert "Tone strength" in [s.label for s in page.slider]


@pytest.mark.parametrize(
    ("kind", "logged", "there", "absent"),
    [
        ("in-batch", {}, "Alignment and uniformity", "Bank: share that is filled"),
        ("queue", {"queue_fill": 1.0, "queue_age": 21.0}, "Bank: mean age of its entries, steps", "Loss of pairs"),
        ("ccd", {"class_accuracy": 0.9, "class_loss": 0.1, "contrastive_loss": 1.0}, "Loss of pairs and", "Bank:"),
    ],
)
def test_the_page_draws_what_a_kind_logs_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, logged: dict[str, float], there: str, absent: str
) -> None:
    run = an_encoder(tmp_path, steps_done=0, negatives=NegativesSettings(kind))
    bins = {"positive_histogram": [0, 1, 7], "negative_histogram": [9, 1, 0]}
    write_events(run, [event(step, **logged) | bins for step in range(1, 121)])
    titles = " ".join(m.value for m in open_page(tmp_path, monkeypatch).markdown)
    assert there in titles
    assert absent not in titles
    assert "Both at step 120: 10 % overlap" in titles


def test_what_the_form_does_not_ask_is_that_of_the_run_and_its_seed_is_the_encoders_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = an_encoder(tmp_path)
    recipe = run.record["recipe"] | {"weight_decay": 0.03, "schedule": "constant", "warmup_steps": 7}
    recipe["encoder"] = recipe["encoder"] | {"strides": [2, 2, 1, 1, 1]}
    write_record(run.directory / "run.json", run.record | {"recipe": recipe})
    words: list[list[str]] = []
    monkeypatch.setattr("pages._monitor.start_once", lambda runs, argv: words.append(list(argv)))
    page = open_page(tmp_path, monkeypatch)
    page.number_input(key="new-enc-1-seed").set_value(5)
    next(b for b in page.button if b.label == "Start training").click().run()
    asked = tyro.cli(PretrainVerb, args=words[0][1:]).simclr
    assert (asked.weight_decay, asked.schedule, asked.warmup_steps) == (0.03, "constant", 7)
    assert asked.encoder.strides == (2, 2, 1, 1, 1)
    assert (asked.seed, asked.encoder.seed) == (5, 5)


def test_a_cohort_that_is_not_there_is_said_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = open_page(tmp_path, monkeypatch)
    page.text_input(key="new-another cohort-cohort").set_value("/no/such/table.csv")
    next(b for b in page.button if b.label == "Start training").click().run()
    assert any("No cohort at '/no/such/table.csv'" in box.value for box in page.error)
    assert not (tmp_path / ".jobs").exists()


def test_an_interrupted_run_offers_to_resume_and_a_finished_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_encoder(tmp_path, steps_done=20, status="interrupted")
    assert "Resume" in [b.label for b in open_page(tmp_path, monkeypatch).button]
    update_run(open_run(tmp_path, "enc-1"), status="finished")
    assert "Resume" not in [b.label for b in open_page(tmp_path, monkeypatch).button]


def recorded(monkeypatch: pytest.MonkeyPatch, jobs: list[Job]) -> list[str | None]:
    tokens: list[str | None] = []

    def fake(runs: Path, argv: Any, *, token: str | None = None) -> Job:
        tokens.append(token)
        return a_job(list(argv), "running")

    monkeypatch.setattr(commands, "list_jobs", lambda runs: jobs)
    monkeypatch.setattr(commands, "start_job", fake)
    return tokens


def open_page(runs: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setenv("DICESCOPE_RUNS", str(runs))
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=30).run()
    page = page.switch_page("pages/training.py").run()
    assert not page.exception
    return page

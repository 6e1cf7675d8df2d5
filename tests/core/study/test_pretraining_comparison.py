"""Ways of training compared: one budget, one detector, paired intervals over subjects and seeds, computed sentences."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from streamlit.testing.v1 import AppTest

import cli
from benchmarks import pretraining_study
from benchmarks.pretraining_report import write_report
from core.metrics.bootstrap import mean_interval
from core.metrics.exact_curve import exact_curve
from core.metrics.subject_scores import SubjectScores, pooled_dice_at
from core.metrics.two_level import Figure, Resamples, number_text, over_seeds, paired_over_seeds, said, span_text
from core.presentation.figures.comparison import training_against_dice
from core.pretraining.minimise import read_events
from core.runs.evaluated import read_metrics
from core.runs.listing import list_runs, open_run
from core.study.pooled_counts import count
from core.study.pretraining_comparison import ComparisonPlan, list_comparisons, read_comparison
from core.study.pretraining_statistics import contrastive_end, judge_pretraining, spearman
from core.study.pretraining_table import correlation_lines, visibility_of
from core.study.run_summary import leading
from data.errors import BadInput, IntegrityError
from pages._text import prose
from tests.study import PREPROCESSING, SCAN_FLAGS, SIMCLR_FLAGS, TinyStudy

VARIANTS, VIEWS, SEEDS = ("in-batch", "queue"), ("geometric",), ("0", "1")
FIT = ("--layers", "stage1", "stage2", "--grid", "8mm")


def command(study: TinyStudy, *more: str, views: tuple[str, ...] = VIEWS) -> list[str]:
    return [
        "compare-pretraining", str(study.table), "--name", "tiny", "--runs", str(study.runs), "--workers", "1",
        "--variants", *VARIANTS, "--views", *views, "--seeds", *SEEDS, *SIMCLR_FLAGS, *FIT, *SCAN_FLAGS, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def compared(study: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """The tiny study with a finished comparison of two variants under two seeds."""
    own = study.copy(tmp_path_factory.mktemp("compared") / "study")
    assert cli.main(command(own)) == 0
    return own


@pytest.fixture
def found(compared: TinyStudy) -> dict[str, Any]:
    return read_comparison(compared.runs, "tiny")


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the seconds that its trainings took."""
    ends = {
        seed: {k: v for k, v in end.items() if k != "seconds"} for seed, end in row["contrastive"]["by_seed"].items()
    }
    return row | {"contrastive": row["contrastive"] | {"by_seed": ends}}


# ------------------------------------------------------------------------------------------------ two levels


def test_with_one_seed_the_interval_is_the_bootstrap_over_subjects() -> None:
    values = np.random.default_rng(0).random(20)
    resamples = Resamples(20, n_resamples=20_000)
    ours = over_seeds([Figure(values.mean(), resamples.means(values))], resamples)
    plain = mean_interval(values, seed=3, n_resamples=20_000)
    assert ours["mean"] == pytest.approx(plain.mean)
    assert ours["low"] == pytest.approx(plain.low, abs=0.01)
    assert ours["high"] == pytest.approx(plain.high, abs=0.01)
    assert ours["seed_sd"] is None


def test_resampled_seeds_and_subjects_have_the_variance_that_owen_derives() -> None:
    # Exact: for a sum a_s + b_i without interaction the resampled mean has variance var(a)/S + var(b)/n.
    seeds, subjects = np.array([0.0, 1.0, 3.0]), np.random.default_rng(1).normal(size=12)
    resamples = Resamples(12, n_resamples=200_000)
    replicates = np.stack([a + resamples.means(subjects) for a in seeds])
    drawn = (resamples.seeds(3) * replicates.T).sum(axis=1) / 3
    assert drawn.var() == pytest.approx(seeds.var() / 3 + subjects.var() / 12, rel=0.02)
    found = over_seeds([Figure(float(a), row) for a, row in zip(seeds, replicates, strict=True)], resamples)
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


def test_a_constant_gain_is_certain_however_much_subjects_and_seeds_differ() -> None:
    values = np.random.default_rng(2).random((3, 9))
    resamples = Resamples(9)
    better = [Figure(v.mean() + 0.1, resamples.means(v + 0.1)) for v in values]
    plain = [Figure(v.mean(), resamples.means(v)) for v in values]
    gain = paired_over_seeds(better, plain, resamples)
    assert [gain[k] for k in ("mean", "low", "high")] == pytest.approx([0.1] * 3)
    assert gain["seed_sd"] == pytest.approx(0, abs=1e-12)
    assert said(gain) == "better"
    assert said(paired_over_seeds(plain, better, resamples)) == "worse"
    assert paired_over_seeds(better, plain[:1], resamples)["by_seed"] == pytest.approx(
        [v.mean() + 0.1 - values[0].mean() for v in values]
    )
    with pytest.raises(BadInput, match="3 networks against 2"):
        paired_over_seeds(better, plain[:2], resamples)


def test_one_subject_has_no_interval() -> None:
    resamples = Resamples(1)
    assert over_seeds([Figure(0.4, resamples.means(np.array([0.4])))], resamples)["low"] is None
    assert said(None).startswith("no difference")


# ------------------------------------------------------------------------------------------------ pooled counts


def scored(n: int = 4) -> list[SubjectScores]:
    rng = np.random.default_rng(5)
    normal = [rng.gamma(2.0, size=4000).astype(np.float32) for _ in range(n)]
    anomalous = [(rng.gamma(2.0, size=60 + 40 * i) + 3).astype(np.float32) for i in range(n)]
    made = [SubjectScores(f"s{i}", False, normal[i], anomalous[i], 0.008, i) for i in range(n)]
    return [*made[::-1], SubjectScores("healthy", True, normal[0], np.empty(0, np.float32), 0.008)]


def test_counts_give_the_pooled_figures_of_all_subjects_and_of_a_resample() -> None:
    subjects = scored()
    counts = count(subjects)
    assert counts.subjects == ("s0", "s1", "s2", "s3")
    by_id = {s.subject_id: s for s in subjects}
    for times in ([1, 1, 1, 1], [0, 2, 1, 1], [4, 0, 0, 0]):
        drawn = [by_id[i] for i, t in zip(counts.subjects, times, strict=True) for _ in range(t)]
        curve = exact_curve(np.concatenate([s.anomalous for s in drawn]), np.concatenate([s.normal for s in drawn]))
        row = np.array([times], dtype=np.float64)
        assert counts.auprc(row)[0] == pytest.approx(curve.auprc, abs=2e-3)
        cuts = np.unique(np.concatenate([s.anomalous for s in drawn]))
        best = max(pooled_dice_at(drawn, float(c)) or 0.0 for c in cuts)
        assert counts.ceil_dice(row)[0] == pytest.approx(best, abs=2e-3)


def test_counts_need_a_lesion() -> None:
    with pytest.raises(BadInput, match="No test subject has a lesion"):
        count(scored()[-1:])


# ------------------------------------------------------------------------------------------------ the comparison


def test_every_encoder_and_detector_is_a_run_with_a_speaking_id(compared: TinyStudy, found: dict[str, Any]) -> None:
    runs = {run.run_id: run for run in list_runs(compared.runs)[0]}
    for variant in VARIANTS:
        for seed in SEEDS:
            stem = f"cmp-tiny-{variant}-geometric-s{seed}"
            encoder = runs[f"{stem}-encoder"].record["recipe"]
            assert encoder["negatives"]["kind"] == variant
            assert encoder["views"]["photometric"] == 0.0
            assert encoder["views"]["crop_voxels"] == [32, 32, 32]
            assert encoder["seed"] == encoder["encoder"]["seed"] == int(seed)
            assert runs[stem].record["parents"]["encoder"] == f"{stem}-encoder"
    for control in ("untrained-s0", "untrained-s1", "zscore", "intensity-bright", "intensity-dark"):
        assert read_metrics(runs[f"cmp-tiny-{control}"])["space"] == "native"
    assert list_comparisons(compared.runs) == ["tiny"]
    assert not any(run_id.startswith(".") for run_id in runs)


def test_a_plan_trains_every_pair_once() -> None:
    plan = ComparisonPlan(variants=("moco", "dense"), views=("mild", "none"), also=("ccd/both", "moco/none"))
    assert plan.pairs() == [("moco", "mild"), ("moco", "none"), ("dense", "mild"), ("dense", "none"), ("ccd", "both")]


def test_all_trainings_have_one_budget(found: dict[str, Any]) -> None:
    assert {row["contrastive"]["steps"] for row in found["rows"]} == {6}
    assert found["plan"]["simclr"]["batch"] == 2
    assert [row["key"] for row in found["rows"]] == [f"{v}/geometric" for v in VARIANTS]


def test_the_table_quotes_the_evaluations(compared: TinyStudy, found: dict[str, Any]) -> None:
    row = found["rows"][0]
    metrics = [read_metrics(open_run(compared.runs, f"cmp-tiny-in-batch-geometric-s{s}")) for s in SEEDS]
    for choice, sets in (("headline", [m["headline"] for m in metrics]), ("all", ["stage1+stage2"] * 2)):
        figures = [m["sets"][name]["native"] for m, name in zip(metrics, sets, strict=True)]
        told = row["choices"][choice]["figures"]
        for protocol in ("healthy", "validation", "oracle_set"):
            assert told[protocol]["by_seed"] == pytest.approx([f["protocols"][protocol]["mean_dice"] for f in figures])
        assert told["ceil_dice"]["by_seed"] == pytest.approx([f["ceil_dice"]["dice"] for f in figures])
        assert told["auprc"]["by_seed"] == pytest.approx([f["pooled"]["auprc"] for f in figures])
        assert told["healthy"]["seed_sd"] == pytest.approx(np.std(told["healthy"]["by_seed"], ddof=1))
        assert all(told[f]["low"] <= told[f]["high"] and (told[f]["n"], told[f]["seeds"]) == (3, 2) for f in told)


def test_differences_are_paired_with_the_untrained_encoder_of_the_same_seed(
    compared: TinyStudy, found: dict[str, Any]
) -> None:
    untrained = found["controls"][0]
    assert untrained["key"] == "untrained"
    row = found["rows"][1]
    for choice in ("headline", "all"):
        own, base = row["choices"][choice], untrained["choices"][choice]["figures"]
        expected = np.subtract(own["figures"]["validation"]["by_seed"], base["validation"]["by_seed"])
        assert own["minus_untrained"]["validation"]["by_seed"] == pytest.approx(expected)
    zscore = read_metrics(open_run(compared.runs, "cmp-tiny-zscore"))["sets"]["voxelzscore"]["native"]
    expected = np.array(row["choices"]["all"]["figures"]["auprc"]["by_seed"]) - zscore["pooled"]["auprc"]
    assert row["choices"]["all"]["minus_zscore"]["auprc"]["by_seed"] == pytest.approx(expected)
    assert set(row["layers"]) == {"stage1", "stage2"}
    assert untrained["choices"]["headline"]["minus_untrained"] == {}


def test_the_end_of_training_is_the_mean_of_its_last_steps(compared: TinyStudy, found: dict[str, Any]) -> None:
    run = open_run(compared.runs, "cmp-tiny-in-batch-geometric-s0-encoder")
    lines = [json.loads(line) for line in (run.directory / "events.jsonl").read_text().splitlines()]
    last = [line for line in lines if "loss" in line][-5:]
    end = contrastive_end(run)
    assert end["loss"] == pytest.approx(np.mean([line["loss"] for line in last]))
    assert end["loss_share"] == pytest.approx(end["loss"] / np.log(3))
    assert end["candidates"] == 3
    assert found["rows"][0]["contrastive"]["by_seed"]["0"]["top1"] == end["top1"]


def test_the_correlation_counts_a_way_of_training_once_however_many_seeds_it_has(found: dict[str, Any]) -> None:
    assert {(c["training"], c["figure"]) for c in found["correlation"]} == {
        (t, f) for t in ("loss_share", "top1") for f in ("validation", "healthy", "ceil_dice")
    }
    assert all(c["n"] == 2 and c["rho"] is None for c in found["correlation"])
    assert len(correlation_lines(found["correlation"])) == 1


def test_correlations_come_with_their_caveat() -> None:
    told = [{"n": 5, "rho": 0.5, "p": 0.4, "text": "one."}, {"n": 5, "rho": None, "p": None, "text": "two."}]
    lines = correlation_lines(told)
    assert lines[:2] == ["one.", "two."]
    assert "these 2 tests are not corrected" in lines[2]


def test_the_loss_of_ccd_is_its_contrastive_part_against_its_own_chance(
    compared: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(compared.runs, "cmp-tiny-in-batch-geometric-s0-encoder")
    honest = [
        {**e, "candidates": 8, "contrastive_loss": 1.5, "loss": 3.0, "chance": 4.0}
        for e in read_events(run.directory / "events.jsonl")
        if "loss" in e
    ]
    monkeypatch.setattr("core.study.pretraining_statistics.read_events", lambda path: honest)
    end = contrastive_end(run)
    assert (end["loss"], end["chance"]) == pytest.approx((1.5, np.log(8)))
    assert end["loss_share"] == pytest.approx(1.5 / np.log(8))


def test_numbers_have_a_real_minus_and_zero_has_no_sign() -> None:
    assert [number_text(v, signed=True) for v in (-0.25, -0.0001, 0.0001, 0.5)] == [
        "−0.250",
        "0.000",
        "0.000",
        "+0.500",
    ]
    assert span_text({"mean": -0.1, "low": -0.2, "high": 0.00001}, signed=True) == "−0.100 [−0.200, 0.000]"
    assert number_text(None) == span_text(None) == ""


def test_a_rank_correlation_is_spearmans_and_its_p_counts_permutations() -> None:
    assert spearman(np.arange(5.0), np.array([1.0, 2.0, 3.0, 4.0, 9.0])) == pytest.approx((1.0, 2 / 120))
    assert spearman(np.arange(5.0), np.array([9.0, 4.0, 3.0, 2.0, 1.0])) == pytest.approx((-1.0, 2 / 120))
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=12), rng.integers(0, 5, 12).astype(float)
    rho, p = spearman(a, b + a)
    known = spearmanr(a, b + a)
    assert rho == pytest.approx(known.statistic)
    assert p == pytest.approx(known.pvalue, abs=0.02)
    assert spearman(np.arange(3.0), np.arange(3.0)) == (None, None)
    assert spearman(np.arange(6.0), np.ones(6)) == (None, None)


def test_visibility_is_the_mean_over_fitted_layers_of_encoders_that_all_have_it(
    compared: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders = [open_run(compared.runs, f"cmp-tiny-in-batch-geometric-s{seed}-encoder") for seed in SEEDS]
    assert visibility_of(encoders, ["stage1"]) is None

    def layers(*means: float | None) -> dict[str, Any]:
        names = ("input", "stage1", "stage2", "stage3")
        return {"layers": [{"layer": n, "visibility": {"mean": m}} for n, m in zip(names, means, strict=True)]}

    stored = {
        encoders[0].run_id: {"trained": layers(None, 0.2, 0.4, 9), "untrained": layers(None, 1, 1, 9)},
        encoders[1].run_id: {"trained": layers(None, 0.6, 0.8, 9), "untrained": layers(None, 1, 2, 9)},
    }
    monkeypatch.setattr("core.study.pretraining_table.stored_visibility", lambda run: stored.get(run.run_id))
    found = visibility_of(encoders, ["input", "stage1", "stage2"])
    assert found == pytest.approx({"trained": 0.5, "untrained": 1.25})
    del stored[encoders[1].run_id]
    assert visibility_of(encoders, ["stage1"]) is None


def test_repeating_the_command_uses_everything_again(
    compared: TinyStudy, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **named: object) -> None:
        raise AssertionError("made again")

    for work in (
        "core.study.training.pretrain_encoder",
        "core.study.scoring.load_detector",
        "core.study.evaluation._many",
    ):
        monkeypatch.setattr(work, never)
    assert cli.main(command(compared)) == 0
    assert read_comparison(compared.runs, "tiny") == found


def test_after_a_kill_only_what_is_missing_is_made(compared: TinyStudy, found: dict[str, Any], tmp_path: Path) -> None:
    mine = compared.copy(tmp_path / "mine")
    for gone in (".comparisons", "cmp-tiny-queue-geometric-s1", "cmp-tiny-queue-geometric-s1-encoder/encoder"):
        shutil.rmtree(mine.runs / gone)
    before = {run.run_id: run.record["created"] for run in list_runs(mine.runs)[0]}
    assert cli.main(command(mine)) == 0
    again = read_comparison(mine.runs, "tiny")
    assert [timeless(one) for one in again["rows"]] == [timeless(one) for one in found["rows"]]
    kept = {run.run_id: run.record["created"] for run in list_runs(mine.runs)[0] if run.run_id in before}
    assert kept == before


def test_a_training_that_ends_with_an_error_is_listed_and_the_others_go_on(
    compared: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.study import training

    mine = compared.copy(tmp_path / "mine")
    honest = training.pretrain_encoder

    def spoiled(volumes: Any, settings: Any, *rest: Any) -> Path:
        if settings.views.geometric == 0:
            raise BadInput("Loss is nan at step 3.")
        return honest(volumes, settings, *rest)

    monkeypatch.setattr("core.study.training.pretrain_encoder", spoiled)
    assert cli.main(command(mine, views=("geometric", "none"))) == 0
    found = read_comparison(mine.runs, "tiny")
    assert [(f["variant"], f["seed"]) for f in found["failed"]] == [(v, s) for s in (0, 1) for v in VARIANTS]
    assert {row["views"] for row in found["rows"]} == {"geometric"}
    assert open_run(mine.runs, "cmp-tiny-queue-none-s1-encoder").status == "failed"


def test_another_budget_under_the_same_name_is_refused(compared: TinyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command(compared, "--simclr.lr", "1e-3")) == 2
    assert "started otherwise" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--variants", "magic"), "in-batch, queue"),
        (("--views", "strong", "strong"), "each once"),
        (("--seeds", "0", "0"), "each once"),
        (("--name", "../x"), "cannot name a comparison"),
        (("--also", "moco-strong"), "no pair to train"),
        (("--simclr.seed", "4"), "simclr.seed cannot be given"),
        (("--simclr.views.photometric", "0.2"), "simclr.views"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused_before_any_scan_is_read(
    more: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare-pretraining", str(tmp_path / "no.csv"), "--runs", str(tmp_path / "runs"), *more]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_comparison_that_is_missing_or_edited_is_told(compared: TinyStudy, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="There are: tiny"):
        read_comparison(compared.runs, "other")
    mine = compared.copy(tmp_path / "mine")
    path = mine.runs / ".comparisons" / "tiny" / "comparison.json"
    path.write_text(path.read_text().replace("geometric", "strong"))
    with pytest.raises(IntegrityError, match="damaged"):
        read_comparison(mine.runs, "tiny")


def test_the_terminal_shows_every_protocol_the_controls_and_the_verdict(
    compared: TinyStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(compared)) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in (
        "untrained encoder",
        "voxel-wise |z|",
        "intensity, dark",
        "Chosen on validation",
        "too few or too equal to correlate",
        "top-1",
    ):
        assert words in out
    assert cli.main(command(compared, "--json")) == 0
    assert json.loads(capsys.readouterr().out) == read_comparison(compared.runs, "tiny")


# ------------------------------------------------------------------------------------------------ the verdict


def row(key: str, validation: float | None, untrained: tuple[float, float] | None = None, z: float = 0.0) -> dict:
    def span(mean: float, half: float) -> dict[str, Any]:
        return {"mean": mean, "low": mean - half, "high": mean + half, "n": 9, "seeds": 2}

    mean, half = untrained or (0.0, 0.1)
    choice = {
        "figures": {"validation": span(0.5, 0.1)},
        "minus_untrained": {"validation": span(mean, half)},
        "minus_zscore": {"validation": span(z, half)},
    }
    return {"key": key, "title": key, "validation_dice": validation, "choices": {"headline": choice}}


CONTROLS = [row("untrained", 0.3), row("zscore", 0.35)]


def test_the_winner_is_chosen_on_validation_and_quoted_on_test() -> None:
    # b is better on test, and validation does not know it.
    rows = [row("a", 0.40, (0.01, 0.05), 0.0), row("b", 0.39, (0.30, 0.05), 0.3)]
    said = judge_pretraining(rows, CONTROLS)
    assert (said["winner"], said["won"]) == ("a", False)
    assert "untrained 0.300, |z| 0.350" in said["text"]
    assert "+0.010 [−0.040, +0.060]: no difference" in said["text"]
    assert said["text"].endswith("No pretraining that validation would choose beat both on test.")


def test_a_pretraining_wins_only_when_it_beats_both() -> None:
    assert judge_pretraining([row("a", 0.4, (0.1, 0.05), 0.1)], CONTROLS)["won"]
    assert not judge_pretraining([row("a", 0.4, (0.1, 0.05), -0.1)], CONTROLS)["won"]
    assert not judge_pretraining([row("a", 0.4, (-0.1, 0.05), 0.1)], CONTROLS)["won"]


def test_without_labelled_validation_subjects_nothing_is_chosen() -> None:
    said = judge_pretraining([row("a", None)], CONTROLS)
    assert said["winner"] is None
    assert "cannot be chosen" in said["text"] or "no variant can be chosen" in said["text"]


# ------------------------------------------------------------------------------------------------ the page


def test_the_figure_has_a_point_per_training_points_per_seed_and_lines_for_the_controls(found: dict[str, Any]) -> None:
    figure = training_against_dice(
        found["rows"], found["controls"], training="loss_share", figure="validation", title="Dice"
    )
    points = [trace for trace in figure.data if trace.marker.size == 13]
    row = found["rows"][1]
    interval = row["choices"]["headline"]["figures"]["validation"]
    assert [trace.name for trace in points] == [row["title"] for row in found["rows"]]
    assert (points[1].x[0], points[1].y[0]) == (row["contrastive"]["loss_share"], interval["mean"])
    assert points[1].y[0] + points[1].error_y.array[0] == pytest.approx(interval["high"])
    assert points[0].marker.color != points[1].marker.color
    seeds = [list(trace.y) for trace in figure.data if trace.marker.size == 6]
    assert seeds == [row["choices"]["headline"]["figures"]["validation"]["by_seed"] for row in found["rows"]]
    lines = [shape.y0 for shape in figure.layout.shapes]
    assert lines == [c["choices"]["headline"]["figures"]["validation"]["mean"] for c in found["controls"][:2]]


def section() -> None:
    from pages._comparison import show_comparison

    show_comparison()


def test_the_section_of_the_page_shows_verdict_table_and_what_the_numbers_mean(
    compared: TinyStudy, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DICESCOPE_RUNS", str(compared.runs))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # AppTest replaces it, and workers import it
    page = AppTest.from_function(section, default_timeout=30).run()
    assert not page.exception
    assert prose(found["verdict"]["text"]) in [*(i.value for i in page.info), *(s.value for s in page.success)]
    table = page.dataframe[0].value
    assert list(table["encoder"]) == [row["title"] for row in (*found["rows"], *found["controls"])]
    mean = found["rows"][0]["choices"]["headline"]["figures"]["validation"]["mean"]
    assert table["Dice, validation threshold"][0].startswith(f"{mean:.3f} [")
    assert any("3 lesion-bearing test subjects and over seeds" in caption.value for caption in page.caption)
    page.selectbox(key="comparison-choice").set_value("all").run()
    assert not page.exception
    mean = found["rows"][0]["choices"]["all"]["figures"]["validation"]["mean"]
    assert page.dataframe[0].value["Dice, validation threshold"][0].startswith(f"{mean:.3f} [")


def test_without_a_comparison_the_section_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICESCOPE_RUNS", str(tmp_path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    page = AppTest.from_function(section, default_timeout=30).run()
    assert not page.exception
    assert "cli.py compare-pretraining" in page.caption[0].value


def test_the_report_tables_every_row_and_states_budget_and_command(found: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.md"
    write_report(path, found, "python -m benchmarks.pretraining_study --steps 6")
    text = path.read_text()
    assert "Made by `python -m benchmarks.pretraining_study --steps 6`" in text
    assert "6 steps of 2 heads, crops of [32, 32, 32] voxels" in text
    assert found["verdict"]["text"].replace("|", "\\|") in text
    for line in found["rows"] + found["controls"]:
        assert text.count("| " + line["title"].replace("|", "\\|") + " |") >= 2
    tables = [line for line in text.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    heads = [w for line, w in zip(tables, widths, strict=True) if line.startswith("| ---")]
    assert set(widths) == set(heads)
    assert len(heads) == 6
    gain = found["rows"][0]["choices"]["all"]["minus_untrained"]["validation"]
    assert span_text(gain, signed=True) in text


def test_the_study_trains_on_fewer_heads_and_writes_its_report(
    compared: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, report = tmp_path / "runs", tmp_path / "report.md"
    monkeypatch.setattr(pretraining_study, "build_tables", lambda scans, runs: (compared.table, compared.table))
    monkeypatch.setattr(pretraining_study, "PREPROCESSING", PREPROCESSING)
    argv = [
        "--scans",
        "/a/machine",
        "--name",
        "few",
        "--variants",
        "in-batch",
        "--seeds",
        "0",
        "--steps",
        "2",
        "--batch",
        "2",
        "--width",
        "4",
        "--crop",
        "32",
    ]
    argv += ["--train", "3", "--layers", "stage2", "--runs", str(runs), "--report", str(report), "--workers", "1"]
    monkeypatch.setattr("sys.argv", ["pretraining_study", *argv])
    pretraining_study.main()
    run = open_run(runs, "cmp-few-in-batch-strong-s0")
    assert run.record["split"]["train"] == ["train01", "train02", "train03"]
    assert len(run.record["split"]["test"]) == 4
    text = report.read_text()
    assert "3 heads train encoders and Gaussians" in text
    assert "--scans SCANS --name few" in text


def test_runs_of_a_comparison_never_lead_while_there_are_others() -> None:
    rows = [
        {"run_id": "cmp-x-moco-strong-s0", "validation_mean_dice": 0.9},
        {"run_id": "mine", "validation_mean_dice": 0.1},
    ]
    assert leading(rows)["run_id"] == "mine"
    assert leading(rows[:1])["run_id"] == "cmp-x-moco-strong-s0"

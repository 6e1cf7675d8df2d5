"""The post-processing explorer: exact where it can be checked, honest about labels, and made once."""

import dataclasses
import io
import json

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, label

import cli
from core.detectors.feature_gaussian import FeatureGaussian
from core.diagnosis import postprocessing, postprocessing_table
from core.diagnosis.postprocessing import find_row, recipe_changes, run_post_processing, stored_post_processing
from core.diagnosis.postprocessing_table import shipped_settings
from core.features.score_maps import masked_score_map
from core.metrics.bootstrap import paired_difference
from core.metrics.subject_scores import SubjectScores
from core.progress import Progress
from core.runs.evaluated import read_metrics
from core.runs.listing import open_run
from core.study import map_filters
from core.study.cases import case_of
from core.study.evaluation import evaluate_run
from core.study.map_filters import PostProcessing, apply, count, segmentation
from core.study.stored_scores import open_scores
from data.errors import BadInput, IntegrityError
from data.json_files import read_json
from data.volume import Grid, Volume
from tests.study import recommit, write_record
from verbs.fit import fit_verb

QUIET = Progress(False, io.StringIO())
RUNS = ("tiny", "tiny-intensity")
CUBE = np.ones((3, 3, 3), dtype=int)


@pytest.fixture(scope="module")
def explored(study, tmp_path_factory):
    """A copy of the study in which both runs have been explored, with what was returned."""
    own = study.copy(tmp_path_factory.mktemp("explored") / "study")
    return own, {name: run_post_processing(open_run(own.runs, name), QUIET, workers=1) for name in RUNS}


def random(seed):
    return np.random.Generator(np.random.Philox(seed))


def lumpy_brain(shape=(14, 13, 12)):
    """An irregular brain that touches the end of the grid."""
    brain = np.zeros(shape, bool)
    brain[2:, 1:11, 2:9] = True
    brain &= random(5).random(shape) > 0.05
    return brain


def volume_of(brain, spacing=3.0):
    grid = Grid(brain.shape, np.diag([spacing, spacing, spacing, 1.0]))
    return Volume(np.ones((1, *brain.shape), np.float32), grid, brain, "made", ("T1",))


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("protocol", ["healthy", "validation"])
def test_all_zeros_give_exactly_what_the_evaluation_found(explored, name, protocol) -> None:
    own, results = explored
    result = results[name]
    figures = read_metrics(open_run(own.runs, name))["sets"][result["layer_set"]]["working"]["protocols"][protocol]
    row = find_row(result, PostProcessing())[protocol]
    assert row["threshold"] == figures["threshold"]
    assert row["subjects"] == [s["dice"] for s in figures["subjects"]]
    assert result["test_subjects"] == [s["subject_id"] for s in figures["subjects"]]
    assert (row["dice"], row["low"], row["high"]) == tuple(figures[k] for k in ("mean_dice", "ci_low", "ci_high"))
    assert row["false_ml"] == figures["false_positive_ml_per_healthy_scan"]
    assert result["shipped"][protocol]["dice"] == figures["mean_dice"]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    "settings", [PostProcessing(2.0, 3, 1, 300.0), PostProcessing(4.0, 0, 2, 1000.0), PostProcessing(0.0, 5, 0, 100.0)]
)
def test_a_row_is_what_scoring_eroding_and_labelling_one_by_one_give(explored, name, settings) -> None:
    own, results = explored
    scores = open_scores(open_run(own.runs, name))
    layers = scores.layer_set(results[name]["layer_set"])
    row = find_row(results[name], settings)["validation"]
    dice, healthy = [], []
    for subject_id in scores.subjects("test"):
        case = case_of(scores, subject_id, layers)
        smooth = dataclasses.replace(
            scores.detector, smoothing_mm=settings.smoothing_mm, median_voxels=settings.median_voxels
        )
        if isinstance(scores.detector, FeatureGaussian):
            found = dataclasses.replace(scores, detector=smooth).score_map(subject_id, layers).scores
        else:
            found = smooth.fit([case.volume]).score(case.volume).scores
        inside = case.volume.brain_mask
        if settings.erosion_voxels:
            inside = binary_erosion(inside, iterations=settings.erosion_voxels)
        called = inside & (np.nan_to_num(found, nan=-1) >= row["threshold"])
        called = keep_large(called, settings.min_component_mm3, case.voxel_ml * 1000)
        if case.lesion.any():
            dice.append(2 * (called & case.lesion).sum() / (called.sum() + case.lesion.sum()))
        else:
            healthy.append((called.sum() * case.voxel_ml, label(called, CUBE)[1]))
    assert row["subjects"] == pytest.approx(dice, abs=1e-15)
    assert (row["false_ml"], row["false_components"]) == pytest.approx(tuple(np.mean(healthy, axis=0)), abs=1e-12)


def keep_large(called, smallest_mm3, voxel_mm3):
    labels, n = label(called, CUBE)
    kept = np.zeros_like(called)
    for one in range(1, n + 1):
        if (labels == one).sum() * voxel_mm3 >= smallest_mm3 - 1e-6:
            kept |= labels == one
    return kept


@pytest.mark.parametrize("name", RUNS)
def test_the_live_path_gives_the_stored_figures(explored, name) -> None:
    own, results = explored
    scores = open_scores(open_run(own.runs, name))
    layers = scores.layer_set(results[name]["layer_set"])
    for settings in (PostProcessing(), PostProcessing(2.0, 3, 1, 300.0), PostProcessing(4.0, 5, 2, 27.0)):
        row = find_row(results[name], settings)["healthy"]
        for subject_id, dice in zip(results[name]["test_subjects"], row["subjects"], strict=True):
            case = case_of(scores, subject_id, layers)
            found = count(case, apply(scores, case, layers, settings), row["threshold"], settings.min_component_mm3)
            assert found.dice == dice
            assert found.hits + found.missed == case.lesion.sum()


def test_the_runs_own_setting_gives_the_runs_own_map(explored) -> None:
    own, _ = explored
    scores = open_scores(open_run(own.runs, "tiny"))
    smoothed = dataclasses.replace(
        scores, detector=dataclasses.replace(scores.detector, smoothing_mm=3.0, median_voxels=4)
    )
    assert shipped_settings(smoothed) == PostProcessing(3.0, 4)
    assert postprocessing._axes(smoothed)["smoothing_mm"] == (0.0, 2.0, 3.0, 4.0)
    assert postprocessing._axes(smoothed)["median_voxels"] == (0, 3, 4, 5)
    layers = scores.layer_sets[-1]
    case = case_of(smoothed, "test01", layers)
    np.testing.assert_array_equal(apply(smoothed, case, layers, shipped_settings(smoothed)), case.scores)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_the_median_is_bit_for_bit_the_one_of_scoring(size) -> None:
    brain = lumpy_brain()
    values = np.where(brain, random(6).random(brain.shape), np.nan).astype(np.float32)
    expected = masked_score_map(values, volume_of(brain), "score", median_voxels=size).scores[brain]
    np.testing.assert_array_equal(map_filters._Median(brain).filter(values, size), expected)


@pytest.mark.parametrize("erosion", [1, 2, 3])
def test_depth_is_binary_erosion(erosion) -> None:
    brain = lumpy_brain()
    kept = np.zeros_like(brain)
    kept[brain] = map_filters._depth(brain) > erosion
    np.testing.assert_array_equal(kept, binary_erosion(brain, iterations=erosion))


def test_the_component_filter_agrees_with_labelling_one_by_one() -> None:
    brain = lumpy_brain()
    lesion = random(7).random(brain.shape) < 0.1
    box = map_filters.Box.of("made", False, volume_of(brain), lesion)
    values = np.where(brain, random(8).random(brain.shape), np.nan).astype(np.float32)
    sizes = (0.0, 27.0, 28.0, 100.0, 300.0, 1000.0, 1e9)
    for threshold in (0.7, 0.85, 0.95):
        called = np.nan_to_num(values, nan=-1) >= threshold
        found = box.counts(values[brain], threshold, sizes)
        for smallest, row in zip(sizes, found, strict=True):
            kept = keep_large(called, smallest, 27.0)
            np.testing.assert_array_equal(segmentation(values, threshold, smallest, 27.0), kept)
            assert (row.hits, row.alarms) == ((kept & lesion).sum(), (kept & ~lesion).sum())
            assert row.missed == lesion.sum() - row.hits
            assert row.components == label(kept, CUBE)[1]
    assert found[0].components > found[2].components > 0


def test_erosion_cannot_cheat_what_it_drops_is_missed() -> None:
    brain = np.zeros((12, 12, 12), bool)
    brain[1:11, 1:11, 1:11] = True
    lesion = np.zeros_like(brain)
    lesion[1:4, 4:8, 4:8] = True
    box = map_filters.Box.of("made", False, volume_of(brain), lesion)
    perfect = lesion[brain].astype(np.float32)
    for erosion, reached in ((0, 48), (1, 32), (2, 16)):
        kept = map_filters._depth(brain) > erosion
        voxels = box.voxels(perfect, kept)
        assert (len(voxels.anomalous), voxels.n_lesion) == (reached, 48)
        (row,) = box.counts(np.where(kept, perfect, -np.inf), 0.5, [0.0])
        assert row.dice == pytest.approx(2 * reached / (reached + 48))


def test_loud_single_voxels_make_the_component_filter_the_best_on_validation() -> None:
    brain = np.ones((12, 12, 12), bool)
    lesion = np.zeros_like(brain)
    lesion[3:6, 3:6, 3:6] = True
    values = np.where(lesion, np.float32(5), np.float32(1))
    values[9::2, ::2, ::2] = 6
    box = map_filters.Box.of("made", False, volume_of(brain), lesion)
    flat = values[brain]
    subject = SubjectScores("made", False, flat[~box.lesion], flat[box.lesion], 0.027)
    choice = postprocessing._choice([subject], [(box, flat)], 2.0, (0.0, 100.0))
    noise = int((values == 6).sum())
    plain, filtered = choice["validation"]
    assert plain["dice"] == pytest.approx(2 * 27 / (27 + 27 + noise))
    assert filtered["dice"] == 1.0
    assert choice["healthy_dice"] == [plain["dice"], 1.0]


@pytest.mark.parametrize("name", RUNS)
def test_the_best_is_chosen_on_validation_and_the_gain_is_paired(explored, name) -> None:
    result = explored[1][name]
    assert len(result["rows"]) == 135
    for protocol in ("healthy", "validation"):
        best = result["best_on_validation"][protocol]
        assert best["validation_dice"] == max(r[protocol]["validation_dice"] for r in result["rows"])
        row = find_row(result, PostProcessing(**best["settings"]))[protocol]
        shipped = find_row(result, PostProcessing())[protocol]
        gain = paired_difference(row["subjects"], shipped["subjects"], seed=0)
        assert (best["gain"], best["gain_low"], best["gain_high"]) == (gain.mean, gain.low, gain.high)
        assert best["gain"] == pytest.approx(best["dice"] - shipped["dice"])
        oracle = result["best_on_test"][protocol]
        assert oracle["oracle"] is True
        assert oracle["dice"] == max(r[protocol]["dice"] for r in result["rows"])
        assert result["optimism"][protocol] == pytest.approx(oracle["dice"] - best["dice"])
        assert result["optimism"][protocol] >= 0
    assert 0 <= result["candidate_loss"] < 0.1


def test_shuffled_test_labels_change_no_choice(explored, study, tmp_path, monkeypatch) -> None:
    before = explored[1]["tiny"]
    marked = map_filters._marked

    def shuffled(prepared):
        lesion = marked(prepared)
        if not prepared.volume.subject_id.startswith("test"):
            return lesion
        return random(3).permutation(lesion.reshape(-1)).reshape(lesion.shape)

    monkeypatch.setattr(map_filters, "_marked", shuffled)
    after = run_post_processing(open_run(study.copy(tmp_path / "s").runs, "tiny"), QUIET, workers=1)
    assert before["best_on_test"] != after["best_on_test"]
    for old, new in zip(before["rows"], after["rows"], strict=True):
        for protocol in ("healthy", "validation"):
            assert old[protocol]["threshold"] == new[protocol]["threshold"]
            assert old[protocol]["validation_dice"] == new[protocol]["validation_dice"]
    for protocol in ("healthy", "validation"):
        chosen = [r["best_on_validation"][protocol]["settings"] for r in (before, after)]
        assert chosen[0] == chosen[1]


def test_a_result_is_made_once_and_forgotten_when_the_evaluation_changes(explored, monkeypatch) -> None:
    own, results = explored
    run = open_run(own.runs, "tiny")
    monkeypatch.setattr(postprocessing, "_choose_job", lambda job: pytest.fail("computed again"))
    assert run_post_processing(run, QUIET, workers=1) == results["tiny"]
    name = results["tiny"]["layer_set"]
    assert stored_post_processing(run, name) == json.loads(json.dumps(results["tiny"]))
    assert stored_post_processing(run) == results["tiny"]
    assert stored_post_processing(run, "input" if name != "input" else "stage1") is None
    manifest = run.directory / "evaluation" / "manifest.json"
    text = manifest.read_text()
    recommit(manifest.parent, evaluated="anew")
    assert stored_post_processing(run, name) is None
    manifest.write_text(text)
    with monkeypatch.context() as newer:
        newer.setattr(postprocessing, "VERSION", 10_000)
        assert stored_post_processing(run, name) is None
    result = run.directory / "post-processing" / name / "result.json"
    text = result.read_text()
    result.write_text(text.replace("0", "1", 1))
    with pytest.raises(IntegrityError, match=r"result\.json is damaged"):
        stored_post_processing(run, name)
    result.write_text(text)


@pytest.mark.slow
def test_two_workers_find_what_one_finds(explored, own_study) -> None:
    again = run_post_processing(open_run(own_study.runs, "tiny-intensity"), QUIET, workers=2)
    first = explored[1]["tiny-intensity"]
    assert {k: v for k, v in again.items() if k not in ("seconds", "workers")} == {
        k: v for k, v in first.items() if k not in ("seconds", "workers")
    }


def test_without_labelled_validation_nothing_is_chosen_and_it_says_what_is_missing(own_study) -> None:
    record = own_study.runs / "tiny-intensity" / "run.json"
    changed = read_json(record)
    changed["split"]["validation"] = []
    write_record(record, changed)
    result = run_post_processing(open_run(own_study.runs, "tiny-intensity"), QUIET, workers=1)
    assert result["best_on_validation"] is None
    assert set(result["best_on_test"]) == set(result["shipped"]) == {"healthy"}
    assert result["optimism"] == {}
    assert find_row(result, PostProcessing())["validation"] is None
    assert any(note.startswith("Missing: lesion masks of validation subjects") for note in result["notes"])


@pytest.mark.parametrize("validation", [True, False])
def test_without_a_test_lesion_there_are_choices_but_no_test_figures(own_study, monkeypatch, validation) -> None:
    dropped = {"test01", "test02", "test03", *(() if validation else ("validation01", "validation02"))}
    run = open_run(own_study.runs, "tiny-intensity")
    split = {role: [i for i in ids if i not in dropped] for role, ids in run.record["split"].items()}
    write_record(run.directory / "run.json", run.record | {"split": split})
    run = open_run(own_study.runs, "tiny-intensity")
    evaluate_run(run, QUIET, workers=1)
    result = run_post_processing(run, QUIET, workers=1)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["test_subjects"] == []
    assert result["healthy_subjects"] == ["test04"]
    row = result["rows"][0]
    assert row["healthy"]["dice"] is row["healthy"]["gain"] is row["healthy"]["gain_low"] is None
    assert row["healthy"]["n"] == 0
    assert row["healthy"]["false_ml"] is not None
    assert result["best_on_test"] == {}
    assert result["shipped"]["healthy"]["dice"] is None
    assert any("no test subject with a lesion" in note for note in result["notes"])
    assert any("layers of 6-neighbours" in note for note in result["notes"])
    if validation:
        assert result["best_on_validation"]["validation"]["validation_dice"] is not None
        assert result["best_on_validation"]["validation"]["dice"] is None
    else:
        assert result["best_on_validation"] is row["validation"] is None
    assert cli.main(["post-processing", "tiny-intensity", "--runs", str(own_study.runs), "--workers", "1"]) == 0


@pytest.mark.parametrize("workers", [0, -1])
def test_fewer_than_one_worker_is_refused_before_anything_is_computed(own_study, workers) -> None:
    with pytest.raises(BadInput, match=f"workers.*{workers}.*1 or more"):
        run_post_processing(open_run(own_study.runs, "tiny-intensity"), QUIET, workers=workers)


def test_among_equals_the_setting_that_changes_least_is_best() -> None:
    def row(dice, **settings):
        return {**dataclasses.asdict(PostProcessing(**settings)), "healthy": {"validation_dice": dice}}

    rows = [row(0.5, smoothing_mm=2.0, median_voxels=3), row(0.5, median_voxels=5), row(0.4), row(0.5, median_voxels=3)]
    best = postprocessing_table._best(rows, "healthy", "validation_dice", dataclasses.asdict(PostProcessing()))
    assert best["settings"] == dataclasses.asdict(PostProcessing(median_voxels=5))


def test_a_best_at_the_end_of_what_was_tried_is_called_out(explored) -> None:
    result = explored[1]["tiny"]
    at_end = {
        name
        for name, values in result["axes"].items()
        for best in result["best_on_validation"].values()
        if best["settings"][name] == values[-1]
    }
    (note,) = [n for n in result["notes"] if "largest value tried of" in n] if at_end else [""]
    assert all((name in note) == (name in at_end) for name in result["axes"])
    inner = {"axes": {"smoothing_mm": [0, 2]}, "best_on_validation": {"healthy": {"settings": {"smoothing_mm": 0}}}}
    assert postprocessing_table._at_the_edge(inner) == []
    inner["best_on_validation"]["healthy"]["settings"]["smoothing_mm"] = 2
    assert postprocessing_table._at_the_edge(inner) == ["smoothing_mm"]


def test_the_recipe_says_what_has_a_field_and_what_has_none(explored) -> None:
    own, _ = explored
    run = open_run(own.runs, "tiny")
    found = recipe_changes(run, PostProcessing(2.0, 3, 1, 100.0))
    assert found["fields"] == {"smoothing_mm": 2.0, "median_voxels": 3}
    assert found["without_field"] == {"erosion_voxels": 1, "min_component_mm3": 100.0}
    assert {f.name for f in dataclasses.fields(fit_verb())} >= {
        "setting__" + w[2:].replace("-", "_") for w in found["argv"][::2]
    }
    assert found["argv"] == ["--smoothing-mm", "2", "--median-voxels", "3"]
    assert "No recipe field yet for erosion_voxels = 1, min_component_mm3 = 100" in found["text"]
    assert recipe_changes(run, PostProcessing())["text"] == "Nothing to change in the recipe."


def test_a_detector_that_filters_by_itself_has_no_field_for_more(own_study) -> None:
    record = own_study.runs / "tiny-intensity" / "run.json"
    changed = read_json(record)
    changed["recipe"]["smoothing_mm"] = 1.0
    write_record(record, changed)
    found = recipe_changes(open_run(own_study.runs, "tiny-intensity"), PostProcessing(2.0))
    assert (found["fields"], found["without_field"]) == ({}, {"smoothing_mm": 2.0})


def test_a_combination_that_was_not_tried_is_refused_with_those_that_were(explored) -> None:
    with pytest.raises(BadInput, match=r"smoothing_mm 0, 2, 4; median_voxels 0, 3, 5"):
        find_row(explored[1]["tiny"], PostProcessing(smoothing_mm=1.0))

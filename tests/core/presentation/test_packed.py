"""One byte a voxel, and yet the Dice counted on bytes is the Dice of the scores."""

import asyncio
import gzip
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from core.diagnosis.errors.category_table import CODES, FALSE_POSITIVES, HIT
from core.presentation.browser_volumes import packed_path, quantise
from core.runs.evaluated import read_metrics
from core.runs.listing import open_run
from core.study.score_levels import N_LEVELS, score_levels
from core.study.stored_scores import open_scores, set_id
from data.errors import BadInput
from data.json_files import read_json
from tests.study import ILL, TinyStudy


def unpacked(study: TinyStudy, subject_id: str, name: str, run_id: str = "tiny") -> np.ndarray:
    shape = open_scores(open_run(study.runs, run_id)).prepared(subject_id).volume.grid.shape
    content = gzip.decompress(packed_path(study.runs, run_id, subject_id, name).read_bytes())
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def levels_of(study: TinyStudy, name: str, run_id: str = "tiny") -> np.ndarray:
    return np.array(read_json(study.runs / run_id / "evaluation" / "levels.json")[name])


def random(seed: int, *shape: int) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, 1], dtype=np.uint64)))
    return generator.gamma(2.0, 3.0, size=shape).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_byte_at_least_t_says_score_at_least_the_level_before_t(seed: int) -> None:
    scores = random(seed, 7, 8, 9)
    levels = score_levels(random(seed + 100, 5000), [float(scores[1, 2, 3]), float(scores[6, 7, 8])])
    scores[0, 0] = levels[::28][:9].astype(np.float32)
    packed = quantise(scores, levels)
    for step in range(1, N_LEVELS + 1):
        assert np.array_equal(packed >= step, scores >= levels[step - 1])


def test_outside_the_brain_the_byte_is_zero_whatever_the_levels() -> None:
    scores = np.full((3, 3, 3), np.nan, dtype=np.float32)
    scores[1, 1, 1] = -1e30
    assert not quantise(scores, score_levels(random(0, 100), [1.0])).any()


@pytest.mark.parametrize(
    "samples",
    [random(1, 20000), random(2, 3), np.full(50, 2.5), np.zeros(10), -random(3, 40), np.round(random(4, 1000))],
    ids=["many", "three", "constant", "zeros", "negative", "tied"],
)
def test_levels_are_255_ascending_numbers_and_hold_every_threshold(samples: np.ndarray) -> None:
    thresholds = [float(np.float32(t)) for t in (0.1, 7.3, 1e4)]
    levels = score_levels(samples.astype(np.float32), [*thresholds, np.inf, 7.3])
    assert len(levels) == N_LEVELS
    assert np.isfinite(levels).all()
    assert (np.diff(levels) > 0).all()
    assert set(thresholds) <= set(levels.tolist())


def test_half_of_the_levels_lie_in_the_top_of_the_scores() -> None:
    samples = random(5, 100_000)
    levels = score_levels(samples, [])
    assert (levels >= np.quantile(samples, 0.95)).sum() >= N_LEVELS // 2 - 1


@pytest.mark.parametrize("run_id", ["tiny", "tiny-intensity"])
def test_every_threshold_of_every_protocol_is_a_level_and_dice_on_bytes_is_the_exact_dice(
    study: TinyStudy, run_id: str
) -> None:
    run = open_run(study.runs, run_id)
    metrics, scores = read_metrics(run), open_scores(run)
    checked = 0
    for name in (metrics["headline"], set_id(scores.layer_sets[0])):
        levels = levels_of(study, name, run_id)
        for protocol in ("healthy", "validation", "oracle_set"):
            found = metrics["sets"][name]["working"]["protocols"][protocol]
            step = int(np.flatnonzero(levels == found["threshold"])[0]) + 1
            for row in found["subjects"]:
                positive = unpacked(study, row["subject_id"], f"score-{name}", run_id) >= step
                lesion = unpacked(study, row["subject_id"], "lesion", run_id) > 0
                dice = 2 * int((positive & lesion).sum()) / int(positive.sum() + lesion.sum())
                assert dice == row["dice"]
                checked += 1
    assert checked == 2 * 3 * 3


def test_the_brain_is_the_brain_and_the_image_is_zero_outside_it(study: TinyStudy) -> None:
    prepared = open_scores(open_run(study.runs, "tiny")).prepared("test01")
    brain = prepared.volume.brain_mask
    assert np.array_equal(unpacked(study, "test01", "brain") > 0, brain)
    image = unpacked(study, "test01", "image-0")
    assert np.array_equal(image > 0, brain)
    order = np.argsort(prepared.volume.voxels[0][brain], kind="stable")
    assert (np.diff(image[brain][order].astype(int)) >= 0).all()
    assert np.array_equal(image, unpacked(study, "test01", "image"))


@pytest.mark.parametrize("run_id", ["tiny", "tiny-intensity"])
@pytest.mark.parametrize("protocol", ["healthy", "validation"])
def test_error_categories_split_the_errors_of_the_evaluation_up(study: TinyStudy, run_id: str, protocol: str) -> None:
    run = open_run(study.runs, run_id)
    name = "input+stage2" if run_id == "tiny" else set_id(open_scores(run).layers)
    found = read_metrics(run)["sets"][name]["working"]["protocols"][protocol]
    step = int(np.flatnonzero(levels_of(study, name, run_id) == found["threshold"])[0]) + 1
    fp = [CODES[category] for category in FALSE_POSITIVES]
    for subject_id in ("test01", "test02", "test04"):
        labels = unpacked(study, subject_id, f"categories-{name}-{protocol}", run_id)
        segmented = unpacked(study, subject_id, f"score-{name}", run_id) >= step
        ill = subject_id in ILL
        lesion = unpacked(study, subject_id, "lesion", run_id) > 0 if ill else np.zeros_like(segmented)
        assert np.array_equal(labels == HIT, segmented & lesion)
        assert np.array_equal(np.isin(labels, fp), segmented & ~lesion)
        assert np.array_equal((labels > 0) & (labels != HIT) & ~np.isin(labels, fp), lesion & ~segmented)


def test_a_packed_volume_is_made_once_and_anew_after_another_evaluation(own_study: TinyStudy) -> None:
    import cli

    path = packed_path(own_study.runs, "tiny", "test01", "score-input")
    written = path.stat().st_mtime_ns
    assert packed_path(own_study.runs, "tiny", "test01", "score-input").stat().st_mtime_ns == written
    assert cli.main([*own_study.commands()["evaluate"], "--quantile", "0.9"]) == 0
    assert not path.exists()
    found = read_metrics(open_run(own_study.runs, "tiny"))["sets"]["input"]["working"]["protocols"]["healthy"]
    assert found["threshold"] in levels_of(own_study, "input").tolist()


def test_many_may_ask_for_the_same_volume_at_once(own_study: TinyStudy) -> None:
    for subject_id in ILL:
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(packed_path, own_study.runs, "tiny", subject_id, "image-0") for _ in range(8)]
            contents = {gzip.decompress(one.result().read_bytes()) for one in asked}
        assert len(contents) == 1
    left = {p.suffix for p in (own_study.runs / "tiny" / ".browser").iterdir()}
    assert left == {".gz"}


@pytest.mark.parametrize(
    "name",
    ["", "scores", "categories-input-oracle_set", "../run.json", "score-../../run", "image-x", "lesion.npy", "brain\n"],
)
def test_a_name_that_is_no_volume_is_refused(study: TinyStudy, name: str) -> None:
    with pytest.raises(BadInput):
        packed_path(study.runs, "tiny", "test01", name)


def test_what_a_run_does_not_hold_is_refused_in_words(study: TinyStudy) -> None:
    with pytest.raises(BadInput, match="no lesion mask"):
        packed_path(study.runs, "tiny", "test04", "lesion")
    with pytest.raises(BadInput, match="contrast 7"):
        packed_path(study.runs, "tiny", "test01", "image-7")
    with pytest.raises(BadInput, match="'nobody'"):
        packed_path(study.runs, "tiny", "nobody", "brain")
    with pytest.raises(BadInput, match=r"'stage9'.*input, stage1, stage2"):
        packed_path(study.runs, "tiny", "test01", "score-stage9")
    with pytest.raises(BadInput, match="kind 'encoder'"):
        packed_path(study.runs, "tiny-encoder", "test01", "brain")


def test_before_an_evaluation_the_score_says_what_to_run(own_study: TinyStudy) -> None:
    import shutil

    shutil.rmtree(own_study.runs / "tiny" / "evaluation")
    shutil.rmtree(own_study.runs / "tiny" / ".browser", ignore_errors=True)
    with pytest.raises(BadInput, match=r"cli\.py evaluate tiny"):
        packed_path(own_study.runs, "tiny", "test01", "score-input")


@pytest.mark.parametrize(
    "name",
    [
        "score-foo", "score-", "score", "score-stage9", "score-input+stage9", "score-input+input", "score-+",
        "score-input+", "score-+input", "score-Input", "score-input stage1", "categories-input", "categories-",
        "categories-foo-healthy", "categories-input+input-healthy", "categories-input-oracle", "categories--healthy",
        "image-99", "image-999999999999", "image--1", "image-", "image-0.5", "Brain", "brains", "lesions", "..", "%2e",
        "score-input\0", "score-input\n",
    ],
)  # fmt: skip
def test_the_route_answers_404_to_every_name_that_the_run_does_not_hold(
    name: str, study: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from starlette.requests import Request

    import asgi

    monkeypatch.setenv("DICESCOPE_RUNS", str(study.runs))
    for subject in ("test01", "nobody", "..", ""):
        ids = {"run": "tiny", "subject": subject, "name": name, "content": "0" * 32}
        scope = {"type": "http", "method": "GET", "headers": [], "query_string": b"", "path_params": ids}
        answer = asyncio.run(asgi.volume(Request(scope)))
        assert answer.status_code == 404, name
        assert str(study.root) not in bytes(answer.body).decode()
    with pytest.raises(BadInput):
        packed_path(study.runs, "tiny", "test01", name)

"""The ladder climbs and adds up, imbalance is its formula, and the lesion table says why a lesion was missed."""

import copy
import json

import numpy as np
import pytest

from core.diagnosis.ceiling import subject_ceilings
from core.diagnosis.ladder import RUNGS, imbalance, ladder
from core.diagnosis.layer_cells import layers_of_layout, voxel_cells
from core.diagnosis.lesion_table import lesion_table, region, why
from core.features.layout import feature_layout, positions_near
from core.features.score_maps import to_score_map
from core.metrics.dice import evaluate
from core.metrics.exact_curve import dice_from_rates, exact_curve
from core.metrics.lesions import LesionRow
from core.metrics.protocols import thresholds
from core.metrics.subject_scores import SubjectScores
from core.randomness import stream
from core.study.cases import Case
from data.errors import BadInput
from data.volume import Grid, Volume
from tests.core.diagnosis.test_ceiling import shares_of

SHAPE = (40, 40, 40)
WORKING = Grid(SHAPE, np.array([[2.0, 0, 0, -40], [0, 2.0, 0, -60], [0, 0, 2.0, -10], [0, 0, 0, 1.0]]))
IDS = [rung.id for rung in RUNGS]


def subject(name: str, seed: int, shift: float, n: int = 400) -> SubjectScores:
    rng = stream(seed, "ladder")
    normal = np.exp(rng.normal(size=4000)).astype(np.float32)
    anomalous = np.exp(rng.normal(size=n) + shift).astype(np.float32)
    return SubjectScores(name, n == 0, normal, anomalous[:n], 0.008, 20 if n else 0)


def figures(seed: int, shift: float) -> dict:
    test = [subject(f"sub-{i}", 10 * seed + i, shift + 0.4 * i) for i in range(6)]
    others = [subject("v", 10 * seed + 8, shift + 1)], [subject("c", 10 * seed + 9, 0, 0)]
    return evaluate(test, thresholds(others[0], others[1], test), n_bootstrap=10_000)


@pytest.fixture(scope="module")
def metrics() -> dict:
    return {
        "sets": {
            "a+b": {"working": figures(1, 1.5), "native": figures(2, 1.3)},
            "a": {"working": figures(1, 1.5), "native": None},
        }
    }


@pytest.fixture(scope="module")
def limits() -> tuple[dict, dict]:
    ids = [f"sub-{i}" for i in range(6)]
    return {i: 0.8 + 0.01 * k for k, i in enumerate(ids)}, dict.fromkeys(ids, 0.97)


@pytest.mark.parametrize("protocol", ["healthy", "validation"])
def test_the_ladder_only_descends_for_every_subject_and_on_average_and_its_costs_add_up(
    metrics, limits, protocol: str
) -> None:
    found = ladder(metrics, "a+b", protocol, *limits)
    json.dumps(found)
    assert [r["id"] for r in found["rungs"]] == IDS
    means = [r["mean"] for r in found["rungs"]]
    assert means == sorted(means, reverse=True)
    assert means[0] == 1
    for one in found["subjects"]:
        assert list(one["ladder"]) == IDS
        assert list(one["ladder"].values()) == sorted(one["ladder"].values(), reverse=True)
    assert sum(r["cost"] for r in found["rungs"]) == pytest.approx(1 - means[-1], abs=1e-12)
    for above, below in zip(found["rungs"], found["rungs"][1:], strict=False):
        assert below["cost"] == pytest.approx(above["mean"] - below["mean"], abs=1e-12)


def test_the_last_rung_is_the_headline_with_its_interval(metrics, limits) -> None:
    last = ladder(metrics, "a+b", "healthy", *limits)["rungs"][-1]
    headline = metrics["sets"]["a+b"]["native"]["protocols"]["healthy"]
    assert (last["mean"], last["low"], last["high"]) == (
        headline["mean_dice"], headline["ci_low"], headline["ci_high"]
    )  # fmt: skip
    assert last["measured"] == last["mean"]
    assert last["lifted"] == 0


def test_every_rung_keeps_what_was_measured_and_says_how_many_subjects_were_lifted(metrics, limits) -> None:
    ceilings, reachable = limits
    low = {**ceilings, "sub-5": 0.0}
    found = ladder(metrics, "a+b", "healthy", low, reachable)
    rungs = {r["id"]: r for r in found["rungs"]}
    working = metrics["sets"]["a+b"]["working"]["protocols"]
    own = {row["subject_id"]: row["dice"] for row in working["oracle_subject"]["subjects"]}
    assert rungs["subject_threshold"]["measured"] == pytest.approx(np.mean(list(own.values())))
    five = next(s for s in found["subjects"] if s["subject_id"] == "sub-5")
    assert five["measured"]["feature_grid"] == 0
    assert five["ladder"]["feature_grid"] == five["ladder"]["subject_threshold"] >= own["sub-5"] > 0
    assert rungs["feature_grid"]["measured"] == pytest.approx(np.mean(list(low.values())))
    assert rungs["feature_grid"]["lifted"] >= 1
    plain = ladder(metrics, "a+b", "healthy", dict.fromkeys(ceilings, 1.0), dict.fromkeys(ceilings, 1.0))
    assert {r["id"]: r["lifted"] for r in plain["rungs"]}["feature_grid"] == 0


def test_the_one_best_threshold_has_the_dice_that_the_evaluation_calls_oracle(metrics, limits) -> None:
    own = copy.deepcopy(metrics)
    working, native = (own["sets"]["a+b"][space]["protocols"] for space in ("working", "native"))
    with_dice(working, "oracle_subject", [0.7] * 6)
    with_dice(working, "oracle_set", [0.6, 0.6, 0.6, 0.6, 0.6, 0.2])  # worse than the deployed one for one subject
    for protocols in (working, native):
        with_dice(protocols, "healthy", [0.4] * 6)
    found = ladder(own, "a+b", "healthy", *limits)
    rungs = {r["id"]: r for r in found["rungs"]}
    assert rungs["set_threshold"]["mean"] == pytest.approx(np.mean([0.6, 0.6, 0.6, 0.6, 0.6, 0.2]))
    assert rungs["set_threshold"]["lifted"] == 1
    assert rungs["deployed_threshold"]["cost"] == pytest.approx(rungs["set_threshold"]["mean"] - 0.4)
    assert found["subjects"][5]["ladder"]["set_threshold"] == 0.4
    assert found["subjects"][5]["measured"]["set_threshold"] == 0.2


def with_dice(protocols: dict, name: str, dice: list[float]) -> None:
    for row, value in zip(protocols[name]["subjects"], dice, strict=True):
        row["dice"] = value


def test_a_rung_is_hollow_when_its_cost_cannot_be_told_from_zero(metrics, limits) -> None:
    own = copy.deepcopy(metrics)
    working, native = (own["sets"]["a+b"][space]["protocols"] for space in ("working", "native"))
    with_dice(working, "oracle_subject", [0.7, 0.72, 0.71, 0.7, 0.73, 0.7])
    with_dice(working, "oracle_set", [0.7, 0.72, 0.71, 0.7, 0.73, 0.7])
    with_dice(working, "healthy", [0.5, 0.52, 0.49, 0.5, 0.51, 0.5])
    with_dice(native, "healthy", [0.4, 0.62, 0.39, 0.6, 0.41, 0.6])
    rungs = {r["id"]: r for r in ladder(own, "a+b", "healthy", *limits)["rungs"]}
    assert rungs["set_threshold"]["hollow"]
    assert rungs["set_threshold"]["cost"] == 0
    assert not rungs["deployed_threshold"]["hollow"]
    assert rungs["deployed_threshold"]["cost_low"] > 0.1
    assert rungs["native_space"]["cost"] == pytest.approx(0, abs=1e-12)
    assert rungs["native_space"]["measured_cost"] == pytest.approx(0, abs=1e-12)
    assert rungs["native_space"]["hollow"], "half of the subjects gain in native space: the drop is not one"


def test_rungs_that_see_test_labels_are_marked_and_the_deployed_ones_are_not(metrics, limits) -> None:
    rungs = ladder(metrics, "a+b", "validation", *limits)["rungs"]
    assert [r["id"] for r in rungs if not r["needs_labels"]] == ["deployed_threshold", "native_space"]
    assert all(r["title"] and r["definition"].endswith(".") for r in rungs)


def test_a_lesion_that_vanished_on_the_working_grid_counts_as_unreachable_and_is_named(metrics, limits) -> None:
    own = copy.deepcopy(metrics)
    for record in own["sets"]["a+b"]["working"]["protocols"].values():
        record["subjects"] = [row for row in record["subjects"] if row["subject_id"] != "sub-0"]
    ceilings, reachable = ({i: v for i, v in given.items() if i != "sub-0"} for given in limits)
    found = ladder(own, "a+b", "healthy", ceilings, reachable)
    assert found["n"] == 6
    assert "sub-0" in found["notes"][0]
    assert found["subjects"][0]["measured"]["reachable"] == 0


def test_what_is_missing_is_named_with_its_remedy(metrics, limits) -> None:
    ceilings, reachable = limits
    with pytest.raises(BadInput, match=r"no figures in native space.*evaluate_layer_set.*a\+b"):
        ladder(metrics, "a", "healthy", ceilings, reachable)
    with pytest.raises(BadInput, match=r"'b' was not evaluated. Evaluated: a\+b, a"):
        ladder(metrics, "b", "healthy", ceilings, reachable)
    with pytest.raises(BadInput, match="labelled validation subjects"):
        ladder(metrics, "a+b", "guess", ceilings, reachable)
    with pytest.raises(BadInput, match=r"No ceiling given for 1 test subject.*sub-3"):
        ladder(metrics, "a+b", "healthy", {i: c for i, c in ceilings.items() if i != "sub-3"}, reachable)


def test_imbalance_repeats_every_dice_and_its_cost_is_what_rarer_normal_voxels_would_give(metrics) -> None:
    working = metrics["sets"]["a+b"]["working"]
    found = imbalance(working, "healthy", reference_prevalence=0.2)
    json.dumps(found)
    dice = {row["subject_id"]: row["dice"] for row in working["protocols"]["healthy"]["subjects"]}
    counts = {row["subject_id"]: row for row in working["protocols"]["healthy"]["subjects"]}
    for row in found["subjects"]:
        assert row["dice"] == pytest.approx(dice[row["subject_id"]], abs=1e-12)
        assert row["prevalence"] == pytest.approx(420 / 4420)
        hits, alarms = (counts[row["subject_id"]][k] for k in ("true_positive_voxels", "false_positive_voxels"))
        fewer = alarms * (420 * 4) / 4000
        assert row["dice_at_reference"] == pytest.approx(2 * hits / (hits + fewer + 420), abs=1e-12)
        assert row["cost"] == pytest.approx(row["dice_at_reference"] - row["dice"])
        half = row["fpr_for_dice_half"]
        if row["tpr"] < 1 / 3:
            assert half is None
        else:
            assert dice_from_rates(row["prevalence"], row["tpr"], half) == pytest.approx(0.5)
    assert found["cost"]["mean"] == pytest.approx(np.mean([r["cost"] for r in found["subjects"]]))
    assert found["cost"]["low"] <= found["cost"]["mean"] <= found["cost"]["high"]
    assert found["n_half_possible"] == sum(r["tpr"] >= 1 / 3 for r in found["subjects"])
    assert imbalance(working, "healthy", reference_prevalence=420 / 4420)["cost"]["mean"] == pytest.approx(0)
    with pytest.raises(BadInput, match="between 0 and 1"):
        imbalance(working, "healthy", reference_prevalence=1.0)


# Lesions


def ball(centre: tuple[int, int, int], radius: float) -> np.ndarray:
    offsets = np.indices(SHAPE) - np.array(centre)[:, None, None, None]
    return (offsets**2).sum(axis=0) <= radius**2


BRAIN = ball((20, 20, 20), 16)
BIG, FAINT, DIM, OUT = ball((12, 20, 20), 4), ball((28, 20, 20), 4), ball((20, 28, 20), 4), ball((20, 20, 39), 2)
TINY = np.zeros(SHAPE, bool)
TINY[20:22, 12:14, 20] = True
"""32 mm³: a lesion, and half a cell of 4 mm."""
CONTRAST = {"big": 6.0, "faint": 0.5, "dim": 3.0, "tiny": -5.0}
LAYOUT = feature_layout(
    WORKING, (2, 2, 2), {"fine": (2, 2, 2), "coarse": (4, 4, 4)}, {"fine": 1, "coarse": 1},
    positions_near(BRAIN, (2, 2, 2)),
)  # fmt: skip


def make_case() -> Case:
    lesion = BIG | FAINT | DIM | OUT | TINY
    image = np.full(SHAPE, 100.0, np.float32)
    scores = stream(0, "table").random(SHAPE).astype(np.float32)
    for name, where, score in (("big", BIG, 9.0), ("faint", FAINT, 4.0), ("dim", DIM, 3.0), ("tiny", TINY, 0.0)):
        image[where] += 2.0 * CONTRAST[name]
        scores[where] += score
    volume = Volume(image[None], WORKING, BRAIN, "sub-1", ("T1",))
    return Case("sub-1", False, volume, lesion, np.where(BRAIN, scores, np.nan).astype(np.float32))


@pytest.fixture(scope="module")
def rows() -> dict[str, dict]:
    case, layers = make_case(), layers_of_layout(LAYOUT)
    mean, deviation = np.full(SHAPE, 100, np.float32), np.full(SHAPE, 2, np.float32)
    better = np.where(DIM | TINY, np.float32(50), case.scores)
    maps = {"coarse": case.scores, "fine": np.where(BRAIN, better, np.float32(np.nan))}
    found = lesion_table(case, subject_ceilings(case, layers), layers, 6.0, mean, deviation, maps)
    json.dumps(found)
    assert [row["lesion"] for row in found] == [1, 2, 3, 4, 5]
    names = {"big": BIG, "faint": FAINT, "dim": DIM, "out": OUT, "tiny": TINY}
    return {name: row for row in found for name, where in names.items() if where[tuple(row["voxel"])]}


def test_a_lesion_row_holds_size_place_and_contrast(rows) -> None:
    assert rows["big"]["volume_ml"] == pytest.approx(BIG.sum() * 0.008)
    assert rows["big"]["voxel"] == [12, 20, 20]
    assert rows["big"]["mm"] == [-16, -20, 30]
    assert rows["big"]["region"].startswith("left ")
    assert rows["faint"]["region"].startswith("right ")
    for name, contrast in CONTRAST.items():
        assert rows[name]["contrast_sd"] == pytest.approx(contrast)
    assert rows["out"]["contrast_sd"] is None


def test_a_missed_lesion_says_why(rows) -> None:
    assert {name: row["found"] for name, row in rows.items()} == {
        "big": True, "faint": False, "dim": False, "out": False, "tiny": False
    }  # fmt: skip
    assert rows["big"]["why"] == "found"
    assert rows["big"]["overlap"] == 1
    assert rows["faint"]["why"] == "contrast below 2 SD: +0.5 SD against healthy scans"
    assert rows["dim"]["why"].startswith("threshold too high: its best voxel reaches 6")
    assert rows["out"]["why"] == "outside the brain mask: 0% of it was scored"
    assert rows["tiny"]["why"] == "smaller than a feature cell: 0.032 mL, a cell holds 0.064 mL"


def test_the_best_layer_separates_the_lesion_best_and_the_ceiling_names_its_layer(rows) -> None:
    case = make_case()
    normal = case.scores[BRAIN & ~case.lesion]
    own = exact_curve(case.scores[FAINT], normal).auroc
    assert rows["faint"]["best_layer"] == "coarse"
    assert rows["faint"]["best_layer_auroc"] == pytest.approx(own)
    assert rows["tiny"]["best_layer"] == "fine"
    assert rows["out"]["best_layer"] is None
    found = {row.label: row for row in subject_ceilings(case, layers_of_layout(LAYOUT)).lesions}
    for row in rows.values():
        each = {name: one.best for name, one in found[row["lesion"]].layers.items()}
        assert row["ceiling"] == max(each.values())
        assert each[row["ceiling_layer"]] == row["ceiling"]
    assert rows["big"]["ceiling_layer"] == "fine"
    assert rows["out"]["ceiling"] == 0


def test_partly_segmented_and_shared_lesions_have_reasons_of_their_own() -> None:
    row = LesionRow(1, 2.0, (0, 0, 0), (0, 0, 0), 7.0, 3.0, False, 0.04, 0.0)
    assert why(row, 6.0, 1.0, 4.0, 0.0) == "threshold too high for most of it: 4% of it is segmented"
    shared = LesionRow(1, 2.0, (0, 0, 0), (0, 0, 0), 7.0, 3.0, False, 0.5, 0.0)
    assert "counts for another lesion" in why(shared, 6.0, 1.0, 4.0, 0.0)


def test_without_features_no_lesion_is_smaller_than_a_cell() -> None:
    case, layers = make_case(), [voxel_cells("zscore", WORKING)]
    flat = np.ones(SHAPE, np.float32)
    found = lesion_table(case, subject_ceilings(case, layers), layers, 6.0, flat, flat, {"zscore": case.scores})
    tiny = next(row for row in found if TINY[tuple(row["voxel"])])
    assert tiny["ceiling"] == 1
    assert tiny["why"].startswith("threshold too high")
    with pytest.raises(BadInput, match="mean"):
        lesion_table(case, subject_ceilings(case, layers), layers, 6.0, flat[1:], flat, {})


@pytest.mark.parametrize(
    ("mm", "expected"),
    [
        ((25, -20, 35), "right white matter"), ((-28, 30, 15), "left white matter"), ((12, -18, 8), "right deep"),
        ((-25, 62, 5), "left cortex edge"), ((-25, -65, -35), "left infratentorial"), ((-26, 5, 2), "left deep"),
        ((35, -50, -16), "right cortex edge"), ((10, -98, 0), "right cortex edge"), ((500, 0, 0), "right cortex edge"),
        ((8, -5, 22), "right deep"), ((2, -28, -32), "midline infratentorial"), ((0, -10, 26), "midline white matter"),
    ],
)  # fmt: skip
def test_places_of_the_template_have_plain_names(mm: tuple[float, float, float], expected: str) -> None:
    assert region(mm) == expected


def test_scores_drawn_by_the_pipeline_from_the_truth_lose_nothing_below_the_feature_grid() -> None:
    """A detector that knows each cell's share of lesion: its own best threshold reaches the band-limited ceiling."""
    case = make_case()
    coarse = layers_of_layout(LAYOUT)[1]
    shares = shares_of(LAYOUT, coarse, case.lesion, BRAIN)
    drawn = to_score_map(shares[LAYOUT.lookup["coarse"]].astype(np.float32), LAYOUT, case.volume, "").scores
    scored = Case(case.subject_id, False, case.volume, case.lesion, np.round(drawn, 5))
    reached = exact_curve(
        scored.voxels.anomalous, scored.voxels.normal, unreachable=scored.voxels.lesion_unreachable_voxels
    ).best_dice
    ceilings = subject_ceilings(case, [coarse]).layers["coarse"]
    assert reached == pytest.approx(ceilings.band_limited, abs=1e-9)
    assert reached <= ceilings.best


def perfect_run(layer_number: int, lesions: list[np.ndarray]) -> tuple[dict, dict, dict]:
    """Metrics and limits of a detector whose only fault is its grid: it knows every cell's share of lesion."""
    layer = layers_of_layout(LAYOUT)[layer_number]
    healthy = Volume(np.zeros((1, *SHAPE), np.float32), WORKING, BRAIN, "c", ("T1",))
    judged, ceilings, reachable = [], {}, {}
    for number, lesion in enumerate(lesions):
        shares = shares_of(LAYOUT, layer, lesion, BRAIN)[LAYOUT.lookup[layer.layer]].astype(np.float32)
        drawn = to_score_map(shares, LAYOUT, healthy, "").scores
        case = Case(f"sub-{number}", False, healthy, lesion, drawn)
        found = subject_ceilings(case, [layer])
        ceilings[case.subject_id], reachable[case.subject_id] = found.of([layer.layer]), found.reachable
        judged.append(case.voxels)
    calibration = SubjectScores("c", True, np.zeros(100, np.float32), np.empty(0, np.float32), 0.008)
    figures = evaluate(judged[2:], thresholds(judged[:2], [calibration], judged[2:]), n_bootstrap=200)
    return {"sets": {"x": {"working": figures, "native": figures}}}, ceilings, reachable


def test_a_coarse_grid_planted_alone_is_the_largest_cost_and_what_a_finer_grid_gives_back() -> None:
    lesions = [ball((10 + 2 * n, 18 + n, 17 + 2 * n), 3 + 0.3 * n) for n in range(6)]
    coarse, fine = (
        ladder(metrics, "x", "validation", *rest) for metrics, *rest in (perfect_run(k, lesions) for k in (1, 0))
    )
    cost, finer = ({r["id"]: r["cost"] for r in found["rungs"]} for found in (coarse, fine))
    assert max(cost, key=cost.__getitem__) == "feature_grid"
    gained = fine["rungs"][-1]["mean"] - coarse["rungs"][-1]["mean"]
    assert cost["feature_grid"] - finer["feature_grid"] == pytest.approx(gained, rel=0.2)
    assert gained > 0.1

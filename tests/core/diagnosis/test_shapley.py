"""Shapley costs against all orders written out, and the properties that define them."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.diagnosis.errors.shapley import shapley_costs
from data.errors import BadInput

counts = st.integers(0, 5000)
K_FP, K_FN = 8, 6


@st.composite
def full_subjects(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of some subjects in all 14 categories, each subject with a lesion voxel."""
    n = draw(st.integers(1, 4))
    rows = [draw(st.lists(counts, min_size=15, max_size=15)) for _ in range(n)]
    table = np.array(rows)
    table[:, 0] += table[:, 1 + K_FP :].sum(axis=1) == 0
    return table[:, 0], table[:, 1 : 1 + K_FP], table[:, 1 + K_FP :]


def value(hits: int, fp: tuple[int, ...], fn: tuple[int, ...], fixed: set[int]) -> Fraction:
    """Dice after fixing some categories, in exact fractions."""
    found = hits + sum(n for k, n in enumerate(fn) if len(fp) + k in fixed)
    alarms = sum(n for k, n in enumerate(fp) if k not in fixed)
    return Fraction(2 * found, found + alarms + hits + sum(fn))


def over_all_orders(hits: int, fp: tuple[int, ...], fn: tuple[int, ...]) -> list[Fraction]:
    """Mean gain of each category over every order of fixing them."""
    categories = range(len(fp) + len(fn))
    total = [Fraction(0)] * len(categories)
    orders = list(itertools.permutations(categories))
    for order in orders:
        fixed: set[int] = set()
        for k in order:
            before = value(hits, fp, fn, fixed)
            fixed.add(k)
            total[k] += value(hits, fp, fn, fixed) - before
    return [t / len(orders) for t in total]


def one(hits: int, fp: tuple[int, ...], fn: tuple[int, ...]):
    shaped = (np.array([row], dtype=np.int64).reshape(1, -1) for row in (fp, fn))
    return shapley_costs(np.array([hits]), *shaped)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 50), st.lists(st.integers(0, 50), max_size=3), st.lists(st.integers(0, 50), max_size=3))
def test_costs_are_the_mean_gain_over_all_orders(hits: int, fp: list[int], fn: list[int]) -> None:
    if hits + sum(fn) == 0:
        hits = 1
    found = one(hits, tuple(fp), tuple(fn))
    exact = over_all_orders(hits, tuple(fp), tuple(fn))
    assert np.abs(found.cost[0] - np.array([float(x) for x in exact])).max(initial=0) < 1e-13
    assert found.dice[0] == pytest.approx(float(value(hits, tuple(fp), tuple(fn), set())), abs=1e-15)


def test_two_categories_have_a_closed_form() -> None:
    found = one(30, (20,), (10,))
    dice, without_fp, without_fn = 60 / 90, 60 / 70, 80 / 100
    assert found.dice[0] == pytest.approx(dice)
    assert found.cost[0, 0] == pytest.approx(((without_fp - dice) + (1 - without_fn)) / 2)
    assert found.cost[0, 1] == pytest.approx(((without_fn - dice) + (1 - without_fp)) / 2)
    assert found.only[0] == pytest.approx([without_fp - dice, without_fn - dice])
    assert found.all_but[0] == pytest.approx([1 - without_fn, 1 - without_fp])


@settings(max_examples=60, deadline=None)
@given(full_subjects())
def test_dice_and_costs_add_up_to_one(subjects) -> None:
    hits, fp, fn = subjects
    found = shapley_costs(hits, fp, fn)
    assert np.abs(found.dice + found.cost.sum(axis=1) - 1).max() < 1e-12
    assert abs(found.dice.mean() + found.cost.mean(axis=0).sum() - 1) < 1e-12
    dice = 2 * hits / (2 * hits + fp.sum(axis=1) + fn.sum(axis=1))
    assert np.abs(found.dice - dice).max() < 1e-14
    assert found.cost.min() > -1e-15


@settings(max_examples=40, deadline=None)
@given(full_subjects(), st.integers(0, K_FP - 1), st.integers(0, K_FN - 1))
def test_an_empty_category_costs_exactly_nothing_and_changes_nothing(subjects, i: int, j: int) -> None:
    hits, fp, fn = subjects
    hits = hits + 1
    fp, fn = fp.copy(), fn.copy()
    fp[:, i], fn[:, j] = 0, 0
    found = shapley_costs(hits, fp, fn)
    for values in (found.cost, found.only, found.all_but):
        assert (values[:, [i, K_FP + j]] == 0).all()
    fewer = shapley_costs(hits, np.delete(fp, i, axis=1), np.delete(fn, j, axis=1))
    assert np.abs(np.delete(found.cost, [i, K_FP + j], axis=1) - fewer.cost).max() < 1e-13


@settings(max_examples=40, deadline=None)
@given(full_subjects(), st.permutations(range(K_FP)), st.permutations(range(K_FN)))
def test_names_do_not_matter_equal_counts_cost_the_same(subjects, order_fp, order_fn) -> None:
    hits, fp, fn = subjects
    fp, fn = fp.copy(), fn.copy()
    fp[:, 0], fn[:, 0] = fp[:, 1], fn[:, 1]
    hits = hits + 1
    found = shapley_costs(hits, fp, fn)
    assert np.abs(found.cost[:, 0] - found.cost[:, 1]).max() < 1e-13
    assert np.abs(found.cost[:, K_FP] - found.cost[:, K_FP + 1]).max() < 1e-13
    renamed = shapley_costs(hits, fp[:, order_fp], fn[:, order_fn])
    assert np.abs(renamed.cost[:, :K_FP] - found.cost[:, order_fp]).max() < 1e-13
    assert np.abs(renamed.cost[:, K_FP:] - found.cost[:, K_FP:][:, order_fn]).max() < 1e-13


def test_the_mean_cost_is_the_cost_in_the_mean_game() -> None:
    rows = [(5, (3, 0, 7), (2, 4)), (1, (9, 2, 2), (0, 1)), (0, (0, 5, 1), (6, 6))]
    total = [Fraction(0)] * 5
    orders = list(itertools.permutations(range(5)))
    for order in orders:
        for place, k in enumerate(order):
            before, after = set(order[:place]), set(order[: place + 1])
            gain = sum((value(*row, after) - value(*row, before) for row in rows), Fraction(0)) / len(rows)
            total[k] += gain / len(orders)
    found = shapley_costs(*(np.array(column) for column in zip(*rows, strict=True)))
    assert np.abs(found.cost.mean(axis=0) - np.array([float(t) for t in total])).max() < 1e-13


@settings(max_examples=40, deadline=None)
@given(full_subjects())
def test_only_and_all_but_are_what_fixing_by_hand_gives(subjects) -> None:
    hits, fp, fn = subjects
    found = shapley_costs(hits, fp, fn)
    row = (int(hits[0]), tuple(fp[0].tolist()), tuple(fn[0].tolist()))
    everything = set(range(K_FP + K_FN))
    for k in everything:
        gained = value(*row, {k}) - value(*row, set())
        assert found.only[0, k] == pytest.approx(float(gained), abs=1e-14)
        assert found.all_but[0, k] == pytest.approx(float(1 - value(*row, everything - {k})), abs=1e-14)


def test_more_voxels_of_a_kind_cost_more() -> None:
    found = one(100, (10, 20, 40), (5, 50))
    assert (np.diff(found.cost[0, :3]) > 0).all()
    assert found.cost[0, 4] > found.cost[0, 3]


def test_without_a_hit_all_of_dice_is_lost_to_the_categories() -> None:
    found = one(0, (7, 0), (3, 2))
    assert found.dice[0] == 0
    assert found.cost[0].sum() == pytest.approx(1, abs=1e-12)
    assert found.only[0, 0] == 0
    assert one(0, (), (4,)).cost[0].tolist() == [1.0]


def test_a_perfect_segmentation_costs_nothing() -> None:
    found = one(12, (0,) * K_FP, (0,) * K_FN)
    assert found.dice[0] == 1
    assert (found.cost == 0).all()


def test_many_subjects_cost_what_each_costs_alone() -> None:
    rng = np.random.Generator(np.random.Philox(3))
    hits, fp, fn = rng.integers(1, 900, 70), rng.integers(0, 900, (70, K_FP)), rng.integers(0, 900, (70, K_FN))
    together = shapley_costs(hits, fp, fn)
    for n in (0, 31, 32, 69):
        alone = shapley_costs(hits[n : n + 1], fp[n : n + 1], fn[n : n + 1])
        assert np.abs(together.cost[n] - alone.cost[0]).max() < 1e-14
    none = shapley_costs(hits[:0], fp[:0], fn[:0])
    assert none.cost.shape == (0, K_FP + K_FN)


@pytest.mark.parametrize(
    ("hits", "fp", "fn", "message"),
    [
        ([0], [[3]], [[0]], "no Dice"),
        ([1, 1], [[3]], [[0]], "shapes"),
        ([1], [[-3]], [[0]], "negative"),
        ([1], [[0.5]], [[0]], "not integers"),
    ],
)
def test_counts_that_make_no_sense_are_refused(hits, fp, fn, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        shapley_costs(np.array(hits), np.array(fp), np.array(fn))


def test_categories_without_a_voxel_beyond_the_fourteenth_change_nothing() -> None:
    found = shapley_costs(np.array([40]), np.array([[9, 3, 0, 5]]), np.array([[7, 2]]))
    padded = shapley_costs(np.array([40]), np.array([[9, 3, 0, 5, *[0] * 12]]), np.array([[7, 2]]))
    kept = [0, 1, 2, 3, 16, 17]
    assert np.abs(padded.cost[:, kept] - found.cost).max() < 1e-14
    assert np.abs(padded.only[:, kept] - found.only).max() < 1e-14
    assert np.abs(padded.all_but[:, kept] - found.all_but).max() < 1e-14
    assert not padded.cost[:, 4:16].any()


def test_many_kinds_of_errors_cost_what_all_their_orders_say_within_the_draw() -> None:
    """Fifteen kinds, of which six are alike: those of fourteen cost what the exact game says when one is split."""
    fp, fn = np.full((1, 9), 11), np.full((1, 8), 17)
    found = shapley_costs(np.array([50]), fp, fn)
    assert found.dice[0] + found.cost[0].sum() == pytest.approx(1.0, abs=1e-12)
    assert np.ptp(found.cost[0, :9]) < 4e-3
    assert np.ptp(found.cost[0, 9:]) < 4e-3
    total = [_by_arrival(50, 11, 9, 17, 8, missed) for missed in (False, True)]
    assert found.cost[0, :9].mean() == pytest.approx(total[0], abs=2e-3)
    assert found.cost[0, 9:].mean() == pytest.approx(total[1], abs=2e-3)
    again = shapley_costs(np.array([50]), fp, fn)
    assert (again.cost == found.cost).all()


def _by_arrival(hits: int, a: int, n_a: int, b: int, n_b: int, missed: bool) -> float:
    """Cost of one of n_a equal false positives of a voxels, or of n_b equal misses of b, over all orders, exactly."""
    lesion, total = hits + b * n_b, n_a + n_b

    def dice(i: int, j: int) -> float:
        return 2 * (hits + b * j) / (hits + b * j + a * (n_a - i) + lesion)

    others = (n_a, n_b - 1) if missed else (n_a - 1, n_b)
    cost = 0.0
    for i in range(others[0] + 1):
        for j in range(others[1] + 1):
            share = math.comb(others[0], i) * math.comb(others[1], j) / (total * math.comb(total - 1, i + j))
            cost += share * ((dice(i, j + 1) if missed else dice(i + 1, j)) - dice(i, j))
    return cost

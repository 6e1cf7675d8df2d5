"""Choosing the rows of a memory bank: against a plain greedy, brute force and closed forms."""

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from core.memory_bank import coreset
from core.memory_bank.coreset import cover, cover_radius, select_coreset
from core.memory_bank.settings import Subset
from core.randomness import stream
from data.errors import BadInput

METHODS: tuple[Subset, ...] = ("greedy", "random", "kmeans", "half", "all")


def mixture(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Clusters of different sizes and spreads, as features of tissues are."""
    random = np.random.default_rng(seed)
    centres, spreads = random.normal(size=(12, d)), random.uniform(0.05, 0.6, 12)
    of = random.choice(12, n, p=random.dirichlet(np.ones(12)))
    return (centres[of] + spreads[of, None] * random.normal(size=(n, d))).astype(np.float32)


def plain_greedy(rows: np.ndarray, first: list[int], keep: int) -> list[int]:
    """The definition: one pass over all rows per pick, float64, no tricks."""
    rows, chosen = rows.astype(np.float64), list(first)
    left = np.min([((rows - rows[i]) ** 2).sum(1) for i in chosen], axis=0)
    while len(chosen) < keep:
        left[chosen] = -1
        chosen.append(int(left.argmax()))
        left = np.minimum(left, ((rows - rows[chosen[-1]]) ** 2).sum(1))
    return chosen


@pytest.mark.parametrize("pool", [1, 7, 64, 10_000])
@pytest.mark.parametrize("seed", [0, 1])
def test_lazy_greedy_makes_the_picks_of_a_plain_greedy(monkeypatch: pytest.MonkeyPatch, pool: int, seed: int) -> None:
    monkeypatch.setattr(coreset, "POOL", pool)
    rows = mixture(1500, 16, seed)
    chosen = select_coreset(rows, 300, "greedy", seed=seed)
    assert chosen.tolist() == plain_greedy(rows, [chosen[0]], 300)


def test_a_common_offset_and_scale_do_not_change_the_picks() -> None:
    rows = np.round(mixture(800, 12) * 64) / 64  # exact after the offset too
    moved = (rows * 1024 + 65536).astype(np.float32)
    np.testing.assert_array_equal(moved, rows.astype(np.float64) * 1024 + 65536)
    for method in ("greedy", "half"):
        chosen = select_coreset(moved, 100, method, seed=3)
        assert select_coreset(rows, 100, method, seed=3).tolist() == chosen.tolist()
    assert chosen.tolist() == plain_greedy(rows, chosen[:50].tolist(), 100)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_covers_within_twice_the_best_possible_radius(seed: int) -> None:
    rows = mixture(13, 2, seed)
    apart = np.linalg.norm(rows[:, None].astype(np.float64) - rows[None], axis=2)
    best = min(apart[list(some)].min(0).max() for some in itertools.combinations(range(13), 4))
    found = cover_radius(rows, select_coreset(rows, 4, "greedy", seed=seed))
    assert best * (1 - 1e-9) <= found <= 2 * best


def test_greedy_covers_the_farthest_row_best_and_random_the_typical_one() -> None:
    rows = mixture(3000, 8)
    covers = {m: cover(rows, select_coreset(rows, 100, m, seed=0)) for m in METHODS}
    assert max(covers["greedy"].radius, covers["half"].radius) < 0.8 * covers["random"].radius
    assert covers["kmeans"].mean < covers["random"].mean
    assert covers["kmeans"].mean < covers["greedy"].mean
    assert covers["all"] == coreset.Cover(0.0, 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_the_choice_is_of_distinct_rows_and_a_function_of_the_seed(method: Subset) -> None:
    rows = mixture(400, 6)
    before = rows.copy()
    chosen = select_coreset(rows, 37, method, seed=5)
    assert len(set(chosen.tolist())) == (400 if method == "all" else 37)
    assert chosen.dtype == np.int64
    assert 0 <= chosen.min() <= chosen.max() < 400
    np.testing.assert_array_equal(chosen, select_coreset(rows, 37, method, seed=5))
    np.testing.assert_array_equal(rows, before)
    if method != "all":
        assert chosen.tolist() != select_coreset(rows, 37, method, seed=6).tolist()


@pytest.mark.parametrize("method", ["greedy", "random"])
def test_a_smaller_choice_is_the_beginning_of_a_larger_one(method: Subset) -> None:
    rows = mixture(500, 6)
    larger = select_coreset(rows, 90, method, seed=1)
    np.testing.assert_array_equal(select_coreset(rows, 20, method, seed=1), larger[:20])


@pytest.mark.parametrize("method", METHODS)
def test_few_rows_one_row_and_equal_rows_are_chosen_from(method: Subset) -> None:
    rows = mixture(5, 3)
    for keep in (5, 9):
        assert select_coreset(rows, keep, method, seed=0).tolist() == [0, 1, 2, 3, 4]
    assert select_coreset(rows[:1], 1, method, seed=0).tolist() == [0]
    if method != "all":
        assert len(select_coreset(rows, 1, method, seed=0)) == 1
        for equal in (np.full((40, 3), 7.25, np.float32), np.repeat(rows[:2], 20, axis=0)):
            assert len(set(select_coreset(equal, 11, method, seed=0).tolist())) == 11


@pytest.mark.parametrize("method", ["greedy", "kmeans"])
def test_a_copy_is_not_chosen_while_a_new_row_is_left(method: Subset) -> None:
    rows = np.repeat(mixture(9, 4), 30, axis=0)
    assert len(set((select_coreset(rows, 9, "greedy", seed=2) // 30).tolist())) == 9
    if method == "kmeans":
        first = stream(2, "coreset random").permutation(270)[:20] // 30
        assert len(set((select_coreset(rows, 20, method, seed=2) // 30).tolist())) == len(set(first.tolist()))


def test_k_means_takes_the_row_nearest_to_each_centre() -> None:
    random = np.random.default_rng(0)
    corners = np.array([[0, 0], [100, 0], [0, 100], [100, 100]], dtype=np.float32)
    rows = np.concatenate([corner + random.normal(size=(50, 2)) for corner in corners]).astype(np.float32)
    seed = next(s for s in range(99) if len(set(stream(s, "coreset random").permutation(200)[:4] // 50)) == 4)
    chosen = np.sort(select_coreset(rows, 4, "kmeans", seed=seed))
    for group, row in enumerate(chosen):
        mine = rows[50 * group : 50 * group + 50].astype(np.float64)
        assert row == 50 * group + np.linalg.norm(mine - mine.mean(0), axis=1).argmin()


def test_the_projection_lowers_dimensions_and_keeps_distances_nearly() -> None:
    rows = mixture(200, 300)
    embedded, unit = coreset._embedded(rows, 0, 128)
    assert embedded.shape == (200, 128)
    pairs = stream(0, "pairs").integers(0, 200, (500, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    true = np.linalg.norm(rows[pairs[:, 0]] - rows[pairs[:, 1]], axis=1)
    seen = unit * torch.linalg.vector_norm(embedded[pairs[:, 0]] - embedded[pairs[:, 1]], dim=1).numpy()
    assert 0.97 < float(np.mean((seen / true) ** 2)) < 1.03
    assert coreset._embedded(rows[:, :20], 0, 128)[0].shape == (200, 20)
    wide, narrow = (cover_radius(rows, select_coreset(rows, 40, seed=0, projection=p)) for p in (300, 128))
    assert narrow < 1.15 * wide


def test_the_cover_is_the_largest_and_the_mean_distance_to_the_nearest_chosen_row() -> None:
    line = np.arange(11, dtype=np.float32)[:, None] * np.array([[3.0, 4.0]], dtype=np.float32)
    found = cover(line, np.array([2, 8]))
    assert found.radius == pytest.approx(15.0, rel=1e-12)
    assert found.mean == pytest.approx(5 * (2 + 1 + 0 + 1 + 2 + 3 + 2 + 1 + 0 + 1 + 2) / 11, rel=1e-12)
    rows = mixture(9000, 24) + 1000
    chosen = np.sort(np.random.default_rng(1).permutation(9000)[:1500])
    distances = np.stack([np.linalg.norm(rows[i] - rows[chosen].astype(np.float64), axis=1).min() for i in range(9000)])
    found = cover(rows, chosen)
    assert found.radius == pytest.approx(distances.max(), rel=1e-9)
    assert found.mean == pytest.approx(distances.mean(), rel=1e-5)


def test_the_reported_radius_falls_to_the_cover_radius() -> None:
    rows = mixture(3000, 10)
    seen: list[tuple[int, float]] = []
    chosen = select_coreset(rows, 400, seed=0, monitor=lambda n, values: seen.append((n, values["cover_radius"])))
    assert [n for n, _ in seen] == sorted({n for n, _ in seen})
    assert seen[0][0] == 1
    assert seen[-1][0] == 400
    assert seen[-1][1] == pytest.approx(cover_radius(rows, chosen), rel=1e-4)
    assert [r for _, r in seen] == sorted((r for _, r in seen), reverse=True)


def test_memory_stays_near_one_copy_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = mixture(30_000, 40)
    largest = 0
    real = torch.addmm

    def watched(*given: Any, **named: Any) -> Any:
        nonlocal largest
        product = real(*given, **named)
        largest = max(largest, product.numel() * 4)
        return product

    monkeypatch.setattr(torch, "addmm", watched)
    tracemalloc.start()
    for method in ("greedy", "kmeans", "half"):
        select_coreset(rows, 600, method, seed=0)
    peak = tracemalloc.get_traced_memory()[1]  # of numpy; torch's are the products watched above
    tracemalloc.stop()
    assert 0 < largest <= 4 * 2**20
    assert peak < 3 * rows.nbytes


def test_what_cannot_be_chosen_from_is_refused() -> None:
    rows = mixture(20, 3)
    for wrong in (np.nan, np.inf, -np.inf):
        broken = rows.copy()
        broken[7, 1] = wrong
        for method in METHODS:
            with pytest.raises(BadInput, match="NaN or infinity"):
                select_coreset(broken, 4, method, seed=0)
        with pytest.raises(BadInput, match="NaN or infinity"):
            cover_radius(broken, np.array([0]))
    for given in (rows[:0], rows[0], rows[:, :0]):
        with pytest.raises(BadInput, match="shape"):
            select_coreset(given, 1, seed=0)
    with pytest.raises(BadInput, match="coreset_ratio"):
        select_coreset(rows, 0, seed=0)
    with pytest.raises(BadInput, match="Allowed: greedy"):
        select_coreset(rows, 2, "farthest", seed=0)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="projection"):
        select_coreset(rows, 2, seed=0, projection=0)
    for chosen in ([20], [-1]):
        with pytest.raises(BadInput, match="0 to 19"):
            cover_radius(rows, np.array(chosen))

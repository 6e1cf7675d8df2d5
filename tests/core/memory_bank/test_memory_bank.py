"""The memory bank: every mode and layer set against float64 brute force, building, files, memory."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
import torch

from core.features.layout import feature_layout
from core.features.settings import every_layer_set
from core.memory_bank import bank as bank_module
from core.memory_bank import one_patch
from core.memory_bank.bank import MemoryBank
from core.memory_bank.cost import plan_bank
from core.memory_bank.search import Blocks
from core.memory_bank.settings import BankSettings
from core.types import FeatureLayout
from data.errors import BadInput, EnvironmentProblem, IntegrityError
from data.volume import Grid

Rows = dict[str, torch.Tensor]
CHANNELS = {"fine": 3, "middle": 5, "coarse": 4}
SETS = every_layer_set(tuple(CHANNELS))
SUBJECTS = ("a", "b", "c", "d")


def small_layout(shape: tuple[int, int, int] = (7, 6, 5), spacing: float = 4.0) -> FeatureLayout:
    """A ball of positions; layers at one, two and four cells."""
    working = Grid(shape, np.diag([spacing, spacing, spacing, 1.0]))
    middle = (np.array(shape) - 1) / 2
    cells = np.argwhere(np.ones(shape, dtype=bool))
    positions = cells[(((cells - middle) / (middle + 0.3)) ** 2).sum(1) <= 1]
    strides = {"fine": (1, 1, 1), "middle": (2, 2, 2), "coarse": (4, 4, 4)}
    return feature_layout(working, (1, 1, 1), strides, CHANNELS, positions)


LAYOUT = small_layout()


def make_volumes(n: int, seed: int = 0, layout: FeatureLayout = LAYOUT) -> list[Rows]:
    random = np.random.default_rng(seed)
    return [
        {
            layer: torch.from_numpy((2.0 + 1.5 * random.normal(size=(len(cells), CHANNELS[layer]))).astype(np.float32))
            for layer, cells in layout.layer_positions.items()
        }
        for _ in range(n)
    ]


TRAIN, TEST = make_volumes(4), make_volumes(2, seed=1)
MM = LAYOUT.positions * 4.0


def build(train: Sequence[Rows] = TRAIN, **changed: object) -> MemoryBank:
    settings = BankSettings(**{"subset": "random", "coreset_ratio": 0.3, **changed})
    return MemoryBank.build(train, SUBJECTS[: len(train)], LAYOUT, settings)


def full(rows: Mapping[str, torch.Tensor], layer: str, layout: FeatureLayout = LAYOUT) -> np.ndarray:
    """Rows at every position of the feature grid, float64."""
    return rows[layer].numpy().astype(np.float64)[layout.lookup[layer]]


def spreads(train: Sequence[Rows], scaling: str) -> dict[str, float]:
    joint = {layer: np.concatenate([full(rows, layer) for rows in train]) for layer in CHANNELS}
    if scaling == "none":
        return dict.fromkeys(CHANNELS, 1.0)
    return {layer: float(np.sqrt(((x - x.mean(0)) ** 2).sum(1).mean())) for layer, x in joint.items()}


def reference(
    bank: MemoryBank, test: Sequence[Rows], layers: Sequence[str], train: Sequence[Rows] = TRAIN
) -> np.ndarray:
    """(volumes, positions, entries): distances from the raw features; infinite where an entry does not count."""
    settings, divisor = bank.settings, spreads(train, bank.settings.scaling)
    squared = np.zeros((len(test), len(MM), len(bank)))
    for layer in layers:
        stacked = np.stack([full(rows, layer) for rows in train])
        entries = stacked[bank.subject_of, bank.position_of] / divisor[layer]
        queries = np.stack([full(rows, layer) for rows in test]) / divisor[layer]
        squared += ((queries[:, :, None] - entries[None, None]) ** 2).sum(-1)
    apart = np.linalg.norm(MM[:, None] - MM[bank.position_of][None], axis=-1)
    if settings.position == "weighted":
        squared += (settings.position_weight * apart) ** 2
    if settings.position == "restricted":
        reach = np.maximum(settings.radius_mm, apart.min(1)) + 1e-3
        squared[:, apart > reach[:, None]] = np.inf
    return np.sqrt(squared)


MODES = [
    {"position": "anywhere"},
    {"position": "weighted", "position_weight": 0.05},
    {"position": "restricted", "radius_mm": 4.0},
    {"position": "restricted", "radius_mm": 9.0},
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scaling", ["layer", "none"])
@pytest.mark.parametrize("subset", ["random", "all"])
def test_distances_of_every_layer_set_are_those_of_brute_force(mode: dict, scaling: str, subset: str) -> None:
    bank = build(**mode, scaling=scaling, subset=subset)
    found = bank.distances(TEST, SETS)
    assert found.shape == (7, 2, len(MM))
    assert found.dtype == np.float32
    for number, layers in enumerate(SETS):
        np.testing.assert_allclose(found[number], reference(bank, TEST, layers).min(-1), rtol=2e-5)


@pytest.mark.parametrize("mode", MODES)
def test_the_found_entry_is_the_nearest_one(mode: dict) -> None:
    bank = build(**mode)
    found = bank.search(TEST, SETS)
    for number, layers in enumerate(SETS):
        apart = reference(bank, TEST, layers)
        theirs = np.take_along_axis(apart, found.entry[number][..., None], -1)[..., 0]
        np.testing.assert_allclose(theirs, apart.min(-1), rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_blocks_of_any_size_give_the_same_answers(mode: dict) -> None:
    bank = build(**mode)
    whole = bank.distances(TEST, SETS)
    for blocks in (Blocks(32, 7), Blocks(64, 1), Blocks(10_000, 10_000)):
        np.testing.assert_allclose(bank.distances(TEST, SETS, blocks=blocks), whole, rtol=3e-7)
    np.testing.assert_allclose(bank.distances(TEST[1:], SETS[3:4])[0, 0], whole[3, 1], rtol=3e-7)


@pytest.mark.parametrize("mode", MODES)
def test_a_training_patch_that_was_kept_has_distance_zero(mode: dict) -> None:
    bank = build(**mode)
    found = bank.distances(TRAIN, SETS)
    assert (found[:, bank.subject_of, bank.position_of] == 0).all()
    assert (found > 0).any()


@pytest.mark.parametrize("mode", MODES)
def test_neighbours_are_the_k_nearest_with_their_subject_and_place(mode: dict) -> None:
    bank = build(**mode)
    expected = reference(bank, TEST[:1], ("fine", "coarse"))[0]
    for position in (0, 17, len(MM) - 1):
        order = np.argsort(expected[position])[: min(5, np.isfinite(expected[position]).sum())]
        near = one_patch.nearest(bank, TEST[0], position, ("coarse", "fine"), 5)
        np.testing.assert_array_equal(near.entry, order)
        np.testing.assert_allclose(near.distance, expected[position, order], rtol=1e-5)
        assert near.subject_id == tuple(SUBJECTS[s] for s in bank.subject_of[order])
        np.testing.assert_array_equal(near.position_index, bank.position_of[order])
        np.testing.assert_allclose(
            near.apart_mm, np.linalg.norm(MM[bank.position_of[order]] - MM[position], axis=1), atol=1e-9
        )


def test_a_position_weight_of_zero_is_anywhere_and_a_large_one_is_the_own_position() -> None:
    anywhere = build(subset="all").distances(TEST, SETS)
    np.testing.assert_allclose(
        build(subset="all", position="weighted", position_weight=0.0).distances(TEST, SETS), anywhere
    )
    own = build(subset="all", position="restricted", radius_mm=0.0).distances(TEST, SETS)
    far = build(subset="all", position="weighted", position_weight=50.0).distances(TEST, SETS)
    np.testing.assert_allclose(far, own, rtol=1e-5)


def test_weighted_distance_has_its_closed_form() -> None:
    """Two positions 4 mm apart along an axis, equal features: only the way counts."""
    flat = {layer: torch.full_like(rows, 1.0) for layer, rows in TRAIN[0].items()}
    bank = build([flat], subset="random", coreset_ratio=1e-6, position="weighted", position_weight=0.25)
    assert len(bank) == 1
    apart = np.linalg.norm(MM - MM[bank.position_of[0]], axis=1)
    np.testing.assert_allclose(bank.distances([flat], [("fine",)])[0, 0], 0.25 * apart, rtol=1e-5, atol=1e-6)


def test_the_radius_is_inclusive_and_a_position_that_reaches_nothing_takes_the_nearest_place() -> None:
    bank = build(subset="random", coreset_ratio=0.02, position="restricted", radius_mm=8.0)
    apart = np.linalg.norm(MM[:, None] - MM[bank.position_of][None], axis=-1)
    assert (np.abs(apart - 8.0) < 1e-6).any()
    assert bank.reach.fallbacks == np.count_nonzero(apart.min(1) > 8.0001)
    assert bank.reach.fallbacks > 0
    for position in range(len(MM)):
        reach = max(8.0, apart[position].min()) + 1e-3
        np.testing.assert_array_equal(bank.reach.entries(position), np.flatnonzero(apart[position] <= reach))
    assert np.isfinite(bank.distances(TEST, SETS)).all()


def test_layer_scaling_makes_the_root_mean_square_distance_to_the_mean_one() -> None:
    bank = build(subset="all")
    for layer, expected in spreads(TRAIN, "layer").items():
        assert bank.spreads[layer] == pytest.approx(expected, rel=1e-6)
        rows = bank.rows[layer][torch.from_numpy(bank.row_of[layer])].double()
        assert float(rows.square().sum(1).mean()) == pytest.approx(1.0, rel=1e-5)
    constant = [{layer: torch.ones_like(values) for layer, values in rows.items()} for rows in TRAIN]
    assert (build(constant).distances(TRAIN, SETS) > 0).any()


def test_entries_are_real_patches_sorted_by_position_and_a_coarse_row_is_kept_once() -> None:
    bank = build(subset="all", scaling="none")
    assert len(bank) == 4 * len(MM)
    assert (np.diff(bank.position_of) >= 0).all()
    for layer in CHANNELS:
        assert len(bank.rows[layer]) == 4 * len(LAYOUT.layer_positions[layer])
        entries = bank.rows[layer][torch.from_numpy(bank.row_of[layer])] + bank.means[layer]
        stacked = np.stack([full(rows, layer) for rows in TRAIN])
        np.testing.assert_allclose(entries.numpy(), stacked[bank.subject_of, bank.position_of], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("radius_mm", [0.0, 4.0, 8.0])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_fast_path_of_a_whole_bank_gives_what_the_general_path_gives(
    radius_mm: float, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = build(subset="all", position="restricted", radius_mm=radius_mm, precision=precision)
    monkeypatch.setattr(bank_module, "search_within", lambda *_, **__: pytest.fail("the general path was taken"))
    fast = bank.search(TEST, SETS)
    monkeypatch.undo()
    monkeypatch.setattr(bank_module, "search_registered", lambda *_, **__: pytest.fail("the fast path was taken"))
    monkeypatch.setattr(MemoryBank, "_registered", lambda *_: None)
    general = bank.search(TEST, SETS)
    np.testing.assert_allclose(fast.distance, general.distance, rtol=3e-7)
    assert (fast.entry == general.entry).mean() > 0.6  # positions of one coarse cell tie


def test_the_pool_is_bounded_drawn_over_all_subjects_and_repeats_by_seed() -> None:
    def kept(seed: int) -> tuple[np.ndarray, np.ndarray]:
        bank = build(subset="random", coreset_ratio=1.0, pool=60, seed=seed)
        return bank.subject_of, bank.position_of

    subject_of, position_of = kept(0)
    assert len(subject_of) == 60
    assert set(subject_of) == {0, 1, 2, 3}
    assert len(set(zip(subject_of, position_of, strict=True))) == 60
    np.testing.assert_array_equal(kept(0)[1], position_of)
    assert not np.array_equal(kept(1)[1], position_of)


def test_building_holds_one_subject_at_a_time() -> None:
    alive = 0

    def one_by_one() -> Iterator[Rows]:
        nonlocal alive
        for rows in make_volumes(4):
            alive += 1
            yield rows

    heard: list[int] = []
    MemoryBank.build(
        one_by_one(), SUBJECTS, LAYOUT, BankSettings(subset="all"), monitor=lambda n, _: heard.append(alive - n)
    )
    assert heard[:4] == [0, 0, 0, 0]


@pytest.mark.parametrize("subset", ["greedy", "random", "kmeans", "half"])
def test_every_subset_keeps_the_asked_share_and_repeats_by_seed(subset: str) -> None:
    first, second = (build(subset=subset, coreset_ratio=0.1, projection=8) for _ in range(2))
    assert len(first) == round(0.1 * 4 * len(MM))
    np.testing.assert_array_equal(first.position_of, second.position_of)
    for layer in CHANNELS:
        assert torch.equal(first.rows[layer], second.rows[layer])


def test_float16_rounds_features_only_a_little_and_halves_the_rows() -> None:
    single, half = build(), build(precision="float16")
    assert half.rows["fine"].dtype == torch.float16
    np.testing.assert_allclose(half.distances(TEST, SETS), single.distances(TEST, SETS), rtol=1e-2, atol=2e-3)
    huge = [{layer: values * 1e6 for layer, values in rows.items()} for rows in TRAIN]
    with pytest.raises(BadInput, match="float16 ends at 65504"):
        build(huge, precision="float16", scaling="none")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("memory_bytes", [None, 0])
def test_a_saved_bank_gives_the_same_bits_also_when_it_stays_on_disk(tmp_path, mode: dict, memory_bytes) -> None:
    bank = build(**mode)
    bank.save(tmp_path)
    loaded = MemoryBank.load(tmp_path, memory_bytes=memory_bytes)
    assert {path.name for path in tmp_path.iterdir()} == {"bank.safetensors", "bank.json"}
    assert loaded.settings == bank.settings
    assert loaded.subject_ids == bank.subject_ids
    assert loaded.n_bytes == bank.n_bytes
    np.testing.assert_array_equal(loaded.distances(TEST, SETS), bank.distances(TEST, SETS))
    np.testing.assert_array_equal(
        one_patch.nearest(loaded, TEST[0], 3, SETS[-1], 4).entry, one_patch.nearest(bank, TEST[0], 3, SETS[-1], 4).entry
    )


def test_a_damaged_bank_is_refused(tmp_path) -> None:
    build().save(tmp_path)
    path = tmp_path / "bank.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-5], whole[:1500] + bytes([whole[1500] ^ 1]) + whole[1501:], b""):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match="missing or damaged"):
            MemoryBank.load(tmp_path)
    path.write_bytes(whole)
    MemoryBank.load(tmp_path)
    path.unlink()
    with pytest.raises(IntegrityError, match="missing or damaged"):
        MemoryBank.load(tmp_path)


def test_more_threads_give_the_same_bits() -> None:
    bank, before = build(), torch.get_num_threads()
    alone = bank.distances(TEST, SETS, blocks=Blocks(32, 16))
    try:
        torch.set_num_threads(3)
        np.testing.assert_array_equal(bank.distances(TEST, SETS, blocks=Blocks(32, 16)), alone)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_what_does_not_fit_is_refused_in_words() -> None:
    bank = build()
    with pytest.raises(BadInput, match="has: fine, middle, coarse"):
        bank.distances(TEST, [("deep",)])
    with pytest.raises(BadInput, match="lacks layer 'fine'"):
        bank.distances([{"middle": TEST[0]["middle"]}], [("fine",)])
    with pytest.raises(BadInput, match="have shape"):
        bank.distances([{"fine": TEST[0]["fine"][:3]}], [("fine",)])
    broken = {layer: values.clone() for layer, values in TEST[0].items()}
    broken["fine"][0, 0] = torch.nan
    with pytest.raises(BadInput, match="not finite"):
        bank.distances([broken], SETS)
    with pytest.raises(BadInput, match="position 100000"):
        one_patch.nearest(bank, TEST[0], 100_000, ("fine",), 3)
    with pytest.raises(BadInput, match="2 subjects came, announced were 4"):
        MemoryBank.build(TRAIN[:2], SUBJECTS, LAYOUT, BankSettings())
    with pytest.raises(BadInput, match="More subjects came than the 1"):
        MemoryBank.build(TRAIN, SUBJECTS[:1], LAYOUT, BankSettings())
    with pytest.raises(BadInput, match="No subject"):
        MemoryBank.build([], (), LAYOUT, BankSettings())


@pytest.mark.parametrize(
    "wrong",
    [
        {"subset": "best"}, {"coreset_ratio": 0.0}, {"pool": 0}, {"scaling": "voxel"}, {"position": "near"},
        {"position_weight": -1.0}, {"radius_mm": -1.0}, {"search": "fast"}, {"neighbours": 0}, {"precision": "int8"},
        {"search": "ivf", "position": "restricted"},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(BadInput):
        BankSettings(**wrong)


@pytest.mark.parametrize("mode", MODES)
def test_the_subject_score_is_the_re_weighted_largest_distance(mode: dict) -> None:
    """Equation 7 of PatchCore, written down plainly."""
    layers = ("fine", "middle")
    bank = build(**mode, neighbours=4)
    queries, entries = reference(bank, TEST[:1], layers)[0], reference(bank, TRAIN, layers)
    position = int(queries.min(1).argmax())
    nearest = int(queries[position].argmin())
    from_nearest = entries[bank.subject_of[nearest], bank.position_of[nearest]]
    around = np.argsort(from_nearest, kind="stable")[:4]
    around = around[np.isfinite(from_nearest[around])]
    unrestricted = bank.settings.position != "restricted"
    assert not unrestricted or nearest in around
    plain = build(**{**mode, "position": "anywhere"}) if not unrestricted else bank
    apart = reference(plain, TEST[:1], layers)[0, position, around]
    expected = (1 - np.exp(apart[around == nearest][0]) / np.exp(apart).sum()) * queries[position, nearest]
    assert one_patch.subject_score(bank, TEST[0], layers) == pytest.approx(expected, rel=1e-5)
    assert one_patch.subject_score(build(**mode, neighbours=1), TEST[0], layers) == pytest.approx(
        queries[position, nearest]
    )


def test_a_subject_score_of_far_patches_does_not_overflow() -> None:
    far = {layer: values + 1e5 for layer, values in TEST[0].items()}
    assert np.isfinite(one_patch.subject_score(build(), far, ("fine",)))


def test_the_plan_says_bytes_and_seconds_and_refuses_what_does_not_fit() -> None:
    bank = build()
    plan = plan_bank(4, LAYOUT, bank.settings, 1e9)
    assert plan.entries == len(bank)
    assert plan.candidates == 4 * len(MM)
    rows = sum(values.numel() * 4 for values in bank.rows.values())
    assert rows <= plan.stored_bytes <= 1.5 * rows + 48 * len(bank)
    assert "random draw" in plan.text
    assert "per volume" in plan.text
    everything = plan_bank(4, LAYOUT, BankSettings(subset="all"), 1e9)
    assert everything.entries == 4 * len(MM)
    with pytest.raises(EnvironmentProblem, match="Keep a part of the patches"):
        plan_bank(4, LAYOUT, BankSettings(subset="all"), 1e6)
    with pytest.raises(EnvironmentProblem, match=r"keeps [\d.]+ [kM]B.*Allowed are 1 MB \(--memory in GB, memory_gb"):
        plan_bank(4, LAYOUT, BankSettings(subset="all"), 1e6)
    with pytest.raises(EnvironmentProblem, match="No pool is small enough"):
        MemoryBank.build(TRAIN, SUBJECTS, LAYOUT, BankSettings(), limit_bytes=1e6)
    large = BankSettings(pool=400_000)
    needed = plan_bank(40_000, LAYOUT, large, 1e12).peak_bytes
    with pytest.raises(EnvironmentProblem, match="A pool of 200000 patches would fit"):
        plan_bank(40_000, LAYOUT, large, needed * 0.9)

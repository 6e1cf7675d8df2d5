"""The Gaussian per position: both forms against float64 references and refits."""

import itertools
import json
from collections.abc import Mapping

import numpy as np
import pytest
import sklearn.covariance
import torch

from core.gaussian.dual import helmert
from core.gaussian.running import RunningGaussian, expected_inflation, fit_gaussian
from core.gaussian.voxel_gaussian import VoxelGaussian
from core.memory_plan import GaussianSettings, plan_memory
from data.errors import BadInput, EnvironmentProblem, IntegrityError, Interrupted

Rows = dict[str, torch.Tensor]
POSITIONS = 12
LOOKUP = {"fine": np.arange(POSITIONS), "middle": np.arange(POSITIONS) // 2, "coarse": np.arange(POSITIONS) // 4}
CHANNELS = {"fine": 2, "middle": 5, "coarse": 8}
SUBSETS = [
    ("fine",), ("middle",), ("coarse",), ("fine", "middle"), ("fine", "coarse"), ("middle", "coarse"),
    ("fine", "middle", "coarse"),
]  # fmt: skip


def make_volumes(
    n: int, seed: int = 0, channels: Mapping[str, int] = CHANNELS, mean: float = 3.0, spread: float = 1.0
) -> list[Rows]:
    random = np.random.default_rng(seed)
    mixing = {layer: np.random.default_rng(99).normal(size=(c, c)) + np.eye(c) for layer, c in channels.items()}
    return [
        {
            layer: torch.from_numpy(
                (mean + spread * random.normal(size=(LOOKUP[layer].max() + 1, c)) @ mixing[layer]).astype(np.float32)
            )
            for layer, c in channels.items()
        }
        for _ in range(n)
    ]


def joint(volumes: list[Rows], subset: tuple[str, ...], lookup: Mapping[str, np.ndarray] = LOOKUP) -> np.ndarray:
    """(volumes, positions, features), float64."""
    return np.stack([np.concatenate([v[x].numpy().astype(np.float64)[lookup[x]] for x in subset], -1) for v in volumes])


def reference(
    train: list[Rows],
    test: list[Rows],
    subset: tuple[str, ...],
    settings: GaussianSettings,
    lookup: Mapping[str, np.ndarray] = LOOKUP,
) -> np.ndarray:
    """Two-pass float64 distances, (volumes, positions), by solving with the covariance itself."""
    X, Y = joint(train, subset, lookup), joint(test, subset, lookup)
    out = np.empty(Y.shape[:2])
    for p in range(X.shape[1]):
        centred = X[:, p] - X[:, p].mean(0)
        if settings.shrinkage == "ridge":
            covariance = centred.T @ centred / (len(X) - 1) + settings.ridge * np.eye(X.shape[2])
        elif settings.shrinkage == "oas":
            covariance = sklearn.covariance.OAS(assume_centered=True).fit(centred).covariance_
        else:
            covariance = sklearn.covariance.LedoitWolf(assume_centered=True).fit(centred).covariance_
        delta = Y[:, p] - X[:, p].mean(0)
        out[:, p] = np.sqrt(np.einsum("vd,vd->v", delta, np.linalg.solve(covariance, delta.T).T))
    return out


def fit(train: list[Rows], settings: GaussianSettings, channels: Mapping[str, int] = CHANNELS) -> VoxelGaussian:
    return fit_gaussian(train, LOOKUP, channels, settings, n_subjects=len(train))


@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize(("n", "ridge"), [(4, 0.01), (9, 1.0), (15, 0.01), (16, 0.01), (40, 0.01)])
def test_every_subset_of_both_forms_agrees_with_a_two_pass_float64_reference(form: str, n: int, ridge: float) -> None:
    settings = GaussianSettings(form=form, ridge=ridge)
    train, test = make_volumes(n), make_volumes(3, seed=1)
    distances = fit(train, settings).mahalanobis_subsets(test, SUBSETS, block_positions=5)
    for s, subset in enumerate(SUBSETS):
        expected = reference(train, test, subset, settings)
        np.testing.assert_allclose(distances[s], expected, rtol=2e-5)


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (100.0, 1.0, 1.0), (1.0, 100.0, 0.01)])
def test_few_fine_features_given_many_coarse_ones_are_as_exact_as_one_joint_system(scales, monkeypatch) -> None:
    channels = {"fine": 3, "one": 1, "middle": 5, "coarse": 20}
    lookup = {"fine": np.arange(32), "one": np.arange(32), "middle": np.arange(32) // 4, "coarse": np.arange(32) // 8}
    random = np.random.default_rng(8)
    sizes = dict(zip(channels, (scales[0], scales[0], scales[1], scales[2]), strict=True))

    def volume() -> Rows:
        shared = random.normal(size=(4, 1))
        return {
            x: torch.from_numpy(
                (sizes[x] * (shared[np.arange(lookup[x][-1] + 1) * 4 // (lookup[x][-1] + 1)]
                             + 0.3 * random.normal(size=(lookup[x][-1] + 1, c)))).astype(np.float32)
            )
            for x, c in channels.items()
        }  # fmt: skip

    train, test = [volume() for _ in range(15)], [volume() for _ in range(3)]
    subsets = [s for k in range(1, 5) for s in itertools.combinations(channels, k)]
    gaussian = fit_gaussian(train, lookup, channels, GaussianSettings(form="dual"), n_subjects=15)
    distances = gaussian.mahalanobis_subsets(test, subsets)
    monkeypatch.setattr("core.gaussian.distances._FEW", 0.0)
    joint_system = gaussian.mahalanobis_subsets(test, subsets)
    assert not np.array_equal(distances, joint_system), "the conditional path was not taken"
    np.testing.assert_allclose(distances, joint_system, rtol=5e-5)  # float32, the coarser of the two
    for s, subset in enumerate(subsets):
        tolerance = 1e-6 if set(subset) & {"fine", "one"} else 2e-5
        expected = reference(train, test, subset, GaussianSettings(), lookup)
        np.testing.assert_allclose(distances[s], expected, rtol=tolerance, err_msg=str(subset))


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_lookups_need_not_be_nested_nor_sorted(form: str) -> None:
    random = np.random.default_rng(5)
    lookup = {layer: random.permutation(index) for layer, index in LOOKUP.items()}
    train, test = make_volumes(6), make_volumes(2, seed=1)
    gaussian = fit_gaussian(train, lookup, CHANNELS, GaussianSettings(form=form), n_subjects=6)
    distances = gaussian.mahalanobis_subsets(test, SUBSETS, block_positions=5)
    for s, subset in enumerate(SUBSETS):
        expected = reference(train, test, subset, GaussianSettings(), lookup)
        np.testing.assert_allclose(distances[s], expected, rtol=2e-5)


@pytest.mark.parametrize(
    "settings",
    [
        GaussianSettings(form="dual"), GaussianSettings(form="primal"), GaussianSettings(covariance="diagonal"),
        GaussianSettings(covariance="shared"), GaussianSettings(shrinkage="oas", form="dual"),
        GaussianSettings(shrinkage="ledoit_wolf"),
    ],
)  # fmt: skip
def test_a_marginal_equals_a_fit_on_those_layers_alone(settings: GaussianSettings) -> None:
    train, test = make_volumes(10), make_volumes(1, seed=1)[0]
    layers = ("fine", "coarse")
    marginal = fit(train, settings).marginal(layers)
    alone = fit(train, settings, {layer: CHANNELS[layer] for layer in layers})
    assert marginal.layers == layers
    np.testing.assert_allclose(marginal.mahalanobis(test), alone.mahalanobis(test), rtol=1e-6)
    np.testing.assert_allclose(marginal.mahalanobis(test), fit(train, settings).mahalanobis(test, layers), rtol=1e-6)


@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", "oas"])
@pytest.mark.parametrize("n", [5, 12, 40])
def test_shrunk_distances_are_those_of_scikit_learn_for_any_subset(shrinkage: str, n: int) -> None:
    settings = GaussianSettings(shrinkage=shrinkage, form="dual")
    train, test = make_volumes(n), make_volumes(2, seed=1)
    distances = fit(train, settings).mahalanobis_subsets(test, SUBSETS)
    for s, subset in enumerate(SUBSETS):
        np.testing.assert_allclose(distances[s], reference(train, test, subset, settings), rtol=2e-5)


def test_shrinkage_intensities_from_traces_equal_scikit_learn_to_ten_digits() -> None:
    from core.gaussian.shrinkage import ledoit_wolf_intensity, oas_intensity

    random = np.random.default_rng(0)
    for n, d in [(5, 3), (8, 30), (40, 7), (6, 1)]:
        X = random.normal(size=(n, d)) @ random.normal(size=(d, d))
        X -= X.mean(0)
        gram = X @ X.T
        trace, squared, quartic = (
            torch.tensor(v) for v in (np.trace(gram), (gram**2).sum(), (np.diag(gram) ** 2).sum())
        )
        lw = sklearn.covariance.ledoit_wolf_shrinkage(X, assume_centered=True)
        assert float(ledoit_wolf_intensity(trace, squared, quartic, n, d)) == pytest.approx(lw, rel=1e-10, abs=1e-14)
        if d > 1:
            _, oas = sklearn.covariance.oas(X, assume_centered=True)
            assert float(oas_intensity(trace, squared, n, d)) == pytest.approx(oas, rel=1e-10)


def test_moments_with_oas_agree_with_scikit_learn() -> None:
    settings = GaussianSettings(shrinkage="oas", form="primal")
    train, test = make_volumes(20), make_volumes(2, seed=1)
    for subset in SUBSETS:
        got = fit(train, settings).mahalanobis_subsets(test, [subset])[0]
        np.testing.assert_allclose(got, reference(train, test, subset, settings), rtol=2e-5)


@pytest.mark.parametrize(("shrinkage", "n"), [("ridge", 5), ("ridge", 30), ("oas", 5), ("ledoit_wolf", 5)])
def test_leave_one_out_equals_refitting_without_each_subject(shrinkage: str, n: int) -> None:
    settings = GaussianSettings(shrinkage=shrinkage, form="dual")
    train = make_volumes(n)
    distances = fit(train, settings).leave_one_out(SUBSETS, block_positions=7)
    for s, subset in enumerate(SUBSETS):
        for i in range(n):
            others = train[:i] + train[i + 1 :]
            expected = reference(others, [train[i]], subset, settings)[0]
            np.testing.assert_allclose(distances[s, i], expected, rtol=5e-5)


def test_training_items_score_a_constant_while_held_out_ones_do_not() -> None:
    channels = {"fine": 60}
    train, test = make_volumes(16, channels=channels), make_volumes(4, seed=1, channels=channels)
    gaussian = fit(train, GaussianSettings(), channels)
    of_train = gaussian.mahalanobis_subsets(train, [("fine",)])
    np.testing.assert_allclose(of_train, 15 / np.sqrt(16), rtol=0.01)
    held_out = gaussian.mahalanobis_subsets(test, [("fine",)])
    assert held_out.min() > 10 * of_train.max()
    left_out = gaussian.leave_one_out([("fine",)])
    assert 0.8 < np.median(left_out) / np.median(held_out) < 1.25


def test_a_diagonal_covariance_is_a_z_score_per_feature() -> None:
    settings = GaussianSettings(covariance="diagonal", ridge=0.3)
    train, test = make_volumes(20), make_volumes(2, seed=1)
    distances = fit(train, settings).mahalanobis_subsets(test, SUBSETS)
    for s, subset in enumerate(SUBSETS):
        X, Y = joint(train, subset), joint(test, subset)
        expected = np.sqrt(((Y - X.mean(0)) ** 2 / (X.var(0, ddof=1) + 0.3)).sum(-1))
        np.testing.assert_allclose(distances[s], expected, rtol=1e-5)


def test_a_shared_covariance_pools_the_scatter_about_each_position_mean() -> None:
    settings = GaussianSettings(covariance="shared")
    train, test = make_volumes(20), make_volumes(2, seed=1)
    distances = fit(train, settings).mahalanobis_subsets(test, SUBSETS)
    for s, subset in enumerate(SUBSETS):
        X, Y = joint(train, subset), joint(test, subset)
        centred = (X - X.mean(0)).reshape(-1, X.shape[-1])
        covariance = centred.T @ centred / (POSITIONS * 19) + 0.01 * np.eye(X.shape[-1])
        delta = Y - X.mean(0)
        expected = np.sqrt(np.einsum("vpd,de,vpe->vp", delta, np.linalg.inv(covariance), delta))
        np.testing.assert_allclose(distances[s], expected, rtol=1e-5)


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_a_huge_mean_and_a_tiny_spread_lose_no_digits(form: str) -> None:
    settings = GaussianSettings(form=form, ridge=1e-5)
    train, test = make_volumes(40, mean=1e4, spread=1e-2), make_volumes(2, seed=1, mean=1e4, spread=1e-2)
    distances = fit(train, settings).mahalanobis_subsets(test, SUBSETS)
    for s, subset in enumerate(SUBSETS):
        np.testing.assert_allclose(distances[s], reference(train, test, subset, settings), rtol=2e-5)


def shards(form: str, parts: list[list[Rows]]) -> list[RunningGaussian]:
    running = [RunningGaussian(CHANNELS, LOOKUP, GaussianSettings(form=form), form) for _ in parts]  # type: ignore[arg-type]
    for one, part in zip(running, parts, strict=True):
        one.update(part)
    return running


def merged(form: str, parts: list[list[Rows]], order: list[int]) -> VoxelGaussian:
    running = shards(form, parts)
    total = running[order[0]]
    for i in order[1:]:
        total.merge(running[i])
    return total.finish()


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_merging_in_key_order_is_bit_identical_and_permuting_moves_only_the_last_digits(form: str) -> None:
    volumes = make_volumes(30)
    parts = [volumes[:7], volumes[7:18], volumes[18:]]
    first, again, permuted = (merged(form, parts, order) for order in ([0, 1, 2], [0, 1, 2], [2, 0, 1]))
    for key, value in first.state.items():
        assert torch.equal(value, again.state[key])
    for layer, mean in first.means.items():
        torch.testing.assert_close(mean, permuted.means[layer], rtol=1e-12, atol=0)
    if form == "primal":
        torch.testing.assert_close(first.state["all"], permuted.state["all"], rtol=1e-12, atol=1e-11)
    serial = fit(volumes, GaussianSettings(form=form))
    test = make_volumes(1, seed=1)[0]
    np.testing.assert_allclose(first.mahalanobis(test), serial.mahalanobis(test), rtol=1e-5)
    np.testing.assert_allclose(first.mahalanobis(test), permuted.mahalanobis(test), rtol=1e-5)


@pytest.mark.parametrize("settings", [GaussianSettings(covariance="diagonal"), GaussianSettings(covariance="shared")])
def test_simpler_covariances_merge_to_the_serial_result(settings: GaussianSettings) -> None:
    volumes, test = make_volumes(25), make_volumes(1, seed=1)[0]
    parts = [RunningGaussian(CHANNELS, LOOKUP, settings, "primal") for _ in range(2)]
    parts[0].update(volumes[:20])
    parts[1].update(volumes[20:])
    parts[0].merge(parts[1])
    np.testing.assert_allclose(parts[0].finish().mahalanobis(test), fit(volumes, settings).mahalanobis(test), rtol=1e-6)


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_a_partial_fit_is_resumed_from_disk_to_the_same_bits(form: str, tmp_path) -> None:
    first, second = shards(form, [make_volumes(18), make_volumes(5, seed=2)])
    first.save(tmp_path)
    resumed = RunningGaussian.load(tmp_path)
    assert resumed.n == 18
    resumed.merge(second)
    first.merge(shards(form, [make_volumes(5, seed=2)])[0])
    test = make_volumes(1, seed=1)[0]
    assert torch.equal(resumed.finish().mahalanobis(test), first.finish().mahalanobis(test))


@pytest.mark.parametrize(
    "settings",
    [GaussianSettings(form="dual"), GaussianSettings(form="primal"), GaussianSettings(covariance="diagonal")],
)
def test_what_is_saved_comes_back_identical_and_without_pickle(settings: GaussianSettings, tmp_path) -> None:
    gaussian = fit(make_volumes(9), settings)
    gaussian.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gaussian.json", "gaussian.safetensors"]
    loaded = VoxelGaussian.load(tmp_path)
    test = make_volumes(1, seed=1)[0]
    assert torch.equal(loaded.mahalanobis(test), gaussian.mahalanobis(test))
    assert (loaded.layers, loaded.settings, loaded.form, loaded.n_subjects, loaded.n_bytes) == (
        gaussian.layers, gaussian.settings, gaussian.form, gaussian.n_subjects, gaussian.n_bytes,
    )  # fmt: skip


def test_a_damaged_file_is_an_integrity_error(tmp_path) -> None:
    fit(make_volumes(4), GaussianSettings()).save(tmp_path)
    (tmp_path / "gaussian.safetensors").write_bytes(b"nothing")
    with pytest.raises(IntegrityError, match="Fit it again"):
        VoxelGaussian.load(tmp_path)
    described = json.loads((tmp_path / "gaussian.json").read_text())
    assert described["n_subjects"] == 4


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_fitting_and_scoring_leave_the_given_features_unchanged(form: str) -> None:
    train = make_volumes(20)
    before = [{layer: values.clone() for layer, values in rows.items()} for rows in train]
    gaussian = fit(train, GaussianSettings(form=form))
    first = gaussian.mahalanobis_subsets(train[:2], SUBSETS)
    if form == "dual":
        gaussian.leave_one_out(SUBSETS)
    assert np.array_equal(first, gaussian.mahalanobis_subsets(train[:2], SUBSETS))
    assert all(torch.equal(a[x], b[x]) for a, b in zip(train, before, strict=True) for x in CHANNELS)


def test_threads_and_block_sizes_do_not_change_the_distances() -> None:
    gaussian, test = fit(make_volumes(6), GaussianSettings()), make_volumes(2, seed=1)
    threads = torch.get_num_threads()
    try:
        results = []
        for torch_threads in (1, 2):
            torch.set_num_threads(torch_threads)
            results.append(gaussian.mahalanobis_subsets(test, SUBSETS, block_positions=4))
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(*results)
    np.testing.assert_allclose(gaussian.mahalanobis_subsets(test, SUBSETS), results[0], rtol=1e-5)


def test_stopping_from_the_monitor_ends_the_scoring() -> None:
    def stop(step: int, values: Mapping[str, float]) -> None:
        raise Interrupted(f"stopped at {step}")

    with pytest.raises(Interrupted, match="stopped at 4"):
        fit(make_volumes(6), GaussianSettings()).mahalanobis_subsets(
            make_volumes(1), SUBSETS, block_positions=4, monitor=stop
        )


def test_a_constant_feature_is_solved_by_the_ridge() -> None:
    train = make_volumes(8)
    for rows in train:
        rows["fine"][:] = 1.0
    test = make_volumes(1, seed=1)[0]
    expected = (test["fine"] - 1).norm(dim=-1) / 0.1
    torch.testing.assert_close(fit(train, GaussianSettings()).mahalanobis(test, ["fine"]), expected, rtol=1e-5, atol=0)
    for shrinkage in ("oas", "ledoit_wolf"):
        shrunk = fit(train, GaussianSettings(shrinkage=shrinkage)).mahalanobis_subsets([test], SUBSETS)
        assert np.isfinite(shrunk).all()


def test_a_ridge_too_small_for_the_features_is_named_instead_of_returning_nan() -> None:
    train = make_volumes(20)
    for rows in train:
        rows["middle"][:, 1:] = 1e4 * rows["middle"][:, :1]
    with pytest.raises(BadInput, match="Raise `ridge`"):
        fit(train, GaussianSettings(ridge=1e-12, form="primal")).mahalanobis(make_volumes(1, seed=1)[0], ["middle"])


def test_squared_distances_that_rounding_makes_negative_become_zero_and_are_counted() -> None:
    # All on one line: the true m² is 1/2, a difference of numbers near 1e18, so rounding decides its sign.
    first = {"coarse": torch.arange(1, 4)[:, None] * 1024.0 * torch.ones(3, 8)}
    train = [first, {"coarse": torch.zeros(3, 8)}]
    tests = [{"coarse": rows} for rows in (first["coarse"] * k for k in range(2, 42))]
    gaussian = fit(train, GaussianSettings(ridge=1e-12, form="dual"), {"coarse": 8})
    distances = gaussian.mahalanobis_subsets(tests, [("coarse",)])
    assert np.isfinite(distances).all()
    assert 0 < gaussian.clamped <= int((distances == 0).sum()) / 4
    calm = fit(make_volumes(6), GaussianSettings())
    calm.mahalanobis_subsets(make_volumes(2, seed=1), SUBSETS)
    assert calm.clamped == 0


def test_the_count_of_clamped_distances_is_that_of_the_solver(monkeypatch) -> None:
    gaussian = fit(make_volumes(6), GaussianSettings(form="dual"), {"coarse": 8})
    minus = torch.tensor([[1.0, -1.0], [-4.0, 9.0], [-1.0, -1e-9]])
    monkeypatch.setattr("core.gaussian.dual.squared_distance_from_gram", lambda *_: minus.clone())
    distances = gaussian.mahalanobis_subsets(make_volumes(2, seed=1), [("coarse",)])
    assert gaussian.clamped == 4
    assert sorted(set(distances.ravel().tolist())) == [0.0, 1.0, 3.0]
    gaussian.mahalanobis_subsets(make_volumes(2, seed=1), [("coarse",)])
    assert gaussian.clamped == 8


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_volumes_of_another_layout_are_refused(form: str) -> None:
    longer = [{x: torch.cat([values, values]) for x, values in rows.items()} for rows in make_volumes(6)]
    with pytest.raises(BadInput, match="Extract them with the layout of the fit"):
        fit([*make_volumes(18), longer[0]], GaussianSettings(form=form))
    with pytest.raises(BadInput, match="12 native positions"):
        fit(make_volumes(6), GaussianSettings(form=form)).mahalanobis(longer[0])
    first, second = shards(form, [make_volumes(18), longer])
    with pytest.raises(BadInput, match="one layout"):
        first.merge(second)
    assert (first.n, second.n) == (18, 6)


def test_one_volume_has_no_variance() -> None:
    with pytest.raises(BadInput, match="no variance"):
        fit(make_volumes(1), GaussianSettings())
    running = RunningGaussian(CHANNELS, LOOKUP, GaussianSettings(), "dual")
    running.update(make_volumes(1))
    with pytest.raises(BadInput, match="no variance"):
        running.finish()


def test_what_cannot_be_used_is_refused_with_a_remedy() -> None:
    gaussian = fit(make_volumes(6), GaussianSettings())
    test = make_volumes(1, seed=1)[0]
    with pytest.raises(BadInput, match="fine, middle, coarse"):
        gaussian.mahalanobis(test, ["layer5"])
    with pytest.raises(BadInput, match="lacks the layers"):
        gaussian.mahalanobis({"fine": test["fine"]})
    with pytest.raises(BadInput, match="not finite"):
        gaussian.mahalanobis(test | {"fine": torch.full_like(test["fine"], torch.nan)})
    with pytest.raises(BadInput, match="have shape"):
        gaussian.mahalanobis(test | {"fine": test["fine"][:3]})
    with pytest.raises(BadInput, match="Fit with form 'dual'"):
        fit(make_volumes(6), GaussianSettings(form="primal")).leave_one_out(SUBSETS)
    with pytest.raises(BadInput, match="Allowed is 'ridge'"):
        GaussianSettings(covariance="shared", shrinkage="oas")
    with pytest.raises(BadInput, match="positive"):
        GaussianSettings(ridge=0.0)
    with pytest.raises(BadInput, match="announced"):
        fit_gaussian(make_volumes(6), LOOKUP, CHANNELS, GaussianSettings(), n_subjects=7)


def test_the_memory_plan_chooses_the_smaller_exact_form_and_refuses_what_does_not_fit() -> None:
    channels = {"layer1": 64, "layer2": 128, "layer3": 256}
    n_positions = {"layer1": 29_000, "layer2": 3_600, "layer3": 450}

    def plan(n: int, limit: float = 1e15, settings: GaussianSettings | None = None):
        return plan_memory(n, channels, n_positions, 29_000, settings or GaussianSettings(), limit)

    assert plan(100).form == "dual"
    assert plan(1000).form == "primal"
    assert plan(300).form == "dual"
    assert plan(1000, limit=2e10).form == "dual"
    features = 64 * 29_000 + 128 * 3_600 + 256 * 450
    assert plan(100).stored_bytes == 4 * 99 * features + 8 * features + 3 * 8 * 29_000
    assert "100 subjects" in plan(100).text
    with pytest.raises(EnvironmentProblem, match=r"Allowed are 0\.50 GB"):
        plan(100, limit=5e8)
    assert plan(100, limit=5e8, settings=GaussianSettings(covariance="diagonal")).stored_bytes < 1e8


def test_the_plan_knows_what_is_stored() -> None:
    n_positions = {layer: int(index.max()) + 1 for layer, index in LOOKUP.items()}
    for settings in (
        GaussianSettings(form="dual"),
        GaussianSettings(form="primal"),
        GaussianSettings(covariance="shared"),
    ):
        plan = plan_memory(9, CHANNELS, n_positions, POSITIONS, settings, 1e9)
        assert fit(make_volumes(9), settings).n_bytes == plan.stored_bytes


def test_new_healthy_subjects_score_above_the_dimension_by_the_expected_inflation() -> None:
    n, d, trials = 20, 6, 4000
    random = np.random.default_rng(3)
    X, y = random.normal(size=(trials, n, d)), random.normal(size=(trials, d))
    centred = X - X.mean(1, keepdims=True)
    covariance = np.einsum("tni,tnj->tij", centred, centred) / (n - 1)
    delta = y - X.mean(1)
    squared = np.einsum("ti,ti->t", delta, np.linalg.solve(covariance, delta[..., None])[..., 0])
    assert squared.mean() / d == pytest.approx(expected_inflation(n, d), rel=0.06)
    assert expected_inflation(8, 6) == float("inf")
    assert expected_inflation(10**9, 6) == pytest.approx(1)


def test_helmert_rows_are_orthonormal_and_orthogonal_to_the_constant() -> None:
    H = helmert(7)
    torch.testing.assert_close(H @ H.T, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(H.sum(1), torch.zeros(6, dtype=torch.float64), atol=1e-14, rtol=0)

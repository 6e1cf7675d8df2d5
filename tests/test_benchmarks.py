"""The benchmarks run, say what they promise, and both sides agree. Times are never looked at."""

import json
import subprocess
import sys

import pytest

NAMES = {
    "subset_scoring_vs_refit", "fit_vs_explicit_inverse_d128", "fit_vs_explicit_inverse_d448",
    "fit_vs_explicit_inverse", "fit_peak_memory", "threshold_curves_vs_sklearn", "all_metrics_exact_vs_sklearn",
    "subject_toggle_ms", "upsample_blur_vs_scipy", "layer_change_unseen", "layer_change_seen",
    "error_map_vs_plain", "ceilings_vs_plain", "post_processing_vs_naive", "coreset_vs_plain_greedy",
    "bank_search_all_sets", "bank_search_memory", "bank_within_radius", "bank_index_recall",
    "check_vs_plain_nibabel",
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("bench") / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--output", str(path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(path.read_text())
    found["printed"] = printed
    return found


def test_every_named_benchmark_gives_a_ratio_and_a_line(results) -> None:
    assert set(results) == NAMES | {"machine", "date", "quick", "printed"}
    assert all(results[name]["ratio"] > 0 for name in NAMES)
    lines = {line.split()[0] for line in results["printed"].splitlines()}
    assert lines == NAMES - {"fit_vs_explicit_inverse"}
    assert results["fit_vs_explicit_inverse"]["ratio"] == results["fit_vs_explicit_inverse_d448"]["ratio"]
    assert results["fit_peak_memory"].keys() >= {"d128", "d448"}
    assert results["quick"] is True
    assert results["machine"]["cpu"]
    assert set(results["machine"]["versions"]) == {"python", "torch", "numpy", "scipy", "scikit-learn"}


def test_ours_and_the_reference_agree_in_every_benchmark(results) -> None:
    assert results["subset_scoring_vs_refit"]["max_rel_difference"] < 5e-5
    assert results["fit_vs_explicit_inverse_d128"]["max_rel_difference"] < 5e-5
    assert results["fit_vs_explicit_inverse_d448"]["max_rel_difference"] < 5e-5
    assert results["threshold_curves_vs_sklearn"]["largest_error_at_edges"] < 1e-12
    assert 0 <= results["threshold_curves_vs_sklearn"]["best_dice_below_optimum"] < 5e-3
    for difference in ("auprc_difference", "auroc_difference", "best_dice_difference"):
        assert results["all_metrics_exact_vs_sklearn"][difference] < 1e-10
    assert results["subject_toggle_ms"]["largest_difference"] < 1e-12
    assert results["upsample_blur_vs_scipy"]["largest_relative_difference"] < 1e-5
    assert results["layer_change_unseen"]["max_rel_difference"] < 5e-5
    for name in ("layer_change_unseen", "layer_change_seen"):
        assert results[name]["dice_difference"] < 5e-3
    assert results["error_map_vs_plain"]["voxels_labelled_otherwise"] == 0
    assert results["error_map_vs_plain"]["largest_cost_difference"] < 1e-12
    assert results["ceilings_vs_plain"]["largest_difference"] < 1e-12
    assert results["post_processing_vs_naive"]["disagreements"] == 0
    assert results["coreset_vs_plain_greedy"]["rel_radius_difference"] < 0.02
    assert results["coreset_vs_plain_greedy"]["picks_in_common"] == results["coreset_vs_plain_greedy"]["keep"]
    assert results["bank_search_all_sets"]["recall"] == 1.0
    assert results["bank_search_all_sets"]["largest_error"] < 1e-5
    assert results["bank_within_radius"]["largest_difference"] < 1e-5
    assert results["check_vs_plain_nibabel"]["subjects_read_by_one_side_only"] == 0
    assert results["check_vs_plain_nibabel"]["largest_difference_ml"] < 1e-3
    assert all(index["lowest_error"] > -1e-5 for index in results["bank_index_recall"]["indices"].values())


def test_one_benchmark_alone_keeps_the_other_results(tmp_path) -> None:
    from benchmarks.__main__ import main

    path = tmp_path / "results.json"
    path.write_text('{"fit_peak_memory": {"ratio": 1.0}}')
    assert main(["--quick", "--only", "subject_toggle_ms", "--output", str(path)]) == 0
    assert {"fit_peak_memory", "subject_toggle_ms", "machine", "date"} <= set(json.loads(path.read_text()))

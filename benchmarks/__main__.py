"""Every speed claim, measured here and now against what it replaces: python -m benchmarks [--quick] [--only NAME].

Results go to benchmarks/results.json with the machine they were measured on. Times are CPU seconds of one thread, both
sides in turn in one process; memory is the peak above the data, each side in a process of its own.
"""

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import sklearn
import torch

from benchmarks import (
    bench_bank,
    bench_ceiling,
    bench_check,
    bench_coreset,
    bench_error_map,
    bench_gaussian,
    bench_layers,
    bench_metrics,
    bench_postprocessing,
)
from benchmarks.clock import one_thread

Result = dict[str, Any]
RESULTS = Path(__file__).with_name("results.json")

FULL: dict[str, Callable[[], Result]] = {
    "subset_scoring_vs_refit": bench_gaussian.subset_scoring_vs_refit,
    "fit_vs_explicit_inverse_d128": lambda: bench_gaussian.fit_vs_explicit_inverse(128),
    "fit_vs_explicit_inverse_d448": lambda: bench_gaussian.fit_vs_explicit_inverse(448),
    "fit_peak_memory": lambda: _two_sizes(
        bench_gaussian.fit_peak_memory(128, 4096), bench_gaussian.fit_peak_memory(448, 1024)
    ),
    "threshold_curves_vs_sklearn": bench_metrics.threshold_curves_vs_sklearn,
    "all_metrics_exact_vs_sklearn": bench_metrics.all_metrics_exact_vs_sklearn,
    "subject_toggle_ms": bench_metrics.subject_toggle_ms,
    "upsample_blur_vs_scipy": bench_metrics.upsample_blur_vs_scipy,
    "layer_change_unseen": lambda: bench_layers.layer_change_unseen(bench_layers.layers_case()),
    "layer_change_seen": lambda: bench_layers.layer_change_seen(bench_layers.layers_case()),
    "error_map_vs_plain": bench_error_map.error_map_vs_plain,
    "ceilings_vs_plain": bench_ceiling.ceilings_vs_plain,
    "post_processing_vs_naive": bench_postprocessing.post_processing_vs_naive,
    "coreset_vs_plain_greedy": bench_coreset.coreset_vs_plain_greedy,
    "bank_search_all_sets": bench_bank.bank_search_all_sets,
    "bank_search_memory": bench_bank.bank_search_memory,
    "bank_within_radius": bench_bank.bank_within_radius,
    "bank_index_recall": bench_bank.bank_index_recall,
    "check_vs_plain_nibabel": bench_check.check_vs_plain_nibabel,
}

FEW = ("input", "stage0", "stage2")

QUICK: dict[str, Callable[[], Result]] = {
    "subset_scoring_vs_refit": lambda: bench_gaussian.subset_scoring_vs_refit(repeats=1, side=8),
    "fit_vs_explicit_inverse_d128": lambda: bench_gaussian.fit_vs_explicit_inverse(128, positions=32, repeats=1),
    "fit_vs_explicit_inverse_d448": lambda: bench_gaussian.fit_vs_explicit_inverse(448, positions=8, repeats=1),
    "fit_peak_memory": lambda: _two_sizes(*[bench_gaussian.fit_peak_memory(448, 32)] * 2),
    "threshold_curves_vs_sklearn": lambda: bench_metrics.threshold_curves_vs_sklearn(200_000),
    "all_metrics_exact_vs_sklearn": lambda: bench_metrics.all_metrics_exact_vs_sklearn(200_000),
    "subject_toggle_ms": lambda: bench_metrics.subject_toggle_ms(4, 20_000, 3),
    "upsample_blur_vs_scipy": lambda: bench_metrics.upsample_blur_vs_scipy(rounds=1),
    "layer_change_unseen": lambda: bench_layers.layer_change_unseen(bench_layers.layers_case(8.0, 12, 2), 1, FEW),
    "layer_change_seen": lambda: bench_layers.layer_change_seen(bench_layers.layers_case(8.0, 12, 2), 1, FEW),
    "error_map_vs_plain": lambda: bench_error_map.error_map_vs_plain(4, 1, spacing_mm=4.0, distinct=2),
    "ceilings_vs_plain": lambda: bench_ceiling.ceilings_vs_plain(3, (40, 48, 40), 2, 1),
    "post_processing_vs_naive": lambda: bench_postprocessing.post_processing_vs_naive(8.0, 1),
    "coreset_vs_plain_greedy": lambda: bench_coreset.coreset_vs_plain_greedy(4000, 200, 1, 1),
    "bank_search_all_sets": lambda: bench_bank.bank_search_all_sets((24, 28, 24), 3, 0.1, 1),
    "bank_search_memory": lambda: bench_bank.bank_search_memory(2000, 500, 32),
    "bank_within_radius": lambda: bench_bank.bank_within_radius((24, 28, 24), 3, 0.1),
    "bank_index_recall": lambda: bench_bank.bank_index_recall((24, 28, 24), 3, 0.5, (4,)),
    "check_vs_plain_nibabel": lambda: bench_check.check_vs_plain_nibabel(12, 24, 1),
}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmarks and print a line for each; `--only` replaces one entry of the results that are there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run and agree, not how fast")
    parser.add_argument("--only", choices=FULL, help="this one")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes")
    arguments = parser.parse_args(argv)
    chosen = QUICK if arguments.quick else FULL
    results: Result = {}
    if arguments.only:
        chosen = {arguments.only: chosen[arguments.only]}
        results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    with one_thread():
        for name, measure in chosen.items():
            results[name] = measure()
            print(_line(name, results[name]), flush=True)
            _keep(results, arguments.output, arguments.quick)
    return 0


def _keep(results: Result, path: Path, quick: bool) -> None:
    fits = [results.get(f"fit_vs_explicit_inverse_d{d}") for d in (128, 448)]
    if all(fits):
        results["fit_vs_explicit_inverse"] = _two_sizes(*fits)
    results |= {"machine": _machine(), "date": datetime.date.today().isoformat(), "quick": quick}
    path.write_text(json.dumps(results, indent=1) + "\n")


def _two_sizes(d128: Result, d448: Result) -> Result:
    return {"ratio": d448["ratio"], "d128": d128["ratio"], "d448": d448["ratio"], "sizes": {"128": d128, "448": d448}}


def _line(name: str, result: Result) -> str:
    shown = {key: value for key, value in result.items() if isinstance(value, int | float)}
    return f"{name:30s} " + "  ".join(f"{key} {value:.4g}" for key, value in shown.items())


def _machine() -> Result:
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    versions |= {"scipy": scipy.__version__, "scikit-learn": sklearn.__version__}
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads_used": 1,
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "versions": versions,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    sys.exit(main())

"""Where a trained encoder gains and loses against |z|: small lesions and large ones apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.metrics.bootstrap import Interval, paired_difference
from core.runs.evaluated import read_metrics
from core.runs.listing import open_run
from core.study.pretraining_comparison import ComparisonPlan

Rows = Mapping[str, Mapping[str, float]]


def size_section(runs: Path, plan: ComparisonPlan, pairs: Sequence[tuple[str, str]]) -> str:
    """Markdown: mean Dice at the validation threshold of each half of the test subjects, by lesion volume."""
    zscore = _rows(runs, f"cmp-{plan.name}-zscore")
    titles = {"voxel-wise \\|z\\|": [f"cmp-{plan.name}-zscore"]}
    titles["untrained"] = [f"cmp-{plan.name}-untrained-s{seed}" for seed in plan.seeds]
    for variant, views in pairs:
        titles[f"{variant}, views {views}"] = [f"cmp-{plan.name}-{variant}-{views}-s{seed}" for seed in plan.seeds]
    middle = float(np.median([row["lesion_ml"] for row in zscore.values()]))
    halves = [
        (f"up to {middle:.1f} mL", [i for i, row in zscore.items() if row["lesion_ml"] <= middle]),
        (f"above {middle:.1f} mL", [i for i, row in zscore.items() if row["lesion_ml"] > middle]),
    ]
    header = ["encoder", *(f"{name} (n = {len(ids)}): Dice{extra}" for name, ids in halves for extra in ("", " − |z|"))]
    lines = ["| " + " | ".join(t.replace("|z|", "\\|z\\|") for t in header) + " |", "|---" + "|--:" * 4 + "|"]
    for title, run_ids in titles.items():
        found = [_rows(runs, run_id) for run_id in run_ids]
        cells = []
        for _, ids in halves:
            own = np.mean([[rows[i]["dice"] for i in ids] for rows in found], axis=0)
            cells.append(f"{own.mean():.3f}")
            gain = paired_difference(own, [zscore[i]["dice"] for i in ids], seed=0)
            cells.append("" if title.startswith("voxel") else _text(gain))
        lines.append("| " + " | ".join([title, *cells]) + " |")
    return (
        "## Small lesions and large ones\n\nMean Dice at the validation threshold, headline layers, mean over seeds, "
        "for the smaller and the larger half of the test lesions; differences paired over subjects, 95 % bootstrap.\n\n"
        + "\n".join(lines)
    )


def _rows(runs: Path, run_id: str) -> Rows:
    metrics: dict[str, Any] = read_metrics(open_run(runs, run_id))
    native = metrics["sets"][metrics["headline"]]["native"]
    return {row["subject_id"]: row for row in native["protocols"]["validation"]["subjects"]}


def _text(gain: Interval) -> str:
    if gain.mean is None or gain.low is None or gain.high is None:
        return ""
    text = f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]".replace("-", "−")
    return f"**{text}**" if gain.low > 0 or gain.high < 0 else text

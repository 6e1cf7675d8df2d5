"""The encoders of a comparison on real lesions: another test set behind the same training and validation heads."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.detectors import make
from core.detectors.feature_gaussian import FeatureGaussian
from core.progress import Progress
from core.runs.evaluated import read_metrics
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.study import evaluation, fitting, scoring
from core.study.data_source import DataSource
from core.study.pretraining_comparison import ComparisonPlan
from core.types import Detector
from data.files import is_committed

PROTOCOLS = ("healthy", "validation", "oracle_subject")


def real_cases(
    runs: Path, source: DataSource, plan: ComparisonPlan, pairs: Sequence[tuple[str, str]], progress: Progress
) -> dict[str, Run]:
    """One judged run per way of training and seed, of the untrained encoders, and of |z|, by title."""
    gaussian = FeatureGaussian(encoder=plan.simclr.encoder, features=plan.features, memory_gb=plan.memory_gb)
    found = {"voxel-wise |z|": _judged(runs, source, make("zscore"), f"cmp-{plan.name}-real-zscore", None, progress)}
    for seed in plan.seeds:
        untrained = FeatureGaussian(
            encoder=plan.settings("in-batch", "strong", seed).encoder, features=plan.features, memory_gb=plan.memory_gb
        )
        run_id = f"cmp-{plan.name}-real-untrained-s{seed}"
        found[f"untrained, seed {seed}"] = _judged(runs, source, untrained, run_id, None, progress)
        for variant, views in pairs:
            encoder = open_run(runs, f"cmp-{plan.name}-{variant}-{views}-s{seed}-encoder")
            run_id = f"cmp-{plan.name}-real-{variant}-{views}-s{seed}"
            found[f"{variant}, views {views}, seed {seed}"] = _judged(runs, source, gaussian, run_id, encoder, progress)
    return found


def real_section(found: Mapping[str, Run]) -> str:
    """Markdown: Dice of every real case under each run."""
    tables = {title: _headline(run) for title, run in found.items()}
    cases = list(next(iter(tables.values()))["protocols"]["healthy"]["subjects"])
    titles = ["encoder", *(f"{row['subject_id']} ({row['lesion_ml']:.1f} mL)" for row in cases), "mean"]
    lines = ["| " + " | ".join(titles) + " |", "|---" + "|--:" * (len(titles) - 1) + "|"]
    for title, figures in tables.items():
        own = {p: {r["subject_id"]: r["dice"] for r in figures["protocols"][p]["subjects"]} for p in PROTOCOLS}
        cells = [" / ".join(f"{own[p][row['subject_id']]:.3f}" for p in PROTOCOLS) for row in cases]
        mean = " / ".join(f"{sum(own[p].values()) / len(own[p]):.3f}" for p in PROTOCOLS)
        lines.append("| " + " | ".join([title.replace("|", "\\|"), *cells, mean]) + " |")
    return (
        "## On real lesions\n\n"
        f"The same encoders and heads, judged on {len(cases)} real cases of other sites (multiple sclerosis, glioma, "
        "white-matter hyperintensities; T1 only). Planted lesions, which set the validation threshold and which local "
        "changes resemble, do not take part. Dice at the healthy threshold / at the validation threshold / at the best "
        f"threshold of each case (an oracle). {len(cases)} cases decide nothing; they show whether a gain is one of "
        "planted lesions only.\n\n" + "\n".join(lines)
    )


def _judged(
    runs: Path, source: DataSource, detector: Detector, run_id: str, encoder: Run | None, progress: Progress
) -> Run:
    run = fitting.fit(runs, source, detector, progress, name=run_id, run_id=run_id, encoder_run=encoder)
    if not is_committed(run.directory / "evaluation"):
        run = scoring.score(run, progress)
        evaluation.evaluate_run(run, progress)
    return open_run(runs, run_id)


def _headline(run: Run) -> dict[str, Any]:
    metrics = read_metrics(run)
    native: dict[str, Any] = metrics["sets"][metrics["headline"]]["native"]
    return native

"""What-ifs that fit again at fixed features: another covariance, fewer training scans, scans of the nearest age."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from core.detectors.capabilities import Covariance, can, refit
from core.diagnosis.what_if.bench import Bench, Outcome, check_reproduced, variant_of
from core.diagnosis.what_if.paired import PROTOCOLS
from core.diagnosis.what_if.scored_again import nested_subset
from core.memory_plan import GaussianSettings
from core.study.stored_scores import RunScores
from data.errors import EnvironmentProblem


def covariance(bench: Bench) -> Outcome:
    """The Gaussian with its covariance estimated otherwise, same features: R8."""
    detector = bench.detector
    assert can(detector, Covariance)
    own = detector.gaussian
    notes: list[str] = []
    choices: dict[str, tuple[str, Covariance]] = {}
    for name, title, settings in _covariances(own):
        if (settings.covariance, settings.shrinkage, settings.ridge) == (own.covariance, own.shrinkage, own.ridge):
            continue
        changed = detector.reestimated(settings)
        if changed is None:
            try:
                with bench.progress.task(f"Fitting again: {title}"):
                    changed = detector.refitted_by(bench.training(), settings)
            except EnvironmentProblem as problem:
                notes.append(f"Left out, {title}: {problem}")
                continue
        choices[name] = (title, changed)
    scored = bench.from_volumes("Scoring by each covariance", [detector, *(d for _, d in choices.values())])
    check_reproduced(bench.run, bench.stored, scored[0])
    variants = []
    for (name, (title, changed)), after in zip(choices.items(), scored[1:], strict=True):
        used = changed.used_settings()
        described = {"covariance": used.covariance, "shrinkage": used.shrinkage, "ridge": used.ridge}
        variants.append(variant_of(name, title, described, bench.pair(scored[0], after), deployable=True))
    return Outcome(variants, notes)


def fewer_scans(bench: Bench) -> Outcome:
    """The learning curve: fits to nested halves and quarters of the training scans, same features: R8."""
    count = len(bench.scores.subjects("train"))
    seed = int(bench.run.record["seed"])
    before, variants = bench.again, []
    for parts in (2, 4):
        chosen = nested_subset(count, parts, seed)
        if len(chosen) < 2:
            continue
        with bench.progress.task(f"Fitting to {len(chosen)} of {count} scans"):
            smaller = refit(bench.detector, bench.training(chosen))
        after = bench.from_volumes(f"Scoring with {len(chosen)} training scans", [smaller])[0]
        settings = {"training_scans": len(chosen), "of": count, "parts": parts, "seed": seed}
        title = f"{len(chosen)} of {count} training scans"
        variants.append(variant_of(f"n-over-{parts}", title, settings, bench.pair(before, after)))
    return Outcome(variants, _curve_notes(variants, count))


def nearest_age(bench: Bench) -> Outcome:
    """Each third of the training ages judged by the half of the training scans nearest to its median: R12.

    Halving costs by itself, so a random half of the same size stands beside it.
    """
    ages = ages_of(bench.scores)
    training = bench.scores.subjects("train")
    half = len(training) // 2
    borders = np.quantile([ages[i] for i in training], [1 / 3, 2 / 3])
    groups = [[i for i in training if int(np.searchsorted(borders, ages[i])) == g] for g in range(3)]
    detectors = []
    for number, group in enumerate(g for g in groups if g):
        middle = float(np.median([ages[i] for i in group]))
        order = sorted(range(len(training)), key=lambda n: (abs(ages[training[n]] - middle), n))
        with bench.progress.task(f"Fitting to the {half} scans nearest to age {middle:.0f}"):
            detectors.append((number, middle, refit(bench.detector, bench.training(sorted(order[:half])))))
    with bench.progress.task(f"Fitting to {half} scans of any age"):
        drawn = refit(bench.detector, bench.training(nested_subset(len(training), 2, int(bench.run.record["seed"]))))
    *sides, anyone = bench.from_volumes("Scoring by age", [*(d for _, _, d in detectors), drawn])
    middles = np.array([middle for _, middle, _ in detectors])
    matched = {
        role: [sides[int(np.abs(middles - ages[s.subject_id]).argmin())][role][n] for n, s in enumerate(subjects)]
        for role, subjects in bench.again.items()
    }
    settings = {"training_scans": half, "of": len(training), "ages": middles.tolist()}
    title = f"{half} training scans of the nearest age"
    random = f"{half} training scans of any age"
    return Outcome(
        [
            variant_of("nearest", title, settings, bench.pair(bench.again, matched), deployable=True),
            variant_of("any", random, {"training_scans": half}, bench.pair(bench.again, anyone)),
        ],
        ["Halving the training scans costs by itself: compare the nearest ages with the same number of any age."],
    )


def ages_of(scores: RunScores) -> dict[str, float]:
    """Ages of the run's subjects, years; those that the cohort does not know are left out."""
    return {
        s["subject_id"]: float(s["age"]) for s in scores.run.record["cohort"]["subjects"] if s.get("age") is not None
    }


def _covariances(own: GaussianSettings) -> list[tuple[str, str, GaussianSettings]]:
    ridge = own.ridge
    return [
        ("full-ridge", f"full covariance, ridge {ridge:g}", GaussianSettings(ridge=ridge)),
        ("diagonal", "no correlations between features", GaussianSettings(covariance="diagonal", ridge=ridge)),
        ("ledoit-wolf", "Ledoit-Wolf shrinkage", GaussianSettings(shrinkage="ledoit_wolf", ridge=ridge)),
        ("oas", "OAS shrinkage (Chen et al. 2010)", GaussianSettings(shrinkage="oas", ridge=ridge)),
        ("ridge-x10", f"ridge {10 * ridge:g} in the place of {ridge:g}", replace(own, ridge=10 * ridge)),
    ]


def _curve_notes(variants: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    notes = []
    for protocol in PROTOCOLS:
        blocks = [v["test"][protocol] for v in reversed(variants)]
        if not blocks or any(b is None or b["variant"] is None for b in blocks):
            continue
        sizes = [*(v["settings"]["training_scans"] for v in reversed(variants)), count]
        dice = [*(b["variant"] for b in blocks), blocks[0]["baseline"]]
        line = ", ".join(f"{n} scans {value:.3f}" for n, value in zip(sizes, dice, strict=True))
        notes.append(f"Learning curve on test, threshold by {protocol}: {line}.")
    return notes

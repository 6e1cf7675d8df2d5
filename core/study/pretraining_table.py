"""Pretrained encoders side by side: what they reached in training beside what a detector on them finds.

Every number is read from evaluated runs in the scans' own space. Each sentence is computed from the numbers: the
variant is chosen on validation labels and quoted on test, and whether a low loss says anything about localisation is
a rank correlation over the runs, not an opinion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from core.metrics.protocols import judged
from core.metrics.two_level import Figure, Resamples, number_text, over_seeds, paired_over_seeds
from core.runs.evaluated import read_metrics
from core.runs.run_record import Run
from core.study.pooled_counts import pooled_counts
from core.study.pretraining_statistics import CORRELATION_CAVEAT, contrastive_end, judge_pretraining, spearman
from core.study.stored_scores import set_id
from core.study.visibility import stored_visibility
from data.errors import BadInput

FIGURES = ("healthy", "validation", "oracle_set", "ceil_dice", "auprc")
FIGURE_TITLES = {
    "healthy": "Dice, healthy threshold",
    "validation": "Dice, validation threshold",
    "oracle_set": "Dice, oracle threshold (test labels)",
    "ceil_dice": "⌈Dice⌉, pooled oracle",
    "auprc": "AUPRC, pooled (no threshold)",
}
CHOICES = ("headline", "all")
CHOICE_TITLES = {"headline": "layer set chosen on validation, run by run", "all": "all layers"}
TRAINING_KEYS = ("loss_share", "top1")


@dataclass(frozen=True)
class Entry:
    """One row of the table: the finished runs of one way of training, or of one control, by training seed."""

    key: str
    title: str
    detectors: Mapping[int, Run]
    """By seed; a control without seed has the key -1."""
    encoders: Mapping[int, Run] = field(default_factory=dict)
    """Empty for controls."""
    variant: str = ""
    views: str = ""


def build_table(trained: Sequence[Entry], untrained: Entry, controls: Sequence[Entry]) -> dict[str, Any]:
    """Rows, correlation and verdict, ready for JSON. BadInput when the runs judge different subjects."""
    judge = _Judge(untrained)
    zscore = controls[0]
    rows = [judge.row(entry, untrained, zscore) for entry in trained]
    control_rows = [judge.row(untrained, None, zscore), *(judge.row(entry, None, None) for entry in controls)]
    return {
        "space": "native",
        "n_subjects": judge.resamples.n_subjects,
        "n_healthy_subjects": judge.n_healthy,
        "quantile": judge.quantile,
        "rows": rows,
        "controls": control_rows,
        "correlation": [_correlation(rows, key, figure) for key in TRAINING_KEYS for figure in _told(rows)],
        "verdict": judge_pretraining(rows, control_rows),
    }


class _Judge:
    """Figures of runs on one common list of test subjects."""

    def __init__(self, reference: Entry) -> None:
        metrics = read_metrics(next(iter(reference.detectors.values())))
        native = metrics["sets"][metrics["headline"]]["native"]
        if not native["n_lesion_subjects"]:
            raise BadInput("No test subject has a lesion: encoders cannot be compared. Add labelled test subjects.")
        self.subjects = sorted(row["subject_id"] for row in judged(native)["subjects"])
        self.n_healthy = int(native["n_healthy_subjects"])
        self.quantile = float(metrics["quantile"])
        self.resamples = Resamples(len(self.subjects))
        self._metrics: dict[str, dict[str, Any]] = {}
        self._known: dict[tuple[str, str, str], Figure | None] = {}

    def row(self, entry: Entry, untrained: Entry | None, zscore: Entry | None) -> dict[str, Any]:
        """One row of the table."""
        metrics = {seed: self._read(run) for seed, run in entry.detectors.items()}
        rated = [m["sets"][m["headline"]]["native"].get("validation_mean_dice") for m in metrics.values()]
        return {
            "key": entry.key,
            "title": entry.title,
            "variant": entry.variant,
            "views": entry.views,
            "seeds": [seed for seed in entry.detectors if seed >= 0],
            "runs": {
                str(seed): {"detector": run.run_id, "encoder": _id(entry.encoders.get(seed))}
                for seed, run in entry.detectors.items()
            },
            "headline_layers": {str(seed): m["headline"] for seed, m in metrics.items()},
            "validation_dice": None if None in rated else float(np.mean(rated)),
            "contrastive": _contrastive(entry),
            "visibility": visibility_of(list(entry.encoders.values()), next(iter(metrics.values()))["layers"]),
            "choices": {choice: self._choice(entry, untrained, zscore, choice) for choice in CHOICES},
            "layers": self._layers(entry, untrained),
        }

    def _choice(self, entry: Entry, untrained: Entry | None, zscore: Entry | None, choice: str) -> dict[str, Any]:
        own = {figure: self._figures(entry, choice, figure) for figure in FIGURES}
        return {
            "figures": {f: None if v is None else over_seeds(list(v.values()), self.resamples) for f, v in own.items()},
            "minus_untrained": self._minus(own, untrained, choice),
            "minus_zscore": self._minus(own, zscore, choice),
        }

    def _minus(
        self, own: Mapping[str, Mapping[int, Figure] | None], other: Entry | None, choice: str
    ) -> dict[str, Any]:
        if other is None:
            return {}
        return {name: self._difference(found, self._figures(other, choice, name)) for name, found in own.items()}

    def _difference(
        self, own: Mapping[int, Figure] | None, other: Mapping[int, Figure] | None
    ) -> dict[str, Any] | None:
        if own is None or other is None:
            return None
        partners = list(other.values()) if -1 in other else [other[seed] for seed in own]
        return paired_over_seeds(list(own.values()), partners, self.resamples)

    def _layers(self, entry: Entry, untrained: Entry | None) -> dict[str, Any]:
        """⌈Dice⌉ (pooled oracle) of each single layer, and its difference to the untrained encoder."""
        layers = self._read(next(iter(entry.detectors.values())))["layers"]
        if len(layers) < 2:
            return {}
        found = {}
        for layer in layers:
            own = self._figures(entry, layer, "ceil_dice")
            if own is None:
                continue
            other = None if untrained is None else self._figures(untrained, layer, "ceil_dice")
            found[layer] = {
                "ceil_dice": over_seeds(list(own.values()), self.resamples),
                "minus_untrained": self._difference(own, other),
            }
        return found

    def _figures(self, entry: Entry, choice: str, figure: str) -> dict[int, Figure] | None:
        """By seed; None when one run does not have it."""
        found = {seed: self._figure(run, choice, figure) for seed, run in entry.detectors.items()}
        kept = {seed: value for seed, value in found.items() if value is not None}
        return kept if len(kept) == len(found) else None

    def _figure(self, run: Run, choice: str, figure: str) -> Figure | None:
        key = (run.run_id, _chosen(self._read(run), choice), figure)
        if key not in self._known:
            self._known[key] = self._fresh_figure(run, key[1], figure)
        return self._known[key]

    def _fresh_figure(self, run: Run, layers: str, figure: str) -> Figure | None:
        native = self._read(run)["sets"][layers]["native"]
        if figure in ("ceil_dice", "auprc"):
            counts = pooled_counts(run, tuple(layers.split("+")))
            self._check(run, counts.subjects)
            if figure == "ceil_dice":
                return Figure(native["ceil_dice"]["dice"], counts.ceil_dice(self.resamples.subjects))
            return Figure(native["pooled"]["auprc"], counts.auprc(self.resamples.subjects))
        if figure not in native["protocols"]:
            return None
        dice = {row["subject_id"]: row["dice"] for row in native["protocols"][figure]["subjects"]}
        self._check(run, tuple(sorted(dice)))
        values = np.array([dice[i] for i in self.subjects])
        return Figure(float(values.mean()), self.resamples.means(values))

    def _read(self, run: Run) -> dict[str, Any]:
        if run.run_id not in self._metrics:
            self._metrics[run.run_id] = read_metrics(run)
        return self._metrics[run.run_id]

    def _check(self, run: Run, subjects: Sequence[str]) -> None:
        if list(subjects) != self.subjects:
            raise BadInput(
                f"Run {run.run_id} judges other test subjects ({len(subjects)}) than the untrained encoder "
                f"({len(self.subjects)}). Compare runs of one cohort; give the comparison another name."
            )


def _chosen(metrics: Mapping[str, Any], choice: str) -> str:
    """The id of a layer set: the one chosen on validation, all layers, or a layer by its name."""
    return {"headline": str(metrics["headline"]), "all": set_id(tuple(metrics["layers"]))}.get(choice, choice)


def _contrastive(entry: Entry) -> dict[str, Any] | None:
    """End values by seed and their means."""
    ends = {seed: contrastive_end(run) for seed, run in entry.encoders.items()}
    if not ends:
        return None
    keys = ("steps", "loss", "chance", "loss_share", "top1", "candidates")
    return {
        **{key: float(np.mean([end[key] for end in ends.values()])) for key in keys},
        "by_seed": {str(seed): end for seed, end in ends.items()},
        "states": sorted({str(end["state"]) for end in ends.values()}),
    }


def visibility_of(encoders: Sequence[Run], layers: Sequence[str]) -> dict[str, Any] | None:
    """Visibility of lesions, mean over these layers and the encoders, trained and untrained.

    None unless every encoder has it. A layer that views do not move has no number and is left out.
    """
    stored = [stored_visibility(run) for run in encoders]
    known = [one for one in stored if one is not None]
    if not known or len(known) < len(stored):
        return None
    means = {
        side: [
            layer["visibility"]["mean"]
            for one in known
            for layer in one[side]["layers"]
            if layer["layer"] in layers and layer["visibility"]["mean"] is not None
        ]
        for side in ("trained", "untrained")
    }
    return {side: float(np.mean(values)) if values else None for side, values in means.items()}


def correlation_lines(correlation: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to print of the correlations: each sentence, then the caveat; one sentence when none could be computed."""
    if all(one["rho"] is None for one in correlation):
        count = correlation[0]["n"] if correlation else 0
        return [
            f"Whether training success says anything about localisation: {count} way{'' if count == 1 else 's'} of "
            "training, too few or too equal to correlate."
        ]
    return [*(one["text"] for one in correlation), CORRELATION_CAVEAT.format(tests=len(correlation))]


def _correlation(rows: Sequence[Mapping[str, Any]], key: str, figure: str) -> dict[str, Any]:
    """Spearman's rank correlation of a training figure with a downstream one, and a sentence.

    One point per way of training (variant and views), the mean over its seeds: seeds of one way are no independent
    observations.
    """
    first = np.array([row["contrastive"][key] for row in rows], dtype=np.float64)
    second = np.array([row["choices"]["headline"]["figures"][figure]["mean"] for row in rows], dtype=np.float64)
    rho, p = spearman(first, second)
    return {
        "training": key,
        "figure": figure,
        "n": len(rows),
        "rho": rho,
        "p": p,
        "text": _correlation_text(key, figure, len(rows), rho, p),
    }


def _correlation_text(key: str, figure: str, n: int, rho: float | None, p: float | None) -> str:
    name = {"loss_share": "loss as a share of chance", "top1": "top-1"}[key]
    if rho is None or p is None:
        ways = "way" if n == 1 else "ways"
        return f"{name} against {FIGURE_TITLES[figure]}: {n} {ways} of training, too few or too equal to correlate."
    good_sign = rho < 0 if key == "loss_share" else rho > 0
    if p >= 0.05:
        sense = "training success says nothing about localisation that these runs can show"
    elif good_sign:
        sense = "ways that solved the training task better localise better"
    else:
        sense = "ways that solved the training task better localise worse"
    size = number_text(rho, 2, signed=True)
    numbers = f"Spearman {size} over {n} ways of training, seeds averaged (permutation p = {p:.2g})"
    return f"{name} against {FIGURE_TITLES[figure]}: {numbers}: {sense}."


def _told(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The downstream figures that training is correlated with."""
    return [
        f for f in ("validation", "healthy", "ceil_dice") if all(r["choices"]["headline"]["figures"][f] for r in rows)
    ]


def _id(run: Run | None) -> str | None:
    return None if run is None else run.run_id

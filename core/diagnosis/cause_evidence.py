"""What the checks of known causes look at, what they say, and how they quote figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.metrics.bootstrap import Interval, paired_difference

SEED = 0
RUN = "RUN"


@dataclass(frozen=True)
class Cause:
    """One known cause and its price in Dice; a negative cost says that the change would lower Dice."""

    id: str
    title: str
    formula: str
    text: str
    """What was found, in a sentence."""
    cost: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    needs_labels: bool = False
    """The figure uses test labels beyond judging: a bound, not a result."""
    deployable: bool = False
    """Something that can be changed without labels of the subjects that are judged."""
    kind: str = "computed"
    what_if: str | None = None
    """The what-if that measures it."""
    missing: str | None = None
    """Why there is no figure."""


@dataclass(frozen=True)
class Evidence:
    """What the causes are read from. Dictionaries are those of the diagnosis and of the evaluation."""

    protocol: str
    rungs: Sequence[Mapping[str, Any]]
    subjects: Sequence[Mapping[str, Any]]
    """Per subject: dice, ladder, error_map."""
    error_map: Sequence[Mapping[str, Any]]
    figures: Mapping[str, Any]
    """The layer set's figures on the working grid."""
    sets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Figures on the working grid of every layer set of the run."""
    layer_set: str = ""
    what_ifs: Sequence[Mapping[str, Any]] = ()
    post_processing: Mapping[str, Any] | None = None
    intensity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Working figures of the intensity baselines that were run on the same subjects, by the name of their run."""
    ages: Mapping[str, float] = field(default_factory=dict)
    n_train: int | None = None
    n_features: int | None = None
    """Features that the Gaussian models together; None for other detectors."""
    shuffled_dice: tuple[float, float] | None = None
    """Best Dice after shuffling the labels, and that of calling everything lesion."""


def chosen_variant(result: Mapping[str, Any], protocol: str) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """The variant to quote from a what-if, and its gain on test.

    Deployable ones by the highest gain on validation. Where there is none, or nothing was labelled there, an
    oracle (else any) by the highest gain on test: then the choice needed test labels. None without any test figure.
    """
    variants = [v for v in result["variants"] if ((v.get("test") or {}).get(protocol) or {}).get("gain") is not None]
    if not variants:
        return None
    rated = [v for v in variants if _chosen_on(v, protocol) is not None]
    if rated:
        best = max(rated, key=lambda v: float(_chosen_on(v, protocol) or 0.0))
    else:
        oracles = [v for v in variants if v["needs_labels"]]
        best = max(oracles or variants, key=lambda v: float(v["test"][protocol]["gain"]))
    return best, best["test"][protocol]


def _chosen_on(variant: Mapping[str, Any], protocol: str) -> float | None:
    """Its gain on validation under the protocol, where that may decide; None for what nobody could deploy."""
    judged = variant["validation_by_protocol"][protocol]
    return judged["gain"] if variant["deployable"] and judged is not None else None


def what_if_cause(e: Evidence, cause_id: str, title: str, names: Sequence[str]) -> Cause:
    """The cause as the best of its stored what-ifs tells it."""
    stored = [(name, result) for name in names if (result := stored_what_if(e, name)) is not None]
    picks = [(name, r, p) for name, r in stored if (p := chosen_variant(r, e.protocol)) is not None]
    if not picks:
        missing = f"python cli.py what-if {RUN} {' '.join(names)}"
        return Cause(
            cause_id, title, "D(changed) − D(as is), paired", "", kind="what-if", what_if=names[0], missing=missing
        )

    def rating(pick: tuple[str, Mapping[str, Any], tuple[Mapping[str, Any], Mapping[str, Any]]]) -> tuple[bool, float]:
        honest = _chosen_on(pick[2][0], e.protocol)
        return honest is not None, float(pick[2][1]["gain"] if honest is None else honest)

    name, result, (variant, test) = max(picks, key=rating)
    gain = _chosen_on(variant, e.protocol)
    honest = gain is not None
    if gain is not None and gain <= 0:
        text = (
            f"Nothing here gains on validation; the nearest is {variant['title']} ({signed_text(gain)} there, "
            f"{signed_text(test['gain'])} on test)."
        )
        return Cause(
            cause_id, title, result["formula"], text, 0.0, n=test["n"], deployable=True, kind="what-if", what_if=name
        )
    return Cause(
        cause_id,
        title,
        result["formula"],
        f"{variant['title']} (chosen on {'validation' if honest else 'test labels'}): "
        f"Dice {test['baseline']:.3f} → {test['variant']:.3f}.",
        test["gain"],
        test["low"],
        test["high"],
        test["n"],
        needs_labels=not honest,
        deployable=honest,
        kind="what-if",
        what_if=name,
    )


def paired_gain(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> Interval:
    """Mean difference of Dice over the subjects that both have."""
    a, b = ({row["subject_id"]: row["dice"] for row in rows} for rows in (first, second))
    ids = [i for i in a if i in b]
    return paired_difference([a[i] for i in ids], [b[i] for i in ids], seed=SEED)


def signed_text(value: float, decimals: int = 3) -> str:
    """A number with its sign, as it is read aloud."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def stored_what_if(e: Evidence, name: str) -> Mapping[str, Any] | None:
    """The stored what-if of this name, if there is one."""
    return next((r for r in e.what_ifs if r["name"] == name), None)


def subjects_at(figures: Mapping[str, Any], protocol: str) -> Sequence[Mapping[str, Any]]:
    """The test subjects under a protocol."""
    rows: Sequence[Mapping[str, Any]] = figures["protocols"][protocol]["subjects"]
    return rows


def cost_of(subject: Mapping[str, Any], categories: Sequence[str]) -> float:
    """Dice that a subject loses to some error categories."""
    return sum((float(subject["error_map"].get(c, 0.0)) for c in categories), 0.0)


def as_span(found: Interval) -> tuple[float | None, float | None, float | None, int]:
    """Mean, low, high and number of an interval."""
    return found.mean, found.low, found.high, found.n

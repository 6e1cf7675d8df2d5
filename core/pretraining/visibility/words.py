"""What was measured, in sentences. Every number in them is computed; no sentence is given without one."""

from collections.abc import Mapping, Sequence

from core.metrics.bootstrap import Interval
from core.pretraining.visibility.changes import LOCAL, VIEW
from core.pretraining.visibility.intensity import TONE, IntensityChange, IntensityEffects
from core.pretraining.visibility.measure import LayerVisibility, Visibility
from core.pretraining.visibility.settings import VisibilitySettings
from core.pretraining.visibility.trained import LEAST_SCANS, Trained, damage, taught_away

FAMILY_WORDS: Mapping[str, str] = {
    "flip": "flips",
    "affine": "rotation, scaling and shift",
    "elastic": "elastic deformation",
    "ghost": "ghosting",
    "gamma": "gamma",
    "noise": "noise",
    "bias": "the bias field",
    "blur": "blur",
    "swap": "patch swaps",
}
COMPARABLE = 0.5
"""A view that moves brightness by this share of what a lesion does, or more, asks the encoder to ignore changes as
large; of their shape that says nothing."""


def before_sentences(
    effects: IntensityEffects, untrained: Visibility | None, settings: VisibilitySettings
) -> tuple[str, ...]:
    """What a set of views would teach, from the scans and the list of augmentations alone."""
    lesion = effects.of(settings.example().name)
    assert lesion is not None
    moving = [v for v in effects.views if v.change in TONE]
    if moving:
        said = [_tone_sentence(one, lesion) for one in moving]
    else:
        said = [
            "No view changes tissue brightness smoothly (gamma and bias field are off): nothing in this set asks the "
            f"encoder to ignore a lesion's brightness. A lesion ({lesion.change}) moves it by "
            f"{_number(lesion.of_range.mean)} of the range."
        ]
    alike = next(one for one in effects.likeness if one.name == lesion.change)
    if moving:
        makers = " and ".join(FAMILY_WORDS[one.change] for one in moving)
        said.append(
            f"Seen from inside that lesion, {makers} could have made {_percent(alike.inside)} of its change; with "
            f"8 mm of brain around it, {_percent(alike.with_surround)}."
        )
    others = [v for v in effects.views if v.change not in TONE and not _is_small(v, lesion)]
    if others:
        listed = ", ".join(
            f"{FAMILY_WORDS[v.change]} {_number(v.of_range.mean)}{' where they are' if v.change in LOCAL else ''}"
            for v in others
        )
        said.append(f"Other views move brightness as far, in another way than lesions do: {listed}.")
    if untrained is not None:
        said.append(_span_sentence(untrained, "Before training"))
    return tuple(said)


def trained_sentences(
    before: Visibility, after: Visibility, trained: tuple[Trained, ...], settings: VisibilitySettings
) -> tuple[str, ...]:
    """What training did: where lesions are seen best, what was learned as an invariance, what became of lesions.

    A kind of view or of lesion is said to move a layer less when it did so in every scan, of at least LEAST_SCANS; else
    it is said that so many scans show nothing, which is not that nothing is there.
    """
    said = [_span_sentence(after, "After training")]
    last = (_net_sentence(before, after), _example_sentence(after, settings))
    if len(after.subjects) < 2:
        return (*said, "One scan gives no interval, so nothing is said of what training changed.", *last)
    deepest, scans = after.layers[-1].layer, len(after.subjects)
    whole = next(t for t in trained if t.layer == deepest and t.change == VIEW)
    if whole.ratio.mean is not None:
        said.append(f"Whole views move {deepest} {interval_words(whole.ratio)} times as far as before training.")
    if scans < LEAST_SCANS:
        few = f"{scans} scans are too few to say what moves a layer less than before training: give {LEAST_SCANS}."
        return (*said, few, *last)
    return (*said, _invariance_sentence(trained, deepest, scans), _loss_sentence(before, trained, scans), *last)


def interval_words(found: Interval, decimals: int = 2) -> str:
    """A number with its interval."""
    if found.mean is None:
        return "without bound"
    span = "" if found.low is None else f" [{found.low:.{decimals}f}, {found.high:.{decimals}f}]"
    return f"{found.mean:.{decimals}f}{span}"


def _invariance_sentence(trained: tuple[Trained, ...], layer: str, scans: int) -> str:
    gone = taught_away(trained, layer)
    if not gone:
        return f"No kind of view moves {layer} less in all {scans} scans: no invariance that {scans} scans can show."
    listed = ", ".join(
        f"{FAMILY_WORDS[t.change]} {_number(t.before.mean)} → {_number(t.after.mean)} ({_fall(t)})" for t in gone[:3]
    )
    kinds = "1 kind of view" if len(gone) == 1 else f"{len(gone)} kinds of view"
    most = "most of all " if len(gone) > 3 else ""
    return f"Learned as invariances at {layer}, seen in all {scans} scans: {kinds}, {most}{listed}."


def _loss_sentence(before: Visibility, trained: tuple[Trained, ...], scans: int) -> str:
    fell = [one for one in (damage(trained, n.layer) for n in before.layers if n.layer != "input") if one.fell]
    if not fell:
        return f"Lesions move no layer less in all {scans} scans: no loss that {scans} scans can show."
    worst = min(fell, key=lambda t: t.ratio.mean or 0.0)
    return (
        f"Lesions move {_listed([t.layer for t in fell])} less than before training, in all {scans} scans: "
        f"{worst.layer} by {_number(worst.after.mean)} healthy SDs instead of {_number(worst.before.mean)} "
        f"({_fall(worst)})."
    )


def _tone_sentence(view: IntensityChange, lesion: IntensityChange) -> str:
    name = FAMILY_WORDS[view.change]
    start = (
        f"{name[0].upper()}{name[1:]} as drawn ({100 * (view.share or 0):.0f} % of views) moves brain tissue by "
        f"{_number(view.of_range.mean)} of the brightness range; a lesion ({lesion.change}) moves it by "
        f"{_number(lesion.of_range.mean)}"
    )
    if _is_small(view, lesion):
        return f"{start}: learning to ignore {name} covers a small part of what this lesion changes."
    return f"{start}: an encoder that learns to ignore {name} is asked to ignore changes as large as this lesion's."


def _is_small(view: IntensityChange, lesion: IntensityChange) -> bool:
    return (view.of_range.mean or 0.0) < COMPARABLE * (lesion.of_range.mean or 0.0)


def _span_sentence(found: Visibility, when: str) -> str:
    """Best and worst layer of a network, the input apart."""
    layers = [one for one in found.layers if one.layer != "input"] or list(found.layers)
    bounded = [one for one in layers if one.visibility.mean is not None]
    if not bounded:
        return f"{when}, views move no layer at all: there is nothing to compare lesions with."
    best, worst = (pick(bounded, key=lambda one: one.visibility.mean or 0.0) for pick in (max, min))
    if best is worst:
        return f"{when}, lesions move {best.layer} {_times(best)} as far as views do."
    return (
        f"{when}, lesions are most visible at {best.layer}, where they move features {_times(best)} as far as views "
        f"do, and least at {worst.layer}, {_times(worst)}."
    )


def _net_sentence(before: Visibility, after: Visibility) -> str:
    changes = []
    for one in after.layers:
        first, now = before.layer(one.layer).visibility.mean, one.visibility.mean
        if one.layer != "input" and first is not None and now is not None:
            changes.append(f"{one.layer} {first:.2f} → {now:.2f}")
    return f"Visibility, untrained → trained: {', '.join(changes)}." if changes else "Views move no layer."


def _example_sentence(after: Visibility, settings: VisibilitySettings) -> str:
    name, deepest = settings.example().name, after.layers[-1]
    lesion = next(one for one in deepest.lesions if one.name == name)
    return (
        f"One lesion ({name}) moves {deepest.layer} by {interval_words(lesion.movement.mean)} healthy SDs, views move "
        f"it by {interval_words(deepest.view.mean)}."
    )


def _times(layer: LayerVisibility) -> str:
    return f"{interval_words(layer.visibility)} times"


def _fall(one: Trained) -> str:
    return f"−{100 * (1 - (one.ratio.mean or 0.0)):.0f} %"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _percent(found: Interval) -> str:
    return f"{100 * (found.mean or 0.0):.0f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value >= 0.095 else f"{value:.3f}"

"""What to try next when a contrastive training goes wrong, by what its views are told from."""

from collections.abc import Mapping
from typing import Any

BLIND = "A low loss says nothing about where lesions are."

COLLAPSED = "Lower the learning rate, raise the temperature or the batch, or weaken the views; then train anew."
COLLAPSED_TOO: Mapping[str, str] = {
    "queue": "Without a slow key encoder the queue may drive this: try moco.",
    "slots": "The slots are all but frozen and may drive this: try moco.",
    "moco": "A key momentum nearer to 1 (0.999) steadies the keys.",
    "hard": "A key momentum nearer to 1 (0.999) steadies the keys, and more hardest entries soften the task.",
    "ccd": "A lower class weight leaves the pairs more say.",
    "dense": "More positions per subject help too.",
    "dense-shift": "More positions per subject help too.",
    "atlas": "More positions per subject help too.",
    "atlas-shift": "More positions per subject help too.",
}
EASIER_THAN_IT_SHOULD_BE: Mapping[str, str] = {
    "in-batch": "take negatives from memory (queue, moco, hard), or compare positions instead of brains (dense)",
    "queue": "take moco or hard, whose keys stay fresh, or compare positions instead of brains (dense)",
    "slots": "take moco or hard, whose keys stay fresh, or compare positions instead of brains (dense)",
    "moco": "take hard, which keeps only the nearest keys, or compare positions instead of brains (dense)",
    "hard": "enlarge the bank, so that its nearest entries lie nearer, or compare positions instead of brains (dense)",
    "ccd": "raise the number of shifts, or compare positions instead of brains (dense)",
    "dense": "let nearer positions count as negatives (a smaller distance apart), or take dense-shift",
    "dense-shift": "weaken the local changes, or let nearer positions count as negatives (a smaller distance apart)",
    "atlas": "let nearer positions count as negatives (a smaller distance apart), or take atlas-shift",
    "atlas-shift": "weaken the local changes, or let nearer positions count as negatives (a smaller distance apart)",
}
HARDER_THAN_IT_SHOULD_BE: Mapping[str, str] = {
    "in-batch": "lower the batch",
    "queue": "shrink the bank",
    "slots": "shrink the bank",
    "moco": "shrink the bank",
    "hard": "count more of the hardest entries, which adds easy ones, or assume a positive prior above 0",
    "ccd": "lower the number of shifts or the class weight",
    "dense": "raise the distance apart, leave near places of other subjects out (other subjects: apart), or draw fewer "
    "positions",
    "dense-shift": "strengthen the local changes, raise the distance apart, or draw fewer positions",
    "atlas": "raise the distance apart, draw fewer positions, or see that the scans are registered",
    "atlas-shift": "strengthen the local changes, raise the distance apart, or see that the scans are registered",
}


def kind_of(settings: Mapping[str, Any] | None) -> str:
    """The kind of negatives in a run's recipe; recipes from before there was a choice were in-batch."""
    return str(((settings or {}).get("negatives") or {}).get("kind", "in-batch"))


def when_collapsed(settings: Mapping[str, Any] | None) -> str:
    """All brains, or all positions, embed alike."""
    return " ".join(filter(None, (COLLAPSED, COLLAPSED_TOO.get(kind_of(settings), ""))))


def when_too_easy(settings: Mapping[str, Any] | None) -> str:
    """The partner is found without effort. Harder negatives come before harder views: views teach what to ignore."""
    if settings is None:
        return f"Strengthen the views, enlarge the batch, or take harder negatives. {BLIND}"
    kind, views = kind_of(settings), settings.get("views") or {}
    hints = [f"To make it harder, {EASIER_THAN_IT_SHOULD_BE.get(kind, 'take other negatives')}."]
    if not views.get("geometric", 1.0) and not views.get("photometric", 1.0):
        hints.append("The two views are the same picture: choose a view set that changes something.")
    elif not views.get("geometric", 1.0):
        hints.append("Geometric views are off; they make it harder and hide no lesion.")
    elif views.get("first_view_clean", True):
        hints.append("Or change both views: the first of each pair is the scan as it is.")
    return " ".join((*hints, BLIND))


def when_too_hard(settings: Mapping[str, Any] | None) -> str:
    """The partner is not found though the embedding is spread."""
    if settings is None:
        return "Weaken the views, shrink the bank if there is one, or raise the temperature; then train anew."
    kind, views = kind_of(settings), settings.get("views") or {}
    weaker = "" if views.get("first_view_clean", True) else " (or leave the first view as it is)"
    return (
        f"Weaken the views{weaker}, raise the temperature ({float(settings.get('temperature', 0.1)):g} now), or "
        f"{HARDER_THAN_IT_SHOULD_BE.get(kind, 'take fewer negatives')}; then train anew."
    )


def when_stale(age: float, settings: Mapping[str, Any] | None, subjects: int | None) -> str:
    """A warning when entries of a queue or of slots are older than an epoch: another encoder made them.

    moco and hard are meant to hold old keys, for the key encoder is slow. Empty when nothing is known or wrong.
    """
    batch = int((settings or {}).get("batch", 0))
    if kind_of(settings) not in ("queue", "slots") or not subjects or batch < 1 or not age > subjects / batch:
        return ""
    return (
        f"The bank is stale: its entries are {age:.0f} steps old on average, an epoch is {subjects / batch:.0f}. "
        "Try moco, whose slow key encoder keeps them comparable, or a smaller bank."
    )

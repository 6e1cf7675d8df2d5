"""What stands behind one place's score, in words: for the Slices page and for the terminal."""

from collections.abc import Callable, Mapping, Sequence

from core.diagnosis.neighbours import PLACE, Neighbour, NeighbourView

FEW = 30
"""Fewer patches do not stand for what is normal at a place: a coreset keeps the unusual ones."""


def sentences(view: NeighbourView, plain: Callable[[str], str] = str) -> list[str]:
    """What a view says, in plain lines: the score, which patches were allowed, and what the other rule would find.

    `plain` turns a subject's id into text that is shown as it stands.
    """
    first = view.nearest[0]
    among = f"{view.entries:,} healthy patches"
    if view.radius_mm is not None:
        among = f"{view.candidates:,} (of {view.entries:,}) healthy patches within {view.radius_mm:g} mm"
    lines = [
        f"The patch here scores {distance_text(first.distance)} (under the cross-hair the map blends several patches, "
        f"so its read-out can differ): its distance to the nearest of the {among}. "
        f"Nearest: {plain(first.subject_id)}, {apart_text(first.apart_mm)}."
    ]
    if view.own:
        kept = "patch of this subject is" if view.own == 1 else "patches of this subject are"
        lines.append(f"The {view.own:,} {kept} in the bank and left out here: each would find itself at distance 0.")
    if view.radius_mm is None and PLACE in first.shares:
        lines.append("The way to a patch counts too: each distance is made of features and of place.")
    return [*lines, *_other_sentence(view, plain)]


def share_text(shares: Mapping[str, float]) -> str:
    """Largest first: 'stage2 61 %, stage1 39 %'."""
    parts = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {100 * share:.0f}\u00a0%" for name, share in parts)


def distance_text(distance: float) -> str:
    """A feature distance to three digits."""
    return f"{distance:.0f}" if distance >= 1000 else f"{distance:#.3g}".removesuffix(".")


def apart_text(apart_mm: float) -> str:
    """'6 mm away', or the same place."""
    return "at the same place" if apart_mm < 0.5 else f"{apart_mm:.0f}\u00a0mm away"


def row_labels(view: NeighbourView) -> list[str]:
    """Above each row of a picture: what it is, whose, how far, and where in mm of the working world."""
    labels = [f"Here: {view.subject_id}, {place_text(view.position_mm)}"]
    names = [f"Nearest {n}" for n in range(1, len(view.nearest) + 1)]
    names.append("Anywhere" if view.other_radius_mm is None else f"Within {view.other_radius_mm:g} mm")
    for name, one in zip(names, [*view.nearest, *([] if view.other is None else [view.other])], strict=False):
        far = f"distance {distance_text(one.distance)}, {apart_text(one.apart_mm)}"
        labels.append(f"{name}: {one.subject_id}, {far}, {place_text(one.position_mm)}")
    return labels


def place_text(position_mm: Sequence[float]) -> str:
    """'12 mm left, 4 mm front, 20 mm up', from the origin of the working world."""
    ways = (("right", "left"), ("front", "back"), ("up", "down"))
    return ", ".join(
        f"{abs(round(mm))}\u00a0mm {way[round(mm) < 0]}" for mm, way in zip(position_mm, ways, strict=True)
    )


def mm_text(position_mm: Sequence[float]) -> str:
    """Millimetres to the right, front and top."""
    return "({})\u00a0mm".format(",\u00a0".join(str(round(value)).replace("-", "−") for value in position_mm))


def _other_sentence(view: NeighbourView, plain: Callable[[str], str]) -> list[str]:
    first, other = view.nearest[0], view.other
    if other is None:
        return []
    found = f"{plain(other.subject_id)}, {apart_text(other.apart_mm)}, at distance {distance_text(other.distance)}"
    same = (other.subject_id, other.voxel) == (first.subject_id, first.voxel)
    if view.other_radius_mm is None:
        if same:
            return ["If the place did not matter, the nearest would be the same patch."]
        far = other.apart_mm > (view.radius_mm or 0.0)
        hidden = far and other.distance < 0.9 * first.distance
        why = f" What is normal there would make this place look {_less(first, other)} less strange." if hidden else ""
        return [f"If the place did not matter, the nearest would be {found}.{why}"]
    if same:
        return [f"It is also the nearest of those within {view.other_radius_mm:g} mm."]
    kept = "1 patch" if view.other_candidates == 1 else f"{view.other_candidates:,} patches"
    line = f"Of the {kept} kept within {view.other_radius_mm:g} mm, the nearest is {found}."
    if first.distance >= 0.9 * other.distance:
        return [line]
    if view.other_candidates < FEW:
        counted = "patch of this place is" if view.other_candidates == 1 else "patches of this place are"
        return [
            f"{line} Only {view.other_candidates} {counted} in the bank: too few to judge. "
            "A position-aware bank keeps more."
        ]
    return [
        f"{line} What is normal elsewhere makes this place look {_less(other, first)} less strange than its own "
        "surroundings do."
    ]


def _less(one: Neighbour, nearer: Neighbour) -> str:
    return f"{100 * (1 - nearer.distance / one.distance):.0f}\u00a0%"

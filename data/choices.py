"""What a user says about a data set that its files do not: who is healthy, which of several scans, what labels mean."""

from dataclasses import dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The reader's questions, answered. What is not said here is read from the data set, or stays unknown."""

    healthy_unless_masked: bool = False
    """Take subjects of whom nothing else is known, and who have no lesion mask, as healthy: on your word."""
    controls: tuple[str, ...] = ()
    """Further words in a group or diagnosis column that mean a healthy person, such as 0."""
    session: str = ""
    """BIDS: the session to take; the first that holds scan and lesion mask when not given."""
    run: str = ""
    """BIDS: the run to take; the first when not given."""
    acq: str = ""
    """BIDS: the acquisition to take; the unnamed or first when not given."""
    space: str = ""
    """BIDS: the space in which scan and masks are taken; the scanner's own when not given."""
    label: str = ""
    """BIDS: value of label or desc, or the file's last word, that means the lesion mask."""
    lesion_labels: tuple[int, ...] = ()
    """Values of the lesion masks that are lesion; the layout's own, or 1, when not given."""
    ignore_labels: tuple[int, ...] = ()
    """Values of the lesion masks that are neither lesion nor healthy tissue, such as a resection cavity: left out."""
    volume: int | None = None
    """Which volume of a 4-D scan is meant, counted from 0."""
    header_form: Literal["", "sform", "qform"] = ""
    """Which of two orientations in a header is right, where they disagree."""
    mask_cut: float | None = None
    """From which probability on a voxel belongs to a mask that holds probabilities, above 0 and up to 1."""
    keep: tuple[str, ...] = ()
    """Subjects to use although their scan looks like something else: upside down, no T1, an outlier, a duplicate."""
    follow_symlinks: bool = False
    """Follow links that lead out of the data set."""

    def said(self) -> dict[str, Any]:
        """The choices that differ from the usual ones, by name."""
        found = {f.name: (getattr(self, f.name), f.default) for f in fields(Choices)}
        return {name: value for name, (value, usual) in found.items() if value != usual}


def choices_of(arguments: Choices) -> Choices:
    """The choices among the arguments of a verb."""
    return Choices(**{f.name: getattr(arguments, f.name) for f in fields(Choices)})


NOTHING = Choices()

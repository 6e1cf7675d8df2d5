"""Who there is: subjects, cohorts and splits by subject. Paths only; no voxel is read here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data.errors import BadInput

ROLES = ("train", "calibration", "validation", "test")


@dataclass(frozen=True)
class Subject:
    """One person's scans: contrast name (upper case: T1, FLAIR) -> file, masks, and what is known of them."""

    subject_id: str
    scans: Mapping[str, Path]
    brain_mask: Path | None = None
    lesion_mask: Path | None = None
    healthy: bool = True
    role: str | None = None
    """The split that the table asks for: train, calibration, validation or test."""
    site: str | None = None
    age: float | None = None
    sex: str | None = None
    lesion_labels: tuple[int, ...] | None = None
    """Which values of the lesion mask are lesion, when it is a label map (BraTS: 1, 2, 4)."""

    def __post_init__(self) -> None:
        scans = {name.upper(): path for name, path in self.scans.items()}
        if len(scans) != len(self.scans):
            raise BadInput(f"Subject {self.subject_id!r} has one contrast twice: {', '.join(self.scans)}. Keep one.")
        object.__setattr__(self, "scans", scans)


@dataclass(frozen=True)
class Cohort:
    """A named list of subjects, and what to cite when it is used."""

    name: str
    subjects: tuple[Subject, ...]
    citation: str = ""
    notes: tuple[str, ...] = field(default=())
    """What the layout reader saw and left out, in words."""

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for subject in self.subjects:
            if subject.subject_id in seen:
                raise BadInput(f"Subject {subject.subject_id!r} stands twice in cohort {self.name!r}. Make ids unique.")
            seen.add(subject.subject_id)

    def in_order(self) -> "Cohort":
        """The same cohort with its subjects in the order of their ids (by code point), whatever the table's was."""
        return replace(self, subjects=tuple(sorted(self.subjects, key=lambda s: s.subject_id)))

    def __getitem__(self, subject_id: str) -> Subject:
        for subject in self.subjects:
            if subject.subject_id == subject_id:
                return subject
        raise BadInput(f"No subject {subject_id!r} in cohort {self.name!r} ({len(self.subjects)} subjects).")


@dataclass(frozen=True)
class Split:
    """Four disjoint lists of subject ids. Train and calibration are healthy; validation and test may be mixed."""

    train: tuple[str, ...]
    calibration: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        owner: dict[str, str] = {}
        for role in ROLES:
            for subject_id in getattr(self, role):
                if subject_id in owner:
                    raise BadInput(
                        f"Subject {subject_id!r} is in two splits: {owner[subject_id]} and {role}. "
                        "Every subject belongs to one. Remove it from one of them."
                    )
                owner[subject_id] = role

    def in_order(self) -> "Split":
        """The same split with each list in the order of the ids (by code point), however it was given.

        Every number is made from lists in this order: sums and draws over the same people then give the same bits.
        """
        return Split(**{role: tuple(sorted(getattr(self, role))) for role in ROLES})

    def role_of(self, subject_id: str) -> str:
        """The split that holds this subject."""
        for role in ROLES:
            if subject_id in getattr(self, role):
                return role
        raise BadInput(f"Subject {subject_id!r} is in no split.")


def check_healthy(cohort: Cohort, split: Split) -> None:
    """Raise BadInput unless train and calibration hold healthy subjects only."""
    healthy = {s.subject_id: s.healthy for s in cohort.subjects}
    for role in ("train", "calibration"):
        ill = [i for i in getattr(split, role) if not healthy.get(i, True)]
        if ill:
            raise BadInput(
                f"{len(ill)} subject(s) with lesions in the {role} split: {', '.join(ill[:5])}. "
                "Only healthy subjects may be there. Move them to validation or test."
            )


def split_by_roles(subjects: Sequence[Subject]) -> Split:
    """The split that the table's role column asks for."""
    lists: dict[str, list[str]] = {role: [] for role in ROLES}
    for subject in subjects:
        if subject.role in lists:
            lists[subject.role].append(subject.subject_id)
    return Split(**{role: tuple(ids) for role, ids in lists.items()})

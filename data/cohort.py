"""Who there is: subjects, cohorts and splits by subject. Paths only; no voxel is read here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data.errors import BadInput

SAY_HEALTH = (
    "Only subjects that are known to be healthy may be there. Say so in a column healthy (true or false) or group "
    "(control, patient) of the table or participants.tsv, or with --healthy-unless-masked."
)
ROLES = ("train", "calibration", "validation", "test")


def contrast_name(name: str) -> str:
    """A contrast's one name: upper case, and T1 for T1w."""
    return name.upper()[:-1] if name.upper() in ("T1W", "T2W", "PDW") else name.upper()


@dataclass(frozen=True)
class Subject:
    """One person's scans: contrast name (upper case: T1, FLAIR) -> file, masks, and what is known of them."""

    subject_id: str
    scans: Mapping[str, Path]
    brain_mask: Path | None = None
    lesion_mask: Path | None = None
    healthy: bool | None = None
    """None when nobody says: such a subject neither trains nor calibrates."""
    role: str | None = None
    """The split that the table asks for: train, calibration, validation or test."""
    site: str | None = None
    age: float | None = None
    sex: str | None = None
    lesion_labels: tuple[int, ...] | None = None
    """Which values of the lesion mask are lesion, when it is a label map (BraTS: 1, 2, 4)."""
    ignore_labels: tuple[int, ...] = ()
    """Which values are neither lesion nor healthy tissue: those voxels are left out of everything."""
    labels_complete: bool = False
    """Whether a value that is in neither list is a question instead of tissue: the layout knows all of them."""
    health_from: str = field(default="", compare=False)
    """On whose word the subject is healthy or ill; why it is unknown."""
    volumes: Mapping[str, int] = field(default_factory=dict)
    """Contrasts that are one volume of a 4-D file: which, counted from 0."""
    header_form: str = ""
    """Which orientation of the headers is right where two disagree: sform or qform."""
    kept: bool = False
    """Whether it is used although its scan looks like something else, by the user's word."""
    mask_cut: float | None = None
    """From which probability on a voxel belongs to a mask of probabilities."""

    def __post_init__(self) -> None:
        scans = {contrast_name(name): path for name, path in self.scans.items()}
        if len(scans) != len(self.scans):
            raise BadInput(f"Subject {self.subject_id!r} has one contrast twice: {', '.join(self.scans)}. Keep one.")
        object.__setattr__(self, "scans", scans)
        object.__setattr__(self, "volumes", {contrast_name(name): number for name, number in self.volumes.items()})
        both = set(self.lesion_labels or ()) & set(self.ignore_labels)
        if both:
            raise BadInput(
                f"Subject {self.subject_id!r}: label {min(both)} is called lesion and ignored. Say which it is: leave "
                "it out of --lesion-labels or of --ignore-labels."
            )


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
    by_id = {s.subject_id: s for s in cohort.subjects}
    for role in ("train", "calibration"):
        there = [by_id[i] for i in getattr(split, role) if i in by_id]
        ill = [s.subject_id for s in there if s.healthy is False]
        if ill:
            raise BadInput(
                f"{len(ill)} subject(s) with lesions in the {role} split: {', '.join(ill[:5])} "
                f"({by_id[ill[0]].health_from or 'called ill'}). "
                "Only healthy subjects may be there. Move them to validation or test."
            )
        unknown = [s for s in there if s.healthy is None]
        if unknown:
            named = ", ".join(s.subject_id for s in unknown[:5])
            raise BadInput(
                f"{len(unknown)} subject(s) of unknown health in the {role} split: {named} "
                f"({unknown[0].health_from or 'nobody says'}). {SAY_HEALTH}"
            )


def split_by_roles(subjects: Sequence[Subject]) -> Split:
    """The split that the table's role column asks for."""
    lists: dict[str, list[str]] = {role: [] for role in ROLES}
    for subject in subjects:
        if subject.role in lists:
            lists[subject.role].append(subject.subject_id)
    return Split(**{role: tuple(ids) for role, ids in lists.items()})

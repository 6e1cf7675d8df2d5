"""Which scans a study works on, how they are split and prepared, and volumes that are read when they are needed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

from data.choices import NOTHING, Choices
from data.cohort import Cohort, Split
from data.prepared import Preprocessing
from data.prepared_cache import load_prepared
from data.preprocessing import PreparedCohort
from data.volume import Volume


@dataclass(frozen=True)
class DataSource:
    """Which scans, how they are split, and how they are prepared."""

    cohort: Path
    """A table (CSV, TSV) or a data set's folder."""
    layout: str = "auto"
    """table, bids, ixi, brats, nnunet, wmh, ms, joined, or auto."""
    split: Path | None = None
    """JSON with the lists train, calibration, validation, test; else the table's roles, else a seeded draw."""
    seed: int = 0
    """Of the drawn split."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    """Registration, working grid, intensity."""
    choices: Choices = NOTHING
    """What the data set does not say by itself."""


@dataclass(frozen=True, eq=False)
class Study:
    """A prepared cohort and its split: what every stage works on."""

    source: DataSource
    cohort: Cohort
    split: Split
    prepared: PreparedCohort

    def volumes(self, role: str) -> "PreparedVolumes":
        """The prepared volumes of one split, loaded one at a time, in the order of the ids."""
        ids = getattr(self.split.in_order(), role)
        return PreparedVolumes(self.prepared.cache, tuple(self.prepared.keys[i] for i in ids), ids)


@dataclass(frozen=True)
class PreparedVolumes(Sequence[Volume]):
    """Volumes of the cache, by key, each read when it is asked for."""

    cache: Path
    keys: tuple[str, ...]
    subject_ids: tuple[str, ...] | None = None
    """Whose they are, in the order of `keys`: a scan that is somebody else's is refused."""

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> Volume: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Volume]: ...
    def __getitem__(self, index: int | slice) -> Volume | Sequence[Volume]:
        if isinstance(index, slice):
            ids = None if self.subject_ids is None else self.subject_ids[index]
            return PreparedVolumes(self.cache, self.keys[index], ids)
        owner = None if self.subject_ids is None else self.subject_ids[index]
        return load_prepared(self.cache, self.keys[index], owner).volume


def cache_directory(runs: Path) -> Path:
    """Where prepared scans of a runs directory are kept."""
    return runs / ".cache" / "prepared"

"""What a memory bank keeps of the healthy patches, and how it is searched."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from data.errors import BadInput
from data.ranges import refuse_out_of_range

Subset = Literal["greedy", "random", "kmeans", "half", "all"]
"""greedy k-centre; a random draw; the row nearest to each k-means centre; a random half completed greedily; all."""


@dataclass(frozen=True)
class BankSettings:
    """PatchCore's memory bank (Roth et al. 2022, arXiv:2106.08265) and what knowing the position adds to it."""

    subset: Subset = "greedy"
    """Which patches are kept: greedy k-centre (PatchCore), a random draw, the ones nearest to k-means centres,
    half greedy half random, or all of them."""
    coreset_ratio: float = 0.01
    """Share of all training patches that is kept; ignored by 'all'."""
    pool: int = 400_000
    """Patches at most that the selection sees: a seeded draw over all subjects and positions. 'all' ignores it."""
    projection: int = 128
    """Dimensions of the random projection in which greedy selection measures. PatchCore: 128."""
    scaling: Literal["layer", "none"] = "layer"
    """'layer': each layer is divided by the root mean square distance of its training features to their mean, so that
    every layer counts alike; 'none': as the encoder gives them."""
    position: Literal["anywhere", "weighted", "restricted"] = "anywhere"
    """Which neighbours count: all alike (PatchCore), near ones more, or only those within `radius_mm`."""
    position_weight: float = 0.05
    """Feature distance per mm for 'weighted': squared distance = feature part + (position_weight · mm)². With scaling
    'layer' a feature distance of 1 is the spread of one layer, so 0.05 makes 20 mm cost as much as that."""
    radius_mm: float = 8.0
    """Reach of 'restricted', template mm, inclusive; the own position always counts."""
    search: Literal["exact", "ivf", "hnsw"] = "exact"
    """Exhaustive, or FAISS candidates that are then measured exactly: upper bounds of the exact distances."""
    nprobe: int = 16
    """Lists that 'ivf' visits; breadth of the 'hnsw' search is four times that."""
    candidates: int = 16
    """Nearest entries per index that an approximate search measures exactly."""
    neighbours: int = 9
    """Bank neighbours in the re-weighting of a subject's score. anomalib's PatchCore: 9; 1: no re-weighting."""
    precision: Literal["float32", "float16"] = "float32"
    """Of the stored patches; float16 halves memory and rounds features to 3 digits. All arithmetic is float32."""
    seed: int = 0
    """Of the pool, the selection and the index."""

    def __post_init__(self) -> None:
        _check_choice("subset", self.subset, get_args(Subset))
        _check_choice("scaling", self.scaling, ("layer", "none"))
        _check_choice("position", self.position, ("anywhere", "weighted", "restricted"))
        _check_choice("search", self.search, ("exact", "ivf", "hnsw"))
        _check_choice("precision", self.precision, ("float32", "float16"))
        refuse_out_of_range(self)
        if self.search != "exact" and self.position == "restricted":
            raise BadInput(
                f"search {self.search!r} with position 'restricted' is not defined: within the radius the exact search "
                "is fast already. Choose search 'exact', or position 'weighted'."
            )


def idle_settings(settings: BankSettings, names: Iterable[str]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Those of the named settings that nothing reads: with the setting that they belong to, and its values that do."""
    for name in names:
        if name in _READ_WITH:
            other, allowed = _READ_WITH[name]
            if getattr(settings, other) not in allowed:
                yield name, other, allowed


_APPROXIMATE, _CHOSEN = ("ivf", "hnsw"), ("greedy", "random", "kmeans", "half")
_READ_WITH: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "radius_mm": ("position", ("restricted",)),
    "position_weight": ("position", ("weighted",)),
    "nprobe": ("search", _APPROXIMATE),
    "candidates": ("search", _APPROXIMATE),
    "coreset_ratio": ("subset", _CHOSEN),
    "pool": ("subset", _CHOSEN),
    "projection": ("subset", ("greedy", "half")),
}
"""Settings that only some values of another one read."""


def _check_choice(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise BadInput(f"{name} is {given!r}. Allowed: {', '.join(allowed)}.")

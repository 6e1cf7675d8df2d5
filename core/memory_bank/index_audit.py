"""How much of the exact answer a search index finds, measured before it is used."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from core.memory_bank.search import Found
from core.types import LayerSet

ENOUGH_RECALL = 0.99


@dataclasses.dataclass(frozen=True)
class Audit:
    """How far the approximate search is from the exact one, for patches of a training subject among all others."""

    queries: int
    recall: float
    """Share of queries whose nearest entry was found, all layers together."""
    recall_of: Mapping[str, float]
    """The same for every layer set, names joined by '+'."""
    mean_error: float
    """Mean of (approximate − exact) / exact distance, over queries and layer sets; never negative."""
    p99_error: float

    @property
    def text(self) -> str:
        """One sentence, and what to do when too few are found."""
        said = (
            f"For {self.queries} patches of one healthy subject the index finds the nearest one of the others in "
            f"{self.recall:.1%}; over all layer sets scores are too large by {self.mean_error:.2%} on average, 1 in "
            f"100 by more than {self.p99_error:.1%}."
        )
        if self.recall >= ENOUGH_RECALL:
            return said
        return f"{said} That is fewer than {ENOUGH_RECALL:.0%}: raise nprobe or candidates, or choose search 'exact'."


def compare(approximate: Found, exact: Found, layer_sets: Sequence[LayerSet]) -> Audit:
    """Recall and error of one search against the other; the last layer set is the one named first."""
    ours, theirs = approximate.distance.astype(np.float64), exact.distance.astype(np.float64)
    hit = ours <= theirs * (1 + 1e-6)
    error = np.where(theirs > 0, np.maximum(ours - theirs, 0) / np.where(theirs > 0, theirs, 1), 0)
    recall = {"+".join(layers): float(hit[number].mean()) for number, layers in enumerate(layer_sets)}
    return Audit(hit[0].size, float(hit[-1].mean()), recall, float(error.mean()), float(np.percentile(error, 99)))

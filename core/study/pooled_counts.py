"""Voxels of the test subjects at or above a few hundred cuts: enough to resample pooled figures over subjects.

A pooled figure such as ⌈Dice⌉ is no mean over subjects, so its interval needs the counts of every subject. The values
themselves are exact and stand in the evaluation; the counts serve the intervals only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from core.metrics.subject_scores import SubjectScores
from core.runs.run_record import Run
from core.runs.stages import kept_if_possible, stage, stage_array, stage_done, stage_json, stage_name
from core.runs.store import lock
from core.study.stored_scores import open_scores, set_id
from core.types import LayerSet
from data.errors import BadInput
from data.json_files import write_json

LESION_CUTS, NORMAL_CUTS = 400, 200
_CHUNK = 500


@dataclass(frozen=True, eq=False)
class PooledCounts:
    """Per lesion-bearing subject, by id: scored voxels at or above each cut, cuts from high to low; native space."""

    subjects: tuple[str, ...]
    hits: Int64[np.ndarray, "subjects cuts"]
    """Lesion voxels."""
    alarms: Int64[np.ndarray, "subjects cuts"]
    """Normal voxels."""
    lesion: Int64[np.ndarray, " subjects"]
    """Lesion voxels, those that were never scored included."""

    def ceil_dice(self, times: Float64[np.ndarray, "resamples subjects"]) -> Float64[np.ndarray, " resamples"]:
        """Highest pooled Dice over the cuts, chosen anew in each resample (an oracle)."""
        return np.concatenate(
            [_best_dice(drawn @ self.hits, drawn @ self.alarms, drawn @ self.lesion) for drawn in _chunks(times)]
        )

    def auprc(self, times: Float64[np.ndarray, "resamples subjects"]) -> Float64[np.ndarray, " resamples"]:
        """Pooled average precision; between two cuts, the precision of the middle lesion voxel."""
        return np.concatenate(
            [
                _average_precision(drawn @ self.hits, drawn @ self.alarms, (drawn > 0) @ self.hits)
                for drawn in _chunks(times)
            ]
        )


def pooled_counts(run: Run, layers: LayerSet) -> PooledCounts:
    """The counts of a scored run under one layer set; computed once and kept with the run, where it can be."""
    name = stage_name("pooled-counts", set_id(layers))
    if not stage_done(run, name):
        scores = open_scores(run)
        counts = count(scores.voxels_of(scores.subjects("test"), layers, "native"))
        with kept_if_possible(run), lock(run) as held, stage(held, name) as scratch:
            np.save(scratch / "counts.npy", np.stack([counts.hits, counts.alarms]))
            write_json(scratch / "subjects.json", {"ids": counts.subjects, "lesion": counts.lesion.tolist()})
        return counts
    hits, alarms = stage_array(run, name, "counts.npy")
    about = stage_json(run, name, "subjects.json")
    return PooledCounts(tuple(about["ids"]), hits, alarms, np.array(about["lesion"], dtype=np.int64))


def count(subjects: Sequence[SubjectScores]) -> PooledCounts:
    """Counts of the lesion-bearing subjects, on cuts where their pooled lesion voxels lie and where few normal do."""
    bearing = sorted((s for s in subjects if s.n_lesion), key=lambda s: s.subject_id)
    if not bearing:
        raise BadInput("No test subject has a lesion: nothing to count. Add labelled subjects to the test split.")
    lesion = np.concatenate([s.anomalous for s in bearing])
    normal = np.concatenate([s.normal for s in bearing])
    cuts = [_quantiles(lesion, np.linspace(0, 1, LESION_CUTS))] if len(lesion) else []
    cuts.append(_quantiles(normal, 1 - np.geomspace(1.0, 1e-6, NORMAL_CUTS)))
    common = np.unique(np.concatenate(cuts))[::-1]
    return PooledCounts(
        tuple(s.subject_id for s in bearing),
        np.stack([_reaching(s.anomalous, common) for s in bearing]),
        np.stack([_reaching(s.normal, common) for s in bearing]),
        np.array([s.n_lesion for s in bearing], dtype=np.int64),
    )


def _best_dice(hits: np.ndarray, alarms: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    best: np.ndarray = (2 * hits / np.maximum(hits + alarms + lesion[:, None], 1)).max(axis=1)
    return best


def _average_precision(hits: np.ndarray, alarms: np.ndarray, different: np.ndarray) -> np.ndarray:
    """Cuts lie on lesion voxels: of the d different ones between two cuts, number j has about j/d of the normal ones
    above it. `different` counts the lesion voxels of each subject once, however often it was drawn: copies tie."""
    found, wrong = np.diff(hits, axis=1, prepend=0), np.diff(alarms, axis=1, prepend=0)
    several = np.maximum(np.diff(different, axis=1, prepend=0), 1)
    share = (several + 1) / (2 * several)
    above = hits - found + found * share
    precision = above / np.maximum(above + alarms - wrong + wrong * share, 1)
    areas: np.ndarray = (found * precision).sum(axis=1) / np.maximum(hits[:, -1], 1)
    return areas


def _chunks(times: np.ndarray) -> Iterator[np.ndarray]:
    return (times[start : start + _CHUNK] for start in range(0, len(times), _CHUNK))


def _quantiles(values: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Values that occur, at the given shares."""
    found: np.ndarray = np.quantile(values, shares, method="lower")
    return found


def _reaching(values: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """How many values are at or above each cut."""
    ordered = np.sort(values)
    found: np.ndarray = len(ordered) - np.searchsorted(ordered, cuts, side="left")
    return found.astype(np.int64)

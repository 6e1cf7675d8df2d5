"""What the diagnosis knows of each test subject beside its error counts: ceilings, lesions, the shuffled control.

One small file per subject, kept with the run and read again as long as nothing it depends on has changed: a new
subject never makes the others be scanned again.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from core.diagnosis.ceiling import Ceiling, LesionCeiling, SubjectCeilings, subject_ceilings
from core.diagnosis.errors.reference import HealthyReference
from core.diagnosis.layer_cells import LayerCells
from core.diagnosis.lesion_table import lesion_table, single_layer_scores
from core.diagnosis.placement import in_template_space
from core.metrics.exact_curve import all_positive_dice, best_dice
from core.progress import Progress
from core.randomness import stream
from core.runs.provenance import fingerprint
from core.runs.stages import keep_json, kept_json, stage_name
from core.study.cases import Case, case_of, made_from
from core.study.stored_scores import RunScores, set_id
from core.types import LayerSet

DIRECTORY = "diagnosis-subjects"
VERSION = 3
"""Counts up whenever the same subject would give other facts."""


@dataclass(frozen=True)
class SubjectFacts:
    """One test subject with a lesion, under one layer set and one threshold."""

    ceilings: SubjectCeilings
    lesions: tuple[Mapping[str, Any], ...]
    """Rows of core.diagnosis.lesion_table."""
    shuffled: tuple[float, float]
    """Best Dice after its labels were shuffled over the scored brain, and Dice of calling everything lesion."""


def subject_facts(
    scores: RunScores,
    subject_ids: Sequence[str],
    layers: LayerSet,
    protocol: str,
    threshold: float,
    cells: Sequence[LayerCells],
    reference: HealthyReference,
    progress: Progress,
    *,
    workers: int = 2,
) -> list[SubjectFacts]:
    """Facts of subjects with a lesion on the working grid, in order; `threshold` is the protocol's there."""

    def one(subject_id: str) -> SubjectFacts:
        return _facts(scores, subject_id, layers, protocol, threshold, cells, reference)

    found = []
    with progress.task("Ceilings and lesions", len(subject_ids)) as advance:
        for subject_id, facts in zip(subject_ids, _mapped(one, subject_ids, workers), strict=True):
            found.append(facts)
            advance(1, subject_id)
    return found


def _mapped(one: Any, subject_ids: Sequence[str], workers: int) -> Iterator[SubjectFacts]:
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        yield from pool.map(one, subject_ids)


def _facts(
    scores: RunScores,
    subject_id: str,
    layers: LayerSet,
    protocol: str,
    threshold: float,
    cells: Sequence[LayerCells],
    reference: HealthyReference,
) -> SubjectFacts:
    name = stage_name(DIRECTORY, set_id(layers), protocol, subject_id)
    key = _key(scores, subject_id, layers, threshold, reference)
    stored = kept_json(scores.run, name)
    if stored is not None and stored.get("key") == key:
        return SubjectFacts(_ceilings(stored["ceilings"]), tuple(stored["lesions"]), tuple(stored["shuffled"]))
    case = case_of(scores, subject_id, layers)
    ceilings = subject_ceilings(case, cells)
    rows = lesion_table(
        case,
        ceilings,
        [one for one in cells if one.layer in layers],
        threshold,
        reference.mean,
        reference.deviation,
        single_layer_scores(scores, subject_id),
        in_mni=in_template_space(case.volume, scores.run.record["preprocessing"]["registration"]),
    )
    facts = SubjectFacts(ceilings, tuple(rows), _shuffled(case))
    keep_json(
        scores.run,
        name,
        {"key": key, "ceilings": asdict(ceilings), "lesions": list(facts.lesions), "shuffled": list(facts.shuffled)},
    )
    return facts


def _shuffled(case: Case) -> tuple[float, float]:
    voxels = case.voxels
    together = np.concatenate([voxels.anomalous, voxels.normal])
    chosen = np.zeros(len(together), dtype=bool)
    drawn = stream(0, f"shuffled labels {case.subject_id}").choice(len(together), len(voxels.anomalous), replace=False)
    chosen[drawn] = True
    if not chosen.any():
        return 0.0, 0.0
    return best_dice(together[chosen], together[~chosen])[0], all_positive_dice(float(chosen.mean()))


def _ceilings(stored: Mapping[str, Any]) -> SubjectCeilings:
    def layers(found: Mapping[str, Any]) -> dict[str, Ceiling]:
        return {name: Ceiling(**values) for name, values in found.items()}

    lesions = tuple(LesionCeiling(**{**one, "layers": layers(one["layers"])}) for one in stored["lesions"])
    return SubjectCeilings(**{**stored, "layers": layers(stored["layers"]), "lesions": lesions})


def _key(scores: RunScores, subject_id: str, layers: LayerSet, threshold: float, reference: HealthyReference) -> str:
    return fingerprint(
        {
            "version": VERSION,
            **made_from(scores, subject_id),
            "layers": list(layers),
            "threshold": float(threshold),
            "reference": reference.key,
        }
    )

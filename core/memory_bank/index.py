"""Candidates from a FAISS index, distances measured exactly: for banks too large to be searched exhaustively.

Approximate is which entries are looked at: the nearest few by an index over all layers and by one over each layer.
Exact are the distances to them, under every layer set. So every score is at least the true one, and equal to it where
the true neighbour is among the candidates; `Audit` measures how often. Combinations of some layers borrow the
candidates of the full set and of their single layers. An index is a cache: it is rebuilt from the bank whenever its
files are not, byte for byte, what was written for this very bank.

FAISS: Douze et al. 2024, arXiv:2401.08281; HNSW: Malkov & Yashunin 2016, arXiv:1603.09320.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64

from core.features.settings import every_layer_set
from core.memory_bank.index_audit import Audit, compare
from core.memory_bank.layer_set_sums import POSITION
from core.memory_bank.search import Found, Patches, Queries, Rows, search_everywhere
from core.memory_bank.settings import BankSettings
from core.randomness import stream
from core.types import LayerSet, Monitor, silent
from data.errors import IntegrityError
from data.files import committed_directory, verify_directory
from data.json_files import read_json, write_json

AUDITED = 256
"""Patches of one subject that are looked for among all others."""
HNSW_LINKS = 32
_SPARE = 8
"""In an audit, candidates asked for per candidate wanted, since those of the subject itself do not count."""
_DESCRIPTION = "index.json"
_ADD_BYTES = 64e6
_MEASURE_BYTES = 16e6
_TRAINED_PER_LIST = 64
"""Rows that the lists of 'ivf' are learned from, per list; FAISS asks for at least 39."""


class BankIndex:
    """FAISS indices over a bank: over all layers together, and over each layer alone."""

    def __init__(self, views: Mapping[LayerSet, Any], settings: BankSettings, note: str, audit: Audit | None) -> None:
        self._views = {layers: _on_gpu(view, settings) for layers, view in views.items()}
        self.settings, self.note, self._audit = settings, note, audit

    @property
    def audit(self) -> Audit:
        """Recall and error against the exact search, measured when the index was built."""
        assert self._audit is not None
        return self._audit

    def candidates(
        self, queries: Queries, layer_sets: Sequence[LayerSet], excluded: Bool[np.ndarray, " entries"] | None = None
    ) -> list[Int64[np.ndarray, "positions few"]]:
        """Per volume, entries worth measuring for each position; duplicates are possible. `excluded` never come."""
        used = {layer for layers in layer_sets for layer in layers}
        views = {layers: view for layers, view in self._views.items() if len(layers) > 1 or layers[0] in used}
        return [
            np.concatenate(
                [self._of_view(queries, rows, layers, view, excluded) for layers, view in views.items()], axis=1
            )
            for rows in queries.rows
        ]

    def _of_view(
        self,
        queries: Queries,
        rows: Rows,
        layers: LayerSet,
        view: Any,
        excluded: Bool[np.ndarray, " entries"] | None,
    ) -> Int64[np.ndarray, "positions few"]:
        few = self.settings.candidates
        asked = min(view.ntotal, few if excluded is None else _SPARE * few)
        if len(layers) == 1 and not queries.positioned:
            distinct = rows[layers[0]].float().cpu().numpy()
            found = view.search(np.ascontiguousarray(distinct), asked)[1][queries.lookup[layers[0]]]
        else:
            parts = [rows[layer].float().cpu().numpy()[queries.lookup[layer]] for layer in layers]
            if queries.positioned:
                parts.append(rows[POSITION].float().cpu().numpy())
            found = view.search(np.ascontiguousarray(np.concatenate(parts, axis=1)), asked)[1]
        # FAISS says -1 where its lists hold too few; any entry is a valid candidate.
        candidates: np.ndarray = np.maximum(found, 0)
        return candidates if excluded is None else _without(found, excluded, few)


def search_index(
    index: BankIndex,
    queries: Queries,
    patches: Patches,
    layer_sets: Sequence[LayerSet],
    excluded: Bool[np.ndarray, " entries"] | None = None,
) -> Found:
    """The nearest candidate for every position, volume and layer set; distances exact. `queries` have all layers."""
    found = Found.empty(len(layer_sets), len(queries.rows), queries.n_positions)
    for volume, candidates in enumerate(index.candidates(queries, layer_sets, excluded)):
        step = max(1, int(_MEASURE_BYTES / (candidates.shape[1] * patches.bytes_per_entry)))
        for start in range(0, queries.n_positions, step):
            here = slice(start, min(start + step, queries.n_positions))
            squared = _squared(queries, volume, np.arange(here.start, here.stop), patches, candidates[here])
            for number, layers in enumerate(layer_sets):
                total = sum(squared[layer] for layer in (*layers, *((POSITION,) if queries.positioned else ())))
                best = np.asarray(total).argmin(1)
                rows = np.arange(len(best))
                found.distance[number, volume, here] = np.sqrt(np.asarray(total)[rows, best])
                found.entry[number, volume, here] = candidates[here][rows, best]
    return found


def open_index(
    patches: Patches,
    subject_of: Int64[np.ndarray, " entries"],
    settings: BankSettings,
    directory: Path | None = None,
    *,
    monitor: Monitor = silent,
) -> BankIndex:
    """The index of a bank: read from `directory` when it was written for these patches, else built and kept there.

    `note` of the index says which, and why. A file that was cut short or changed is never searched. Equal seeds give
    equal indices. The monitor gets the recall of a new index.
    """
    fingerprint = _fingerprint(patches, settings)
    reason = "Index built in memory."
    if directory is not None:
        try:
            return _read(directory, settings, fingerprint)
        except (IntegrityError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
            there = (directory / _DESCRIPTION).exists() or directory.is_dir()
            reason = f"Index rebuilt: {error}" if there else "Index built and kept on disk."
    views = {layers: _built(patches, layers, settings) for layers in _view_sets(patches)}
    unaudited = BankIndex(views, settings, reason, None)
    audit = _audited(unaudited, patches, subject_of, settings)
    monitor(len(views), {"recall": audit.recall, "p99_error": audit.p99_error})
    if directory is not None:
        try:
            _write(directory, views, fingerprint, audit)
        except RuntimeError as problem:  # of ours, or the library's for a disk that is full
            reason += f" It could not be kept: {problem}"
    return BankIndex(views, settings, reason, audit)


def _audited(
    index: BankIndex, patches: Patches, subject_of: Int64[np.ndarray, " entries"], settings: BankSettings
) -> Audit:
    """Some patches of one subject, compared with those of all others, as a new subject's would be."""
    random = stream(settings.seed, "memory bank audit")
    excluded = subject_of == subject_of[random.integers(len(patches))]
    chosen = np.sort(random.permutation(np.flatnonzero(excluded))[:AUDITED])
    if excluded.all():  # A bank of one subject: hold out at most every other patch.
        chosen = chosen[: max(1, len(patches) // 2)]
        excluded = np.isin(np.arange(len(patches)), chosen) if len(patches) > 1 else np.zeros(1, dtype=bool)
    layers, cpu = tuple(layer for layer in patches.rows if layer != POSITION), torch.device("cpu")
    rows = {layer: patches.layer_rows(layer, chosen, cpu) for layer in patches.rows}
    queries = Queries((rows,), {layer: np.arange(len(chosen)) for layer in layers})
    others = Patches(patches.rows, {layer: row_of[~excluded] for layer, row_of in patches.row_of.items()})
    layer_sets = every_layer_set(layers)
    exact = search_everywhere(queries, others, layer_sets)
    return compare(search_index(index, queries, patches, layer_sets, excluded), exact, layer_sets)


def _without(
    found: Int64[np.ndarray, "positions asked"], excluded: Bool[np.ndarray, " entries"], few: int
) -> Int64[np.ndarray, "positions few"]:
    """The first few of each row that are not excluded; where there are fewer, some entry that is not."""
    bad = (found < 0) | excluded[found]
    order = np.argsort(bad, axis=1, kind="stable")[:, :few]
    kept = np.where(bad, int(np.argmin(excluded)), found)
    nearest: np.ndarray = np.take_along_axis(kept, order, axis=1)
    return nearest


def _view_sets(patches: Patches) -> list[LayerSet]:
    layers = tuple(layer for layer in patches.rows if layer != POSITION)
    return [layers, *((layer,) for layer in layers if len(layers) > 1)]


def _built(patches: Patches, layers: LayerSet, settings: BankSettings) -> Any:
    parts = (*layers, *((POSITION,) if POSITION in patches.rows else ()))
    width = sum(patches.rows[layer].shape[1] for layer in parts)
    step, threads = max(1, int(_ADD_BYTES / (4 * width))), faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(1)  # Several threads link a graph in the order in which they come.
        index = _empty(patches, parts, width, settings)
        for start in range(0, len(patches), step):
            index.add(_joint(patches, parts, np.arange(start, min(start + step, len(patches)))))
    finally:
        faiss.omp_set_num_threads(threads)
    return index


def _empty(patches: Patches, parts: Sequence[str], width: int, settings: BankSettings) -> Any:
    if settings.search == "exact":
        return faiss.IndexFlatL2(width)
    if settings.search == "hnsw":
        graph = faiss.IndexHNSWFlat(width, HNSW_LINKS)
        graph.hnsw.efSearch = 4 * settings.nprobe
        return graph
    lists = max(1, min(int(4 * np.sqrt(len(patches))), len(patches) // 39))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, lists)
    index.cp.seed, index.nprobe = settings.seed + 1, settings.nprobe
    sample = min(len(patches), _TRAINED_PER_LIST * lists)
    drawn = stream(settings.seed, "memory bank lists").choice(len(patches), size=sample, replace=False)
    index.train(_joint(patches, parts, np.sort(drawn)))
    return index


def _joint(
    patches: Patches, parts: Sequence[str], numbers: Int64[np.ndarray, " entries"]
) -> Float32[np.ndarray, "entries d"]:
    cpu = torch.device("cpu")
    return np.concatenate([patches.layer_rows(layer, numbers, cpu).numpy() for layer in parts], axis=1)


def _squared(
    queries: Queries,
    volume: int,
    positions: Int64[np.ndarray, " block"],
    patches: Patches,
    candidates: Int64[np.ndarray, "block few"],
) -> dict[str, Float32[np.ndarray, "block few"]]:
    """Per layer, squared distances between each position and its candidates, from the differences."""
    squared = {}
    for layer, values in queries.rows[volume].items():
        index = positions if layer == POSITION else queries.lookup[layer][positions]
        mine = values[torch.from_numpy(index).to(values.device)]
        theirs = patches.layer_rows(layer, candidates.reshape(-1), values.device)
        apart = theirs.view(*candidates.shape, -1) - mine[:, None]
        squared[layer] = apart.square_().sum(2).cpu().numpy()
    return squared


def _on_gpu(index: Any, settings: BankSettings) -> Any:
    """The same index on the first graphics card where FAISS sees one; its graph search is for processors alone."""
    if settings.search == "hnsw" or faiss.get_num_gpus() == 0:
        return index
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)


def _fingerprint(patches: Patches, settings: BankSettings) -> str:
    """What an index depends on: every stored number, and how it is built."""
    digest = hashlib.sha256()
    for layer, rows in patches.rows.items():
        digest.update(f"{layer} {tuple(rows.shape)} {rows.dtype}".encode())
        step = max(1, int(_ADD_BYTES / (4 * rows.shape[1])))
        for start in range(0, len(rows), step):
            digest.update(rows[start : start + step].contiguous().cpu().numpy().data)
        digest.update(np.ascontiguousarray(patches.row_of[layer]).data)
    built_by = (settings.search, settings.nprobe, settings.candidates, settings.seed, HNSW_LINKS, faiss.__version__)
    digest.update(repr(built_by).encode())
    return digest.hexdigest()


def _write(directory: Path, views: Mapping[LayerSet, Any], fingerprint: str, audit: Audit) -> None:
    with committed_directory(directory) as scratch:
        for number, view in enumerate(views.values()):
            faiss.write_index(view, str(scratch / f"view-{number}.faiss"))
        value = {
            "schema": 1,
            "bank": fingerprint,
            "views": [list(layers) for layers in views],
            "audit": {**dataclasses.asdict(audit), "recall_of": dict(audit.recall_of)},
        }
        write_json(scratch / _DESCRIPTION, value)


def _read(directory: Path, settings: BankSettings, fingerprint: str) -> BankIndex:
    verify_directory(directory)
    value = read_json(directory / _DESCRIPTION)
    if value["bank"] != fingerprint:
        raise IntegrityError(f"{directory} was written for another bank, or other settings.")
    views = {
        tuple(layers): faiss.read_index(str(directory / f"view-{number}.faiss"))
        for number, layers in enumerate(value["views"])
    }
    return BankIndex(views, settings, "Index read from disk.", Audit(**value["audit"]))

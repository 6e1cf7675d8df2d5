"""Gaussian, memory bank and position-aware bank on planted strokes in real heads. Makes docs/results/memory_banks.md.

    python -m benchmarks.bank_study --scans ../shared/mri --runs runs-real

Cohort, split, planted lesions and encoder are those of `benchmarks.real_study`, whose runs are read and not made again.
Rows come in order of importance; one that would not end within `--minutes` is left out, and the report says so. Repeat
the command to go on where it stopped.
"""

import argparse
import dataclasses
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from benchmarks.bank_report import write_report
from benchmarks.real_study import ENCODER, PREPROCESSING, build_tables
from core.detectors.feature_gaussian import FeatureGaussian
from core.detectors.patchcore import PatchCore
from core.features.extraction import FeatureExtractor, FeatureMap
from core.features.settings import FeatureSettings
from core.memory_bank.index import open_index, search_index
from core.memory_bank.index_audit import compare
from core.memory_bank.search import Found, Patches, Queries, search_everywhere
from core.memory_bank.settings import BankSettings
from core.metrics.healthy_threshold import segment
from core.metrics.lesions import lesion_report
from core.progress import Progress, open_progress
from core.runs.evaluated import read_metrics
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.study import data_source, fitted, fitting, preparing, run_scans, scoring
from core.study.evaluation import evaluate_run
from core.study.gating import make_gated
from core.study.stored_scores import open_scores, set_id
from core.study.subject_level import subject_level
from core.types import LayerSet, ScoreMap
from data.files import is_committed
from data.json_files import read_json, write_json
from data.volume import Volume
from models.tensor_files import load_tensors, save_tensors

LAYERS = ("stage0", "stage1", "stage2")
FEATURES = FeatureSettings(layers=LAYERS, grid="4mm", neighbourhood=3)
PLACES = BankSettings(subset="random", coreset_ratio=0.25, pool=1_000_000, position="restricted")
SHARE = 0.0025
"""Of all patches, in banks that are searched anywhere; PatchCore keeps 0.01, two rows do so here."""
ALONE = "stage0"
"""The layer for which patches are also selected by itself."""
FACTS = "bank-study.json"
LARGE, LARGE_ENTRIES = "within-8mm", 100_000
"""The bank of which so many entries are searched by an index."""
N_OTHERS = 100
"""Positions of each scan outside lesions at which it is judged too."""
BY_LESION = ("zscore", "gaussian", "greedy", "within-8mm", "within-4mm", "weighted-0.05", "weighted-0.2")
"""Rows that are compared lesion by lesion."""


@dataclass(frozen=True)
class Row:
    """One detector of the table."""

    kind: str
    minutes: float
    """What it took on one core that other work shared (measured): fitting, scoring, judging."""
    bank: BankSettings | None = None
    """None: the Gaussian."""
    trained: bool = True
    layers: LayerSet = LAYERS

    @property
    def detector(self) -> FeatureGaussian | PatchCore:
        """Its recipe."""
        features = replace(FEATURES, layers=self.layers)
        if self.bank is None:
            return FeatureGaussian(encoder=ENCODER, features=features)
        return PatchCore(encoder=ENCODER, features=features, bank=self.bank)


FEW = BankSettings(coreset_ratio=SHARE)
ROWS = (
    Row("gaussian", 4),
    Row("within-8mm", 5, replace(PLACES, radius_mm=8.0)),
    Row("greedy", 4, FEW),
    Row("random", 3, replace(FEW, subset="random")),
    Row("weighted-0.05", 4, replace(FEW, position="weighted", position_weight=0.05)),
    Row("within-4mm", 4, replace(PLACES, radius_mm=4.0)),
    Row("half", 4, replace(FEW, subset="half")),
    Row("greedy-alone", 2, FEW, layers=(ALONE,)),
    Row("weighted-0.2", 4, replace(FEW, position="weighted", position_weight=0.2)),
    Row("kmeans", 5, replace(FEW, subset="kmeans")),
    Row("greedy-untrained", 9, FEW, trained=False),
    Row("random-1", 12, replace(FEW, subset="random", coreset_ratio=0.01)),
    Row("greedy-1", 14, replace(FEW, coreset_ratio=0.01)),
)
GATES = ("dark", "zscore")
BESIDE = {"zscore": "zscore", "dark": "dark", "real-random": "random", "real-simclr": "simclr"}
"""Runs of the real study that stand in the table, by their name here."""


def main() -> None:
    """Make the runs that are not there yet, measure, write the report."""
    given = _arguments()
    torch.set_num_threads(given.threads)
    progress, began = open_progress(), time.monotonic()
    planted, _ = build_tables(given.scans, given.runs)
    source = data_source.DataSource(planted, layout="table", preprocessing=PREPROCESSING)
    preparing.prepare(given.runs, source, progress)
    wanted = [row for row in ROWS if given.rows is None or row.kind in given.rows]
    _say_plan(given.runs, wanted, given.minutes, progress)
    encoder = open_run(given.runs, "encoder")
    features = given.runs / ".cache" / "bank-features"
    with features_once(features):
        for row in wanted:
            left = given.minutes - (time.monotonic() - began) / 60
            if row.minutes > left and not _is_made(given.runs, row.kind):
                progress.say(f"note: {row.kind} left out: about {row.minutes:g} min, and {left:.0f} are left.")
                continue
            make_row(given.runs, source, row, encoder, progress)
        made = {row.kind: open_run(given.runs, _run_id(row.kind)) for row in ROWS if _is_made(given.runs, row.kind)}
        gate_kind, gated = make_gates(given.runs, made, progress)
        measure(given.runs, made, progress)
    beside = {kind: open_run(given.runs, f"planted-{of}") for kind, of in BESIDE.items()}
    left_out = [row.kind for row in ROWS if row.kind not in made]
    write_report(given.report, {**beside, **made, **gated}, gate_kind, left_out, _facts(given.runs))


def make_row(runs: Path, source: data_source.DataSource, row: Row, encoder: Run, progress: Progress) -> Run:
    """Fit, score and judge one detector, unless that is done."""
    began = time.monotonic()
    run = fitting.fit(
        runs,
        source,
        row.detector,
        progress,
        name=f"bank study, {row.kind}",
        run_id=_run_id(row.kind),
        encoder_run=encoder if row.trained else None,
    )
    if not is_committed(run.directory / "evaluation"):
        run = scoring.score(run, progress)
        evaluate_run(run, progress, workers=1)
        progress.say(f"{row.kind}: {(time.monotonic() - began) / 60:.1f} min")
    return run


def make_gates(runs: Path, made: Mapping[str, Run], progress: Progress) -> tuple[str, dict[str, Run]]:
    """The bank with the best validation Dice, and maps that count only inside its segmentation."""
    rated = {row.kind: validation_dice(made[row.kind]) for row in ROWS if row.bank and row.kind in made}
    rated.pop("greedy-alone", None)
    best = max(rated, key=lambda kind: rated[kind])
    gated = {}
    for kind in GATES:
        run_id = f"bank-gated-{kind}-by-{best}"
        if not _is_evaluated(runs, run_id):
            second = open_run(runs, f"planted-{kind}")
            make_gated(runs, made[best], second, progress, run_id=run_id, name=f"{kind} gated by {best}", workers=1)
        gated[f"gated-{kind}"] = open_run(runs, run_id)
    return best, gated


def validation_dice(run: Run) -> float:
    """Mean Dice of the headline set on the labelled validation subjects, working grid."""
    return float(read_metrics(run)["sets"][_headline(run)]["working"]["validation_mean_dice"])


def measure(runs: Path, made: Mapping[str, Run], progress: Progress) -> None:
    """What the evaluations do not hold: lesion by lesion, coresets, layer sets, index. Kept beside the runs."""
    facts = _facts(runs)
    for kind, run in {**made, "zscore": open_run(runs, "planted-zscore")}.items():
        if kind in BY_LESION and kind not in facts.get("lesions", {}):
            progress.say(f"Lesion by lesion: {kind}")
            _keep(runs, "lesions", {kind: lesions_found(run)})
        if kind not in ("gaussian", "zscore", *facts.get("healthy_distances", {})):
            _keep(runs, "healthy_distances", {kind: healthy_distances(run)})
    if {"greedy", "greedy-alone"} <= set(made) and "alone" not in facts:
        _keep(runs, "alone", selected_alone(made["greedy"], made["greedy-alone"]))
    for kind, of in BESIDE.items():
        if kind not in facts.get("subject_level", {}):
            scores = open_scores(open_run(runs, f"planted-{of}"))
            _keep(runs, "subject_level", {kind: subject_level(scores, scores.layer_set(_headline(scores.run)))})
    times = np.loadtxt(runs / ".cache" / "bank-features" / "seconds.txt", ndmin=1)
    _keep(runs, "features_seconds", {"seconds": float(times.sum()), "scans": len(times)})
    if LARGE in made and "same_patches" not in facts:
        _keep(runs, "same_patches", same_patches(made[LARGE]))
    if LARGE in made and "ivf" not in facts.get("index", {}):
        progress.say("Index over a larger bank, at lesions")
        _keep(runs, "index", {"ivf": index_on_lesions(made[LARGE], BankSettings(subset="random", search="ivf"))})


def lesions_found(run: Run) -> list[dict[str, Any]]:
    """Every lesion of the test subjects at the validation threshold of the headline set, native space."""
    scores, metrics = open_scores(run), read_metrics(run)
    threshold = metrics["sets"][metrics["headline"]]["native"]["protocols"]["validation"]["threshold"]
    layers, rows = scores.layer_set(metrics["headline"]), []
    for subject_id in scores.subjects("test"):
        prepared = scores.prepared(subject_id)
        if prepared.native_lesion is None or scores.is_healthy(subject_id):
            continue
        native = scores.native_scores(subject_id, layers)
        score_map = ScoreMap(native, prepared.native_grid, subject_id, scores.unit)
        report = lesion_report(score_map, segment(score_map, threshold), prepared.native_lesion)
        for found in report.lesions:
            row = dataclasses.asdict(found)
            rows.append(
                {"subject_id": subject_id, **{k: row[k] for k in ("label", "volume_ml", "found", "overlap", "iou")}}
            )
    return rows


def healthy_distances(run: Run) -> dict[str, Any]:
    """How far patches of healthy heads that the bank never saw (calibration) are from it, all layers."""
    scores = open_scores(run)
    row = scores.layer_sets.index(scores.layers)
    values = np.concatenate([scores.distances(i)[row] for i in scores.subjects("calibration")]).astype(np.float64)
    ill = np.concatenate([_lesion_values(run, i, row) for i in _ill(run)])
    return {
        "mean": float(values.mean()),
        "p99": float(np.percentile(values, 99)),
        "largest": float(values.max()),
        "n": len(values),
        "lesion_mean": float(ill.mean()),
        "lesion_above_p99": float((ill > np.percentile(values, 99)).mean()),
        "n_lesion": len(ill),
    }


def selected_alone(whole: Run, alone: Run) -> dict[str, Any]:
    """One layer under a coreset chosen on all layers, and under one chosen on that layer: agreement of the maps."""
    first, second = open_scores(whole), open_scores(alone)
    row = first.layer_sets.index((ALONE,))
    ranks = []
    for subject_id in first.subjects("test"):
        a, b = first.distances(subject_id)[row], second.distances(subject_id)[0]
        ranks.append(float(np.corrcoef(rankdata(a), rankdata(b))[0, 1]))
    return {"layer": ALONE, "rank_correlation": float(np.mean(ranks)), "lowest": float(min(ranks)), "n": len(ranks)}


def index_on_lesions(run: Run, settings: BankSettings) -> dict[str, Any]:
    """Recall and error of an index over part of a bank at lesion positions of test subjects, against exact search."""
    detector = fitted.load_detector(run)
    assert isinstance(detector, PatchCore)
    assert detector.bank_ is not None
    assert detector.extractor_ is not None
    bank, sets = detector.bank_, detector.layer_sets
    random = np.random.Generator(np.random.Philox(key=np.array([0, 5], dtype=np.uint64)))
    kept = np.sort(random.permutation(len(bank))[:LARGE_ENTRIES])
    patches = Patches(bank.rows, {layer: row_of[kept] for layer, row_of in bank.row_of.items()})
    began = time.perf_counter()
    index = open_index(patches, bank.subject_of[kept], settings)
    result: dict[str, Any] = {"build_seconds": time.perf_counter() - began, "entries": len(kept)}
    pairs: dict[str, list[tuple[Found, Found]]] = {"lesion": [], "other": []}
    for number, subject_id in enumerate(_ill(run)):
        queries = bank.queries([detector.extractor_(run_scans.prepared_of(run, subject_id).volume).rows], bank.layers)
        inside = _lesion_positions(run, subject_id)
        others = random.choice(np.setdiff1d(np.arange(queries.n_positions), inside), N_OTHERS, replace=False)
        for where, chosen in (("lesion", inside), ("other", others)):
            rows = {layer: queries.rows[0][layer][queries.lookup[layer][chosen]] for layer in bank.layers}
            part = Queries((rows,), dict.fromkeys(rows, np.arange(len(chosen))))
            pairs[where].append((search_index(index, part, patches, sets), search_everywhere(part, patches, sets)))
        if number == 0:
            began = time.perf_counter()
            search_index(index, queries, patches, sets)
            result["scan_seconds"] = time.perf_counter() - began
            began = time.perf_counter()
            search_everywhere(queries, patches, sets)
            result["exact_seconds"] = time.perf_counter() - began
    for where, found in pairs.items():
        audit = compare(_joined([pair[0] for pair in found]), _joined([pair[1] for pair in found]), sets)
        result[where] = {
            "n": audit.queries,
            "recall": audit.recall,
            "mean_error": audit.mean_error,
            "p99_error": audit.p99_error,
            "lowest_recall": min(audit.recall_of.values()),
        }
    return {**result, "audit_recall": index.audit.recall, "nprobe": settings.nprobe, "candidates": settings.candidates}


def same_patches(run: Run) -> dict[str, Any]:
    """Position against subset: the entries of one bank, in reach only and anywhere, and a few of them anywhere.

    Per test subject with lesions, AUROC of lesion positions against other positions of the same scan, under all layers
    and under one.
    """
    detector = fitted.load_detector(run)
    assert isinstance(detector, PatchCore)
    assert detector.bank_ is not None
    assert detector.extractor_ is not None
    bank, sets = detector.bank_, (LAYERS, (ALONE,))
    random = np.random.Generator(np.random.Philox(key=np.array([0, 6], dtype=np.uint64)))
    counts = {"all": len(bank), "few": round(len(bank) * SHARE / bank.settings.coreset_ratio)}
    order = random.permutation(len(bank))
    result: dict[str, Any] = {"counts": counts, "subjects": [], "values": {set_id(layers): [] for layers in sets}}
    parts, stored, sizes = [], [], []
    for subject_id in _ill(run):
        inside = _lesion_positions(run, subject_id)
        if not len(inside):
            continue
        n = len(detector.layout_.positions)
        chosen = np.append(inside, random.choice(np.setdiff1d(np.arange(n), inside), 2 * N_OTHERS, replace=False))
        queries = bank.queries([detector.extractor_(run_scans.prepared_of(run, subject_id).volume).rows], bank.layers)
        parts.append({layer: queries.rows[0][layer][queries.lookup[layer][chosen]] for layer in bank.layers})
        stored.append(_stored(run, subject_id)[[detector.layer_sets.index(layers) for layers in sets]][:, chosen])
        sizes.append((len(inside), len(chosen)))
        result["subjects"].append(subject_id)
    joint = {layer: torch.cat([part[layer] for part in parts]) for layer in bank.layers}
    total = sum(size for _, size in sizes)
    together = Queries((joint,), dict.fromkeys(joint, np.arange(total)))
    found = {"within": np.concatenate(stored, axis=1)}
    for name, count in counts.items():
        kept = np.sort(order[:count])
        patches = Patches(bank.rows, {layer: row_of[kept] for layer, row_of in bank.row_of.items()})
        found[name] = search_everywhere(together, patches, sets).distance[:, 0]
    for number, layers in enumerate(sets):
        start = 0
        for ill, size in sizes:
            here = {name: values[number, start : start + size] for name, values in found.items()}
            result["values"][set_id(layers)].append({name: _auroc(v[:ill], v[ill:]) for name, v in here.items()})
            start += size
    return result


@contextmanager
def features_once(directory: Path) -> Iterator[None]:
    """Features of a scan are those of every bank: computed once per encoder, and kept in a directory."""
    original = FeatureExtractor.__call__

    def call(self: FeatureExtractor, volume: Volume) -> FeatureMap:
        asked = f"{zlib.crc32(repr((_weights_of(self.encoder), replace(self.settings, layers=()))).encode()):08x}"
        path = directory / asked / f"{volume.subject_id}.safetensors"
        if not path.is_file():
            began = time.perf_counter()
            found = original(self, volume).rows
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(path.with_suffix(".part"), found)
            path.with_suffix(".part").rename(path)
            with (directory / "seconds.txt").open("a") as spent:
                spent.write(f"{time.perf_counter() - began:.2f}\n")
        rows = load_tensors(path)
        if not set(self.settings.layers) <= set(rows):
            return original(self, volume)
        return FeatureMap({layer: rows[layer] for layer in self.settings.layers}, self.layout, volume.subject_id)

    FeatureExtractor.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        FeatureExtractor.__call__ = original  # type: ignore[method-assign]


def _headline(run: Run) -> str:
    return str(read_metrics(run)["headline"])


def _joined(parts: Sequence[Found]) -> Found:
    return Found(np.concatenate([p.distance for p in parts], 2), np.concatenate([p.entry for p in parts], 2))


def _auroc(ill: np.ndarray, well: np.ndarray) -> float:
    ranks = rankdata(np.concatenate([ill, well]))
    return float((ranks[: len(ill)].sum() - len(ill) * (len(ill) + 1) / 2) / (len(ill) * len(well)))


def _weights_of(encoder: torch.nn.Module) -> int:
    return zlib.crc32(b"".join(value.numpy().tobytes() for value in encoder.state_dict().values()))


def _ill(run: Run) -> list[str]:
    scores = open_scores(run)
    return [i for i in scores.subjects("test") if not scores.is_healthy(i)]


def _lesion_positions(run: Run, subject_id: str) -> np.ndarray:
    """Positions whose own working-grid voxel is lesion."""
    scores = open_scores(run)
    prepared, layout = scores.prepared(subject_id), scores.layout
    assert prepared.lesion is not None
    assert layout is not None
    steps = np.rint(np.array(layout.feature_grid.spacing_mm) / layout.working_grid.spacing_mm).astype(np.int64)
    x, y, z = (layout.positions * steps).T
    inside: np.ndarray = np.flatnonzero(prepared.lesion.voxels[x, y, z])
    return inside


def _lesion_values(run: Run, subject_id: str, row: int) -> np.ndarray:
    return _stored(run, subject_id)[row, _lesion_positions(run, subject_id)].astype(np.float64)


def _stored(run: Run, subject_id: str) -> np.ndarray:
    stored: np.ndarray = np.array(open_scores(run).distances(subject_id))
    return stored


def _run_id(kind: str) -> str:
    return f"bank-{kind}"


def _is_evaluated(runs: Path, run_id: str) -> bool:
    return is_committed(runs / run_id / "evaluation")


def _is_made(runs: Path, kind: str) -> bool:
    return _is_evaluated(runs, _run_id(kind))


def _facts(runs: Path) -> dict[str, Any]:
    path = runs / FACTS
    return dict(read_json(path)) if path.is_file() else {}


def _keep(runs: Path, name: str, values: Mapping[str, Any]) -> None:
    facts = _facts(runs)
    write_json(runs / FACTS, {**facts, name: {**facts.get(name, {}), **values}})


def _say_plan(runs: Path, rows: Sequence[Row], minutes: float, progress: Progress) -> None:
    todo = [row for row in rows if not _is_made(runs, row.kind)]
    progress.say(
        f"{len(rows) - len(todo)} rows are there. To make, about {sum(r.minutes for r in todo):.0f} min on one core, "
        f"at most {minutes:g}: " + ", ".join(f"{r.kind} ({r.minutes:g})" for r in todo)
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, required=True, help="folder with ixi_t1_2mm, lesions, stroke_masks_mni")
    parser.add_argument("--runs", type=Path, default=Path("runs-real"))
    parser.add_argument("--rows", nargs="+", choices=[row.kind for row in ROWS], default=None, help="these alone")
    parser.add_argument("--minutes", type=float, default=120, help="a row that would take longer is left out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", type=Path, default=Path("docs/results/memory_banks.md"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

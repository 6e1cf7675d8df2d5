"""The terminal's front door: one verb per use-case, the same functions as the pages. `main` returns the exit code.

0 ok · 2 bad input · 3 environment (disk, memory, permission) · 4 integrity · 5 interrupted, resumable · 6 our bug.
"""

import dataclasses
import errno
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from rich.markup import escape
from rich.table import Table

from core.door import LOCAL_HOSTS, Door, addresses, base_path, host_name, new_token, told
from core.evaluated import read_metrics
from core.lock import taking_over
from core.memory_bank.settings import BankSettings, idle_settings
from core.progress import open_progress
from core.recipes import as_json
from core.simclr_settings import SimclrSettings
from core.store import Run, open_run, runs_flag, stage_done
from core.summary import layer_table, run_rows
from core.versions import noted, notes_of
from data.errors import BadInput, EnvironmentProblem, IntegrityError, Interrupted
from data.permissions import doors_open
from data.preprocessing import Preprocessing
from data.ranges import refuse_out_of_range
from data.trouble import is_trouble, remedy
from verbs.diagnosis import DIAGNOSIS_VERBS
from verbs.gate import GATE_VERBS
from verbs.neighbours import NEIGHBOUR_VERBS
from verbs.pretraining import PRETRAINING_VERBS
from verbs.shared import (
    EXIT_BAD_INPUT,
    EXIT_BUG,
    EXIT_ENVIRONMENT,
    EXIT_INTEGRITY,
    EXIT_INTERRUPTED,
    EXIT_OK,
    RUNS,
    OneRun,
    TakeOver,
    columns_text,
    console,
    interval_text,
    number_text,
    print_json,
    tell_versions,
)
from verbs.visibility import VISIBILITY_VERBS

if TYPE_CHECKING:  # what computes is imported by the verb that needs it: help and lists come without torch
    from core.detectors import AnyDetector
    from core.experiment import DataSource


NEWEST = 50
"""Runs that are listed on a terminal unless all are asked for."""
DRAWN = 100
"""Rows up to which a table is drawn with lines; more come as plain columns, which are a hundred times as fast."""


@dataclass(frozen=True)
class DemoVerb:
    """Build the demo study: synthetic brains, a SimCLR encoder, detectors, evaluation. Finished work is reused.

    Example: python cli.py demo --runs runs
    """

    runs: Path = RUNS
    """Directory that holds the runs."""
    take_over: TakeOver = False


@dataclass(frozen=True)
class AppVerb:
    """Serve the dashboard on this machine only, to whoever has the address that is printed: it holds a fresh token.

    Example: python cli.py app --port 8501
    """

    runs: Path = RUNS
    """Directory that holds the runs."""
    port: int = 8501
    """TCP port on 127.0.0.1."""
    no_token: bool = False
    """Let in whoever reaches the port, other accounts of this machine too."""
    allow_host: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Another name to answer to, as a proxy before it is called; may be given several times."""
    base_path: str = ""
    """Path to serve under, as a proxy hands it on, such as /dicescope."""


@dataclass(frozen=True)
class CheckVerb:
    """Read every scan of a cohort strictly, name the bad ones with cause and remedy; exit 2 if there is any.

    Example: python cli.py check scans/cohort.csv
    """

    cohort: tyro.conf.Positional[Path]
    """A table (CSV, TSV) or a folder (BIDS, IXI, BraTS)."""
    layout: str = "auto"
    """table, bids, ixi, brats, or auto."""
    contrasts: tuple[str, ...] = ()
    """Contrasts to read; all of the first subject when not given."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class _Scans:
    cohort: tyro.conf.Positional[Path]
    """A table (CSV, TSV) or a folder (BIDS, IXI, BraTS)."""
    runs: Path = RUNS
    """Directory that holds the runs."""
    layout: str = "auto"
    """table, bids, ixi, brats, or auto."""
    split: Path | None = None
    """JSON with the lists train, calibration, validation, test; else the table's roles, else a seeded draw."""
    split_seed: int = 0
    """Seed of the drawn split."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class PrepareVerb(_Scans):
    """Register, resample and normalise every scan into the cache; later verbs reuse it.

    Example: python cli.py prepare scans/cohort.csv --preprocessing.contrasts T1 --preprocessing.registration affine
    """

    workers: int = 2
    """Processes."""


@dataclass(frozen=True)
class PretrainVerb(_Scans):
    """Train an encoder by SimCLR on the healthy training scans. Repeat the command with its --run-id to resume.

    Example: python cli.py pretrain scans/cohort.csv --run-id simclr-1 --simclr.steps 500
    """

    name: str = "simclr"
    """What to call the run."""
    run_id: str | None = None
    """Folder of the run; an existing one with the same settings is resumed."""
    simclr: SimclrSettings = field(default_factory=SimclrSettings)
    take_over: TakeOver = False


@dataclass(frozen=True)
class FitVerb(_Scans):
    """Fit a detector of the catalogue to the healthy training scans.

    Example: python cli.py fit scans/cohort.csv --detector gaussian --encoder latest --layers stage0 stage1 stage2
    """

    detector: str = "gaussian"
    """Name in the catalogue: python cli.py detectors."""
    name: str = ""
    """What to call the run; the detector's name when empty."""
    run_id: str | None = None
    """Folder of the run; an existing one with the same settings is resumed."""
    encoder: str = "random"
    """An encoder run (id, path, latest), a safetensors file, the folder of a saved encoder, or random."""
    layers: tuple[str, ...] = ()
    """Layers to model; 'input' is the intensity itself. The recipe's own when not given."""
    grid: str | None = None
    """Feature grid: millimetres such as 4mm, or a layer's name."""
    reduction: Literal["none", "draw", "pca"] | None = None
    """How channels become fewer."""
    max_channels: int | None = None
    """Channels kept per layer when reduced."""
    neighbourhood: int | None = None
    """Edge of the cube of a layer's own cells whose mean makes a feature; 1: the cell alone."""
    feature_seed: int | None = None
    """Of the channels that --reduction draw keeps."""
    form: Literal["auto", "dual", "primal"] | None = None
    """Form of the Gaussian; auto chooses by subjects and features."""
    covariance: Literal["full", "diagonal", "shared"] | None = None
    """Covariance of the Gaussian."""
    shrinkage: Literal["ridge", "ledoit_wolf", "oas"] | None = None
    """Shrinkage rule. It changes the ranking of voxels, not only the conditioning."""
    ridge: float | None = None
    """Added to the diagonal of the covariance (feature units squared)."""
    accumulate: Literal["float64", "float32"] | None = None
    """Stored precision of the moments of form primal; float32 halves their memory."""
    subset: Literal["greedy", "random", "kmeans", "half", "all"] | None = None
    """Which healthy patches a memory bank keeps."""
    coreset_ratio: float | None = None
    """Share of the training patches that a memory bank keeps."""
    pool: int | None = None
    """Patches at most that the selection sees."""
    projection: int | None = None
    """Dimensions of the random projection in which greedy selection measures."""
    scaling: Literal["layer", "none"] | None = None
    """Whether every layer of a memory bank is divided by its own spread, so that all count alike."""
    position: Literal["anywhere", "weighted", "restricted"] | None = None
    """Which entries of a memory bank count at a position."""
    position_weight: float | None = None
    """Feature distance per mm when position is weighted."""
    radius_mm: float | None = None
    """Reach of a restricted bank, mm."""
    search: Literal["exact", "ivf", "hnsw"] | None = None
    """How a memory bank is searched."""
    nprobe: int | None = None
    """Lists that an IVF search visits; a quarter of the breadth of an HNSW search."""
    candidates: int | None = None
    """Nearest entries that an approximate search measures exactly."""
    neighbours: int | None = None
    """Bank neighbours in the re-weighting of a scan's score; 1: none."""
    precision: Literal["float32", "float16"] | None = None
    """Of the stored patches."""
    bank_seed: int | None = None
    """Of the bank's pool, selection and index."""
    allow_idle: bool = False
    """Take settings of a memory bank that nothing will read into the recipe, instead of refusing them."""
    prior_smoothing_mm: float | None = None
    """zscore: smoothing of the scans before mean and deviation are taken, mm."""
    floor: float | None = None
    """zscore: smallest standard deviation, as a fraction of its median over the brain."""
    contrast: int | None = None
    """intensity: index of the contrast."""
    smoothing_mm: float | None = None
    """Standard deviation of the smoothing of score maps, mm."""
    median_voxels: int | None = None
    """Edge of the median filter of score maps, working-grid voxels."""
    memory: float | None = None
    """Peak memory for fitting and scoring, GB."""
    architecture: Literal["cnn3d", "resnet10_3d", "resnet18_3d", "resnet10_2d", "resnet18_2d"] | None = None
    """Of a random encoder, or of the network that a safetensors file was saved from."""
    width: int | None = None
    """Channels of the first stage of such an encoder; a published ResNet has 64."""
    strides: tuple[int, ...] = ()
    """cnn3d: stride of each stage, in its own input cells; 1 2 2 1 1 when not given."""
    stem_stride: int | None = None
    """ResNets: stride of the first convolution, in voxels."""
    max_pool: bool | None = None
    """ResNets: whether the grid is halved once more after the first convolution."""
    seed: int | None = None
    """Of a random encoder's weights."""
    take_over: TakeOver = False


@dataclass(frozen=True)
class ScoreVerb(OneRun):
    """Score the calibration, validation and test scans of a fitted run, under every layer set.

    Example: python cli.py score latest --export maps
    """

    export: Path | None = None
    """Also write score maps (and segmentations at the label-free threshold once evaluated) as NIfTI in the scans' own
    space into this directory."""
    layers: str = ""
    """Layer set to export, joined by +; the headline's, or all layers when not evaluated."""
    memory: float | None = None
    """Memory that scoring may use, GB; the limit that the run was fitted with when not given."""
    share: bool = False
    """Export under the pseudonyms that a shared report uses."""
    display: bool = False
    """Export scores on a 0 to 1 display scale: sigmoid of log1p(score) between healthy calibration quantiles."""
    take_over: TakeOver = False


@dataclass(frozen=True)
class EvaluateVerb(OneRun):
    """Metrics of a scored run under every threshold protocol, with intervals.

    Example: python cli.py evaluate latest --quantile 0.99
    """

    quantile: float = 0.99
    """Share of healthy calibration voxels below the label-free threshold."""
    fp_ml: float | None = None
    """Instead: false-positive millilitres per healthy scan that the label-free threshold may cost."""
    workers: int = 2
    """Processes."""
    take_over: TakeOver = False


@dataclass(frozen=True)
class CompareLayersVerb(OneRun):
    """Every combination of the fitted layers, best first, on the working grid.

    Example: python cli.py compare-layers latest
    """


@dataclass(frozen=True)
class PlantVerb:
    """Plant lesions of given shapes into healthy scans; writes NIfTI files and a table that is read like any cohort.

    Example: python cli.py plant healthy.csv shapes/ planted/ --seed 1
    """

    cohort: tyro.conf.Positional[Path]
    """Healthy scans: a table or a folder."""
    shapes: tyro.conf.Positional[Path]
    """Folder of lesion masks in MNI space (NIfTI)."""
    out: tyro.conf.Positional[Path]
    """Folder to write."""
    layout: str = "auto"
    """table, bids, ixi, brats, or auto."""
    contrast: str = "T1"
    """Contrast to plant into."""
    role: Literal["validation", "test"] = "test"
    """Split of the planted scans in the written table."""
    seed: int = 0
    """Of shapes, strengths and places."""
    workers: int = 2
    """Processes."""


@dataclass(frozen=True)
class RunsVerb:
    """The runs with their numbers under every threshold protocol: healthy, validation, oracle.

    A damaged run is named with its remedy, hides no other, and makes the exit code 4.

    Example: python cli.py runs --json
    """

    runs: Path = RUNS
    """Directory that holds the runs."""
    all: bool = False
    """Every run; on a terminal, only the newest 50 are listed without it."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class DetectorsVerb:
    """The catalogue of detectors and their settings.

    Example: python cli.py detectors --json
    """

    json: bool = False
    """Print JSON."""


def main(argv: Sequence[str]) -> int:
    """Run one verb; returns the exit code and never raises for what a user can cause."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return EXIT_OK
    if argv[0] not in VERBS:
        print(f"No verb {argv[0]!r}. There are: {', '.join(VERBS)}. Try: python cli.py --help", file=sys.stderr)
        return EXIT_BAD_INPUT
    kind, action = VERBS[argv[0]]
    try:
        arguments = tyro.cli(kind, args=list(argv[1:]), prog=f"python cli.py {argv[0]}")
        refuse_out_of_range(arguments, flags=True)
    except SystemExit as stop:
        return int(stop.code or 0)
    except BadInput as error:
        return _complain(error, EXIT_BAD_INPUT)
    signal.signal(signal.SIGTERM, _interrupt)
    for warning in doors_open(getattr(arguments, "runs", None)):
        print(f"warning: {warning}", file=sys.stderr)
    try:
        with taking_over(vars(arguments).get("take_over", False)):
            return action(arguments)
    except BadInput as error:
        return _complain(error, EXIT_BAD_INPUT)
    except EnvironmentProblem as error:
        return _complain(error, EXIT_ENVIRONMENT)
    except MemoryError as error:
        return _complain(f"MemoryError: {error}. Make memory free, or give the command less to hold.", EXIT_ENVIRONMENT)
    except IntegrityError as error:
        return _complain(error, EXIT_INTEGRITY)
    except (Interrupted, KeyboardInterrupt) as error:
        return _complain(str(error) or "Interrupted. Repeat the command to go on.", EXIT_INTERRUPTED)
    except BrokenPipeError:
        return EXIT_OK
    except OSError as error:
        if not is_trouble(error):
            traceback.print_exc()
            return _complain("This is a bug of Dicescope. Please report the lines above.", EXIT_BUG)
        place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else Path.cwd()
        return _complain(f"{place}: {error.strerror}. {remedy(error, place)}", EXIT_ENVIRONMENT)
    except Exception:
        traceback.print_exc()
        return _complain("This is a bug of Dicescope. Please report the lines above.", EXIT_BUG)


def _demo(arguments: DemoVerb) -> int:
    from core import demo

    runs = demo.build_demo(arguments.runs, open_progress())
    _print_runs(arguments.runs, [run.run_id for run in runs])
    print("Serve it: python cli.py app" + runs_flag(arguments.runs))
    return EXIT_OK


def _app(arguments: AppVerb) -> int:
    door = Door(
        None if arguments.no_token else new_token(),
        tuple(dict.fromkeys(map(host_name, arguments.allow_host))),
        base_path(arguments.base_path),
    )
    _claim_port(arguments.port)
    root = Path(__file__).resolve().parent
    names = sorted(LOCAL_HOSTS) + [name.partition(":")[0] for name in door.hosts]
    command = [
        *(sys.executable, "-m", "streamlit", "run", str(root / "asgi.py")),
        *("--server.address", "127.0.0.1", "--server.port", str(arguments.port), "--server.headless", "true"),
        *("--server.baseUrlPath", door.base_path),
        *(word for name in names for word in ("--server.allowedHosts", name)),
    ]
    environment = {**os.environ, "DICESCOPE_RUNS": str(arguments.runs.resolve()), **told(door)}
    here, *elsewhere = addresses(door, arguments.port)
    print(f"Dicescope on {here}  (Ctrl-C ends it)", flush=True)
    for address in elsewhere:
        print(f"Through a proxy: {address}", flush=True)
    server = subprocess.Popen(command, env=environment, cwd=root)
    try:
        return EXIT_OK if server.wait() in (0, -signal.SIGTERM, -signal.SIGINT) else EXIT_ENVIRONMENT
    except (KeyboardInterrupt, Interrupted):
        return EXIT_OK
    finally:
        server.terminate()
        server.wait()


def _claim_port(port: int) -> None:
    # Before anything is printed: an address that leads to someone else's server is worse than none.
    if _is_free(port):
        return
    nearby = next((p for p in range(port + 1, min(port + 100, 65536)) if _is_free(p)), None)
    raise EnvironmentProblem(f"Port {port} is in use, try --port {nearby}" if nearby else f"Port {port} is in use.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a closed one is no hindrance
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise EnvironmentProblem(f"Port {port} cannot be used: {error.strerror}. Try --port 8501") from error
            return False
    return True


def _check(arguments: CheckVerb) -> int:
    from data.layout import read_cohort
    from data.reading import check_cohort

    cohort = read_cohort(arguments.cohort, arguments.layout)
    contrasts = arguments.contrasts or tuple(cohort.subjects[0].scans)
    with open_progress().task("Reading scans", len(cohort.subjects)) as advance:
        check = check_cohort(cohort, contrasts, monitor=lambda number, text: advance(1, text))
    if arguments.json:
        print_json(as_json(check))
    else:
        print(f"{len(check.facts)} of {check.n_total} subjects can be read ({', '.join(contrasts)}).")
        for note in cohort.notes:
            print(f"note: {note}")
        for one in check.set_aside:
            print(f"set aside: {one.subject_id} [{one.code}] {one.cause}")
        for first, second in check.duplicates:
            print(f"duplicate: {first} and {second} hold the same voxels. Remove one of them.")
    return EXIT_BAD_INPUT if check.set_aside or check.duplicates else EXIT_OK


def _prepare(arguments: PrepareVerb) -> int:
    from core import experiment

    study = experiment.prepare(arguments.runs, _source(arguments), open_progress(), workers=arguments.workers)
    counts = {role: len(getattr(study.split, role)) for role in ("train", "calibration", "validation", "test")}
    aside = [as_json(s) for s in study.prepared.set_aside]
    if arguments.json:
        print_json(
            {
                "prepared": len(study.prepared.keys),
                "of": len(study.cohort.subjects),
                "split": counts,
                "set_aside": aside,
            }
        )
    else:
        print(
            f"{len(study.prepared.keys)} of {len(study.cohort.subjects)} subjects are prepared: "
            + ", ".join(f"{n} {role}" for role, n in counts.items())
            + "."
        )
        for note in study.cohort.notes:
            print(f"note: {note}")
        for one in study.prepared.set_aside:
            print(f"set aside: {one.subject_id} [{one.code}] {one.cause}")
    return EXIT_OK


def _pretrain(arguments: PretrainVerb) -> int:
    from core import experiment

    run = experiment.pretrain(
        arguments.runs,
        _source(arguments),
        arguments.simclr,
        open_progress(),
        name=arguments.name,
        run_id=arguments.run_id,
    )
    return _report(run, arguments.json, f"Fit a detector on it: python cli.py fit COHORT --encoder {run.run_id}")


def _fit(arguments: FitVerb) -> int:
    from core import experiment

    detector, encoder_run = _detector(arguments)
    source = _source(arguments)
    if encoder_run is not None and source.preprocessing == Preprocessing():
        source = dataclasses.replace(source, preprocessing=experiment.preprocessing_of(encoder_run))
        print(f"Preparing scans as encoder {encoder_run.run_id} was trained on them.", file=sys.stderr)
    run = experiment.fit(
        arguments.runs,
        source,
        detector,
        open_progress(),
        name=arguments.name or arguments.detector,
        run_id=arguments.run_id,
        encoder_run=encoder_run,
    )
    return _report(run, arguments.json, f"Score it: python cli.py score {run.as_argument}")


def _score(arguments: ScoreVerb) -> int:
    from core import experiment

    run = open_run(arguments.runs, arguments.run, "detector")
    damaged: IntegrityError | None = None
    try:
        run = experiment.score(run, open_progress(), memory_gb=arguments.memory)
    except IntegrityError as error:
        if arguments.export is None:
            raise
        damaged = error  # the maps of the others are exported all the same
    tell_versions(run)
    if arguments.export is not None:
        from core.export import export_maps

        paths = export_maps(
            run, arguments.export, arguments.layers, open_progress(), display=arguments.display, share=arguments.share
        )
        print(f"{len(paths)} NIfTI files in {arguments.export}", file=sys.stderr)
    if damaged is not None:
        raise damaged
    where = runs_flag(arguments.runs)
    next_step = f"Evaluate it: python cli.py evaluate {run.run_id}{where}"
    if stage_done(run, "evaluation"):
        next_step = f"It is evaluated already. Look at it: python cli.py app{where}"
    return _report(run, arguments.json, next_step)


def _evaluate(arguments: EvaluateVerb) -> int:
    from core import evaluation

    run = open_run(arguments.runs, arguments.run, "detector")
    metrics = evaluation.evaluate_run(
        run, open_progress(), quantile=arguments.quantile, fp_ml_per_scan=arguments.fp_ml, workers=arguments.workers
    )
    tell_versions(run)
    if arguments.json:
        print_json(metrics)
    else:
        _print_runs(arguments.runs, [run.run_id])
    return EXIT_OK


def _compare_layers(arguments: CompareLayersVerb) -> int:
    run = open_run(arguments.runs, arguments.run, "detector")
    rows = layer_table(read_metrics(run))
    tell_versions(run)
    if arguments.json:
        print_json(rows)
        return EXIT_OK
    table = Table(
        "layers",
        "AUPRC",
        "⌈Dice⌉ (oracle)",
        "Dice, healthy threshold",
        "Dice, validation threshold",
        title="working grid, best ⌈Dice⌉ first",
    )
    for row in sorted(rows, key=lambda r: -(r["ceil_dice"] or 0)):
        table.add_row(
            row["layers"],
            number_text(row["auprc"]),
            number_text(row["ceil_dice"]),
            interval_text(row["healthy"]),
            interval_text(row["validation"]),
        )
    console().print(table)
    return EXIT_OK


def _plant(arguments: PlantVerb) -> int:
    from data.layout import read_cohort
    from data.planting import plant_cohort, read_shapes

    cohort = read_cohort(arguments.cohort, arguments.layout)
    chosen = tuple(dataclasses.replace(s, role=arguments.role) for s in cohort.subjects if s.healthy)
    table = plant_cohort(
        dataclasses.replace(cohort, subjects=chosen),
        read_shapes(arguments.shapes),
        arguments.out,
        contrast=arguments.contrast,
        seed=arguments.seed,
        workers=arguments.workers,
    )
    planted = len(read_cohort(table, "table").subjects)
    print(f"Planted {planted} of {len(cohort.subjects)} scans: {table}. Check it: python cli.py check {table}")
    return EXIT_OK


def _runs(arguments: RunsVerb) -> int:
    rows, apart = run_rows(arguments.runs)
    damaged = [row["problem"] for row in rows if "problem" in row]
    if arguments.json:
        print_json(rows)
    elif not rows:
        print(f"No runs in {arguments.runs} yet. Make one: python cli.py demo")
    else:
        shown = rows[:NEWEST] if sys.stdout.isatty() and not arguments.all else rows
        _print_rows(shown)
        if len(shown) < len(rows):
            print(f"and {len(rows) - len(shown):,} more: python cli.py runs --all{runs_flag(arguments.runs)}")
        for note, ids in notes_of((row["run_id"], row["version_notes"]) for row in shown).items():
            print(f"note: {noted(note, ids)}")
    for problem in (*damaged, *apart):
        print(f"problem: {problem}", file=sys.stderr)
    return EXIT_INTEGRITY if damaged else EXIT_OK


def _detectors(arguments: DetectorsVerb) -> int:
    from core.detectors import CATALOGUE, DESCRIPTIONS, recipe_json

    if arguments.json:
        print_json(
            {name: {"description": DESCRIPTIONS[name], **recipe_json(recipe)} for name, recipe in CATALOGUE.items()}
        )
        return EXIT_OK
    table = Table("name", "what it is")
    for name in CATALOGUE:
        table.add_row(name, DESCRIPTIONS[name])
    console().print(table)
    return EXIT_OK


VERBS: dict[str, tuple[Any, Callable[[Any], int]]] = {
    "demo": (DemoVerb, _demo),
    "app": (AppVerb, _app),
    "check": (CheckVerb, _check),
    "prepare": (PrepareVerb, _prepare),
    "pretrain": (PretrainVerb, _pretrain),
    "fit": (FitVerb, _fit),
    "score": (ScoreVerb, _score),
    "evaluate": (EvaluateVerb, _evaluate),
    "compare-layers": (CompareLayersVerb, _compare_layers),
    **GATE_VERBS,
    **PRETRAINING_VERBS,
    **DIAGNOSIS_VERBS,
    **NEIGHBOUR_VERBS,
    **VISIBILITY_VERBS,
    "plant": (PlantVerb, _plant),
    "runs": (RunsVerb, _runs),
    "detectors": (DetectorsVerb, _detectors),
}


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {kind.__doc__.strip().splitlines()[0]}" for name, (kind, _) in VERBS.items()]
    return "\n".join(
        ["Dicescope: why is my Dice low, and what would raise it?", "", "python cli.py VERB --help", "", *lines]
    )


def _source(arguments: _Scans) -> "DataSource":
    from core.experiment import DataSource

    return DataSource(
        cohort=arguments.cohort,
        layout=arguments.layout,
        split=arguments.split,
        seed=arguments.split_seed,
        preprocessing=arguments.preprocessing,
    )


def _detector(arguments: FitVerb) -> "tuple[AnyDetector, Run | None]":
    from core.detectors import LAYERED, Intensity, PatchCore, VoxelZScore, make

    detector = make(arguments.detector)
    own: dict[str, Any] = {"smoothing_mm": arguments.smoothing_mm, "median_voxels": arguments.median_voxels}
    features = {
        "layers": arguments.layers or None,
        "grid": arguments.grid,
        "reduction": arguments.reduction,
        "max_channels": arguments.max_channels,
        "neighbourhood": arguments.neighbourhood,
        "feature_seed": arguments.feature_seed,
    }
    gaussian = {
        "form": arguments.form,
        "covariance": arguments.covariance,
        "shrinkage": arguments.shrinkage,
        "ridge": arguments.ridge,
        "accumulate": arguments.accumulate,
    }
    bank = {
        "subset": arguments.subset,
        "coreset_ratio": arguments.coreset_ratio,
        "pool": arguments.pool,
        "projection": arguments.projection,
        "scaling": arguments.scaling,
        "position": arguments.position,
        "position_weight": arguments.position_weight,
        "radius_mm": arguments.radius_mm,
        "search": arguments.search,
        "nprobe": arguments.nprobe,
        "candidates": arguments.candidates,
        "neighbours": arguments.neighbours,
        "precision": arguments.precision,
        "bank_seed": arguments.bank_seed,
    }
    zscore = {"prior_smoothing_mm": arguments.prior_smoothing_mm, "floor": arguments.floor}
    intensity = {"contrast": arguments.contrast}
    theirs = zscore if isinstance(detector, VoxelZScore) else intensity if isinstance(detector, Intensity) else {}
    if strange := [name for name in _set(zscore | intensity) if name not in theirs]:
        raise BadInput(
            f"Detector {arguments.detector!r} has no such setting. Leave out: {_flag_names(strange)}. "
            "The settings of each detector: python cli.py detectors --json"
        )
    encoder = {
        "architecture": arguments.architecture,
        "width": arguments.width,
        "strides": arguments.strides or None,
        "stem_stride": arguments.stem_stride,
        "max_pool": arguments.max_pool,
        "seed": arguments.seed,
    }
    if not isinstance(detector, LAYERED):
        given = [*_set({**features, **gaussian, **bank, **encoder, "memory": arguments.memory})]
        if given or arguments.encoder != "random":
            raise BadInput(
                f"Detector {arguments.detector!r} has no features. Leave out: {_flag_names(given) or '--encoder'}."
            )
        return dataclasses.replace(detector, **_set(own | theirs)), None
    banked = isinstance(detector, PatchCore)
    if strange := [*_set(gaussian if banked else bank)]:
        has, lacks = ("a memory bank", "Gaussian") if banked else ("a Gaussian", "memory bank")
        raise BadInput(
            f"Detector {arguments.detector!r} is {has} and has no {lacks}. Leave out: {_flag_names(strange)}. "
            "The settings of each detector: python cli.py detectors --json"
        )
    own |= {"memory_gb": arguments.memory}
    features["seed"] = features.pop("feature_seed")
    encoder |= {"in_channels": len(arguments.preprocessing.contrasts)}
    own |= {
        "features": dataclasses.replace(detector.features, **_set(features)),
        "encoder": dataclasses.replace(detector.encoder, **_set(encoder)),
    }
    if isinstance(detector, PatchCore):
        bank["seed"] = bank.pop("bank_seed")
        settings = dataclasses.replace(detector.bank, **_set(bank))
        if not arguments.allow_idle:
            _refuse_idle(bank, settings)
        detector = dataclasses.replace(detector, bank=settings, **_set(own))
    else:
        changed = dataclasses.replace(detector.gaussian, **_set(gaussian))
        detector = dataclasses.replace(detector, gaussian=changed, **_set(own))
    if arguments.encoder == "random":
        return detector, None
    saved = Path(arguments.encoder)
    if saved.is_file() or (saved / "encoder.json").is_file():
        return dataclasses.replace(detector, weights=arguments.encoder), None
    return detector, open_run(arguments.runs, arguments.encoder, "encoder")


def _refuse_idle(given: Mapping[str, Any], settings: BankSettings) -> None:
    """A flag that nothing would read is a misunderstanding."""
    for name, other, allowed in idle_settings(settings, _set(given)):
        raise BadInput(
            f"{_flag_names([name])} says nothing with --{other} {getattr(settings, other)}. It belongs to "
            f"--{other} {' or '.join(allowed)}; give that, leave it out, or add --allow-idle to keep it in the recipe."
        )


def _flag_names(names: Sequence[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _report(run: Run, as_json_text: bool, next_step: str) -> int:
    if as_json_text:
        print_json({"run_id": run.run_id, "directory": str(run.directory)})
    else:
        print(f"{run.run_id} is in {run.directory}. {next_step}")
    return EXIT_OK


def _print_runs(runs: Path, ids: Sequence[str]) -> None:
    _print_rows([row for row in run_rows(runs)[0] if row["run_id"] in ids])


def _print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    heading = (
        *("run", "kind", "status", "layers", "Dice healthy", "Dice validation", "Dice oracle (set)"),
        *("⌈Dice⌉ oracle (pooled)", "AUPRC", "test n", "subjects"),
    )
    note = (
        "Mean Dice over lesion-bearing test subjects in native space, 95 % bootstrap interval. Oracle columns chose "
        "their threshold on test labels."
    )
    cells = [_row_cells(row) for row in rows]
    if len(cells) > DRAWN:
        print("\n".join((*columns_text(heading, cells), note)))
        return
    table = Table(*heading, caption=note)
    for row in cells:
        table.add_row(*map(escape, row))
    console().print(table)


def _row_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    found = row.get("dice", {})
    return (
        str(row["run_id"]),
        str(row["kind"]),
        "damaged" if "problem" in row else str(row["status"]),
        row.get("headline") or "",
        interval_text(found.get("healthy")),
        interval_text(found.get("validation")),
        interval_text(found.get("oracle_set")),
        number_text(row.get("ceil_dice")),
        number_text(row.get("auprc")),
        str(row.get("n_lesion_subjects") or ""),
        f"{row['n_used']} of {row['n_total']}" if row.get("n_total") else "",
    )


def _complain(error: object, code: int) -> int:
    print(f"Error: {error}", file=sys.stderr)
    return code


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted("Stopped on request. Repeat the command to go on where it stopped.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""An encoder or a detector, trained from the terminal."""

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.memory_bank.settings import BankSettings, idle_settings
from core.pretraining.simclr_settings import SimclrSettings
from core.progress import open_progress
from core.runs.listing import open_run
from core.runs.run_record import Run
from data.errors import BadInput
from data.preprocessing import Preprocessing
from verbs.scans import Scans, source_of
from verbs.shared import TakeOver, Verbs, report

if TYPE_CHECKING:
    from core.detectors import AnyDetector


@dataclass(frozen=True)
class PretrainVerb(Scans):
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
class FitVerb(Scans):
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
    """An encoder run (id, path, latest), a file of weights (safetensors, .pth, .ckpt; torchvision's names too), the
    folder of a saved encoder, or random."""
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


def _pretrain(arguments: PretrainVerb) -> int:
    from core.study import training

    run = training.pretrain(
        arguments.runs,
        source_of(arguments),
        arguments.simclr,
        open_progress(),
        name=arguments.name,
        run_id=arguments.run_id,
    )
    cohort = shlex.quote(str(arguments.cohort))
    return report(run, arguments.json, f"Fit a detector on it: python cli.py fit {cohort} --encoder {run.as_argument}")


def _fit(arguments: FitVerb) -> int:
    from core.study import fitting, run_scans

    detector, encoder_run = detector_of(arguments)
    source = source_of(arguments)
    if encoder_run is not None and source.preprocessing == Preprocessing():
        source = dataclasses.replace(source, preprocessing=run_scans.preprocessing_of(encoder_run))
        print(f"Preparing scans as encoder {encoder_run.run_id} was trained on them.", file=sys.stderr)
    run = fitting.fit(
        arguments.runs,
        source,
        detector,
        open_progress(),
        name=arguments.name or arguments.detector,
        run_id=arguments.run_id,
        encoder_run=encoder_run,
    )
    return report(run, arguments.json, f"Score it: python cli.py score {run.as_argument}")


def detector_of(arguments: FitVerb) -> "tuple[AnyDetector, Run | None]":
    """The recipe that the flags of `fit` ask for, and the run of its encoder where one is named."""
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


VERBS: Verbs = {
    "pretrain": (PretrainVerb, _pretrain),
    "fit": (FitVerb, _fit),
}

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
from core.recipes import changed, has_setting, with_settings
from core.runs.listing import open_run
from core.runs.run_record import Run
from data.errors import BadInput
from data.preprocessing import Preprocessing
from verbs.scans import Scans, source_of
from verbs.shared import TakeOver, Verbs, report

if TYPE_CHECKING:
    from core.types import Detector


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


PARTS: Mapping[str, str] = {"gaussian": "a Gaussian", "bank": "a memory bank", "encoder": "an encoder"}
"""Parts of a recipe in words."""


def detector_of(arguments: FitVerb) -> "tuple[Detector, Run | None]":
    """The recipe that the flags of `fit` ask for, and the run of its encoder where one is named."""
    from core.detectors import make
    from core.detectors.capabilities import LayerSets, can

    detector = make(arguments.detector)
    given = _given(arguments)
    _refuse_strange(arguments.detector, detector, given)
    if not can(detector, LayerSets):
        if arguments.encoder != "random":
            raise BadInput(f"Detector {arguments.detector!r} has no features. Leave out: --encoder.")
        return with_settings(detector, given), None
    detector = with_settings(detector, {**given, "encoder.in_channels": len(arguments.preprocessing.contrasts)})
    if isinstance(bank := getattr(detector, "bank", None), BankSettings) and not arguments.allow_idle:
        _refuse_idle([place.removeprefix("bank.") for place in given if place.startswith("bank.")], bank)
    if arguments.encoder == "random":
        return detector, None
    saved = Path(arguments.encoder)
    if saved.is_file() or (saved / "encoder.json").is_file():
        return changed(detector, weights=arguments.encoder), None
    return detector, open_run(arguments.runs, arguments.encoder, "encoder")


def _given(arguments: FitVerb) -> dict[str, Any]:
    """The settings that were said, by their place in a recipe."""
    from core.study.again import FIT_FLAGS

    said = {place: getattr(arguments, flag[2:].replace("-", "_")) for place, flag in FIT_FLAGS.items()}
    return {place: value for place, value in said.items() if value not in (None, ())}


def _refuse_strange(name: str, detector: "Detector", given: Mapping[str, Any]) -> None:
    """BadInput for settings that the detector's recipe has no place for."""
    from core.detectors.capabilities import LayerSets, can
    from core.study.again import FIT_FLAGS

    strange = [place for place in given if not has_setting(detector, place)]
    if not strange:
        return
    flags = ", ".join(FIT_FLAGS[place] for place in strange)
    if not can(detector, LayerSets) and any("." in place or place == "memory_gb" for place in strange):
        raise BadInput(f"Detector {name!r} has no features. Leave out: {flags}.")
    has = next((words for part, words in PARTS.items() if has_setting(detector, part)), "other settings")
    lacks = next(
        (words for part, words in PARTS.items() if any(p.startswith(f"{part}.") for p in strange)), "such setting"
    )
    raise BadInput(
        f"Detector {name!r} has {has} and has no {lacks.removeprefix('a ')}. Leave out: {flags}. "
        "The settings of each detector: python cli.py detectors --json"
    )


def _refuse_idle(given: Sequence[str], settings: BankSettings) -> None:
    """A flag that nothing would read is a misunderstanding."""
    for name, other, allowed in idle_settings(settings, given):
        raise BadInput(
            f"--{name.replace('_', '-')} says nothing with --{other} {getattr(settings, other)}. It belongs to "
            f"--{other} {' or '.join(allowed)}; give that, leave it out, or add --allow-idle to keep it in the recipe."
        )


VERBS: Verbs = {
    "pretrain": (PretrainVerb, _pretrain),
    "fit": (FitVerb, _fit),
}

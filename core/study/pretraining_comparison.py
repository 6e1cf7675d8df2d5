"""Ways of training an encoder, compared under one detector with one budget: trained, fitted, scored, judged, tabled.

Every encoder and every detector is an ordinary run, so each page opens it, a killed comparison goes on where it
stopped, and what is finished is used again. The comparison itself is `runs/.comparisons/NAME`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from core.detectors import make
from core.detectors.feature_gaussian import FeatureGaussian
from core.features.settings import FeatureSettings
from core.pretraining.simclr import SimclrSettings, check_settings
from core.pretraining.simclr_settings import Kind
from core.pretraining.view_settings import VIEW_SETS, ViewSettings
from core.progress import Progress
from core.recipes import as_json
from core.runs.listing import open_run
from core.runs.run_record import Run, runs_flag
from core.runs.stages import stage_done
from core.study import evaluation, fitting, scoring, training
from core.study.data_source import DataSource
from core.study.pretraining_table import Entry, build_table
from core.study.visibility import stored_visibility, visibility_of_run
from core.types import Detector
from data.errors import FORESEEN, BadInput, IntegrityError
from data.files import committed_directory, is_committed, read_committed_json
from data.json_files import write_json
from data.ranges import check_range, refuse_out_of_range
from data.whole_files import clear_litter

FOLDER = ".comparisons"
FILE = "comparison.json"
VARIANTS: tuple[Kind, ...] = get_args(Kind)
CONTROLS = {"zscore": "voxel-wise |z|", "intensity-bright": "intensity, bright", "intensity-dark": "intensity, dark"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,39}")
_NO_SEED = -1


@dataclass(frozen=True)
class ComparisonPlan:
    """What is compared, and with which common budget."""

    name: str = "pretraining"
    """Stands in the id of every run of the comparison."""
    variants: tuple[str, ...] = ("in-batch",)
    """Kinds of negatives."""
    views: tuple[str, ...] = ("strong",)
    """Named sets of views; each variant is trained with each."""
    also: tuple[str, ...] = ()
    """Further pairs, as variant/views: in-batch/geometric."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds: initial weights, order of subjects, views. The untrained encoder of a seed starts alike."""
    simclr: SimclrSettings = field(default_factory=SimclrSettings)
    """The common budget: network, crop, batch, steps, learning rate. Its kind, views and seeds are set by the plan."""
    features: FeatureSettings = field(default_factory=FeatureSettings)
    """Layers and feature grid of the Gaussian, the same on every encoder."""
    memory_gb: float = 6.0
    """Peak memory of fitting and scoring, GB."""

    def pairs(self) -> list[tuple[str, str]]:
        """Every variant with every set of views, then the further pairs; each once."""
        crossed = [(variant, views) for variant in self.variants for views in self.views]
        return list(dict.fromkeys([*crossed, *((a, b) for a, _, b in (one.partition("/") for one in self.also))]))

    def settings(self, variant: str, views: str, seed: int) -> SimclrSettings:
        """One training of the plan."""
        return replace(
            self.simclr,
            encoder=replace(self.simclr.encoder, seed=seed),
            views=replace(VIEW_SETS[views], crop_voxels=self.simclr.views.crop_voxels),
            negatives=replace(self.simclr.negatives, kind=next(kind for kind in VARIANTS if kind == variant)),
            seed=seed,
        )


def compare_pretraining(
    runs: Path,
    source: DataSource,
    plan: ComparisonPlan,
    progress: Progress,
    *,
    workers: int = 2,
    visibility: bool = False,
) -> dict[str, Any]:
    """Carry out what is not done yet, and commit the table. The same plan and name go on where they stopped.

    `visibility`: measure it too for every encoder that does not have it; what runs have is tabled in any case.

    A training that ends with an error (its loss is not finite, say) is listed under `failed` and the others go on.
    BadInput when the plan cannot be carried out, or no training succeeds.
    """
    check_range("workers", workers)
    _check(plan)
    study = _Study(runs, source, plan, progress, workers)
    untrained = Entry("untrained", "Gaussian, untrained encoder", {seed: study.untrained(seed) for seed in plan.seeds})
    controls = [Entry(name, title, {_NO_SEED: study.control(name)}) for name, title in CONTROLS.items()]
    made, failed = _trained(study, plan, progress)
    trained = [_entry(variant, views, by_seed) for (variant, views), by_seed in made.items() if by_seed]
    if not trained:
        raise BadInput(f"No training of the comparison succeeded. The first error: {failed[0]['error']}")
    if visibility:
        for run in (run for entry in trained for run in entry.encoders.values() if stored_visibility(run) is None):
            visibility_of_run(run, progress)
    first = untrained.detectors[plan.seeds[0]]
    found = {
        "schema": 1,
        "name": plan.name,
        "plan": as_json(plan),
        "source": {
            "cohort": first.record["cohort"]["fingerprint"],
            "layout": source.layout,
            "preprocessing": as_json(source.preprocessing),
            **({"choices": as_json(said)} if (said := source.choices.said()) else {}),
        },
        "split": {role: len(ids) for role, ids in first.record["split"].items()},
        "failed": failed,
        **build_table(trained, untrained, controls),
    }
    clear_litter(runs / FOLDER)
    about = {**_about(plan.name), "made_by": "compare-pretraining"}
    with committed_directory(runs / FOLDER / plan.name, within=runs, about=about) as scratch:
        write_json(scratch / FILE, found)
    return read_comparison(runs, plan.name)


def _trained(
    study: "_Study", plan: ComparisonPlan, progress: Progress
) -> tuple[dict[tuple[str, str], dict[int, tuple[Run, Run]]], list[dict[str, Any]]]:
    """Every training of the plan, by variant and views and then by seed, and those that ended with an error."""
    todo = [(variant, views, seed) for seed in plan.seeds for variant, views in plan.pairs()]
    made: dict[tuple[str, str], dict[int, tuple[Run, Run]]] = {}
    failed = []
    for number, (variant, views, seed) in enumerate(todo, 1):
        progress.say(f"[{number} of {len(todo)}] {variant}, views {views}, seed {seed}")
        try:
            made.setdefault((variant, views), {})[seed] = study.trained(variant, views, seed)
        except FORESEEN as error:
            if isinstance(error, BadInput) and not study.training_failed(variant, views, seed, error):
                raise
            progress.say(f"failed: {error}")
            failed.append({"variant": variant, "views": views, "seed": seed, "error": str(error)})
    return made, failed


def _about(name: str) -> dict[str, Any]:
    return {"stage": f"{FOLDER}/{name}"}


def list_comparisons(runs: Path) -> list[str]:
    """Names of the finished comparisons, newest first."""
    there = [path.parent for path in (runs / FOLDER).glob(f"*/{FILE}") if is_committed(path.parent)]
    return [path.name for path in sorted(there, key=lambda path: -(path / FILE).stat().st_mtime)]


def read_comparison(runs: Path, name: str) -> dict[str, Any]:
    """A finished comparison, with how long its trainings took, as far as their runs are still there.

    BadInput lists those there are; IntegrityError when its file was edited or damaged.
    """
    names = list_comparisons(runs)
    if name not in names:
        raise BadInput(
            f"No comparison {name!r} in {runs}. There are: {', '.join(names) or 'none yet'}. "
            f"Make one: python cli.py compare-pretraining COHORT{runs_flag(runs)}"
        )
    found: dict[str, Any] = read_committed_json(runs / FOLDER / name, FILE, _about(name))
    for row in (row for row in found["rows"] if row["contrastive"] is not None):
        for seed, end in row["contrastive"]["by_seed"].items():
            end.setdefault("seconds", _took(runs, row["runs"][seed]["encoder"]))
    return found


def _took(runs: Path, encoder_run: str) -> float | None:
    """How long a training took, by its run; None when that is gone."""
    try:
        seconds: float | None = open_run(runs, encoder_run).record["stages"].get("encoder", {}).get("seconds")
    except (BadInput, IntegrityError):
        return None
    return seconds


@dataclass(frozen=True)
class _Study:
    """The runs of one comparison, made when asked for."""

    runs: Path
    source: DataSource
    plan: ComparisonPlan
    progress: Progress
    workers: int

    def trained(self, variant: str, views: str, seed: int) -> tuple[Run, Run]:
        """The encoder run and the judged detector run of one training."""
        run_id = self._run_id(variant, views, seed)
        encoder = training.pretrain(
            self.runs,
            self.source,
            self.plan.settings(variant, views, seed),
            self.progress,
            name=f"{self.plan.name}: {variant}, {views}, seed {seed}",
            run_id=f"{run_id}-encoder",
        )
        detector = FeatureGaussian(features=self.plan.features, memory_gb=self.plan.memory_gb)
        title = f"{self.plan.name}: Gaussian on {variant}, {views}, seed {seed}"
        return open_run(self.runs, encoder.run_id), self._judged(detector, run_id, title, encoder)

    def untrained(self, seed: int) -> Run:
        """The judged detector run on the initial weights of a seed."""
        detector = FeatureGaussian(
            encoder=replace(self.plan.simclr.encoder, seed=seed),
            features=self.plan.features,
            memory_gb=self.plan.memory_gb,
        )
        run_id = f"cmp-{self.plan.name}-untrained-s{seed}"
        return self._judged(detector, run_id, f"{self.plan.name}: Gaussian, untrained, seed {seed}", None)

    def control(self, name: str) -> Run:
        """The judged run of a detector without an encoder."""
        return self._judged(make(name), f"cmp-{self.plan.name}-{name}", f"{self.plan.name}: {CONTROLS[name]}", None)

    def training_failed(self, variant: str, views: str, seed: int, error: Exception) -> bool:
        """Whether the error is what ended this training, or its detector; else it is about the command."""
        run_id = self._run_id(variant, views, seed)
        names = [name for name in (f"{run_id}-encoder", run_id) if (self.runs / name / "run.json").is_file()]
        records = [open_run(self.runs, name).record for name in names]
        return any(record["status"] == "failed" and record["error"] == str(error) for record in records)

    def _run_id(self, variant: str, views: str, seed: int) -> str:
        return f"cmp-{self.plan.name}-{variant}-{views}-s{seed}"

    def _judged(self, detector: Detector, run_id: str, name: str, encoder: Run | None) -> Run:
        run = fitting.fit(
            self.runs, self.source, detector, self.progress, name=name, run_id=run_id, encoder_run=encoder
        )
        if not stage_done(run, "evaluation"):
            run = scoring.score(run, self.progress)
            evaluation.evaluate_run(run, self.progress, workers=self.workers)
        return open_run(self.runs, run_id)


def _entry(variant: str, views: str, by_seed: Mapping[int, tuple[Run, Run]]) -> Entry:
    return Entry(
        key=f"{variant}/{views}",
        title=f"{variant}, views {views}",
        detectors={seed: detector for seed, (_, detector) in by_seed.items()},
        encoders={seed: encoder for seed, (encoder, _) in by_seed.items()},
        variant=variant,
        views=views,
    )


def _check(plan: ComparisonPlan) -> None:
    """Everything that is wrong with a plan, before any scan is read."""
    if not _NAME.fullmatch(plan.name):
        raise BadInput(f"{plan.name!r} cannot name a comparison. Use up to 40 letters, digits and '-'.")
    refuse_out_of_range(plan)
    _check_list("variants", plan.variants, VARIANTS)
    _check_list("views", plan.views, tuple(VIEW_SETS))
    for pair in plan.also:
        variant, _, views = pair.partition("/")
        if variant not in VARIANTS or views not in VIEW_SETS:
            raise BadInput(
                f"{pair!r} is no pair to train. Give VARIANT/VIEWS, such as in-batch/geometric. "
                f"Variants: {', '.join(VARIANTS)}. Views: {', '.join(VIEW_SETS)}."
            )
    if not plan.seeds or len(set(plan.seeds)) < len(plan.seeds) or min(plan.seeds) < 0:
        raise BadInput(f"seeds are {plan.seeds}. Give whole numbers of 0 and above, each once: --seeds 0 1")
    set_here = {
        "simclr.negatives.kind": plan.simclr.negatives.kind != "in-batch",
        "simclr.views (all but crop-voxels)": asdict(plan.simclr.views)
        != asdict(replace(ViewSettings(), crop_voxels=plan.simclr.views.crop_voxels)),
        "simclr.seed": plan.simclr.seed != 0,
        "simclr.encoder.seed": plan.simclr.encoder.seed != 0,
    }
    given = [name for name, is_set in set_here.items() if is_set]
    if given:
        raise BadInput(f"{', '.join(given)} cannot be given: --variants, --views and --seeds say what is compared.")
    for variant, views in plan.pairs():
        check_settings(plan.settings(variant, views, plan.seeds[0]))


def _check_list(what: str, given: Sequence[str], allowed: Sequence[str]) -> None:
    unknown = [name for name in given if name not in allowed]
    if unknown or not given or len(set(given)) < len(given):
        raise BadInput(f"{what} are {', '.join(given) or 'none'}. Give each once. Allowed: {', '.join(allowed)}.")

"""The demo study: synthetic brains with known lesions, one encoder, seven detectors, the leading one explained."""

from pathlib import Path

from core.detectors import make
from core.detectors.feature_gaussian import FeatureGaussian
from core.detectors.patchcore import PatchCore
from core.diagnosis.diagnose import diagnose
from core.diagnosis.postprocessing import run_post_processing
from core.diagnosis.what_if.catalogue import run_what_if
from core.features.settings import FeatureSettings
from core.memory_bank.settings import BankSettings
from core.pretraining.simclr import SimclrSettings
from core.pretraining.view_settings import ViewSettings
from core.progress import Progress
from core.recipes import as_json
from core.runs.listing import open_run
from core.runs.provenance import fingerprint
from core.runs.run_record import Run
from core.runs.stages import stage_done
from core.study import data_source, evaluation, fitting, scoring, training
from core.study.run_summary import leading, run_summary
from core.types import Detector
from data.errors import FORESEEN, BadInput, EnvironmentProblem, IntegrityError, together
from data.files import is_committed
from data.json_files import read_json, write_json
from data.prepared import Preprocessing
from data.synthetic import RECIPE, DemoSettings, write_demo_cohort
from models.settings import EncoderSettings

LAYERS = ("stage0", "stage1", "stage2", "stage3")
ENCODER = EncoderSettings(width=8)
SIMCLR = SimclrSettings(encoder=ENCODER, views=ViewSettings(crop_voxels=(48, 48, 48)), steps=60, batch=12)
PATCHES = FeatureSettings(layers=("stage1", "stage2"), grid="4mm", neighbourhood=3)
BANK = BankSettings(pool=60_000)
"""Selection from a tenth of all patches: the demo waits for it."""
BANK_POSITION = BankSettings(subset="random", coreset_ratio=0.1, position="restricted")
EXPLAINED_BY = ("erode-mask", "calibrate-subject", "threshold-grid")
_DONE = "study.json"
PREPROCESSING = Preprocessing(contrasts=("T1",), registration="none")


def build_demo(runs: Path, progress: Progress, settings: DemoSettings | None = None) -> list[Run]:
    """Make whatever of the demo study is not there yet; returns its detector runs."""
    cohort = runs / ".demo-cohort"
    settings = settings or DemoSettings()
    recipes = [LAYERS, as_json(SIMCLR), as_json(PATCHES), as_json(BANK), as_json(BANK_POSITION)]
    made_from = fingerprint([as_json(settings), RECIPE, *recipes, as_json(PREPROCESSING)])
    done = _all_done(runs, cohort / _DONE, made_from)
    if done:
        return done
    with progress.task("Synthesising brains") as advance:
        table = write_demo_cohort(cohort, settings, monitor=lambda done, total, text: advance(1, text))
    source = data_source.DataSource(table, layout="table", preprocessing=PREPROCESSING)
    encoder = training.pretrain(runs, source, SIMCLR, progress, name="demo SimCLR", run_id="demo-encoder")
    detectors = detectors_of(encoder)
    made = []
    problems: dict[str, BadInput | EnvironmentProblem | IntegrityError] = {}
    for number, recipe in enumerate(detectors, 1):
        progress.say(f"[{number} of {len(detectors)}] {recipe[1]}")
        try:
            made.append(_finished(runs, source, progress, *recipe))
        except FORESEEN as problem:
            progress.say(f"failed: {problem}")
            problems[recipe[0]] = problem
    if problems:
        raise together(problems, f"{len(made)} of {len(detectors)} detectors are there. Repeat the command to go on.")
    leads = leading([run_summary(run) for run in made])["run_id"]
    for run in made:
        if run.run_id == leads:
            _explain(run, progress)
        elif run.run_id == "demo-simclr":
            diagnose(run, progress)
    write_json(cohort / _DONE, {"made_from": made_from, "runs": [run.run_id for run in made]})
    return made


def detectors_of(encoder: Run) -> list[tuple[str, str, Detector, Run | None]]:
    """Run id, name, detector, and the encoder it takes its features from."""
    features = FeatureSettings(layers=LAYERS, grid="4mm")
    return [
        ("demo-bright", "intensity, bright", make("intensity-bright"), None),
        ("demo-dark", "intensity, dark", make("intensity-dark"), None),
        ("demo-zscore", "voxel-wise |z|", make("zscore"), None),
        ("demo-random", "Gaussian, random encoder", FeatureGaussian(encoder=ENCODER, features=features), None),
        ("demo-simclr", "Gaussian, SimCLR encoder", FeatureGaussian(features=features), encoder),
        ("demo-bank", "memory bank, SimCLR encoder", PatchCore(features=PATCHES, bank=BANK), encoder),
        ("demo-bank-position", "memory bank by position", PatchCore(features=PATCHES, bank=BANK_POSITION), encoder),
    ]


def _explain(run: Run, progress: Progress) -> None:
    """What the Diagnosis page opens with: the what-ifs that need no scoring, post-processing, and the diagnosis."""
    for name in EXPLAINED_BY:
        run_what_if(run, name, progress)
    run_post_processing(run, progress)
    diagnose(open_run(run.directory.parent, run.run_id), progress)


def _all_done(runs: Path, note: Path, made_from: str) -> list[Run]:
    """The runs of an earlier call with the same settings, when every one of them is still evaluated."""
    if not note.is_file():
        return []
    record = read_json(note)
    names = record["runs"] if record["made_from"] == made_from else []
    if not all(is_committed(runs / name / "evaluation") for name in names):
        return []
    return [open_run(runs, name) for name in names]


def _finished(
    runs: Path,
    source: data_source.DataSource,
    progress: Progress,
    run_id: str,
    name: str,
    detector: Detector,
    encoder: Run | None,
) -> Run:
    run = fitting.fit(runs, source, detector, progress, name=name, run_id=run_id, encoder_run=encoder)
    if not stage_done(run, "evaluation"):
        run = scoring.score(run, progress)
        evaluation.evaluate_run(run, progress)
    return run

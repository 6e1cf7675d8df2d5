"""An encoder or a detector, trained from the terminal."""

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from core.detectors import CATALOGUE, make
from core.detectors.capabilities import KeepsPatches, LayerSets, can
from core.fields import Setting, settings_of
from core.memory_bank.settings import BankSettings, idle_settings
from core.pretraining.simclr_settings import SimclrSettings
from core.progress import open_progress
from core.recipes import changed, has_setting, with_settings
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.study.again import FROM_ELSEWHERE, SHORT_FLAGS, long_flag, setting_flag
from core.types import Detector
from data.errors import BadInput
from data.prepared import Preprocessing
from verbs.scans import Scans, source_of
from verbs.shared import TakeOver, Verbs, report


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
    allow_idle: bool = False
    """Take settings of a memory bank that nothing will read into the recipe, instead of refusing them."""
    take_over: TakeOver = False

    said: ClassVar[frozenset[str]] = frozenset()
    """Places of the settings that the command names, whatever it says of them."""


def fit_verb(argv: Sequence[str] = ()) -> type[FitVerb]:
    """The arguments of `fit` for the detector that a command names: with every setting of that detector's recipe.

    A setting is called by its place (--gaussian.ridge), and by the short name that it has (--ridge). BadInput for a
    detector that there is not, and for settings that belong to others.
    """
    name = _named(argv)
    recipe = make(name)
    given = [word.partition("=")[0] for word in argv if word.startswith("--")]
    _refuse_strange(name, recipe, given)
    settings = [setting for setting in settings_of(recipe) if setting.place not in FROM_ELSEWHERE]
    taken = {f"--{one.name.replace('_', '-')}" for one in dataclasses.fields(FitVerb)}
    if clashes := sorted(taken & {flag for setting in settings for flag in _flags(setting.place)}):
        raise BadInput(
            f"Detector {name!r} has settings that `fit` has itself: {', '.join(clashes)}. Rename its fields."
        )
    declared = [
        (_attribute(setting.place), _declared(setting), dataclasses.field(default=setting.value))
        for setting in settings
    ]
    said = frozenset(setting.place for setting in settings if _flags(setting.place) & set(given))
    made = dataclasses.make_dataclass("FitVerb", declared, bases=(FitVerb,), frozen=True, namespace={"said": said})
    made.__doc__ = FitVerb.__doc__
    return made


def _flags(place: str) -> set[str]:
    """The flags under which a setting can be said."""
    return {setting_flag(place), long_flag(place)}


def _named(argv: Sequence[str]) -> str:
    """What --detector says, the last time that it is said, or the usual one."""
    found = FitVerb.detector
    for number, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name == "--detector":
            found = value if equals else next(iter(argv[number + 1 :]), "")
    return found


def _declared(setting: Setting) -> Any:
    """A flag for a setting, under its place and the short name that it has."""
    short = SHORT_FLAGS.get(setting.place)
    place = setting.place.replace("_", "-")
    aliases = [short] if short is not None and short != f"--{place}" else None
    return Annotated[setting.kind, tyro.conf.arg(name=place, aliases=aliases, help=setting.text)]


def _attribute(place: str) -> str:
    return "setting__" + place.replace(".", "__")


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


def detector_of(arguments: FitVerb) -> tuple[Detector, Run | None]:
    """The recipe that the flags of `fit` ask for, and the run of its encoder where one is named."""
    detector = make(arguments.detector)
    given = _given(arguments)
    if not can(detector, LayerSets):
        if arguments.encoder != "random":
            raise BadInput(f"Detector {arguments.detector!r} has no features. Leave out: --encoder.")
        return with_settings(detector, given), None
    detector = with_settings(detector, {**given, "encoder.in_channels": len(arguments.preprocessing.contrasts)})
    if can(detector, KeepsPatches) and not arguments.allow_idle:
        named = {*given, *arguments.said}
        _refuse_idle(sorted(place.removeprefix("bank.") for place in named if place.startswith("bank.")), detector.bank)
    if arguments.encoder == "random":
        return detector, None
    saved = Path(arguments.encoder)
    if saved.is_file() or (saved / "encoder.json").is_file():
        return changed(detector, weights=arguments.encoder), None
    return detector, open_run(arguments.runs, arguments.encoder, "encoder")


def _given(arguments: FitVerb) -> dict[str, Any]:
    """The settings that differ from the recipe's own, by their place in it."""
    settings = settings_of(make(arguments.detector))
    said = {setting: getattr(arguments, _attribute(setting.place), setting.value) for setting in settings}
    return {setting.place: value for setting, value in said.items() if value != setting.value}


def _refuse_strange(name: str, recipe: Detector, flags: Sequence[str]) -> None:
    """BadInput for flags that are settings of other detectors and not of this one."""
    own = {setting.place for setting in settings_of(recipe)}
    others = {setting.place for row in CATALOGUE.values() for setting in settings_of(row.recipe)} - own
    mine = {flag for place in own for flag in _flags(place)}
    called = {flag: place for place in sorted(others) for flag in _flags(place) - mine}
    strange = list(dict.fromkeys(flag for flag in flags if flag in called))
    if not strange:
        return
    parts = {called[flag].partition(".")[0] for flag in strange}
    if not can(recipe, LayerSets) and any("." in called[flag] or called[flag] == "memory_gb" for flag in strange):
        raise BadInput(f"Detector {name!r} has no features. Leave out: {', '.join(strange)}.")
    has = next((words for part, words in PARTS.items() if has_setting(recipe, part)), "other settings")
    lacks = next((words for part, words in PARTS.items() if part in parts), "such setting")
    raise BadInput(
        f"Detector {name!r} has {has} and has no {lacks.removeprefix('a ')}. Leave out: {', '.join(strange)}. "
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
    "fit": (fit_verb, _fit),
}

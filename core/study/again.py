"""The command that makes a stored thing again, as words of cli.py: read from what was stored, never from a habit.

Whatever shows, starts or stores such a command takes it from here. The command line parses it back to the same recipe.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from core.detectors import CATALOGUE, kinds_that_can, recipe_json
from core.detectors.capabilities import TwoParts
from core.fields import settings_of
from core.memory_bank.settings import BankSettings, idle_settings
from core.recipes import as_json, from_json
from core.runs.run_record import Run
from data.errors import BadInput
from data.prepared import Preprocessing

SHORT_FLAGS: Mapping[str, str] = {
    "features.layers": "--layers",
    "features.grid": "--grid",
    "features.reduction": "--reduction",
    "features.max_channels": "--max-channels",
    "features.neighbourhood": "--neighbourhood",
    "features.seed": "--feature-seed",
    "gaussian.form": "--form",
    "gaussian.covariance": "--covariance",
    "gaussian.shrinkage": "--shrinkage",
    "gaussian.ridge": "--ridge",
    "gaussian.accumulate": "--accumulate",
    "bank.subset": "--subset",
    "bank.coreset_ratio": "--coreset-ratio",
    "bank.pool": "--pool",
    "bank.projection": "--projection",
    "bank.scaling": "--scaling",
    "bank.position": "--position",
    "bank.position_weight": "--position-weight",
    "bank.radius_mm": "--radius-mm",
    "bank.search": "--search",
    "bank.nprobe": "--nprobe",
    "bank.candidates": "--candidates",
    "bank.neighbours": "--neighbours",
    "bank.precision": "--precision",
    "bank.seed": "--bank-seed",
    "prior_smoothing_mm": "--prior-smoothing-mm",
    "floor": "--floor",
    "contrast": "--contrast",
    "smoothing_mm": "--smoothing-mm",
    "median_voxels": "--median-voxels",
    "memory_gb": "--memory",
    "encoder.architecture": "--architecture",
    "encoder.width": "--width",
    "encoder.strides": "--strides",
    "encoder.stem_stride": "--stem-stride",
    "encoder.max_pool": "--max-pool",
    "encoder.seed": "--seed",
}
"""Short names of settings of `fit`, by their place in the recipe; every other one is called by its place."""
FROM_ELSEWHERE = ("kind", "weights", "encoder.in_channels")
"""Places of a recipe that no flag of their own says: the detector's name, --encoder, and the contrasts."""


@dataclass(frozen=True)
class Place:
    """Where a command is to find its scans, its split and its runs."""

    cohort: str
    layout: str = "auto"
    split: str | None = None
    """A file with the four lists; None lets the table or the seeded draw decide."""
    runs: str | None = None
    """The runs directory; None for the usual one."""
    choices: Mapping[str, Any] = field(default_factory=dict)
    """What was said of the data set besides, as `Choices.said` gives it."""

    def runs_words(self) -> list[str]:
        """`--runs`, when it is another than the usual one."""
        return [] if self.runs is None else _flag("--runs", self.runs)


def argv_of(
    run: Run, place: Place, *, metrics: Mapping[str, Any] | None = None, weights: str | None = None
) -> list[str]:
    """`pretrain`, `fit` or `gate` with every setting of a run's recipe that is not the usual one, and with its id.

    `metrics`: of a gated run, which is evaluated by the same command. `weights`: a file of weights as it is to be
    named, else as the recipe names it.
    """
    recipe = run.record["recipe"]
    named = [*_flag("--name", run.name, joined=True), "--run-id", run.run_id]
    if recipe["kind"] in kinds_that_can(TwoParts):
        return [*_gate(run, place), *rule_words(metrics or {}), *named]
    scans = scan_words(place, run.record["preprocessing"])
    if recipe["kind"] == "SimCLR":
        settings = {key: value for key, value in recipe.items() if key != "kind"}
        return ["pretrain", *scans, *settings_words("simclr", settings), *named]
    encoder = run.record.get("parents", {}).get("encoder") or weights or recipe.get("weights")
    return ["fit", *scans, *detector_words(recipe, encoder or ""), *named]


def scan_words(place: Place, preprocessing: Mapping[str, Any]) -> list[str]:
    """The cohort, its split and layout, the runs directory, and all of the preprocessing."""
    cohort = f"./{place.cohort}" if place.cohort.startswith("-") else place.cohort
    words = [cohort, *(_flag("--split", place.split) if place.split is not None else [])]
    words += ["--layout", place.layout] if place.layout != "auto" else []
    usual = as_json(Preprocessing())
    chosen = {k: v for k, v in preprocessing.items() if usual.get(k) != v or k == "contrasts"}
    return [*words, *place.runs_words(), *choice_words(place.choices), *settings_words("preprocessing", chosen)]


def choice_words(said: Mapping[str, Any]) -> list[str]:
    """What was said of a data set, as flags."""
    words: list[str] = []
    for key, value in said.items():
        name = f"--{key.replace('_', '-')}"
        words += ([name] if value else []) if isinstance(value, bool) else _flag(name, value)
    return words


def detector_words(recipe: Mapping[str, Any], encoder: str = "") -> list[str]:
    """`--detector`, its `--encoder` and every setting that is not the catalogue's own.

    BadInput for a recipe that `fit` cannot be asked for.
    """
    name = catalogue_name(recipe)
    flat, usual = _flat(recipe), _flat(recipe_json(CATALOGUE[name].recipe))
    words = ["--detector", name, *(_flag("--encoder", encoder) if encoder else [])]
    for place, value in flat.items():
        if place not in FROM_ELSEWHERE and value != usual.get(place):
            words += _said(setting_flag(place), value)
    changed = [key for key in recipe.get("bank", {}) if flat[f"bank.{key}"] != usual[f"bank.{key}"]]
    if changed and any(idle_settings(from_json(BankSettings, recipe["bank"]), changed)):
        words.append("--allow-idle")
    return words


def setting_flag(place: str) -> str:
    """The flag of `fit` that says a setting: its short name, or its place."""
    return SHORT_FLAGS.get(place, long_flag(place))


def long_flag(place: str) -> str:
    """The flag of `fit` that is called after a setting's place."""
    return f"--{place.replace('_', '-')}"


def catalogue_name(recipe: Mapping[str, Any]) -> str:
    """The entry of the same kind that differs in the fewest settings."""
    wanted = _flat(recipe)
    distance = {}
    for name, entry in CATALOGUE.items():
        usual = _flat(recipe_json(entry.recipe))
        settings = {setting.place: setting for setting in settings_of(entry.recipe)}
        sayable = all(settings[place].allows(value) for place, value in wanted.items() if place in settings)
        if usual["kind"] == wanted["kind"] and sayable:
            distance[name] = sum(usual[key] != wanted.get(key) for key in usual)
    if not distance:
        raise BadInput(
            f"No entry of the catalogue is of kind {recipe['kind']!r} with such settings: it cannot be asked."
        )
    return min(distance, key=lambda name: distance[name])


def rule_words(metrics: Mapping[str, Any]) -> list[str]:
    """The rule of the label-free threshold, for `evaluate` and `gate`."""
    more = ["--leave-one-out"] if metrics.get("leave_one_out") else []
    if metrics.get("fp_ml_per_scan") is not None:
        return [*_flag("--fp-ml", metrics["fp_ml_per_scan"]), *more]
    return [*(_flag("--quantile", metrics["quantile"]) if metrics.get("quantile") is not None else []), *more]


def what_if_argv(run_id: str, name: str, layer_set: str, protocol: str | None = None) -> list[str]:
    """`what-if` of one layer set."""
    return ["what-if", run_id, name, "--layers", layer_set, *(["--protocol", protocol] if protocol else [])]


def post_processing_argv(run_id: str, layer_set: str) -> list[str]:
    """`post-processing` of one layer set; its grid is the same for all."""
    return ["post-processing", run_id, "--layers", layer_set]


def limits_argv(run_id: str, layer_set: str, result: Mapping[str, Any]) -> list[str]:
    """`detection-limits` with every setting of a stored result; its threshold rule is that of the evaluation."""
    settings = result.get("settings") or {}
    words = ["detection-limits", run_id, "--layers", layer_set]
    for key in ("diameters_mm", "contrasts_sd", "sites", "per_cell", "fp_ml_per_scan", "seed"):
        words += _flag(f"--{key.replace('_', '-')}", settings[key]) if key in settings else []
    return [*words, *(_flag("--scans", result["scans_asked"]) if result.get("scans_asked") else [])]


def visibility_argv(run_id: str, result: Mapping[str, Any]) -> list[str]:
    """`visibility` with every setting of a stored result."""
    words = ["visibility", run_id]
    for key, value in (result.get("settings") or {}).items():
        words += _flag(f"--{key.replace('_', '-')}", value)
    return words


def comparison_argv(found: Mapping[str, Any], place: Place) -> list[str]:
    """`compare-pretraining` with the whole plan of a finished comparison."""
    plan = found["plan"]
    place = replace(place, choices=found["source"].get("choices") or place.choices)
    words = ["compare-pretraining", *scan_words(place, found["source"]["preprocessing"])]
    words += _flag("--name", plan["name"], joined=True)
    for key in ("variants", "views", "also", "seeds"):
        words += _flag(f"--{key}", plan[key])
    for key, value in plan["features"].items():
        words += _flag(f"--{'feature-seed' if key == 'seed' else key.replace('_', '-')}", value)
    return [*words, *_flag("--memory", plan["memory_gb"]), *settings_words("simclr", plan["simclr"])]


def settings_words(prefix: str, values: Mapping[str, Any]) -> list[str]:
    """A dataclass of settings, and those inside it, as `--prefix.name value`."""
    words: list[str] = []
    for key, value in values.items():
        name = key.replace("_", "-")
        if isinstance(value, Mapping):
            words += settings_words(f"{prefix}.{name}", value)
        elif isinstance(value, bool):
            words.append(f"--{prefix}.{name}" if value else f"--{prefix}.no-{name}")
        else:
            words += _flag(f"--{prefix}.{name}", value)
    return words


def _gate(run: Run, place: Place) -> list[str]:
    recipe, parents = run.record["recipe"], run.record["parents"]
    words = ["gate", parents["gate"], parents["second"], *place.runs_words(), "--cut", recipe["threshold_from"]]
    for flag, layers in (("--layers", recipe["gate_layers"]), ("--second-layers", recipe["second_layers"])):
        words += [flag, "+".join(layers)] if layers else []
    return words


def _flag(name: str, value: Any, *, joined: bool = False) -> list[str]:
    """A flag with its value or values; one that would be taken for another flag is joined to its own by "="."""
    if isinstance(value, (list, tuple)):
        return [name, *map(str, value)]
    text = str(value)
    dashed = isinstance(value, str) and text.startswith("-")
    return [f"{name}={text}"] if joined or dashed else [name, text]


def _said(flag: str, value: Any) -> list[str]:
    """A truth value is said by its flag, or by that with no- before its last name."""
    if not isinstance(value, bool):
        return _flag(flag, value)
    before, dot, last = flag.removeprefix("--").rpartition(".")
    return [flag if value else f"--{before}{dot}no-{last}"]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(_leaves(values))


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, list(value) if isinstance(value, tuple) else value

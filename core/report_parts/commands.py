"""The commands that made a run, as they would be typed: no path of the machine they ran on."""

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.commands import in_shell
from core.detectors import CATALOGUE, recipe_json
from core.store import RUNS_DEFAULT, Run, open_run
from data.errors import BadInput, IntegrityError
from data.preprocessing import Preprocessing

SPLIT_FILE = "split.json"
_FIT_FLAGS: Mapping[str, str] = {
    "features.layers": "--layers",
    "features.grid": "--grid",
    "features.reduction": "--reduction",
    "features.max_channels": "--max-channels",
    "features.neighbourhood": "--neighbourhood",
    "gaussian.form": "--form",
    "gaussian.covariance": "--covariance",
    "gaussian.shrinkage": "--shrinkage",
    "gaussian.ridge": "--ridge",
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
    "smoothing_mm": "--smoothing-mm",
    "median_voxels": "--median-voxels",
    "memory_gb": "--memory",
    "encoder.architecture": "--architecture",
    "encoder.width": "--width",
    "encoder.seed": "--seed",
}
"""Hyper-parameters that `fit` takes, by their place in the recipe."""


def commands_of(run: Run, metrics: Mapping[str, Any], diagnosis: Mapping[str, Any] | None) -> list[list[str]]:
    """Words of each command, in order: pretrain (when the encoder's run is here), fit, score, evaluate, and what the
    diagnosis has stored."""
    where = _where(run)
    made = _making(run, where)
    made.append(["evaluate", run.run_id, *where, *_rule(metrics)])
    if diagnosis is not None:
        made += [[*words, *where] for words in _explorations(run, diagnosis)]
        asked = [*_asked(metrics, diagnosis), *_protocol(diagnosis)]
        made.append(["diagnose", run.run_id, *where, *asked])
        return [*made, ["report", run.run_id, *where, *asked]]
    return [*made, ["report", run.run_id, *where]]


def _making(run: Run, where: list[str]) -> list[list[str]]:
    """From the scans to the scores; of a gated run first its two parts, as far as their runs are here."""
    if run.record["recipe"]["kind"] == "Gated":
        return [*_parts(run, where), _gate(run, where)]
    encoder = _encoder(run)
    made = [] if encoder is None else [_pretrain(encoder, where)]
    return [*made, _fit(run, encoder, where), ["score", run.run_id, *where]]


def _parts(run: Run, where: list[str]) -> list[list[str]]:
    made: list[list[str]] = []
    for which in dict.fromkeys((run.record["parents"]["gate"], run.record["parents"]["second"])):
        with contextlib.suppress(BadInput, IntegrityError):
            part = open_run(run.directory.parent, which)
            made += [*_making(part, where), ["evaluate", part.run_id, *where]]
    return [words for n, words in enumerate(made) if words not in made[:n]]


def _gate(run: Run, where: list[str]) -> list[str]:
    recipe, parents = run.record["recipe"], run.record["parents"]
    words = ["gate", parents["gate"], parents["second"], *where]
    for flag, layers in (("--layers", recipe["gate_layers"]), ("--second-layers", recipe["second_layers"])):
        words += [flag, "+".join(layers)] if layers else []
    return [*words, f"--name={run.name}", "--run-id", run.run_id]


def in_words(run: Run, metrics: Mapping[str, Any], diagnosis: Mapping[str, Any] | None) -> list[str]:
    """The commands for a shell, beginning with the one that writes the split of the run to a file."""
    record = json.dumps(Path(shown_runs(run), run.run_id, "run.json").as_posix())
    script = f'import json; json.dump(json.load(open({record}))["split"], open("{SPLIT_FILE}", "w"))'
    return [shlex.join(["python", "-c", script]), *map(in_shell, commands_of(run, metrics, diagnosis))]


def typed(run: Run, verb: str) -> str:
    """One command on a run as it would be typed."""
    return in_shell([verb, run.run_id, *_where(run)])


def shown_runs(run: Run) -> str:
    """The runs directory as the user gave it; of an absolute path only what lies below here, else its last name."""
    return without_machine(run.directory.parent)


def without_machine(path: Path, runs: Path | None = None) -> str:
    """A path without the machine: relative to here, or to what holds the runs, else its last two names."""
    if not path.is_absolute():
        return path.as_posix()
    for base in (Path.cwd(), *([] if runs is None else [runs.absolute().parent])):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return path.name if runs is None else Path(*path.parts[-2:]).as_posix().lstrip("/")


def _where(run: Run) -> list[str]:
    runs = shown_runs(run)
    return ["--runs", runs] if runs != RUNS_DEFAULT.as_posix() else []


def _explorations(run: Run, diagnosis: Mapping[str, Any]) -> list[list[str]]:
    """The jobs whose results the diagnosis has stored."""
    layers = ["--layers", str(diagnosis["layer_set"])]
    words = [["what-if", run.run_id, str(found["name"]), *layers] for found in diagnosis.get("what_ifs") or []]
    for key, verb in (("post_processing", "post-processing"), ("detection_limits", "detection-limits")):
        words += [[verb, run.run_id, *layers]] if diagnosis.get(key) else []
    return words


def _asked(metrics: Mapping[str, Any], diagnosis: Mapping[str, Any]) -> list[str]:
    same = diagnosis["layer_set"] == metrics["headline"]
    return [] if same else ["--layers", str(diagnosis["layer_set"])]


def _protocol(diagnosis: Mapping[str, Any]) -> list[str]:
    return [] if diagnosis["protocol"] == "healthy" else ["--protocol", str(diagnosis["protocol"])]


def _pretrain(encoder: Run, where: list[str]) -> list[str]:
    settings = {key: value for key, value in encoder.record["recipe"].items() if key != "kind"}
    named = [f"--name={encoder.name}", "--run-id", encoder.run_id]
    return ["pretrain", *_scans(encoder), *where, *_flags("simclr", settings), *named]


def _fit(run: Run, encoder: Run | None, where: list[str]) -> list[str]:
    recipe = _flat(run.record["recipe"])
    detector = _catalogue_name(run.record["recipe"])
    usual = _flat(recipe_json(CATALOGUE[detector]))
    words = ["fit", *_scans(run), *where, "--detector", detector]
    parent = run.record.get("parents", {}).get("encoder")
    weights = Path(str(recipe.get("weights") or "")).name
    if parent or weights:
        words += ["--encoder", parent or weights]
    for place, flag in _FIT_FLAGS.items():
        ignored = encoder is not None and place.startswith("encoder.")
        if place in recipe and recipe[place] != usual.get(place) and not ignored:
            value = recipe[place]
            words += [flag, *(map(str, value) if isinstance(value, list) else [str(value)])]
    return [*words, f"--name={run.name}", "--run-id", run.run_id]


def _scans(run: Run) -> list[str]:
    cohort = run.record["cohort"]
    path = without_machine(Path(str(cohort.get("path") or "cohort.csv")), run.directory.parent)
    words = [path, "--split", SPLIT_FILE]
    if cohort.get("layout", "auto") != "auto":
        words += ["--layout", str(cohort["layout"])]
    usual = dataclasses.asdict(Preprocessing())
    chosen = {k: v for k, v in run.record["preprocessing"].items() if _listed(usual.get(k)) != v or k == "contrasts"}
    return words + _flags("preprocessing", chosen)


def _flags(prefix: str, values: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for key, value in values.items():
        name = key.replace("_", "-")
        if isinstance(value, Mapping):
            words += _flags(f"{prefix}.{name}", value)
        elif isinstance(value, bool):
            words.append(f"--{prefix}.{name}" if value else f"--{prefix}.no-{name}")
        elif isinstance(value, list):
            words += [f"--{prefix}.{name}", *map(str, value)]
        else:
            words += [f"--{prefix}.{name}", str(value)]
    return words


def _rule(metrics: Mapping[str, Any]) -> list[str]:
    if metrics.get("fp_ml_per_scan") is not None:
        return ["--fp-ml", f"{metrics['fp_ml_per_scan']:g}"]
    return ["--quantile", f"{metrics['quantile']:g}"] if metrics.get("quantile") is not None else []


def _catalogue_name(recipe: Mapping[str, Any]) -> str:
    """The entry of the same kind that differs in the fewest settings."""
    wanted = _flat(recipe)
    distance = {}
    for name, entry in CATALOGUE.items():
        usual = _flat(recipe_json(entry))
        if usual["kind"] == wanted["kind"]:
            fixed = [key for key in usual if key not in _FIT_FLAGS and usual[key] != wanted.get(key)]
            distance[name] = (len(fixed), sum(usual[key] != wanted.get(key) for key in usual))
    return min(distance, key=lambda name: distance[name])


def _encoder(run: Run) -> Run | None:
    parent = run.record.get("parents", {}).get("encoder")
    if not parent:
        return None
    try:
        return open_run(run.directory.parent, str(parent), "encoder")
    except (BadInput, IntegrityError):
        return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = _listed(value)
    return flat


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

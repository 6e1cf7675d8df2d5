"""Sections of the report on where its numbers come from: data, method, commands, notes, words."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.presentation.report.markup import Column, Html, bullets, facts, join, table, tag
from core.presentation.report.repeat import in_words, typed, without_machine
from core.presentation.report.source import Source
from core.presentation.report.words import NOTHING, capital, number, percent, plural
from core.runs.provenance import git_commit
from core.runs.sharing import age_span
from core.runs.versions import version_notes

_FEW = 50
_ROLES = (
    ("train", "learns what is normal"),
    ("calibration", "gives the label-free threshold"),
    ("validation", "chooses the layer set and the validation threshold"),
    ("test", "is reported"),
)


def data(source: Source) -> Html:
    """The cohort, its splits, who was set aside and why, and how scans were prepared."""
    record, cohort = source.run.record, source.run.record["cohort"]
    subjects = cohort.get("subjects") or []
    rows = []
    for role, purpose in _ROLES:
        ids = set(record["split"].get(role, []))
        members = [s for s in subjects if s["subject_id"] in ids]
        healthy = sum(bool(s["healthy"]) for s in members)
        rows.append(
            [
                role,
                str(len(ids)),
                str(healthy),
                str(len(ids) - healthy),
                _ages(members, source),
                _sexes(members),
                purpose,
            ]
        )
    columns = [
        Column("Split"),
        Column("Scans", True),
        Column("Healthy", True),
        Column("Others", True),
        Column("Age"),
        Column("Sex"),
        Column("What it does"),
    ]
    called = str if source.veil is None else source.veil.site
    sites = Counter(called(str(s["site"])) for s in subjects if s.get("site"))
    told = facts(
        [
            ("Cohort", source.cohort),
            ("Used", f"{len(subjects)} of {cohort.get('n_total') or len(subjects)} subjects"),
            ("Sites", ", ".join(f"{name} ({n})" for name, n in sites.most_common(12))),
            ("Prevalence", f"{percent(source.prevalence)} of test brain voxels are lesion"),
            ("Citation", cohort.get("citation")),
            ("Fingerprint", str(cohort.get("fingerprint") or "")[:16] if source.veil is None else None),
        ]
    )
    return join([told, table(columns, rows), _set_aside(cohort, source), _preparation(record["preprocessing"])])


def method(source: Source) -> Html:
    """The detector's recipe, and the software that ran it."""
    record = source.run.record
    parent = record.get("parents", {}).get("encoder")
    pairs: list[tuple[str, Html | str | None]] = [
        ("Detector", str(record["recipe"].get("kind"))),
        ("Encoder", str(parent) if parent else None),
        ("Layer set", source.layer_set.replace("+", " + ")),
        ("Score", source.metrics["unit"]),
    ]
    pairs += [(_name(k), v) for k, v in _settings(record["recipe"]) if not (parent and k == "weights")]
    versions = record.get("versions") or {}
    software = [(name, str(version)) for name, version in versions.items()]
    made = [("Run's commit", _commit(record.get("git_commit"))), ("Report's commit", _commit(git_commit()))]
    made.append(("Seed", str(record.get("seed", 0))))
    return join([facts(pairs), tag("h3", "Software"), facts([*made, *software])])


def commands(source: Source) -> Html:
    """The commands that make this run again, and how often its test set was looked at."""
    named = replace(source.run, record={**source.run.record, "name": source.title})
    lines = in_words(named, source.metrics, source.diagnosis)
    shown = tag("pre", *(tag("span", line) for line in lines))
    looked = source.evaluations
    told = (
        f"The test set was evaluated {plural(looked, 'time')} by this run."
        if looked
        else "How often the test set was evaluated is not recorded in this run."
    )
    where = (
        "Run them where the run was made, beside cli.py. Paths are shortened to what is below that folder; put your "
        "own in front. The first line writes the split to a file, so that every scan keeps its role."
    )
    return join([tag("p", where), shown, tag("p", told, kind="caption")])


def notes(source: Source) -> Html:
    """What a reader should hold against these numbers."""
    figures, found = source.figures, source.deployed
    told: list[str] = version_notes(source.run)
    if figures["n_lesion_subjects"] and figures["n_lesion_subjects"] < _FEW:
        told.append(
            f"{plural(figures['n_lesion_subjects'], 'test subject')} with lesions, fewer than {_FEW}: intervals are "
            "rough, and a difference inside them is no difference."
        )
    if not figures["n_lesion_subjects"]:
        told.append("No test scan has a lesion mask: nothing here speaks of finding lesions.")
    if not figures["n_healthy_subjects"]:
        told.append("No healthy test scan: how many false positives a healthy person would get is not known.")
    if source.space != "native":
        told.append(f"Layer set {source.layer_set} was evaluated on the working grid only, not in native space.")
    told += [
        f"Headline layer set: {source.metrics['headline_rule']}.",
        f"Label-free threshold: {_free_rule(source)}.",
        "Test labels chose nothing but what is called oracle.",
        "AUPRC depends on the prevalence: never compare it, or Dice, with another cohort's.",
    ]
    unreachable = figures.get("unreachable_lesion_voxels")
    if unreachable:
        told.append(f"{unreachable} lesion voxels lie outside the scored brain and can never be found.")
    if found["mean_dice"] is not None and found.get("pooled_dice") is not None:
        told.append(
            f"Mean over subjects {number(found['mean_dice'])}, all voxels pooled {number(found['pooled_dice'])}: the "
            "pooled value weighs subjects by their volume."
        )
    if source.diagnosis is not None:
        told += _stale(source)
        told.append(
            "The ladder depends on its order, the error map shares fairly (Shapley), causes and what-ifs change one "
            "thing at a time: three views of the same Dice, not to be summed together."
        )
        told += source.diagnosis.get("notes") or []
    told += [n for n in figures.get("notes") or [] if "rough" not in n]
    told += source.run.record["cohort"].get("notes") or []
    if source.veil is not None:
        told = [*source.veil.notes(map(str, told)), _SHARED]
    return bullets(list(dict.fromkeys(map(str, told))))


def glossary(source: Source) -> Html:
    """Each figure of the report in one sentence."""
    words = [*_WORDS, *(_DIAGNOSIS_WORDS if source.diagnosis is not None else ())]
    return tag("dl", *(tag("div", tag("dt", term), tag("dd", text)) for term, text in words), kind="glossary")


_SHARED = (
    "Made to be shared: subjects have pseudonyms, sites letters, ages steps of five years; paths, names of machines "
    "and people, and reasons of scans that were set aside are left out. Slices of the scans are shown as they are."
)
_WORDS: Sequence[tuple[str, str]] = (
    ("Dice", "2 |found ∩ lesion| / (|found| + |lesion|) in voxels: 1 is the reference itself, 0 finds nothing of it."),
    (
        "Mean Dice",
        "Dice of each test subject with a lesion, averaged. Healthy scans have no Dice; their false positives do.",
    ),
    ("Pooled Dice", "Dice of all voxels of all test subjects together: large lesions count more."),
    ("⌈Dice⌉", "The highest Dice that any single threshold gives on the pooled test voxels. An oracle."),
    ("Interval", "95 % percentile bootstrap over subjects, 10 000 resamples. It does not include another training."),
    ("Label-free threshold", "Chosen on healthy calibration scans alone; no lesion label was seen. The default."),
    ("Validation threshold", "Highest mean Dice on labelled validation subjects, who are not among the test subjects."),
    ("Oracle", "Chosen with the test labels. It bounds what a better choice could give, and is no result."),
    ("Needs labels", "Can only be had with lesion masks: on validation subjects, or (oracle) on the test subjects."),
    ("Deployable", "Can be done on new scans without their labels."),
    ("Native space", "The grid of the reference mask: the score map is brought to it before it is cut."),
    ("Working grid", "The common grid on which scans are scored and layer sets are compared."),
    ("Prevalence", "Share of lesion voxels among the scored brain voxels of the test subjects."),
    ("AUPRC", "Area under precision over recall, all thresholds. Without skill it equals the prevalence."),
    (
        "AUROC",
        "Share of pairs of an anomalous and a normal voxel that are ranked rightly. High even where Dice is low.",
    ),
    ("False positives", "Volume segmented in test scans that are healthy, mL per scan."),
    ("Lesions found", "Connected lesions that the segmentation matches, one to one, by the rule below their table."),
)
_DIAGNOSIS_WORDS: Sequence[tuple[str, str]] = (
    ("Ceiling ladder", "The best Dice that is still possible after each step; from 1 down to the Dice, never rising."),
    ("Lifted", "Subjects whose own value at a rung lay below the next one and was raised to it, to keep the order."),
    (
        "Error map",
        "Each wrong voxel in one category; costs are Shapley values of mending the categories, so they add up.",
    ),
    ("Only this put right", "Dice gained if this category alone were put right."),
    ("All but this", "Dice still lost if everything else were put right."),
    ("What-if", "The run scored again with one thing changed, on the same subjects; the gain is paired."),
    ("Hollow bar", "Its 95 % interval contains 0: the data do not say that it costs anything."),
    ("Hatched bar", "Needs labels: it tells of a ceiling, not of something to be deployed."),
)


def _stale(source: Source) -> list[str]:
    """A word of warning when the run was evaluated anew after its diagnosis."""
    assert source.diagnosis is not None
    then, now = source.diagnosis["dice"]["mean"], source.deployed["mean_dice"]
    if source.space != "native" or then is None or now is None or abs(then - now) < 1e-6:
        return []
    return [
        f"The diagnosis speaks of a Dice of {number(then)}, the evaluation of {number(now)}: the run was evaluated "
        f"since. Diagnose it anew: {typed(source.run, 'diagnose')}"
    ]


def _set_aside(cohort: Mapping[str, Any], source: Source) -> Html:
    aside = cohort.get("set_aside") or []
    if not aside:
        return tag("p", "No subject was set aside.", kind="caption")
    rows = [
        [source.called(one["subject_id"]), one["code"], _without_path(one) if source.veil is None else NOTHING]
        for one in aside
    ]
    columns = [Column("Set aside"), Column("Code"), Column("Reason", wide=True)]
    return join([tag("h3", f"Set aside: {plural(len(aside), 'subject')}"), table(columns, rows)])


def _without_path(one: Mapping[str, Any]) -> str:
    """The reason, the file in it by its name only."""
    path, reason = str(one.get("path") or ""), str(one["reason"])
    return reason.replace(path, Path(path).name) if path else reason


def _preparation(settings: Mapping[str, Any]) -> Html:
    pairs: list[tuple[str, Html | str | None]] = [
        ("Contrasts", ", ".join(settings.get("contrasts") or [])),
        ("Registration", f"{settings.get('registration')} to MNI152"),
        ("Working grid", f"{settings.get('spacing_mm'):g} mm"),
        ("Intensity", str(settings.get("intensity"))),
        ("Masks on other grids", "resampled" if settings.get("resample_masks") else "refused"),
    ]
    if settings.get("registration") == "none":
        pairs[1] = ("Registration", "none: scans as they are")
    return join([tag("h3", "Preparation"), facts(pairs)])


def _settings(recipe: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            found += _settings(value, f"{prefix}{key} ")
        elif key == "weights":
            found += [("weights", _weights(str(value)))] if value else []
        elif key != "kind":
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            text = {"True": "yes", "False": "no"}.get(text, text)
            found.append((f"{prefix}{key}", text))
    return found


def _commit(text: str | None) -> str:
    if not text:
        return "not in a git work tree"
    return text[:12] + (" with changes" if text.endswith("-dirty") else "")


def _weights(path: str) -> str:
    return without_machine(Path(path), Path("runs"))


def _name(key: str) -> str:
    words = key.replace("_ml", " (mL)").replace("_mm", " (mm)").replace("_gb", " (GB)").replace("_", " ")
    return capital(words)


def _ages(members: Sequence[Mapping[str, Any]], source: Source) -> str:
    ages = [float(s["age"]) for s in members if s.get("age") is not None]
    if source.veil is not None:
        return age_span(ages) or NOTHING
    return f"{min(ages):.0f} to {max(ages):.0f}" if ages else NOTHING


def _sexes(members: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(str(s["sex"]) for s in members if s.get("sex"))
    return ", ".join(f"{n} {sex}" for sex, n in sorted(counts.items())) or NOTHING


def _free_rule(source: Source) -> str:
    protocols = source.metrics["sets"][source.layer_set]["working"]["protocols"]
    return str(protocols["healthy"]["rule"]) if "healthy" in protocols else "none, since no scan calibrates it"

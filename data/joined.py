"""Several sources joined into one cohort by a cohort.toml: each with its layout, and what its user says of it.

[[source]]
path = "ixi"                                # relative to this file
role = {train = 0.8, calibration = 0.2}     # or one word; seeded by `seed`
site = "London"

[[source]]
path = "brats"
layout = "brats"
role = {validation = 0.4, test = 0.6}
"""

import hashlib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from data.choices import Choices
from data.cohort import ROLES, Cohort, Subject
from data.errors import BadInput
from data.folders import BadDataset
from data.ranges import refuse_out_of_range

Reader = Callable[[Path, str, Choices], Cohort]
_OWN = ("path", "layout", "role", "site", "healthy", "prefix", "seed")
_CHOICES: Mapping[str, Any] = {field.name: field.default for field in fields(Choices)}
"""Each choice with its usual value, which says of what kind it is."""
_FORM = (
    'A cohort.toml has a table [[source]] for each data set, with path, and as wanted layout, role ("train", or '
    "{train = 0.8, calibration = 0.2}), site, healthy (true or false), prefix, seed, and the choices of the reader "
    "(lesion_labels = [1, 2], session = ...)."
)


def read_joined(path: Path, choices: Choices, read: Reader) -> Cohort:
    """The cohort of a cohort.toml. `read` reads one source; choices that a source does not make are `choices`.

    `healthy` true is its author's word for those of a source of whom nothing else is known, false calls all of them
    ill. A role that a source gives holds for those who have none; fractions are drawn by id, whatever the order.
    BadDataset names what cannot be understood, and ids that two sources share (`prefix` tells them apart).
    """
    told = _parsed(path)
    subjects: list[Subject] = []
    notes: list[str] = []
    citations: list[str] = []
    owner: dict[str, str] = {}
    for number, source in enumerate(told["source"], start=1):
        where = str(source["path"])
        cohort = _one(path, number, source, choices, read)
        for subject in cohort.subjects:
            if subject.subject_id in owner:
                raise BadDataset(
                    "E-JOINED-IDS", path,
                    f"subject {subject.subject_id!r} stands in {owner[subject.subject_id]} and in {where}.",
                    'Give one of the sources a prefix, such as prefix = "b-".',
                )  # fmt: skip
            owner[subject.subject_id] = where
        subjects += cohort.subjects
        notes += [f"{where}: {note}" for note in cohort.notes]
        citations += [cohort.citation] if cohort.citation and cohort.citation not in citations else []
    return Cohort(str(told.get("name", path.stem)), tuple(subjects), " ".join(citations), tuple(notes))


def _parsed(path: Path) -> dict[str, Any]:
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadDataset("E-JOINED-READ", path, f"cannot be read ({error.strerror or error}).", _FORM) from None
    except ValueError as error:
        raise BadDataset("E-JOINED-TOML", path, f"is not valid TOML ({error}).", _FORM) from None
    sources = told.get("source")
    if not isinstance(sources, list) or not sources or not all(isinstance(s, dict) and "path" in s for s in sources):
        raise BadDataset("E-JOINED-FORM", path, "names no source with a path.", _FORM)
    if strange := sorted(set(told) - {"name", "source"}):
        raise BadDataset("E-JOINED-FORM", path, f"has {strange[0]!r}, which is not known.", _FORM)
    return told


def _one(path: Path, number: int, source: Mapping[str, Any], choices: Choices, read: Reader) -> Cohort:
    def wrong(what: str) -> BadDataset:
        return BadDataset("E-JOINED-FORM", path, f"source {number}: {what}", _FORM)

    if strange := sorted(set(source) - {*_OWN, *_CHOICES}):
        raise wrong(f"has {strange[0]!r}, which is not known.")
    for key, kind in (("healthy", bool), ("site", str), ("prefix", str), ("layout", str), ("seed", int), ("path", str)):
        if key in source and not isinstance(source[key], kind):
            raise wrong(f"{key} is {source[key]!r}.")
    if str(source["path"]).endswith(".toml"):
        raise wrong("a source cannot be a cohort.toml itself.")
    own: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in source.items() if k in _CHOICES}
    for key, value in own.items():
        if not _fits(key, value):
            raise wrong(f"{key} is {source[key]!r}.")
    try:
        refuse_out_of_range(Choices(**own))
    except BadInput as error:
        raise wrong(str(error)) from None
    healthy = source.get("healthy")
    if healthy:
        own["healthy_unless_masked"] = True
    asked = replace(choices, **{"keep": (), **own})  # who is kept is named as in the joined cohort
    cohort = read(path.parent / str(source["path"]), source.get("layout", "auto"), asked)
    word = f"healthy = {str(healthy).lower()} in the cohort.toml"
    subjects = []
    overruled = [s.subject_id for s in cohort.subjects if healthy is False and s.healthy]
    for subject in cohort.subjects:
        said: dict[str, Any] = {"subject_id": f"{source.get('prefix', '')}{subject.subject_id}"}
        if healthy is False:
            said |= {"healthy": False, "health_from": word}
        elif healthy and subject.health_from == "--healthy-unless-masked":
            said["health_from"] = word
        if "site" in source:
            said["site"] = source["site"]
        subjects.append(replace(subject, **said))
    if "role" in source:
        subjects = _with_roles(subjects, source["role"], int(source.get("seed", 0)), wrong)
    if overruled:
        told = ", ".join(overruled[:3]) + (" ..." if len(overruled) > 3 else "")
        note = f"{told} {'is' if len(overruled) == 1 else 'are'} called healthy by the data set and ill by {word}."
        cohort = replace(cohort, notes=(*cohort.notes, note))
    return replace(cohort, subjects=tuple(subjects))


def _fits(key: str, value: Any) -> bool:
    """Whether a choice has a value of its kind: truth, text, a list of texts or of whole numbers, a number."""
    usual = _CHOICES[key]
    if isinstance(usual, tuple):
        kind: type = int if key.endswith("_labels") else str
        return isinstance(value, tuple) and all(type(one) is kind for one in value)
    if key == "header_form":
        return value in ("", "sform", "qform")
    if usual is None:
        return type(value) is int or (key == "mask_cut" and type(value) is float)
    return type(value) is type(usual)


def _with_roles(subjects: Sequence[Subject], role: Any, seed: int, wrong: Callable[[str], BadDataset]) -> list[Subject]:
    shares = {role: 1.0} if isinstance(role, str) else role
    numbers = isinstance(shares, dict) and all(isinstance(v, (int, float)) and v > 0 for v in shares.values())
    if not numbers or not shares or set(shares) - set(ROLES) or sum(shares.values()) > 1.0001:
        raise wrong(f"role is {role!r}; allowed are {', '.join(ROLES)}, or fractions of them that sum to 1 at most.")
    order = sorted(
        (s.subject_id for s in subjects if s.role is None),
        key=lambda i: hashlib.sha256(f"{seed} {i}".encode()).hexdigest(),
    )
    given: dict[str, str] = {}
    start, done = 0, 0.0
    for name, share in shares.items():
        done += share
        stop = round(done * len(order))
        given |= dict.fromkeys(order[start:stop], name)
        start = stop
    return [replace(s, role=given.get(s.subject_id, s.role)) for s in subjects]

"""The scans of a run, as its record and the cache have them."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.recipes import from_json
from core.runs.run_record import Run
from core.study.data_source import PreparedVolumes, cache_directory
from data.cohort import ROLES
from data.errors import BadInput, IntegrityError
from data.prepared import Prepared, Preprocessing
from data.prepared_cache import load_prepared


def has_scan(run: Run, subject: Mapping[str, Any], problems: dict[str, Any]) -> bool:
    """Whether the prepared scan of a subject is what it should be; one that is not is put among the problems."""
    try:
        prepared_of(run, subject["subject_id"])
    except IntegrityError as problem:
        problems[str(subject["subject_id"])] = problem
        return False
    return True


def scored_subjects(run: Run) -> list[dict[str, Any]]:
    """Records of the subjects that a run scores, in split order: calibration, validation, test."""
    by_id = {s["subject_id"]: s for s in run.record["cohort"]["subjects"]}
    return [by_id[i] for role in ROLES[1:] for i in run.record["split"][role]]


def subjects_of(run: Run, role: str) -> list[str]:
    """Ids of one split of a run."""
    return list(run.record["split"].get(role, []))


def prepared_of(run: Run, subject_id: str) -> Prepared:
    """The prepared scan of a subject of a run. IntegrityError when it is another subject's, or prepared otherwise."""
    subject = _subject_record(run, subject_id)
    prepared = load_prepared(cache_directory(run.directory.parent), subject["key"], subject_id)
    if prepared.made_from:
        asked, settings = run.record["preprocessing"], prepared.made_from["settings"]
        otherwise = [key for key in asked.keys() & settings.keys() if asked[key] != settings[key]]
        if otherwise or prepared.made_from["subject"][1] != subject["healthy"]:
            raise IntegrityError(
                f"The prepared scan of {subject_id!r} in {cache_directory(run.directory.parent)} was made with other "
                f"settings, or of a subject of other health, than {run.directory / 'run.json'} says: one of them was "
                "edited. Put back a copy, or make the run again."
            )
    return prepared


def prepared_volumes(run: Run, subject_ids: Sequence[str]) -> PreparedVolumes:
    """The prepared scans of subjects of a run, each read and verified when it is asked for."""
    keys = tuple(str(_subject_record(run, i)["key"]) for i in subject_ids)
    return PreparedVolumes(cache_directory(run.directory.parent), keys, tuple(subject_ids))


def _subject_record(run: Run, subject_id: str) -> dict[str, Any]:
    for subject in run.record["cohort"]["subjects"]:
        if subject["subject_id"] == subject_id:
            return dict(subject)
    raise BadInput(f"No subject {subject_id!r} in run {run.run_id}.")


def preprocessing_of(run: Run) -> Preprocessing:
    """How the scans of a run were prepared."""
    return from_json(Preprocessing, run.record["preprocessing"])

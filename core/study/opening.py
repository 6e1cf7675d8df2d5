"""A run is begun, or found again and gone on with; how it ends is written into its record."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.detectors import from_recipe, recipe_json
from core.memory_plan import is_out_of_memory
from core.pretraining.simclr import SimclrSettings
from core.progress import Progress
from core.recipes import as_json, from_json
from core.runs.listing import run_with_id
from core.runs.provenance import computed_by, fingerprint
from core.runs.run_record import Run, check_run_id
from core.runs.store import check_same, create_run, lose_equal_bits, update_run
from core.runs.versions import version_notes
from core.study.data_source import PreparedVolumes, Study
from core.study.preparing import in_split
from data.cohort import ROLES, Split
from data.errors import BadInput, EnvironmentProblem, Interrupted
from data.health import health_text


def tell_versions(run: Run, progress: Progress) -> None:
    """Say which versions differ from those that the run began with."""
    for note in version_notes(run):
        progress.say(f"note: {note}")


def open_or_create(
    runs: Path,
    kind: str,
    name: str,
    recipe: Mapping[str, Any],
    study: Study,
    run_id: str | None,
    parents: Mapping[str, str],
) -> Run:
    """The run of this id, or a new one. BadInput when it was begun otherwise or on other scans."""
    cohort = _cohort_record(study)
    wanted = {
        "recipe": recipe,
        "split": as_json(study.split.in_order()),
        "preprocessing": as_json(study.source.preprocessing),
    }
    if run_id is not None and (run := run_with_id(runs, run_id)) is not None:
        free = ("recipe.memory_gb", "recipe.log_every", "recipe.checkpoint_every")
        begun = {"recipe": _completed(run.record["recipe"]), "split": ordered_split(run.record["split"])}
        as_now = replace(run, record={**run.record, **begun})
        check_same(as_now, wanted | {"parents": parents}, may_change=(*free, "recipe.weights") if parents else free)
        if run.record["cohort"]["fingerprint"] != cohort["fingerprint"]:
            raise BadInput(
                f"The scans of run {run.run_id} have changed since it began (or others were set aside). "
                "Start a new run, under another id or name."
            )
        return run
    return create_run(
        runs,
        kind=kind,
        name=name,
        recipe=recipe,
        cohort=cohort,
        split=wanted["split"],
        preprocessing=wanted["preprocessing"],
        seed=int(recipe.get("seed", 0)),
        parents=parents,
        run_id=run_id,
    )


def ordered_split(split: Mapping[str, Any]) -> dict[str, Any]:
    """A stored split with ordered lists; those of older runs have the table's order."""
    ordered = Split(**{role: tuple(split.get(role, ())) for role in ROLES}).in_order()
    return {role: list(getattr(ordered, role)) for role in ROLES}


def training_volumes(run: Run, study: Study) -> PreparedVolumes:
    """The training scans in the order in which the run began: an older run that was stopped goes on in its own."""
    ids = tuple(run.record["split"]["train"])
    return PreparedVolumes(study.prepared.cache, tuple(study.prepared.keys[i] for i in ids), ids)


def _completed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with the settings that came after it was written, at defaults that mean what was done without them."""
    if recipe["kind"] == "SimCLR":
        settings = {key: value for key, value in recipe.items() if key != "kind"}
        return {"kind": "SimCLR", **as_json(from_json(SimclrSettings, settings))}
    return recipe_json(from_recipe(recipe))


def _cohort_record(study: Study) -> dict[str, Any]:
    subjects = [
        {
            "subject_id": s.subject_id,
            "healthy": bool(s.healthy),
            "health": health_text(s.healthy, s.health_from),
            "site": s.site,
            "age": s.age,
            "sex": s.sex,
            "key": study.prepared.keys[s.subject_id],
            "role": study.split.role_of(s.subject_id),
        }
        for s in study.cohort.subjects
        if s.subject_id in study.prepared.keys and in_split(study.split, s.subject_id)
    ]
    return {
        "name": study.cohort.name,
        "path": os.path.abspath(study.source.cohort),
        "layout": study.source.layout,
        "citation": study.cohort.citation,
        "n_total": len(study.cohort.subjects),
        "fingerprint": fingerprint({s["subject_id"]: s["key"] for s in subjects}),
        "subjects": subjects,
        "set_aside": [as_json(s) for s in study.prepared.set_aside],
        "notes": list(study.cohort.notes),
        **({"choices": as_json(said)} if (said := study.source.choices.said()) else {}),
    }


def check_given_id(run_id: str | None) -> None:
    """BadInput when an id is given that no run can have."""
    if run_id is not None:
        check_run_id(run_id)


def compare_threads(run: Run, before: Sequence[str], what: str, progress: Progress) -> Run:
    """A stage that goes on with other threads, or on another processor, no longer claims equal bits; it says so."""
    now = computed_by()
    if not before or set(before) == {now}:
        return run
    reason = f"{what} partly with {', partly with '.join(dict.fromkeys([*before, now]))}, which round differently"
    progress.say(f"note: {reason}. Same bits need the same threads: OMP_NUM_THREADS={before[0].split()[0]}.")
    return lose_equal_bits(run, reason)


@contextlib.contextmanager
def recorded_outcome(run: Run) -> Iterator[None]:
    """Writes how a stage ended into run.json: interrupted stays resumable, an error keeps its text."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        with contextlib.suppress(EnvironmentProblem):
            update_run(run, status="interrupted")
        raise
    except BaseException as error:
        told = _in_words(run, error)
        with contextlib.suppress(EnvironmentProblem):  # a full disk takes no word about itself; the error is told
            update_run(run, status="failed", error=str(told))
        if told is not error:
            raise told from error
        raise
    update_run(run, status="finished")


def _in_words(run: Run, error: BaseException) -> BaseException:
    """The error itself, or what to do where memory ran out. A batch is never made smaller in silence: its size is part
    of what is learned."""
    if not is_out_of_memory(error):
        return error
    remedy = {
        "encoder": "Start a run with a smaller --simclr.batch or --simclr.views.crop-voxels, or a narrower encoder",
        "detector": "Fit with less --memory, fewer --layers or a coarser --grid",
    }.get(run.kind, "Use smaller settings")
    return EnvironmentProblem(
        f"Memory ran out while run {run.run_id} was computed ({str(error).splitlines()[0] if str(error) else 'no more'}"
        f"). {remedy}; or end other programs and repeat the command. What was committed before is intact."
    )

"""The use-cases that the command line and the pages share: prepare, pretrain, fit, score, evaluate.

Each stage commits whole directories and skips what is committed, so a killed command goes on where it stopped.
"""

import contextlib
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from core.detectors import (
    LAYERED,
    AnyDetector,
    FeatureGaussian,
    Layered,
    PatchCore,
    detector_kind,
    from_recipe,
    kind_of,
    plain_name,
    recipe_json,
)
from core.detectors.voxel_zscore import VoxelZScore
from core.disk_plan import grid_bytes
from core.doubts import set_doubted_aside
from core.features import check_features, feature_stride
from core.memory_plan import is_out_of_memory
from core.progress import Progress
from core.provenance import computed_by, reset_peak_memory
from core.recipes import as_json, from_json
from core.simclr import SimclrSettings, bytes_to_train, check_settings, pretrain_encoder
from core.store import (
    Run,
    about_stage,
    check_run_id,
    check_same,
    create_run,
    fingerprint,
    lock,
    lose_equal_bits,
    record_duration,
    run_with_id,
    stage,
    stage_directory,
    stage_done,
    stage_name,
    update_run,
    verify_stage,
)
from core.training import checkpoint_history, checkpoint_step
from core.versions import note_resumed, version_notes
from core.views import check_crop
from data.choices import NOTHING, Choices
from data.cohort import ROLES, SAY_HEALTH, Cohort, Split, Subject, check_healthy, split_by_roles
from data.errors import BadInput, EnvironmentProblem, IntegrityError, Interrupted, together
from data.files import committed_directory, is_committed, read_committed_json, sha256_file, write_json
from data.health import grouped, health_summary, health_text
from data.layout import read_cohort
from data.preprocessing import Prepared, PreparedCohort, Preprocessing, load_prepared, load_voxel_hash, prepare_cohort
from data.ranges import check_range, refuse_out_of_range
from data.reading import refuse_leakage
from data.room import require_room, size
from data.schemas import check_schema
from data.split_file import read_split
from data.template import working_grid
from data.volume import Volume
from models.encoder import EncoderSettings, make_encoder

CHUNK = 24
"""Subjects scored together where memory allows: more gain no speed."""

LEFT_OUT = "left-out"
"""Stage with the scores of the training scans, each by what was learnt from the others."""
SUBJECT_FILE = "subject.json"
"""Beside a scan's distances: one score of the whole scan per layer set, where the detector gives one."""


@dataclass(frozen=True)
class DataSource:
    """Which scans, how they are split, and how they are prepared."""

    cohort: Path
    """A table (CSV, TSV) or a data set's folder."""
    layout: str = "auto"
    """table, bids, ixi, brats, nnunet, wmh, ms, joined, or auto."""
    split: Path | None = None
    """JSON with the lists train, calibration, validation, test; else the table's roles, else a seeded draw."""
    seed: int = 0
    """Of the drawn split."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    """Registration, working grid, intensity."""
    choices: Choices = NOTHING
    """What the data set does not say by itself."""


@dataclass(frozen=True, eq=False)
class Study:
    """A prepared cohort and its split: what every stage works on."""

    source: DataSource
    cohort: Cohort
    split: Split
    prepared: PreparedCohort

    def volumes(self, role: str) -> "PreparedVolumes":
        """The prepared volumes of one split, loaded one at a time, in the order of the ids."""
        ids = getattr(self.split.in_order(), role)
        return PreparedVolumes(self.prepared.cache, tuple(self.prepared.keys[i] for i in ids), ids)


@dataclass(frozen=True)
class PreparedVolumes(Sequence[Volume]):
    """Volumes of the cache, by key, each read when it is asked for."""

    cache: Path
    keys: tuple[str, ...]
    subject_ids: tuple[str, ...] | None = None
    """Whose they are, in the order of `keys`: a scan that is somebody else's is refused."""

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> Volume: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Volume]: ...
    def __getitem__(self, index: int | slice) -> Volume | Sequence[Volume]:
        if isinstance(index, slice):
            ids = None if self.subject_ids is None else self.subject_ids[index]
            return PreparedVolumes(self.cache, self.keys[index], ids)
        owner = None if self.subject_ids is None else self.subject_ids[index]
        return load_prepared(self.cache, self.keys[index], owner).volume


def cache_directory(runs: Path) -> Path:
    """Where prepared scans of a runs directory are kept."""
    return runs / ".cache" / "prepared"


def prepare(runs: Path, source: DataSource, progress: Progress, workers: int = 2) -> Study:
    """Split by subject, then read, register, resample and normalise every subject (cached); refuse leakage.

    What is wrong with the cohort, the split or a setting is BadInput before any scan is prepared.
    """
    check_range("workers", workers)
    check_range("split_seed", source.seed)
    cohort = read_cohort(source.cohort, source.layout, source.choices).in_order()
    asked = _split(cohort, source)
    check_healthy(cohort, asked)
    _require_training(asked, cohort)
    with progress.task("Preparing scans", len(cohort.subjects)) as advance:
        done = 0

        def monitor(number: int, total: int, text: str) -> None:
            nonlocal done
            advance(number - done, text)
            done = number

        prepared = prepare_cohort(cohort, source.preprocessing, cache_directory(runs), workers=workers, monitor=monitor)
    prepared = set_doubted_aside(cohort, asked, prepared, progress)
    split = _readable(asked, prepared)
    apart = [i for i in prepared.keys if not _in_split(split, i)]
    if apart:
        progress.say(f"note: {len(apart)} of {len(cohort.subjects)} subjects are in no split: {', '.join(apart[:5])}.")
    _check_called_healthy(cohort, split, prepared)
    refuse_leakage(split, prepared.voxel_hashes)
    return Study(source, cohort, split, prepared)


def pretrain(
    runs: Path,
    source: DataSource,
    settings: SimclrSettings,
    progress: Progress,
    *,
    name: str = "simclr",
    run_id: str | None = None,
) -> Run:
    """Train an encoder by SimCLR on the training split. The same `run_id` and settings resume a stopped run."""
    settings = replace(settings, encoder=replace(settings.encoder, in_channels=len(source.preprocessing.contrasts)))
    check_settings(settings)
    _check_run_id(run_id)
    check_crop(settings.views, working_grid(source.preprocessing.spacing_mm).shape)
    check_settings(settings, len(_split(read_cohort(source.cohort, source.layout, source.choices), source).train))
    study = prepare(runs, source, progress)
    check_settings(settings, len(study.split.train))  # again: some of the scans may have been set aside
    recipe = {"kind": "SimCLR", **as_json(settings)}
    if run_id is None or not is_committed(runs / run_id / "encoder"):
        progress.say(_room_to_train(runs, run_id, study, settings))
    run = _open_or_create(runs, "encoder", name, recipe, study, run_id, {})
    _tell_versions(run, progress)
    with lock(run) as run, _outcome(run):
        if stage_done(run, "encoder"):
            return run
        update_run(run, status="running")
        began = time.perf_counter()
        reset_peak_memory()
        seen = checkpoint_step(run.directory)
        if seen:
            note_resumed(run, f"training, at step {seen},")
            progress.say(f"Training goes on from step {seen} of {settings.steps}.")
            run = _compare_threads(run, checkpoint_history(run.directory), "trained", progress)
        with progress.task("Training the encoder", settings.steps - seen) as advance:

            def monitor(step: int, values: Mapping[str, float]) -> None:
                nonlocal seen
                advance(max(step - seen, 0), f"loss {values.get('loss', float('nan')):.3f}")
                seen = max(step, seen)

            about = about_stage(run, "encoder")
            pretrain_encoder(_training_volumes(run, study), settings, run.directory, monitor, about)
        record_duration(run, "encoder", began)
    return run


def fit(
    runs: Path,
    source: DataSource,
    detector: AnyDetector,
    progress: Progress,
    *,
    name: str,
    run_id: str | None = None,
    encoder_run: Run | None = None,
) -> Run:
    """Fit a detector to the training split; `encoder_run` gives it that run's encoder."""
    refuse_out_of_range(detector)
    _check_run_id(run_id)
    if encoder_run is not None:
        _check_encoder(detector, encoder_run)
    if isinstance(detector, LAYERED):
        _check_layers(detector, encoder_run, source.preprocessing)
    study = prepare(runs, source, progress)
    _tell_notes(study, progress)
    if not study.split.calibration:
        progress.say(
            "note: no calibration subject, so this run gets no label-free threshold: it is judged at the thresholds of "
            "validation labels and of oracles alone. Give healthy subjects the role calibration for one."
        )
    parents: dict[str, str] = {}
    if encoder_run is not None:
        detector, parents = _with_encoder(detector, encoder_run, study)
    elif isinstance(detector, LAYERED) and not detector.weights:
        contrasts = len(source.preprocessing.contrasts)
        detector = replace(detector, encoder=replace(detector.encoder, in_channels=contrasts))
    recipe = recipe_json(detector)
    if encoder_run is not None:  # by its run, not by its path: a study that has moved is the same study
        recipe["weights"] = f"{encoder_run.run_id}/encoder"
    run = _open_or_create(runs, "detector", name, recipe, study, run_id, parents)
    _tell_versions(run, progress)
    with lock(run) as run, _outcome(run):
        if stage_done(run, "detector"):
            return run
        update_run(run, status="running")
        volumes = _training_volumes(run, study)
        with progress.task("Fitting", len(volumes)) as advance:
            seen = 0

            def monitor(number: int, values: Mapping[str, float]) -> None:
                nonlocal seen
                if "disk_bytes" in values:
                    require_room(run.directory, int(values["disk_bytes"]), "What is fitted")
                if "planned_bytes" in values:
                    progress.say(detector.plan_text_ if isinstance(detector, LAYERED) else "")
                advance(max(number - seen, 0), f"{values['chosen']:.0f} patches chosen" if "chosen" in values else "")
                seen = max(number, seen)

            if not isinstance(detector, LAYERED):
                require_room(run.directory, _fitted_bytes(detector, volumes[0]), "What is fitted")
            with stage(run, "detector") as scratch:
                if isinstance(detector, PatchCore):
                    detector.index_cache_ = _index_cache(run)
                detector.fit(volumes, monitor)
                _save(detector, recipe, scratch)
                if isinstance(detector, LAYERED):  # before the commit: a run killed between the two is not fitted again
                    settings = _fitted_settings(detector)
                    update_run(run, settings=settings)
                    if "audit" in settings:
                        progress.say(f"note: {settings['audit']}")
    return run


def _tell_notes(study: Study, progress: Progress) -> None:
    """What concerns the scans that are learnt from: who is healthy on whose word, and what was noticed."""
    train = set(study.split.train)
    progress.say("Training scans: " + health_summary([(s.healthy, s.health_from) for s in study.cohort.subjects
                                                      if s.subject_id in train]))  # fmt: skip
    told = study.prepared.notes(study.split.train)
    for note in (*study.cohort.notes, *grouped([(i, note) for i, notes in told.items() for note in notes], most=8)):
        progress.say(f"note: {note}")


def score(run: Run, progress: Progress, *, memory_gb: float | None = None) -> Run:
    """Score every calibration, validation and test subject under every layer set; one directory per subject.

    As many subjects at a time as fit into the detector's memory limit (or `memory_gb`). The number is kept with the
    run and changes no bit: a subject gets the same scores alone as among others.
    """
    if memory_gb is not None:
        check_range("memory_gb", memory_gb)
    detector = None
    subjects = scored_subjects(run)
    began = time.perf_counter()
    reset_peak_memory()
    problems: dict[str, BadInput | EnvironmentProblem | IntegrityError] = {}
    missing = _unscored(run, subjects, problems)
    if problems and not missing:
        raise together(problems, "All others are scored.")
    if run.status == "finished" and not missing:
        return run  # nothing to write: the run may be one that can only be read
    with lock(run) as run, _outcome(run), progress.task("Scoring", len(subjects)) as advance:
        if missing:
            run = update_run(run, status="running")
            if len(missing) < len(subjects):
                run = note_resumed(run, "scoring")
            detector = load_detector(run)
            _room_for_scores(run, detector, subjects)
            if len(missing) < len(subjects):
                before = run.record["stages"].get("scores", {}).get("computed_by")
                run = _compare_threads(run, (before,) if before else (), "scored", progress)
            run = update_run(run, stages={"scores": {"computed_by": computed_by()}})
            run = _scored_together(run, detector, memory_gb)
        together_n = run.record["settings"].get("scored_together", CHUNK)
        for start in range(0, len(subjects), together_n):
            chunk = subjects[start : start + together_n]
            todo = [s for s in chunk if s["subject_id"] in missing and _has_scan(run, s, problems)]
            if detector is not None and todo:
                _score_chunk(run, detector, todo)
            advance(len(chunk), chunk[-1]["subject_id"])
        if detector is not None:
            record_duration(run, "scores", began)
        if problems:
            raise together(problems, "All others are scored.")
    return run


def score_left_out(run: Run, progress: Progress) -> None:
    """Score every training scan by the Gaussian of all the others: healthy scores where no scan was held out.

    Exact, from what the Gaussian keeps of its training scans (Sherman-Morrison on the Gram matrix). The run must be
    locked. BadInput for detectors that keep too little.
    """
    ids = list(run.record["split"]["train"])  # in the order in which they were learnt from
    names = {i: stage_name(LEFT_OUT, i) for i in ids}
    if all(stage_done(run, name, verify=True) for name in names.values()):
        return
    detector = load_detector(run)
    if not isinstance(detector, FeatureGaussian):
        raise BadInput(
            f"Run {run.run_id} is {plain_name(kind_of(detector))}: scores of the training scans without themselves are "
            "known for Gaussians only. Hold healthy subjects out: give them the role calibration."
        )
    with progress.task("Scoring each training scan by the others", 1) as advance:
        distances = detector.left_out()
        for number, subject_id in enumerate(ids):
            target = stage_directory(run, names[subject_id])
            about = about_stage(run, names[subject_id])
            with committed_directory(target, within=run.directory, about=about) as scratch:
                np.save(scratch / "distances.npy", np.ascontiguousarray(distances[:, number], dtype=np.float32))
        advance(1, f"{len(ids)} scans")


def _has_scan(run: Run, subject: Mapping[str, Any], problems: dict[str, Any]) -> bool:
    """Whether the prepared scan of a subject is what it should be; one that is not is put among the problems."""
    try:
        prepared_of(run, subject["subject_id"])
    except IntegrityError as problem:
        problems[str(subject["subject_id"])] = problem
        return False
    return True


def _unscored(run: Run, subjects: Sequence[Mapping[str, Any]], problems: dict[str, Any]) -> set[str]:
    """Ids of those who have no scores yet; those whose scores are damaged are put among the problems."""
    missing = set()
    for subject in subjects:
        try:
            if not _is_scored(run, subject):
                missing.add(str(subject["subject_id"]))
        except IntegrityError as problem:
            problems[str(subject["subject_id"])] = problem
    return missing


def _tell_versions(run: Run, progress: Progress) -> None:
    for note in version_notes(run):
        progress.say(f"note: {note}")


def load_detector(run: Run) -> AnyDetector:
    """The fitted detector of a run. IntegrityError when its files are not what was saved."""
    if not stage_done(run, "detector"):
        raise BadInput(
            f"Run {run.run_id} has no fitted detector. Finish it: python cli.py fit --run-id {run.run_id} ..."
        )
    verify_stage(run, "detector")
    directory = stage_directory(run, "detector")
    check_schema(directory / "detector.json", read_committed_json(directory, "detector.json"), 1)
    try:
        detector = detector_kind(run.record["recipe"]["kind"]).load(directory)
    except ValueError as error:  # models knows no error of ours
        raise error if isinstance(error, BadInput) else BadInput(str(error)) from error
    if isinstance(detector, PatchCore):
        detector.index_cache_ = _index_cache(run)
    return detector


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


def _is_scored(run: Run, subject: Mapping[str, Any]) -> bool:
    name = stage_name("scores", subject["subject_id"])
    if not stage_done(run, name):
        return False
    verify_stage(run, name)
    return True


def _scored_together(run: Run, detector: AnyDetector, memory_gb: float | None) -> Run:
    if not isinstance(detector, LAYERED) or "scored_together" in run.record["settings"]:
        return run
    together = detector.subjects_together(CHUNK, memory_gb)
    return update_run(run, settings={**run.record["settings"], "scored_together": together})


def _score_chunk(run: Run, detector: AnyDetector, chunk: Sequence[Mapping[str, Any]]) -> None:
    volumes = [prepared_of(run, s["subject_id"]).volume for s in chunk]
    whole: dict[str, dict[str, float]] = {}
    if isinstance(detector, PatchCore):
        distances, subjects = detector.distances_and_subject_scores(volumes)
        arrays = {v.subject_id: ("distances.npy", distances[:, n]) for n, v in enumerate(volumes)}
        whole = {v.subject_id: {"+".join(s): value for s, value in subjects[n].items()} for n, v in enumerate(volumes)}
    elif isinstance(detector, FeatureGaussian):
        distances = detector.distances(volumes)
        arrays = {v.subject_id: ("distances.npy", distances[:, n]) for n, v in enumerate(volumes)}
    else:
        arrays = {v.subject_id: ("scores.npy", detector.score(v).scores) for v in volumes}
    for subject_id, (name, array) in arrays.items():
        stage = stage_name("scores", subject_id)
        target = stage_directory(run, stage)
        with committed_directory(target, within=run.directory, about=about_stage(run, stage)) as scratch:
            np.save(scratch / name, np.ascontiguousarray(array, dtype=np.float32))
            if subject_id in whole:
                write_json(scratch / SUBJECT_FILE, {"scores": whole[subject_id]})


def _split(cohort: Cohort, source: DataSource) -> Split:
    if source.split is not None:
        return read_split(source.split, cohort)
    if any(s.role for s in cohort.subjects):
        return split_by_roles(cohort.subjects)
    return draw_split(cohort.subjects, source.seed)


def draw_split(subjects: Sequence[Subject], seed: int) -> Split:
    """Seeded: 70 % of the healthy train, 15 % calibrate, 15 % test; of the ill 40 % validate, 60 % test.

    Who is of unknown health is in no split: neither Dice nor false positives could be told of it.
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, 0x5911], dtype=np.uint64)))
    healthy = sorted(s.subject_id for s in subjects if s.healthy)
    ill = sorted(s.subject_id for s in subjects if s.healthy is False)
    healthy = [healthy[i] for i in generator.permutation(len(healthy))]
    ill = [ill[i] for i in generator.permutation(len(ill))]
    first, second = round(0.7 * len(healthy)), round(0.85 * len(healthy))
    third = round(0.4 * len(ill))
    return Split(
        train=tuple(sorted(healthy[:first])),
        calibration=tuple(sorted(healthy[first:second])),
        validation=tuple(sorted(ill[:third])),
        test=tuple(sorted(healthy[second:] + ill[third:])),
    )


def _require_training(split: Split, cohort: Cohort) -> None:
    if len(split.train) >= 2:
        return
    known = sum(bool(s.healthy) for s in cohort.subjects)
    unknown = [s for s in cohort.subjects if s.healthy is None]
    message = (
        f"The split has {len(split.train)} healthy training subject(s). At least 2 are needed. Give more subjects "
        "the role train, in the table or in the split file."
    )
    if unknown:
        message = (
            f"{len(split.train)} healthy training subject(s): of {len(cohort.subjects)} subjects {known} are known to "
            f"be healthy, of {len(unknown)} it is unknown ({unknown[0].subject_id}: {unknown[0].health_from}). "
            f"At least 2 are needed. {SAY_HEALTH}"
        )
    raise BadInput(
        " ".join([message, *[note for note in cohort.notes if "looks like" in note or "seems to" in note][:3]])
    )


def _readable(split: Split, prepared: PreparedCohort) -> Split:
    kept = {role: tuple(i for i in getattr(split, role) if i in prepared.keys) for role in ROLES}
    if len(kept["train"]) < 2:
        aside = "; ".join(f"{s.subject_id}: {s.reason}" for s in prepared.set_aside[:3])
        raise BadInput(
            f"{len(kept['train'])} healthy training subject(s) can be used. At least 2 are needed. "
            f"Set aside: {len(prepared.set_aside)}. {aside}"
        )
    return Split(**kept)


def _check_called_healthy(cohort: Cohort, split: Split, prepared: PreparedCohort) -> None:
    for subject in cohort.subjects:
        masked = subject.healthy and subject.lesion_mask is not None and subject.subject_id in prepared.keys
        if not masked or not _in_split(split, subject.subject_id):
            continue
        lesion = prepared.load(subject.subject_id).native_lesion
        if lesion is not None and lesion.voxels.any():
            raise BadInput(
                f"Subject {subject.subject_id!r} ({split.role_of(subject.subject_id)}) is called healthy, and its "
                f"lesion mask has {lesion.volume_ml:.2f} mL: {subject.lesion_mask}. Correct the table or the mask."
            )


def _index_cache(run: Run) -> Path:
    """Where the search index of a memory bank is kept: made anew from the bank when it is not there."""
    return run.directory.parent / ".cache" / "faiss" / run.run_id


def _fitted_bytes(detector: AnyDetector, volume: Volume) -> int:
    """Of a fitted detector without layers: arrays of the working grid, or its recipe alone."""
    return grid_bytes(volume.voxels.size, arrays=2) if isinstance(detector, VoxelZScore) else grid_bytes(0)


def _room_for_scores(run: Run, detector: AnyDetector, subjects: Sequence[Mapping[str, Any]]) -> None:
    left = [subject for subject in subjects if not _is_scored(run, subject)]
    if isinstance(detector, LAYERED):
        values = len(detector.layer_sets) * len(detector.layout_.positions)
    else:
        values = int(np.prod(working_grid(preprocessing_of(run).spacing_mm).shape))
    require_room(run.directory, len(left) * grid_bytes(values), f"Scoring {len(left)} scans")


def _room_to_train(runs: Path, run_id: str | None, study: Study, settings: SimclrSettings) -> str:
    """Refuses a training whose checkpoints and encoder have no room; what they take, in words."""
    directory = runs if run_id is None else runs / run_id
    needed = bytes_to_train(study.volumes("train"), settings, directory)
    require_room(directory, needed, "Training")
    return f"Checkpoints and encoder take up to {size(needed)} on disk."


def _fitted_settings(detector: Layered) -> dict[str, Any]:
    """What came of a fit, for the run's record."""
    if isinstance(detector, PatchCore):
        return detector.fitted_settings()
    fitted = detector.gaussian_
    assert fitted is not None
    return {
        "form": fitted.form,
        "n_subjects": fitted.n_subjects,
        "features": sum(fitted.channels.values()),
        "positions": fitted.n_positions,
        "bytes": fitted.n_bytes,
    }


def _save(detector: AnyDetector, recipe: Mapping[str, Any], directory: Path) -> None:
    if isinstance(detector, LAYERED):
        detector.weights = recipe["weights"]
    detector.save(directory)


def _open_or_create(
    runs: Path,
    kind: str,
    name: str,
    recipe: Mapping[str, Any],
    study: Study,
    run_id: str | None,
    parents: Mapping[str, str],
) -> Run:
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


def _training_volumes(run: Run, study: Study) -> PreparedVolumes:
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
        if s.subject_id in study.prepared.keys and _in_split(study.split, s.subject_id)
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


def _in_split(split: Split, subject_id: str) -> bool:
    return any(subject_id in getattr(split, role) for role in ROLES)


def preprocessing_of(run: Run) -> Preprocessing:
    """How the scans of a run were prepared."""
    return from_json(Preprocessing, run.record["preprocessing"])


def _check_layers(detector: Layered, encoder_run: Run | None, preprocessing: Preprocessing) -> None:
    """Unknown layers, an even neighbourhood and an odd feature grid are refused before any scan is prepared."""
    settings = detector.encoder
    if encoder_run is not None:
        settings = from_json(EncoderSettings, encoder_run.record["recipe"]["encoder"])
    try:
        encoder = make_encoder(settings)
    except ValueError as error:  # models knows no error of ours
        raise BadInput(str(error)) from error
    check_features(detector.features, encoder)
    feature_stride(encoder, detector.features.grid, working_grid(preprocessing.spacing_mm))


def _check_encoder(detector: AnyDetector, encoder_run: Run) -> None:
    if not isinstance(detector, LAYERED):
        raise BadInput(f"The detector is {plain_name(kind_of(detector))} and takes no encoder. Leave --encoder out.")
    if not stage_done(encoder_run, "encoder"):
        raise BadInput(
            f"Encoder run {encoder_run.run_id} is {encoder_run.status}: it has no finished encoder. "
            f"Finish it: python cli.py pretrain --run-id {encoder_run.run_id} ..."
        )


def _check_run_id(run_id: str | None) -> None:
    if run_id is not None:
        check_run_id(run_id)


def _with_encoder(detector: AnyDetector, encoder_run: Run, study: Study) -> tuple[AnyDetector, dict[str, str]]:
    assert isinstance(detector, LAYERED)
    weights = stage_directory(encoder_run, "encoder")
    verify_stage(encoder_run, "encoder")
    _refuse_foreign_encoder(encoder_run, study)
    parents = {"encoder": encoder_run.run_id, "encoder_sha256": sha256_file(weights / "encoder.safetensors")}
    return replace(detector, weights=str(weights)), parents


def _refuse_foreign_encoder(encoder_run: Run, study: Study) -> None:
    """An encoder that saw a subject of the other splits leaks; one trained on other preparation sees other inputs."""
    seen = set(encoder_run.record["split"]["train"])
    leaked = [i for role in ROLES[1:] for i in getattr(study.split, role) if i in seen]
    if leaked:
        raise BadInput(
            f"Encoder {encoder_run.run_id} was trained on {len(leaked)} subject(s) that calibrate, validate or "
            f"test here: {', '.join(leaked[:5])}. Use the same --split for both, or pretrain another encoder."
        )
    others = {study.prepared.voxel_hashes[i]: i for role in ROLES[1:] for i in getattr(study.split, role)}
    same = [f"{i} is {others[found]} here" for i, found in _voxel_hashes(encoder_run, seen).items() if found in others]
    if same:
        raise BadInput(
            f"Encoder {encoder_run.run_id} was trained on the voxels of {len(same)} scan(s) that calibrate, validate "
            f"or test here under another name: {'; '.join(same[:5])}. Take them out, or pretrain another encoder."
        )
    asked, trained = as_json(study.source.preprocessing), encoder_run.record["preprocessing"]
    changed = [k for k in ("contrasts", "registration", "spacing_mm", "intensity") if asked[k] != trained.get(k)]
    if changed:
        raise BadInput(
            f"Encoder {encoder_run.run_id} was trained on scans prepared otherwise: "
            + "; ".join(f"{k} {trained.get(k)!r}, here {asked[k]!r}" for k in changed)
            + ". Prepare these scans in the same way."
        )


def _voxel_hashes(run: Run, subject_ids: Collection[str]) -> dict[str, str]:
    """Hashes of the scans' voxels by subject, as far as their prepared scans are still in the cache."""
    found = {}
    for subject in run.record["cohort"]["subjects"]:
        if subject["subject_id"] in subject_ids:
            with contextlib.suppress(IntegrityError, KeyError):
                subject_id = str(subject["subject_id"])
                found[subject_id] = load_voxel_hash(cache_directory(run.directory.parent), subject["key"], subject_id)
    return found


def _compare_threads(run: Run, before: Sequence[str], what: str, progress: Progress) -> Run:
    """A stage that goes on with other threads, or on another processor, no longer claims equal bits; it says so."""
    now = computed_by()
    if not before or set(before) == {now}:
        return run
    reason = f"{what} partly with {', partly with '.join(dict.fromkeys([*before, now]))}, which round differently"
    progress.say(f"note: {reason}. Same bits need the same threads: OMP_NUM_THREADS={before[0].split()[0]}.")
    return lose_equal_bits(run, reason)


@contextlib.contextmanager
def _outcome(run: Run) -> Iterator[None]:
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

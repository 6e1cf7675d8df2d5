"""Reading a training run for a screen: its curves, how far it is, what it is doing in words, what to do next."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from core.pretraining.training_advice import kind_of
from core.pretraining.training_verdict import Verdict, candidates_of, verdict
from core.runs.jobs import Job
from core.runs.listing import current_status
from core.runs.run_record import Run
from core.runs.store import read_events

DRAWN_POINTS = 400
"""Points per curve: more cannot be told apart on a screen."""
SPEED_STEPS = 20
"""Steps over which the speed is measured."""
SERIES = (
    "loss", "top1", "alignment", "uniformity", "embedding_std", "effective_rank", "gradient_norm", "lr",
    "examples_per_s", "chance", "candidates", "chance_top1", "positive_similarity", "negative_similarity", "hardness",
    "queue_fill", "queue_age", "contrastive_loss", "class_loss", "class_accuracy", "shift_similarity", "shift_share",
)  # fmt: skip
HISTOGRAM_COLUMNS = 120
"""Columns per heat map of cosines."""
NEGATIVES_READ: Mapping[str, tuple[str, ...]] = {
    "in-batch": (),
    "queue": ("bank_size",),
    "slots": ("bank_size", "slot_momentum"),
    "moco": ("bank_size", "key_momentum"),
    "hard": ("bank_size", "key_momentum", "hardest", "positive_prior"),
    "ccd": ("shifts", "class_weight"),
    "dense": ("layer", "positions", "apart_mm", "other_subjects"),
    "dense-shift": ("layer", "positions", "apart_mm", "other_subjects", "blob_strength", "blob_mm"),
    "atlas": ("layer", "positions", "apart_mm"),
    "atlas-shift": ("layer", "positions", "apart_mm", "blob_strength", "blob_mm"),
}
"""Which settings each kind of negatives reads; the others change nothing."""


@dataclass(frozen=True)
class Curves:
    """Logged values over steps, thinned for drawing, and the same as running means."""

    steps: tuple[int, ...]
    values: Mapping[str, tuple[float | None, ...]]
    means: Mapping[str, tuple[float | None, ...]]
    """Each point is the mean of the steps before it, over a twenty-fifth of the run and at least five."""

    def has(self, name: str) -> bool:
        """Whether any drawn step logged it."""
        return any(value is not None for value in self.values.get(name, ()))


@dataclass(frozen=True, eq=False)
class Similarities:
    """Histograms of cosines over steps, as shares of their pairs; the bins are equal, from −1 to 1."""

    steps: tuple[int, ...]
    positive: Float64[np.ndarray, "steps bins"]
    """Cosines of partners."""
    negative: Float64[np.ndarray, "steps bins"]
    """Cosines with everything a partner must be told from."""

    @property
    def edges(self) -> Float64[np.ndarray, " edges"]:
        """Of the bins, one more than bins."""
        return np.linspace(-1, 1, self.positive.shape[1] + 1)

    @property
    def overlap(self) -> float:
        """How much of the latest two histograms is shared: 0 when one cosine parts them, 1 when they are the same."""
        return float(np.minimum(self.positive[-1], self.negative[-1]).sum())


@dataclass(frozen=True, eq=False)
class Journal:
    """The logged steps of a run as far as its journal was read."""

    steps: tuple[Mapping[str, Any], ...] = ()
    last: Mapping[str, Any] | None = None
    """The event that was read last, whatever its kind."""
    begins: int = 0
    """Byte where that event begins."""


@dataclass(frozen=True)
class TrainingView:
    """What a training run shows at one moment."""

    step: int
    total: int
    latest: Mapping[str, float]
    """Means of the most recent logged steps."""
    seconds_left: float | None
    """At the recent speed; None when it is not known or nothing is left."""
    batch: int
    verdict: Verdict
    curves: Curves
    similarities: Similarities | None
    """None when no histogram was logged."""
    kind: str
    """Of the negatives."""
    shifts: int
    """Classes of shifted copies, with a class head."""
    epoch: float | None
    """Steps after which every training subject was seen once."""

    @property
    def share(self) -> float:
        """How much of the run is done, 0 to 1."""
        return min(self.step / self.total, 1.0) if self.total else 0.0

    @property
    def candidates(self) -> int:
        """Among how many a partner must be found, itself counted, at the last step; 2N − 1 when it is not logged."""
        logged = self._last("candidates")
        return 2 * self.batch - 1 if logged is None else round(logged)

    @property
    def chance(self) -> float:
        """The loss of an embedding that tells nothing apart, at the last step; ln(2N − 1) when it is not logged."""
        logged = self._last("chance")
        return math.log(max(self.candidates, 1)) if logged is None else logged

    @property
    def chance_top1(self) -> float:
        """How often a partner is found by guessing."""
        return 1 / self.candidates if self.candidates > 0 else 0.0

    def _last(self, name: str) -> float | None:
        column = self.curves.values.get(name, ())
        return column[-1] if column else None


def read_on(run: Run, known: Journal | None = None) -> Journal:
    """The journal of a run, of which only the last known event and what follows it is read.

    A resumed run rewrites its journal from the checkpoint on; then the last event is another one, and all is read.
    """
    if known is not None and known.last is not None:
        found = read_events(run, known.begins)
        if found and found[0] == known.last:
            return _extended(known, found[1:]) if len(found) > 1 else known
    return _extended(Journal(), read_events(run))


def _extended(known: Journal, found: Sequence[Mapping[str, Any]]) -> Journal:
    if not found:
        return known
    ends = [known.last["offset"] if known.last else 0, *(event["offset"] for event in found)]
    steps = (event for event in found if "loss" in event and "step" in event)
    return Journal((*known.steps, *steps), found[-1], ends[-2])


def read_training(run: Run, journal: Journal | None = None) -> TrainingView:
    """The state of an encoder run as its journal has it now, or as `journal` was read; also before the first step."""
    events = (journal or read_on(run)).steps
    settings = run.record["recipe"]
    batch, subjects = int(settings.get("batch", 0)), len(run.record["split"].get("train", []))
    total = int(settings.get("steps", 0))
    step = int(events[-1]["step"]) if events else 0
    seconds = [float(e["seconds"]) for e in events[-SPEED_STEPS:] if e.get("seconds")]
    left = (total - step) * float(np.median(seconds)) if seconds and step < total else None
    return TrainingView(
        step=step,
        total=total,
        latest={name: _recent(events, name) for name in SERIES if events and name in events[-1]},
        seconds_left=left,
        batch=batch,
        verdict=verdict(events, settings, subjects),
        curves=thinned(events),
        similarities=similarities_of(events),
        kind=kind_of(settings),
        shifts=int((settings.get("negatives") or {}).get("shifts", 0)),
        epoch=subjects / batch if subjects and batch else None,
    )


def similarities_of(events: Sequence[Mapping[str, Any]], columns: int = HISTOGRAM_COLUMNS) -> Similarities | None:
    """The logged histograms, at most `columns` of them, evenly spread, always with the last one."""
    logged = [e for e in events if e.get("positive_histogram") and e.get("negative_histogram")]
    if not logged:
        return None
    chosen = [
        logged[i] for i in np.unique(np.linspace(0, len(logged) - 1, min(columns, len(logged))).round()).astype(int)
    ]
    shares = []
    for name in ("positive_histogram", "negative_histogram"):
        counts = np.array([event[name] for event in chosen], dtype=np.float64)
        shares.append(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    return Similarities(tuple(int(event["step"]) for event in chosen), shares[0], shares[1])


def thinned(events: Sequence[Mapping[str, Any]], points: int = DRAWN_POINTS) -> Curves:
    """At most `points` steps, evenly spread, always with the last one; running means look backwards only."""
    if not events:
        return Curves((), {}, {})
    chosen = np.unique(np.linspace(0, len(events) - 1, min(points, len(events))).round().astype(int))
    window = max(5, len(events) // 25)
    values, means = {}, {}
    for name in SERIES:
        column = np.array([_logged(event, name) for event in events])
        values[name] = tuple(_plain(v) for v in column[chosen])
        means[name] = tuple(_plain(v) for v in _running_mean(column, window)[chosen])
    return Curves(tuple(int(events[i]["step"]) for i in chosen), values, means)


def headline(view: TrainingView, status: str) -> str:
    """The verdict in a word or two; a run that is over is no longer learning."""
    over = view.verdict.state == "learning" and status == "finished"
    return "Trained" if over else view.verdict.state.capitalize()


def next_advice(view: TrainingView, status: str, fitted: bool = False) -> str:
    """The verdict's advice; a run that is over is not told to go on. `fitted`: a detector stands on it already."""
    if view.verdict.state == "learning" and status == "finished":
        does = "Look at its detector's Dice" if fitted else "Fit a detector on it"
        return f"{does}: only Dice tells whether its features find lesions."
    if view.verdict.state in ("learning", "too early") and status in ("interrupted", "stopped", "killed", "failed"):
        return "Resume it: it goes on from its last checkpoint."
    if view.verdict.state == "too early" and status == "finished":
        return "The run was too short to judge. Train a new one with more steps."
    return view.verdict.advice


def settings_groups(run: Run) -> dict[str, list[tuple[str, str]]]:
    """What determined an encoder run, as (setting, value) in five groups; of the negatives what their kind reads."""
    record, recipe = run.record, run.record["recipe"]
    cohort, preparation = record["cohort"], record["preprocessing"]
    encoder, views, negatives = recipe.get("encoder", {}), recipe.get("views", {}), recipe.get("negatives") or {}
    rest = {key: value for key, value in recipe.items() if key not in ("kind", "encoder", "views", "negatives")}
    kind = kind_of(recipe)
    read = {key: negatives[key] for key in NEGATIVES_READ.get(kind, tuple(negatives)) if key in negatives}
    groups: dict[str, Mapping[str, Any]] = {
        "Scans": {"cohort": cohort.get("name"), "training subjects": len(record["split"].get("train", []))}
        | preparation,
        "Encoder": encoder,
        "Views": views,
        "Negatives": {"variant": kind} | read,
        "Training": rest,
    }
    return {name: [(key.replace("_", " "), in_words(value)) for key, value in g.items()] for name, g in groups.items()}


def job_of_run(jobs: Sequence[Job], run_id: str, verb: str = "pretrain") -> Job | None:
    """The newest job of a verb that works on a run, also before the run exists; `jobs` are newest first."""
    for job in jobs:
        if job.argv[:1] == (verb,) and run_id in (job.run_id, asked_run_id(job)):
            return job
    return None


def asked_run_id(job: Job) -> str | None:
    """The --run-id that a job was started with."""
    for flag, value in zip(job.argv, job.argv[1:], strict=False):
        if flag == "--run-id":
            return value
    return None


def asked_name(job: Job) -> str:
    """The --name that a job gives its run."""
    given = [word.removeprefix("--name=") for word in job.argv if word.startswith("--name=")]
    return given[0] if given else "simclr"


def state_of(run: Run | None, job: Job | None) -> str:
    """One word for a run and its job: preparing, running, finished, interrupted, failed, stopped or killed.

    The job knows better than the record how a process ended; the record knows better whether the work is complete.
    """
    written = None if run is None else current_status(run)
    if written == "finished":
        return "finished"
    if job is None:
        return written or "missing"
    if job.active:
        return "running" if run is not None and (run.directory / "training.json").is_file() else "preparing"
    return job.status if job.status != "finished" else written or "finished"


def can_resume(run: Run | None, job: Job | None) -> bool:
    """Whether repeating the command would go on with it: begun, not complete, and nobody works on it."""
    if (job is not None and job.active) or (run is None and job is None):
        return False
    return state_of(run, job) in ("interrupted", "stopped", "killed", "failed")


def read_log(path: Path, most_bytes: int = 50_000_000) -> str:
    """The whole log of a job; the last part of one that is larger than `most_bytes`."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - most_bytes, 0))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def in_words(value: Any) -> str:
    """A setting as it is shown in a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def duration(seconds: float | None) -> str:
    """Seconds in words."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _recent(events: Sequence[Mapping[str, Any]], name: str) -> float:
    # The same last tenth as the verdict, so that the numbers agree.
    tail = events[-max(5, len(events) // 10) :]
    found = [float(e[name]) for e in tail if isinstance(e.get(name), (int, float))]
    return float(np.mean(found)) if found else float("nan")


def _running_mean(column: np.ndarray, window: int) -> np.ndarray:
    known = np.isfinite(column)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, column, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    ends = np.arange(1, len(column) + 1)
    begins = np.maximum(ends - window, 0)
    number = count[ends] - count[begins]
    return np.where(number > 0, (total[ends] - total[begins]) / np.maximum(number, 1), np.nan)


def _logged(event: Mapping[str, Any], name: str) -> float:
    if name in ("candidates", "chance_top1") and "chance" in event:
        found = candidates_of(event)
        return found if name == "candidates" else 1 / found
    value = event.get(name)
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

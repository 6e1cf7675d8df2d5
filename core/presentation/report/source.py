"""What a report is about: one run under one layer set, its evaluation, and its diagnosis when there is one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from core.metrics.protocols import first_protocol
from core.runs.evaluated import looks_at_test, read_metrics
from core.runs.run_record import Run
from core.runs.sharing import LEFT_OUT, Veil, veil_of
from core.study.run_summary import cohort_title
from data.errors import BadInput


@dataclass(frozen=True, eq=False)
class Source:
    """A run, what `evaluate` committed, and what `diagnose` returned."""

    run: Run
    metrics: Mapping[str, Any]
    diagnosis: Mapping[str, Any] | None
    veil: Veil | None = None
    """How names are said when the document is to be shared."""

    def called(self, subject_id: str) -> str:
        """A subject as this document names it."""
        return subject_id if self.veil is None else self.veil.called(subject_id)

    @property
    def layer_set(self) -> str:
        """The layer set that is reported: the diagnosed one, else the headline's."""
        return str(self.diagnosis["layer_set"] if self.diagnosis else self.metrics["headline"])

    @property
    def space(self) -> str:
        """native, or working where this layer set has no native figures."""
        return "native" if self.metrics["sets"][self.layer_set]["native"] is not None else "working"

    @property
    def figures(self) -> Mapping[str, Any]:
        """Figures of the reported layer set in `space`."""
        found: Mapping[str, Any] = self.metrics["sets"][self.layer_set][self.space]
        return found

    @property
    def protocol(self) -> str:
        """The deployed threshold protocol: the diagnosed one, else the label-free one."""
        return str(self.diagnosis["protocol"] if self.diagnosis else first_protocol(self.figures["protocols"]))

    @property
    def deployed(self) -> Mapping[str, Any]:
        """Figures of the deployed protocol."""
        found: Mapping[str, Any] = self.figures["protocols"][self.protocol]
        return found

    @property
    def headline(self) -> Mapping[str, Any]:
        """The Dice that is quoted, {mean, low, high, n, space}: in native space wherever anybody has computed it."""
        found, said = self.deployed, self.diagnosis
        if self.space != "native" and said is not None and said["dice"]["mean"] is not None:
            return {**said["dice"], "space": said["space"]}
        mean, low, high = (found[key] for key in ("mean_dice", "ci_low", "ci_high"))
        return {"mean": mean, "low": low, "high": high, "n": found["n"], "space": self.space}

    @property
    def prevalence(self) -> float | None:
        """Share of lesion voxels in the scored brains of the test subjects; None when none is ill."""
        return (self.figures.get("pooled") or {}).get("prevalence")

    @property
    def working_threshold(self) -> float:
        """The deployed threshold on the working grid, where the pictures are."""
        return float(self.metrics["sets"][self.layer_set]["working"]["protocols"][self.protocol]["threshold"])

    @property
    def title(self) -> str:
        """The run's name."""
        return self.run.name if self.veil is None else self.veil.words(self.run.name)

    @property
    def cohort(self) -> str | None:
        """The cohort's name; under a veil none that a folder or a file gave it."""
        cohort = self.run.record["cohort"]
        name = cohort_title(cohort)
        if self.veil is None or name is None:
            return name
        path = PurePath(cohort.get("path") or "")
        return LEFT_OUT if name in (*path.parts, path.stem) else self.veil.words(name)

    @property
    def evaluations(self) -> int:
        """How often the test set was looked at, as far as is known."""
        return looks_at_test(self.run)

    @property
    def conditions(self) -> str:
        """What every number of this report stands on, in one line."""
        return f"{self.space} space · layer set {self.layer_set} · {self.metrics['unit']}"


def source_of(run: Run, diagnosis: Mapping[str, Any] | None, *, share: bool = False) -> Source:
    """The run's evaluation beside its diagnosis, under a veil when it is to be shared.

    BadInput when it is not evaluated, or when they do not fit.
    """
    if run.kind != "detector":
        raise BadInput(
            f"Run {run.run_id} is of kind {run.kind!r}. A report tells of an evaluated detector: python cli.py runs"
        )
    metrics = read_metrics(run)
    if diagnosis is not None:
        if diagnosis["run_id"] != run.run_id:
            raise BadInput(
                f"The diagnosis is of run {diagnosis['run_id']!r}, the report of {run.run_id!r}. "
                f"Diagnose it: python cli.py diagnose {run.as_argument}"
            )
        known = metrics["sets"].get(diagnosis["layer_set"])
        if known is None or diagnosis["protocol"] not in known["working"]["protocols"]:
            raise BadInput(
                f"The diagnosis tells of layer set {diagnosis['layer_set']!r} under protocol "
                f"{diagnosis['protocol']!r}, which the evaluation of run {run.run_id} does not have. "
                f"Diagnose it anew: python cli.py diagnose {run.as_argument}"
            )
    if not share:
        return Source(run, metrics, diagnosis)
    veil = veil_of(run)
    return Source(run, metrics, None if diagnosis is None else veil.diagnosis(diagnosis), veil)

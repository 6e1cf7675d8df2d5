"""What the evaluation of a run has committed. Apart from the evaluation, so that reading a number needs no torch."""

from typing import Any

from core.store import Run, stage_done, stage_json
from data.errors import BadInput


def read_metrics(run: Run) -> dict[str, Any]:
    """What `evaluate_run` committed. BadInput with the command when there is nothing yet."""
    if not stage_done(run, "evaluation"):
        raise BadInput(f"Run {run.run_id} is not evaluated yet. Do it: python cli.py evaluate {run.run_id}")
    metrics: dict[str, Any] = stage_json(run, "evaluation", "metrics.json")
    return metrics


def read_levels(run: Run) -> dict[str, list[float]]:
    """The byte levels of every layer set's maps, as `evaluate_run` committed them."""
    levels: dict[str, list[float]] = stage_json(run, "evaluation", "levels.json")
    return levels

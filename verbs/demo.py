"""The demo study from the terminal."""

from dataclasses import dataclass
from pathlib import Path

from core.progress import open_progress
from core.runs.run_record import runs_flag
from verbs.runs import print_runs
from verbs.shared import EXIT_OK, RUNS, TakeOver, Verbs


@dataclass(frozen=True)
class DemoVerb:
    """Build the demo study: synthetic brains, a SimCLR encoder, detectors, evaluation. Finished work is reused.

    Example: python cli.py demo --runs runs
    """

    runs: Path = RUNS
    """Directory that holds the runs."""
    take_over: TakeOver = False


def _demo(arguments: DemoVerb) -> int:
    from core.presentation import demo

    runs = demo.build_demo(arguments.runs, open_progress())
    print_runs(arguments.runs, [run.run_id for run in runs])
    print("Serve it: python cli.py app" + runs_flag(arguments.runs))
    return EXIT_OK


VERBS: Verbs = {
    "demo": (DemoVerb, _demo),
}

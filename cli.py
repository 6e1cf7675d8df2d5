"""The terminal's front door: one verb per use-case, the same functions as the pages. `main` returns the exit code.

0 ok · 2 bad input · 3 environment (disk, memory, permission) · 4 integrity · 5 interrupted, resumable · 6 our bug.
"""

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from core.runs.lock import taking_over
from data.errors import BadInput, EnvironmentProblem, IntegrityError, Interrupted
from data.permissions import doors_open
from data.ranges import refuse_out_of_range
from data.trouble import is_trouble, remedy
from verbs.shared import EXIT_BAD_INPUT, EXIT_BUG, EXIT_ENVIRONMENT, EXIT_INTEGRITY, EXIT_INTERRUPTED, EXIT_OK

VERBS: Mapping[str, tuple[str, str]] = {
    "demo": (
        "verbs.demo",
        "Build the demo study: synthetic brains, a SimCLR encoder, detectors, evaluation. Finished work is reused.",
    ),
    "app": (
        "verbs.serve",
        "Serve the dashboard on this machine only, to whoever has the address that is printed: it holds a fresh token.",
    ),
    "check": (
        "verbs.scans",
        "Read every scan of a cohort strictly, name the bad ones with cause and remedy; exit 2 if there is any.",
    ),
    "prepare": (
        "verbs.scans",
        "Register, resample and normalise every scan into the cache; later verbs reuse it.",
    ),
    "pretrain": (
        "verbs.fit",
        "Train an encoder by SimCLR on the healthy training scans. Repeat the command with its --run-id to resume.",
    ),
    "fit": (
        "verbs.fit",
        "Fit a detector of the catalogue to the healthy training scans.",
    ),
    "score": (
        "verbs.score",
        "Score the calibration, validation and test scans of a fitted run, under every layer set.",
    ),
    "evaluate": (
        "verbs.score",
        "Metrics of a scored run under every threshold protocol, with intervals.",
    ),
    "compare-layers": (
        "verbs.score",
        "Every combination of the fitted layers, best first, on the working grid.",
    ),
    "gate": (
        "verbs.gate",
        "A pipeline of two evaluated runs: the second's scores inside the first's segmentation, 0 outside; evaluated.",
    ),
    "compare-pretraining": (
        "verbs.pretraining",
        "Train encoders in several ways with one budget, fit the same Gaussian on each, and table what it finds.",
    ),
    "ceiling": (
        "verbs.diagnosis",
        "The best Dice that a feature grid allows, from lesion masks alone: before training, per lesion and by size.",
    ),
    "diagnose": (
        "verbs.diagnosis",
        "Why Dice is low: ladder of ceilings, additive error map, causes with their cost, what would raise it most.",
    ),
    "what-if": (
        "verbs.explorations",
        "One change at a time, evaluated in pairs on the same subjects. Without a name: what there is for this run.",
    ),
    "post-processing": (
        "verbs.explorations",
        "Smoothing, median, mask erosion and least component, all combinations: best on validation, and its test Dice.",
    ),
    "detection-limits": (
        "verbs.explorations",
        "Plant lesions of known size and contrast into this run's healthy scans: what can the detector find at all?",
    ),
    "report": (
        "verbs.diagnosis",
        "One self-contained HTML file about a run: opens offline, prints to PDF from the browser.",
    ),
    "neighbours": (
        "verbs.neighbours",
        "The healthy patches that are nearest to one place of a scan: whose, where, how far. Runs with a memory bank.",
    ),
    "visibility": (
        "verbs.visibility",
        "What an encoder has been taught to ignore: how far its features move under views and under planted lesions.",
    ),
    "visibility-before": (
        "verbs.visibility",
        "Before training: what a set of views does to healthy scans beside what lesions do, so what it would teach.",
    ),
    "plant": (
        "verbs.scans",
        "Plant lesions of given shapes into healthy scans: NIfTI files and a table that is read like any cohort.",
    ),
    "runs": (
        "verbs.runs",
        "The runs with their numbers under every threshold protocol: healthy, validation, oracle.",
    ),
    "detectors": (
        "verbs.detectors",
        "The catalogue of detectors and their settings.",
    ),
}
"""Each verb: its module, which is imported when the verb is asked for, and the first line of its help."""


def verb_of(name: str) -> tuple[Any, Callable[[Any], int]]:
    """The arguments of a verb, as a dataclass or as what makes one of the words, and what it does with them."""
    found: tuple[Any, Callable[[Any], int]] = importlib.import_module(VERBS[name][0]).VERBS[name]
    return found


def kind_of(verb: str, words: Sequence[str] = ()) -> type:
    """The dataclass of a verb's arguments; what `fit` takes depends on the detector that its words name."""
    kind, _ = verb_of(verb)
    found: type = kind if isinstance(kind, type) else kind(words)
    return found


def main(argv: Sequence[str]) -> int:
    """Run one verb; returns the exit code and never raises for what a user can cause."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return EXIT_OK
    if argv[0] not in VERBS:
        print(f"No verb {argv[0]!r}. There are: {', '.join(VERBS)}. Try: python cli.py --help", file=sys.stderr)
        return EXIT_BAD_INPUT
    _, action = verb_of(argv[0])
    try:
        arguments = tyro.cli(kind_of(argv[0], argv[1:]), args=list(argv[1:]), prog=f"python cli.py {argv[0]}")
        refuse_out_of_range(arguments, flags=True)
    except SystemExit as stop:
        return int(stop.code or 0)
    except BadInput as error:
        return _complain(error, EXIT_BAD_INPUT)
    signal.signal(signal.SIGTERM, _interrupt)
    for warning in doors_open(getattr(arguments, "runs", None)):
        print(f"warning: {warning}", file=sys.stderr)
    try:
        with taking_over(vars(arguments).get("take_over", False)):
            return action(arguments)
    except BadInput as error:
        return _complain(error, EXIT_BAD_INPUT)
    except EnvironmentProblem as error:
        return _complain(error, EXIT_ENVIRONMENT)
    except MemoryError as error:
        return _complain(f"MemoryError: {error}. Make memory free, or give the command less to hold.", EXIT_ENVIRONMENT)
    except IntegrityError as error:
        return _complain(error, EXIT_INTEGRITY)
    except (Interrupted, KeyboardInterrupt) as error:
        return _complain(str(error) or "Interrupted. Repeat the command to go on.", EXIT_INTERRUPTED)
    except BrokenPipeError:
        return EXIT_OK
    except OSError as error:
        if not is_trouble(error):
            traceback.print_exc()
            return _complain("This is a bug of Dicescope. Please report the lines above.", EXIT_BUG)
        place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else Path.cwd()
        return _complain(f"{place}: {error.strerror}. {remedy(error, place)}", EXIT_ENVIRONMENT)
    except Exception:
        traceback.print_exc()
        return _complain("This is a bug of Dicescope. Please report the lines above.", EXIT_BUG)


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {sentence}" for name, (_, sentence) in VERBS.items()]
    return "\n".join(
        ["Dicescope: why is my Dice low, and what would raise it?", "", "python cli.py VERB --help", "", *lines]
    )


def _complain(error: object, code: int) -> int:
    print(f"Error: {error}", file=sys.stderr)
    return code


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted("Stopped on request. Repeat the command to go on where it stopped.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

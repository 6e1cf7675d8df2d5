"""Ends verbs at chosen moments, repeats them, and tells whether everything is as if nothing had happened.

What `kill -9` leaves is the directory as it is at that moment, and a lock whose holder is gone. So a verb is done once,
undisturbed, and the study is copied before and after its renames and syncs; each copy is what a kill then would have
left. Run as `python -m tests.kill_sweep SCANS PLACE VERB ...`; prints JSON. One process imports everything once and
forks a child for each command.
"""

import hashlib
import importlib
import json
import os
import pkgutil
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import cli
import core
import data
import models
import verbs as verbs_of_the_line
from core.presentation import demo
from core.pretraining.simclr import SimclrSettings
from core.pretraining.view_settings import ViewSettings
from core.runs.listing import list_runs
from core.runs.run_record import Run
from core.runs.store import lock
from core.study import pretraining_comparison
from data.json_files import SEAL
from data.prepared import Preprocessing
from data.synthetic import DemoSettings
from data.synthetic_anatomy import template
from data.table import read_table, write_table
from models.settings import EncoderSettings
from tests.study import SCAN_FLAGS, SIMCLR_FLAGS, TinyStudy

MOMENTS = 5
ONCE = ("fit-intensity", "score-intensity", "evaluate-intensity")
"""Verbs that are swept with another detector already."""
LEAVES = (
    "gate", "export", "diagnose", "what-if", "post-processing", "detection-limits", "visibility", "report", "plant",
    "compare-pretraining", "demo", "neighbours",
)  # fmt: skip
"""Verbs whose results no other verb here needs."""
_MOST_COPIES = 15
VOLATILE = ("seconds", "stages", "created", "argv", "sequence", SEAL)
"""Keys of JSON files that tell when and how something was made, not what came out."""
SKIPPED = ("manifest.json", "index.json", "events.jsonl", "train.jsonl")
"""Hashes of what is compared anyway, identities of files, and journals of when things happened."""


def verbs(study: TinyStudy) -> dict[str, list[str]]:
    """Every verb that writes, in an order in which each finds what it needs."""
    runs = ["--runs", str(study.runs)]
    scans = [str(study.table), *runs, *SCAN_FLAGS]
    bank = ["--detector", "patchcore", "--layers", "input", "stage1", "--grid", "8mm", "--coreset-ratio", "0.05"]
    gaussian = ["--layers", "input", "stage1", "--grid", "8mm"]
    compared = ["--name", "ways", *SIMCLR_FLAGS[2:], "--simclr.steps", "2", *gaussian, "--workers", "1"]
    one, shapes, planted = (str(study.root / name) for name in ("one.csv", "shapes", "planted"))
    picture = ["--picture", str(study.root / "neighbours.png")]
    limits = ["--diameters-mm", "24", "--contrasts-sd", "-4", "4", "--per-cell", "2"]
    return {
        "plant": ["plant", one, shapes, planted, "--contrast", "FLAIR", "--workers", "1"],
        "demo": ["demo", "--runs", str(study.root / "demo")],
        **{name: study.commands()[name] for name in ("prepare", "pretrain")},
        "compare-pretraining": ["compare-pretraining", *scans, *compared],
        **{name: study.commands()[name] for name in ("fit", "score", "evaluate")},
        "fit a bank": ["fit", *scans, "--run-id", "bank", "--encoder", "tiny-encoder", *bank],
        "score a bank": ["score", "bank", *runs],
        "evaluate a bank": ["evaluate", "bank", "--workers", "1", *runs],
        "gate": ["gate", "tiny", "bank", "--run-id", "gated", "--workers", "1", *runs],
        "export": ["score", "tiny", "--export", str(study.root / "maps"), *runs],
        **{name: study.commands()[name] for name in ONCE},
        "diagnose": ["diagnose", "tiny-intensity", *runs],
        "what-if": ["what-if", "bank", "erode-mask", *runs],
        "post-processing": ["post-processing", "bank", "--workers", "1", *runs],
        "detection-limits": ["detection-limits", "bank", *limits, *runs],
        "visibility": ["visibility", "tiny-encoder", "--scans", "1", *runs],
        "report": ["report", "tiny-intensity", "--out", str(study.root / "report.html"), *runs],
        "neighbours": ["neighbours", "bank", "test01", *picture, *runs],
    }


def prepare_for_all(study: TinyStudy) -> None:
    """Write what `plant` reads, and make the recipes of the demo and the comparison as small as the study."""
    healthy = next(subject for subject in read_table(study.table).subjects if subject.subject_id == "train01")
    write_table(study.root / "one.csv", [healthy])
    (study.root / "shapes").mkdir()
    shutil.copy(study.table.parent / "test01" / "lesion.nii.gz", study.root / "shapes" / "one.nii.gz")
    demo.ENCODER = EncoderSettings(width=4)
    views = ViewSettings(crop_voxels=(32, 32, 32))
    demo.SIMCLR = SimclrSettings(encoder=demo.ENCODER, views=views, steps=1, batch=2)
    demo.detectors_of = _first_of(demo.detectors_of)
    demo.EXPLAINED_BY = demo.EXPLAINED_BY[:1]
    demo.run_post_processing = lambda run, progress: None  # swept as a verb of its own
    template()
    pretraining_comparison.CONTROLS = {"zscore": pretraining_comparison.CONTROLS["zscore"]}
    demo.PREPROCESSING = Preprocessing(contrasts=("T1",), registration="none", spacing_mm=4.0)
    demo.DemoSettings = partial(DemoSettings, n_train=2, n_calibration=1, n_validation=1, n_test=1, n_test_healthy=0)


def _first_of(detectors_of: Callable[[Run], list[Any]]) -> Callable[[Run], list[Any]]:
    return lambda encoder: detectors_of(encoder)[:1]


def write_once_more(runs: Path) -> None:
    """Be the writer of every run for a moment: a result that is there is only read, and readers clear nothing."""
    for one in list_runs(runs)[0]:
        with lock(one):
            pass


def run(argv: Sequence[str], log: Path, moments: "Moments | None" = None, runs: Path | None = None) -> int:
    """Exit code of a verb in a forked child, minus the signal that ended it; the runs get a writer after it."""
    child = os.fork()
    if child == 0:
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        torch.set_num_threads(1)
        if moments is not None:
            moments.watch()
        code = cli.main(list(argv))
        if runs is not None:
            write_once_more(runs)
        sys.stdout.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


class Moments:
    """Copies of the study at moments of a verb: `place/NUMBER-what`."""

    def __init__(self, study: Path, place: Path) -> None:
        self.study, self.place, self.count = study, place, 0
        self.every, self.one_at_a_time = 1, threading.Lock()

    def watch(self) -> None:
        """From now on this process copies the study around each rename and sync."""
        for name in ("rename", "replace", "fsync"):
            setattr(os, name, self._around(name, getattr(os, name)))

    def kept(self) -> list[Path]:
        """MOMENTS of the copies, spread over time, in its order."""
        every = sorted(self.place.iterdir(), key=lambda copy: int(copy.name.split("-")[0]))
        return list(dict.fromkeys(every[round(i * (len(every) - 1) / (MOMENTS - 1))] for i in range(MOMENTS)))

    def _around(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **keywords: Any) -> Any:
            with self.one_at_a_time:
                self._keep(f"before {name}")
                result = work(*arguments, **keywords)
                self._keep(f"after {name}")
            return result

        return watched

    def _keep(self, what: str) -> None:
        """Copy every `every`-th moment; of too many copies keep a third and go on a third as often.

        A third, not a half: moments before and after a step take turns.
        """
        self.count += 1
        if self.count % self.every:
            return
        shutil.copytree(self.study, self.place / f"{self.count}-{what}", symlinks=True, copy_function=_copied)
        copies = list(self.place.iterdir())
        if len(copies) > _MOST_COPIES:
            self.every *= 3
            for copy in copies:
                if int(copy.name.split("-")[0]) % self.every:
                    shutil.rmtree(copy)


def _copied(source: str, target: str) -> None:
    """A copy; of what is committed, and so never changed again in its place, a second name."""
    if source.endswith((".npy", ".safetensors", ".nii.gz")) and ".tmp-" not in source:
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def meaning(root: Path) -> dict[str, str]:
    """What every file says, without when it was made."""
    return {
        path.relative_to(root).as_posix(): _content(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in SKIPPED and not _aside(path)
    }


def _aside(path: Path) -> bool:
    """Locks tell who worked when, scratch is looked for by its own rule, and older checkpoints may stay longer."""
    return any(part in (".sequence", "lock", "checkpoints") or part.startswith(".tmp-") for part in path.parts)


def _is_litter(path: Path) -> bool:
    return "lock" not in path.parts


def _content(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".json":
        content = json.dumps(_lasting(json.loads(content)), sort_keys=True).encode()
    if path.suffix == ".html":
        content = b"html"
    return hashlib.sha256(content).hexdigest()


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(one) for key, one in value.items() if key not in VOLATILE}
    return [_lasting(one) for one in value] if isinstance(value, list) else value


def sweep(name: str, study: TinyStudy, place: Path) -> Iterator[dict[str, Any]]:
    """Do the verb undisturbed, then again from what a kill at each moment would have left."""
    argv, log, copies = verbs(study)[name], place / "log", place / "copies"
    copies.mkdir()
    moments = Moments(study.root, copies)
    code = run(argv, log, moments)
    assert code == 0, f"{name} ended with {code}: {log.read_text()}"
    wanted, after = meaning(study.root), place / "after"
    study.root.rename(after)
    for copy in moments.kept():
        copy.rename(study.root)
        again = run(argv, log, runs=study.runs)
        found = meaning(study.root)
        yield {
            "verb": name, "moment": copy.name, "again": again,
            "different": sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))[:5],
            "litter": sorted(str(p.relative_to(study.root)) for p in study.root.rglob(".tmp-*") if _is_litter(p))[:5],
            "said": "" if again == 0 else log.read_text()[-500:],
        }  # fmt: skip
        shutil.rmtree(study.root)
    after.rename(study.root)
    shutil.rmtree(copies)


def import_all() -> None:
    """Load what verbs load when they need it, so that a forked child does not do it again."""
    for package in (core, data, models, verbs_of_the_line):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    import_all()
    place = Path(sys.argv[2])
    study = TinyStudy(place / "study")
    shutil.copytree(sys.argv[1], study.root)
    prepare_for_all(study)
    wanted, every = sys.argv[3:], list(verbs(study))
    for verb in every[: max(map(every.index, wanted)) + 1]:
        if verb in wanted:
            for one in sweep(verb, study, place):
                print(json.dumps(one), flush=True)
        elif verb not in LEAVES:
            assert run(verbs(study)[verb], place / "log") == 0, verb

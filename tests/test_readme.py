"""What README.md tells a reader to type works: each line is run, on the tiny study instead of real scans."""

import dataclasses
import functools
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro

import cli
from core.presentation import demo
from core.study import evaluation
from data.layout import read_cohort
from data.nifti import write_nifti
from data.template import mni_template
from data.volume import Grid
from models.settings import EncoderSettings
from tests.study import HEALTHY, LAYERS, PREPROCESSING, SCAN_FLAGS, TinyStudy
from verbs import serve
from verbs.diagnosis import ReportVerb
from verbs.explorations import DetectionLimitsVerb
from verbs.fit import FitVerb
from verbs.gate import GateVerb
from verbs.neighbours import NeighboursVerb
from verbs.pretraining import ComparePretrainingVerb
from verbs.scans import PlantVerb
from verbs.score import ScoreVerb
from verbs.visibility import VisibilityBeforeVerb, VisibilityVerb

ROOT = Path(__file__).resolve().parent.parent
PYTHON = re.compile(r"(?:\S*/)?python3?(?:\.\d+)?")


def command_lines(text: str) -> list[str]:
    """Lines of the bash blocks: continued lines joined, prompts and comments taken off."""
    blocks = re.findall(r"^[ \t]*```(?:bash|sh|shell|console)\s*\n(.*?)^[ \t]*```", text, re.M | re.S)
    joined = "\n".join(blocks).replace("\\\n", " ")
    lines = [re.sub(r"^\s*\$ ", "", line).strip() for line in joined.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def commands(text: str) -> list[list[str]]:
    """Words of each simple command; what follows a pipe, a redirection or an ampersand is left out."""
    found = []
    for line in command_lines(text):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;><")
        lexer.whitespace_split = True
        words: list[str] = []
        skipping = False
        for word in [*lexer, ";"]:
            if word and set(word) <= set("|&;><"):
                if words and not skipping:
                    found.append(words)
                words, skipping = [], word not in ("&&", ";", "||")
                continue
            words.append(word)
    return [[w for w in words if not re.fullmatch(r"[A-Z_]+=\S*", w)] for words in found]


def cli_arguments(text: str) -> list[list[str]]:
    """Arguments of every `python cli.py ...`."""
    return [c[2:] for c in commands(text) if len(c) > 1 and PYTHON.fullmatch(c[0]) and c[1] == "cli.py"]


def make_targets(text: str) -> list[str]:
    """Targets of every `make ...`, without variables and options."""
    return [w for c in commands(text) if c[0] == "make" for w in c[1:] if "=" not in w and not w.startswith("-")]


def targets_of_makefile() -> set[str]:
    return set(re.findall(r"^([A-Za-z][\w-]*)\s*:(?!=)", (ROOT / "Makefile").read_text(), re.M))


def tiny_stand_ins(study: TinyStudy, tmp_path: Path) -> Callable[[Any], Any]:
    """What replaces the values of a parsed command: the tiny study for scans and runs, tiny settings for big ones."""

    def stand_in(arguments: Any) -> Any:
        changes: dict[str, Any] = {}
        names = {f.name for f in dataclasses.fields(arguments)}
        if "runs" in names:
            changes["runs"] = study.runs
        if "cohort" in names:
            changes["cohort"] = study.table
        if "layout" in names:
            changes["layout"] = "auto"
        if "split" in names:
            changes["split"] = None
        if "contrasts" in names and not isinstance(arguments, VisibilityVerb):  # there, of lesions: numbers
            changes["contrasts"] = tuple("FLAIR" for _ in arguments.contrasts[:1])
        if "preprocessing" in names:
            changes["preprocessing"] = PREPROCESSING
        if "simclr" in names:
            views = dataclasses.replace(arguments.simclr.views, crop_voxels=(32, 32, 32))
            encoder = EncoderSettings(width=4)
            changes["simclr"] = dataclasses.replace(
                arguments.simclr, steps=3, batch=2, views=views, encoder=encoder, checkpoint_every=3
            )
        if "encoder" in names and arguments.encoder not in ("random", "latest"):
            changes["encoder"] = "tiny-encoder"
        if isinstance(arguments, ComparePretrainingVerb):
            changes |= {"variants": arguments.variants[:1], "views": arguments.views[:1], "seeds": (0,)}
            changes |= {"layers": ("stage1",), "grid": "8mm"}
        if isinstance(arguments, VisibilityBeforeVerb):
            changes |= {"width": 4, "scans": 2}
        if isinstance(arguments, FitVerb) and getattr(arguments, "setting__features__grid", "").endswith("mm"):
            changes["setting__features__grid"] = "8mm"
        if "run" in names:
            changes["run"] = "tiny"
        if isinstance(arguments, VisibilityVerb):
            changes |= {"run": "tiny-encoder", "scans": 2}
        if isinstance(arguments, NeighboursVerb):
            changes |= {"run": _bank(study), "subject": "test01"}
        if isinstance(arguments, GateVerb):
            changes |= {"gate": "tiny", "second": "tiny-intensity"}
        if isinstance(arguments, ScoreVerb):
            changes["layers"] = "+".join(w for w in LAYERS if w in arguments.layers) or (arguments.layers and LAYERS[0])
            changes["export"] = tmp_path / "export" if arguments.export is not None else None
        if isinstance(arguments, PlantVerb):
            changes |= {"cohort": _healthy(study), "shapes": _shapes(tmp_path), "out": tmp_path / "planted"}
            changes |= {"contrast": "FLAIR"}
        if "masks" in names:
            changes |= {"masks": (study.table,), "layout": "auto", "draws": 2}
        if isinstance(arguments, DetectionLimitsVerb):
            changes |= {"diameters_mm": (16.0,), "contrasts_sd": (4.0,), "per_cell": 2}
        if isinstance(arguments, ReportVerb):
            changes["out"] = tmp_path / "report.html"
        if "workers" in names:
            changes["workers"] = 1
        return dataclasses.replace(arguments, **changes)

    return stand_in


def _bank(study: TinyStudy) -> str:
    """A run with a memory bank, fitted for a command that needs one."""
    scans = [str(study.table), "--runs", str(study.runs), *SCAN_FLAGS, "--encoder", "tiny-encoder"]
    bank = ["--run-id", "tiny-bank", "--detector", "patchcore", "--grid", "8mm", "--coreset-ratio", "0.3"]
    assert cli.main(["fit", *scans, *bank]) == 0
    return "tiny-bank"


def run_line(argv: list[str], study: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Parse the line exactly as it stands, then run it with the stand-ins. `app` is parsed only: it never ends."""
    stand_in, parse = tiny_stand_ins(study, tmp_path), tyro.cli
    with monkeypatch.context() as patched:
        patched.setattr(tyro, "cli", lambda kind, **given: stand_in(parse(kind, **given)))
        patched.setattr(demo, "write_demo_cohort", lambda *a, **k: study.table)
        patched.setattr(demo, "PREPROCESSING", PREPROCESSING)
        patched.setattr(demo, "LAYERS", ("input", "stage1"))
        patched.setattr(demo.evaluation, "evaluate_run", functools.partial(evaluation.evaluate_run, workers=1))
        patched.setattr(demo, "ENCODER", EncoderSettings(width=4))
        simclr = dataclasses.replace(demo.SIMCLR, steps=3, batch=2, encoder=EncoderSettings(width=4))
        views = dataclasses.replace(simclr.views, crop_voxels=(32, 32, 32))
        patched.setattr(demo, "SIMCLR", dataclasses.replace(simclr, views=views))
        patched.setitem(serve.VERBS, "app", (serve.AppVerb, lambda arguments: 0))
        return cli.main(argv)


def _healthy(study: TinyStudy) -> Path:
    from data.table import write_table

    cohort = read_cohort(study.table)
    table = study.table.parent / "healthy.csv"
    write_table(table, [cohort[subject_id] for subject_id in HEALTHY[:1]])
    return table


def _shapes(tmp_path: Path) -> Path:
    folder = tmp_path / "shapes"
    grid: Grid = mni_template(2).grid
    x, y, z = (i - n // 2 for i, n in zip(np.indices(grid.shape), grid.shape, strict=True))
    write_nifti(folder / "ball.nii.gz", ((x - 10) ** 2 + y**2 + z**2 <= 16).astype("uint8"), grid)
    return folder


def test_readme_has_commands_and_each_of_them_works(
    own_study: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = cli_arguments(text)
    assert lines, "README.md shows no command of cli.py"
    for number, argv in enumerate(lines):
        study = own_study.copy(tmp_path / f"study-{number}") if number else own_study
        code = run_line(argv, study, tmp_path / str(number), monkeypatch)
        assert code == 0, f"python cli.py {shlex.join(argv)} ended with {code}\n{capsys.readouterr().err}"
        if number:
            shutil.rmtree(study.root)


def test_make_targets_of_the_readme_are_in_the_makefile() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(make_targets(text)) <= targets_of_makefile()


def test_files_that_the_readme_links_to_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []


EXAMPLE = r"""
```bash
make demo PYTHON=python3.11        # about 5 minutes
$ python cli.py check scans/cohort.csv
OMP_NUM_THREADS=1 .venv/bin/python cli.py pretrain scans/cohort.csv \
    --run-id simclr-1 --simclr.steps 500 && make test
python cli.py runs --json | python -m json.tool > runs.json
```
```python
python cli.py never
```
"""


def test_the_reader_of_bash_blocks_finds_each_command_once() -> None:
    assert cli_arguments(EXAMPLE) == [
        ["check", "scans/cohort.csv"],
        ["pretrain", "scans/cohort.csv", "--run-id", "simclr-1", "--simclr.steps", "500"],
        ["runs", "--json"],
    ]
    assert make_targets(EXAMPLE) == ["demo", "test"]
    assert {"demo", "test", "setup"} <= targets_of_makefile()


@pytest.mark.parametrize(
    "line",
    [
        "check scans/cohort.csv",
        "prepare bids/ --layout bids --preprocessing.contrasts T1 --preprocessing.registration affine --workers 4",
        "pretrain scans/cohort.csv --run-id simclr-1 --simclr.steps 500",
        "fit scans/cohort.csv --detector gaussian --encoder latest --layers stage0 stage1 stage2",
        "fit scans/cohort.csv --detector zscore",
        "fit a.csv --encoder simclr-1 --grid 4mm --shrinkage oas",
        "score latest --export maps",
        "evaluate latest --quantile 0.99",
        "compare-layers latest",
        "plant healthy.csv shapes/ planted/ --seed 1",
        "runs --json",
        "detectors",
        "ceiling scans/cohort.csv --cells-mm 2 4 8",
        "diagnose latest --protocol validation",
        "what-if latest --json",
        "what-if latest threshold-grid",
        "post-processing latest",
        "detection-limits latest --per-cell 12",
        "report latest --out report.html",
        "app --port 8501",
        "visibility latest --scans 6",
        "visibility-before scans/cohort.csv --view-set strong",
        "compare-pretraining scans/cohort.csv --variants in-batch moco --views geometric strong",
        "neighbours latest sub-007",
        "gate bank intensity --run-id bank-intensity",
        "demo",
    ],
)
def test_stand_ins_carry_any_line_that_a_readme_may_show(
    line: str, own_study: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_line(shlex.split(line), own_study, tmp_path / "out", monkeypatch) == 0


def test_a_line_with_a_flag_that_does_not_exist_is_found(
    own_study: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_line(["fit", "scans/cohort.csv", "--detectors", "zscore"], own_study, tmp_path, monkeypatch) == 2
    assert run_line(["judge", "latest"], own_study, tmp_path, monkeypatch) == 2

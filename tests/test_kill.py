"""`kill -9` at any moment costs time and nothing else: the repeated command ends with the bits of a quiet one."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.study import TinyStudy

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
STEPS = "24"
BEGUN = {"pretrain": "Training the encoder:", "fit": "Fitting:", "score": "Scoring:"}
"""Once this line is on stderr, the work itself goes on."""
WINDOW_SECONDS = {"pretrain": (0.05, 1.2), "fit": (0.0, 0.12), "score": (0.0, 0.15)}
KILLS = {"pretrain": 4, "fit": 3, "score": 3}


def commands(study: TinyStudy) -> dict[str, list[str]]:
    found = {name: study.commands()[name] for name in KILLS}
    found["pretrain"][found["pretrain"].index("--simclr.steps") + 1] = STEPS
    return found


def unbegun(study: TinyStudy, to: Path) -> TinyStudy:
    """The scans and their cache, and no run yet."""
    mine = study.copy(to)
    for run in ("tiny-encoder", "tiny", "tiny-intensity"):
        shutil.rmtree(mine.runs / run)
    return mine


def digests(study: TinyStudy) -> dict[str, str]:
    """Every committed file of the stages; run.json and the journal hold times and stay out."""
    stages = [study.runs / "tiny-encoder" / "encoder", study.runs / "tiny" / "detector", study.runs / "tiny" / "scores"]
    return {
        path.relative_to(study.runs).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for stage in stages
        for path in sorted(stage.rglob("*"))
        if path.is_file()
    }


def start(argv: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "cli.py", *argv],
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def killed(argv: list[str], stage: str, delay: float) -> bool:
    """Start a command and kill it `delay` seconds after its work began; False when it was done before that."""
    child = start(argv)
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith(BEGUN[stage]):
            break
    threading.Event().wait(delay)
    child.send_signal(signal.SIGKILL)
    child.stderr.read()
    code = child.wait()
    assert code in (0, -signal.SIGKILL), f"{stage} ended by itself with {code}"
    return code == -signal.SIGKILL


def moments() -> Iterator[tuple[str, list[float]]]:
    generator = np.random.Generator(np.random.Philox(key=np.array([20261121, 9], dtype=np.uint64)))
    for stage, count in KILLS.items():
        yield stage, generator.uniform(*WINDOW_SECONDS[stage], size=count).tolist()


@pytest.fixture(scope="module")
def undisturbed(study: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    mine = unbegun(study, tmp_path_factory.mktemp("undisturbed") / "study")
    program = "import json, sys, cli; sys.exit(max(cli.main(argv) for argv in json.loads(sys.argv[1])))"
    words = json.dumps(list(commands(mine).values()))
    subprocess.run([sys.executable, "-c", program, words], cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
    assert sum(name.endswith("distances.npy") for name in digests(mine)) == 8
    return mine


@pytest.mark.slow
def test_killed_ten_times_and_resumed_every_file_has_the_bits_of_an_undisturbed_study(
    study: TinyStudy, undisturbed: TinyStudy, tmp_path: Path
) -> None:
    mine = unbegun(study, tmp_path / "study")
    deaths = 0
    for stage, delays in moments():
        argv = commands(mine)[stage]
        deaths += sum([killed(argv, stage, delay) for delay in delays])
        child = start(argv)
        _, said = child.communicate(timeout=120)
        assert child.returncode == 0, said
    assert deaths >= 7, "the kills came too late to prove anything"
    assert digests(mine) == digests(undisturbed)
    left = [p for p in mine.runs.rglob(".tmp-*") if ".cache" not in p.parts]
    assert left == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "fault"), [("fit", "commit.after_manifest:1:kill"), ("score", "commit.before_manifest:3:kill")]
)
def test_killed_while_committing_the_next_try_ends_with_the_same_bits(
    undisturbed: TinyStudy, tmp_path: Path, stage: str, fault: str
) -> None:
    mine = undisturbed.copy(tmp_path / "study")
    shutil.rmtree(mine.runs / "tiny" / {"fit": "detector", "score": "scores"}[stage])
    argv = [sys.executable, "cli.py", *commands(mine)[stage]]
    fault_environment = {**ENVIRONMENT, "DICESCOPE_FAULT": fault}
    once = subprocess.run(argv, cwd=ROOT, env=fault_environment, capture_output=True, check=False)
    assert once.returncode == -signal.SIGKILL
    assert digests(mine) != digests(undisturbed)
    subprocess.run(argv, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
    assert digests(mine) == digests(undisturbed)

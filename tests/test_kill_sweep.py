"""Verbs that write, ended at five moments of their commits: done again they end as if nothing had happened."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import kill_sweep
from tests.study import TinyStudy, write_scans

ROOT = Path(__file__).resolve().parent.parent
HALVES = (
    ("plant", "demo", "pretrain", "compare-pretraining"),
    (
        "prepare", "fit", "score", "evaluate", "fit a bank", "score a bank", "evaluate a bank", "gate", "export",
        "diagnose", "what-if", "post-processing", "detection-limits", "visibility", "report", "neighbours",
    ),
)  # fmt: skip
"""Two processes share the work; what one does not sweep it does once, where it is needed."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In memory where there is room: a kill leaves what the file system shows, be it on a disk or not."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < 4e9:
        yield tmp_path_factory.mktemp("sweep")
        return
    with tempfile.TemporaryDirectory(dir=memory) as place:
        yield Path(place)


@pytest.fixture(scope="module")
def swept(root: Path) -> list[dict[str, Any]]:
    scans = root / "scans"
    write_scans(TinyStudy(scans).table)
    children = []
    for number, names in enumerate(HALVES):
        place = root / str(number)
        place.mkdir()
        with (place / "complaints").open("w") as complaints:
            children.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.kill_sweep", str(scans), str(place), *names],
                    cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=complaints,
                    text=True,
                )
            )  # fmt: skip
    said = [child.communicate(timeout=1200)[0] for child in children]
    for number, child in enumerate(children):
        assert child.returncode == 0, (root / str(number) / "complaints").read_text()
    return [json.loads(line) for text in said for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_killed_at_five_moments_every_verb_ends_with_what_it_would_have_made(swept: list[dict[str, Any]]) -> None:
    for one in swept:
        assert one["again"] == 0, one
        assert one["different"] == [], one
        assert one["litter"] == [], one
    names = kill_sweep.verbs(TinyStudy(Path("x")))
    assert sorted([*HALVES[0], *HALVES[1], *kill_sweep.ONCE]) == sorted(names)
    for name in (*HALVES[0], *HALVES[1]):
        assert sum(one["verb"] == name for one in swept) == kill_sweep.MOMENTS, name


def test_what_a_file_says_is_compared_without_when_it_was_made(tmp_path: Path) -> None:
    for folder, seconds, dice in (("one", 1.0, 0.5), ("two", 2.0, 0.5), ("three", 1.0, 0.6)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "metrics.json").write_text(json.dumps({"seconds": seconds, "sets": [{"dice": dice}]}))
        (tmp_path / folder / "voxels.npy").write_bytes(b"1" if folder != "two" else b"2")
    one, two, three = (kill_sweep.meaning(tmp_path / folder) for folder in ("one", "two", "three"))
    assert one["metrics.json"] == two["metrics.json"] != three["metrics.json"]
    assert one["voxels.npy"] == three["voxels.npy"] != two["voxels.npy"]

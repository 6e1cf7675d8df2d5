"""Sums are rounded as threads share them: a run says by how many it came about, and when its bits cannot come again."""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import cli
from core.pretraining.checkpoints import checkpoint_history
from core.progress import open_progress
from core.runs.listing import open_run
from core.runs.provenance import computed_by, threads
from core.runs.store import lose_equal_bits, unequal_bits
from core.study import scoring
from tests.study import SCAN_FLAGS, SIMCLR_FLAGS, TinyStudy

ROOT = Path(__file__).resolve().parents[3]


def test_a_run_says_with_how_many_threads_it_was_begun_and_each_stage_computed(study: TinyStudy) -> None:
    for name, stage in (("tiny-encoder", "encoder"), ("tiny", "detector"), ("tiny", "scores"), ("tiny", "evaluation")):
        run = open_run(study.runs, name)
        assert run.record["threads"]["torch"] == threads()["torch"]
        assert run.record["threads"]["blas"]
        assert run.record["stages"][stage]["computed_by"] == computed_by()
        assert run.record["equal_bits"] == {"claimed": True, "reasons": []}
        assert unequal_bits(run) == ""


def test_reasons_against_equal_bits_add_up_and_stay(own_study: TinyStudy) -> None:
    run = open_run(own_study.runs, "tiny")
    for reason in ("one", "two", "one"):
        run = lose_equal_bits(run, reason)
    again = open_run(own_study.runs, "tiny")
    assert again.record["equal_bits"] == {"claimed": False, "reasons": ["one", "two"]}
    assert unequal_bits(again) == "The same commands may give slightly other numbers: one; two."


@pytest.mark.parametrize("other", [True, False])
def test_a_training_resumed_with_other_threads_no_longer_claims_equal_bits(
    own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], other: bool
) -> None:
    argv = ["pretrain", str(own_study.table), "--runs", str(own_study.runs), *SCAN_FLAGS, *SIMCLR_FLAGS]
    argv += ["--run-id", "stopped"]
    monkeypatch.setenv("DICESCOPE_FAULT", "checkpoint.before_prune:1:enospc")
    monkeypatch.setattr("data.whole_files._fault_hits", Counter())
    assert cli.main(argv) != 0
    monkeypatch.delenv("DICESCOPE_FAULT")
    assert checkpoint_history(own_study.runs / "stopped") == (computed_by(),)
    if other:
        for module in ("core.study.opening", "core.pretraining.minimise"):
            monkeypatch.setattr(f"{module}.computed_by", lambda: "64 threads, AVX512")
    capsys.readouterr()
    assert cli.main(argv) == 0
    run, said = open_run(own_study.runs, "stopped"), capsys.readouterr().err
    assert run.record["equal_bits"]["claimed"] is not other
    assert ("64 threads, AVX512" in unequal_bits(run)) is other
    assert ("note: trained partly with" in said) is other


def test_scores_finished_with_other_threads_no_longer_claim_equal_bits(
    own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(own_study.runs / "tiny" / "scores" / "test01")
    for module in ("core.study.scoring", "core.study.opening"):
        monkeypatch.setattr(f"{module}.computed_by", lambda: "64 threads, AVX512")
    run = scoring.score(open_run(own_study.runs, "tiny"), open_progress())
    assert "scored partly with" in unequal_bits(open_run(run.directory.parent, "tiny"))


SCORE = """
import sys
import torch
from pathlib import Path
torch.set_num_threads(int(sys.argv[1]))
from core.detectors import make
from dataclasses import replace
from models.encoder import EncoderSettings
from tests.study import small_volumes
volumes = small_volumes(5)
import hashlib
for kind in ("gaussian", "patchcore", "zscore", "intensity-bright"):
    detector = make(kind)
    if kind in ("gaussian", "patchcore"):
        features = replace(detector.features, layers=("stage1", "stage2"), grid="8mm")
        detector = replace(detector, encoder=EncoderSettings(width=4), features=features)
    scores = detector.fit(volumes[:4]).score(volumes[4]).scores
    print(kind, hashlib.sha256(scores.tobytes()).hexdigest())
"""


def test_on_one_machine_scores_of_small_scans_do_not_depend_on_the_number_of_threads() -> None:
    told = [
        subprocess.run([sys.executable, "-c", SCORE, n], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for n in ("1", "2")
    ]
    assert told[0] == told[1]
    assert len(told[0].splitlines()) == 4

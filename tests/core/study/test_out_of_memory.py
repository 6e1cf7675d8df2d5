"""When memory runs out: exit 3 and what to do, nothing is lost, and no batch is made smaller in silence."""

import shutil

import pytest
import torch

import cli
from core.memory_plan import is_out_of_memory
from core.pretraining.simclr.whole_brains import InBatch
from core.runs.listing import open_run
from tests.study import SCAN_FLAGS, SIMCLR_FLAGS, TinyStudy

ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
)


@pytest.mark.parametrize("error", ERRORS)
def test_every_kind_of_lack_of_memory_is_known_for_what_it_is(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("The size of tensor a must match"))


@pytest.mark.parametrize("error", ERRORS)
def test_a_training_that_runs_out_of_memory_ends_with_advice_and_its_checkpoint(
    own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    original = InBatch.loss_of

    def loss_of(self: InBatch, batch: object) -> object:
        if batch.step == 4:  # type: ignore[attr-defined]
            raise error
        return original(self, batch)  # type: ignore[arg-type]

    argv = ["pretrain", str(own_study.table), "--runs", str(own_study.runs), *SCAN_FLAGS, *SIMCLR_FLAGS]
    argv += ["--run-id", "large"]
    with monkeypatch.context() as patch:
        patch.setattr(InBatch, "loss_of", loss_of)
        assert cli.main(argv) == 3
    said = capsys.readouterr().err
    assert "Memory ran out" in said
    assert "--simclr.batch" in said
    assert open_run(own_study.runs, "large").status == "failed"
    assert cli.main(argv) == 0
    mine, other = (own_study.runs / run / "encoder" / "encoder.safetensors" for run in ("large", "tiny-encoder"))
    assert mine.read_bytes() == other.read_bytes()


def test_scoring_that_runs_out_of_memory_keeps_what_is_scored(
    own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(own_study.runs / "tiny" / "scores" / "test01")

    def distances(*given: object) -> None:
        raise ERRORS[0]

    monkeypatch.setattr("core.detectors.feature_gaussian.FeatureGaussian.distances", distances)
    assert cli.main(["score", "tiny", "--runs", str(own_study.runs)]) == 3
    assert "less --memory" in capsys.readouterr().err
    assert (own_study.runs / "tiny" / "scores" / "test02" / "manifest.json").is_file()

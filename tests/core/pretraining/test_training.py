"""The loop: schedules, checkpoints that survive damage, resume without a trace, an orderly end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.pretraining.checkpoints import VOLATILE, Optimisation, checkpoint_history, checkpoint_step
from core.pretraining.minimise import learning_rate, minimise, read_events
from core.randomness import stream
from data.errors import BadInput, EnvironmentProblem, IntegrityError, Interrupted
from data.files import committed_directory
from data.json_files import write_json
from models.tensor_files import load_tensors, save_tensors
from tests.small_disk import small_disk

ROOT = Path(__file__).resolve().parents[3]
QUICK = Optimisation(steps=8, lr=0.05, checkpoint_every=3)


def test_the_loop_minimises_a_quadratic(tmp_path: Path) -> None:
    module = _linear()
    _train(tmp_path, module, Optimisation(steps=200, lr=0.1, weight_decay=0.0, checkpoint_every=200), noise=0.0)
    torch.testing.assert_close(module.weight.detach(), torch.full((1, 3), 2.0), rtol=1e-2, atol=1e-2)


def test_its_first_steps_are_those_of_plain_adamw(tmp_path: Path) -> None:
    module, reference = _linear(), _linear()
    optimisation = Optimisation(steps=3, lr=0.05, schedule="constant", gradient_clip=0.0, weight_decay=0.1)
    _train(tmp_path, module, optimisation)
    optimiser = torch.optim.AdamW(reference.parameters(), lr=0.05, weight_decay=0.1)
    for step in (1, 2, 3):
        optimiser.zero_grad()
        _loss(reference)(step)[0].backward()
        optimiser.step()
    assert torch.equal(module.weight, reference.weight)


def test_a_run_cut_anywhere_and_resumed_ends_with_the_same_bits_and_lines(tmp_path: Path) -> None:
    whole = _linear()
    _train(tmp_path / "whole", whole, QUICK)
    for cut in (1, 2, 3, 4, 7):
        directory = tmp_path / f"cut{cut}"
        with pytest.raises(_PowerCut):
            _train(directory, _linear(), QUICK, die_at=cut)
        resumed = _linear()
        _train(directory, resumed, QUICK)
        assert torch.equal(resumed.weight, whole.weight)
        assert _lasting(directory) == _lasting(tmp_path / "whole")


def test_a_finished_run_is_not_computed_again(tmp_path: Path) -> None:
    _train(tmp_path, _linear(), QUICK)
    again = _linear()
    calls: list[int] = []
    minimise(
        {"m": again}, lambda step: (calls.append(step), _loss(again)(step))[1], QUICK, tmp_path,
        config={"a": 1}, device=torch.device("cpu"),
    )  # fmt: skip
    assert calls == []
    assert len(read_events(tmp_path / "events.jsonl")) == 8


def test_only_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    _train(tmp_path, _linear(), replace(QUICK, checkpoint_every=1))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000007", "step-00000008"]


@pytest.mark.parametrize("damage", ["flip a bit", "truncate", "lose the manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = _linear()
    _train(tmp_path / "whole", whole, QUICK)
    with pytest.raises(_PowerCut):
        _train(tmp_path / "cut", _linear(), QUICK, die_at=7)
    newest = tmp_path / "cut" / "checkpoints" / "step-00000006"
    _damage(newest, damage)
    resumed, steps = _linear(), list[int]()
    with caplog.at_level("WARNING"):
        _train(tmp_path / "cut", resumed, QUICK, seen=steps)
    assert steps[0] == 4
    assert "step-00000006 is damaged" in caplog.text
    assert torch.equal(resumed.weight, whole.weight)
    assert _lasting(tmp_path / "cut") == _lasting(tmp_path / "whole")


@pytest.mark.parametrize("damage", [
    "a manifest that is a list", "a manifest without files", "files that are a list", "a manifest of other bytes",
    "an empty state", "no state", "no step", "a step that is a word", "another step", "a tensor less",
    "a tensor of another shape", "a moment of another shape", "not UTF-8", "folders in place of files",
])  # fmt: skip
def test_whatever_is_wrong_with_the_newest_checkpoint_the_older_one_is_used_and_nothing_is_deleted(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = _linear()
    _train(tmp_path / "whole", whole, QUICK)
    with pytest.raises(_PowerCut):
        _train(tmp_path / "cut", _linear(), QUICK, die_at=7)
    newest = tmp_path / "cut" / "checkpoints" / "step-00000006"
    _spoil(newest, damage)
    files = sorted(path.name for path in newest.iterdir())
    assert checkpoint_step(tmp_path / "cut") == 3
    resumed, steps = _linear(), list[int]()
    with caplog.at_level("WARNING"):
        _train(tmp_path / "cut", resumed, QUICK, seen=steps)
    assert steps[0] == 4
    assert "step-00000006 is damaged, going back" in caplog.text
    assert sorted(path.name for path in newest.with_name("damaged-step-00000006").iterdir()) == files
    assert torch.equal(resumed.weight, whole.weight)
    assert _lasting(tmp_path / "cut") == _lasting(tmp_path / "whole")


def test_what_has_another_name_than_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(_PowerCut):
        _train(tmp_path, _linear(), QUICK, die_at=7)
    foreign = tmp_path / "checkpoints" / "step-foo"
    foreign.mkdir()
    (tmp_path / "checkpoints" / "step-00000099").write_text("a file")
    assert checkpoint_step(tmp_path) == 6
    _train(tmp_path, _linear(), QUICK)
    assert foreign.is_dir()
    assert (tmp_path / "checkpoints" / "step-00000099").is_file()


def test_without_a_whole_checkpoint_training_starts_anew_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = _linear()
    _train(tmp_path / "whole", whole, QUICK)
    with pytest.raises(_PowerCut):
        _train(tmp_path / "cut", _linear(), QUICK, die_at=7)
    for checkpoint in (tmp_path / "cut" / "checkpoints").iterdir():
        _damage(checkpoint, "truncate")
    assert checkpoint_step(tmp_path / "cut") == 0
    again = _linear()
    with caplog.at_level("WARNING"):
        _train(tmp_path / "cut", again, QUICK)
    assert "None of 2 checkpoints" in caplog.text
    assert "starts anew" in caplog.text
    assert torch.equal(again.weight, whole.weight)
    assert _lasting(tmp_path / "cut") == _lasting(tmp_path / "whole")


def test_a_journal_with_damaged_and_foreign_lines_survives_a_resume_and_keeps_them(tmp_path: Path) -> None:
    _train(tmp_path / "whole", _linear(), QUICK)
    with pytest.raises(_PowerCut):
        _train(tmp_path / "cut", _linear(), QUICK, die_at=6)
    journal = tmp_path / "cut" / "events.jsonl"
    others = [b'{"kind": "evaluated", "test_subjects": 4}', b"\xff\xfe\x00", b"[1, 2]", b'{"loss": 1}',
              b'{"step": "x"}', b'{"kind": "note", "step": 7, "message": "by hand"}', b'"\xc3\x28"']  # fmt: skip
    first, *rest = journal.read_bytes().splitlines()
    journal.write_bytes(b"\n".join([first, *others[:4], *rest, *others[4:], b'{"step": 9, "lo']))
    _train(tmp_path / "cut", _linear(), QUICK)
    assert _lasting(tmp_path / "cut") == _lasting(tmp_path / "whole")
    lines = journal.read_bytes().splitlines()
    assert [line for line in lines if line in others] == others
    assert not [line for line in lines if line.startswith(b'{"step": 9')]


def test_steps_that_come_twice_in_a_journal_are_read_once(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 1.0} for step in (1, 2, 3, 4)] + [{"step": step, "loss": 2.0} for step in (3, 4, 5)]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = read_events(tmp_path / "events.jsonl")
    assert [(event["step"], event["loss"]) for event in read] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]


def test_a_checkpoint_that_finds_no_room_stops_training_and_the_same_call_goes_on_when_there_is_some(
    tmp_path: Path,
) -> None:
    def wide() -> nn.Linear:
        module = nn.Linear(3, 20_000, bias=False)
        nn.init.constant_(module.weight, 0.5)
        return module

    whole, cut, resumed = wide(), wide(), wide()
    _train(tmp_path / "whole", whole, QUICK)
    with small_disk(tmp_path / "disk", 4) as disk:

        def loss_of_step(step: int) -> tuple[Tensor, dict[str, float]]:
            if step == 5:
                disk.fill(8192)
            return _loss(cut)(step)

        with pytest.raises(EnvironmentProblem, match=r"needs more than \d{6} bytes; free now: \d+"):
            minimise({"m": cut}, loss_of_step, QUICK, disk.root / "run", config={"a": 1}, device=torch.device("cpu"))
        assert checkpoint_step(disk.root / "run") == 3
        disk.empty()
        _train(disk.root / "run", resumed, QUICK)
        assert torch.equal(resumed.weight, whole.weight)
        assert _lasting(disk.root / "run") == _lasting(tmp_path / "whole")


def test_damaged_settings_are_refused_with_what_to_do(tmp_path: Path) -> None:
    _train(tmp_path, _linear(), QUICK)
    (tmp_path / "training.json").write_bytes(b"\xff{")
    with pytest.raises(IntegrityError, match=r"training\.json is not valid JSON.*Put back a copy"):
        _train(tmp_path, _linear(), QUICK)


SITES = (
    "checkpoint.after_state:1", "checkpoint.after_state:2", "file.before_rename:2", "file.before_rename:3",
    "commit.before_manifest:1", "commit.before_manifest:3", "commit.after_manifest:2", "commit.after_rename:2",
    "checkpoint.before_prune:1", "checkpoint.before_prune:3",
)  # fmt: skip


def test_killed_at_any_step_of_writing_a_checkpoint_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    _train(tmp_path / "whole", _linear(), QUICK)
    program = (
        "import os, sys\nfrom pathlib import Path\nimport torch\n"
        "from tests.core.pretraining.test_training import QUICK, _linear, _train\n"
        "torch.set_num_threads(1)\nroot = Path(sys.argv[1])\n"
        "for site in sys.argv[2:]:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os.environ['DICESCOPE_FAULT'] = site + ':kill'\n"
        "        _train(root / site, _linear(), QUICK)\n"
        "        os._exit(0)\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9, site\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path), *SITES], cwd=ROOT, check=True)
    for site in SITES:
        resumed = _linear()
        _train(tmp_path / site, resumed, QUICK)
        last = Path("checkpoints", "step-00000008", "state.safetensors")
        assert (tmp_path / site / last).read_bytes() == (tmp_path / "whole" / last).read_bytes(), site
        assert _lasting(tmp_path / site) == _lasting(tmp_path / "whole"), site
        names = sorted(path.name for path in (tmp_path / site / "checkpoints").iterdir())
        assert names == ["step-00000006", "step-00000008"], site


def test_a_checkpoint_says_by_how_many_threads_it_came_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.pretraining.minimise.computed_by", lambda: "1 threads")
    with pytest.raises(_PowerCut):
        _train(tmp_path, _linear(), QUICK, die_at=5)
    assert checkpoint_history(tmp_path) == ("1 threads",)
    monkeypatch.setattr("core.pretraining.minimise.computed_by", lambda: "2 threads")
    _train(tmp_path, _linear(), QUICK)
    assert checkpoint_history(tmp_path) == ("1 threads", "2 threads")


def test_a_torn_last_line_of_the_journal_leaves_no_trace(tmp_path: Path) -> None:
    _train(tmp_path / "whole", _linear(), QUICK)
    with pytest.raises(_PowerCut):
        _train(tmp_path / "cut", _linear(), QUICK, die_at=6)
    with (tmp_path / "cut" / "events.jsonl").open("a") as journal:
        journal.write('{"step": 6, "lo')
    _train(tmp_path / "cut", _linear(), QUICK)
    assert _lasting(tmp_path / "cut") == _lasting(tmp_path / "whole")


def test_other_settings_in_the_same_directory_are_refused_with_the_difference(tmp_path: Path) -> None:
    _train(tmp_path, _linear(), QUICK, config={"settings": {"lr": 0.05, "batch": 4, "checkpoint_every": 3}})
    with pytest.raises(BadInput, match=r"settings\.lr: 0\.05 there, 0\.1 now\. Give"):
        _train(tmp_path, _linear(), QUICK, config={"settings": {"lr": 0.1, "batch": 4, "checkpoint_every": 9}})


def test_how_often_checkpoints_are_made_may_change_between_resumes(tmp_path: Path) -> None:
    with pytest.raises(_PowerCut):
        _train(tmp_path, _linear(), QUICK, die_at=5, config={"checkpoint_every": 3})
    _train(tmp_path, _linear(), replace(QUICK, checkpoint_every=1), config={"checkpoint_every": 1})
    assert len(read_events(tmp_path / "events.jsonl")) == 8


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    module = _linear()

    def loss_of_step(step: int) -> tuple[Tensor, dict[str, float]]:
        loss, logs = _loss(module)(step)
        return (loss * float("nan") if step == 5 else loss), logs

    with pytest.raises(BadInput, match=r"Loss is nan at step 5.*step-00000003.*Lower lr"):
        minimise({"m": module}, loss_of_step, QUICK, tmp_path, config={}, device=torch.device("cpu"))
    assert torch.isfinite(module.weight).all()
    assert [event["step"] for event in read_events(tmp_path / "events.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_leaves_a_checkpoint_of_the_step_just_done(tmp_path: Path, number: signal.Signals) -> None:
    module, before = _linear(), signal.getsignal(number)

    def loss_of_step(step: int) -> tuple[Tensor, dict[str, float]]:
        if step == 5:
            os.kill(os.getpid(), number)
        return _loss(module)(step)

    with pytest.raises(Interrupted, match="Stopped at step 5 of 8"):
        minimise({"m": module}, loss_of_step, QUICK, tmp_path, config={}, device=torch.device("cpu"))
    assert (tmp_path / "checkpoints" / "step-00000005" / "manifest.json").is_file()
    assert signal.getsignal(number) == before


def test_the_loop_runs_outside_the_main_thread(tmp_path: Path) -> None:
    worker = threading.Thread(target=lambda: _train(tmp_path, _linear(), QUICK))
    worker.start()
    worker.join()
    assert len(read_events(tmp_path / "events.jsonl")) == 8


def test_batch_statistics_are_part_of_a_checkpoint(tmp_path: Path) -> None:
    def train(module: nn.Module, directory: Path, die_at: int = 0) -> None:
        def loss_of_step(step: int) -> tuple[Tensor, dict[str, float]]:
            if step == die_at:
                raise _PowerCut
            x = torch.from_numpy(stream(0, "x", step).standard_normal((8, 3))).float()
            return module(x).square().mean(), {}

        minimise({"m": module}, loss_of_step, QUICK, directory, config={}, device=torch.device("cpu"))

    whole, resumed = _normalised(), _normalised()
    train(whole, tmp_path / "whole")
    with pytest.raises(_PowerCut):
        train(_normalised(), tmp_path / "cut", die_at=5)
    train(resumed, tmp_path / "cut")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_cosine_goes_from_the_peak_towards_zero_after_a_linear_rise() -> None:
    plan = Optimisation(steps=110, lr=1.0, warmup_steps=10)
    rates = [learning_rate(step, plan) for step in range(1, 111)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(rates[10], 1.0)
    np.testing.assert_allclose(rates[60], 0.5, atol=1e-12)
    assert 0 < rates[-1] < 1e-3
    assert learning_rate(110, replace(plan, schedule="constant")) == 1.0


def test_lines_are_logged_at_the_asked_steps_and_at_the_last(tmp_path: Path) -> None:
    told: list[int] = []
    module = _linear()
    minimise(
        {"m": module}, _loss(module), replace(QUICK, log_every=3), tmp_path,
        config={}, device=torch.device("cpu"), monitor=lambda step, values: told.append(step),
    )  # fmt: skip
    assert [event["step"] for event in read_events(tmp_path / "events.jsonl")] == [3, 6, 8]
    assert told == list(range(1, 9))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"lr": -1.0}, {"schedule": "step"}, {"precision": "half"}])
def test_unusable_settings_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        _train(tmp_path, _linear(), replace(QUICK, **wrong))  # type: ignore[arg-type]


def test_streams_depend_on_every_part_of_their_name() -> None:
    names = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 1), (0, "a", 0, 1), (0, "a", 0, 0, 1)]
    first = {float(stream(seed, purpose, *rest).random()) for seed, purpose, *rest in names}  # type: ignore[misc]
    assert len(first) == len(names)
    assert stream(7, "a", 1, 2, 3).random() == stream(7, "a", 1, 2, 3).random()


class _PowerCut(Exception):
    """What a killed process looks like from inside the test."""


def _linear() -> nn.Linear:
    module = nn.Linear(3, 1, bias=False)
    nn.init.constant_(module.weight, 0.5)
    return module


def _normalised() -> nn.Sequential:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    nn.init.eye_(module[0].weight)
    nn.init.zeros_(module[0].bias)
    return module


def _loss(module: nn.Module, noise: float = 0.3) -> Callable[[int], tuple[Tensor, dict[str, float]]]:
    def loss_of_step(step: int) -> tuple[Tensor, dict[str, float]]:
        x = torch.from_numpy(stream(1, "data", step).standard_normal((4, 3))).float()
        target = 2 * x.sum(1, keepdim=True) + noise * torch.from_numpy(stream(1, "noise", step).random((4, 1))).float()
        return (module(x) - target).square().mean(), {"double": 2.0 * step}

    return loss_of_step


def _train(
    directory: Path,
    module: nn.Module,
    optimisation: Optimisation,
    *,
    noise: float = 0.3,
    die_at: int = 0,
    seen: list[int] | None = None,
    config: dict[str, object] | None = None,
) -> None:
    def loss_of_step(step: int) -> tuple[Tensor, dict[str, float]]:
        if seen is not None:
            seen.append(step)
        if step == die_at:
            raise _PowerCut
        return _loss(module, noise)(step)

    minimise(
        {"m": module}, loss_of_step, optimisation, directory, config=config or {"a": 1}, device=torch.device("cpu")
    )


def _lasting(directory: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in e.items() if k not in VOLATILE} for e in read_events(directory / "events.jsonl")]


def _spoil(checkpoint: Path, damage: str) -> None:
    """Damage that keeps the rest in order: where a file is changed, the manifest is made anew for it."""
    state, step, manifest = (checkpoint / name for name in ("state.safetensors", "step.json", "manifest.json"))
    tensors, described = load_tensors(state), json.loads(step.read_text())
    if damage.startswith(("a manifest", "files", "not", "folders")):
        files = json.loads(manifest.read_text())["files"]
        manifest.write_bytes({
            "a manifest that is a list": b"[]",
            "a manifest without files": b'{"schema": 1}',
            "files that are a list": json.dumps({"schema": 1, "files": list(files)}).encode(),
            "a manifest of other bytes": json.dumps({"schema": 1, "files": dict.fromkeys(files, "0" * 64)}).encode(),
            "not UTF-8": b"\xff\xfe",
            "folders in place of files": json.dumps({"schema": 1, "files": {".": "0" * 64}}).encode(),
        }[damage])  # fmt: skip
        return
    manifest.unlink()
    with committed_directory(checkpoint.with_name("other")) as scratch:
        changed = dict(tensors)
        if damage == "a tensor less":
            changed = {name: value for name, value in tensors.items() if name != "m.weight"}
        elif damage == "a tensor of another shape":
            changed["m.weight"] = torch.zeros(2, 3)
        elif damage == "a moment of another shape":
            changed["adamw/m.weight/exp_avg"] = torch.zeros(2, 3)
        if damage != "no state":
            save_tensors(scratch / state.name, changed)
        if damage == "an empty state":
            (scratch / state.name).write_bytes(b"")
        said = {"a step that is a word": "six", "another step": 5}.get(damage, 6)
        if damage != "no step":
            write_json(scratch / step.name, described | {"step": said})
    shutil.rmtree(checkpoint)
    checkpoint.with_name("other").rename(checkpoint)


def _damage(checkpoint: Path, damage: str) -> None:
    path = checkpoint / "state.safetensors"
    if damage == "flip a bit":
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(bytes(content))
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        (checkpoint / "manifest.json").unlink()

"""Weights that others trained: the names of torchvision, MedicalNet, Lightly and wrappers, in every usual container."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.encoder import load_weights, make_encoder
from models.foreign import published_name, read_weights
from models.settings import EncoderSettings

SLICES = EncoderSettings(architecture="resnet10_2d", width=8, stem_stride=2, max_pool=True)
CHILDREN = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


def published(settings: EncoderSettings, channels: int = 1) -> dict[str, Tensor]:
    """The state of another untrained network of this kind under its usual names, with a head."""
    torch.manual_seed(7)
    state = {published_name(n): torch.randn(v.shape) if v.is_floating_point() else v.clone()
             for n, v in make_encoder(settings).state_dict().items()}  # fmt: skip
    if channels != 1:
        shape = list(state["conv1.weight"].shape)
        shape[1] = channels
        state["conv1.weight"] = torch.randn(shape)
    return {**state, "fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(10)}


WRAPPED = {
    "plain": lambda name: name,
    "module": lambda name: f"module.{name}",
    "backbone": lambda name: f"backbone.{name}",
    "lightning": lambda name: f"model.encoder.{name}",
    "lightly": lambda name: f"backbone.{CHILDREN.get(name.partition('.')[0], name.partition('.')[0])}."
                            f"{name.partition('.')[2]}",
}  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("architecture", ["resnet10_2d", "resnet10_3d", "resnet18_2d"])
@pytest.mark.parametrize("max_pool", [True, False])
def test_the_same_network_under_other_names_loads(
    tmp_path: Path, wrapper: str, architecture: Any, max_pool: bool
) -> None:
    settings = EncoderSettings(architecture=architecture, width=8, stem_stride=2, max_pool=max_pool)
    state = published(settings)
    save_file({WRAPPED[wrapper](name): value for name, value in state.items()}, tmp_path / "w.safetensors")
    encoder = make_encoder(settings)
    notes = load_weights(encoder, tmp_path / "w.safetensors")
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[published_name(name)]), name
    assert notes == ["Left out, for they belong to no stage: fc."]


@pytest.mark.parametrize("container", ["bare", "state_dict", "model", "nested"])
@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".pt"])
def test_checkpoints_of_pytorch_are_read_without_running_them(tmp_path: Path, container: str, suffix: str) -> None:
    state = published(SLICES)
    held: Any = {"bare": state, "state_dict": {"state_dict": state, "epoch": 3}, "model": {"model": state},
                 "nested": {"model": {"state_dict": state}}}[container]  # fmt: skip
    torch.save(held, tmp_path / f"w{suffix}")
    encoder = make_encoder(SLICES)
    load_weights(encoder, tmp_path / f"w{suffix}")
    assert torch.equal(encoder.state_dict()["stages.layer4.0.conv2.weight"], state["layer4.0.conv2.weight"])


class _Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("this must not run",))


def test_a_checkpoint_that_would_run_something_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"state_dict": _Harmful()}))
    torch.save({"state_dict": _Harmful()}, tmp_path / "v.pth")
    for name in ("w.pth", "v.pth"):
        with pytest.raises(ValueError, match="no checkpoint of plain tensors"):
            load_weights(make_encoder(SLICES), tmp_path / name)
    assert "must not run" not in capsys.readouterr().out


def test_three_colours_become_one_exactly_as_a_grey_picture_would_give(tmp_path: Path) -> None:
    state = published(SLICES, channels=3)
    save_file(state, tmp_path / "w.safetensors")
    grey, colour = make_encoder(SLICES), torch.nn.Conv2d(3, 8, 7, 2, 3, bias=False)
    notes = load_weights(grey, tmp_path / "w.safetensors")
    assert "three input channels were summed" in notes[0]
    colour.weight.data = state["conv1.weight"]
    picture = torch.rand(1, 1, 32, 32)
    convolution = next(m for m in grey.modules() if isinstance(m, torch.nn.Conv2d))
    torch.testing.assert_close(convolution(picture), colour(picture.expand(1, 3, 32, 32)))


def test_a_file_without_counters_loads(tmp_path: Path) -> None:
    state = {n: v for n, v in published(SLICES).items() if not n.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "w.safetensors")
    load_weights(make_encoder(SLICES), tmp_path / "w.safetensors")


def test_weights_of_another_network_show_the_names_that_were_expected(tmp_path: Path) -> None:
    save_file({"vit.blocks.0.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"names such as conv1.weight, bn1.weight.*it has vit.blocks.0.weight"):
        load_weights(make_encoder(SLICES), tmp_path / "w.safetensors")
    wider = EncoderSettings(architecture="resnet10_2d", width=16, stem_stride=2, max_pool=True)
    save_file(published(wider), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"do not fit this network.*needed"):
        load_weights(make_encoder(SLICES), tmp_path / "w.safetensors")
    deeper = EncoderSettings(architecture="resnet18_2d", width=8, stem_stride=2, max_pool=True)
    save_file(published(deeper), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"unexpected layer1\.1"):
        load_weights(make_encoder(SLICES), tmp_path / "w.safetensors")
    (tmp_path / "w.pth").write_bytes(b"no pickle")
    with pytest.raises(ValueError, match="no checkpoint of plain tensors"):
        load_weights(make_encoder(SLICES), tmp_path / "w.pth")


def test_a_checkpoint_that_holds_itself_ends(tmp_path: Path) -> None:
    held: dict[str, Any] = {"epoch": 3}
    held["model"] = held
    torch.save(held, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds no tensors under names"):
        load_weights(make_encoder(SLICES), tmp_path / "w.pth")


def test_what_the_disk_refuses_is_no_fault_of_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(published(SLICES), tmp_path / "w.pth")
    for error in (MemoryError("full"), OSError(5, "Input/output error")):

        def refuse(*given: Any, error: BaseException = error, **named: Any) -> None:
            raise error

        monkeypatch.setattr(torch, "load", refuse)
        with pytest.raises(type(error)):
            read_weights(tmp_path / "w.pth")

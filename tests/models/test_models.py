"""Encoders keep what their taps promise, and their cells lie where the geometry says."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from models.encoder import encoder_settings, load_encoder, load_weights, make_encoder, save_encoder
from models.projection import projection_head
from models.settings import Architecture, EncoderSettings

ARCHITECTURES = get_args(Architecture)
VARIANTS = [EncoderSettings(architecture=a, width=4) for a in ARCHITECTURES] + [
    EncoderSettings(architecture="cnn3d", width=8, in_channels=2, strides=(2, 2, 2, 1, 1)),
    EncoderSettings(architecture="resnet10_3d", width=4, stem_stride=1, max_pool=True),
    EncoderSettings(architecture="resnet18_2d", width=4, in_channels=2, stem_stride=1),
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_features_have_the_channels_and_strides_that_the_taps_promise(settings: EncoderSettings) -> None:
    encoder = make_encoder(settings).eval()
    shape = (17, 18, 15)
    x = torch.randn(2, settings.in_channels, *shape)
    features = encoder.features(x, [tap.name for tap in encoder.taps])
    assert next(iter(features)) == "input"
    assert torch.equal(features["input"], x)
    for tap in encoder.taps:
        cells = tuple(-(-n // s) for n, s in zip(shape, tap.stride, strict=True))
        assert features[tap.name].shape == (2, tap.channels, *cells)
    assert encoder(x).shape == (2, encoder.embedding_dim)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_an_impulse_on_voxel_stride_times_i_peaks_in_cell_i(settings: EncoderSettings) -> None:
    encoder = _averaging(make_encoder(settings))
    for tap in encoder.taps[1:]:
        cell = (1, 1, 1)
        voxel = tuple(c * s for c, s in zip(cell, tap.stride, strict=True))
        x = torch.zeros(1, settings.in_channels, *(3 * s for s in tap.stride))
        x[(0, slice(None), *voxel)] = 1.0
        response = encoder.features(x, (tap.name,))[tap.name][0].sum(0)
        peak = tuple(int(i[0]) for i in torch.where(response == response.max()))
        assert peak == cell, tap


def test_a_centred_network_is_symmetric_about_the_impulse() -> None:
    encoder = _averaging(make_encoder(EncoderSettings(width=4, strides=(1, 1, 1, 1, 1))))
    x = torch.zeros(1, 1, 15, 15, 15)
    x[0, 0, 7, 7, 7] = 1.0
    response = encoder.features(x, ("stage2",))["stage2"][0, 0]
    torch.testing.assert_close(response, response.flip(0, 1, 2))
    assert response[7, 7, 7] > response[6, 7, 7] > 0


def test_named_features_equal_what_hooks_see() -> None:
    encoder = make_encoder(EncoderSettings(width=4)).eval()
    seen: dict[str, torch.Tensor] = {}
    for name, stage in encoder.stages.items():
        stage.register_forward_hook(lambda module, given, output, name=name: seen.__setitem__(name, output))
    x = torch.randn(1, 1, 8, 8, 8)
    embedding = encoder(x)
    hooked = dict(seen)
    for name, values in encoder.features(x, list(hooked)).items():
        assert torch.equal(values, hooked[name])
    torch.testing.assert_close(embedding, hooked["stage4"].mean(dim=(2, 3, 4)))


def test_stages_behind_the_deepest_needed_one_do_not_run() -> None:
    encoder = make_encoder(EncoderSettings(width=4))
    ran: list[str] = []
    for name, stage in encoder.stages.items():
        stage.register_forward_hook(lambda module, given, output, name=name: ran.append(name))
    encoder.features(torch.randn(1, 1, 8, 8, 8), ("stage1", "input"))
    assert ran == ["stage0", "stage1"]
    encoder.features(torch.randn(1, 1, 8, 8, 8), ("input",))
    assert ran == ["stage0", "stage1"]


def test_a_slicewise_encoder_sees_one_slice_at_a_time() -> None:
    encoder = make_encoder(EncoderSettings(architecture="resnet10_2d", width=4)).eval()
    x = torch.randn(2, 1, 16, 16, 5)
    whole = encoder.features(x, ("layer2",))["layer2"]
    alone = encoder.features(x[..., 3:4], ("layer2",))["layer2"]
    torch.testing.assert_close(whole[..., 3:4], alone)


def test_a_subject_alone_has_the_features_it_has_in_a_batch() -> None:
    for architecture in ARCHITECTURES:
        encoder = make_encoder(EncoderSettings(architecture=architecture, width=4)).eval()
        x = torch.randn(3, 1, 12, 12, 12)
        torch.testing.assert_close(encoder(x)[1:2], encoder(x[1:2]), rtol=1e-4, atol=1e-5)


def test_the_seed_alone_decides_the_weights_and_the_global_random_state_stays() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = make_encoder(EncoderSettings(width=4, seed=1)).state_dict()
    projection_head(8, seed=1)
    assert torch.equal(torch.rand(3), expected)
    again = make_encoder(EncoderSettings(width=4, seed=1)).state_dict()
    other = make_encoder(EncoderSettings(width=4, seed=2)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stages.stage0.0.weight"], other["stages.stage0.0.weight"])


def test_the_default_network_is_the_published_five_stages() -> None:
    encoder = make_encoder(EncoderSettings())
    assert [tap.channels for tap in encoder.taps] == [1, 32, 64, 128, 256, 256]
    assert [tap.stride[0] for tap in encoder.taps] == [1, 1, 2, 4, 4, 4]
    norms = [module for module in encoder.modules() if isinstance(module, nn.GroupNorm)]
    assert [norm.num_groups for norm in norms] == [4, 8, 16, 16, 16]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_encoder_comes_back_with_the_same_output(architecture: Architecture, tmp_path: Path) -> None:
    settings = EncoderSettings(architecture=architecture, width=4, seed=3)
    encoder = make_encoder(settings)
    encoder(torch.randn(2, 1, 12, 12, 12))  # moves batch statistics where there are any
    save_encoder(encoder, settings, tmp_path)
    loaded, described = load_encoder(tmp_path)
    assert described == settings
    x = torch.randn(1, 1, 12, 12, 12)
    assert torch.equal(loaded.eval()(x), encoder.eval()(x))


def test_weights_of_another_width_are_refused_and_change_nothing(tmp_path: Path) -> None:
    narrow, wide = EncoderSettings(width=4), EncoderSettings(width=8)
    save_encoder(make_encoder(narrow), narrow, tmp_path)
    encoder = make_encoder(wide)
    before = encoder.stages["stage0"][0].weight.clone()
    with pytest.raises(ValueError, match=r"is \(4, 1, 3, 3, 3\), needed \(8, 1, 3, 3, 3\)"):
        load_weights(encoder, tmp_path / "encoder.safetensors")
    assert torch.equal(encoder.stages["stage0"][0].weight, before)


def test_a_truncated_weights_file_is_refused(tmp_path: Path) -> None:
    settings = EncoderSettings(width=4)
    save_encoder(make_encoder(settings), settings, tmp_path)
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no readable safetensors"):
        load_encoder(tmp_path)


def test_an_unknown_layer_or_architecture_is_answered_with_the_names_and_the_closest() -> None:
    encoder = make_encoder(EncoderSettings(width=4))
    with pytest.raises(ValueError, match=r"input, stage0, stage1, stage2, stage3, stage4\. Did you mean 'stage"):
        encoder.features(torch.zeros(1, 1, 8, 8, 8), ("stage9",))
    with pytest.raises(ValueError, match=r"Allowed: cnn3d.*Did you mean 'resnet18_3d'"):
        make_encoder(EncoderSettings(architecture="resnet18"))  # type: ignore[arg-type]


def test_unfit_settings_and_inputs_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        make_encoder(EncoderSettings(width=6))
    with pytest.raises(ValueError, match="five positive"):
        make_encoder(EncoderSettings(strides=(1, 2)))
    with pytest.raises(ValueError, match=r"\(batch, 2, x, y, z\)"):
        make_encoder(EncoderSettings(width=4, in_channels=2))(torch.zeros(1, 1, 8, 8, 8))
    with pytest.raises(ValueError, match=r"setting depth.*architecture"):
        encoder_settings({"depth": 3})


def test_settings_survive_json() -> None:
    settings = EncoderSettings(architecture="resnet18_2d", strides=(2, 2, 2, 1, 1), seed=9)
    assert encoder_settings(json.loads(json.dumps(vars(settings)))) == settings


def _averaging(encoder: nn.Module) -> nn.Module:
    """The same network with centre-weighted averaging kernels and no normalisation: a peak stays a peak."""
    for module in encoder.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            size = module.weight.shape[2:]
            kernel = torch.ones(())
            for n in size:
                axis = 1.0 + n // 2 - (torch.arange(n) - n // 2).abs()
                kernel = kernel[..., None] * axis
            module.weight.data.copy_((kernel / kernel.sum()).expand_as(module.weight))
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda x: x  # type: ignore[method-assign]
    return encoder.eval()

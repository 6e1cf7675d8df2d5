"""An encoder: named stages, what is known of each before it runs, and its features at any of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.cnn3d import five_stage_cnn
from models.foreign import published_name, read_weights, translated
from models.resnet import resnet_stages
from models.settings import Architecture, EncoderSettings
from models.taps import Tap
from models.tensor_files import save_tensors

INPUT = "input"
SCHEMA = 1
"""Of encoder.json; a file that says none has this one."""


class Encoder(nn.Module):
    """Stages run one after another; features can be read after each. Made by `make_encoder`.

    `taps` describes what can be read, in order; the first is "input", the intensity itself.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.settings = settings
        stages = _stages(settings)
        self.taps: tuple[Tap, ...] = (Tap(INPUT, settings.in_channels, (1, 1, 1)), *(tap for tap, _ in stages))
        self.embedding_dim: int = stages[-1][0].channels
        self.stages = nn.ModuleDict({tap.name: stage for tap, stage in stages})
        self.slicewise = settings.architecture.endswith("_2d")
        self.loading_notes: tuple[str, ...] = ()
        """What was left out or adapted when weights were loaded."""

    def forward(self, x: Float[Tensor, "batch channels x y z"]) -> Float[Tensor, "batch embedding"]:
        """Mean of the deepest features over the whole volume."""
        last = self.taps[-1].name
        return self.features(x, (last,))[last].mean(dim=(2, 3, 4))

    def features(self, x: Float[Tensor, "batch channels x y z"], names: Sequence[str]) -> dict[str, Tensor]:
        """Features at the named taps, each (batch, channels, x', y', z'); deeper stages than needed do not run."""
        self._check(x, names)
        values = x.movedim(4, 1).flatten(0, 1) if self.slicewise else x
        found = {INPUT: x} if INPUT in names else {}
        for name, stage in self.stages.items():
            if set(names) <= found.keys():
                break
            values = stage(values)
            if name in names:
                found[name] = values.unflatten(0, (len(x), -1)).movedim(1, 4) if self.slicewise else values
        return {name: found[name] for name in names}

    def _check(self, x: Tensor, names: Sequence[str]) -> None:
        if x.ndim != 5 or x.shape[1] != self.settings.in_channels:
            raise ValueError(
                f"Input of shape {tuple(x.shape)} does not fit encoder {self.settings.architecture!r}. "
                f"Allowed: (batch, {self.settings.in_channels}, x, y, z)."
            )
        allowed = [tap.name for tap in self.taps]
        for name in names:
            if name not in allowed:
                raise ValueError(
                    f"Layer {name!r} is not in encoder {self.settings.architecture!r}. "
                    f"It has: {', '.join(allowed)}.{_closest(name, allowed)}"
                )


def make_encoder(settings: EncoderSettings) -> Encoder:
    """An untrained encoder; equal settings give equal weights, and the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return Encoder(settings)


def save_encoder(encoder: Encoder, settings: EncoderSettings, directory: Path) -> None:
    """Write encoder.json (settings) and encoder.safetensors (weights)."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "encoder.json").write_text(json.dumps(asdict(settings), indent=1, sort_keys=True))
    save_tensors(directory / "encoder.safetensors", encoder.state_dict())


def load_encoder(directory: Path) -> tuple[Encoder, EncoderSettings]:
    """What `save_encoder` wrote. ValueError when a setting is unknown or the weights do not fit."""
    described = directory / "encoder.json"
    if not described.is_file():
        raise ValueError(f"{directory} holds no encoder.json. Give the encoder directory that pretraining wrote.")
    settings = encoder_settings(json.loads(described.read_text()))
    encoder = make_encoder(settings)
    load_weights(encoder, directory / "encoder.safetensors")
    return encoder, settings


def encoder_settings(values: dict[str, object]) -> EncoderSettings:
    """Settings from their JSON form. ValueError on unknown names, with the known ones."""
    values = dict(values)
    schema = values.pop("schema", SCHEMA)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ValueError(
            f"This encoder needs a newer Dicescope: it has schema {schema!r}, this one reads up to {SCHEMA}. "
            "Update Dicescope, or pretrain one with this one."
        )
    known = {field.name for field in fields(EncoderSettings)}
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ValueError(f"Unknown encoder setting {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return EncoderSettings(**plain)  # type: ignore[arg-type]


def load_weights(module: nn.Module, path: Path) -> list[str]:
    """Fill a module from a safetensors file or a PyTorch checkpoint: same shapes, nothing missing, nothing left over.

    The names are its own, or those that others give the same network (`models.foreign`). Returns in words what was
    left out or adapted. ValueError that names what differs, and what was expected; the module is unchanged then.
    """
    try:
        given = read_weights(path)
    except ValueError as error:
        raise ValueError(f"{error}. Give the file that was saved.") from error
    except OSError as error:
        raise ValueError(
            f"{path} is no readable safetensors file: {error.strerror}. Give the file that was saved."
        ) from error
    wanted = module.state_dict()
    notes: list[str] = []
    if given.keys() != wanted.keys():
        names = list(given)
        given, notes = translated(given, wanted)
        if not given.keys() & {name for name in wanted if not name.endswith("num_batches_tracked")}:
            expected = [published_name(name) for name in wanted if not name.endswith("num_batches_tracked")]
            raise ValueError(
                f"Weights in {path} are of another network. Expected are names such as {', '.join(expected[:6])} (or "
                f"with a prefix such as module. or backbone.); it has {', '.join(names[:6])}. Choose the network that "
                "they were trained in: --architecture, --width, --stem-stride, --max-pool."
            )
    problems = [f"missing {name}" for name in wanted if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in wanted]
    problems += [
        f"{name} is {tuple(given[name].shape)}, needed {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in given and given[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(
            f"Weights in {path} do not fit this network: {'; '.join(problems[:4])}{more}. "
            "Use the architecture, width and contrasts that the weights were trained with."
        )
    module.load_state_dict(given, strict=True)
    return notes


def _stages(settings: EncoderSettings) -> list[tuple[Tap, nn.Module]]:
    channels, width = settings.in_channels, settings.width
    if channels < 1:
        raise ValueError(f"An encoder needs at least one contrast; in_channels is {channels}.")
    stem, pool = settings.stem_stride, settings.max_pool
    match settings.architecture:
        case "cnn3d":
            return five_stage_cnn(channels, width, settings.strides)
        case "resnet10_3d":
            return resnet_stages(10, 3, channels, width, stem, pool)
        case "resnet18_3d":
            return resnet_stages(18, 3, channels, width, stem, pool)
        case "resnet10_2d":
            return resnet_stages(10, 2, channels, width, stem, pool)
        case "resnet18_2d":
            return resnet_stages(18, 2, channels, width, stem, pool)
    allowed = list(get_args(Architecture))
    raise ValueError(
        f"Architecture {settings.architecture!r} is unknown. Allowed: {', '.join(allowed)}."
        f"{_closest(settings.architecture, allowed)}"
    )


def _closest(given: str, allowed: Sequence[str]) -> str:
    matches = get_close_matches(given, allowed, n=1, cutoff=0.4)
    return f" Did you mean {matches[0]!r}?" if matches else ""

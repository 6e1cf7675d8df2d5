"""Weights of the same network under the names that others give them: torchvision, MedicalNet, Lightly, wrappers.

Nothing of a file is run: pickles are read with `weights_only`, which builds tensors and plain containers alone.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.tensor_files import load_tensors

PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".tar")
_INSIDE = ("state_dict", "model_state_dict", "model", "net", "network", "encoder", "teacher", "student")
"""Keys under which a checkpoint keeps its weights."""
_DEEPEST = 4
_WRAPPERS = re.compile(
    r"^(?:module|model|backbone|encoder|net|network|student|teacher|online_encoder|base_encoder|encoder_q|_orig_mod|resnet|"
    r"feature_extractor|trunk)\."
)
"""Prefixes that wrappers put before a network's own names."""
_STAGES = re.compile(r"^(?:conv1|bn1|layer[1-4])\.")
_SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""A ResNet as a plain sequence of its children, as Lightly keeps it."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a PyTorch checkpoint, by name.

    ValueError when it is neither, OSError when it cannot be read.
    """
    if path.suffix not in PICKLES:
        return load_tensors(path)
    with path.open("rb"):
        pass
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # with `weights_only` a hostile file raises, whatever it likes, before anything is run
        cause = (str(error).splitlines() or [repr(error)])[0]
        raise ValueError(
            f"{path} is no checkpoint of plain tensors ({cause}). Save its state_dict, and give that"
        ) from error
    for _ in range(_DEEPEST):  # a file may hold itself
        if not isinstance(found, Mapping) or any(isinstance(v, Tensor) for v in found.values()):
            break
        inner = next((found[key] for key in _INSIDE if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise ValueError(f"{path} holds no tensors under names. Save its state_dict")
    return tensors


def published_name(own: str) -> str:
    """The usual name of a weight of our ResNet: stages.conv1.1.bias is bn1.bias elsewhere."""
    name = own.removeprefix("stages.")
    name = re.sub(r"^conv1\.0\.", "conv1.", name)
    name = re.sub(r"^conv1\.1\.", "bn1.", name)
    return re.sub(r"^layer1\.\d+\.(?=\d+\.)", "layer1.", name)


def translated(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The given weights under the names of a network, and in words what was left out or adapted.

    A first convolution of three channels becomes one of one by summing: exactly what a grey picture in all three
    channels would give. What belongs to no stage (fc, a projection head) is left out; everything else stays, so that
    a check of names and shapes finds it.
    """
    plain = _unwrapped(given)
    found: dict[str, Tensor] = {}
    notes: list[str] = []
    used = set()
    for own, value in wanted.items():
        name = own if own in plain else published_name(own)
        if name not in plain:
            if own.endswith("num_batches_tracked"):  # a counter that inference does not read
                found[own] = torch.zeros_like(value)
            continue
        used.add(name)
        tensor = plain[name]
        colours = tensor.ndim >= 4 and tensor.shape[1] == 3 and tensor.shape != value.shape
        if colours and tensor[:, :1].shape == value.shape:
            tensor = tensor.sum(dim=1, keepdim=True)
            notes.append(f"{name}: its three input channels were summed to one, as for a grey picture.")
        found[own] = tensor
    left = [name for name in plain if name not in used]
    found |= {name: plain[name] for name in left if _STAGES.match(name)}
    ignored = sorted({name.split(".")[0] for name in left if not _STAGES.match(name)})
    if ignored and used:
        notes.append(f"Left out, for they belong to no stage: {', '.join(ignored[:6])}.")
    return found, notes


def _unwrapped(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what wrappers put before them; a sequence of children under the names of a ResNet's stages."""
    found: dict[str, Tensor] = {}
    for name, value in given.items():
        plain = name
        while _WRAPPERS.match(plain):
            plain = _WRAPPERS.sub("", plain)
        first, dot, rest = plain.partition(".")
        if dot and first in _SEQUENTIAL and not name.startswith("stages."):
            plain = f"{_SEQUENTIAL[first]}.{rest}"
        found.setdefault(plain, value)
    return found

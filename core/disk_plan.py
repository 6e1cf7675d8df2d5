"""What each stage will write, said before it starts, within a fifth of the real bytes."""

from collections.abc import Mapping

from torch import Tensor

from core.types import FeatureLayout
from data.room import NPY_HEADER, committed_bytes
from models.encoder import Encoder
from models.tensor_files import tensor_bytes

_DESCRIPTION = 700
"""Bytes of a JSON file of a few settings."""
_LEVELS = 5460
"""255 byte levels of one layer set (measured)."""
_FIGURES, _PER_LESION_SCAN, _PER_HEALTHY_SCAN = 3200, 1900, 160
"""Figures of one layer set in one space, and of every test scan in it (measured)."""
_LESION_FIGURES = 2300
_LIMITS, _PER_LEVEL, _PER_CELL, _PER_CELL_AND_LEVEL = 3000, 3000, 300, 425
_PER_PLANTED, _PER_PLANTED_AND_LEVEL = 250, 65
"""Of detection limits: cells are size x contrast x site, levels those of false positives (measured)."""
_PER_COMBINATION, _PER_COMBINATION_AND_SCAN = 820, 28
"""Of post-processing (measured)."""
_PER_VARIANT, _PER_VARIANT_AND_SCAN, _MOST_VARIANTS = 1600, 270, 16
"""Of a what-if (measured); a test holds that none writes more."""
_PER_LAYER, _PER_LAYER_AND_VIEW, _PER_LAYER_AND_LESION = 600, 170, 530
_PER_COMPARED, _PER_MOVEMENT_AND_SCAN = 407, 30
"""Of visibility (measured)."""
_SHAPES_PER_NAME = 20
"""Beside the name itself, in the description of a checkpoint."""


def checkpoint_bytes(state: Mapping[str, Tensor]) -> int:
    """Of one checkpoint with these tensors."""
    described = 60 + sum(len(name) + _SHAPES_PER_NAME + 8 * tensor.ndim for name, tensor in state.items())
    return committed_bytes(tensor_bytes(state), described)


def training_bytes(checkpoint: int, encoder: Encoder, to_write: int, kept: int, there: int) -> int:
    """What a training adds at its peak: `to_write` checkpoints are to come, `there` are there, `kept` stay.

    One more than is kept is there while it is written; the encoder comes at the end.
    """
    most = min(there + to_write, kept + 1)
    return max(most - there, 0) * checkpoint + encoder_bytes(encoder)


def encoder_bytes(encoder: Encoder) -> int:
    """Of a saved encoder."""
    return committed_bytes(tensor_bytes(encoder.state_dict()), 200)


def detector_bytes(fitted: int, layout: FeatureLayout, encoder: Encoder, projections: Mapping[str, Tensor]) -> int:
    """Of a fitted detector with layers: what was fitted, its encoder, and where its features live."""
    features = 24 * len(layout.positions) + tensor_bytes(projections)
    return committed_bytes(fitted, features, encoder_bytes(encoder), _DESCRIPTION, _DESCRIPTION, _DESCRIPTION)


def grid_bytes(values: int, arrays: int = 1) -> int:
    """Of a committed directory with float32 arrays of so many values each, such as a score map."""
    return committed_bytes(*[4 * values + NPY_HEADER] * arrays)


def evaluation_bytes(working_sets: int, native_sets: int, lesion_scans: int, healthy_scans: int) -> int:
    """Of an evaluation: the levels of every layer set, and figures that grow with the test scans."""
    each = _FIGURES + _PER_LESION_SCAN * lesion_scans + _PER_HEALTHY_SCAN * healthy_scans
    return committed_bytes(working_sets * _LEVELS, (working_sets + native_sets) * each + _LESION_FIGURES)


def limits_bytes(cells: int, levels: int, per_cell: int) -> int:
    """Of detection limits with so many lesions in each cell."""
    table = _LIMITS + _PER_LEVEL * levels + cells * (_PER_CELL + _PER_CELL_AND_LEVEL * levels)
    return committed_bytes(table, cells * per_cell * (_PER_PLANTED + _PER_PLANTED_AND_LEVEL * levels))


def post_processing_bytes(combinations: int, scans: int) -> int:
    """Of so many combinations of filters, judged on so many test scans."""
    return committed_bytes(12_000 + combinations * (_PER_COMBINATION + _PER_COMBINATION_AND_SCAN * scans))


def what_if_bytes(scans: int) -> int:
    """At most, of one what-if on so many test scans."""
    return committed_bytes(2000 + _MOST_VARIANTS * (_PER_VARIANT + _PER_VARIANT_AND_SCAN * scans))


def visibility_bytes(layers: int, views: int, lesions: int, scans: int) -> int:
    """Of two networks with so many layers, looked at under kinds of views and of lesions in so many scans."""
    movements = views + lesions + 2
    per_layer = views * _PER_LAYER_AND_VIEW + lesions * _PER_LAYER_AND_LESION + _PER_LAYER
    both = 2 * layers * (per_layer + movements * _PER_MOVEMENT_AND_SCAN * (scans - 1))
    return committed_bytes(10_000 + both + layers * movements * _PER_COMPARED)

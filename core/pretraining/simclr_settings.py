"""What determines a pretraining run, and against what a view must tell its partner."""

from dataclasses import dataclass, field
from typing import Literal

from core.pretraining.view_settings import ViewSettings
from models.settings import EncoderSettings

Kind = Literal["in-batch", "queue", "slots", "moco", "hard", "ccd", "dense", "dense-shift", "atlas", "atlas-shift"]


@dataclass(frozen=True)
class NegativesSettings:
    """What the partner of a view must be told from."""

    kind: Kind = "in-batch"
    """in-batch: a view's partner is the other view of the same brain; it is told from both views of the other brains of
    the step. queue: as in-batch, and told from a queue of earlier embeddings too. slots: as in-batch, and told from
    slots into which embeddings are mixed (for comparison only). moco: the partner is the other view as a slow copy of
    the encoder embeds it; told from a queue of such keys of other brains. hard: as moco, but only the keys that look
    most alike count. ccd: as in-batch, and told from the same brain with its eighths shuffled; a class head names the
    order. dense: the partner is the same place in the other view; told from places far from it in the same brain and
    from places of other brains. dense-shift: as dense, and told from the same place under a local change of brightness.
    atlas: the partner is the same place in every brain of the step (registered scans); told from places far from it in
    any brain. atlas-shift: as atlas, and told from the same place under a local change of brightness."""
    bank_size: int = 1024
    """Embeddings that the bank holds: queue, slots, moco, hard."""
    slot_momentum: float = 0.99
    """slots: share of the old slot in the new one."""
    key_momentum: float = 0.99
    """moco, hard: share of the old key encoder in the new one, at every step."""
    hardest: int = 64
    """hard: nearest entries of the bank that count as negatives, per view."""
    positive_prior: float = 0.0
    """hard: assumed share of negatives that are positives in truth, taken out of the loss; 0 takes out nothing."""
    shifts: int = 4
    """ccd: classes of strongly shifted copies; the first is the scan as it is."""
    class_weight: float = 1.0
    """ccd: weight of the class head's cross-entropy."""
    layer: str = "stage2"
    """dense, atlas: the layer whose positions are compared. Stages behind it are not trained."""
    positions: int = 64
    """dense, atlas: in-brain positions per subject and step."""
    apart_mm: float = 16.0
    """dense, atlas: positions that are nearer than this are not told apart."""
    other_subjects: Literal["anywhere", "apart"] = "anywhere"
    """dense, dense-shift: which positions of other subjects are negatives; apart: only those `apart_mm` away, so that
    the same place in two registered brains may look alike."""
    blob_strength: tuple[float, float] = (0.1, 0.4)
    """dense-shift, atlas-shift: smallest and largest local change, a share of the scan's range; of either sign."""
    blob_mm: tuple[float, float] = (2.0, 8.0)
    """dense-shift, atlas-shift: smallest and largest standard deviation of a blob along each axis, in mm."""


@dataclass(frozen=True)
class SimclrSettings:
    """Everything that determines a pretraining run."""

    encoder: EncoderSettings = field(default_factory=lambda: EncoderSettings(width=16))
    """The network to train."""
    views: ViewSettings = field(default_factory=ViewSettings)
    """How the two sides of a pair differ."""
    negatives: NegativesSettings = field(default_factory=NegativesSettings)
    """What the partner of a view must be told from."""
    temperature: float = 0.1
    """Of the softmax over cosines; lower looks harder at the nearest brains."""
    batch: int = 12
    """Subjects per step, all distinct; the loss at chance is ln(2·batch − 1) without a bank."""
    steps: int = 300
    """Optimiser steps."""
    lr: float = 3e-4
    """Learning rate of AdamW at its peak."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    warmup_steps: int = 0
    """Steps of linear rise to the peak."""
    gradient_clip: float = 1.0
    """Largest L2 norm of the gradient; 0 leaves it as it is."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on an accelerator that has it, float32 on a CPU."""
    log_every: int = 1
    """Steps per logged line."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    memory_gb: float = 4.0
    """Volumes stay in memory when they fit into this many GB, else each is read when its turn comes."""
    seed: int = 0
    """Of the order of subjects, the views and the projection head."""

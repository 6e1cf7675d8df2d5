"""Memory of earlier embeddings, as buffers of a module: a checkpoint holds it, and no gradient ever enters it."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional


class Bank(nn.Module):
    """A ring of unit vectors, each with the subject it came from and the step it was made in.

    New vectors are written at the pointer, which moves on and starts again at the end: the oldest are replaced first.
    `count` slots are filled. Takes size·(dim + 3)·4 bytes.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.size = size
        self.keys: Tensor
        self.subjects: Tensor
        self.born: Tensor
        self.pointer: Tensor
        self.count: Tensor
        self.register_buffer("keys", torch.zeros(size, dim))
        self.register_buffer("subjects", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("born", torch.zeros(size))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def entries(self) -> Float[Tensor, "filled dim"]:
        """A copy of the filled slots, so that writing to the bank leaves a loss already computed alone."""
        return self.keys[: int(self.count)].clone()

    def of_others(self, subjects: Int64[Tensor, " anchors"]) -> Bool[Tensor, "anchors filled"]:
        """Which entries came from another subject than each anchor.

        A subject returns every epoch, and the bank may outlive an epoch: without this, earlier embeddings of the very
        same brain would be pushed away from it.
        """
        return subjects[:, None] != self.subjects[None, : int(self.count)]

    @torch.no_grad()
    def put(self, z: Float[Tensor, "new dim"], subjects: Int64[Tensor, " new"], step: int) -> None:
        """Write new embeddings, normalised, over the oldest."""
        slots = self._next(len(z))
        self.keys[slots] = functional.normalize(z.detach().float(), dim=1)
        self._written(slots, subjects, torch.full((len(z),), float(step), device=z.device))

    @torch.no_grad()
    def blend(self, z: Float[Tensor, "new dim"], subjects: Int64[Tensor, " new"], step: int, momentum: float) -> None:
        """Mix new embeddings into the slots at the pointer: new = normalise(momentum·old + (1 − momentum)·incoming).

        A slot that was never filled takes the embedding itself. The step of birth is mixed with the same shares, so
        the age tells how old the content is, not when it was last touched.
        """
        slots = self._next(len(z))
        incoming = functional.normalize(z.detach().float(), dim=1)
        share = torch.where(slots < self.count, momentum, 0.0).to(incoming)
        mixed = share[:, None] * self.keys[slots] + (1 - share)[:, None] * incoming
        self.keys[slots] = functional.normalize(mixed, dim=1)
        self._written(slots, subjects, share * self.born[slots] + (1 - share) * step)

    def state(self, step: int) -> dict[str, float]:
        """queue_fill, 0 to 1, and queue_age, the mean age of the entries in steps."""
        filled = int(self.count)
        age = float((step - self.born[:filled]).mean()) if filled else 0.0
        return {"queue_fill": filled / self.size, "queue_age": age}

    def _next(self, length: int) -> Tensor:
        return (self.pointer + torch.arange(length, device=self.keys.device)) % self.size

    def _written(self, slots: Tensor, subjects: Tensor, born: Tensor) -> None:
        self.subjects[slots] = subjects
        self.born[slots] = born
        self.pointer.copy_((self.pointer + len(slots)) % self.size)
        self.count.copy_((self.count + len(slots)).clamp_max(self.size))


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """Move a momentum copy towards the network it follows: θ_k ← m·θ_k + (1 − m)·θ_q.

    Parameters only; running statistics are the copy's own. He et al. 2020, arXiv:1911.05722, eq. 2.
    """
    for key, query in zip(slow.parameters(), fast.parameters(), strict=True):
        key.mul_(momentum).add_(query.detach(), alpha=1 - momentum)

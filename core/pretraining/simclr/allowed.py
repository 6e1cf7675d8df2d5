"""Which settings of a pretraining are allowed, and which of them a kind of negatives reads."""

from typing import get_args

from core.pretraining.simclr_settings import Kind, NegativesSettings
from data.errors import BadInput
from data.ranges import refuse_out_of_range

WITH_BANK: tuple[Kind, ...] = ("queue", "slots", "moco", "hard")
DENSE: tuple[Kind, ...] = ("dense", "dense-shift", "atlas", "atlas-shift")


def check_negatives(given: NegativesSettings, batch: int) -> None:
    """BadInput when a setting that the kind reads is out of its range."""
    if given.kind not in get_args(Kind):
        raise BadInput(f"Unknown negatives {given.kind!r}. Allowed: {', '.join(get_args(Kind))}.")
    if given.kind in WITH_BANK and given.bank_size < 2 * batch:
        raise BadInput(
            f"A bank of {given.bank_size} cannot hold the {2 * batch} views of one step. "
            f"Allowed: {2 * batch} and above. Enlarge bank_size or lower the batch."
        )
    refuse_out_of_range(given)
    for name, (low, high) in (("blob_strength", given.blob_strength), ("blob_mm", given.blob_mm)):
        if low > high:
            raise BadInput(f"{name} is ({low}, {high}). Allowed: two positive numbers, the smaller one first.")
    if given.other_subjects not in ("anywhere", "apart"):
        raise BadInput(f"other_subjects is {given.other_subjects!r}. Allowed: anywhere, apart.")

"""How much Dice each category of errors costs: Shapley values from counts, exact up to 14 kinds of errors in a subject.

Fixing a set S of categories removes its false positives and turns its missed voxels into hits, so with n lesion voxels
v(S) = 2 TP' / (TP' + FP' + n). A category's cost is its Shapley value, the mean of v(S ∪ k) − v(S) over all orders in
which categories can be fixed: φₖ = Σ_{S∌k} |S|! (K−|S|−1)! / K! · [v(S ∪ k) − v(S)]. Since v(all) = 1 and
v(∅) = Dice, Dice + Σφ = 1 for every subject and therefore for their mean. Shapley 1953; K counts per subject suffice.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from core.randomness import stream
from data.errors import BadInput

EXACT = 14
"""Kinds of errors of one subject up to which every set is looked at: 2¹⁴ = 16,384 values of v, 131 KB."""
ORDERS = 4096
"""Orders drawn, each with its reverse, for a subject that has more: a cost is then known to about 0.002."""
_BLOCK = 32
"""Subjects at a time: their values of v stay within 4 MB."""


@dataclass(frozen=True, eq=False)
class ShapleyCosts:
    """Dice of each subject and what each category costs; false-positive categories first, then missed ones."""

    dice: Float64[np.ndarray, " subjects"]
    cost: Float64[np.ndarray, "subjects categories"]
    """Shapley values: never negative, and dice + cost.sum(axis=1) is 1."""
    only: Float64[np.ndarray, "subjects categories"]
    """Dice gained when this category alone is fixed, v({k}) − v(∅). Does not add up."""
    all_but: Float64[np.ndarray, "subjects categories"]
    """Dice missing when all others are fixed, 1 − v(all ∖ k). Does not add up."""


def shapley_costs(
    hits: Int64[np.ndarray, " subjects"],
    fp: Int64[np.ndarray, "subjects fp_categories"],
    fn: Int64[np.ndarray, "subjects fn_categories"],
) -> ShapleyCosts:
    """Shapley costs of every subject, from voxel counts: hits, false positives and missed voxels by category.

    A category without a voxel costs exactly 0, so only the others count for how long it takes: exact up to 14 of them
    in one subject, beyond that the mean over drawn orders (seeded; Dice + Σφ = 1 all the same; Castro et al. 2009,
    doi:10.1016/j.cor.2008.04.004). BadInput for a subject without a lesion voxel (Dice is undefined) and for counts
    that are negative or not whole.
    """
    hits, errors, lesion, n_fp = _checked(hits, fp, fn)
    if errors.shape[1] > EXACT:
        return _one_by_one(hits, errors, lesion, n_fp)
    parts = [
        _block(hits[i : i + _BLOCK], errors[i : i + _BLOCK], lesion[i : i + _BLOCK], n_fp)
        for i in range(0, len(hits), _BLOCK)
    ]
    if not parts:
        none = np.empty((0, errors.shape[1]))
        return ShapleyCosts(np.empty(0), none, none, none)
    dice, cost, only, all_but = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return ShapleyCosts(dice, cost, only, all_but)


def _one_by_one(hits: np.ndarray, errors: np.ndarray, lesion: np.ndarray, n_fp: int) -> ShapleyCosts:
    """Many categories: each subject by those that it has."""
    dice, (cost, only, all_but) = np.zeros(len(hits)), np.zeros((3, *errors.shape))
    for n, row in enumerate(errors):
        there = np.flatnonzero(row)
        few = int(np.count_nonzero(there < n_fp))
        compute = _block if len(there) <= EXACT else _drawn
        found = compute(hits[n : n + 1], row[None, there], lesion[n : n + 1], few)
        dice[n], cost[n, there], only[n, there], all_but[n, there] = (values[0] for values in found)
    return ShapleyCosts(dice, cost, only, all_but)


def _drawn(hits: np.ndarray, errors: np.ndarray, lesion: np.ndarray, n_fp: int) -> tuple[np.ndarray, ...]:
    """`_block` of one subject, from drawn orders and their reverses."""
    count, alarms = errors.shape[1], np.arange(errors.shape[1]) < n_fp
    half = np.array([stream(0, "orders of errors", n).permutation(count) for n in range(ORDERS)])
    orders = np.concatenate([half, half[:, ::-1]])
    found, false = errors[0] * ~alarms, errors[0] * alarms

    def value(fixed_found: np.ndarray, fixed_false: np.ndarray) -> np.ndarray:
        hit = hits[0] + fixed_found
        return np.asarray(2.0 * hit / (hit + false.sum() - fixed_false + lesion[0]))

    after = value(np.cumsum(found[orders], axis=1), np.cumsum(false[orders], axis=1))
    dice = value(np.zeros(1), np.zeros(1))
    gains = np.diff(after, axis=1, prepend=np.broadcast_to(dice, (len(orders), 1)))
    cost = np.bincount(orders.ravel(), gains.ravel(), count) / len(orders)
    alone, missing = value(found, false) - dice, 1.0 - value(found.sum() - found, false.sum() - false)
    return dice, cost[None], alone[None], missing[None]


def _block(hits: np.ndarray, errors: np.ndarray, lesion: np.ndarray, n_fp: int) -> tuple[np.ndarray, ...]:
    n_categories = errors.shape[1]
    members, weights = _subsets(n_categories)
    found = hits + errors[:, n_fp:] @ members[n_fp:]
    alarms = errors[:, :n_fp] @ (1.0 - members[:n_fp])
    value = 2.0 * found / (found + alarms + lesion)
    empty = errors == 0
    singles = 2 ** np.arange(n_categories)
    dice, everything = value[:, :1], value[:, -1:]
    return (
        dice[:, 0],
        np.where(empty, 0.0, value @ weights),
        np.where(empty, 0.0, value[:, singles] - dice),
        np.where(empty, 0.0, everything - value[:, len(weights) - 1 - singles]),
    )


@functools.lru_cache(maxsize=4)
def _subsets(n_categories: int) -> tuple[np.ndarray, np.ndarray]:
    """Membership (categories, 2^K) of every subset, subset s holding the categories of its bits; and φ's weights.

    φₖ = Σ_S wₖ(S) v(S) with wₖ(S) = (|S|−1)! (K−|S|)! / K! where k is in S, else −|S|! (K−|S|−1)! / K!.
    """
    members = (np.arange(2**n_categories)[None, :] >> np.arange(n_categories)[:, None] & 1).astype(np.float64)
    size = members.sum(axis=0).astype(int)
    joining = np.array([_order_share(n_categories, s) for s in range(n_categories)] or [0.0])
    with_k, without_k = joining[np.maximum(size - 1, 0)], joining[np.minimum(size, len(joining) - 1)]
    weights = np.where(members > 0, with_k, -without_k).T
    for array in (members, weights):
        array.setflags(write=False)
    return members, np.ascontiguousarray(weights)


def _order_share(n_categories: int, before: int) -> float:
    """Share of all orders in which exactly one given set of `before` categories comes before k."""
    return 1.0 / (n_categories * math.comb(n_categories - 1, before))


def _checked(hits: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    hits, fp, fn = np.asarray(hits), np.asarray(fp), np.asarray(fn)
    if hits.ndim != 1 or fp.ndim != 2 or fn.ndim != 2 or not len(hits) == len(fp) == len(fn):
        raise BadInput(
            f"Counts have shapes {hits.shape}, {fp.shape}, {fn.shape}. "
            "Allowed: (subjects,), (subjects, categories), (subjects, categories)."
        )
    if any(a.size and (not np.issubdtype(a.dtype, np.integer) or a.min() < 0) for a in (hits, fp, fn)):
        raise BadInput("Counts are negative or not integers. Give numbers of voxels.")
    lesion = hits + fn.sum(axis=1)
    if (lesion == 0).any():
        raise BadInput("A subject without a lesion voxel has no Dice, so nothing costs it any. Leave it out.")
    errors = np.concatenate([fp, fn], axis=1).astype(np.float64)
    return hits.astype(np.float64)[:, None], errors, lesion.astype(np.float64)[:, None], fp.shape[1]

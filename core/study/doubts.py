"""Scans that may not be what they are filed as are set aside before anything is learnt, unless a user keeps them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from core.progress import Progress
from data.cohort import ROLES, Cohort, Split
from data.errors import BadInput
from data.prepared_cache import load_prepared
from data.preprocessing import PreparedCohort
from data.reading import SetAside
from data.reference import FLUID, Doubt, Impression, doubts_of_cohort, doubts_of_scan, impression, in_words


def set_doubted_aside(cohort: Cohort, split: Split, prepared: PreparedCohort, progress: Progress) -> PreparedCohort:
    """The prepared scans without those that look like something else; each is named, and `--keep` keeps it.

    BadInput when two splits hold one scan twice under other noise, gain or mirrored.
    """
    registered = prepared.settings.registration == "affine"
    kept = {s.subject_id for s in cohort.subjects if s.kept}
    contrasts = prepared.settings.contrasts
    seen: list[list[Impression]] = [[] for _ in contrasts]
    single: list[Doubt] = []
    for subject_id, key in prepared.keys.items():
        one = load_prepared(prepared.cache, key, subject_id)
        for n, impressions in enumerate(seen):
            impressions.append(impression(one.volume, n))
        single += doubts_of_scan(one, registered)
    wrong = {doubt.subject_id for doubt in single} - kept
    learnt = [i for i in (*split.train, *split.calibration) if i in prepared.keys]
    strange: dict[str, Doubt] = {}
    for name, impressions in zip(contrasts, seen, strict=True):
        others = [one for one in impressions if one.subject_id not in wrong]
        unlike, twins = doubts_of_cohort(others, learnt, registered)
        strange |= {one.subject_id: replace(one, contrast=name) for one in unlike if one.subject_id not in strange}
        _refuse_twins_across(twins, name, split, prepared, kept, progress)
    if unjudged := [name for name in contrasts if name not in FLUID]:
        progress.say(
            f"note: how {', '.join(unjudged)} should look is not known here (known are {', '.join(FLUID)}): size, "
            "place, outliers and copies were looked at, and not whether its scans are of this contrast."
        )
    return prepared.without(_aside((*single, *strange.values()), cohort, contrasts[0], progress))


def _refuse_twins_across(
    twins: Sequence[tuple[str, str, float]],
    contrast: str,
    split: Split,
    prepared: PreparedCohort,
    kept: set[str],
    progress: Progress,
) -> None:
    """BadInput for near copies in two splits; those in one are told. The same voxels in the first contrast are leakage
    anyway."""
    roles = {i: role for role in ROLES for i in getattr(split, role)}
    hashes = prepared.voxel_hashes
    first = contrast == prepared.settings.contrasts[0]
    twins = [t for t in twins if not (first and hashes[t[0]] == hashes[t[1]])]
    across = [t for t in twins if len({roles.get(i) for i in t[:2]} - {None}) == 2 and not {*t[:2]} <= kept]
    if across:
        raise BadInput(
            f"E-LEAKAGE: {len(across)} pair(s) of {contrast} scans are one scan, or one with other noise, brightness "
            f"or mirrored, in two splits: {in_words(across, roles)}. Numbers on them would be too good. Remove one of "
            f"each pair, or say --keep {across[0][0]} {across[0][1]} if they are two people."
        )
    if twins:
        told = in_words(twins, roles)
        progress.say(f"note: nearly the same {contrast} scan under two ids: {told}. Remove one of each pair.")


def _aside(doubts: Sequence[Doubt], cohort: Cohort, contrast: str, progress: Progress) -> Mapping[str, SetAside]:
    by_id = {s.subject_id: s for s in cohort.subjects}
    aside = {}
    for doubt in doubts:
        subject = by_id[doubt.subject_id]
        if subject.kept:
            progress.say(f"note: {doubt.subject_id} is kept, as was asked, although it {doubt.cause}")
            continue
        name = doubt.contrast or contrast
        path = str(subject.scans[name])
        remedy = f"Look at it; --keep {doubt.subject_id} uses it all the same."
        aside[doubt.subject_id] = SetAside(
            doubt.subject_id, path, doubt.code, f"{doubt.code}: {path}: {name} {doubt.cause} {remedy}"
        )
        progress.say(f"set aside: {doubt.subject_id} [{doubt.code}] {name} {doubt.cause} {remedy}")
    return aside

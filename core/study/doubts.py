"""Scans that may not be what they are filed as are set aside before anything is learnt, unless a user keeps them."""

from collections.abc import Mapping, Sequence

from core.progress import Progress
from data.cohort import ROLES, Cohort, Split
from data.errors import BadInput
from data.preprocessing import PreparedCohort, load_prepared
from data.reading import SetAside
from data.reference import Doubt, doubts_of_cohort, doubts_of_scan, impression, in_words


def set_doubted_aside(cohort: Cohort, split: Split, prepared: PreparedCohort, progress: Progress) -> PreparedCohort:
    """The prepared scans without those that look like something else; each is named, and `--keep` keeps it.

    BadInput when two splits hold one scan twice under other noise, gain or mirrored.
    """
    registered = prepared.settings.registration == "affine"
    kept = {s.subject_id for s in cohort.subjects if s.kept}
    seen, single = [], list[Doubt]()
    for subject_id, key in prepared.keys.items():
        one = load_prepared(prepared.cache, key, subject_id)
        seen.append(impression(one.volume))
        single += doubts_of_scan(one, registered)
    wrong = {doubt.subject_id for doubt in single} - kept
    others = [one for one in seen if one.subject_id not in wrong]
    learnt = [i for i in (*split.train, *split.calibration) if i in prepared.keys]
    strange, twins = doubts_of_cohort(others, learnt, registered)
    _refuse_twins_across(twins, split, prepared, kept, progress)
    return prepared.without(_aside((*single, *strange), cohort, prepared.settings.contrasts[0], progress))


def _refuse_twins_across(
    twins: Sequence[tuple[str, str, float]],
    split: Split,
    prepared: PreparedCohort,
    kept: set[str],
    progress: Progress,
) -> None:
    """BadInput for near copies in two splits; those in one are told. What has the same voxels is leakage anyway."""
    roles = {i: role for role in ROLES for i in getattr(split, role)}
    hashes = prepared.voxel_hashes
    twins = [t for t in twins if hashes[t[0]] != hashes[t[1]]]
    across = [t for t in twins if len({roles.get(i) for i in t[:2]} - {None}) == 2 and not {*t[:2]} <= kept]
    if across:
        raise BadInput(
            f"E-LEAKAGE: {len(across)} pair(s) of scans are one scan with other noise, brightness or mirrored, in two "
            f"splits: {in_words(across, roles)}. Numbers on them would be too good. Remove one of each pair, or say "
            f"--keep {across[0][0]} {across[0][1]} if they are two people."
        )
    if twins:
        progress.say(f"note: nearly the same scan under two ids: {in_words(twins, roles)}. Remove one of each pair.")


def _aside(doubts: Sequence[Doubt], cohort: Cohort, contrast: str, progress: Progress) -> Mapping[str, SetAside]:
    by_id = {s.subject_id: s for s in cohort.subjects}
    aside = {}
    for doubt in doubts:
        subject = by_id[doubt.subject_id]
        if subject.kept:
            progress.say(f"note: {doubt.subject_id} is kept, as was asked, although it {doubt.cause}")
            continue
        path = str(subject.scans[contrast])
        remedy = f"Look at it; --keep {doubt.subject_id} uses it all the same."
        aside[doubt.subject_id] = SetAside(
            doubt.subject_id, path, doubt.code, f"{doubt.code}: {path}: {doubt.cause} {remedy}"
        )
        progress.say(f"set aside: {doubt.subject_id} [{doubt.code}] {doubt.cause} {remedy}")
    return aside

"""The WMH challenge of 2017, and MSSEG 2016 and Shifts, as published."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data.challenges import CONTRAST_WORDS
from data.choices import NOTHING, Choices
from data.cohort import Cohort, Subject
from data.folders import BadDataset, refuse_twins, scans_under, stem

WMH_CITATION = "Kuijf et al. 2019, doi:10.1109/TMI.2019.2905770 (WMH Segmentation Challenge)."
MS_CITATION = (
    "Commowick et al. 2018, doi:10.1038/s41598-018-31911-7 (MSSEG); Malinin et al. 2022, arXiv:2206.15407 (Shifts)."
)
_MSSEG = re.compile(
    r"(?:^|/)(?:(?P<site>Center_\d+)/)?(?P<who>Patient_\d+)/(?P<folder>Raw_Data|Preprocessed_Data|Masks)/[^/]+$", re.I
)
_PARTS = ("training", "test")
"""Folders of the WMH challenge that belong to an id only where it stands in both."""
_SHIFTS = re.compile(r"^(?P<who>\d+)_(?:[A-Za-z0-9]+_)?(?:isovox|isovox_fg_mask)\.nii(?:\.gz)?$")


def fits_wmh(paths: Sequence[Path]) -> bool:
    """Whether there are scans in folders pre, as the WMH challenge has them."""
    return any(p.parent.name == "pre" and stem(p) in ("FLAIR", "T1") for p in paths)


def read_wmh(root: Path, choices: Choices = NOTHING) -> Cohort:
    """Utrecht/0/pre/FLAIR.nii.gz and T1.nii.gz, Utrecht/0/wmh.nii.gz: label 1 is lesion, 2 (other pathology) ignored.

    The bias-corrected scans in pre are taken. All subjects have white matter hyperintensities.
    """
    files, left_out = scans_under(root, follow_symlinks=choices.follow_symlinks)
    notes = list(left_out)
    used: list[Path] = []
    subjects: list[Subject] = []
    places = sorted({f.parent for f in files if f.parent.name == "pre"})
    short = Counter(_wmh_name(_wmh_parts(root, place)) for place in places)
    for place in places:
        scans = {stem(f).lower(): f for f in files if f.parent == place and stem(f) in ("FLAIR", "T1")}
        mask = next((f for f in files if f.parent == place.parent and stem(f).lower() == "wmh"), None)
        if not scans:
            continue
        used += [*scans.values(), *([mask] if mask else [])]
        parts = _wmh_parts(root, place)
        name = _wmh_name(parts) if short[_wmh_name(parts)] == 1 else "_".join(parts)
        subjects.append(
            Subject(
                name,
                scans,
                lesion_mask=mask,
                healthy=False,
                site=parts[-2] if len(parts) > 1 else None,
                lesion_labels=(1,) if mask else None,
                ignore_labels=(2,) if mask else (),
                labels_complete=mask is not None,
                health_from="the WMH challenge holds patients",
            )
        )
    refuse_twins(files, set(used))
    if not subjects:
        raise BadDataset("E-WMH-EMPTY", root, "holds no pre/FLAIR.nii.gz.", "Check the folder.")
    notes.append("Label 2 (other pathology) is ignored: neither lesion nor healthy tissue.")
    return Cohort("wmh", tuple(subjects), WMH_CITATION, tuple(notes))


def _wmh_parts(root: Path, place: Path) -> tuple[str, ...]:
    """The folders between the data set and a case's folder pre."""
    parts = place.parent.relative_to(root).parts if place.parent.is_relative_to(root) else ()
    return parts or (place.parent.resolve().name,)


def _wmh_name(parts: Sequence[str]) -> str:
    return "_".join(part for part in parts if part not in _PARTS) or "case"


def fits_ms(paths: Sequence[Path]) -> bool:
    """Whether there are files as MSSEG 2016 or Shifts (multiple sclerosis) have them."""
    return any(_MSSEG.search(p.as_posix()) or _SHIFTS.match(p.name) for p in paths)


def read_ms(root: Path, choices: Choices = NOTHING) -> Cohort:
    """MSSEG 2016 (Center_01/Patient_01/Preprocessed_Data/FLAIR_preprocessed.nii.gz, Masks/Consensus.nii.gz) and Shifts
    (flair/1_FLAIR_isovox.nii.gz, gt/1_gt_isovox.nii.gz, fg_mask/1_isovox_fg_mask.nii.gz). All are patients.

    Of MSSEG the preprocessed scans are taken where there are any, of several experts' masks their consensus.
    """
    files, left_out = scans_under(root, follow_symlinks=choices.follow_symlinks)
    notes = list(left_out)
    found: dict[str, dict[str, Path]] = {}
    sites: dict[str, str] = {}
    for file in files:
        name, site, kind, rank = _ms_file(root, file)
        if not kind:
            notes.append(f"{file.relative_to(root)} is neither scan nor mask of this layout and was left out.")
            continue
        sites.setdefault(name, site)
        kinds = found.setdefault(name, {})
        if kind not in kinds or rank == 0:
            kinds[kind] = file
    refuse_twins(files, {file for kinds in found.values() for file in kinds.values()})
    subjects = []
    for name, kinds in sorted(found.items()):
        scans = {kind: file for kind, file in kinds.items() if kind not in ("lesion", "brain")}
        if not scans:
            notes.append(f"{name}: no scan; left out.")
            continue
        subjects.append(
            Subject(
                name,
                scans,
                kinds.get("brain"),
                kinds.get("lesion"),
                healthy=False,
                site=sites[name] or None,
                health_from="the data set holds people with multiple sclerosis",
            )
        )
    if not subjects:
        raise BadDataset("E-MS-EMPTY", root, "holds no scan of MSSEG or Shifts.", "Check the folder.")
    return Cohort(root.resolve().name or "ms", tuple(subjects), MS_CITATION, tuple(notes))


def _ms_file(root: Path, file: Path) -> tuple[str, str, str, int]:
    """Subject, site, kind (a contrast, lesion, brain, or nothing) and rank: 0 is taken before 1."""
    place = file.relative_to(root).as_posix()
    if match := _MSSEG.search(place):
        name = f"{match['site']}_{match['who']}" if match["site"] else match["who"]
        stemmed = stem(file).casefold()
        if match["folder"].casefold() == "masks":
            kind = {"consensus": "lesion", "brain_mask": "brain"}.get(stemmed, "")
            return name, match["site"] or "", kind, 0
        word = re.sub(r"(_preprocessed|^3d)", "", stemmed)
        contrast = {"flair": "flair", "t1": "t1", "t2": "t2", "dp": "pd", "gado": "t1c"}.get(word, "")
        return name, match["site"] or "", contrast, 0 if "preprocessed" in stemmed else 1
    if match := _SHIFTS.match(file.name):
        folder = file.parent.name.casefold()
        kind = {"gt": "lesion", "fg_mask": "brain"}.get(folder) or CONTRAST_WORDS.get(folder, "")
        there = file.parent.parent
        above = there.relative_to(root).as_posix().strip(".") if there.is_relative_to(root) else ""
        prefix = f"{above.replace('/', '_')}_" if above else ""
        return f"{prefix}{match['who']}", above.split("/")[0], kind, 0
    return "", "", "", 1

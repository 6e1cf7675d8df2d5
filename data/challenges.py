"""nnU-Net raw and the Medical Segmentation Decathlon, as published."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.cells import without_accents
from data.choices import NOTHING, Choices
from data.cohort import Cohort, Subject
from data.folders import SCAN_SUFFIXES, BadDataset, look_under, refuse_twins, stem
from data.health import health_of, notes_on_health
from data.health_words import LOOSE_MASK_WORDS

IMAGES, LABELS = ("imagesTr", "imagesTs"), ("labelsTr", "labelsTs")
CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
_DECATHLON_BRAINS = ("FLAIR", "T1", "T1C", "T2")
"""MSD Task01: the four volumes of a file, and its labels oedema 1, non-enhancing 2, enhancing 3."""
_TISSUE = re.compile(
    r"(?:(?:left|right|deep|cortical|cerebral|normal|healthy|other)[ _-]?(?:appearing)?[ _-]?)*"
    r"(?:gm|wm|csf|gr[ae]y[ _-]?matter|white[ _-]?matter|brain|brain[ _-]?stem|ventricles?|cortex|cerebellum|skull|"
    r"tissue|anterior|posterior|head|body|tail|hippocamp\w*|amygdala|thalamus|putamen|caudate|pallidum|accumbens|healthy|"
    r"normal|background|air|spinal[ _-]?cord|eyes?|vessels?)(?:[ _-](?:left|right|hippocampus|matter))?"
)
"""In the name of a label: no lesion."""
CONTRAST_WORDS = {
    "t1": "t1", "t1w": "t1", "mri": "t1", "t1n": "t1", "t1gd": "t1c", "t1ce": "t1c", "t1c": "t1c", "t1wc": "t1c",
    "t1cw": "t1c", "t2": "t2", "t2w": "t2", "flair": "flair", "t2f": "flair", "t2flair": "flair", "pd": "pd",
    "dwi": "dwi", "adc": "adc",
}  # fmt: skip


@dataclass(frozen=True)
class _DataSet:
    """What dataset.json says; empty where there is none."""

    channels: Mapping[int, str]
    labels: Mapping[int, str]

    @property
    def lesion(self) -> tuple[int, ...]:
        """All labels but the background, those that are called ignore, and those called after healthy tissue."""
        return tuple(v for v in sorted(self.labels) if v != 0 and v not in self.ignored and v not in self.tissue)

    @property
    def tissue(self) -> tuple[int, ...]:
        """What is called after healthy tissue."""
        return tuple(
            v for v, name in sorted(self.labels.items()) if v != 0 and _TISSUE.fullmatch(name.strip().casefold())
        )

    @property
    def words(self) -> str:
        """What each label is taken for."""
        kinds = (("lesion", self.lesion), ("neither (ignored)", self.ignored), ("healthy tissue", self.tissue))
        told = [f"{kind}: {', '.join(f'{v} {self.labels[v]}' for v in values)}" for kind, values in kinds if values]
        return f"Labels of dataset.json as {'; as '.join(told)}. --lesion-labels and --ignore-labels decide otherwise."

    @property
    def ignored(self) -> tuple[int, ...]:
        """What is called ignore."""
        return tuple(v for v, name in sorted(self.labels.items()) if name.casefold() in ("ignore", "ignored"))


def fits_cases(folders: Sequence[str]) -> bool:
    """Whether there are folders of images as nnU-Net and MSD have them."""
    return any(folder in IMAGES for folder in folders)


def read_cases(root: Path, choices: Choices = NOTHING) -> Cohort:
    """imagesTr/CASE_0000.nii.gz (nnU-Net: a file per channel) or imagesTr/CASE.nii.gz (MSD: 4-D), labelsTr/CASE.nii.gz.

    Contrasts and labels have their names from dataset.json; without it channels are called channel0 and so on, and a
    label map must be declared. A case with labels is a patient; one without is of unknown health.
    """
    seen = look_under(root, follow_symlinks=choices.follow_symlinks)
    files = tuple(f for f in seen.files if f.name.lower().endswith(SCAN_SUFFIXES))
    notes = list(seen.notes)
    images = [f for f in files if f.parent.name in IMAGES]
    masks = {stem(f): f for f in files if f.parent.name in LABELS}
    used = {*images, *masks.values()}
    others = [f for f in (*seen.files, *seen.closed) if f not in used]
    notes += [f"{f.relative_to(root)} lies in no folder of images or labels and was left out."
              for f in others if f in files]  # fmt: skip
    refuse_twins(files, used)
    if not images:
        raise BadDataset("E-CASES-EMPTY", root, f"holds no scan in {' or '.join(IMAGES)}.", "Check the folder.")
    told = _dataset(root, images[0].parent.parent, notes)
    _refuse_repeated_cases(root, files)
    cases = _scans_of_cases(images, masks, told)
    if not told.channels and any(volumes for _, volumes in cases.values()):
        names = next(list(volumes) for _, volumes in cases.values() if volumes)
        notes.append(
            f"The volumes of the 4-D scans are taken as {', '.join(n.upper() for n in names)}: no dataset.json."
        )
    if told.lesion:
        notes.append(told.words)
    left = sorted(set(masks) - set(cases))
    notes += [f"labels {name} have no image of that name and were left out." for name in left]
    strange = [*(masks[name] for name in left), *(f for f in others if _looks_like_labels(root, f))]
    doubts, orphans = _whose(root, strange, list(cases))
    if orphans:
        choices = replace(choices, healthy_unless_masked=False)
        named = ", ".join(orphans[:3]) + (" ..." if len(orphans) > 3 else "")
        notes.append(
            f"{named} look like lesion masks, of which case is not clear, so nobody is healthy for want of labels. "
            "Name them as the images are called, or take them away."
        )
    subjects = [_case(case, scans, volumes, masks.get(case), doubts.get(case, []), told, choices)
                for case, (scans, volumes) in sorted(cases.items())]  # fmt: skip
    if told.labels and not told.lesion and not choices.lesion_labels:
        notes.append("dataset.json names no label of a lesion, so the labels are no lesion masks and are not used.")
    notes += notes_on_health([(s.subject_id, s.healthy, s.health_from) for s in subjects], "a table")
    return Cohort(root.resolve().name or "cases", tuple(subjects), notes=tuple(notes))


def _scans_of_cases(
    images: Sequence[Path], masks: Mapping[str, Path], told: _DataSet
) -> dict[str, tuple[dict[str, Path], dict[str, int]]]:
    """By case: the file of each contrast, and which of its volumes where a file holds several."""
    cases: dict[str, tuple[dict[str, Path], dict[str, int]]] = {}
    channelled = not any(stem(f) in masks for f in images) and any(
        ((m := CHANNEL.match(stem(f))) and m["channel"] != "0000") or (m and m["case"] in masks) for f in images
    )
    for file in images:
        match = CHANNEL.match(stem(file)) if channelled else None
        case, channel = (match["case"], int(match["channel"])) if match else (stem(file), 0)
        scans, volumes = cases.setdefault(case, ({}, {}))
        if match:
            scans[_contrast(told, channel)] = file
            continue
        n = _volumes_of(file)
        names = [_contrast(told, i) for i in range(n)]
        if not told.channels and n == len(_DECATHLON_BRAINS) and case.upper().startswith("BRATS"):
            names = list(_DECATHLON_BRAINS)
        for index, name in enumerate(names):
            scans[name] = file
            if n > 1:
                volumes[name] = index
    return cases


def _looks_like_labels(root: Path, file: Path) -> bool:
    """Whether a file that is neither image nor label by its place is called like a mask, or lies among such."""
    if file.parent.name in IMAGES:
        return False
    names = (stem(file), file.parent.name if file.parent != root else "")
    return any(LOOSE_MASK_WORDS.search(without_accents(name)) for name in names)


def _whose(root: Path, files: Sequence[Path], cases: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Masks of another name or place by the case whose name stands in theirs, and those that are nobody's."""
    doubts: dict[str, list[str]] = {}
    orphans: list[str] = []
    for file in files:
        place, name = file.relative_to(root).as_posix(), stem(file)
        fitting = [c for c in cases if re.search(rf"(?<![A-Za-z0-9]){re.escape(c)}(?![A-Za-z0-9])", name)]
        if fitting:
            doubts.setdefault(max(fitting, key=len), []).append(place)
        else:
            orphans.append(place)
    return doubts, orphans


def _case(
    name: str,
    scans: Mapping[str, Path],
    volumes: Mapping[str, int],
    mask: Path | None,
    unused: Sequence[str],
    told: _DataSet,
    choices: Choices,
) -> Subject:
    if told.labels and not told.lesion and not choices.lesion_labels:
        mask = None
    health = health_of({}, "dataset.json", choices, mask="" if mask is None else mask.name, unused=unused)
    decathlon = not told.labels and name.upper().startswith("BRATS") and volumes
    lesion = told.lesion or ((1, 2, 3) if decathlon else None)
    return Subject(
        name, scans, lesion_mask=mask, healthy=health.healthy, health_from=health.word, volumes=volumes,
        lesion_labels=lesion if mask is not None else None, ignore_labels=told.ignored if mask is not None else (),
        labels_complete=mask is not None and bool(lesion) and not told.tissue,
    )  # fmt: skip


def _refuse_repeated_cases(root: Path, files: Sequence[Path]) -> None:
    """BadDataset when a case stands in two folders of images or of labels: the later would replace the earlier."""
    for folders in (IMAGES, LABELS):
        homes: dict[str, Path] = {}
        for file in files:
            if file.parent.name in folders and homes.setdefault(stem(file), file.parent) != file.parent:
                first = homes[stem(file)].relative_to(root)
                raise BadDataset(
                    "E-CASES-TWICE", root, f"{stem(file)} stands in {first} and in {file.parent.relative_to(root)}.",
                    "Rename one, or join the folders in a cohort.toml, each with a prefix.",
                )  # fmt: skip


def _contrast(told: _DataSet, channel: int) -> str:
    name = told.channels.get(channel, f"channel{channel}")
    return CONTRAST_WORDS.get(re.sub(r"[^a-z0-9]", "", name.casefold()), name)


def _dataset(root: Path, beside: Path, notes: list[str]) -> _DataSet:
    path = next((p for p in (beside / "dataset.json", root / "dataset.json") if p.is_file()), None)
    if path is None:
        notes.append("There is no dataset.json; what channels and labels mean is not known.")
        return _DataSet({}, {})
    try:
        told: Any = json.loads(path.read_text(encoding="utf-8-sig"))
        channels = told.get("channel_names") or told.get("modality") or {}
        channels = dict(enumerate(channels)) if isinstance(channels, list) else channels
        return _DataSet({int(k): str(v) for k, v in channels.items()}, _labels(told.get("labels") or {}))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise BadDataset("E-CASES-JSON", path, f"cannot be read ({error}).", "Repair it or take it away.") from None


def _labels(told: Mapping[str, Any]) -> dict[int, str]:
    """Version 1 maps values to names, version 2 names to values or lists of them."""
    found: dict[int, str] = {}
    for key, value in told.items():
        if str(key).lstrip("-").isdecimal():
            found[int(key)] = str(value)
            continue
        for one in value if isinstance(value, list) else [value]:
            found.setdefault(int(one), str(key))
    return found


def _volumes_of(file: Path) -> int:
    from data.nifti import volumes_of

    return volumes_of(file)

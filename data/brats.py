"""BraTS, tumours in four contrasts, stripped, 1 mm: the folder names of 2017 to 2024, and UPENN-GBM, which is alike."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from data.choices import NOTHING, Choices
from data.cohort import Cohort, Subject
from data.folders import BadDataset, refuse_twins, scans_under, stem

OLD = re.compile(
    r"^(?P<id>(?P<person>bra?ts(?:1[2-9]|20|201\d|20[2-9]\d)_\w*?\d+(?:_1)?))_(?P<kind>flair|t1|t1ce|t2|seg)$", re.I
)
NEW = re.compile(r"^(?P<id>(?P<person>BraTS-(?P<task>[A-Za-z]+)-\d+)-\d+)-(?P<kind>t2f|t1n|t1c|t2w|seg)$", re.I)
RADIOTHERAPY = re.compile(r"^(?P<id>(?P<person>BraTS-(?P<task>MEN-RT)-\d+)-\d+)_(?P<kind>t1c|gtv)$", re.I)
UPENN = re.compile(
    r"^(?P<id>(?P<person>UPENN-GBM-\d+)_\d+)_(?P<kind>flair|t1|t1gd|t2|segm|automated_approx_segm)$", re.I
)
NAMES = (OLD, NEW, RADIOTHERAPY, UPENN)
CITATION = (
    "Menze et al. 2015, doi:10.1109/TMI.2014.2377694; Bakas et al. 2017, doi:10.1038/sdata.2017.117; "
    "Baid et al. 2021, arXiv:2107.02314."
)
_CONTRASTS = {"t1": "t1", "t1n": "t1", "t1ce": "t1c", "t1c": "t1c", "t1gd": "t1c", "t2": "t2", "t2w": "t2",
              "flair": "flair", "t2f": "flair"}  # fmt: skip


@dataclass(frozen=True)
class Labels:
    """What the values of a generation's segmentations mean, and which are lesion and which neither."""

    meaning: Mapping[int, str]
    lesion: tuple[int, ...]
    ignored: tuple[int, ...] = ()


_CORES = {1: "necrotic core", 2: "oedema"}
GENERATIONS: Mapping[str, Labels] = MappingProxyType(
    {
        "2012 to 2016": Labels({**_CORES, 3: "non-enhancing core", 4: "enhancing tumour"}, (1, 2, 3, 4)),
        "2017 to 2021": Labels({1: "necrotic and non-enhancing core", 2: "oedema", 4: "enhancing tumour"}, (1, 2, 4)),
        "GLI": Labels({**_CORES, 3: "enhancing tumour", 4: "resection cavity (2024)"}, (1, 2, 3), (4,)),
        "MET": Labels({**_CORES, 3: "enhancing tumour", 4: "resection cavity"}, (1, 2, 3), (4,)),
        "MEN": Labels({1: "non-enhancing tumour", 2: "oedema", 3: "enhancing tumour"}, (1, 2, 3)),
        "SSA": Labels({**_CORES, 3: "enhancing tumour"}, (1, 2, 3)),
        "PED": Labels(
            {1: "enhancing tumour", 2: "non-enhancing tumour", 3: "cystic component", 4: "oedema"}, (1, 2, 3, 4)
        ),
        "MEN-RT": Labels({1: "gross tumour volume"}, (1,)),
    }
)
"""Of every challenge: the values of its segmentations. A value that is not here is a question, never tissue."""


def read_brats(root: Path, choices: Choices = NOTHING) -> Cohort:
    """BraTS20_Training_001_flair, BraTS2021_00000_flair or BraTS-GLI-00000-000-t2f, with _seg, in any folders.

    Contrasts are named t1, t1c, t2, flair. Lesion is the whole tumour, with oedema and without resection cavities,
    which are ignored; see GENERATIONS. The scans are stripped, so there is no brain mask. All subjects are patients.
    A patient's later time points are left out with a note. A folder that is called like a file counts as one.
    """
    files, left_out = scans_under(root, follow_symlinks=choices.follow_symlinks)
    notes = list(left_out)
    found: dict[str, tuple[str, str, dict[str, Path]]] = {}
    used: list[Path] = []
    for file in files:
        match = match_name(file)
        if match is None:
            notes.append(f"{file.relative_to(root)} has no BraTS name and was left out.")
            continue
        used.append(file)
        task = (match.groupdict().get("task") or "").upper()
        kinds = found.setdefault(match["id"], (match["person"], task, {}))[2]
        kind = _CONTRASTS.get(match["kind"].lower(), "seg")
        if kind in kinds:
            notes.append(f"{file.relative_to(root)} is a second {kind} of {match['id']} and was left out.")
        if kind not in kinds or match["kind"].lower() == "segm":
            kinds[kind] = file
    refuse_twins(files, set(used))
    subjects: dict[str, Subject] = {}
    for name, (person, task, kinds) in sorted(found.items()):
        scans = {kind: file for kind, file in kinds.items() if kind != "seg"}
        if not scans or person in subjects:
            notes.append(f"{name}: " + ("no scan" if not scans else f"a later time point of {person}") + "; left out.")
            continue
        labels = _labels(name, task)
        masked = "seg" in kinds
        subjects[person] = Subject(
            name, scans, lesion_mask=kinds.get("seg"), healthy=False,
            lesion_labels=labels.lesion if masked else None, ignore_labels=labels.ignored if masked else (),
            labels_complete=masked, health_from="BraTS holds patients",
        )  # fmt: skip
    if not subjects:
        raise BadDataset("E-BRATS-EMPTY", root, "holds no BraTS scan.", "Names look like BraTS2021_00000_flair.nii.gz.")
    ignored = sorted({label for s in subjects.values() for label in s.ignore_labels})
    if ignored:
        notes.append(
            f"Label {', '.join(map(str, ignored))} (resection cavity) is ignored: neither lesion nor healthy tissue. "
            "--lesion-labels and --ignore-labels decide otherwise."
        )
    return Cohort("brats", tuple(subjects.values()), CITATION, tuple(notes))


def match_name(file: Path) -> re.Match[str] | None:
    """What a file's name says, or that of a folder that is called like a file."""
    for name in (_name(file), stem(file.parent)):
        for pattern in NAMES:
            if match := pattern.match(name):
                return match
    return None


def _labels(name: str, task: str) -> Labels:
    if task:
        return GENERATIONS.get(task, GENERATIONS["SSA"])
    year = re.match(r"bra?ts(?:20)?(\d\d)", name, re.I)
    return GENERATIONS["2012 to 2016" if year and int(year[1]) <= 16 else "2017 to 2021"]


def _name(file: Path) -> str:
    """The file's stem; the one mask of 2020 that kept its hospital name (W39_1998.09.19_Segm) gets its case's."""
    name = stem(file)
    if UPENN.match(name):
        return name
    return f"{file.parent.name}_seg" if name.lower().endswith("_segm") else name

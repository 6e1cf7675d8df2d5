"""BraTS, gliomas in four contrasts, stripped, 1 mm: the folder names of 2018 to 2023."""

import re
from pathlib import Path

from data.cohort import Cohort, Subject
from data.folders import BadDataset, scans_under, stem

OLD = re.compile(r"^(?P<id>(?P<person>bra?ts(?:18|19|20|2021)_\w*?\d+(?:_1)?))_(?P<kind>flair|t1|t1ce|t2|seg)$", re.I)
NEW = re.compile(r"^(?P<id>(?P<person>BraTS-[A-Za-z]+-\d+)-\d+)-(?P<kind>t2f|t1n|t1c|t2w|seg)$")
CITATION = (
    "Menze et al. 2015, doi:10.1109/TMI.2014.2377694; Bakas et al. 2017, doi:10.1038/sdata.2017.117; "
    "Baid et al. 2021, arXiv:2107.02314."
)
_CONTRASTS = {"t1": "t1", "t1n": "t1", "t1ce": "t1c", "t1c": "t1c", "t2": "t2", "t2w": "t2", "flair": "flair",
              "t2f": "flair"}  # fmt: skip
_OLD_LABELS = (1, 2, 4)
_NEW_LABELS = (1, 2, 3)


def read_brats(root: Path, *, follow_symlinks: bool = False) -> Cohort:
    """BraTS20_Training_001_flair, BraTS2021_00000_flair or BraTS-GLI-00000-000-t2f, with _seg, in any folders.

    Contrasts are named t1, t1c, t2, flair. Lesion is the whole tumour: labels 1, 2, 4, from 2023 on 1, 2, 3.
    The scans are stripped, so there is no brain mask. A patient's later time points are left out with a note.
    """
    files, left_out = scans_under(root, follow_symlinks=follow_symlinks)
    notes = list(left_out)
    found: dict[str, tuple[str, dict[str, Path]]] = {}
    for file in files:
        match = OLD.match(_name(file)) or NEW.match(_name(file))
        if match is None:
            notes.append(f"{file.relative_to(root)} has no BraTS name and was left out.")
            continue
        kinds = found.setdefault(match["id"], (match["person"], {}))[1]
        kind = _CONTRASTS.get(match["kind"].lower(), "seg")
        if kind in kinds:
            notes.append(f"{file.relative_to(root)} is a second {kind} of {match['id']} and was left out.")
        kinds.setdefault(kind, file)
    subjects: dict[str, Subject] = {}
    for name, (person, kinds) in sorted(found.items()):
        scans = {kind: file for kind, file in kinds.items() if kind != "seg"}
        if not scans or person in subjects:
            notes.append(f"{name}: " + ("no scan" if not scans else f"a later time point of {person}") + "; left out.")
            continue
        labels = _NEW_LABELS if name.startswith("BraTS-") else _OLD_LABELS
        subjects[person] = Subject(
            name, scans, lesion_mask=kinds.get("seg"), healthy=False, lesion_labels=labels if "seg" in kinds else None
        )
    if not subjects:
        raise BadDataset("E-BRATS-EMPTY", root, "holds no BraTS scan.", "Names look like BraTS2021_00000_flair.nii.gz.")
    return Cohort("brats", tuple(subjects.values()), CITATION, tuple(notes))


def _name(file: Path) -> str:
    """The file's stem; the one mask of 2020 that kept its hospital name (W39_1998.09.19_Segm) gets its case's."""
    name = stem(file)
    return f"{file.parent.name}_seg" if name.lower().endswith("_segm") else name

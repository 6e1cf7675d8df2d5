"""What the names of a BIDS tree say: whose a file is, whether it is a scan, a mask of a lesion or of something else.

Words are looked for in lower case and without accents, as people of several languages and tools write them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.cells import without_accents
from data.folders import stem
from data.health_words import MASK_WORDS

SUFFIXES = {"T1w": "t1", "T2w": "t2", "FLAIR": "flair", "PDw": "pd", "T2starw": "t2star"}
"""Suffixes of scans that are read, and their contrasts."""
NOT_DATA = ("sourcedata", "code", "stimuli", "phenotype", "tmp")
"""Folders of a data set that hold no data of it."""
ELSEWHERE = ("func", "fmap", "perf", "meg", "eeg", "ieeg", "beh", "pet", "mrs", "nirs", "motion", "micr")
"""Folders of other scans: a mask there is one of them, unless it is called after a lesion."""
_MASK_SUFFIXES = ("mask", "roi", "msk", "seg", "segm", "segmentation", "label", "labels", "dseg", "probseg", "voi")
LESION = re.compile(
    r"lesion|lasion|laesion|lesao|\b[br]?m?p?les\b|\bles\d*\b|msk|stroke|infar[ck]t|ictus|isch(?:a?e|a)m|penumbra|"
    r"tumou?r|tumeur|gliom|glioblast|\bgbm\b|metast|mets\b|mening(?:i|e)o|\bwmhs?\b|\bwmls?\b|wmh(?!free|fill)|"
    r"hyperint|hypoint|\broi\b|o?edema|odem|ha?emorr?h?ag|hamorrhag|ha?ematom|hamatom|blutung|bleed|microbleed|"
    r"\bcmbs?\b|lacun|plaque|anomal|abnormal|patholog|\bfcd\b|dysplas|\btubers?\b|cavit|resect|annotation|delineation|"
    r"\bavms?\b|aneurysm|cavernom|angiom|contus|\bcysts?\b|zyste|\bkyste|abscess|demyelin|blackhole|\bgtv\d*\b|"
    r"\bctv\d*\b|necro|whitematterchange|encephalomalac|heterotop|\bich\b|\bsah\b|\bsdh\b|\bivh\b|epileptogenic|"
    r"\bsoz\b|enhancing"
)
"""In the name of a file: it is the mask of a lesion."""
_BRAIN = re.compile(r"\bbrain\b|\bbrainmask\b|dlmuse|skullstrip|\bbet\b|synthstrip|\bhdbet\b|\brobex\b")
_TISSUE = re.compile(
    r"\b(?:left|right|lh|rh)?(?:c?gm|d?gm|s?gm|wm|na[wg]m|csf|cord|sc|seg-manual|discs?|eyes?|skull|scalp|head|face|"
    r"bold|fast|nonzero|deface\w*|ribbon|cortex|cortical|subcortical|gr[ae]y|white|gr[ae]ymatter|whitematter|brainstem|"
    r"hippo?\w*|thalam\w*|hypothalam\w*|amygdal\w*|putamen|caudate|pallid\w*|accumbens|striatum|insula|claustrum|"
    r"fornix|callosum|cc|midbrain|pons|medulla|nigra|nuclei|nucleus|basalganglia|bg|lobes?|frontal|temporal|parietal|"
    r"occipital|cingulate|hemi(?:sphere)?s?|ventric\w*|cerebell\w*|cerebr\w*|choroid\w*|vessels?|arter\w*|veins?|sinus|"
    r"pituitary|tissues?|spinalcord|vertebrae?|nodif\w*|b0|dwi|pve\w*|fov|foreground|background|ss|mgdm|air|coverage|"
    r"valid|slab|qc|icv|tiv|crop\w*)\b|aseg|aparc|synthseg|atlas|parc(?:ellation)?\b"
)
_REMOVED = re.compile(
    r"free|fill|inpaint|remov|mask(?:ed|out)|corrected|repaired|less\b|healthy|preproc|without|no(?:les|wmh)"
)
"""In the desc of a scan that has a lesion's name: the lesion was taken out."""
_FILLED = re.compile(r"fill|inpaint|removed|repaired")
"""Beside a lesion's name: a scan from which it was taken out."""
_OTHER_THINGS = re.compile(
    r"^(?:xfm|warp|regressors|bold|boldref|sbref|dwi|adc|fa|md|rd|ad|t[12]map|t2starmap|r[12]map|mtr\w*|mtsat|megre|"
    r"mese|mp2rage|unit1|mprage|inplane\w*|angio|swi|asl|cbf|m0scan|pet|defacemask|thickness|curv|sulc|area|volume|"
    r"jacobian\w*|bias\w*|field\w*|phase\w*|magnitude\w*|epi|ct|t[12]w|flair|pdw|t2starw|events|channels|scans)$"
)
"""The last word of a name: a scan or a map, plainly no mask."""
_TISSUE_PIPELINES = re.compile(
    r"prep\b|prep-|freesurfer|fastsurfer|fast\b|\bspm|cat12|synthseg|brainsuite|sct|deepmriprep|qsi"
)
_OF_SEVERAL = re.compile(r"^(?:sub|ses)-")
_MANUAL = re.compile(
    r"label|manual|segment|annot|mask|\brois?\b|rater|expert|truth|drawn|trac(?:ed|ing)|delineat|outline"
)
"""In the name of a folder: what lies there was drawn, of what is not clear."""
_MASKS = re.compile(
    r"^(?:\w+ )?(?:masks?|masken|masques?|maschere|mascaras?|rois?|labels?|ground ?truth|gt|annotations?|manual)$"
)
"""A folder of this name, and of no tissue, holds masks whatever they are called."""


def plain_id(name: str) -> str:
    """An id without sub-, separators, leading zeros and case: sub-P001, P_001 and p001 are one."""
    plain = re.sub(r"[^a-z0-9]", "", re.sub(r"^sub[-_]?", "", name.casefold()))
    return re.sub(r"(?<!\d)0+(?=\d)", "", plain)


def entities_of(name: str) -> tuple[dict[str, str], list[str]]:
    """Entities of a file's name, and the words behind them: T1w, lesion-manual."""
    entities: dict[str, str] = {}
    rest: list[str] = []
    contrasts = {suffix.casefold() for suffix in SUFFIXES}
    for part in name.split("_"):
        key, dash, value = part.partition("-")
        if dash and not rest and key.casefold() not in ("lesion", "seg", *contrasts):
            entities.setdefault(key.casefold(), value)
        else:
            rest.append(part)
    return entities, rest


def owner_of(root: Path, file: Path, entities: Mapping[str, str], ids: Mapping[str, str]) -> str | None:
    """Whose file it is: by its sub entity, by its folder, or by an id that stands in its path in another spelling.

    `ids`: subjects with scans, by plain id.
    """
    if entities.get("sub"):
        name = f"sub-{entities['sub']}"
        return ids.get(plain_id(name), name)
    parts = file.relative_to(root).parts[:-1]
    folder = next((part for part in reversed(parts) if part.casefold().startswith("sub-")), "")
    if folder:
        return ids.get(plain_id(folder), folder)
    words = re.split(r"[^A-Za-z0-9]+", f"{file.parent.name} {stem(file)}")
    return next((ids[plain_id(word)] for word in words if word and plain_id(word) in ids), None)


def folders_of(root: Path, file: Path) -> list[str]:
    """The folders on the way to a file in lower case, without those that are called after people and sessions."""
    parts = [without_accents(part) for part in file.relative_to(root).parts[:-1]]
    return [part for part in parts if not _OF_SEVERAL.match(part)]


def not_data(root: Path, file: Path) -> str:
    """The folder on the way to a file that holds no data of a data set, such as sourcedata."""
    return next((part for part in file.relative_to(root).parts[:-1] if part.casefold() in NOT_DATA), "")


def lesion_named(entities: Mapping[str, str], rest: Sequence[str]) -> bool:
    """Whether the words of a name, its label or desc are those of a lesion."""
    told = " ".join([*rest, entities.get("label", ""), entities.get("desc", ""), entities.get("mask", "")])
    return LESION.search(without_accents(told)) is not None


def names_of_mask(entities: Mapping[str, str], rest: Sequence[str]) -> list[str]:
    """By which words a mask can be chosen: its label, its desc, its last word, all words behind the entities."""
    values = [entities.get(key, "") for key in ("label", "desc", "mask")]
    keyed = [f"{key}-{entities[key]}" for key in ("label", "desc", "mask") if entities.get(key)]
    return [name.casefold() for name in (*values, *keyed, *rest, rest[-1] if rest else "", "_".join(rest)) if name]


def kind_of_mask(entities: Mapping[str, str], rest: Sequence[str], folders: Sequence[str], label: str) -> str | None:
    """lesion, brain, doubtful; None for what is no mask, or one of known tissue. `label`: the one asked for."""
    if label and label.casefold() in names_of_mask(entities, rest):
        return "lesion"
    values = [entities.get(key, "") for key in ("label", "desc", "mask")]
    told = without_accents(" ".join([*values, *(r for r in rest if r not in SUFFIXES)]))
    last = without_accents(rest[-1]) if rest else ""
    suffix = re.split(r"[^a-z]", last)[0]
    lesion = LESION.search(told) is not None
    if lesion and rest and rest[-1] in SUFFIXES and len(rest) == 1 and not entities.keys() & {"label", "mask"}:
        return None if _REMOVED.search(told) else "doubtful"  # desc-wmhfree_T1w is a scan
    masklike = suffix.endswith(_MASK_SUFFIXES) or lesion or bool(MASK_WORDS.search(told)) or "mask" in entities
    drawn = any(_holds_masks(folder) for folder in _below(folders))
    if not masklike:
        return "doubtful" if drawn and not _is_other_thing(told, last) else None
    if _BRAIN.search(told) and not lesion:
        return "brain" if suffix in ("mask", "brain") and "dwi" not in folders else None
    if lesion and _FILLED.search(told):
        return "doubtful" if suffix in _MASK_SUFFIXES else None
    if lesion:
        return "doubtful" if label else "lesion"
    if _TISSUE.search(told) or "dwi" in folders:
        return None
    if drawn:
        return "doubtful"
    bare = suffix in ("dseg", "probseg") and len(told.split()) == 1
    return None if bare and _is_pipeline(folders) else "doubtful"  # BIDS: a dseg without label is a map of tissues


def _holds_masks(folder: str) -> bool:
    """Whether a folder is called after lesions, or after masks that are none of tissue or the brain."""
    words = re.sub(r"[_-]", " ", folder)
    if LESION.search(words):
        return True
    return _MASKS.match(words) is not None and not (_TISSUE.search(words) or _BRAIN.search(words))


def _is_other_thing(told: str, last: str) -> bool:
    return _OTHER_THINGS.search(last) is not None or _TISSUE.search(told) is not None or bool(_BRAIN.search(told))


def _below(folders: Sequence[str]) -> Sequence[str]:
    """The folders below derivatives, where there are such."""
    return folders[folders.index("derivatives") + 1 :] if "derivatives" in folders else folders


def _is_pipeline(folders: Sequence[str]) -> bool:
    """Whether a file was made by a tool that segments tissue, and lies among no drawn masks."""
    below = [folder for folder in _below(folders) if folder != "anat"]
    if any(_TISSUE_PIPELINES.search(folder) for folder in below):
        return True
    return "derivatives" in folders and bool(below) and not any(_MANUAL.search(folder) for folder in below)


def looks_like_lesion(root: Path, file: Path, *, folder: bool = False) -> bool:
    """Whether a file that is nobody's looks like a lesion mask, by its name or its folders, never by an id.

    `folder`: it is a folder that was not looked into; what is called after masks counts then, too.
    """
    name = without_accents(re.sub(r"^sub-[^_]+_?", "", stem(file))).replace("_", " ")
    if folder:
        names = [*folders_of(root, file), name]
        return name.startswith("derivative") or any(LESION.search(one) or _MANUAL.search(one) for one in names)
    if LESION.search(name) and not _REMOVED.search(name):
        return _TISSUE.search(name) is None or "lesion" in name
    if not_data(root, file) or _is_other_thing(name, name.split(" ")[-1]):
        return False
    folders = folders_of(root, file)
    return any(map(_holds_masks, folders)) and not any(_TISSUE.search(folder) for folder in folders)

"""Who is healthy, and on whose word: what tables and layouts say of a person, in the words that they use.

Nothing is guessed: who is not called healthy, and has no sign of illness either, is of unknown health.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.cells import number, plain_word, truth
from data.choices import Choices


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


GROUP_COLUMNS = _words(
    "group groups diagnosis diagnoses diag dx dxgroup diagnosisgroup diagnosticgroup clinicaldiagnosis "
    "participantgroup participanttype patientgroup subjectgroup subjecttype studygroup researchgroup clinicalgroup "
    "casecontrol status clinicalstatus diseasestatus healthstatus condition disease pathology population"
)
"""Columns that say what a person has, in lower case and without separators."""
_MORE_COLUMNS = re.compile(
    r"diagnos|histolog|^icd|(?:tumou?r|lesion|stroke|disease)(?:type|class)|a?etiolog|disorder|syndrome"
)
"""In the name of a column: it says what a person has, too."""
CONTROL_WORDS = _words(
    "control controls ctrl ctrls ctl hc hcs cn nc hv healthy healthycontrol healthycontrols controlhealthy normal "
    "normals normalcontrol normalcontrols cognitivelynormal cognitivelyunimpaired unimpaired nondemented "
    "typicallydeveloping neurotypical nodisease unaffected volunteer volunteers"
)
"""Values that mean a healthy person, in lower case and without separators."""
_AMBIGUOUS = _words(
    "td tdc nl con cont contr no none negative nil normalmri nolesion nopathology unclear unknown other missing na "
    "nan notavailable notapplicable pending excluded"
)
"""Values that mean different things to different people."""
_NEUTRAL = _words(
    "control controls healthy normal matched group subject subjects participant participants volunteer volunteers "
    "individual individuals person persons people adult adults child children age aged sex gender and the young older "
    "old elderly cohort sample comparison cognitively unimpaired typically developing"
)
"""Words that may stand beside "healthy" and "control" without changing what they say."""
ILL_WORDS = _words(
    "patient patients case cases pat pt ad mci emci lmci smc ftd ms rrms ppms spms cis pd als stroke ischemic "
    "ischaemic infarct hemorrhage haemorrhage tumor tumour glioma gbm hgg lgg glioblastoma meningioma metastasis "
    "epilepsy tle fcd tbi scz schizophrenia schz bipolar bd depression mdd adhd asd autism dementia demented "
    "converted alzheimer alzheimers parkinson huntington hd lesion ill sick diseased affected multiplesclerosis "
    "alzheimersdisease parkinsonsdisease"
)
"""Values that mean an ill person; in a column that is called otherwise they say what the column holds."""
ILLNESS_COLUMNS = _words(
    "stroke tumor tumour lesion lesions haslesion ms ad epilepsy patient ispatient case iscase ill disease dementia "
    "infarct glioma"
)
"""Columns of yes and no that say of a person that it is ill."""
SIGNS = re.compile(
    r"(?:lesion|tumou?r|infarct|stroke|wmh|plaque|h?a?emorrhage).*(?:vol|ml|mm3|cc|size|count|number|load|n$|side|site|loc)|"
    r"^(?:edss|nihss|mrs|updrs|whograde|tumou?rgrade|idh|mgmt)|diseaseduration|(?:age|years|time|days).*onset|"
    r"onset.*(?:age|years|time|days)|lesionload|^cdr"
)
"""In the name of a column, without separators: only who is ill has an entry other than 0 there."""
MASK_WORDS = re.compile(
    r"(?:^|[^a-z])(?:mask|masks|seg|segm|segs|segmentation|lesion|lesions|label|labels|ground_?truth|gt|roi|rois|"
    r"annotation|annotations|tumou?r|infarct|stroke|wmh|msk|abnormality|pathology|manual|truth|delineation)"
    r"(?:$|[^a-z])", re.IGNORECASE,
)  # fmt: skip
"""In the name of a column or a file: this holds where something is, not what it looks like."""
LOOSE_MASK_WORDS = re.compile(
    r"mask(?!ed)|seg|lesion|label|(?:^|[^a-z])les(?:$|[^a-z])|gtv|ctv|(?:^|[^a-z])rois?(?:$|[^a-z0-9])|truth|annot|rater|"
    r"expert|tumou?r|infarct|wmh|(?:^|[^a-z])gt(?:$|[^a-z])|delineat|manual", re.IGNORECASE,
)  # fmt: skip
"""In the name of a column: it holds masks, or says that there is one."""
_SAYS_MASK = re.compile(
    r"(?:^|[^a-z])(?:mask|lesions?|seg|segmentation|roi|gt|tumou?r|infarct)(?:$|[^a-z])", re.IGNORECASE
)
"""In the name of a column without scans: an entry says that there is one."""

_ILL_TEXT = re.compile(
    r"\b(?:strokes?|tia|infarct\w*|isch(?:a?e)mi\w*|ha?emorrhag\w*|ha?ematoma\w*|tumou?rs?|gliom\w*|glioblastom\w*|"
    r"meningiom\w*|metasta\w*|lesions?|sclerosis|epilep\w*|seizures?|dement\w*|alzheimer\w*|parkinson\w*|"
    r"schizophren\w*|encephalitis|hydrocephal\w*|aneurysms?|cavernom\w*|dysplasia|abscess\w*)\b", re.IGNORECASE,
)  # fmt: skip
_DENIED = re.compile(
    r"\b(?:no|not|non|nil|without|den(?:y|ies|ied)|negative|exclud\w*|free|family|familial|mother|father|parents?|"
    r"risk|screen\w*|normal)\b|:\s*(?:0|no)\b", re.IGNORECASE,
)  # fmt: skip
"""In free text that names an illness: the person need not have it."""

_UNKNOWN = "unknown: "


@dataclass(frozen=True)
class Health:
    """What is known of a person's health."""

    healthy: bool | None
    """None when nobody says."""
    word: str
    """Whose word it is, or why it is unknown."""


def health_text(healthy: bool | None, word: str) -> str:
    """What a record keeps of a person's health: on whose word, or why it is unknown."""
    return f"{_UNKNOWN}{word or 'nobody says'}" if healthy is None else word


def is_unknown(subject: Mapping[str, Any]) -> bool:
    """Whether the record of a subject says that nobody knows its health."""
    return str(subject.get("health") or "").startswith(_UNKNOWN)


def meaning(cell: str, levels: Mapping[str, str], controls: Collection[str], column: str = "") -> bool | None:
    """Whether an entry of a group or diagnosis column means a healthy person; None when it does not say.

    `levels`: what a sidecar declares of the column's values, which then decides alone. A number or a short ambiguous
    word says nothing by itself. `controls`: words of the user, as they are written.
    """
    if any(_same(cell, word) for word in controls if word.strip()):
        return True
    told = levels.get(cell) or cell
    words = plain_word(told)
    parts = set(re.findall(r"[a-z]+", told.casefold()))
    if not words or words.isdecimal() or "?" in told or words in _AMBIGUOUS:
        return None
    if told == cell and len(words) == 1:
        return None
    if words in CONTROL_WORDS or (parts <= _NEUTRAL and parts & {"control", "controls", "healthy"}):
        return None if plain_word(column) == "pathology" and words in ("normal", "normals") else True
    if parts & {"healthy"} and not parts & (ILL_WORDS | {"non", "not", "un", "converted"}):
        return None
    return False


def _same(cell: str, word: str) -> bool:
    """Equal as written, but for case and blanks; numbers by their value."""
    first, second = number(cell), number(word)
    if first is not None and second is not None:
        return first == second
    return cell.strip().casefold() == word.strip().casefold()


def group_columns(header: Sequence[str]) -> list[str]:
    """The columns of a table that say what a person has; a number behind the name is one more of the kind."""
    return [column for column in header if _is_group(plain_word(column).rstrip("0123456789"))]


def _is_group(name: str) -> bool:
    return name in GROUP_COLUMNS or (_MORE_COLUMNS.search(name) is not None and SIGNS.search(name) is None)


def is_sign(column: str, cell: str) -> bool:
    """Whether an entry of a column that is called otherwise means illness, or a mask that nobody uses."""
    word, name = plain_word(cell), plain_word(column)
    if not cell or truth(cell) is False or number(cell) == 0:
        return False
    return (
        word in ILL_WORDS
        or SIGNS.search(name) is not None
        or _SAYS_MASK.search(column) is not None
        or (name in ILLNESS_COLUMNS and truth(cell) is True)
        or (" " in cell.strip() and _ILL_TEXT.search(cell) is not None and _DENIED.search(cell) is None)
    )


def hidden_illness(row: Mapping[str, str], used: Collection[str]) -> list[str]:
    """Columns that are called otherwise, and whose entry for this person means illness."""
    return [column for column, cell in row.items() if column not in used and is_sign(column, cell)]


def note_on_column(column: str, cells: Sequence[str], where: str) -> str:
    """What is said of a column of another name that seems to hold groups, diagnoses or signs; nothing of others."""
    words = {plain_word(cell) for cell in cells if cell}
    telling = words & (CONTROL_WORDS | ILL_WORDS) - {"normal", "pt", "pd", "case", "ms"}
    signs = any(is_sign(column, cell) for cell in cells) or (words and SIGNS.search(plain_word(column)))
    answers = plain_word(column) in ILLNESS_COLUMNS and words and all(truth(cell) is not None for cell in cells if cell)
    if not (telling or signs or answers):
        return ""
    shown = ", ".join(sorted({cell for cell in cells if cell})[:4])
    return (
        f"Column {column!r} of {where} seems to say who is ill ({shown}) and was not used: call it group or diagnosis, "
        "or say it in a column healthy."
    )


def health_of(
    row: Mapping[str, str],
    source: str,
    choices: Choices,
    *,
    mask: str = "",
    unused: Sequence[str] = (),
    role: str | None = None,
    used: Collection[str] = (),
    levels: Mapping[str, Mapping[str, str]] | None = None,
) -> Health:
    """A person's health from a row of a table, its lesion mask, and files that look like one (`unused`).

    An explicit `healthy` outweighs all but a diagnosis; a diagnosis outweighs a missing mask; a role train or
    calibration is the user's word for those of whom nothing else is known. `used`: columns that mean something else.
    """
    groups = [(c, row[c], meaning(row[c], (levels or {}).get(c, {}), choices.controls, c))
              for c in group_columns(list(row)) if row[c] and c not in ("healthy", *used)]  # fmt: skip
    ill = next((f"{c} {cell!r} in {source}" for c, cell, healthy in groups if healthy is False), "")
    control = next((f"{c} {cell!r} in {source}" for c, cell, healthy in groups if healthy), "")
    unclear = next((f"{c} {cell!r} in {source} means nothing by itself" for c, cell, h in groups if h is None), "")
    numbers = [c for c, cell, healthy in groups if healthy and plain_word(cell).isdecimal()]
    stated = truth(row.get("healthy", "")) if row.get("healthy") else None
    sign = next(iter(hidden_illness(row, {"healthy", *used, *group_columns(list(row))})), "")
    other = f"column {sign!r} ({row[sign]!r}) of {source}" if sign else ""
    if stated is not None:
        if stated and ill:
            return Health(None, f"healthy {row['healthy']!r} and {ill} contradict one another")
        return Health(stated, f"healthy {row['healthy']!r} in {source}")
    if ill:
        return Health(False, ill)
    if control:
        against = mask or next(iter(unused), "") or other
        if against:
            return Health(None, f"{control}, but {against} speaks of a lesion or an illness")
        return Health(None, unclear) if unclear and numbers else Health(True, control)
    if mask:
        return Health(False, "its lesion mask")
    if unused:
        return Health(None, f"{unused[0]} looks like a lesion mask and is not used")
    if sign:
        return Health(None, f"{other} is not known as one of diagnoses")
    if role in ("train", "calibration"):
        return Health(True, f"role {role} in {source}")
    if unclear:
        return Health(None, unclear)
    if choices.healthy_unless_masked:
        return Health(True, "--healthy-unless-masked")
    return Health(None, "nobody says")


def notes_on_health(people: Sequence[tuple[str, bool | None, str]], where: str) -> list[str]:
    """One sentence per reason for which people are of unknown health, from (id, healthy, word)."""
    reasons: dict[str, list[str]] = {}
    for subject_id, healthy, word in people:
        if healthy is None:
            reasons.setdefault(word, []).append(subject_id)
    notes = []
    for word, ids in reasons.items():
        does = "is of unknown health and neither trains nor calibrates"
        if len(ids) > 1:
            does = "are of unknown health and neither train nor calibrate"
        named = ", ".join(ids[:5]) + (" ..." if len(ids) > 5 else "")
        notes.append(f"{len(ids)} of {len(people)} subjects {does} ({word}): {named}. {_remedy(word, where)}")
    return notes


def _remedy(word: str, where: str) -> str:
    """What makes a person's health known, by the reason for which it is not."""
    column = f"write true or false in a column healthy of {where}"
    if "contradict" in word or "but " in word:
        return f"Correct what is wrong, or {column} (a mask must then be empty)."
    if "means nothing by itself" in word:
        return (
            "Say what the entry means: Levels in participants.json, --controls WORD for a word that means healthy, or "
            f"{column}."
        )
    if "looks like a lesion mask" in word:
        return (
            "Use the mask (as NIfTI; --label, --session, --space; in a table, call its column lesion_mask), take it "
            f"away when it is none, or {column}."
        )
    if "not known as one of diagnoses" in word:
        return f"If the entry means no illness, {column}; if it is a diagnosis, call the column diagnosis."
    return (
        f"Say who is healthy: {column}, or a group such as control or patient, or --controls WORD for a word that "
        "means healthy, or --healthy-unless-masked for all of whom nothing else is known."
    )


def health_summary(people: Sequence[tuple[bool | None, str]]) -> str:
    """How many are healthy, ill and unknown, and on whose word, in a sentence; from (healthy, word)."""
    parts = []
    for value, called in ((True, "healthy"), (False, "ill"), (None, "of unknown health")):
        words = [word for healthy, word in people if healthy is value]
        if words:
            told = sorted({word: words.count(word) for word in words}.items(), key=lambda one: (-one[1], one[0]))
            named = "; ".join(f"{word} ({n})" for word, n in told[:4] if word)
            more = f"; and {len(told) - 4} more" if len(told) > 4 else ""
            parts.append(f"{len(words)} {called}" + (f": {named}{more}" if named else ""))
    return ". ".join(parts) + "." if parts else ""


def grouped(notes: Sequence[tuple[str, str]], most: int = 20) -> list[str]:
    """Notes on subjects, from (id, note), one line a note with those whom it concerns; the frequent ones first."""
    whose: dict[str, list[str]] = {}
    for subject_id, note in notes:
        whose.setdefault(note, []).append(subject_id)
    lines = [
        f"{', '.join(ids[:3])}{f' and {len(ids) - 3} more' if len(ids) > 3 else ''}: {note}"
        for note, ids in sorted(whose.items(), key=lambda one: -len(one[1]))
    ]
    left = len(lines) - most
    if left <= 0:
        return lines
    return [*lines[:most], f"{left} more notes on subjects, in full: python cli.py check COHORT --json"]

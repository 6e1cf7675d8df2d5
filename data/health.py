"""Who is healthy, and on whose word: what tables and layouts say of a person, in the words that they use.

Nothing is guessed: who is not called healthy, and has no sign of illness either, is of unknown health.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data.cells import clean, number, plain_word, spaced, truth
from data.choices import Choices
from data.clauses import denies_illness, tells_of_illness, without_denials
from data.health_words import (
    ABOUT_DIAGNOSES,
    ABOUT_SCALES,
    CONTROL_WORDS,
    DENIES,
    GROUP_COLUMNS,
    HARMLESS_COLUMNS,
    HEALTH_COLUMNS,
    ILL_IN_COLUMNS,
    ILL_IN_GROUPS,
    ILL_WORDS,
    ILLNESS_COLUMNS,
    LOOSE_COLUMNS,
    MORE_GROUP_COLUMNS,
    NAMES_OF_GROUPS,
    NEUTRAL,
    NO_SIGNS,
    NOT_HARMLESS,
    OF_OTHERS,
    OF_TISSUE,
    OTHER_ONSETS,
    SAYS_MASK,
    SAYS_NONE,
    SAYS_NOTHING,
    SHORT_WORDS,
    SIGNS,
    TRIGGERS,
    UNSAID,
)

_UNKNOWN = "unknown: "
FITS_NOBODY = "fits the id of nobody"
"""In a doubt: the row of a table may be that of this person."""
_NEGATED_HEALTH = re.compile(
    r"\b(?:no|not|non|un|nicht|kein\w*|pas|sans) (?:a |an |the |real )?"
    r"(?:healthy|controls?|normal|gesund\w*|sain\w*|san[oa]s?)\b"
)
_NEGATED_ILLNESS = re.compile(
    r"^(?:no|none|without|never|not|nicht|kein\w*|ohne|aucun\w*|sans|sin|ningun\w*|nessun\w*)\b"
)
Reading = Literal["healthy", "ill", "other", "unsaid", "nothing"]
"""What an entry says: other is a word that is not known, unsaid a doubt, nothing is not about health."""


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
    word says nothing by itself, nor does an unknown name of a group. `controls`: words of the user, as written.
    """
    read = _read(cell, levels, controls, column)
    if read == "other":
        return None if plain_word(column).rstrip("0123456789") in NAMES_OF_GROUPS else False
    return {"healthy": True, "ill": False}.get(read)


def _read(cell: str, levels: Mapping[str, str], controls: Collection[str], column: str) -> Reading:
    """What an entry of a group or diagnosis column says; "other" is a word that is not known."""
    if any(_same(cell, word) for word in controls if word.strip()):
        return "healthy"
    told = levels.get(cell) or cell
    word = plain_word(told)
    if not word or word.isdecimal() or "?" in told or word in UNSAID or (told == cell and len(word) == 1):
        return "unsaid"
    if _is_control(word):
        return "unsaid" if plain_word(column) == "pathology" and word in ("normal", "normals") else "healthy"
    read = _read_text(told)
    if read == "unsaid" and told != cell and _is_control(plain_word(cell)) and _denies(told):
        return "healthy"
    return _in_loose_column(read) if plain_word(column).rstrip("0123456789") in LOOSE_COLUMNS else read


def _is_control(word: str) -> bool:
    """HC, HC1 and the like."""
    return word.rstrip("0123456789") in CONTROL_WORDS


def _in_loose_column(read: Reading) -> Reading:
    return "nothing" if read in ("other", "unsaid") else read


def _read_text(told: str) -> Reading:
    """What an entry of several words says, or one that is no word for a healthy person."""
    text = spaced(told)
    if _NEGATED_HEALTH.search(text):
        return "ill"
    kept = without_denials(told, ILL_IN_GROUPS)
    parts = set(re.findall(r"[a-z]+", kept))
    if (
        tells_of_illness(told, ILL_IN_GROUPS)
        or (parts & ILL_WORDS and not _denies(told))
        or plain_word(told) in ILL_WORDS
    ):
        return "ill"
    if parts & (TRIGGERS | {"normal", "normals"}) and parts <= NEUTRAL | TRIGGERS:
        return "healthy"
    if parts & TRIGGERS or _denies(told) or parts <= NEUTRAL or re.fullmatch(r"g ?\d|z ?\d\d\b.*", text):
        return "unsaid"
    return "other"


def _denies(told: str) -> bool:
    """Whether a text denies an illness, or begins with a denial: none known."""
    return denies_illness(told, ILL_IN_GROUPS) or _NEGATED_ILLNESS.match(spaced(told)) is not None


def _same(cell: str, word: str) -> bool:
    """Equal as written, but for case and blanks; numbers by their value."""
    first, second = number(cell), number(word)
    if first is not None and second is not None:
        return first == second
    return cell.strip().casefold() == word.strip().casefold()


def group_columns(header: Sequence[str]) -> list[str]:
    """The columns of a table that say what a person has; a number behind the name is one more of the kind."""
    return [column for column in header if _is_group(column)]


def _is_group(column: str) -> bool:
    name, words = plain_word(column).rstrip("0123456789"), spaced(column)
    if name in GROUP_COLUMNS:
        return True
    told = MORE_GROUP_COLUMNS.search(name) is not None and SIGNS.search(name) is None
    return told and ABOUT_DIAGNOSES.search(words) is None and OF_OTHERS.search(words) is None


def health_columns(header: Sequence[str]) -> list[str]:
    """The columns of yes and no, besides `healthy`, that say of a person that it is healthy."""
    return [c for c in header if c != "healthy" and plain_word(c).rstrip("0123456789") in HEALTH_COLUMNS]


def is_sign(column: str, cell: str) -> bool:
    """Whether an entry of a column that is called otherwise means illness, or a mask that nobody uses."""
    cell, words = clean(cell), spaced(column)
    if not cell or _is_harmless(words):
        return False
    if _tells(cell):
        return True
    if DENIES.search(words) and truth(cell) is not None and ILL_IN_COLUMNS.search(plain_word(column)):
        return _denied_is_false(words, cell)
    return not _says_none(cell) and _names_illness(column, words, cell)


def _denied_is_false(words: str, cell: str) -> bool:
    """no_lesion = 0 means that there is one; no_lesions may be their number."""
    if re.search(r"^no \w+s$", words) and number(cell) is not None:
        return number(cell) != 0
    return truth(cell) is False


def _tells(cell: str) -> bool:
    """Whether an entry means illness whatever its column is called."""
    word = plain_word(cell)
    return (word in ILL_WORDS and word not in NO_SIGNS) or tells_of_illness(cell)


def _names_illness(column: str, words: str, cell: str) -> bool:
    """Whether the name of a column makes an entry, which does not deny it, mean illness."""
    name = plain_word(column)
    if SAYS_NOTHING.search(words):
        return DENIES.search(words) is not None and number(cell) is not None and float(number(cell) or 0) > 1
    if name.rstrip("0123456789") in ILLNESS_COLUMNS and truth(cell) is True:
        return True
    if SAYS_MASK.search(words) and not OF_TISSUE.search(words):
        return True
    return _is_figure(name, words) or ILL_IN_COLUMNS.search(name) is not None


def _is_figure(name: str, words: str) -> bool:
    """Whether the name of a column is that of a scale, a date or a duration that only the ill have."""
    if SIGNS.search(name) is None or OTHER_ONSETS.search(name):
        return False
    return "diagnos" in name or "onset" in name or ABOUT_SCALES.search(words) is None


def _is_harmless(words: str) -> bool:
    """Whether a column names places, studies, people or devices, or is about relatives."""
    if OF_OTHERS.search(words):
        return True
    return bool(set(words.split()) & HARMLESS_COLUMNS) and NOT_HARMLESS.search(words) is None


def _says_none(cell: str) -> bool:
    """Whether an entry says that there is nothing."""
    return truth(cell) is False or number(cell) == 0 or SAYS_NONE.fullmatch(spaced(cell)) is not None or _denies(cell)


def hidden_illness(row: Mapping[str, str], used: Collection[str]) -> list[str]:
    """Columns that are called otherwise, and whose entry for this person means illness."""
    return [column for column, cell in row.items() if column not in used and is_sign(column, cell)]


def hear(known: dict[str, str], column: str, cell: str) -> None:
    """Add an entry of another visit or table to a person's row; one that differs stands beside the first one."""
    free = column
    while known.get(free) not in (None, "", cell):
        free += " 2"
    known[free] = cell


def note_on_column(column: str, cells: Sequence[str], where: str) -> str:
    """What is said of a column of another name that seems to hold groups, diagnoses or signs; nothing of others."""
    cells = [clean(cell) for cell in cells if clean(cell)]
    words = {plain_word(cell) for cell in cells}
    if not cells or _is_harmless(spaced(column)):
        return ""
    shown = ", ".join(sorted(set(cells))[:4])
    if health_columns([column]):
        return (
            f"Column {column!r} of {where} ({shown}) is taken as a word on health: yes as healthy, no as unknown. "
            "Better say it in a column healthy."
        )
    telling = words & (CONTROL_WORDS | ILL_WORDS) - SHORT_WORDS
    answers = plain_word(column) in ILLNESS_COLUMNS and all(truth(cell) is not None for cell in cells)
    if not (
        telling
        or answers
        or any(is_sign(column, cell) for cell in cells)
        or _is_figure(plain_word(column), spaced(column))
    ):
        return ""
    told = f"Column {column!r} of {where} seems to say who is ill ({shown}) and was not used: "
    if telling and words <= CONTROL_WORDS | ILL_WORDS:
        return told + "call it group or diagnosis, or say it in a column healthy."
    return told + "say in a column healthy (true or false) who is ill."


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
    doubt: str = "",
) -> Health:
    """A person's health from a row of a table, its lesion mask, and files that look like one (`unused`).

    An explicit `healthy` outweighs all but a diagnosis and a plain no elsewhere; a diagnosis outweighs a missing mask;
    a role train or calibration is the user's word for those of whom nothing else is known. `used`: columns that mean
    something else. `doubt`: why a row may be that of somebody else.
    """
    row = {column: clean(cell) for column, cell in row.items() if column not in used or column == "healthy"}
    told = _told(row, source, choices, levels or {})
    stated = truth(row["healthy"]) if row.get("healthy") else None
    if stated is not None:
        if stated and (told.ill or told.denied):
            return Health(None, f"healthy {row['healthy']!r} and {told.ill or told.denied} contradict one another")
        return Health(stated, f"healthy {row['healthy']!r} in {source}")
    if told.ill:
        return Health(False, told.ill)
    against = mask or next(iter(unused), "") or told.sign or told.denied or told.other
    if told.control:
        if against:
            return Health(None, f"{told.control}, but {against} speaks of a lesion or an illness")
        if doubt:
            return Health(None, f"{told.control}, but {doubt}")
        return Health(None, told.unclear) if told.unclear and told.number else Health(True, told.control)
    if mask:
        return Health(False, "its lesion mask")
    if unused:
        return Health(None, f"{unused[0]} looks like a lesion mask and is not used")
    if told.sign:
        known = "is not known as one of diagnoses" if told.sign_is_word else "speaks of an illness"
        return Health(None, f"{told.sign} {known}")
    unclear = told.denied or told.unclear or doubt
    if unclear:
        return Health(None, unclear)
    if role in ("train", "calibration"):
        return Health(True, f"role {role} in {source}")
    if choices.healthy_unless_masked:
        return Health(True, "--healthy-unless-masked")
    return Health(None, "nobody says")


@dataclass(frozen=True)
class _Told:
    """What the columns of a row say of a person, each in words; empty for nothing."""

    ill: str = ""
    control: str = ""
    number: bool = False
    """Whether the control is one by a number that the user declared."""
    other: str = ""
    """An entry of a group or diagnosis whose word is not known."""
    unclear: str = ""
    """An entry of a group or diagnosis that says nothing by itself."""
    denied: str = ""
    """A no where it is asked whether the person is healthy."""
    sign: str = ""
    sign_is_word: bool = False
    """Whether the sign is the name of an illness alone."""


def _told(row: Mapping[str, str], source: str, choices: Choices, levels: Mapping[str, Mapping[str, str]]) -> _Told:
    groups, asked = group_columns(list(row)), health_columns(list(row))
    found: dict[str, str] = {}
    number = False
    for column in (c for c in groups if row[c]):
        told = f"{column} {row[column]!r} in {source}"
        declared = levels.get(re.sub(r"(?: 2)+$", "", column), {})
        read = _read(row[column], declared, choices.controls, column)
        if read == "other" and meaning(row[column], declared, choices.controls, column) is False:
            found.setdefault("named", told)
        found.setdefault(read, told)
        number = number or (read == "healthy" and plain_word(row[column]).isdecimal())
    for column in (c for c in asked if row[c]):
        found.setdefault(_answer(column, row[column]), f"{column} {row[column]!r} in {source}")
    sign = next(iter(hidden_illness(row, {"healthy", *groups, *asked})), "")
    ill, healthy = found.get("ill", ""), found.get("healthy", "")
    unsaid = found.get("unsaid") or found.get("other", "")
    return _Told(
        ill=ill or ("" if healthy else found.get("named", "")),
        control=healthy,
        number=number,
        other=found.get("other", ""),
        unclear=f"{unsaid} means nothing by itself" if unsaid else "",
        denied=f"{found['denied']} says no" if "denied" in found else "",
        sign=f"column {sign!r} ({row[sign]!r}) of {source}" if sign else found.get("sign", ""),
        sign_is_word=bool(sign) and plain_word(row[sign]) in ILL_WORDS,
    )


def _answer(column: str, cell: str) -> str:
    """What an entry of a column says that asks whether a person is healthy."""
    answer = truth(cell)
    if answer is not None:
        return "healthy" if answer else "denied"
    if is_sign(column, cell):
        return "sign"
    if _is_control(plain_word(cell)):
        return "healthy"
    return "nothing" if plain_word(column) == "health" else "unsaid"


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
    if FITS_NOBODY in word:
        return "Write the ids in participants.tsv as the folders are called, or take the row away."
    if "contradict" in word or "but " in word:
        return f"Correct what is wrong, or {column} (a mask must then be empty)."
    if "means nothing by itself" in word:
        levels = "Levels in participants.json, " if where == "participants.tsv" else ""
        return f"Say what the entry means: {levels}--controls WORD for a word that means healthy, or {column}."
    if "looks like a lesion mask" in word:
        return (
            "Use the mask (as NIfTI; --label, --session, --space; in a table, call its column lesion_mask), take it "
            f"away when it is none, or {column}."
        )
    if "not known as one of diagnoses" in word:
        return f"If the entry means no illness, {column}; if it is a diagnosis, call the column diagnosis."
    if "speaks of an illness" in word or "says no" in word:
        return f"{column[0].upper()}{column[1:]}."
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

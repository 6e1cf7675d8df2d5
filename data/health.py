"""Who is healthy, and on whose word: what tables and layouts say of a person, in the words that they use.

Nothing is guessed: who is not called healthy, and has no sign of illness either, is of unknown health.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.cells import clean, plain_word, truth
from data.choices import Choices
from data.groups import group_columns, health_columns, is_control, meaning, read_entry
from data.health_words import ILL_WORDS
from data.signs import hidden_illness, is_sign

_UNKNOWN = "unknown: "
FITS_NOBODY = "fits the id of nobody"
"""In a doubt: the row of a table may be that of this person."""


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


def hear(known: dict[str, str], column: str, cell: str) -> None:
    """Add an entry of another visit or table to a person's row; one that differs stands beside the first one."""
    free = column
    while known.get(free) not in (None, "", cell):
        free += " 2"
    known[free] = cell


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
        read = read_entry(row[column], declared, choices.controls, column)
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
    if is_control(plain_word(cell)):
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

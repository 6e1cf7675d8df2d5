"""What an entry of a group or diagnosis column means: a healthy person, an ill one, or nothing by itself."""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Literal

from data.cells import number, plain_word, spaced
from data.clauses import denies_illness, tells_of_illness, without_denials
from data.health_words import (
    ABOUT_DIAGNOSES,
    CONTROL_WORDS,
    GROUP_COLUMNS,
    HEALTH_COLUMNS,
    ILL_IN_GROUPS,
    ILL_WORDS,
    LOOSE_COLUMNS,
    MORE_GROUP_COLUMNS,
    NAMES_OF_GROUPS,
    NEUTRAL,
    OF_OTHERS,
    SIGNS,
    TRIGGERS,
    UNSAID,
)

_NEGATED_HEALTH = re.compile(
    r"\b(?:no|not|non|un|nicht|kein\w*|pas|sans) (?:a |an |the |real )?"
    r"(?:healthy|controls?|normal|gesund\w*|sain\w*|san[oa]s?)\b"
)
_NEGATED_ILLNESS = re.compile(
    r"^(?:no|none|without|never|not|nicht|kein\w*|ohne|aucun\w*|sans|sin|ningun\w*|nessun\w*)\b"
)
Reading = Literal["healthy", "ill", "other", "unsaid", "nothing"]
"""What an entry says: other is a word that is not known, unsaid a doubt, nothing is not about health."""


def meaning(cell: str, levels: Mapping[str, str], controls: Collection[str], column: str = "") -> bool | None:
    """Whether an entry of a group or diagnosis column means a healthy person; None when it does not say.

    `levels`: what a sidecar declares of the column's values, which then decides alone. A number or a short ambiguous
    word says nothing by itself, nor does an unknown name of a group. `controls`: words of the user, as written.
    """
    read = read_entry(cell, levels, controls, column)
    if read == "other":
        return None if plain_word(column).rstrip("0123456789") in NAMES_OF_GROUPS else False
    return {"healthy": True, "ill": False}.get(read)


def read_entry(cell: str, levels: Mapping[str, str], controls: Collection[str], column: str) -> Reading:
    """What an entry of a group or diagnosis column says; "other" is a word that is not known."""
    if any(_same(cell, word) for word in controls if word.strip()):
        return "healthy"
    told = levels.get(cell) or cell
    word = plain_word(told)
    if not word or word.isdecimal() or "?" in told or word in UNSAID or (told == cell and len(word) == 1):
        return "unsaid"
    if is_control(word):
        return "unsaid" if plain_word(column) == "pathology" and word in ("normal", "normals") else "healthy"
    read = _read_text(told)
    if read == "unsaid" and told != cell and is_control(plain_word(cell)) and denies(told):
        return "healthy"
    return _in_loose_column(read) if plain_word(column).rstrip("0123456789") in LOOSE_COLUMNS else read


def is_control(word: str) -> bool:
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
        or (parts & ILL_WORDS and not denies(told))
        or plain_word(told) in ILL_WORDS
    ):
        return "ill"
    if parts & (TRIGGERS | {"normal", "normals"}) and parts <= NEUTRAL | TRIGGERS:
        return "healthy"
    if parts & TRIGGERS or denies(told) or parts <= NEUTRAL or re.fullmatch(r"g ?\d|z ?\d\d\b.*", text):
        return "unsaid"
    return "other"


def denies(told: str) -> bool:
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


@lru_cache(maxsize=1 << 12)
def _is_group(column: str) -> bool:
    name, words = plain_word(column).rstrip("0123456789"), spaced(column)
    if name in GROUP_COLUMNS:
        return True
    told = MORE_GROUP_COLUMNS.search(name) is not None and SIGNS.search(name) is None
    return told and ABOUT_DIAGNOSES.search(words) is None and OF_OTHERS.search(words) is None


def health_columns(header: Sequence[str]) -> list[str]:
    """The columns of yes and no, besides `healthy`, that say of a person that it is healthy."""
    return [c for c in header if c != "healthy" and plain_word(c).rstrip("0123456789") in HEALTH_COLUMNS]

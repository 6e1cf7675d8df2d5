"""Columns that are called otherwise and yet speak of an illness or a mask, by their name or by what they hold."""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Literal

from data.cells import clean, number, plain_word, spaced, truth
from data.clauses import tells_of_illness
from data.groups import denies, health_columns
from data.health_words import (
    ABOUT_SCALES,
    CONTROL_WORDS,
    DENIES,
    HARMLESS_COLUMNS,
    ILL_IN_COLUMNS,
    ILL_WORDS,
    ILLNESS_COLUMNS,
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
)


def is_sign(column: str, cell: str) -> bool:
    """Whether an entry of a column that is called otherwise means illness, or a mask that nobody uses."""
    cell, kind = clean(cell), _kind_of_column(column)
    if not cell or kind == "harmless":
        return False
    if _tells(cell):
        return True
    if kind == "denies":
        return _denied_is_false(spaced(column), cell) if truth(cell) is not None else (number(cell) or 0) > 1
    if kind == "asks":
        return truth(cell) is True
    return kind == "tells" and not _says_none(cell)


@lru_cache(maxsize=1 << 12)
def _kind_of_column(column: str) -> Literal["harmless", "denies", "asks", "tells", "nothing"]:
    """What a column's name makes of an entry: it tells of an illness or a mask unless it says none, asks whether there
    is one, denies one, says nothing, or is about what is never a sign."""
    words, name = spaced(column), plain_word(column)
    if _is_harmless(words):
        return "harmless"
    if DENIES.search(words) and ILL_IN_COLUMNS.search(name):
        return "denies"
    if SAYS_NOTHING.search(words):
        return "nothing"
    masks = SAYS_MASK.search(words) is not None and OF_TISSUE.search(words) is None
    if masks or _is_figure(name, words) or ILL_IN_COLUMNS.search(name):
        return "tells"
    asked = re.sub(r"^(?:has|had|is)|(?:status|present|presence|yn|flag|binary)$", "", name.rstrip("0123456789"))
    return "asks" if asked in ILLNESS_COLUMNS else "nothing"


def _denied_is_false(words: str, cell: str) -> bool:
    """no_lesion = 0 means that there is one; no_lesions may be their number."""
    if re.search(r"^no \w+s$", words) and number(cell) is not None:
        return number(cell) != 0
    return truth(cell) is False


@lru_cache(maxsize=1 << 16)
def _tells(cell: str) -> bool:
    """Whether an entry means illness whatever its column is called."""
    if number(cell) is not None:
        return False
    word = plain_word(cell)
    return (word in ILL_WORDS and word not in NO_SIGNS) or tells_of_illness(cell)


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
    if number(cell) is not None:
        return number(cell) == 0
    return truth(cell) is False or SAYS_NONE.fullmatch(spaced(cell)) is not None or denies(cell)


def hidden_illness(row: Mapping[str, str], used: Collection[str]) -> list[str]:
    """Columns that are called otherwise, and whose entry for this person means illness."""
    return [column for column, cell in row.items() if column not in used and is_sign(column, cell)]


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

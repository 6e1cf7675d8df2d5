"""What a cell of a table says: nothing, a number, true or false, a word."""

import math
import re
import unicodedata
from functools import lru_cache

_CODES = (
    "n/a na n.a. nan none null nil #n/a #na n/k <na> missing - -- --- . .. \u2013 \u2014 -9 -99 -999 -9999 -9.0 -99.0 "
    "-999.0 #value! #ref! #null!"
)
_NOTHING = {"", *_CODES.split()}
"""How tables write that an entry is missing."""
_YES = ("1", "true", "yes", "y", "t", "ja", "j", "oui", "vrai", "wahr", "si", "verdadero", "vero")
_NO = ("0", "false", "no", "n", "f", "nein", "non", "faux", "falsch", "falso")
_TRUTH = {**dict.fromkeys(_YES, True), **dict.fromkeys(_NO, False)}
_SEPARATORS = re.compile(r"[^a-z0-9]+")
_AGE = re.compile(r"[<>~\u2264\u2265=\s]*(\d+(?:[.,]\d+)?)\s*(?:\+|y|yr|yrs|years?)?", re.IGNORECASE)
_NO_ONE_AGE = re.compile(r"\d+(?:[.,]\d+)?\s*(?:-|\u2013|to)\s*\d+(?:[.,]\d+)?\+?|unknown|unk|not known|\?+|withheld")


def clean(cell: str) -> str:
    """The cell without surrounding blanks; "" for n/a, -, ., -9, NULL and the other codes of a missing entry."""
    return "" if cell.strip().casefold() in _NOTHING else cell.strip()


def number(text: str) -> float | None:
    """A finite number, or None. Ages like "45+" lose their sign; a comma may stand for the point."""
    try:
        value = float(re.sub(r"^(-?\d+),(\d+)$", r"\1.\2", text.strip().rstrip("+")))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def age(text: str) -> float | None:
    """An age in years, also as ">89" or "45 y"; None for a range such as 45-50, which is no one age."""
    match = _AGE.fullmatch(text.strip())
    return number(match[1] if match else text)


def is_age(text: str) -> bool:
    """Whether an entry is an age, a range of them, or says that it is not known."""
    return age(text) is not None or _NO_ONE_AGE.fullmatch(text.strip().casefold()) is not None


def truth(text: str) -> bool | None:
    """What a cell says that is true or false, also as 1.0 and 0.0 and as ja, oui, no; None for others."""
    value = number(text)
    return _TRUTH.get(f"{value:g}" if value is not None else without_accents(text).strip())


def without_accents(text: str) -> str:
    """Lower case, and letters without their accents: L\u00e4sion and t\u00e9moin are lasion and temoin."""
    parts = unicodedata.normalize("NFKD", text.casefold())
    return "".join(sign for sign in parts if not unicodedata.combining(sign))


@lru_cache(maxsize=1 << 14)
def plain_word(text: str) -> str:
    """Lower case without accents, blanks, hyphens and other separators."""
    return _SEPARATORS.sub("", without_accents(text))


@lru_cache(maxsize=1 << 14)
def spaced(text: str) -> str:
    """Lower case without accents, every word apart: left_MCA-infarct2019 is "left mca infarct 2019".

    Stops that end a clause stay.
    """
    parted = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", text)
    plain = re.sub(r"[^\w.;,:?()\[\]&+\u0080-\uffff]+|_", " ", without_accents(parted))
    return re.sub(r"(?<=[a-z])(?=\d)|(?<=\d)(?=[a-z])", " ", plain).strip()

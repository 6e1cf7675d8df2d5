"""What a cell of a table says: nothing, a number, true or false, a word."""

import math
import re

_NOTHING = ("", "n/a", "na", "nan", "none")
_TRUTH = {"1": True, "true": True, "yes": True, "y": True, "0": False, "false": False, "no": False, "n": False}
_SEPARATORS = re.compile(r"[^a-z0-9]+")


def clean(cell: str) -> str:
    """The cell without surrounding blanks; "" for n/a and its like."""
    return "" if cell.strip().lower() in _NOTHING else cell.strip()


def number(text: str) -> float | None:
    """A finite number, or None. Ages like "45+" lose their sign; a comma may stand for the point."""
    try:
        value = float(re.sub(r"^(-?\d+),(\d+)$", r"\1.\2", text.strip().rstrip("+")))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def truth(text: str) -> bool | None:
    """What a cell says that is true or false, also as 1.0 and 0.0; None for others."""
    value = number(text)
    return _TRUTH.get(f"{value:g}" if value is not None else text.strip().casefold())


def plain_word(text: str) -> str:
    """Lower case without blanks, hyphens and other separators."""
    return _SEPARATORS.sub("", text.casefold())

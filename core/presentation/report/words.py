"""Numbers and names as the report writes them: three decimals, intervals in brackets, true minus signs."""

from collections.abc import Mapping
from typing import Any

from core.presentation.report.markup import Html, tag

PROTOCOLS: Mapping[str, str] = {
    "healthy": "healthy scans",
    "validation": "validation labels",
    "oracle_set": "one threshold for the test set",
    "oracle_subject": "one threshold per test subject",
    "oracle_pooled": "one threshold, all voxels pooled",
}
"""What each threshold was chosen on; a mark beside it says whether that needed labels."""
NOTHING = "–"


def number(value: float | None, digits: int = 3) -> str:
    """A plain number, or a dash."""
    if value is None:
        return NOTHING
    return f"{_no_negative_zero(value, digits):.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign; what rounds to 0 has none."""
    if value is None:
        return NOTHING
    rounded = _no_negative_zero(value, digits)
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else number(0.0, digits)


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """[low, high], or nothing when there is no interval."""
    return "" if low is None or high is None else f"[{number(low, digits)}, {number(high, digits)}]"


def with_interval(found: Mapping[str, Any] | None, key: str = "mean") -> str:
    """A value with its interval: 0.429 [0.351, 0.502]."""
    if not found or found.get(key) is None:
        return NOTHING
    return f"{number(found[key])} {interval(found.get('low'), found.get('high'))}".strip()


def percent(share: float | None) -> str:
    """A share as per cent with two significant digits."""
    return NOTHING if share is None else f"{100 * share:.2g} %"


def millilitres(volume: float | None) -> str:
    """A volume, finer when it is small."""
    if volume is None:
        return NOTHING
    return f"{volume:.0f} mL" if volume >= 100 else f"{volume:.1f} mL" if volume >= 1 else f"{volume:.2g} mL"


def protocol_name(protocol: str) -> str:
    """A protocol in words; an unknown one by its own name."""
    return PROTOCOLS.get(protocol, protocol)


def plural(count: int, noun: str) -> str:
    """3 subjects, 1 subject."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def heat(share: float | None, text: str) -> Html | str:
    """A figure on a ground that darkens with its share, 0 to 1."""
    if share is None:
        return NOTHING
    return tag("span", text, kind="cell", attributes={"style": f"--v: {min(max(share, 0.0), 1.0):.2f}"})


def capital(text: str) -> str:
    """The text with a capital first letter, the rest as it is."""
    return text[:1].upper() + text[1:]


def _no_negative_zero(value: float, digits: int) -> float:
    return round(value, digits) + 0.0

"""Text that others wrote, shown as it stands: in Markdown, which every label of Streamlit is, and in tables."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

_SPECIAL = re.compile(
    r"(?P<interval>\[[−\d., ]+\](?=[ .;]))"
    r"|[\\`*_{}\[\]()<>#!|~$^&@]|\+(?!\S)|:(?! )|(?<![^\W\d_])-|-(?![^\W\d_])"
)
"""An interval, a hyphen within a word, a sign before a number and a colon before a space are never markup."""
_LIST = re.compile(r"\d{1,9}(?=[.)](?: |$))")
_JOINT = re.compile(
    r"(?<=http)(?=:)|(?<=https)(?=:)|(?<=www)(?=\.)|(?<=[-.\w+])(?=@[-\w])"  # what becomes a link
    r"|(?<=:[-\w+])(?=[-\w+]*:)|(?<=:material)(?=/)",  # what becomes an icon or an emoji
    re.IGNORECASE,
)
_ARROW = re.compile(r"(?<!\S)(?:<->|->|<-|--|>=|<=|~=)(?!\S)")
_CUT = "\0"
_NOTHING = ":small[]"
"""An element without content. Links, icons and arrows are looked for when every backslash is gone; not across it."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def plain(text: object) -> str:
    """Any text as Markdown that shows it letter for letter: no picture, link, formula, colour, icon or heading.

    Runs of white space and control characters become one space, as browsers show them. Not for `st.badge`, which
    escapes its label by itself and shows these backslashes.
    """
    line = _one_line(text)
    line = _ARROW.sub(lambda found: _CUT.join(found[0]), _JOINT.sub(_CUT, line))
    line = _SPECIAL.sub(lambda found: found["interval"] or f"\\{found[0]}", line).replace(_CUT, _NOTHING)
    listed = _LIST.match(line)
    if listed is not None:
        return f"{listed[0]}\\{line[listed.end() :]}"
    return "\\" + line if line.startswith("=") else line


def code(text: object) -> str:
    """The same in the letters of code, as commands and paths are shown."""
    line = _one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    held = f" {line} " if line.startswith("`") or line.endswith("`") or not line else line
    return f"{fence}{held}{fence}".replace(":material/", f":material{fence}{_NOTHING}{fence}/")


def prose(text: object) -> str:
    """Sentences of ours that may quote what others wrote: as `plain`, and what stands in backticks is code."""
    parts = re.split("`([^`]+)`", str(text))
    ready = [code(part) if k % 2 else _spaced(part) for k, part in enumerate(parts)]
    return "".join(ready).strip()


def cells(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table that can be saved as CSV: text that a spreadsheet would take for a formula gets a quote first."""
    return pd.DataFrame([{name: cell(value) for name, value in row.items()} for row in rows])


def cell(value: Any) -> Any:
    """One value of such a table; what is no text, and a signed number, stays as it is."""
    if not isinstance(value, str) or not value.startswith(_FORMULA) or re.fullmatch(r"[+-][\d.,]+( \[.*\])?", value):
        return value
    return "'" + value


def _one_line(text: object) -> str:
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", str(text)).strip()


def _spaced(text: str) -> str:
    """Made plain, with the spaces at its ends."""
    before, after = (" " if text[:1].isspace() else ""), (" " if text[-1:].isspace() else "")
    return f"{before}{plain(text)}{after}" if text.strip() else before

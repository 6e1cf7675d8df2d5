"""Markup that escapes by itself: plain text becomes part of a page only through `html.escape`."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Html:
    """Finished markup. Whatever is not in one of these is text, and is escaped before it enters a page."""

    text: str

    def __bool__(self) -> bool:
        return bool(self.text)


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and whether it holds numbers."""

    title: str
    number: bool = False
    wide: bool = False
    """Takes the room that the others leave."""


EMPTY = Html("")
_VOID = ("meta", "img", "br")
"""Elements of HTML without an end; in SVG every element has one."""


def tag(
    name: str,
    *content: "Html | str | None",
    kind: str = "",
    attributes: Mapping[str, str | float | None] | None = None,
) -> Html:
    """An element with escaped content and attributes; `kind` is its class, attributes that are None are left out."""
    given = {"class": kind or None, **(attributes or {})}
    words = "".join(f' {key}="{_escaped(_number(value))}"' for key, value in given.items() if value is not None)
    inside = join(content).text
    return Html(f"<{name}{words}>" if name in _VOID else f"<{name}{words}>{inside}</{name}>")


def join(parts: "Iterable[Html | str | None]", between: str = "") -> Html:
    """The parts one after another, what is plain text escaped, None left out."""
    ready = [part.text if isinstance(part, Html) else _escaped(part) for part in parts if part is not None]
    return Html(_escaped(between).join(ready))


def table(columns: Sequence[Column], rows: "Sequence[Sequence[Html | str | None]]", kinds: Sequence[str] = ()) -> Html:
    """A table that can be scrolled on a narrow screen and whose rows are not cut on paper.

    `kinds` are classes of the rows: "chosen", "oracle".
    """
    heads = [tag("th", c.title, kind=_kind(c), attributes={"scope": "col"}) for c in columns]
    body = [
        tag(
            "tr",
            *(tag("td", "–" if cell is None else cell, kind=_kind(c)) for c, cell in zip(columns, row, strict=True)),
            kind=kinds[number] if kinds else "",
        )
        for number, row in enumerate(rows)
    ]
    inner = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body))
    return tag("div", inner, kind="scroll")


def facts(pairs: "Sequence[tuple[str, Html | str | None]]") -> Html:
    """Names and values as a definition list; what is None or empty is left out."""
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs if value]
    return tag("dl", *rows, kind="facts")


def bullets(texts: "Sequence[Html | str]") -> Html:
    """A list of sentences."""
    return tag("ul", *(tag("li", text) for text in texts)) if texts else EMPTY


def badge(text: str, kind: str = "") -> Html:
    """A small label beside a name: oracle, needs labels."""
    return tag("span", text, kind=f"badge {kind}".strip())


def _kind(column: Column) -> str:
    return "number" if column.number else "wide" if column.wide else ""


def _number(value: str | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    # A lone surrogate is legal in JSON and in Python, and cannot be written as UTF-8.
    return html.escape(text.encode("utf-8", "backslashreplace").decode("utf-8"), quote=True)

"""What a user says about a data set that its files do not, asked on a page: the choices that a verb has as flags."""

import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

import streamlit as st

from core.fields import field_texts, field_types
from data.cells import number
from data.choices import Choices
from data.errors import BadInput
from pages._text import plain

LABELS: Mapping[str, str] = {
    "controls": "Words for healthy",
    "session": "Session",
    "run": "Run",
    "acq": "Acquisition",
    "space": "Space",
    "label": "Label of the lesion mask",
    "lesion_labels": "Labels that are lesion",
    "ignore_labels": "Labels to leave out",
    "volume": "Volume of a 4-D scan",
    "header_form": "Orientation from",
    "mask_cut": "Cut of probability masks",
    "keep": "Keep in spite of doubts",
}
EXAMPLES: Mapping[str, str] = {
    "controls": "0, sham",
    "session": "01",
    "label": "lesion",
    "space": "MNI152NLin2009aSym",
    "lesion_labels": "1, 3",
    "ignore_labels": "4",
    "volume": "0",
    "mask_cut": "0.5",
    "keep": "sub-01, sub-07",
}


def ask_choices(key: Callable[[str], str]) -> None:
    """Ask for every choice; the values stand in the session under `key(name)`."""
    texts, kinds = field_texts(Choices), field_types(Choices)
    st.checkbox(
        "Healthy unless masked",
        key=key("healthy_unless_masked"),
        help=plain(f"On your word. {texts['healthy_unless_masked']}"),
    )
    with st.expander("More about these scans", icon=":material/tune:"):
        columns = st.columns(3)
        for n, (name, label) in enumerate(LABELS.items()):
            allowed = get_args(kinds[name])
            if get_origin(kinds[name]) is Literal:
                columns[n % 3].selectbox(
                    plain(label),
                    allowed,
                    format_func=lambda one: one or "the header",
                    key=key(name),
                    help=plain(texts[name]),
                )
            else:
                columns[n % 3].text_input(
                    plain(label), key=key(name), help=plain(texts[name]), placeholder=EXAMPLES.get(name, "")
                )
        st.checkbox(
            "Follow links out of the data set", key=key("follow_symlinks"), help=plain(texts["follow_symlinks"])
        )


def choices_from(value: Callable[[str], Any]) -> Choices:
    """The choices that were made, from the value of each field. BadInput names what is no number."""
    kinds = field_types(Choices)
    return Choices(**{field.name: _read(field.name, kinds[field.name], value(field.name)) for field in fields(Choices)})


def _read(name: str, kind: Any, given: Any) -> Any:
    if kind is bool or get_origin(kind) is Literal:
        return given
    text = str(given).strip()
    if get_origin(kind) is tuple:
        words = text.replace(",", " ").split()
        return tuple(_number(name, word, int) if get_args(kind)[0] is int else word for word in words)
    if isinstance(kind, types.UnionType):
        return _number(name, text, next(t for t in get_args(kind) if t is not types.NoneType)) if text else None
    return text


def _number(name: str, word: str, kind: type) -> Any:
    found = number(word)
    if found is None or (kind is int and found != int(found)):
        what = "whole number" if kind is int else "number"
        raise BadInput(f"{LABELS[name]}: {word!r} is no {what}. Give one, as in {EXAMPLES[name]}.")
    return kind(found)

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.names import LONGEST, folder_name

HOSTILE = (
    *(
        "",
        ".",
        "..",
        "/",
        "a/b",
        "../../x",
        "/etc/passwd",
        "a\\b",
        "C:\\x",
        "\0",
        "a\0b",
        "a\nb",
        "-rf",
        "--help",
        " ",
        "a ",
    ),
    *(
        "a.",
        "~",
        "x~0123456789abcdef",
        "con",
        "NUL.txt",
        "lpt1",
        ".hidden",
        ".tmp-new-1",
        "s" * 255,
        "é" * 200,
        "\ud800",
    ),
    *(
        "<img src=x onerror=alert(1)>",
        "![x](http://127.0.0.1/x.png)",
        "=cmd()",
        "$(touch x)",
        "`id`",
        "a;b",
        "名前",
        "🧠",
    ),
    *(
        unicodedata.normalize("NFC", "Zoë"),
        unicodedata.normalize("NFD", "Zoë"),
        "sub 01",
        "sub:01",
        "sub*01",
        "%2e%2e%2f",
    ),
)


@pytest.mark.parametrize("text", ["sub-01", "IXI012-HH-1211-T1", "BraTS20_Training_001", "stage0+stage1", "a.b", "_x"])
def test_ordinary_names_stay_what_they_are(text):
    assert folder_name(text) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_becomes_one_safe_component(text, tmp_path):
    name = folder_name(text)
    assert 0 < len(name.encode()) <= LONGEST
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert name[0] not in ".-~ "
    assert not name.endswith((".", " "))
    (tmp_path / name).mkdir()


def test_hostile_texts_share_no_name():
    names = [folder_name(text).casefold() for text in HOSTILE]
    assert len(set(names)) == len(HOSTILE)


@given(st.text(), st.text())
def test_two_texts_have_two_names_of_plain_ascii(one, other):
    names = {folder_name(one), folder_name(other)}
    assert len(names) == len({one, other})
    for name in names:
        assert name.isascii()
        assert name.isprintable()
        assert not set(name) & set('/\\:*?"<>| ')
        assert 0 < len(name) <= LONGEST


def test_a_readable_part_is_kept():
    assert folder_name("Jörg Müller / visit 2").startswith("Jorg-Muller-visit-2~")

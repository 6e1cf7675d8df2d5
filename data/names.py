"""From any text to a name that a file may have: subject ids come from tables, and a table may hold anything."""

import hashlib
import re
import unicodedata

LONGEST = 100
"""Bytes of a name, so that a suffix such as _segmentation.nii.gz still fits into the 255 that file systems allow."""
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
_RESERVED = re.compile(r"(?i:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?")
"""Names that Windows gives to devices, whatever their extension."""
_DIGITS = 16
"""Hexadecimal digits of the hash that keeps two changed names apart."""


def folder_name(text: str) -> str:
    """One path component for any text: the text itself where it is an ordinary name, else what is readable of it, a
    tilde and a hash of it.

    Ordinary: at most 100 ASCII letters, digits, `_`, `.`, `+`, `-`, beginning with a letter, digit or `_`, not ending
    in a dot, and no device name of Windows. Two texts never share a name (no ordinary name has a tilde), so a
    run's list of subjects is the way back. It is never `.`, `..`, hidden, a flag or longer than 100 bytes.
    """
    if _PLAIN.fullmatch(text) and len(text) <= LONGEST and not text.endswith(".") and not _RESERVED.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    letters = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    readable = re.sub(r"[^A-Za-z0-9]+", "-", letters).strip("-")[: LONGEST - _DIGITS - 1].strip("-")
    return f"{readable or 'x'}~{digest}"

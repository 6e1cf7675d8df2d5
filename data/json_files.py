"""JSON with one form: read with its faults told, written whole, sealed by its own digest."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import IntegrityError
from data.whole_files import write_whole

if TYPE_CHECKING:
    pass

SEAL = "sha256"
"""Under this key a JSON file holds the digest of the rest of it."""
_quoted = json.encoder.encode_basestring_ascii
_COMPACT = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically; keys sorted, so equal values give equal bytes."""
    write_whole(path, readable_json(value).encode())


def readable_json(value: Any) -> str:
    """JSON for people: indented, keys in order, no NaN."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False)


def read_json(path: Path) -> Any:
    """The value in a JSON file. IntegrityError when it does not parse."""
    return parsed_json(read_text(path), path)


def read_text(path: Path) -> str:
    """The text of a JSON file. IntegrityError when its bytes are none."""
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise _no_json(path, error) from error


def parsed_json(text: str, path: Path) -> Any:
    """The value that the text of a file stands for. IntegrityError when it does not parse."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_json(path, error) from error


def _no_json(path: Path, error: Exception) -> IntegrityError:
    return IntegrityError(f"{path} is not valid JSON: {error}. It was damaged or edited.")


def write_sealed_json(path: Path, value: Mapping[str, Any]) -> None:
    """`write_json` of a mapping with a digest of itself, for results that stand outside a committed directory."""
    write_json(path, sealed(value))


def read_sealed_json(path: Path) -> dict[str, Any]:
    """What `write_sealed_json` wrote. IntegrityError unless it is what was written."""
    value = read_json(path)
    if not isinstance(value, dict) or not keeps_seal(value):
        raise IntegrityError(f"{path} is not what was written: it was damaged or edited. Delete it.")
    return without_seal(value)


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with the digest of its content under `SEAL`."""
    return {**value, SEAL: content_digest(value)}


def without_seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """A sealed mapping as it was before."""
    return {key: item for key, item in value.items() if key != SEAL}


def keeps_seal(value: Mapping[str, Any]) -> bool:
    """Whether a mapping that was read carries the digest of the rest of it; what could not be written never does."""
    try:
        return bool(value.get(SEAL) == content_digest(without_seal(value)))
    except (ValueError, RecursionError):  # NaN, infinity, or deeper than can be written
        return False


def content_digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys. ValueError for NaN and infinity."""
    return hashlib.sha256(compact_json(value).encode()).hexdigest()


def compact_json(value: Any) -> str:
    """A JSON value on one line, keys sorted: what digests are made of. ValueError for NaN and infinity."""
    return _COMPACT.encode(value)


def digest_with_known(value: Mapping[str, Any], known: Mapping[str, str]) -> str:
    """`content_digest` of a mapping, given the `compact_json` of some of its values: many records share a cohort."""
    parts: list[str] = []
    others: dict[str, Any] = {}
    for key in sorted(value):
        if key not in known:
            others[key] = value[key]
            continue
        parts += [compact_json(others)[1:-1], f"{_quoted(key)}:{known[key]}"]
        others = {}
    text = ",".join(filter(None, (*parts, compact_json(others)[1:-1])))
    return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()

"""What a document says instead of names when it leaves the house: pseudonyms, and no path, host or user."""

import contextlib
import getpass
import hashlib
import hmac
import html
import os
import re
import secrets
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.runs.run_record import Run
from data.errors import EnvironmentProblem, IntegrityError
from data.names import folder_name
from data.whole_files import scratch_name

KEY_FILE = ".share-key"
"""In the runs directory: without it nobody can tell whose pseudonym it is, even by trying every id of a data set."""
LEFT_OUT = "[left out]"
COHORT = "COHORT"
_KEY_BYTES = 32
_DIGITS = 10
_SHORTEST = 3
"""Characters of the shortest name that is looked for in sentences: a scan called 7 is not every 7."""
_WHOLE = 5
"""Characters from which a name with a digit is looked for within words too: in names of files."""
_AGES = 5
_PATH = re.compile(
    r"(?<![\w.:/~])(?:~|[A-Za-z]:)?(?:[\\/][\w.+~@%-]+){2,}[\\/]?|(?<![\w])[A-Za-z]:\\[\w.\\ -]+|file:\S+"
)
_SECRET = re.compile(r"(?i)\b(token|passw(?:or)?d|secret|api[_-]?key|authorization)(\s*[=:]\s*)[^\s&;,]+")
_MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_MARKUP = re.compile(r"(<style>.*?</style>|<[^>]*>)", re.DOTALL)
_SPOKEN = re.compile(r'((?:alt|title|aria-label)=")([^"]*)(")')


@dataclass(frozen=True, eq=False)
class Veil:
    """How the names of one run are said in what is shared. One run, one runs directory: the same pseudonyms again."""

    key: bytes
    subject_ids: tuple[str, ...]
    sites: Mapping[str, str]
    """A letter for each site."""
    places: Mapping[str, str]
    """Texts that name this machine, its user or a folder, and what stands for them."""

    def called(self, subject_id: str) -> str:
        """The pseudonym of a subject: the same id has the same one, and nobody without the key finds the id."""
        digest = hmac.new(self.key, subject_id.encode("utf-8", "surrogatepass"), hashlib.sha256)
        return f"subject-{digest.hexdigest()[:_DIGITS]}"

    def text(self, told: str) -> str:
        """A sentence without names of subjects, paths, hosts, users, addresses and secrets."""
        told = _SECRET.sub(rf"\1\2{LEFT_OUT}", told)
        for place in sorted(self.places, key=len, reverse=True):
            told = _within(place).sub(lambda _, stands=self.places[place]: stands, told)  # type: ignore[misc]
        for written, subject_id in self._written():
            told = _within(written).sub(lambda _, i=subject_id: self.called(i), told)  # type: ignore[misc]
        return _MAIL.sub(LEFT_OUT, _PATH.sub(LEFT_OUT, told))

    def words(self, told: str) -> str:
        """What a person wrote freely, such as a run's name: `text`, and letters for sites."""
        for name in sorted((n for n in self.sites if len(n) >= _SHORTEST), key=len, reverse=True):
            told = _within(name).sub(lambda _, letter=self.sites[name]: f"site {letter}", told)  # type: ignore[misc]
        return self.text(told)

    def document(self, markup: str) -> str:
        """An HTML document with `text` said of all that is read: between tags, and in descriptions of pictures."""
        parts = _MARKUP.split(markup)
        return "".join(self._descriptions(part) if k % 2 else self._read(part) for k, part in enumerate(parts))

    def notes(self, told: Iterable[str]) -> list[str]:
        """Notes without names; those that name a subject by a name too short to be looked for are left out."""
        short = [re.escape(i) for i in self.subject_ids if not _is_looked_for(i)]
        named = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(short)})(?![A-Za-z0-9])") if short else None
        return [self.words(note) for note in told if named is None or not named.search(note)]

    def site(self, name: str) -> str:
        """The letter of a site."""
        return self.sites.get(name, LEFT_OUT)

    def diagnosis(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """A diagnosis whose tables name nobody."""

        def veiled(row: Mapping[str, Any]) -> dict[str, Any]:
            site = row.get("site")
            told = {"subject_id": self.called(str(row["subject_id"]))}
            return {**row, **told, **({} if site is None else {"site": self.site(str(site))})}

        groups = dict(found.get("strata") or {})
        if groups.get("site"):
            groups["site"] = [{**row, "bin": self.site(str(row["bin"]))} for row in groups["site"]]
        return {
            **found,
            "subjects": [veiled(row) for row in found.get("subjects") or []],
            "lesions": [veiled(row) for row in found.get("lesions") or []],
            "strata": groups,
            "notes": self.notes(map(str, found.get("notes") or [])),
        }

    def _written(self) -> list[tuple[str, str]]:
        """Every way in which an id may stand in a sentence, the longest first."""
        ways = {way: i for i in self.subject_ids for way in (i, folder_name(i)) if _is_looked_for(way)}
        return sorted(ways.items(), key=lambda pair: -len(pair[0]))

    def _read(self, text: str) -> str:
        return html.escape(self.text(html.unescape(text)), quote=True) if text.strip() else text

    def _descriptions(self, tag: str) -> str:
        return _SPOKEN.sub(lambda found: f"{found[1]}{self._read(found[2])}{found[3]}", tag)


def veil_of(run: Run) -> Veil:
    """The veil over a run. Its key is made once for a runs directory; where nothing can be written, for this time only.

    IntegrityError when the key that is there is damaged.
    """
    cohort = run.record.get("cohort") or {}
    subjects = cohort.get("subjects") or []
    ids = [s["subject_id"] for s in subjects] + [s["subject_id"] for s in cohort.get("set_aside") or []]
    ids += [i for role in (run.record.get("split") or {}).values() for i in role]
    sites = sorted({str(s["site"]) for s in subjects if s.get("site")})
    secret = hmac.new(_key(run.directory.parent), run.run_id.encode(), hashlib.sha256).digest()
    letters = {name: _letter(number) for number, name in enumerate(sites)}
    return Veil(secret, tuple(dict.fromkeys(map(str, ids))), letters, _places(run, str(cohort.get("path") or "")))


def age_span(ages: Iterable[float]) -> str:
    """Youngest to oldest in steps of five years; empty when no age is known."""
    known = sorted(ages)
    return f"{int(known[0] // _AGES * _AGES)} to {int(known[-1] // _AGES * _AGES) + _AGES}" if known else ""


def _key(runs: Path) -> bytes:
    path = runs / KEY_FILE
    with contextlib.suppress(FileNotFoundError):
        return _checked(path)
    made = secrets.token_bytes(_KEY_BYTES)
    scratch = runs / scratch_name()
    try:
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(made)
        os.link(scratch, path)
    except FileExistsError:  # another document was made at the same moment
        return _checked(path)
    except OSError:  # a folder that can only be read: these pseudonyms are for one document
        return made
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()
    return made


def _checked(path: Path) -> bytes:
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise EnvironmentProblem(
            f"Could not read {path}: {error.strerror or error}. Give yourself the right to."
        ) from error
    if len(key) != _KEY_BYTES:
        raise IntegrityError(
            f"{path} has {len(key)} bytes instead of {_KEY_BYTES}. Delete it: documents that are shared from then on "
            "have other pseudonyms than before."
        )
    return key


def _places(run: Run, cohort: str) -> dict[str, str]:
    folders = [run.directory.parent.absolute(), Path.cwd(), Path.home()]
    found = {str(folder): LEFT_OUT for folder in folders if len(folder.parts) > 2}
    names = [socket.gethostname(), socket.gethostname().partition(".")[0], Path.home().name]
    with contextlib.suppress(OSError, KeyError):
        names.append(getpass.getuser())
    found |= {name: LEFT_OUT for name in names if len(name) >= _SHORTEST and name not in ("root", "localhost", "home")}
    if cohort:
        path = Path(cohort)
        parents = [Path.cwd(), run.directory.parent.absolute().parent]
        near = [path.relative_to(base).as_posix() for base in parents if path.is_relative_to(base)]
        told = [cohort, *near, Path(*path.parts[-2:]).as_posix(), path.name]
        found |= {name: COHORT for name in told if len(name) >= _SHORTEST}
    return found


def _is_looked_for(name: str) -> bool:
    return len(name) >= _SHORTEST and (not name.isdecimal() or len(name) >= _WHOLE)


def _within(name: str) -> re.Pattern[str]:
    """A name in a sentence: anywhere when it is long and has a digit, else as a word of its own."""
    anywhere = len(name) >= _WHOLE and any(c.isdigit() for c in name) and not name.isdecimal()
    text = re.escape(name)
    return re.compile(text if anywhere else rf"(?<![A-Za-z0-9]){text}(?![A-Za-z0-9])", re.IGNORECASE)


def _letter(number: int) -> str:
    """A to Z, then AA."""
    return (_letter(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)

"""The record of a run: what run.json holds, and that it is what was written."""

import hashlib
import marshal
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.runs.record_shape import wrong_fields, wrong_leaves
from data.cohort import ROLES, Split
from data.errors import BadInput, IntegrityError
from data.json_files import SEAL, compact_json, content_digest, digest_with_known, parsed_json, read_text, without_seal

RUNS_DEFAULT = Path("runs")
SCHEMA = 2
"""Of run.json: 2 carries a digest of itself and the identity that its stages name; 1 has neither and is still read."""
_IDENTITY = ("kind", "recipe", "cohort", "split", "preprocessing", "seed", "parents")
"""What a run was started with: its stages carry a hash of it, so that none is taken for another run's."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Run:
    """One run directory and what its run.json said when it was read."""

    directory: Path
    record: dict[str, Any]
    generation: int | None = None
    """The fencing token of `lock`, when this process holds it."""

    @property
    def run_id(self) -> str:
        """Name of the run, unique in its runs directory."""
        return str(self.record["run_id"])

    @property
    def as_argument(self) -> str:
        """How a printed command names it: its id, and where it lies unless that is the usual place."""
        return self.run_id + runs_flag(self.directory.parent)

    @property
    def kind(self) -> str:
        """What it made: encoder, detector, demo."""
        return str(self.record["kind"])

    @property
    def name(self) -> str:
        """What the user called it."""
        return str(self.record["name"])

    @property
    def status(self) -> str:
        """running, finished, failed or interrupted, as written; `current_status` also asks whether it is alive."""
        return str(self.record["status"])

    @property
    def sequence(self) -> int:
        """Place in the order of creation."""
        return int(self.record["sequence"])


def runs_flag(runs: Path) -> str:
    """What a printed command needs so that it finds the same runs directory."""
    return "" if runs == RUNS_DEFAULT else f" --runs {shlex.quote(str(runs))}"


def identity_of_record(record: Mapping[str, Any]) -> str:
    """What a run was started with, as a digest. Not where its table lies, nor in which order it names its scans."""
    told = _for_identity(record)
    return content_digest([told[key] for key in _IDENTITY])


def _for_identity(record: Mapping[str, Any]) -> dict[str, Any]:
    scans = {key: record["cohort"].get(key) for key in ("fingerprint", "subjects")}
    return {**record, "cohort": scans, "split": {role: sorted(ids) for role, ids in record["split"].items()}}


def check_run_id(run_id: str) -> None:
    """BadInput unless a run may be called so."""
    if not _ID.fullmatch(run_id):
        raise BadInput(
            f"{run_id!r} cannot name a run. Use up to 100 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit."
        )


def read_run(directory: Path) -> Run:
    """The run in a directory. BadInput when there is none, IntegrityError when its record is damaged."""
    return Run(directory, read_record(directory))


def read_record(directory: Path) -> dict[str, Any]:
    """run.json of a run directory. IntegrityError unless it is whole and what was written."""
    path = directory / "run.json"
    try:
        text = read_text(path)
        record = parsed_json(text, path)
    except FileNotFoundError:
        reason = "has no run.json: it is not a run" if directory.is_dir() else "is not there: it was deleted or renamed"
        again = f"python cli.py runs{runs_flag(directory.parent)}"
        raise BadInput(f"{directory} {reason}. List the runs: {again}") from None
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror or error}. {_remedy(path)}") from error
    except IntegrityError as error:
        raise IntegrityError(f"{error} {_remedy(path)}") from error
    _check_record(record, path, text)
    return without_seal(record) | {"run_id": directory.name}


def _check_record(record: Any, path: Path, text: str) -> None:
    """IntegrityError unless run.json has its form, is what was written, and its split is one that could be made."""
    schema = record.get("schema") if isinstance(record, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise BadInput(
            f"{path} was written by a newer version (schema {schema}, this one reads {SCHEMA}). "
            "Use that version, or another --runs directory."
        )
    scans = _scans_of(record)
    judged = _judged.get(scans)
    wrong = wrong_fields(record, but_scans=judged is not None)
    whole = not wrong and _keeps_seal(record, judged)
    if not wrong and (not whole or "\\u" in text):  # what keeps its seal lacks NaN and infinity, not half letters
        wrong = wrong_leaves(record)
    if wrong:
        raise IntegrityError(f"{path} is damaged: {', '.join(wrong[:5])} missing or of the wrong type. {_remedy(path)}")
    if not whole and (SEAL in record or "identity" in record or record["schema"] >= 2):
        raise IntegrityError(f"{path} is not what was written: it was damaged or edited. {_remedy(path)}")
    judged = judged or _judge(record, scans)
    if "identity" in record and record["identity"] != _identity_of(record, judged):
        raise IntegrityError(
            f"{path} was edited: what it says of recipe, scans, split, seed or encoder is not what the run was started "
            f"with. {_remedy(path)}"
        )
    if judged.problem:
        raise IntegrityError(f"{path} cannot be right: {judged.problem} {_remedy(path)}")


@dataclass(frozen=True)
class _Judged:
    """What a cohort and a split, which the runs of a study share, say; both have their form."""

    told: Mapping[str, str]
    """Both as JSON, as the seal counts them."""
    scans: str
    """What of the cohort belongs to the identity of a run, as JSON."""
    split: str
    problem: str | None
    """Why the split is not one of the cohort."""


_judged: dict[bytes, _Judged] = {}
"""By what a record says of both, so that a list of runs judges a cohort once and writes it down once."""
_MOST_JUDGED = 16


def _scans_of(record: Any) -> bytes:
    """Cohort and split of a record: equal bytes for equal values of equal types only."""
    if not isinstance(record, dict):
        return b""
    try:
        return marshal.dumps([record.get("cohort"), record.get("split")], 2)
    except ValueError:  # too deep
        return b""


def _judge(record: Mapping[str, Any], scans: bytes) -> _Judged:
    told = _for_identity(record)
    judged = _Judged(
        {key: compact_json(record[key]) for key in ("cohort", "split")},
        compact_json(told["cohort"]),
        compact_json(told["split"]),
        _split_problem(record["split"], record["cohort"]),
    )
    if len(_judged) >= _MOST_JUDGED:
        _judged.clear()
    if scans:
        _judged[scans] = judged
    return judged


def _keeps_seal(record: Mapping[str, Any], judged: _Judged | None) -> bool:
    """Whether a record carries the digest of the rest of it."""
    try:
        return bool(record.get(SEAL) == digest_with_known(without_seal(record), judged.told if judged else {}))
    except (ValueError, RecursionError):  # NaN, infinity, or deeper than can be written
        return False


def _identity_of(record: Mapping[str, Any], judged: _Judged) -> str:
    """`identity_of_record`, with what is written down already."""
    at = _IDENTITY.index("cohort")
    before, after = (
        compact_json([record[key] for key in keys])[1:-1] for keys in (_IDENTITY[:at], _IDENTITY[at + 2 :])
    )
    return hashlib.sha256(f"[{before},{judged.scans},{judged.split},{after}]".encode()).hexdigest()


def _remedy(path: Path) -> str:
    return f"Put back a copy of it, or delete {path.parent} and make the run again."


def _split_problem(split: Mapping[str, Any], cohort: Mapping[str, Any]) -> str | None:
    """Why the split of a record of the right form is not one of its cohort, in words; None when it is."""
    strange = sorted(split.keys() - set(ROLES))
    if strange:
        return f"its split has {', '.join(map(repr, strange[:3]))}; there are {', '.join(ROLES)}."
    try:
        rebuilt = Split(**{role: tuple(split.get(role, ())) for role in ROLES})
    except BadInput as error:
        return str(error)
    subjects = cohort.get("subjects", [])
    if not subjects:
        return None
    by_id = {s["subject_id"]: s for s in subjects}
    unknown = [i for role in ROLES for i in getattr(rebuilt, role) if i not in by_id]
    if unknown or len(by_id) != len(subjects):
        return (
            f"its split and its cohort name other subjects: {', '.join(map(repr, unknown[:3])) or 'one stands twice'}."
        )
    left_out = sorted(by_id.keys() - {i for role in ROLES for i in getattr(rebuilt, role)})
    if left_out:
        return f"subjects of its cohort are in no split: {', '.join(map(repr, left_out[:3]))}."
    ill = [i for role in ("train", "calibration") for i in getattr(rebuilt, role) if by_id[i].get("healthy") is False]
    if ill:
        return f"subjects with lesions train or calibrate: {', '.join(map(repr, ill[:3]))}."
    moved = [i for role in ROLES for i in getattr(rebuilt, role) if by_id[i].get("role", role) != role]
    if moved:
        return f"subjects stand in another split than the cohort says: {', '.join(map(repr, moved[:3]))}."
    keys = {s["subject_id"]: s.get("key") for s in subjects}
    if "fingerprint" in cohort and None not in keys.values() and cohort["fingerprint"] != content_digest(keys):
        return "the prepared scans that it names are not those of its cohort."
    return None

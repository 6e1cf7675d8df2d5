"""Whether free text says of a person that it is ill: clause by clause, an illness counts that its clause does not deny.

"Left MCA infarct, no hemorrhage" does, "no stroke", "brother with epilepsy" and "control for stroke study" do not.
"""

import re
from collections.abc import Sequence

from data.cells import spaced
from data.health_words import (
    AFTER_WHAT_ENDS_A_DENIAL,
    CAPITALS,
    CLAUSES,
    CONTROL_FOR,
    DENIED_AFTER,
    DENIED_BEFORE,
    DENIED_BESIDE,
    ILL_TEXT,
    IN_A_RELATIVE,
    LIST_OF_ILLNESSES,
    NAMED_AFTER,
    NAMED_BEFORE,
    OF_A_RELATIVE,
    WITH_OF_ITS_OWN,
)


def tells_of_illness(text: str, *patterns: re.Pattern[str]) -> bool:
    """Whether a clause names an illness and does not deny it; `patterns`: what counts as one besides ILL_TEXT."""
    return any(named and start is None for _, named, start in _judged(text, (ILL_TEXT, *patterns)))


def denies_illness(text: str, *patterns: re.Pattern[str]) -> bool:
    """Whether a clause names an illness and denies it."""
    return any(named and start is not None for _, named, start in _judged(text, (ILL_TEXT, *patterns)))


def without_denials(text: str, *patterns: re.Pattern[str]) -> str:
    """The text in `spaced` form, without what denies an illness: "control, no stroke" is "control"."""
    kept = [clause[:end] for clause, _, end in _judged(text, (ILL_TEXT, *patterns))]
    return ", ".join(clause.strip() for clause in kept)


def _judged(text: str, patterns: Sequence[re.Pattern[str]]) -> list[tuple[str, bool, int | None]]:
    """Each clause, whether it names an illness, and where it begins to deny all that it names; None when it does not.

    "No stroke, tumour or epilepsy" is one list: what stands in it bare is denied with its head.
    """
    clauses = [clause.strip() for clause in CLAUSES.split(spaced(CAPITALS.sub(" illness ", text)))]
    judged = []
    listed = False
    for number, clause in enumerate(clauses):
        found = [match for pattern in patterns for match in pattern.finditer(clause)]
        starts = [_denied_from(clause, match) for match in found]
        denied = min((start for start in starts if start is not None), default=None)
        if None in starts:
            denied = 0 if listed and _bare(clause, found) else None
        listed = denied is not None and (listed or any(map(LIST_OF_ILLNESSES.search, clauses[number + 1 :])))
        judged.append((clause, bool(found), denied))
    return judged


def _bare(clause: str, found: Sequence[re.Match[str]]) -> bool:
    """Whether a clause holds nothing but illnesses and the words between them."""
    for match in found:
        clause = clause.replace(match[0], " ")
    return not set(re.findall(r"[a-z]+", clause)) - {"or", "nor", "and", "oder", "und", "ou", "et", "ni", "o", "y", "e"}


def _denied_from(clause: str, match: re.Match[str]) -> int | None:
    """Where the words begin that deny an illness in its clause; None where none do."""
    before, after = clause[: match.start()], clause[match.end() :]
    own = WITH_OF_ITS_OWN.sub(lambda found: "_" * len(found[0]), before)
    ends = [end.end() for end in AFTER_WHAT_ENDS_A_DENIAL.finditer(own)]
    scope = ends[-1] if ends else 0
    if denial := DENIED_BEFORE.search(before, scope):
        return denial.start()
    for pattern in (DENIED_BESIDE, OF_A_RELATIVE, NAMED_BEFORE):
        if denial := pattern.search(before):
            return denial.start()
    if control := CONTROL_FOR.search(before):
        return control.start() + len(control[0].split()[0])
    behind = (DENIED_AFTER, IN_A_RELATIVE, NAMED_AFTER)
    return match.start() if any(pattern.search(after) for pattern in behind) else None

"""docs/promises.md names every row of faults once, and only tests that exist."""

import ast
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "promises.md"
ROWS = {"A": 14, "B": 14, "C": 19, "D": 15, "E": 12, "F": 10, "G": 10, "H": 10}
"""Rows of each part of the matrix of faults."""
STATES = ("held", "partly", "open", "does not apply")


@dataclass(frozen=True)
class Row:
    """One fault, and what stands against it."""

    name: str
    fault: str
    state: str
    tests: tuple[str, ...]
    missing: str
    promise: str


def rows(text: str) -> list[Row]:
    """The rows of every table, with the promise whose heading they stand under."""
    found, promise = [], ""
    for line in text.splitlines():
        if heading := re.match(r"## (P\d) \S", line):
            promise = heading[1]
        if not re.match(r"\| [A-Z]\d+ \|", line):
            continue
        name, fault, state, tests, missing = (cell.strip() for cell in line.strip().strip("|").split("|"))
        found.append(Row(name, fault, state, tuple(re.findall(r"`([^`]+)`", tests)), missing, promise))
    return found


def existing_tests(folder: Path) -> set[str]:
    """Every test function, as `tests/room/test_x.py::test_name`."""
    return {
        f"tests/{path.relative_to(folder).as_posix()}::{node.name}"
        for path in folder.rglob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def faults_of(text: str, known: set[str]) -> list[str]:
    """What is wrong with the page."""
    found = rows(text)
    wanted = {f"{part}{number}" for part, count in ROWS.items() for number in range(1, count + 1)}
    count = Counter(row.name for row in found)
    faults = [f"{name} stands {count[name]} times" for name in sorted(wanted | set(count)) if count[name] != 1]
    faults += [f"{name} is no row" for name in sorted(set(count) - wanted)]
    faults += [f"promise P{n} has no row" for n in range(1, 7) if not any(row.promise == f"P{n}" for row in found)]
    for row in found:
        if row.state not in STATES:
            faults.append(f"{row.name}: {row.state!r} is no state")
        if row.state in ("held", "partly") and not row.tests:
            faults.append(f"{row.name} is {row.state} and names no test")
        if row.state in ("partly", "open", "does not apply") and not row.missing:
            faults.append(f"{row.name} is {row.state} and does not say what is missing")
        faults += [f"{row.name}: {test} does not exist" for test in row.tests if test not in known]
        faults += [f"{row.name} names {t} twice" for t, times in Counter(row.tests).items() if times > 1]
    states = Counter(row.state for row in found)
    told = f"{states['held']} held, {states['partly']} partly, {states['open']} open, "
    if told + f"{states['does not apply']} do not apply." not in text:
        faults.append(f"the counts are {dict(states)}")
    return faults


def test_every_row_stands_there_once_and_names_tests_that_exist() -> None:
    assert faults_of(PAGE.read_text(encoding="utf-8"), existing_tests(ROOT / "tests")) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: re.sub(r"\| C4 \|.*\n", "", text), "C4 stands 0 times"),
        (lambda text: text.replace("| C4 |", "| C5 |"), "C5 stands 2 times"),
        (lambda text: text.replace("| C4 |", "| C99 |"), "C99 is no row"),
        (lambda text: re.sub(r"(\| C1 \|[^|]*\| held \|)[^|]*", r"\1 ", text), "C1 is held and names no test"),
        (lambda text: re.sub(r"(\| D8 \|[^|]*\| open \|[^|]*\|)[^|]*", r"\1 ", text), "D8 is open and does not say"),
        (lambda text: text.replace("::test_a_damaged_gzip_stream_is_named", "::test_gone"), "::test_gone does not"),
        (lambda text: re.sub(r"(\| C1 \|[^|]*\|) held", r"\1 well", text), "'well' is no state"),
        (lambda text: re.sub(r"\d+ held", "104 held", text), "the counts are"),
        (lambda text: text.replace("## P6 ", "## Also: "), "promise P6 has no row"),
    ],
)
def test_a_page_that_lies_is_found_out(change, said: str) -> None:  # type: ignore[no-untyped-def]
    text = PAGE.read_text(encoding="utf-8")
    changed = change(text)
    assert changed != text
    assert any(said in fault for fault in faults_of(changed, existing_tests(ROOT / "tests")))

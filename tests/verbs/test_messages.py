"""Every command and option that a message names exists in the verb that prints it."""

import ast
import contextlib
import dataclasses
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import tyro

import cli
from core.detectors import CATALOGUE
from data.choices import Choices
from data.layout import LAYOUTS

ROOT = Path(cli.__file__).resolve().parent
FOLDERS = ("data", "core", "models", "pages", "verbs")
FLAG = re.compile(r"(?<![\w(/-])--[a-z][a-z0-9]*(?:[.-][a-z0-9]+)*(?!:)\b")
COMMAND = re.compile(r"python cli\.py ([a-z-]+|VERB|\{\})([^;,)`\"]*)")
SCANS = ("check", "prepare", "pretrain", "fit", "plant", "compare-pretraining", "visibility-before", "ceiling")
"""Verbs that read a data set, and print what its reader says."""
OF_OTHERS = {"--supervise", "--help"}
"""Of what is started by the dashboard and no verb, and of every verb."""
NOT_THERE = {"ceiling": {"--preprocessing.resample-masks"}}
"""Lesion masks alone are looked at, so no message about a scan's grid comes up."""
PREPARING = ("prepare", "pretrain", "fit", "compare-pretraining", "visibility-before")
WRITING = ("pretrain", "fit", "score", "evaluate", "gate", "compare-pretraining", "diagnose", "what-if",
           "post-processing", "detection-limits", "report", "visibility")  # fmt: skip
READING_RUNS = (*WRITING, "compare-layers", "neighbours", "runs")
ENGINE: dict[tuple[str, str], tuple[str, ...]] = {
    ("core/diagnosis/diagnose.py", "--protocol"): ("diagnose", "what-if", "post-processing", "report"),
    ("core/presentation/door.py", "--allow-host"): ("app",),
    ("core/presentation/door.py", "--base-path"): ("app",),
    ("core/study/doubts.py", "--keep"): PREPARING,
    ("core/study/evaluation.py", "--leave-one-out"): ("evaluate",),
    ("core/study/fitting.py", "--encoder"): ("fit",),
    ("core/study/fitting.py", "--split"): ("fit", "compare-pretraining"),
    ("core/study/opening.py", "--simclr.batch"): ("pretrain", "compare-pretraining"),
    ("core/study/opening.py", "--simclr.views.crop-voxels"): ("pretrain", "compare-pretraining"),
    ("core/study/opening.py", "--memory"): ("fit", "compare-pretraining"),
    ("core/study/opening.py", "--layers"): ("fit", "compare-pretraining"),
    ("core/study/opening.py", "--grid"): ("fit", "compare-pretraining"),
    ("core/study/gating.py", "--cut"): ("gate",),
    ("core/runs/jobs.py", "--json"): ("runs",),
    ("core/runs/lock.py", "--take-over"): WRITING,
    ("core/presentation/neighbour_pictures.py", "--picture"): ("neighbours",),
    ("core/diagnosis/neighbour_questions.py", "--layers"): ("neighbours",),
    ("core/study/pretraining_comparison.py", "--variants"): ("compare-pretraining",),
    ("core/study/pretraining_comparison.py", "--views"): ("compare-pretraining",),
    ("core/study/pretraining_comparison.py", "--seeds"): ("compare-pretraining",),
    ("core/runs/stages.py", "--leave-one-out"): ("evaluate",),
    ("core/runs/listing.py", "--runs"): READING_RUNS,
    ("core/runs/run_record.py", "--runs"): READING_RUNS,
    ("core/study/evaluation_words.py", "--leave-one-out"): ("evaluate",),
    ("core/pretraining/visibility/changes.py", "--scans"): ("visibility", "visibility-before"),
    ("cli.py", "--run-id"): ("pretrain",),
    ("data/ranges.py", "--count"): ("neighbours",),
    ("models/encoder.py", "--architecture"): ("fit",),
    ("models/encoder.py", "--width"): ("fit",),
    ("models/encoder.py", "--stem-stride"): ("fit",),
    ("models/encoder.py", "--max-pool"): ("fit",),
    ("pages/_take_over.py", "--take-over"): WRITING,
}
"""Which verbs print a message of the engine that names an option: each must have it. A new message gets its line."""
ANY = "{}"


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.py"))
    yield from (ROOT / name for name in ("app.py", "asgi.py", "cli.py"))


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every string that is no documentation; what is filled in reads {}."""
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
        and isinstance(node.body[0].value, ast.Constant)
    }
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    apart = documentation | inside | bare
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [str(p.value) if isinstance(p, ast.Constant) else ANY for p in node.values]
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in apart:
            yield node.lineno, node.value


def messages() -> Iterator[tuple[Path, int, str]]:
    """Texts with words in them that name an option or a command."""
    for path in sources():
        for line, text in texts(ast.parse(path.read_text())):
            if " " in text.strip() and (FLAG.search(text) or "cli.py" in text) and "var(--" not in text:
                yield path.relative_to(ROOT), line, text


def flags_of(verb: str) -> set[str]:
    """The options that the help of a verb lists; of `fit` those of every detector."""
    text = io.StringIO()
    for detector in CATALOGUE if verb == "fit" else ("",):
        words = ["--detector", detector] if detector else []
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            tyro.cli(cli.kind_of(verb, words), args=["--help"], prog=verb, console_outputs=True)
    heads = [line.split("  ")[0] for line in re.findall(r"^(?:│ |  )(-.*)$", text.getvalue(), re.MULTILINE)]
    return {flag for head in heads for flag in FLAG.findall(head)}


FLAGS = {verb: flags_of(verb) for verb in cli.VERBS}
MESSAGES = list(messages())


def printed_by(path: Path, flag: str) -> list[str]:
    """The verbs whose user can meet a message of a module that names an option; all of them must have it.

    A reader's message reaches whoever reads; one in a module of verbs those of its verbs that have the option.
    """
    if (named := ENGINE.get((path.as_posix(), flag))) is not None:
        return list(named)
    if path.parts[0] == "data":
        return list(SCANS)
    if path.parts[0] == "verbs":
        module = f"verbs.{path.stem}"
        own = [verb for verb, (where, _) in cli.VERBS.items() if where == module]
        return [verb for verb in own or cli.VERBS if flag in FLAGS[verb]]
    return []


def test_the_messages_are_found() -> None:
    assert len(MESSAGES) > 80
    assert any("--header-form sform" in text for _, _, text in MESSAGES)
    assert {path.parts[0] for path, _, _ in MESSAGES} >= {"data", "core", "pages", "verbs"}


@pytest.mark.parametrize(("path", "line", "text"), MESSAGES, ids=[f"{p}:{n}" for p, n, _ in MESSAGES])
def test_what_a_message_names_exists_in_the_verb_that_prints_it(path: Path, line: int, text: str) -> None:
    commanded: set[str] = set()
    for verb, rest in COMMAND.findall(text):
        if verb.startswith(("-", ANY)) or verb == "VERB":
            continue
        assert verb in cli.VERBS, f"{path}:{line} names the verb {verb!r}: {text}"
        for flag in FLAG.findall(rest):
            commanded.add(flag)
            assert flag in FLAGS[verb], f"{path}:{line}: {verb} has no {flag}: {text}"
    if path.as_posix() == "core/presentation/commands.py":
        return  # words of a command that is run, which test_cli parses
    for flag in set(FLAG.findall(text)) - commanded - OF_OTHERS:
        verbs = printed_by(path, flag)
        assert verbs, f"{path}:{line}: which verbs print this is not said in ENGINE ({flag}): {text}"
        lacking = [verb for verb in verbs if flag not in FLAGS[verb] and flag not in NOT_THERE.get(verb, ())]
        assert not lacking, f"{path}:{line}: {', '.join(lacking)} lack {flag}: {text}"


def test_the_table_of_the_engine_names_only_messages_that_exist() -> None:
    named = {(path.as_posix(), flag) for path, _, text in MESSAGES for flag in FLAG.findall(text)}
    assert set(ENGINE) <= named


@pytest.mark.parametrize(
    ("path", "line", "command"),
    [
        (path, line, match[0])
        for path, line, text in MESSAGES
        for match in COMMAND.finditer(text)
        if ANY not in match[0] and not re.search(r"[A-Z]{3,}|\.\.\.", match[0])
    ],
)
def test_a_command_without_gaps_parses_as_it_stands(path: Path, line: int, command: str) -> None:
    words = shlex.split(command.split(". ")[0].rstrip(". "))[2:]
    if words[0].startswith("-"):
        return
    tyro.cli(cli.kind_of(words[0], words[1:]), args=words[1:])


def test_the_page_on_data_names_every_layout_and_only_options_that_exist() -> None:
    page = (ROOT / "docs" / "data.md").read_text()
    assert (
        set(FLAG.findall(page)) - {"--preprocessing.resample-masks"} <= FLAGS["check"] & FLAGS["prepare"] & FLAGS["fit"]
    )
    told = page.casefold()
    for layout in (
        "table",
        "BIDS",
        "IXI",
        "BraTS",
        "nnU-Net",
        "WMH",
        "UPENN-GBM",
        "MSD",
        "cohort.toml",
        "MSSEG",
        "Shifts",
    ):
        assert layout.casefold() in told
    assert len(LAYOUTS) == 8, "a new layout belongs on docs/data.md"


def test_every_choice_of_the_reader_is_a_flag_of_every_verb_that_reads() -> None:
    for verb in SCANS:
        assert {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Choices)} <= FLAGS[verb]

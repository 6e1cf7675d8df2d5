"""What only reads comes quickly: the verbs that compute nothing import no library that computes."""

import subprocess
import sys
from pathlib import Path

import pytest

import cli
from tests.study import TinyStudy

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "monai", "nilearn", "plotly", "streamlit", "faiss", "sklearn", "ants", "safetensors", "pandas")
SCRIPT = """
import sys
import cli
code = cli.main(sys.argv[2:])
loaded = [name for name in sys.argv[1].split(",") if name in sys.modules]
sys.exit(f"loaded: {loaded}" if loaded else code)
"""


def light(*argv: object) -> subprocess.CompletedProcess[str]:
    """One verb in a process of its own, which fails when it has loaded a heavy library."""
    words = [sys.executable, "-c", SCRIPT, ",".join(HEAVY), *map(str, argv)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("argv", [[], ["--help"], ["detectors"], ["detectors", "--json"], ["nonsense"]], ids=str)
def test_lists_and_help_load_nothing_that_computes(argv: list[str]) -> None:
    done = light(*argv)
    assert done.returncode == (2 if argv == ["nonsense"] else 0), done.stderr


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_the_help_of_every_verb_loads_nothing_that_computes(verb: str) -> None:
    done = light(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert "Example: python cli.py" in " ".join(done.stdout.replace("│", " ").split())


@pytest.mark.parametrize("verb", ["runs", "compare-layers", "check"])
@pytest.mark.parametrize("as_json", [False, True])
def test_reading_results_and_scans_loads_nothing_that_computes(verb: str, as_json: bool, study: TinyStudy) -> None:
    argv = {
        "runs": ["runs", "--runs", study.runs],
        "compare-layers": ["compare-layers", "tiny", "--runs", study.runs],
        "check": ["check", study.table],
    }[verb]
    done = light(*argv, *(["--json"] if as_json else []))
    assert done.returncode == 0, done.stderr
    assert done.stdout

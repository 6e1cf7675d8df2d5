"""What several tests share: one tiny study, built once."""

from pathlib import Path

import pytest

from tests.study import TinyStudy, build_study

LONGEST = (
    *("kill_sweep", "same_numbers", "readme", "others_go_on", "planted_causes", "corruption", "whatif"),
    *("pretraining_comparison", "diagnosis_page", "many_runs", "simclr", "report", "dashboard", "training", "door"),
    *("read_only_runs", "hostile_volumes", "postprocessing", "experiment", "full_disk", "kill", "preprocessing"),
    *("visibility", "hostile_ids", "benchmarks", "detection_limits", "hostile_pages", "diagnose", "versions"),
)
"""Test files of more than half a minute, roughly longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let long files begin first, so that of two processes none is left with a long one at the end."""
    place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """The tiny study. It is read-only by agreement: `study.copy(tmp_path / "mine")` is there to be changed."""
    return build_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def own_study(study: TinyStudy, tmp_path: Path) -> TinyStudy:
    """A copy of the tiny study that the test may change."""
    return study.copy(tmp_path / "study")

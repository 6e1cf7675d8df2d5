"""What several tests share: one tiny study, built once."""

from pathlib import Path

import pytest

from tests.study import TinyStudy, build_study


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """The tiny study. It is read-only by agreement: `study.copy(tmp_path / "mine")` is there to be changed."""
    return build_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def own_study(study: TinyStudy, tmp_path: Path) -> TinyStudy:
    """A copy of the tiny study that the test may change."""
    return study.copy(tmp_path / "study")

"""The form that fits a detector: every setting of every recipe can be said, and what is started says the same."""

from pathlib import Path
from typing import Any

import pytest
import tyro
from streamlit.testing.v1 import AppTest

import cli
from core.detectors import CATALOGUE, make, recipe_json
from core.detectors.capabilities import LayerSets, can
from core.fields import settings_of
from pages._fit import ELSEWHERE
from pages._text import plain
from tests.study import TinyStudy
from verbs.fit import detector_of


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the form starts, instead of a job."""
    found: list[list[str]] = []
    monkeypatch.setattr("pages._fit.start", lambda argv: found.append(list(argv)))
    return found


def opened(study: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setenv("DICESCOPE_RUNS", str(study.runs))

    def page() -> None:
        from core.runs.listing import open_run
        from pages._fit import fit_form
        from pages._shared import runs_directory

        fit_form(open_run(runs_directory(), "tiny-encoder"))

    app = AppTest.from_function(page, default_timeout=60).run()
    assert not app.exception
    return app


def widgets(app: AppTest) -> dict[str, Any]:
    return {w.key: w for w in (*app.selectbox, *app.text_input, *app.checkbox, *app.button)}


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_every_setting_of_a_recipe_is_asked_with_its_text_and_its_value(
    name: str, study: TinyStudy, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(study, monkeypatch)
    widgets(app)["fit-detector"].set_value(name)
    app.run()
    found, recipe = widgets(app), CATALOGUE[name].recipe
    elsewhere = ELSEWHERE if can(recipe, LayerSets) else ()
    for setting in settings_of(recipe):
        if not setting.place.startswith(tuple(elsewhere)):
            assert found[f"fit-{name}-{setting.place}"].help == plain(setting.text)
    found["fit-start"].click()
    app.run()
    [argv] = started
    arguments = tyro.cli(cli.kind_of("fit", argv[1:]), args=argv[1:])
    made, encoder = detector_of(arguments)
    wanted = {one.place: one.value for one in settings_of(make(name))}
    assert {one.place: one.value for one in settings_of(made)} == wanted
    assert (encoder is not None) == can(recipe, LayerSets)
    assert recipe_json(made)["kind"] == recipe_json(recipe)["kind"]
    assert arguments.split is not None


def test_what_is_asked_for_is_what_is_started(
    study: TinyStudy, started: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    app = opened(study, monkeypatch)
    found = widgets(app)
    found["fit-gaussian-gaussian.ridge"].set_value("0,05")
    found["fit-gaussian-gaussian.shrinkage"].set_value("oas")
    found["fit-gaussian-features.layers"].set_value("input, stage1")
    found["fit-gaussian-features.grid"].set_value("8mm")
    found["fit-gaussian-name"].set_value("Mine & yours")
    app.run()
    widgets(app)["fit-start"].click()
    app.run()
    [argv] = started
    made, encoder = detector_of(tyro.cli(cli.kind_of("fit", argv[1:]), args=argv[1:]))
    recipe = recipe_json(made)
    assert (recipe["gaussian"]["ridge"], recipe["gaussian"]["shrinkage"]) == (0.05, "oas")
    assert (recipe["features"]["layers"], recipe["features"]["grid"]) == (["input", "stage1"], "8mm")
    assert encoder is not None
    assert "--name=Mine & yours" in argv
    assert argv[argv.index("--run-id") + 1].startswith("mine-yours-")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [("gaussian.ridge", "much", "gaussian.ridge is 'much'"), ("median_voxels", "1.5", "whole number"),
     ("gaussian.ridge", "-1", "ridge is -1"), ("median_voxels", "4", "median")],
)  # fmt: skip
def test_what_is_out_of_range_is_told_and_nothing_can_be_started(
    field: str, value: str, told: str, study: TinyStudy, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(study, monkeypatch)
    widgets(app)[f"fit-gaussian-{field}"].set_value(value)
    app.run()
    assert told in app.error[0].value.replace("\\", "")
    assert "fit-start" not in widgets(app)
    assert not started

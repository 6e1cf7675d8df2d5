"""The report: one file that asks nobody for anything, believes no name, and says what the evaluation says."""

import base64
import dataclasses
import html
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
from PIL import Image
from playwright.sync_api import sync_playwright

import cli
from core.detectors import recipe_json
from core.presentation.decision_words import density_name
from core.presentation.figures import results as figures
from core.presentation.report.charts import Dot, dots, error_bars, hatches, ladder, subject_dots, whole
from core.presentation.report.document import POLICY, framed, is_report, report_html, write_report
from core.presentation.report.limits import detection_limits, post_processing
from core.presentation.report.markup import Html, tag
from core.presentation.report.pictures import (
    LESION_RGB,
    SEGMENTATION_RGB,
    case_pictures,
    centre_of_interest,
    score_colours,
)
from core.presentation.report.repeat import commands_of, in_words, without_machine
from core.presentation.report.style import STYLE
from core.presentation.report.words import interval, number, percent, signed
from core.progress import Progress
from core.runs.evaluated import read_metrics
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.runs.stages import stage_name
from core.study.evaluation import evaluate_run
from data.errors import BadInput, EnvironmentProblem
from data.names import folder_name
from data.prepared import Prepared
from data.volume import Grid, Mask, Volume
from tests.browser import FLAGS, find_chromium
from tests.diagnosis_example import example
from tests.study import TinyStudy, recommit, write_record
from verbs.fit import detector_of

MARKUP = '"><img src=x onerror=alert(1)>'
NAME = 'it\'s "Größe" <b>脳</b> & co'


class Parts(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for element, attributes in self.elements if element == name]


def ids_of(run: Run, layer_set: str = "stage1") -> list[str]:
    rows = read_metrics(run)["sets"][layer_set]["native"]["protocols"]["healthy"]["subjects"]
    return [row["subject_id"] for row in rows]


def diagnosis(run: Run, layer_set: str = "stage1") -> dict[str, Any]:
    return example(ids_of(run, layer_set), run_id=run.run_id, layer_set=layer_set)


@pytest.fixture(scope="module")
def run(study: TinyStudy) -> Run:
    return open_run(study.runs, "tiny")


@pytest.fixture(scope="module")
def document(run: Run) -> str:
    return report_html(run, diagnosis(run))


@pytest.fixture
def poisoned(own_study: TinyStudy) -> Run:
    """A run whose name, subjects, site, cohort and layer notes try to be markup."""
    directory = own_study.runs / "tiny"
    scores = directory / "scores"
    (scores / "test01").rename(scores / folder_name(MARKUP))
    recommit(scores / folder_name(MARKUP), stage=stage_name("scores", MARKUP))
    record, metrics = directory / "run.json", directory / "evaluation" / "metrics.json"
    changed = json.loads(record.read_text().replace('"test01"', json.dumps(MARKUP)))
    write_record(record, changed)
    recommit(metrics.parent, {metrics.name: metrics.read_text().replace('"test01"', json.dumps(MARKUP))})
    key = next(s["key"] for s in changed["cohort"]["subjects"] if s["subject_id"] == MARKUP)
    entry = own_study.runs / ".cache" / "prepared" / key
    prepared = json.loads((entry / "record.json").read_text()) | {"subject_id": MARKUP}
    recommit(entry, {"record.json": json.dumps({k: v for k, v in prepared.items() if k != "made_from"})})
    run = open_run(own_study.runs, "tiny")
    cohort = run.record["cohort"] | {
        "name": MARKUP,
        "citation": MARKUP,
        "notes": [MARKUP],
        "set_aside": [
            {"subject_id": MARKUP, "path": "/home/me/x.nii", "code": MARKUP, "reason": f"/home/me/x.nii {MARKUP}"}
        ],
    }
    cohort["subjects"] = [s | {"site": MARKUP} for s in cohort["subjects"]]
    return dataclasses.replace(run, record=run.record | {"name": MARKUP, "cohort": cohort})


def test_it_holds_nothing_that_asks_for_anything(document: str) -> None:
    parts = Parts(document)
    names = {name for name, _ in parts.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base", "video", "audio", "image", "use"}
    for name, attributes in parts.elements:
        assert not [key for key in attributes if key.startswith("on")], name
        for key in ("src", "href", "srcset", "action", "xlink:href", "data", "poster"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), (name, key)
    assert "@import" not in document
    assert not re.findall(r"url\((?!#)", document)
    assert parts.of("meta")[1] == {"http-equiv": "Content-Security-Policy", "content": POLICY}
    assert POLICY.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_every_link_inside_leads_to_a_section(document: str) -> None:
    parts = Parts(document)
    targets = {str(a["id"]) for _, a in parts.elements if "id" in a}
    links = [str(a["href"]) for a in parts.of("a")]
    assert len(links) > 10
    assert {link.removeprefix("#") for link in links} <= targets
    assert set(re.findall(r"url\(#([\w-]+)\)", document)) <= targets


def test_names_from_data_stay_text(poisoned: Run) -> None:
    found = diagnosis(poisoned)
    found["verdict"]["sentence"] = found["notes"][0] = MARKUP
    for row in (*found["rungs"], *found["error_map"], *found["causes"], *found["what_ifs"]):
        row["title"] = MARKUP
    for row in (*found["lesions"], *found["subjects"]):
        row |= {"region": MARKUP, "site": MARKUP}
    parts = Parts(report_html(poisoned, found))
    assert all(str(image["src"]).startswith("data:image/png") for image in parts.of("img"))
    assert len(parts.of("img")) == 8
    assert not [name for name, attributes in parts.elements if "onerror" in attributes]
    assert parts.text.count(MARKUP) > 60
    assert "/home/me" not in parts.text


def test_a_run_named_with_quotes_and_other_scripts_keeps_its_name(run: Run) -> None:
    named = dataclasses.replace(run, record=run.record | {"name": NAME + "\ud800"})
    parts = Parts(report_html(named, None).encode("utf-8").decode("utf-8"))
    assert NAME in parts.text
    assert "b" not in {name for name, attributes in parts.elements if attributes.get("class") == "h1"}
    assert [a for name, a in parts.elements if name == "h1"] == [{}]


def test_plain_text_is_escaped_and_markup_is_not() -> None:
    made = tag("p", "<b>", Html("<i>"), kind='"x', attributes={"title": "'&", "hidden": None, "width": 1 / 3})
    assert made.text == '<p class="&quot;x" title="&#x27;&amp;" width="0.333333">&lt;b&gt;<i></p>'
    assert tag("rect", attributes={"x": 1}).text == '<rect x="1"></rect>'
    assert tag("br").text == "<br>"


def test_the_headline_is_the_evaluations_own(run: Run) -> None:
    metrics = read_metrics(run)
    found = metrics["sets"][metrics["headline"]]["native"]["protocols"]["healthy"]
    text = Parts(report_html(run, None)).text
    assert f"Mean Dice{found['mean_dice']:.3f}95 % interval [{found['ci_low']:.3f}, {found['ci_high']:.3f}]" in text
    assert "n = 3 subjects with lesions" in text
    assert "native space" in text


def test_every_protocol_stands_in_the_table_and_oracles_are_called_so(run: Run, document: str) -> None:
    rows = re.findall(r"<tr[^>]*>.*?</tr>", document)
    for name, found in read_metrics(run)["sets"]["stage1"]["native"]["protocols"].items():
        told = f"{found['mean_dice']:.3f} [{found['ci_low']:.3f}, {found['ci_high']:.3f}]"
        row = next(r for r in rows if found["rule"] in r)
        assert told in row
        assert (">oracle<" in row) == found["oracle"] == name.startswith("oracle")
        assert (">deployed<" in row) == (name == "healthy")


def test_without_a_diagnosis_it_says_how_to_get_one(run: Run) -> None:
    text = Parts(report_html(run, None)).text
    assert "python cli.py diagnose tiny" in text
    assert "Where the Dice is lost" not in text
    assert "Best and worst cases" in text


def test_with_a_diagnosis_every_part_of_it_is_told(run: Run, document: str) -> None:
    found, text = diagnosis(run), Parts(document).text
    assert found["verdict"]["sentence"] in text
    for row in (*found["rungs"], *found["error_map"], *found["causes"], *found["what_ifs"]):
        assert row["title"] in text
    for row in found["decisions"]:
        assert density_name(row) in text
    for row in found["layers"]:
        assert f"{row['layer']}{row['spacing_mm']:g} mm{row['ceiling']:.3f}" in text
    assert "A second rater's lesion masks." in text
    assert "add up to 1.000000" in text
    assert "python cli.py what-if tiny" in text


def test_a_run_with_healthy_test_scans_only_has_a_report(own_study: TinyStudy) -> None:
    run = open_run(own_study.runs, "tiny")
    write_record(run.directory / "run.json", run.record | {"split": run.record["split"] | {"test": ["test04"]}})
    assert cli.main(["evaluate", "tiny", "--runs", str(own_study.runs), "--workers", "1"]) == 0
    run = open_run(own_study.runs, "tiny")
    parts = Parts(report_html(run, None))
    assert "False positives per healthy scan" in parts.text
    assert "No test scan has a lesion mask, so there is no Dice to explain." in parts.text
    assert "diagnose" not in parts.text
    assert len(parts.of("img")) == 2


def test_without_its_prepared_scans_only_the_pictures_are_missing(own_study: TinyStudy) -> None:
    (own_study.runs / ".cache").rename(own_study.root / "elsewhere")
    parts = Parts(report_html(open_run(own_study.runs, "tiny"), None))
    assert not parts.of("img")
    assert "so there are no pictures" in parts.text
    assert "Results under every threshold" in parts.text


def test_what_cannot_be_reported_says_what_to_do(own_study: TinyStudy) -> None:
    run = open_run(own_study.runs, "tiny")
    with pytest.raises(BadInput, match=r"cli\.py runs"):
        report_html(open_run(own_study.runs, "tiny-encoder"), None)
    with pytest.raises(BadInput, match="diagnose tiny"):
        report_html(run, {**diagnosis(run), "run_id": "another"})
    with pytest.raises(BadInput, match="layer set 'stage9'"):
        report_html(run, {**diagnosis(run), "layer_set": "stage9"})
    for path in (run.directory / "evaluation").iterdir():
        path.unlink()
    with pytest.raises(BadInput, match="evaluate tiny"):
        report_html(run, None)


def test_a_diagnosis_of_an_older_evaluation_is_called_so(run: Run, document: str) -> None:
    fresh = diagnosis(run)
    fresh["dice"]["mean"] = read_metrics(run)["sets"]["stage1"]["native"]["protocols"]["healthy"]["mean_dice"]
    assert "the run was evaluated since" in Parts(document).text
    assert "the run was evaluated since" not in Parts(report_html(run, fresh)).text


def test_how_often_the_test_set_was_looked_at_is_told(own_study: TinyStudy) -> None:
    run = open_run(own_study.runs, "tiny")
    assert "The test set was evaluated 1 time by this run." in Parts(report_html(run, None)).text
    evaluate_run(run, Progress(False, io.StringIO()), workers=1)
    assert "The test set was evaluated 2 times by this run." in Parts(report_html(run, None)).text
    (run.directory / "events.jsonl").unlink()
    assert "is not recorded in this run" in Parts(report_html(run, None)).text


def test_set_aside_subjects_keep_their_reason_and_lose_their_path(poisoned: Run) -> None:
    text = Parts(report_html(poisoned, None)).text
    assert f"x.nii {MARKUP}" in text
    assert "Set aside: 1 subject" in text


def test_a_report_is_small_and_names_no_folder_of_the_machine(run: Run, document: str, study: TinyStudy) -> None:
    assert len(document.encode()) < 5e6
    assert str(study.root) not in document
    assert str(Path.home()) not in document


def test_writing_replaces_a_report_and_nothing_else(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    assert write_report(run, None, path) == path
    assert is_report(path)
    assert write_report(run, diagnosis(run), path) == path
    assert "Where the Dice is lost" in path.read_text(encoding="utf-8")
    mine = tmp_path / "thesis.html"
    mine.write_text("three years")
    with pytest.raises(BadInput, match="not a report"):
        write_report(run, None, mine)
    assert mine.read_text() == "three years"
    assert is_report(write_report(run, None, mine, overwrite=True))
    with pytest.raises(BadInput, match=r"tiny\.html"):
        write_report(run, None, tmp_path)


def test_a_full_disk_leaves_the_older_report(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(run, None, tmp_path / "report.html")
    before = path.read_bytes()

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(EnvironmentProblem, match="No space left"):
        write_report(run, diagnosis(run), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# Charts


def rects(chart: Html, kind: str) -> list[dict[str, float]]:
    found = [a for a in Parts(chart.text).of("rect") if kind in str(a.get("class")).split()]
    return [{key: float(str(a[key])) for key in ("x", "y", "width")} for a in found]


def test_bars_of_the_error_map_are_as_long_as_their_costs() -> None:
    costs = {"a": 0.3, "b": 0.12, "c": 0.06}
    rows = [{"id": k, "kind": "fp", "title": k, "cost": v, "low": None, "high": None} for k, v in costs.items()]
    widths = [bar["width"] for bar in rects(error_bars(rows), "fill")]
    np.testing.assert_allclose(np.array(widths) / widths[0], np.array(list(costs.values())) / 0.3, rtol=1e-4)


def test_a_negative_cost_lies_on_the_other_side_of_zero() -> None:
    rows = [
        {"id": "a", "kind": "fp", "title": "a", "cost": 0.2, "low": 0.1, "high": 0.3},
        {"id": "b", "kind": "space", "title": "b", "cost": -0.1, "low": -0.2, "high": 0.0},
    ]
    (right,), (left,) = rects(error_bars(rows), "fp"), rects(error_bars(rows), "space")
    assert left["x"] + left["width"] == pytest.approx(right["x"], abs=0.01)
    assert left["width"] == pytest.approx(right["width"] / 2, rel=1e-4)


def test_bars_are_hollow_and_hatched_where_the_diagnosis_says_so() -> None:
    rungs = [
        {"id": "reference", "title": "r", "mean": 1.0, "cost": 0.0, "needs_labels": True, "hollow": False},
        {"id": "grid", "title": "g", "mean": 0.6, "cost": 0.4, "needs_labels": True, "hollow": False},
        {"id": "set", "title": "s", "mean": 0.5, "cost": 0.1, "needs_labels": True, "hollow": True},
        {"id": "deployed", "title": "d", "mean": 0.3, "cost": 0.2, "needs_labels": False, "hollow": False},
        {"id": "native", "title": "n", "mean": 0.25, "cost": 0.05, "needs_labels": False, "hollow": True},
    ]
    chart = ladder(rungs)
    full, hollow = rects(chart, "fill"), rects(chart, "hollow")
    lost = [bar for bar in Parts(chart.text).of("rect") if str(bar["class"]).endswith(" cost")]
    hatched = [bar for bar in Parts(chart.text).of("rect") if bar["class"] == "over"]
    assert [str(bar["class"]).split()[0] for bar in lost] == ["fill", "hollow", "fill", "hollow"]
    assert [bar["y"] for bar in hatched] == [bar["y"] for bar in lost[:2]]
    np.testing.assert_allclose([float(str(b["width"])) for b in lost], np.array([0.4, 0.1, 0.2, 0.05]) * 460, rtol=1e-4)
    assert len(full) == len(rungs) + 2
    assert len(hollow) == 2
    dice = rects(chart, "dice")
    assert [bar["width"] for bar in dice] == pytest.approx([0.25 * 460])


def test_dice_and_costs_fill_one_bar_in_proportion() -> None:
    rows = [{"kind": "fp", "title": "a", "cost": 0.5}, {"kind": "fn", "title": "b", "cost": 0.3}]
    chart = whole(0.2, [*rows, {"kind": "space", "title": "c", "cost": 0.0}])
    widths = [rects(chart, kind)[0]["width"] + 2 for kind in ("dice", "fp", "fn")]
    assert widths == pytest.approx([200, 500, 300])
    assert not rects(chart, "space")


def test_every_subject_has_a_dot_where_its_dice_and_volume_are() -> None:
    rows = [
        {"subject_id": "a", "dice": 0.0, "lesion_ml": 0.1, "best": 0.5},
        {"subject_id": "b", "dice": 1.0, "lesion_ml": 10.0, "best": None},
        {"subject_id": "c", "dice": 0.5, "lesion_ml": 1.0, "best": 0.5},
    ]
    circles = Parts(subject_dots(rows, 0.5).text).of("circle")
    x, y = ([float(str(c[key])) for c in circles] for key in ("cx", "cy"))
    assert x[2] - x[0] == pytest.approx(x[1] - x[2])
    assert y[0] - y[2] == pytest.approx(y[2] - y[1])
    assert y[0] > y[1]
    assert not subject_dots([rows[0] | {"lesion_ml": 0.0}], None)


def test_dots_stand_on_one_scale_with_their_intervals() -> None:
    chart = Parts(dots([Dot("a", 0.1, -0.1, 0.3), Dot("b", 0.2, None, None)], "gain").text)
    x = [float(str(c["cx"])) for c in chart.of("circle")]
    lines = [str(p["d"]) for p in chart.of("path") if str(p["class"]).startswith("line whisker")]
    assert len(lines) == 1
    low, high = (float(v) for v in re.findall(r"[ML]([\d.]+) ", lines[0]))
    assert x[0] == pytest.approx((low + high) / 2, abs=0.01)
    assert x[1] - x[0] == pytest.approx((high - low) / 4, abs=0.01)


def test_charts_without_rows_are_nothing_and_their_patterns_are_there_once(document: str) -> None:
    assert not ladder([])
    assert not error_bars([])
    assert not dots([], "gain")
    assert len(Parts(hatches().text).of("pattern")) == 4
    assert document.count('id="hatch-cost"') == 1


# Pictures


def head(lesion_at: tuple[int, int, int] | None) -> Prepared:
    """An empty head of 20 x 24 x 16 voxels, brain everywhere but at its rim, with one small lesion."""
    grid = Grid((20, 24, 16), np.diag([2.0, 2.0, 2.0, 1.0]))
    brain = np.zeros(grid.shape, dtype=bool)
    brain[2:-2, 2:-2, 2:-2] = True
    lesion = np.zeros(grid.shape, dtype=bool)
    if lesion_at is not None:
        lesion[lesion_at] = True
    volume = Volume(np.where(brain, 0.5, 0)[None].astype(np.float32), grid, brain, "a", ("T1",))
    mask = Mask(lesion, grid)
    return Prepared(volume, mask, grid, Mask(brain, grid), mask, np.eye(4), (), "", "")


def pixels(uri: str) -> np.ndarray:
    kind, _, png = uri.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))


def where(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.argwhere((picture == colour).all(axis=2))


def test_a_lesion_of_one_voxel_is_outlined_on_its_own_side_in_every_plane() -> None:
    prepared = head((15, 18, 12))  # right, front, top
    scores = np.full((20, 24, 16), np.nan, dtype=np.float32)
    scores[prepared.volume.brain_mask] = 1.0
    made = case_pictures(prepared, scores, 2.0, 3.0)
    assert made.centre == (15, 18, 12)
    for picture in map(pixels, (made.scan, made.scores)):
        rows, columns = where(picture, LESION_RGB).T
        width = (picture.shape[1] - 12) / 64  # pixels per voxel of two planes of 20 voxels and one of 24
        axial, coronal = columns[columns < 20 * width], columns[(columns > 20 * width) & (columns < 40 * width + 6)]
        sagittal = columns[columns > 40 * width + 12]
        assert axial.size
        assert axial.max() < 10 * width  # the subject's right is on the left
        assert coronal.size
        assert coronal.max() < 30 * width + 6
        assert sagittal.size
        assert sagittal.max() < 52 * width + 12  # the front is on the left
        assert rows[(columns > 20 * width)].max() < picture.shape[0] / 2  # the top is up
    assert not len(where(pixels(made.scan), SEGMENTATION_RGB))


def test_the_segmentation_is_outlined_where_the_score_reaches_the_threshold() -> None:
    prepared = head(None)
    scores = np.full((20, 24, 16), np.nan, dtype=np.float32)
    scores[prepared.volume.brain_mask] = 1.0
    scores[4:9, 5:10, 6:11] = 5.0
    made = case_pictures(prepared, scores, 5.0, 5.0)
    assert all(4 <= c < 9 for c in made.centre[:1])
    assert len(where(pixels(made.scan), SEGMENTATION_RGB)) > 100
    assert not len(where(pixels(made.scan), LESION_RGB))
    brightest = score_colours()[252]
    assert len(where(pixels(made.scores), tuple(brightest))) > 1000


def test_the_cut_goes_through_the_largest_lesion_not_through_the_largest_sum() -> None:
    prepared = head(None)
    lesion = np.zeros((20, 24, 16), dtype=bool)
    lesion[4:7, 4:7, 4:7] = True  # 27 voxels in one piece
    lesion[15, 3:22:2, 10] = True  # ten single voxels in one plane
    lesion[15, 3:22:2, 12] = True
    prepared = dataclasses.replace(prepared, lesion=Mask(lesion, prepared.volume.grid))
    x, y, z = centre_of_interest(prepared, np.zeros_like(lesion))
    assert all(4 <= c < 7 for c in (x, y, z))


def test_colours_are_those_of_the_slices_page_and_of_the_charts() -> None:
    script = (Path(__file__).parents[3] / "pages/_viewer/static/colours.js").read_text()
    for name, colour in (("LESION", LESION_RGB), ("SEGMENTATION", SEGMENTATION_RGB)):
        assert f'{name} = "#{bytes(colour).hex()}"' in script
    assert f"--accent: {figures.HEALTHY}" in STYLE
    colours = score_colours().astype(float)
    lightness = colours[1:253] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > -1.5).all()
    assert colours[0].tolist() == [0, 0, 0]


# Commands and words


def test_the_commands_are_accepted_and_describe_the_same_detector(study: TinyStudy, monkeypatch: Any) -> None:
    monkeypatch.chdir(study.root)
    for name in ("tiny", "tiny-intensity"):
        run = open_run(Path("runs"), name)
        made = commands_of(run, read_metrics(run), None)
        verbs = [words[0] for words in made]
        assert verbs == [*(["pretrain"] if name == "tiny" else []), "fit", "score", "evaluate", "report"]
        for verb, *words in made:
            arguments = tyro.cli(cli.kind_of(verb, words), args=words)
            if verb == "fit":
                detector, _ = detector_of(arguments)
                wanted = dict(run.record["recipe"]) | {"weights": ""} if name == "tiny" else run.record["recipe"]
                assert recipe_json(detector) == wanted
                assert (
                    json.loads(json.dumps(dataclasses.asdict(arguments.preprocessing))) == run.record["preprocessing"]
                )
                assert arguments.cohort == Path("scans/cohort.csv")
            if verb == "pretrain":
                assert {"kind": "SimCLR", **json.loads(json.dumps(dataclasses.asdict(arguments.simclr)))} == open_run(
                    Path("runs"), "tiny-encoder"
                ).record["recipe"]


def test_the_first_command_writes_the_split(study: TinyStudy, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(study.root)
    run = open_run(Path("runs"), "tiny")
    first = in_words(run, read_metrics(run), None)[0].replace("python", sys.executable, 1)
    here = tmp_path / "here"
    here.mkdir()
    (here / "runs").symlink_to(study.runs)
    subprocess.run(first, shell=True, cwd=here, check=True)
    assert json.loads((here / "split.json").read_text()) == run.record["split"]


def test_stored_explorations_are_among_the_commands(run: Run) -> None:
    found = diagnosis(run, "stage1") | {"post_processing": {"rows": []}, "protocol": "validation"}
    made = commands_of(run, read_metrics(run), found)
    assert ["what-if", "tiny", found["what_ifs"][0]["name"], "--layers", "stage1"] in [w[:5] for w in made]
    assert [w[0] for w in made][-3:] == ["post-processing", "diagnose", "report"]
    assert made[-1][-4:] == ["--layers", "stage1", "--protocol", "validation"]
    for verb, *words in made:
        tyro.cli(cli.kind_of(verb, words), args=words)


def test_paths_lose_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert without_machine(Path("runs")) == "runs"
    assert without_machine(tmp_path / "a" / "runs") == "a/runs"
    assert without_machine(Path("/srv/secret/runs")) == "runs"
    assert without_machine(Path("/srv/lab/scans/cohort.csv"), Path("/srv/lab/runs")) == "scans/cohort.csv"
    assert without_machine(Path("/home/me/ixi/cohort.csv"), Path("/srv/lab/runs")) == "ixi/cohort.csv"


def test_numbers_have_true_signs_and_no_negative_zero() -> None:
    assert [number(v) for v in (None, 0.12345, -0.5, -0.0001)] == ["–", "0.123", "−0.500", "0.000"]
    assert [signed(v) for v in (None, 0.1, -0.1, -0.0001)] == ["–", "+0.100", "−0.100", "0.000"]
    assert interval(0.1, None) == ""
    assert interval(-0.1, 0.25) == "[−0.100, 0.250]"
    assert percent(0.00223) == "0.22 %"


# Stored explorations


def quoted(dice: float, **settings: float) -> dict[str, Any]:
    every = {"smoothing_mm": 0.0, "median_voxels": 0, "erosion_voxels": 0, "min_component_mm3": 0.0} | settings
    return {
        **{"settings": every, "protocol": "healthy", "threshold": 2.0, "validation_dice": 0.3, "dice": dice},
        **{"low": dice - 0.1, "high": dice + 0.1, "n": 8, "false_ml": 1.0, "gain": 0.05, "gain_low": -0.01},
        "gain_high": 0.1,
    }


def test_post_processing_tells_own_best_and_oracle() -> None:
    shipped, best = {"healthy": quoted(0.2)}, {"healthy": quoted(0.25, smoothing_mm=2.0)}
    oracle = {"healthy": {**quoted(0.4, median_voxels=3), "oracle": True}}
    found = {"rows": [{}] * 7, "test_subjects": ["a", "b"], "shipped": shipped, "notes": ["only a test"]}
    shown = post_processing({**found, "best_on_validation": best, "best_on_test": oracle})
    text = Parts(shown.text).text
    for wanted in ("0.200", "0.250", "0.400", "only a test", "7 combinations", "2 test subjects"):
        assert wanted in text
    assert shown.text.count('<tr class="oracle">') == 1
    assert not post_processing(None)


def test_detection_limits_show_the_share_found_in_every_cell() -> None:
    cells = [
        {"diameter_mm": d, "contrast_sd": c, "site": "all", "n": 12, "found": f, "sensitivity": f / 12}
        for d, c, f in ((8.0, -2.0, 3), (8.0, 2.0, 6), (16.0, -2.0, 9), (16.0, 2.0, 12))
    ]
    limit = {"diameter_mm": 8.0, "site": "all", "sign": "brighter", "contrast_sd_50": 1.75, "why_50": None}
    level = {
        "limits": [limit | {"contrast_sd_80": None, "why_80": "never, up to the strongest contrast"}],
        **{"id": "own", "title": "the run's own", "threshold": {"mean": 2.0}, "cells": cells},
        **{"false_positive_ml_per_scan": 3.25, "false_positive_components_per_scan": 4.0},
    }
    found = {"levels": [level], "n_lesions": 48, "n_scans": 4, "rule": "found: overlap", "notes": []}
    text = Parts(detection_limits(found).text).text
    for wanted in (
        "25 % of 12",
        "50 % of 12",
        "75 % of 12",
        "100 % of 12",
        "3.2 mL",
        "30 of 48",
        "−2 SD",
        "+1.8 SD",
        "never, up to",
    ):
        assert wanted in text
    assert not detection_limits(None)


def test_every_stored_exploration_is_told_as_it_was_stored(own_study: TinyStudy, capsys: Any) -> None:
    runs = ["--runs", str(own_study.runs)]
    planted = ["--per-cell", "2", "--diameters-mm", "16", "24", "--contrasts-sd", "-3", "3"]
    for words in (["what-if", "tiny", "erode-mask"], ["detection-limits", "tiny", *planted]):
        assert cli.main([*words, *runs]) == 0
    assert cli.main(["post-processing", "tiny", *runs, "--workers", "1"]) == 0
    path = own_study.root / "report.html"
    assert cli.main(["report", "tiny", *runs, "--out", str(path)]) == 0
    capsys.readouterr()
    assert cli.main(["diagnose", "tiny", *runs, "--json"]) == 0
    found, parts = json.loads(capsys.readouterr().out), Parts(path.read_text("utf-8"))
    assert found["verdict"]["sentence"] in parts.text
    assert f"Mean Dice{found['dice']['mean']:.3f}" in parts.text
    for row in (*found["rungs"], *found["error_map"], *found["causes"]):
        assert row["title"] in parts.text
    (eroded,) = found["what_ifs"]
    best = max(eroded["variants"], key=lambda v: v["validation_by_protocol"]["healthy"]["gain"])
    assert best["title"] in parts.text
    assert signed(best["test"]["healthy"]["gain"]) in parts.text
    chosen = found["post_processing"]["best_on_validation"]["validation"]
    assert f"{number(chosen['dice'])} {interval(chosen['low'], chosen['high'])}" in parts.text
    for cell in found["detection_limits"]["levels"][0]["cells"]:
        if cell["site"] == "all":
            assert f"{100 * cell['sensitivity']:.0f} % of {cell['n']}" in parts.text
    commands = [line for line in parts.text.split("python cli.py ") if line.startswith("what-if tiny erode-mask")]
    assert len(commands) == 1
    assert "the run was evaluated since" not in parts.text


# In a browser


@pytest.mark.browser
def test_a_browser_asks_for_nothing_and_prints_every_page(run: Run, tmp_path: Path) -> None:
    path = write_report(run, diagnosis(run), tmp_path / "report.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        requests: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(path.as_uri())
        assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
        assert complaints == []
        assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 500)")
        for width in (1280, 700):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.emulate_media(color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 17, 23)"
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        printed = page.pdf(prefer_css_page_size=True, print_background=False)
        browser.close()
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 20
    assert b"/MediaBox [0 0 594" in printed or b"/MediaBox [0 0 595" in printed


@pytest.mark.browser
def test_links_in_a_frame_stay_in_the_frame(document: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        page = browser.new_page()
        page.set_content(f'<iframe width="1000" height="800" srcdoc="{html.escape(framed(document))}">')
        frame = page.frames[1]
        frame.click("nav a:last-child")
        for _ in range(100):  # the policy forbids the functions that Playwright would wait with
            if frame.evaluate("scrollY") > 2000:
                break
            page.wait_for_timeout(50)
        assert frame.evaluate("scrollY") > 2000
        assert frame.evaluate("location.hash") == "#words"
        assert frame.title().endswith("Dicescope report")
        assert frame.evaluate("document.querySelector('base').href") == "about:srcdoc"
        browser.close()

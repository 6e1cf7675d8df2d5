"""The dashboard as its user meets it: a real browser on the real server, clicked, dragged and typed at."""

import gzip
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from core.diagnosis.errors.category_table import CATEGORIES, CODES, HIT
from core.presentation.browser_volumes import packed_path
from core.runs.listing import open_run
from core.study.stored_scores import open_scores
from tests.browser import FLAGS, find_chromium, serve
from tests.study import TinyStudy

pytestmark = pytest.mark.browser

APP = Path(__file__).parents[2] / "asgi.py"
PAGES = ("Overview", "Slices", "Layers", "Distributions", "Diagnosis", "Training", "Data", "Report")
expect.set_options(timeout=30_000)
DRAWN = "() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"


@pytest.fixture(scope="module")
def address(study: TinyStudy) -> Iterator[str]:
    with serve(APP, DICESCOPE_RUNS=str(study.runs)) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A fresh browser session; at its end, nothing was complained about and nobody else was asked."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    complaints: list[str] = []
    requests: list[str] = []

    def listen(page: Page) -> None:
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", hear)
        page.on("request", lambda request: requests.append(request.url))
        page.on("websocket", lambda socket: requests.append(socket.url))

    def hear(message: ConsoleMessage) -> None:
        if message.type == "error":
            complaints.append(f"{message.text} {message.location.get('url', '')}")

    context.on("page", listen)
    yield context.new_page()
    context.close()
    assert complaints == []
    assert {urlsplit(url).hostname for url in requests if not url.startswith(("data:", "blob:"))} == {"127.0.0.1"}


def viewer(page: Page) -> dict[str, Any]:
    """What the viewer shows, once the last change is drawn."""
    page.evaluate(DRAWN)
    found: dict[str, Any] = page.evaluate("() => ({ ...window.__viewer.view, steps: window.__viewer.steps })")
    return found


def cross_hair(page: Page) -> tuple[int, int, int]:
    found = viewer(page)
    return found["x"], found["y"], found["z"]


def open_viewer(page: Page, url: str) -> None:
    page.goto(url)
    ready(page)


def ready(page: Page) -> None:
    """The volumes are loaded and the server has nothing left to say."""
    page.wait_for_selector('[data-testid=panel][data-ready="1"]')
    page.wait_for_load_state("networkidle")


def volume(study: TinyStudy, subject: str, name: str) -> np.ndarray:
    """The bytes that the browser is given, as NumPy has them."""
    shape = open_scores(open_run(study.runs, "tiny")).prepared(subject).volume.grid.shape
    packed = packed_path(study.runs, "tiny", subject, name).read_bytes()
    return np.frombuffer(gzip.decompress(packed), np.uint8).reshape(shape)


def numpy_dice(study: TinyStudy, subject: str, layers: str, step: int) -> float:
    found = (volume(study, subject, f"score-{layers}") >= step) & (volume(study, subject, "brain") > 0)
    lesion = volume(study, subject, "lesion") > 0
    return float(2 * (found & lesion).sum() / (found.sum() + lesion.sum()))


def working(study: TinyStudy, layers: str) -> dict[str, Any]:
    metrics = json.loads((study.runs / "tiny" / "evaluation" / "metrics.json").read_text())
    found: dict[str, Any] = metrics["sets"][layers]["working"]
    return found


def exact_dice(study: TinyStudy, subject: str, layers: str, protocol: str) -> float:
    rows = working(study, layers)["protocols"][protocol]["subjects"]
    return float(next(row["dice"] for row in rows if row["subject_id"] == subject))


def drag(page: Page, selector: str, start: float, end: float, moves: int) -> Iterator[None]:
    """Hold a slider and move it, a step at a time."""
    slider = page.get_by_test_id(selector)
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box is not None
    row = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * start, row)
    page.mouse.down()
    for k in range(moves):
        page.mouse.move(box["x"] + box["width"] * (start + (end - start) * (k + 1) / moves), row)
        yield
    page.mouse.up()


def choose(page: Page, label: str, text: str) -> None:
    """Type into a box with choices and take the first that fits."""
    page.get_by_role("combobox", name=re.compile(label)).focus()
    page.keyboard.type(text)
    expect(page.get_by_role("option", name=text, exact=True)).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")


def test_every_page_opens_from_the_sidebar(page: Page, address: str) -> None:
    page.goto(address)
    for name in (*PAGES[1:], PAGES[0]):
        page.get_by_test_id("stSidebarNavLink").filter(has_text=name).click()
        expect(page.get_by_role("heading", level=1, name=name)).to_be_visible()
        expect(page.get_by_test_id("stException")).to_have_count(0)
        if name in ("Slices", "Layers"):
            ready(page)
        if name == "Data":  # the server forgets the pictures of a page that was left, also those on their way
            expect(page.locator("img[alt^='Axial']").first).to_be_visible()
            page.wait_for_load_state("networkidle")
    expect(page.get_by_role("heading", name="Cohort scans")).to_be_visible()
    expect(page.get_by_test_id("stDataFrame").first).to_be_visible()
    assert page.locator("text=/\\d\\.\\d{3} \\[\\d\\.\\d{3}, \\d\\.\\d{3}\\]/").count() >= 1


def test_run_and_subject_stay_picked_from_page_to_page(page: Page, address: str) -> None:
    open_viewer(page, f"{address}/slices")
    for label in ("Run", "Subject"):
        wanted = "tiny-intensity" if label == "Run" else "test01"
        page.get_by_role("combobox", name=label).click()
        page.get_by_role("option").filter(has_text=wanted).click()
        page.wait_for_url(re.compile(f"{label.lower()}={wanted}"))
    for name in ("Distributions", "Slices", "Data"):
        page.get_by_test_id("stSidebarNavLink").filter(has_text=name).click()
        expect(page.get_by_role("heading", level=1, name=name)).to_be_visible()
        page.wait_for_url(re.compile("run=tiny-intensity"))
        expect(page.get_by_role("combobox", name="Run")).to_have_value("intensity-bright · tiny-intensity")
    page.get_by_test_id("stSidebarNavLink").filter(has_text="Slices").click()
    page.wait_for_url(re.compile("subject=test01"))
    expect(page.get_by_role("combobox", name="Subject")).to_have_value(re.compile("^test01"))


def test_below_a_pages_address_health_is_no_success_or_the_browser_would_take_it_for_the_app(address: str) -> None:
    def status(path: str) -> int:
        try:
            with urllib.request.urlopen(address + path, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert (status("/_stcore/health"), status("/_stcore/host-config")) == (200, 200)
    assert (status("/slices/_stcore/health"), status("/slices/_stcore/host-config")) == (300, 300)


def test_dragging_the_threshold_shows_the_dice_of_numpy_at_every_step(
    page: Page, address: str, study: TinyStudy
) -> None:
    open_viewer(page, f"{address}/slices?run=tiny&subject=test02&layers=stage1")
    scores, lesion = volume(study, "test02", "score-stage1"), volume(study, "test02", "lesion") > 0
    brain = volume(study, "test02", "brain") > 0
    seen = {}
    for _ in drag(page, "threshold", 0.35, 0.95, 60):
        step = viewer(page)["steps"][0]
        found = (scores >= step) & brain
        seen[step] = page.get_by_test_id("dice").inner_text()
        assert seen[step] == f"{2 * (found & lesion).sum() / (found.sum() + lesion.sum()):.3f}"
    assert len(seen) > 50
    assert len(set(seen.values())) > 20
    page.wait_for_url(re.compile(r"threshold=[\d.]+"))


def test_a_protocol_button_shows_the_exact_dice_of_the_evaluation(page: Page, address: str, study: TinyStudy) -> None:
    open_viewer(page, f"{address}/slices?run=tiny&subject=test01&layers=input&layers=stage2")
    for protocol in ("validation", "oracle_set", "healthy"):
        page.get_by_test_id(f"protocol-{protocol}").click()
        expect(page.get_by_test_id("dice")).to_have_text(f"{exact_dice(study, 'test01', 'input+stage2', protocol):.3f}")
    assert "oracle" in page.get_by_test_id("protocol-oracle_set").inner_text()


def test_layers_of_the_sidebar_change_the_map_and_its_dice(page: Page, address: str, study: TinyStudy) -> None:
    open_viewer(page, f"{address}/slices?run=tiny&subject=test01&layers=input")
    before = page.evaluate("() => window.__viewer.hash()")
    dice = page.get_by_test_id("dice")
    expect(dice).to_have_text(f"{exact_dice(study, 'test01', 'input', 'healthy'):.3f}")
    pills = page.get_by_test_id("stSidebar").get_by_test_id("stButtonGroup")
    pills.get_by_role("button", name="stage1").click()
    expect(page.get_by_text("Layer set input+stage1.")).to_be_visible()
    expect(dice).to_have_text(f"{exact_dice(study, 'test01', 'input+stage1', 'healthy'):.3f}")
    assert page.evaluate("() => window.__viewer.hash()") != before
    pills.get_by_role("button", name="input").click()
    expect(dice).to_have_text(f"{exact_dice(study, 'test01', 'stage1', 'healthy'):.3f}")


def test_keys_and_jumps_move_the_cross_hair_to_where_they_say(page: Page, address: str, study: TinyStudy) -> None:
    open_viewer(page, f"{address}/slices?run=tiny&subject=test02&layers=stage1&x=20&y=20&z=20")
    page.get_by_test_id("axial").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert cross_hair(page) == (20, 20, 22)
    page.get_by_test_id("coronal").focus()
    page.keyboard.press("ArrowDown")
    assert cross_hair(page) == (20, 19, 22)
    page.get_by_test_id("next-lesion").click()
    lesion = volume(study, "test02", "lesion") > 0
    assert lesion[cross_hair(page)]
    page.get_by_test_id("worst-false").click()
    at, step = cross_hair(page), viewer(page)["steps"][0]
    scores = volume(study, "test02", "score-stage1")
    healthy = np.where((volume(study, "test02", "brain") > 0) & ~lesion, scores, 0)
    assert not lesion[at]
    assert scores[at] == healthy.max() >= step
    before = page.evaluate("() => window.__viewer.hash()[0]")
    page.get_by_test_id("convention").select_option("neurological")
    page.wait_for_url(re.compile("convention=neurological"))
    assert page.evaluate("() => window.__viewer.hash()[0]") != before
    assert cross_hair(page) == at


def test_a_copied_address_shows_the_same_view_elsewhere(
    page: Page, browser: Browser, address: str, study: TinyStudy
) -> None:
    every_layer = "layers=input&layers=stage1&layers=stage2"
    open_viewer(page, f"{address}/slices?run=tiny&subject=test02&{every_layer}")
    page.get_by_test_id("stSidebar").get_by_test_id("stButtonGroup").get_by_role("button", name="stage1").click()
    expect(page.get_by_text("Layer set input+stage2.")).to_be_visible()
    page.get_by_test_id("stSidebar").get_by_role("combobox").last.click()
    page.get_by_role("option").filter(has_text="test03").click()
    expect(page.get_by_test_id("dice")).to_have_text(f"{exact_dice(study, 'test03', 'input+stage2', 'healthy'):.3f}")
    page.mouse.click(*page.evaluate("() => window.__viewer.onScreen(0, [15, 22, 20])"))
    for _ in drag(page, "threshold", 0.5, 0.7, 5):
        pass
    here = viewer(page)
    page.wait_for_url(re.compile(f"x={here['x']}&"))
    page.wait_for_url(re.compile(r"threshold=[\d.]+"))
    page.wait_for_load_state("networkidle")
    picture, dice = page.evaluate("() => window.__viewer.hash()"), page.get_by_test_id("dice").inner_text()
    query = parse_qs(urlsplit(page.url).query)
    assert (query["run"], query["subject"]) == (["tiny"], ["test03"])
    other = browser.new_context(viewport={"width": 1280, "height": 1000})
    try:
        copy = other.new_page()
        open_viewer(copy, page.url)
        expect(copy.get_by_test_id("dice")).to_have_text(dice)
        there = viewer(copy)
        assert {k: there[k] for k in ("x", "y", "z", "steps")} == {k: here[k] for k in ("x", "y", "z", "steps")}
        assert copy.evaluate("() => window.__viewer.hash()") == picture
        expect(copy.get_by_text("Layer set input+stage2.")).to_be_visible()
    finally:
        other.close()


def test_error_categories_of_a_subject_are_counted_as_numpy_does_and_stand_in_the_address(
    page: Page, address: str, study: TinyStudy
) -> None:
    open_viewer(page, f"{address}/slices?run=tiny&subject=test02&layers=input&layers=stage2")
    page.get_by_test_id("axial").focus()
    page.keyboard.press("c")
    voxel_ml = open_scores(open_run(study.runs, "tiny")).prepared("test02").volume.grid.voxel_volume_mm3 / 1000
    for protocol in ("healthy", "validation"):
        page.get_by_test_id(f"protocol-{protocol}").click()
        labels = volume(study, "test02", f"categories-input+stage2-{protocol}")
        counts = {c.id: int((labels == CODES[c.id]).sum()) for c in CATEGORIES} | {"hit": int((labels == HIT).sum())}
        page.wait_for_function(
            "(n) => String(window.__viewer.categories) === String(n)",
            arg=np.bincount(labels.ravel(), minlength=256).tolist(),
        )
        expect(page.get_by_test_id("legend").locator("button")).to_have_count(sum(n > 0 for n in counts.values()))
        for name, voxels in counts.items():
            if voxels:
                amount = page.get_by_test_id(f"category-{name}").locator(".amount").inner_text()
                assert float(amount.removesuffix(" mL").replace(",", "")) == pytest.approx(voxels * voxel_ml, rel=6e-3)
    page.wait_for_url(re.compile("categories=1"))
    some = next(name for name, voxels in counts.items() if voxels and name != "hit")
    page.get_by_test_id(f"category-{some}").click()
    page.wait_for_url(re.compile(f"category={some}"))
    page.get_by_test_id("axial").focus()
    page.keyboard.press("c")
    page.wait_for_url(lambda url: "categor" not in url)
    open_viewer(
        page,
        f"{address}/slices?run=tiny&subject=test02&layers=input&layers=stage2&threshold=validation"
        f"&categories=1&category={some}",
    )
    expect(page.get_by_test_id(f"category-{some}")).to_have_attribute("aria-pressed", "true")
    labels = volume(study, "test02", "categories-input+stage2-validation")
    expect(page.get_by_test_id("jumped")).not_to_be_empty()
    assert labels[cross_hair(page)] == CODES[some]


def test_maps_of_layer_sets_stand_side_by_side_and_share_the_cross_hair(
    page: Page, address: str, study: TinyStudy
) -> None:
    open_viewer(page, f"{address}/layers?run=tiny&subject=test01&sets=stage1&sets=input%2Bstage2")
    for n, layers in enumerate(("stage1", "input+stage2")):
        expect(page.get_by_test_id("dice").nth(n)).to_have_text(f"{exact_dice(study, 'test01', layers, 'healthy'):.3f}")
    page.get_by_test_id("pane-1").scroll_into_view_if_needed()
    page.mouse.click(*page.evaluate("() => window.__viewer.onScreen(1, [15, 20, window.__viewer.view.z])"))
    assert cross_hair(page)[:2] == (15, 20)
    assert len(page.evaluate("() => window.__viewer.steps")) == 2
    page.wait_for_url(re.compile("x=15&y=20"))
    choose(page, "Layer sets to look at", "stage2")
    expect(page.get_by_test_id("dice")).to_have_count(3)
    assert cross_hair(page)[:2] == (15, 20)


def test_a_click_in_the_scatter_shows_that_layer_set(page: Page, address: str) -> None:
    open_viewer(page, f"{address}/layers?run=tiny&subject=test01&sets=stage1")
    expect(page.get_by_test_id("dice")).to_have_count(1)
    chart = page.get_by_test_id("stPlotlyChart").first
    names = chart.evaluate("(e) => e.querySelector('.js-plotly-plot').data[0].customdata.map((row) => row[0])")
    point = chart.locator(".scatterlayer .point").nth(names.index("input"))
    box = point.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.get_by_test_id("dice")).to_have_count(2)
    assert parse_qs(urlsplit(page.url).query)["sets"] == ["stage1", "input"]


def test_distributions_follow_their_axes_sliders_and_kind(page: Page, address: str) -> None:
    page.goto(f"{address}/distributions?run=tiny")
    chart = page.get_by_test_id("stPlotlyChart").first.locator(".js-plotly-plot")
    expect(chart).to_be_visible()
    axes = "() => ['xaxis', 'yaxis'].map((a) => document.querySelector('.js-plotly-plot')._fullLayout[a].type)"
    assert page.evaluate(axes) == ["linear", "log"]
    explained = page.get_by_text("Fitted on log1p")
    expect(explained).to_contain_text("one Gaussian each")
    choose(page, "Densities", "kernel densities")
    expect(explained).to_contain_text("kernel densities")
    groups = page.get_by_test_id("stMain").get_by_test_id("stButtonGroup")
    groups.nth(2).get_by_text("log").click()
    page.wait_for_function(f"() => ({axes})()[0] === 'log'")
    groups.nth(0).get_by_text("ECDF").click()
    expect(chart.locator(".ytitle")).to_have_text("share at or below")
    false_alarms = page.get_by_test_id("stMetric").filter(has_text="false positives").first
    before = false_alarms.inner_text()
    slider = page.get_by_role("slider", name=re.compile("Threshold"))
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expect(false_alarms).not_to_have_text(before, use_inner_text=True)


def test_training_shows_curves_against_chance_and_a_verdict(page: Page, address: str) -> None:
    page.goto(f"{address}/training")
    expect(page.get_by_test_id("stPlotlyChart").first).to_be_visible()
    expect(page.get_by_text("chance ln(2N−1)").first).to_be_visible()
    expect(page.get_by_text("Too early.")).to_be_visible()
    expect(page.get_by_text("Step 6 of 6")).to_be_visible()
    assert page.locator(".js-plotly-plot .scatterlayer .js-line").count() >= 6


def test_data_shows_every_subject_with_its_picture(page: Page, address: str) -> None:
    page.goto(f"{address}/data?run=tiny")
    expect(page.get_by_test_id("stMetric").first).to_contain_text("12 of 12")
    pictures = page.get_by_role("img", name=re.compile("^Axial, coronal and sagittal"))
    expect(pictures).to_have_count(12)
    page.wait_for_function("() => [...document.querySelectorAll('img')].every((i) => i.complete && i.naturalWidth > 0)")
    page.get_by_test_id("stMain").get_by_test_id("stButtonGroup").get_by_text("test", exact=True).click()
    expect(pictures).to_have_count(4)


def test_no_table_is_cut_at_1280_pixels(page: Page, address: str) -> None:
    for name in ("", "layers?run=tiny"):
        page.goto(f"{address}/{name}")
        page.get_by_test_id("stDataFrame").first.scroll_into_view_if_needed()
        expect(page.locator(".dvn-scroller").first).to_be_visible()
        page.wait_for_load_state("networkidle")
        page.wait_for_function(
            "() => [...document.querySelectorAll('.dvn-scroller')].every((e) => e.scrollWidth <= e.clientWidth + 1)"
        )


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1920, "dark")])
def test_nothing_is_cut_off(page: Page, address: str, width: int, scheme: Any) -> None:
    page.set_viewport_size({"width": width, "height": 1000})
    page.emulate_media(color_scheme=scheme)
    for name in ("", "distributions?run=tiny", "training", "data?run=tiny"):
        page.goto(f"{address}/{name}")
        expect(page.get_by_test_id("stMetric").first).to_be_visible()
        cut = page.evaluate(
            """() => [...document.querySelectorAll('[data-testid=stMetric] *')]
                 .filter((e) => e.scrollWidth > e.clientWidth + 1 && e.children.length === 0 && e.clientWidth)
                 .map((e) => e.textContent)"""
        )
        assert cut == []
        assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")


def test_a_link_to_an_encoder_opens_it_by_its_id(page: Page, address: str) -> None:
    page.goto(f"{address}/training?encoder_run=tiny-encoder")
    picker = page.get_by_role("combobox", name="Encoder run")
    expect(picker).to_have_value(re.compile("tiny-encoder"), timeout=60_000)
    expect(page.get_by_text("The link names")).to_have_count(0)
    expect(page).to_have_url(re.compile("encoder_run=tiny-encoder"), timeout=60_000)

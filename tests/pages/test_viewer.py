"""The slice viewer in a real browser, on a synthetic brain whose right answers NumPy knows."""

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from core.presentation.door import is_local
from pages._viewer.assets import version
from tests.browser import FLAGS, find_chromium, serve
from tests.viewer_harness.subject import BRIGHT_FALSE, KINDS, LESIONS, SPACING_MM, levels, volumes

HARNESS = Path(__file__).parents[1] / "viewer_harness" / "asgi.py"
VOXEL_ML = float(np.prod(SPACING_MM)) / 1000


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    return volumes()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serve(HARNESS) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        yield browser
        browser.close()


class Watched:
    """A page with what it asked for, what it sent, and what it complained about."""

    def __init__(self, browser: Browser) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 1000})
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.socket_bytes = 0
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)
        self.page.on("websocket", self._listen)

    def _listen(self, socket: Any) -> None:
        def add(payload: str | bytes) -> None:
            self.socket_bytes += len(payload)

        socket.on("framesent", add)
        socket.on("framereceived", add)

    def open(self, url: str) -> Page:
        self.page.goto(url)
        self.page.wait_for_selector('[data-testid=panel][data-ready="1"]')
        return self.page

    def volumes(self) -> list[str]:
        return [url.rsplit("/", 1)[1] for url in self.requests if "/api/volume/" in url]


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    watched = Watched(browser)
    yield watched
    watched.page.close()


def view(page: Page) -> dict[str, Any]:
    """The view once the last change has been drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    found: dict[str, Any] = page.evaluate("() => window.__viewer.view")
    return found


def voxel(page: Page) -> tuple[int, int, int]:
    found = view(page)
    return found["x"], found["y"], found["z"]


def numpy_dice(truth: dict[str, np.ndarray], step: int, name: str = "score-a") -> float:
    found = (truth[name] >= step) & (truth["brain"] > 0)
    lesion = truth["lesion"] > 0
    return float(2 * (found & lesion).sum() / (found.sum() + lesion.sum()))


@pytest.mark.browser
def test_dragging_the_threshold_shows_the_dice_of_numpy_and_sends_nothing(
    watched: Watched, address: str, truth: dict[str, np.ndarray]
) -> None:
    page = watched.open(address)
    page.get_by_text("Python has: nothing yet").wait_for()
    page.wait_for_load_state("networkidle")
    slider = page.get_by_test_id("threshold")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] / 2)
    page.mouse.down()
    before, seen = watched.socket_bytes, set()
    for k in range(60):
        page.mouse.move(box["x"] + box["width"] * (0.3 + 0.6 * k / 59), box["y"] + box["height"] / 2)
        view(page)
        step = int(slider.input_value())
        seen.add(step)
        assert page.get_by_test_id("dice").inner_text() == f"{numpy_dice(truth, step):.3f}"
        assert page.evaluate("() => window.__viewer.counts[0].dice") == pytest.approx(
            numpy_dice(truth, step), abs=1e-12
        )
    assert len(seen) > 50
    assert watched.socket_bytes == before
    page.mouse.up()
    page.get_by_text("Python has: 20, 44, 34").wait_for()
    assert watched.socket_bytes > before


@pytest.mark.browser
def test_counts_in_voxels_and_millilitres_follow_the_threshold_buttons(
    watched: Watched, address: str, truth: dict[str, np.ndarray]
) -> None:
    page = watched.open(address)
    assert "0.512" in page.get_by_test_id("panel").inner_text()
    button = page.get_by_test_id("protocol-oracle")
    assert "oracle" in button.inner_text()
    button.click()
    view(page)
    found = (truth["score-a"] >= 110) & (truth["lesion"] > 0)
    assert page.get_by_test_id("tp").inner_text().startswith(f"{found.sum()} voxels · {found.sum() * VOXEL_ML:.3g}")
    assert page.get_by_test_id("level").inner_text().startswith(f"{levels()[109]:.1f}")
    assert button.get_attribute("aria-pressed") == "true"


@pytest.mark.browser
def test_arrow_and_page_keys_step_the_slice_of_the_focused_plane(watched: Watched, address: str) -> None:
    page = watched.open(f"{address}/?x=30&y=36&z=30")
    page.get_by_test_id("axial").focus()
    before = page.evaluate("() => window.__viewer.hash()")
    page.keyboard.press("ArrowUp")
    assert voxel(page) == (30, 36, 31)
    assert page.evaluate("() => window.__viewer.hash()")[0] != before[0]
    page.keyboard.press("PageDown")
    assert voxel(page) == (30, 36, 26)
    page.get_by_test_id("sagittal").focus()
    page.keyboard.press("ArrowLeft")
    assert voxel(page) == (29, 36, 26)
    page.get_by_test_id("coronal").hover()
    page.mouse.wheel(0, -100)
    assert voxel(page) == (29, 37, 26)
    assert page.get_by_test_id("coronal").get_attribute("aria-valuetext") == "slice 38 of 72"


@pytest.mark.browser
def test_a_click_moves_the_cross_hair_and_the_read_out_tells_the_millimetres(watched: Watched, address: str) -> None:
    page = watched.open(f"{address}/?x=30&y=36&z=30")
    for plane, target in ((0, (20, 44, 30)), (1, (25, 44, 40)), (2, (25, 20, 33))):
        page.mouse.click(*page.evaluate("([n, voxel]) => window.__viewer.onScreen(n, voxel)", [plane, target]))
        assert voxel(page) == target
    assert page.get_by_test_id("voxel").inner_text() == "25, 20, 33"
    assert page.get_by_test_id("mm").inner_text() == "−15.0, −66.0, 27.0"


@pytest.mark.browser
def test_radiological_shows_the_patients_left_on_the_right_and_neurological_swaps(
    watched: Watched, address: str
) -> None:
    page = watched.open(f"{address}/?x=30&y=36&z=30")
    where = "(n) => [10, 50].map((x) => window.__viewer.onScreen(n, [x, 36, 30])[0])"
    left, right = page.evaluate(where, 0)
    assert left > right  # x grows to the patient's right, which radiology shows on the left
    before = page.evaluate("() => window.__viewer.hash()")
    page.get_by_test_id("convention").select_option("neurological")
    assert view(page)["convention"] == "neurological"
    left, right = page.evaluate(where, 0)
    after = page.evaluate("() => window.__viewer.hash()")
    assert left < right
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True]


@pytest.mark.browser
def test_jumps_land_on_lesions_and_on_the_highest_false_positive(
    watched: Watched, address: str, truth: dict[str, np.ndarray]
) -> None:
    page = watched.open(f"{address}/?x=30&y=36&z=30")
    page.get_by_test_id("axial").focus()
    page.keyboard.press("n")
    assert voxel(page) == LESIONS[0][0]
    assert "found" in page.get_by_test_id("jumped").inner_text()
    page.keyboard.press("n")
    assert voxel(page) == LESIONS[1][0]
    assert "missed" in page.get_by_test_id("jumped").inner_text()
    page.keyboard.press("f")
    outside = np.where((truth["brain"] > 0) & (truth["lesion"] == 0), truth["score-a"], 0)
    worst = np.array(np.unravel_index(outside.argmax(), outside.shape))
    assert voxel(page) == tuple(worst)
    assert np.linalg.norm(worst - np.array(BRIGHT_FALSE)) < 2
    page.keyboard.press("f")
    far = np.linalg.norm((np.indices(outside.shape).T - worst).T * SPACING_MM[0], axis=0) >= 10
    assert voxel(page) == np.unravel_index(np.where(far, outside, 0).argmax(), outside.shape)
    page.get_by_test_id("missed-lesion").click()
    assert voxel(page) == LESIONS[1][0]


@pytest.mark.browser
def test_jumps_close_when_the_threshold_leaves_nothing_to_jump_to(watched: Watched, address: str) -> None:
    page = watched.open(f"{address}/?threshold=0.2")
    view(page)
    assert page.get_by_test_id("missed-lesion").is_disabled()
    assert "found" in (page.get_by_test_id("missed-lesion").get_attribute("title") or "")
    page.get_by_test_id("threshold").focus()
    page.keyboard.press("End")
    view(page)
    assert page.get_by_test_id("worst-false").is_disabled()
    assert page.get_by_test_id("missed-lesion").is_enabled()
    assert page.get_by_test_id("dice").inner_text() == "0.000"


@pytest.mark.browser
def test_a_link_restores_the_view_on_the_first_run(watched: Watched, address: str) -> None:
    page = watched.open(f"{address}/?x=12&y=40&z=22&threshold=validation")
    assert voxel(page) == (12, 40, 22)
    assert view(page)["threshold"] == "validation"
    assert page.get_by_test_id("protocol-validation").get_attribute("aria-pressed") == "true"


@pytest.mark.browser
def test_python_can_move_the_cross_hair_twice_to_the_same_place(watched: Watched, address: str) -> None:
    page = watched.open(address)
    for _ in range(2):
        page.get_by_role("button", name="Go to 10, 20, 30").click()
        page.wait_for_function("() => window.__viewer.view.x === 10 && window.__viewer.view.z === 30")
        page.get_by_test_id("axial").focus()
        page.keyboard.press("Home")
        page.get_by_text("Python has: 10, 20, 0").wait_for()
        assert voxel(page) == (10, 20, 0)


@pytest.mark.browser
def test_another_map_keeps_the_cross_hair_and_fetches_only_what_is_new(watched: Watched, address: str) -> None:
    page = watched.open(f"{address}/?x=30&y=36&z=30")
    page.get_by_test_id("axial").focus()
    page.keyboard.press("ArrowUp")
    page.get_by_text("Python has: 30, 36, 31").wait_for()
    page.get_by_text("layer b").wait_for()
    assert sorted(watched.volumes()) == ["brain", "image", "lesion", "score-a", "score-b"]
    page.get_by_text("Other map").click()
    page.wait_for_function("() => window.__viewer.counts[0].tp > 244")
    assert voxel(page) == (30, 36, 31)
    assert len(watched.volumes()) == 5
    assert page.get_by_test_id("panel").count() == 1


@pytest.mark.browser
def test_several_maps_share_cross_hair_and_share_of_the_brain(
    watched: Watched, address: str, truth: dict[str, np.ndarray]
) -> None:
    page = watched.open(f"{address}/?maps=a,b,a,b&x=20&y=44&z=34")
    assert [page.get_by_test_id("dice").nth(m).inner_text() for m in (0, 1)] == [
        f"{numpy_dice(truth, 150, name):.3f}" for name in ("score-a", "score-b")
    ]
    page.get_by_test_id("threshold").focus()
    page.keyboard.press("ArrowLeft")
    view(page)
    first, second = page.evaluate("() => window.__viewer.steps")[:2]
    above = [((truth["score-b"] >= t) & (truth["brain"] > 0)).sum() for t in range(1, 256)]
    wanted = ((truth["score-a"] >= first) & (truth["brain"] > 0)).sum()
    assert first == 149
    assert abs(above[second - 1] - wanted) == min(abs(a - wanted) for a in above)
    page.get_by_test_id("pane-3").focus()
    page.keyboard.press("ArrowUp")
    assert voxel(page) == (20, 44, 35)
    page.get_by_test_id("plane").select_option("coronal")
    page.get_by_test_id("pane-3").focus()
    page.keyboard.press("ArrowUp")
    assert voxel(page) == (20, 45, 35)


@pytest.mark.browser
def test_keys_show_and_hide_scores_lesion_and_segmentation(watched: Watched, address: str) -> None:
    page = watched.open(address)
    page.get_by_test_id("axial").focus()
    pictures = [page.evaluate("() => window.__viewer.hash()[0]")]
    for key in "mgs":
        page.keyboard.press(key)
        view(page)
        pictures.append(page.evaluate("() => window.__viewer.hash()[0]"))
    assert len(set(pictures)) == 4
    assert {name: view(page)["show"][name] for name in ("overlay", "lesion", "segmentation")} == {
        "overlay": False, "lesion": False, "segmentation": False,
    }  # fmt: skip


@pytest.mark.browser
def test_a_message_about_a_jump_goes_when_the_view_moves_on(watched: Watched, address: str) -> None:
    page = watched.open(address)
    told = page.get_by_test_id("jumped")
    for move in ("cross-hair", "threshold", "map"):
        page.get_by_test_id("next-lesion").click()
        view(page)
        assert "Lesion" in told.inner_text()
        if move == "map":
            page.get_by_text("Other map").click()
            page.wait_for_function("() => window.__viewer.counts[0].tp > 244")
        else:
            page.get_by_test_id("axial" if move == "cross-hair" else "threshold").focus()
            page.keyboard.press("ArrowRight")
        view(page)
        assert told.inner_text() == ""


def pixel(page: Page, pane: int, at: tuple[int, int, int]) -> list[int]:
    """Red, green, blue of the middle of a voxel, as it is on the screen."""
    found: list[int] = page.evaluate(
        """([n, voxel]) => {
             const [x, y] = window.__viewer.onScreen(n, voxel);
             const host = [...document.querySelectorAll('*')].find((e) => e.shadowRoot?.querySelector('.viewer'));
             const canvas = host.shadowRoot.querySelectorAll('canvas')[n];
             const area = canvas.getBoundingClientRect();
             const scale = canvas.width / area.width;
             const place = [(x - area.left) * scale, (y - area.top) * scale].map(Math.floor);
             return [...canvas.getContext('2d').getImageData(...place, 1, 1).data].slice(0, 3);
           }""",
        [pane, at],
    )
    return found


def swatch(page: Page, name: str) -> list[int]:
    """The colour that the legend gives a category."""
    colour = page.get_by_test_id(f"category-{name}").locator("i").evaluate("(e) => getComputedStyle(e).backgroundColor")
    return [int(v) for v in re.findall(r"\d+", colour)]


@pytest.mark.browser
def test_error_categories_colour_their_voxels_and_the_legend_counts_as_numpy_does(
    watched: Watched, address: str, truth: dict[str, np.ndarray]
) -> None:
    page = watched.open(address)
    before = page.evaluate("() => window.__viewer.hash()")
    assert "categories" not in watched.volumes()
    page.get_by_test_id("axial").focus()
    page.keyboard.press("c")
    page.get_by_test_id("category-hit").wait_for()
    assert page.get_by_test_id("show-categories").get_attribute("aria-pressed") == "true"
    assert page.evaluate("() => window.__viewer.hash()") != before
    labels, shown = truth["categories"], []
    for code, (name, _) in enumerate(KINDS, start=1):
        voxels = int((labels == code).sum())
        entry = page.get_by_test_id(f"category-{name}")
        assert entry.count() == (voxels > 0)
        if not voxels:
            continue
        shown.append(swatch(page, name))
        assert float(entry.locator(".amount").inner_text().split()[0]) == pytest.approx(voxels * VOXEL_ML, rel=5e-3)
        entry.click()
        view(page)
        at = voxel(page)
        per_slice = (labels == code).sum(axis=(0, 1))
        assert labels[at] == code
        assert per_slice[at[2]] == per_slice.max()
        assert f"axial slice {at[2] + 1}" in page.get_by_test_id("jumped").inner_text()
        page.get_by_test_id("opacity").fill("1")
        view(page)
        page.wait_for_function(f"() => window.__viewer.view.category === '{name}'")
        for pane in range(3):
            assert pixel(page, pane, at) == swatch(page, name)
        assert page.get_by_test_id("category-here").inner_text() == name.replace("_", " ")
    assert len({tuple(colour) for colour in shown}) == len(shown) == 4


@pytest.mark.browser
def test_one_category_alone_hides_the_others_until_it_is_pressed_again(
    watched: Watched, address: str, truth: dict[str, np.ndarray]
) -> None:
    page = watched.open(f"{address}/?categories=1&category=right_alarm")
    page.get_by_test_id("category-hit").wait_for()
    page.wait_for_function("() => window.__viewer.categories")
    view(page)
    at = voxel(page)
    assert truth["categories"][at] == 2  # a link to a category without a place stands on it
    assert page.get_by_test_id("category-right_alarm").get_attribute("aria-pressed") == "true"
    page.get_by_test_id("opacity").fill("1")
    assert page.get_by_test_id("show-segmentation").is_disabled()  # its outline would cover thin categories
    page.get_by_test_id("next-lesion").click()
    view(page)
    assert truth["categories"][voxel(page)] == 5
    alone = pixel(page, 0, voxel(page))
    assert alone != swatch(page, "hit")
    page.get_by_test_id("category-right_alarm").click()
    view(page)
    assert view(page)["category"] is None
    assert pixel(page, 0, voxel(page)) == swatch(page, "hit")


@pytest.mark.browser
def test_categories_belong_to_the_deployed_threshold_and_say_so_when_it_is_moved(
    watched: Watched, address: str
) -> None:
    page = watched.open(f"{address}/?categories=1")
    page.get_by_test_id("category-hit").wait_for()
    page.get_by_test_id("threshold").focus()
    page.keyboard.press("ArrowRight")
    view(page)
    assert "has been moved" in page.get_by_test_id("categories-note").inner_text()
    assert page.get_by_test_id("category-hit").is_hidden()
    page.keyboard.press("ArrowLeft")  # the same step, by hand
    view(page)
    assert page.get_by_test_id("category-hit").is_visible()
    page.get_by_test_id("protocol-oracle").click()
    page.get_by_test_id("back-healthy").click()
    view(page)
    assert view(page)["threshold"] == "healthy"
    assert page.get_by_test_id("category-hit").is_visible()


@pytest.mark.browser
def test_without_a_lesion_dice_is_undefined_and_the_false_volume_is_shown(
    watched: Watched, address: str, truth: dict[str, np.ndarray]
) -> None:
    page = watched.open(f"{address}/?healthy=1")
    false_ml = ((truth["score-a"] >= 150) & (truth["brain"] > 0)).sum() * VOXEL_ML
    shown, unit = page.get_by_test_id("dice").inner_text().split()
    assert unit == "mL"
    assert float(shown) == pytest.approx(false_ml, abs=0.0051)
    assert "Dice is undefined" in page.get_by_test_id("numbers").inner_text()
    assert page.get_by_test_id("next-lesion").is_disabled()


@pytest.mark.browser
def test_a_missing_volume_is_told_in_words(watched: Watched, address: str) -> None:
    watched.page.goto(f"{address}/?missing=1")
    watched.page.get_by_text("The server has no scan (404").wait_for()


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1920, "dark"), (420, "light")])
def test_a_page_fits_its_window_and_asks_only_this_machine(
    watched: Watched, address: str, width: int, scheme: Any
) -> None:
    watched.page.set_viewport_size({"width": width, "height": 1000})
    watched.page.emulate_media(color_scheme=scheme)
    page = watched.open(address)
    overflow = page.evaluate(
        """() => { const panel = document.querySelector('[data-testid=stApp]');
             return panel.scrollWidth - panel.clientWidth; }"""
    )
    assert overflow <= 0
    heights = page.evaluate(
        """() => { const host = [...document.querySelectorAll('*')].find((e) => e.shadowRoot?.querySelector('.viewer'));
             return [...host.shadowRoot.querySelectorAll('canvas')].map((c) => c.clientHeight); }"""
    )
    assert len(heights) == 3
    assert (len(set(heights)) == 1) == (width > 1000)
    assert watched.complaints == []
    assert all(url.startswith((address, "data:", "blob:")) for url in watched.requests)


def test_the_dashboard_answers_local_hosts_only_and_names_no_path_for_an_unknown_volume(tmp_path: Path) -> None:
    with serve(HARNESS.parents[2] / "asgi.py", DICESCOPE_RUNS=str(tmp_path)) as address:
        unknown = answer(f"{address}/api/volume/no-run/no-subject/image-0")
        assert unknown == (404, "No such volume in this run.", "nosniff")
        assert answer(f"{address}/", host="example.org")[0] == 403
        assert answer(f"{address}/", host="localhost")[0] == 200
        assert answer(f"{address}/api/viewer/{version()}/viewer.js")[0] == 200
        assert answer(f"{address}/api/viewer/{version()}/viewer.css")[0] == 404


def answer(url: str, host: str = "127.0.0.1") -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Host": host}), timeout=20) as response:
            return response.status, response.read().decode(), response.headers["X-Content-Type-Options"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers["X-Content-Type-Options"]


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("127.0.0.1:8501", True), ("[::1]:8501", True), ("[::1]", True), ("LOCALHOST:1", True),
     ("example.org", False), ("localhost.example.org", False), ("127.0.0.1:80@evil", False), ("", False),
     ("::1", False)],
)  # fmt: skip
def test_only_hosts_that_name_this_machine_are_answered(host: str, local: bool) -> None:
    assert is_local(host) is local

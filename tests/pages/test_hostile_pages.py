"""Runs, cohorts, subjects, sites and addresses named like markup: pages show their letters, and nobody is asked."""

import csv
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect, sync_playwright

import cli
from tests.browser import FLAGS, find_chromium, serve
from tests.study import SCAN_FLAGS, write_scans

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
PAGES = ("overview", "slices", "layers", "distributions", "diagnosis", "training", "data", "report")
FOLDER = "![c](x.png) <img src=x onerror=window.pwned=1> $x^2$ :red[c] [a](javascript:window.pwned=1)"
"""The cohort has the name of its folder, which can have no slash."""


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[str, list[str]]]:
    """An address that nobody should ask for, and who did."""
    paths: list[str] = []

    class Ear(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ear) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()


@pytest.fixture(scope="module")
def name(asked: tuple[str, list[str]]) -> str:
    place = asked[0]
    return (
        f'![x]({place}/leak.png) <img src="{place}/x" onerror="window.pwned=1"> <a href="{place}/a">a</a> '
        f"[b](javascript:window.pwned=1) $x^2$ :red[x] :material/home: :joy: {place}/auto "
        f"`c` **d** _e_ %{{x}} {{{{y}}}}"
    )


@pytest.fixture(scope="module")
def runs(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile-pages")
    table = write_scans(root / FOLDER / "cohort.csv")
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    for row in rows:
        row |= {"subject_id": f"{row['subject_id']} {name}", "site": name, "sex": "<b>F</b>"}
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    where = ["--runs", str(root / "runs")]
    scans = [str(table), *where, *SCAN_FLAGS]
    for argv in (
        ["fit", *scans, "--detector", "zscore", f"--name={name}", "--run-id", "hostile"],
        ["score", "hostile", *where],
        ["evaluate", "hostile", *where, "--workers", "1"],
        ["diagnose", "hostile", *where],
    ):
        assert cli.main(argv) == 0, argv
    return root / "runs"


@pytest.fixture(scope="module")
def page(runs: Path) -> Iterator[tuple[Page, str, list[str]]]:
    with serve(ROOT / "asgi.py", DICESCOPE_RUNS=str(runs)) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        yield page, address, complaints
        browser.close()


INJECTED = """(place) => {
  const found = [];
  const look = (root) => root.querySelectorAll("*").forEach((e) => {
    if (e.shadowRoot) look(e.shadowRoot);
    for (const a of e.attributes)
      if (a.name.startsWith("on") || (["src", "href", "xlink:href", "srcset"].includes(a.name)
          && [place, "javascript:", "x"].some((start) => a.value.startsWith(start)))) found.push(e.outerHTML);
  });
  look(document);
  return found;
}"""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("shown", PAGES)
def test_a_page_shows_hostile_names_letter_for_letter_and_asks_nobody(
    page: tuple[Page, str, list[str]], asked: tuple[str, list[str]], name: str, shown: str
) -> None:
    tab, address, complaints = page
    where = "" if shown == "overview" else shown
    tab.goto(f"{address}/{where}?run=hostile")
    expect(tab.get_by_role("heading", level=1, name=shown.capitalize())).to_be_visible(timeout=120_000)
    if shown in ("slices", "layers"):
        tab.wait_for_selector('[data-testid=panel][data-ready="1"], [data-testid=stAlert]', timeout=120_000)
    tab.wait_for_load_state("networkidle")
    expect(tab.get_by_test_id("stStatusWidget")).to_have_count(0, timeout=120_000)
    expect(tab.get_by_test_id("stException")).to_have_count(0)
    for frame in tab.frames:
        if frame is tab.main_frame or "srcdoc" in frame.url:
            assert frame.evaluate(INJECTED, asked[0]) == []
            assert frame.evaluate("() => window.pwned") is None
    assert tab.locator(".katex-display > .katex").count() == (1 if shown == "distributions" else 0)  # our own formula
    assert tab.locator(".katex").count() == tab.locator(".katex-display > .katex").count()
    told = " ".join(tab.locator("body").inner_text().split())
    if shown == "overview":
        assert " ".join(f"Cohort {FOLDER}".split()) in told
        assert tab.locator(".js-plotly-plot .ytick text").first.text_content() == name
    if shown in ("layers", "data"):
        assert " ".join(name.split()) in told
    assert complaints == []
    assert asked[1] == []


@pytest.mark.timeout(600)
def test_names_in_the_address_are_letters_too(
    page: tuple[Page, str, list[str]], asked: tuple[str, list[str]], name: str
) -> None:
    tab, address, complaints = page
    tab.goto(f"{address}/slices?run={quote(name)}&subject={quote(name)}&layers={quote(name)}")
    expect(tab.get_by_text("The link names a run that is not here")).to_be_visible(timeout=120_000)
    tab.wait_for_load_state("networkidle")
    assert " ".join(name.split()) in " ".join(tab.locator("body").inner_text().split())
    assert tab.evaluate(INJECTED, asked[0]) == []
    assert complaints == []
    assert asked[1] == []

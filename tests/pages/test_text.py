"""Text from data is text: letter for letter in every place that renders Markdown, and no formula in a saved table."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from core.presentation.figures.diagnosis import ceiling_lines, strata_bars
from core.presentation.figures.results import as_text, contribution_bars, layer_scatter, protocol_dots
from pages._text import cell, cells, plain
from tests.browser import FLAGS, find_chromium, serve
from tests.markdown_law import leaks
from tests.plain_harness.texts import TEXTS

ROOT = Path(__file__).parents[2]
PLACES = 13


@pytest.mark.parametrize(
    "text",
    [
        "test01",
        "0.512",
        "5 %, n = 3",
        "Ü 脳",
        "python cli.py evaluate my-run",
        "Bank: share",
        "a/b.nii.gz",
        "+0.1 [0.012, −0.2] of a+b",
    ],
)
def test_an_ordinary_name_stays_as_it_is(text: str) -> None:
    assert plain(text) == text


def test_white_space_and_control_characters_are_one_space() -> None:
    assert plain(" a\n\n  b\x00\x1b\tc\u2028d ") == "a b c d"
    assert plain(3) == "3"


def test_text_that_a_spreadsheet_would_run_is_quoted_and_numbers_are_not() -> None:
    for text in ("=cmd()", "+A1", "-A1+2", "@SUM(A1)", "\t=1", "\r=1", "+1+cmd()", "-2+3", "+0.1 =x"):
        assert cell(text) == "'" + text
    for value in ("a=b", "", "−0.1", "+0.123", "-0.5", "+0.01 [−0.1, 0.2]", 3, None, -0.5):
        assert cell(value) == value
    assert cells([{"a": "=1", "b": 2.0}, {"a": "x", "b": 3.0}]).to_dict("list") == {"a": ["'=1", "x"], "b": [2.0, 3.0]}
    assert cells([]).empty


PAGES = [*sorted((ROOT / "pages").rglob("*.py")), ROOT / "app.py"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_page_hands_text_that_is_not_ours_to_markdown(path: Path) -> None:
    assert leaks(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_table_of_a_page_can_be_saved_without_a_formula(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    made = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert "pd.DataFrame" not in made or path.name == "_text.py"


@pytest.mark.parametrize(
    "source",
    [
        "def f(run): st.markdown(run.name)",
        "def f(run): st.caption(f'Run {run.name}')",
        "def f(run): left.info('a' + run.name)",
        "def f(x): st.metric('Dice', x['name'])",
        "def f(x): st.metric('Dice', f'{x}')",
        "def f(x): st.toggle(x, key='a')",
        "def f(x): st.button('a', help=str(x))",
        "def f(x): st.text_input(label=x)",
        "def f(x): st.pills('a', x)",
        "def f(x): st.pills('a', x, format_func=lambda i: i)",
        "def f(x): st.tabs([x])",
        "def f(x): st.column_config.TextColumn(help=x)",
        "def f(x): st.image('a', caption=x)",
        "def f(x):\n  t = plain(x)\n  t = x\n  st.info(t)",
        "for note in notes: st.caption(note)",
        "st.markdown(' '.join(n for n in notes))",
        "st.warning(plain(a) or b)",
        "st.warning(a if c else plain(b))",
        "st.error(str(problem))",
        "st.markdown(f'{x:>20}')",
        "st.page_link('a', label=f'{x}')",
        "st.markdown(g(x))\ndef g(x): return x",
        "st.progress(0.5, text=x)",
        "for a, b in zip(cs, xs): st.caption(b)",
    ],
)
def test_the_law_sees_a_leak(source: str) -> None:
    assert len(leaks(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "st.markdown('**ours**')",
        "st.caption(f'{plain(x)}: {n:.3f}, {m:d}, {k:,} {len(x)}')",
        "st.info(plain(a) if b else 'c')",
        "def f(x):\n  t = f'{code(x)}'\n  st.info(t)",
        "for column, (name, text) in zip(cs, [('a', 'b')]): column.caption(text)",
        "st.progress(x, text='Step')",
        "st.pills('a', x, format_func=plain)",
        "st.code(x)",
        "st.text(x)",
        "st.markdown(g(x))\ndef g(x): return plain(x)",
        "st.markdown(WORDS[x])",
    ],
)
def test_the_law_lets_ours_pass(source: str) -> None:
    assert leaks(source) == []


NAME = "<a href='http://127.0.0.1:9/x'>a</a> <b>b</b> &lt; %{x} <img src=x>"


def test_names_in_charts_are_no_tags_and_no_places() -> None:
    found = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    dots = protocol_dots([{"label": NAME, "dice": {"healthy": found}}], "Dice").to_json()
    row = {"layers": NAME, "n_layers": 1, "auprc": 0.5, "ceil_dice": 0.5, "healthy": found}
    scatter = layer_scatter([row], [])
    bars = contribution_bars([(NAME, 0.5, 0.1)]).to_json()
    strata = strata_bars([{"bin": NAME, "n": 3, "recall": 0.5, "low": 0.4, "high": 0.6}], "recall").to_json()
    lines = ceiling_lines([{"layer": NAME, "spacing_mm": 2.0, "by_size": [{"bin": NAME, "ceiling": 1, "n": 2}]}])
    hover = scatter.update_traces(customdata=None).to_json()  # what a click hands on is not shown
    for figure in (dots, hover, bars, strata, lines.to_json()):
        for told in ("<a", "<b>b", "%{x} &", "<img"):
            assert told not in figure.replace("\\u003c", "<").replace("\\u003e", ">")
    assert as_text("tiny · run-1, a+b") == "tiny · run-1, a+b"
    assert as_text("a<b & {c}") == "a&lt;b &amp; &#123;c}"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with serve(ROOT / "tests" / "plain_harness" / "page.py") as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        expect(page.locator(f".st-key-case-{len(TEXTS) - 1} [data-testid=stProgress]")).to_be_visible(timeout=120_000)
        page.wait_for_load_state("networkidle")
        assert {url.split("/")[2] for url in asked if url.startswith("http")} == {address.split("/")[2]}
        yield page
        browser.close()


@pytest.mark.browser
@pytest.mark.parametrize("number", range(len(TEXTS)), ids=[repr(text)[:40] for text in TEXTS])
def test_a_hostile_text_is_shown_letter_for_letter_and_adds_no_element(page: Page, number: int) -> None:
    wanted = re.sub(r"[\s\x00-\x1f]+", " ", TEXTS[number]).strip()
    case = page.locator(f".st-key-case-{number}")
    shown = case.locator("[data-testid=stMarkdownContainer], [data-testid=stCaptionContainer], h3").all_text_contents()
    found = [re.sub(r"\s+", " ", text).strip() for text in shown]
    assert set(found) <= {wanted, f"before {wanted} after", f"{wanted} · {wanted}", f"in code {wanted}", "which", "1"}
    assert len(found) >= PLACES
    strange = "a, img, script, pre, em, del, sup, .katex, ul, ol, blockquote, hr, table, h1, h2, h4"
    inside = case.locator("[data-testid=stMarkdownContainer], [data-testid=stCaptionContainer], h3").locator(strange)
    assert inside.count() == 0, inside.first.evaluate("(e) => e.outerHTML")
    assert case.locator("[role=img][arialabel], [aria-label$=' icon']").count() == 0
    assert set(case.locator("code").all_text_contents()) <= {wanted, ":material", "/home: :material_home:"}
    assert page.evaluate("() => window.pwned") is None

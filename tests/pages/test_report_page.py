"""The Report page: the document in the page is the file that the command writes."""

import html
import shutil
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from core.presentation.report.document import POLICY, framed, report_html
from core.runs.listing import open_run
from tests.study import TinyStudy

PAGE = Path(__file__).parents[2] / "pages" / "report.py"


def opened(runs: Path, monkeypatch: pytest.MonkeyPatch, run: str = "tiny") -> AppTest:
    monkeypatch.setenv("DICESCOPE_RUNS", str(runs))
    st.cache_resource.clear()
    app = AppTest.from_file(str(PAGE), default_timeout=60)
    app.query_params["run"] = run
    return app.run()


def test_the_page_shows_the_document_and_offers_it(study: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(study.runs, monkeypatch, "tiny-intensity")
    assert not app.exception
    assert not app.error
    (frame,) = app.get("iframe")
    assert frame.proto.srcdoc == framed(report_html(open_run(study.runs, "tiny-intensity"), None))
    assert POLICY.partition("; base-uri")[0] in html.unescape(frame.proto.srcdoc)
    assert [button.label for button in app.button] == ["Diagnose it first"]
    assert len(app.get("download_button")) == 1
    (command,) = app.code
    assert command.value.startswith("python cli.py report tiny-intensity --runs ")


def test_a_diagnosis_made_from_the_page_is_in_the_document(
    own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(own_study.runs, monkeypatch)
    assert "Where the Dice is lost" not in app.get("iframe")[0].proto.srcdoc
    app.button[0].click().run()
    assert not app.exception
    assert not app.button
    assert "Where the Dice is lost" in app.get("iframe")[0].proto.srcdoc


def test_without_an_evaluation_the_page_says_so(own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tiny", "tiny-intensity"):
        shutil.rmtree(own_study.runs / name / "evaluation")
    app = opened(own_study.runs, monkeypatch)
    assert not app.exception
    assert not app.get("iframe")
    assert "evaluate tiny" in app.info[0].value
    empty = opened(own_study.root / "nothing", monkeypatch)
    assert "python cli.py demo" in empty.info[0].value


def test_a_document_to_share_names_no_subject_and_its_command_says_so(
    own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(own_study.runs, monkeypatch, "tiny-intensity")
    assert "test01" in app.get("iframe")[0].proto.srcdoc
    app.toggle(key="share").set_value(True).run()
    assert not app.exception
    shown = app.get("iframe")[0].proto.srcdoc
    assert shown == framed(report_html(open_run(own_study.runs, "tiny-intensity"), None, share=True))
    assert "test01" not in shown
    assert app.code[0].value.endswith(" --share")

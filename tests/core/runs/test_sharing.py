"""What leaves the house names nobody: no subject, site, folder, machine, person or secret, anywhere in the document."""

import base64
import dataclasses
import getpass
import html
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from cli import main
from core.presentation.report.document import report_html
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.runs.sharing import COHORT, KEY_FILE, LEFT_OUT, Veil, age_span, veil_of
from data.errors import IntegrityError
from data.names import folder_name
from tests.diagnosis_example import example
from tests.study import ILL, TinyStudy

SITES = ("Guys Hospital", "Riga-7T")
PATH = "/home/alice/stroke-ward/scans/cohort.csv"
PLANTED = (
    f"{ILL[0]}: more than half of the lesion lies outside. See /home/alice/stroke-ward/{ILL[1]}_T1.nii.gz",
    f"left out: {ILL[1]}, {ILL[2].upper()}. Asked alice.b@stroke-ward.org, token=hunter2-abc, C:\\Users\\alice\\x",
    "~/stroke-ward/keys/id is where password: hunter2-abc lies; file:///srv/stroke-ward",
)
SECRETS = ("alice", "stroke-ward", "hunter2", "C:\\Users", *SITES)


def veiled(number: int = 1, **names: str) -> Veil:
    key = bytes([number]) * 32
    return Veil(key, tuple(names.values()), {}, {})


@pytest.fixture
def planted(own_study: TinyStudy) -> Run:
    run = open_run(own_study.runs, "tiny")
    cohort = run.record["cohort"]
    subjects = [{**s, "site": SITES[k % 2], "age": 50.4 + k, "sex": "F"} for k, s in enumerate(cohort["subjects"])]
    aside = [{"subject_id": "IXI002-Guys", "path": PATH, "code": "E-X", "reason": f"{PATH}: IXI002-Guys is torn"}]
    changed = {
        **cohort,
        "subjects": subjects,
        "path": PATH,
        "notes": list(PLANTED),
        "set_aside": aside,
        "citation": f"Brain study, {PATH}",
        "name": f"around {ILL[0]}",
    }
    return dataclasses.replace(run, record={**run.record, "cohort": changed, "name": f"run on {ILL[2]} at {SITES[0]}"})


def found_of(run: Run) -> dict[str, Any]:
    found = example(list(ILL), run_id="tiny", layer_set="stage1")
    found["notes"] = [*found["notes"], *PLANTED]
    found["verdict"]["sentence"] += f" Mostly in {ILL[0]}."
    for k, row in enumerate((*found["subjects"], *found["lesions"])):
        row["site"] = SITES[k % 2]
    for cause in found["causes"]:
        cause["text"] = f"{cause['text']} {PLANTED[0]}"
    found["strata"] = {"site": [{"bin": s, "n": 2, "dice": 0.5, "low": 0.4, "high": 0.6} for s in SITES]}
    return found


def everything_in(document: str) -> str:
    """The document as bytes and as read, with what its pictures hold."""
    pictures = [base64.b64decode(data) for data in re.findall(r"base64,([A-Za-z0-9+/=]+)", document)]
    assert pictures
    return "\n".join([document, html.unescape(document), *(p.decode("latin-1") for p in pictures)])


def test_a_shared_report_names_nobody(planted: Run) -> None:
    found = found_of(planted)
    open_text = report_html(planted, found)
    assert all(name in html.unescape(open_text) for name in (ILL[0], SITES[0]))
    told = everything_in(report_html(planted, found, share=True))
    ids = [s["subject_id"] for s in planted.record["cohort"]["subjects"]] + ["IXI002-Guys"]
    for name in (*ids, *SECRETS):
        assert name.lower() not in told.lower(), name
    for place in (str(planted.directory), str(Path.home()), str(Path.cwd())):
        assert place not in told
    assert not re.findall(r"\b5[0-9]\.4\b", told)


def test_the_machine_and_its_user_are_left_out(planted: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node7.ward.example")
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    told = veil_of(planted).text("On node7.ward.example, NODE7: ada wrote it; adage stays.")
    assert told == f"On {LEFT_OUT}, {LEFT_OUT}: {LEFT_OUT} wrote it; adage stays."


@pytest.mark.parametrize(("name", "path"), [("cohort", "/data/Klinik Nord/cohort.csv"), ("Nord 7", "/x/Nord 7.csv")])
def test_a_cohort_that_is_called_after_its_folder_or_file_is_not_named(planted: Run, name: str, path: str) -> None:
    cohort = {**planted.record["cohort"], "name": name, "path": path}
    told = everything_in(
        report_html(dataclasses.replace(planted, record={**planted.record, "cohort": cohort}), None, share=True)
    )
    assert not [word for word in ("Klinik", "Nord") if word in told]


def test_a_shared_report_tells_the_same_numbers(planted: Run) -> None:
    found = found_of(planted)

    def numbers(document: str) -> list[str]:
        body = re.sub(r"base64,[^\"]+", "", document.partition("</style>")[2])
        return re.findall(r"\b[01]\.\d{3}\b", body)

    assert numbers(report_html(planted, found, share=True)) == numbers(report_html(planted, found))
    told = html.unescape(report_html(planted, found, share=True))
    assert "50 to " in told
    assert "A (" in told
    assert "Made to be shared" in told
    assert COHORT in told
    veil = veil_of(planted)
    assert all(veil.called(i) in told for i in ILL[:2])


def test_one_run_has_the_same_pseudonyms_again_and_another_runs_directory_has_others(
    own_study: TinyStudy, tmp_path: Path
) -> None:
    run = open_run(own_study.runs, "tiny")
    first = {i: veil_of(run).called(i) for i in ILL}
    assert {i: veil_of(run).called(i) for i in ILL} == first
    assert len(set(first.values())) == len(ILL)
    assert (own_study.runs / KEY_FILE).stat().st_mode & 0o077 == 0
    other = own_study.copy(tmp_path / "other")
    (other.runs / KEY_FILE).unlink()
    assert not set(first.values()) & {veil_of(open_run(other.runs, "tiny")).called(i) for i in ILL}
    assert not set(first.values()) & {veil_of(open_run(own_study.runs, "tiny-intensity")).called(i) for i in ILL}
    assert [p.name for p in own_study.runs.iterdir() if p.name.startswith(".tmp")] == []


def test_a_damaged_key_is_refused_with_its_remedy(own_study: TinyStudy) -> None:
    (own_study.runs / KEY_FILE).write_bytes(b"short")
    with pytest.raises(IntegrityError, match="Delete it"):
        veil_of(open_run(own_study.runs, "tiny"))


def test_where_nothing_can_be_written_pseudonyms_are_for_one_document(
    own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*words: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("core.runs.sharing.os.link", refuse)
    run = open_run(own_study.runs, "tiny")
    assert veil_of(run).called("test01") != veil_of(run).called("test01")
    assert not (own_study.runs / KEY_FILE).exists()


@pytest.mark.parametrize(
    ("told", "hidden"),
    [
        ("Scan sub-01_T1.nii.gz is torn", "sub-01"),
        ("SUB-01 and sub-01.", "sub-01"),
        ("In (smith), Smith's scan", "smith"),
        ("the folder of a/../b and a/../b", "a/../b"),
        ("x 12345 y", "12345"),
        ("file Müller~0123456789abcdef_score", "Müller"),
        ("<b>id</b>=1", "<b>id</b>"),
    ],
)
def test_an_id_is_found_in_a_sentence_however_it_is_written(told: str, hidden: str) -> None:
    veil = veiled(a=hidden)
    text = veil.text(told)
    assert hidden.lower() not in text.lower()
    assert folder_name(hidden) not in text
    assert veil.called(hidden) in text


def test_a_short_id_costs_the_note_that_names_it_and_no_number() -> None:
    veil = veiled(a="7", b="01", c="12")
    assert veil.notes(["7 of 12 subjects", "Scan 01: torn", "All 77 are well, 0.701."]) == ["All 77 are well, 0.701."]
    assert veil.text("7 voxels") == "7 voxels"


@pytest.mark.parametrize(
    "told",
    [
        "/home/alice/x",
        "see /srv/data/cohort.csv.",
        "(/mnt/nas/alice)",
        '"/a/b c"',
        "~/alice/x",
        "C:\\Users\\alice\\x.nii",
        "\\\\server\\alice\\x",
        "file:///srv/alice",
        "PATH=/opt/alice/bin",
        "alice@ward.org",
        "token=alice",
        "Password: alice",
        "api_key=alice&x=1",
    ],
)
def test_paths_addresses_and_secrets_are_left_out(told: str) -> None:
    text = veiled().text(told)
    assert LEFT_OUT in text
    assert "alice" not in text
    assert "srv" not in text


@pytest.mark.parametrize(
    "told",
    [
        "Dice 0.512 / 0.498",
        "AUPRC/AUROC",
        "mm/s and 3/4",
        "python cli.py score my-run --runs x",
        "10.1000/xyz.123",
        "a and/or b",
        "1:2",
        "https://doi.org/10.1/x",
    ],
)
def test_what_is_no_name_stays(told: str) -> None:
    assert veiled(a="test01").text(told) == told


def test_ages_are_told_in_steps_of_five_years() -> None:
    assert age_span([23.4, 61.0]) == "20 to 65"
    assert age_span([25.0]) == "25 to 30"
    assert age_span([]) == ""


def test_the_verbs_share_a_report_and_maps_under_the_same_pseudonyms(
    own_study: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = ["--runs", str(own_study.runs)]
    assert main(["score", "tiny", *runs, "--export", "maps", "--layers", "stage1", "--share"]) == 0
    names = {path.name for path in Path("maps").iterdir()}
    veil = veil_of(open_run(own_study.runs, "tiny"))
    assert {f"{veil.called(i)}_score.nii.gz" for i in ILL} <= names
    ids = [s["subject_id"] for s in open_run(own_study.runs, "tiny").record["cohort"]["subjects"]]
    assert not [name for name in names if any(i in name for i in ids)]
    for path in Path("maps").iterdir():
        assert not [i for i in ids if i.encode() in path.read_bytes()]
    assert main(["report", "tiny-intensity", *runs, "--out", "shared.html", "--share", "--json"]) == 0
    told = everything_in(Path("shared.html").read_text())
    assert not [i for i in ids if i in told]
    assert str(own_study.runs) not in told

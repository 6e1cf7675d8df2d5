"""A subject id is text from somebody's table: whatever it says, nothing is written or deleted outside of the runs."""

import hashlib
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

import cli
from core.runs.listing import open_run
from data.cohort import Subject
from data.names import folder_name
from data.nifti import read_scan, write_nifti
from data.table import write_table
from data.template import working_template
from data.volume import resample
from tests.study import SCAN_FLAGS, SCAN_GRID, _scan

HOSTILE = (
    *(
        "..",
        ".",
        "../scans/precious",
        "../../precious",
        "../../../precious",
        "a/b",
        "a/../../b",
        "/",
        "/etc/passwd",
        "//x",
    ),
    *(
        "scans/precious",
        "./x",
        "x/",
        "a\\b",
        "..\\..\\x",
        "C:\\Windows",
        "~",
        "~root",
        "-rf",
        "--help",
        "-",
        "*",
        "?",
        "a:b",
    ),
    *(
        "a b",
        "a\tb",
        "a\nb",
        "'; DROP TABLE x; --",
        '"quoted"',
        "a,b;c",
        "$(touch pwned)",
        "`touch pwned`",
        "&& rm -rf x",
    ),
    *("<img src=x onerror=alert(1)>", "![x](http://127.0.0.1:9/x.png)", "[a](javascript:alert(1))", "=HYPERLINK(1)"),
    *("+1", "@SUM(A1)", "con", "NUL.txt", "lpt1", ".hidden", ".tmp-new-abc", "manifest.json", "s" * 255, "é" * 200),
    *(
        unicodedata.normalize("NFC", "Zoë"),
        unicodedata.normalize("NFD", "Zoë"),
        "名前",
        "🧠",
        "%2e%2e%2f",
        "sub-01~",
        "a.",
    ),
)
FIRST_ILL = 24


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """root/scans/cohort.csv with one small scan for each hostile id, and folders that those ids would lead to."""
    root = tmp_path_factory.mktemp("hostile")
    template = working_template(4.0)
    brain = resample(template.brain_mask.astype(np.float32), template.grid, SCAN_GRID) >= 0.5
    anatomy = resample(template.voxels[0], template.grid, SCAN_GRID)
    subjects = []
    for number, subject_id in enumerate(HOSTILE):
        ill = number >= FIRST_ILL
        values, lesion = _scan(anatomy, brain, number, ill=ill)
        scan, mask = (root / "scans" / f"{number:02d}_{what}.nii.gz" for what in ("flair", "lesion"))
        write_nifti(scan, values, SCAN_GRID)
        if ill:
            write_nifti(mask, lesion, SCAN_GRID)
        role = ("train", "train", "calibration", "test")[number % 4] if not ill else ("validation", "test")[number % 2]
        subjects.append(
            Subject(subject_id, {"FLAIR": scan}, lesion_mask=mask if ill else None, healthy=not ill, role=role)
        )
    write_table(root / "scans" / "cohort.csv", subjects)
    for folder in (root / "scans" / "precious", root / "precious", root.parent / "precious"):
        folder.mkdir(exist_ok=True)
        (folder / "T1.nii.gz").write_bytes(b"the only copy")
    return root


def tree(place: Path) -> dict[str, str]:
    """Everything outside of the runs and the exports."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for top in (place / "scans", place / "precious", place.parent / "precious")
        for path in sorted([top, *top.rglob("*")])
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_forty_hostile_ids_go_from_the_table_to_report_and_export_and_nothing_else_is_touched(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(HOSTILE) >= 40
    monkeypatch.chdir(place)
    before, runs = tree(place), ["--runs", str(place / "runs")]
    scans = ["scans/cohort.csv", *runs, *SCAN_FLAGS]
    for argv in (
        ["check", "scans/cohort.csv"],
        ["prepare", *scans],
        ["fit", *scans, "--detector", "zscore", "--run-id", "hostile"],
        ["score", "hostile", *runs],
        ["evaluate", "hostile", *runs],
        ["diagnose", "hostile", *runs],
        ["report", "hostile", *runs, "--out", str(place / "report.html")],
        ["score", "hostile", *runs, "--export", str(place / "maps")],
    ):
        code = cli.main(argv)
        assert code == 0, (argv, capsys.readouterr().err)
    assert tree(place) == before
    assert {path.name for path in place.iterdir()} == {"scans", "precious", "runs", "maps", "report.html"}
    run = open_run(place / "runs", "hostile")
    scored = [i for role in ("calibration", "validation", "test") for i in run.record["split"][role]]
    assert len([i for ids in run.record["split"].values() for i in ids]) == len(HOSTILE)
    assert {p.name for p in (run.directory / "scores").iterdir()} == {folder_name(i) for i in scored}
    shown = [i for role in ("validation", "test") for i in run.record["split"][role]]
    wanted = {f"{folder_name(i)}_{what}.nii.gz" for i in shown for what in ("score", "segmentation")}
    assert {path.name for path in (place / "maps").iterdir()} == wanted
    ill = next(i for i in run.record["split"]["test"] if HOSTILE.index(i) >= FIRST_ILL)
    assert read_scan(place / "maps" / f"{folder_name(ill)}_score.nii.gz").grid.matches(SCAN_GRID)
    page = (place / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert not list(place.rglob("pwned"))


def test_a_record_from_somebody_else_has_no_power_over_other_folders(place: Path, tmp_path: Path) -> None:
    """run.json names subjects whose ids are paths; their scores are looked for, and written, below the run only."""
    from core.runs.stages import stage, stage_directory, stage_name
    from core.runs.store import create_run

    runs = tmp_path / "runs"
    run = create_run(runs, kind="detector", name="x", recipe={})
    for subject_id in HOSTILE:
        directory = stage_directory(run, stage_name("scores", subject_id))
        assert directory.parent == run.directory / "scores"
        with stage(run, stage_name("scores", subject_id)) as scratch:
            (scratch / "subject.json").write_text(json.dumps(subject_id))
    assert len(list((run.directory / "scores").iterdir())) == len(HOSTILE)
    for subject_id in HOSTILE:
        found = stage_directory(run, stage_name("scores", subject_id)) / "subject.json"
        assert json.loads(found.read_text()) == subject_id

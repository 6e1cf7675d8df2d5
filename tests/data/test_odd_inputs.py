"""Inputs that people really have, where the scripts that make them lie beside the project, and the right answers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cli
from models.encoder import load_weights, make_encoder
from models.settings import EncoderSettings

MAKERS = Path(__file__).resolve().parents[3] / "shared" / "inputs"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (MAKERS / "make_bids.py").is_file(), reason="no odd inputs beside the project"),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    for name in ("bids", "brats", "tables", "headers", "h1big", "e2e", "weights_tv"):
        argv = [sys.executable, "-B", str(MAKERS / f"make_{name}.py"), str(root / name)]
        subprocess.run(argv, check=True, cwd=MAKERS, capture_output=True)
    return root


def check(capsys: pytest.CaptureFixture[str], path: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, what `check --json` found, and what it says when it stops before."""
    capsys.readouterr()
    code = cli.main(["check", str(path), "--json", *words])
    out, err = capsys.readouterr()
    found = json.loads(out) if out.strip() else {}
    if found:
        plain = cli.main(["check", str(path), *words])
        told = capsys.readouterr().out
        assert plain == code
        for note in found["notes"]:
            assert note in told
    return code, found, err


def health(found: dict[str, Any]) -> dict[str, bool | None]:
    return {one["subject_id"]: one["healthy"] for one in found["facts"]}


@pytest.mark.parametrize("name", ["B1_atlas2", "B2_isles22", "B3_ivadomed"])
def test_three_patients_with_their_masks(inputs: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, found, _ = check(capsys, inputs / "bids" / name)
    assert code == 0
    assert list(health(found).values()) == [False] * 3
    assert all(one["lesion_ml"] > 1 for one in found["facts"])


def test_source_data_is_not_data(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found, _ = check(capsys, inputs / "bids" / "B5_sourcedata")
    assert health(found) == {"sub-01": None, "sub-02": None}
    assert any("sourcedata" in note for note in found["notes"])


def test_diagnoses_and_groups_in_the_words_of_the_field(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found, _ = check(capsys, inputs / "bids" / "B6_diagnosis")
    assert health(found) == {"sub-01": False, "sub-02": True, "sub-03": False, "sub-04": True}
    assert "diagnosis 'CN' in participants.tsv" in found["health"]
    _, found, _ = check(capsys, inputs / "bids" / "B7_groups")
    assert [health(found)[f"sub-0{n}"] for n in range(1, 10)] == [True] * 5 + [None, False, True, True]
    _, found, _ = check(capsys, inputs / "bids" / "B7_groups", "--controls", "0")
    assert health(found)["sub-06"] is True


def test_sessions(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, _ = check(capsys, inputs / "bids" / "B8_sessions", "--contrasts", "T1w", "flair")
    assert code == 0
    assert health(found) == {"sub-01": False, "sub-02": None}
    assert found["facts"][0]["lesion_ml"] > 1
    assert any("session 2 taken, 10 left out" in note for note in found["notes"])


def test_labels_are_declared_for_bids_too(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = inputs / "bids" / "B11_multilabel"
    code, found, _ = check(capsys, place)
    assert code == 2
    assert "[1, 2]" in found["set_aside"][0]["reason"]
    both = check(capsys, place, "--lesion-labels", "1", "2")[1]["facts"][0]["lesion_ml"]
    one = check(capsys, place, "--lesion-labels", "1", "--ignore-labels", "2")[1]["facts"][0]["lesion_ml"]
    assert 0 < one < both


def test_links_to_another_disk(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = check(capsys, inputs / "bids" / "B12_symlinks")
    assert (code, "--follow-symlinks" in err) == (2, True)
    assert check(capsys, inputs / "bids" / "B12_symlinks", "--follow-symlinks")[0] == 0


@pytest.mark.parametrize(
    ("name", "contrasts"),
    [
        ("R1_2017", {"FLAIR", "T1", "T1C", "T2"}), ("R2_2018", {"FLAIR", "T1", "T1C", "T2"}),
        ("R3_2024_GLI", {"FLAIR", "T1", "T1C", "T2"}), ("R6_MSD", {"FLAIR", "T1", "T1C", "T2"}),
        ("R8_folders", {"FLAIR", "T1"}), ("R9_nnunet", {"CHANNEL0", "CHANNEL1"}), ("R10_WMH", {"FLAIR", "T1"}),
        ("R12_2023_noseg", {"FLAIR", "T1", "T1C", "T2"}),
    ],
)  # fmt: skip
def test_challenges_are_read_as_the_layouts_that_they_are(
    inputs: Path, capsys: pytest.CaptureFixture[str], name: str, contrasts: set[str]
) -> None:
    code, found, _ = check(capsys, inputs / "brats" / name, "--contrasts", *sorted(contrasts))
    assert code == 0
    assert not any(healthy for healthy in health(found).values())
    ignored = any("is ignored" in note for one in found["facts"] for note in one["notes"])
    assert ignored == (name in ("R3_2024_GLI", "R10_WMH"))


@pytest.mark.parametrize("column", ["mask", "lesion", "seg", "label", "ground_truth", "lesion_mask_path"])
def test_a_lesion_column_of_another_name(inputs: Path, capsys: pytest.CaptureFixture[str], column: str) -> None:
    _, found, _ = check(capsys, inputs / "tables" / f"T1_{column}.csv", "--healthy-unless-masked")
    assert set(health(found).values()) == {None}
    assert any(repr(column) in note and "lesion_mask" in note for note in found["notes"])


@pytest.mark.parametrize("column", ["id", "subject", "ID", "Subject_ID", "participant_id", "patient"])
def test_an_id_column_of_another_name(inputs: Path, capsys: pytest.CaptureFixture[str], column: str) -> None:
    _, found, err = check(capsys, inputs / "tables" / f"T2_{column}.csv")
    told = " ".join([err, *found.get("notes", [])])
    assert repr(column) in told
    assert "subject_id" in told


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("T3_excel.csv", 2, "a path of Windows"), ("T3b_excel_rel.csv", 0, ""), ("T3d_excel_rel_int.csv", 0, ""),
        ("T3c_cp1252.csv", 2, "not UTF-8"), ("T3e_utf16.csv", 2, "UTF-16"), ("T3f_sepline.csv", 0, ""),
        ("T3g_trailing_empty_columns.csv", 0, ""), ("T4_names.csv", 0, ""), ("T7_abs.csv", 2, "$DATA"),
        ("T8_long.csv", 2, "both subject"), ("T9_real.xlsx", 2, "CSV"), ("T9_renamed.csv", 2, "Excel workbook"),
        ("T11_t1w.csv", 0, "T1"), ("T12_upper.csv", 0, ""), ("T13_nrrd.csv", 2, "Convert it to NIfTI"),
        ("T14_labels.csv", 0, ""),
    ],
)  # fmt: skip
def test_tables_of_spreadsheets(
    inputs: Path, capsys: pytest.CaptureFixture[str], name: str, code: int, words: str
) -> None:
    got, found, err = check(capsys, inputs / "tables" / name)
    assert got == code
    assert words in err + json.dumps(found, ensure_ascii=False)


REFUSED = {
    "H2-spm-coreg-sform": "--header-form", "H3-sform-no-scale": "voxel sizes", "H6-no-orientation": "left and right",
    "H15-CT": "Hounsfield",
    "H8-multiecho4d": "--volume", "H16-soft-brainmask": "--mask-cut", "H19-wmh-label2": "--ignore-labels",
    "H20-half-voxel": "1 mm", "H24-gz-of-gz": "NIfTI header", "H25-plain-named-gz": "not gzip",
    "H26-padded-nii": "1296864", "H28-vox-offset-0": "byte 0", "H31-tissue-seg-as-scan": "values 0, 1, 2, 3",
}  # fmt: skip


def test_headers(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found, _ = check(capsys, inputs / "headers" / "cohort.csv")
    aside = {one["subject_id"]: one["reason"] for one in found["set_aside"]}
    assert set(aside) == set(REFUSED)
    for name, words in REFUSED.items():
        assert words in aside[name]
    answers = {
        "H2-spm-coreg-sform": ["--header-form", "sform"],
        "H8-multiecho4d": ["--volume", "0"],
        "H16-soft-brainmask": ["--mask-cut", "0.5"],
        "H19-wmh-label2": ["--lesion-labels", "1", "--ignore-labels", "2"],
        "H20-half-voxel": ["--preprocessing.resample-masks"],
    }
    every = [word for words in answers.values() for word in words]
    _, found, _ = check(capsys, inputs / "headers" / "cohort.csv", *every)
    assert {one["subject_id"] for one in found["set_aside"]} == set(REFUSED) - set(answers)


def test_masks_that_are_thousandths_of_a_millimetre_off(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("c.csv", "c3.csv"):
        code, found, _ = check(capsys, inputs / "h1big" / name)
        assert code == 0
        assert any("taken as on the scan's grid" in note for note in found["facts"][0]["notes"])


SMALL = ("--preprocessing.registration", "none", "--preprocessing.spacing-mm", "4")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("E1_one_train", "1 healthy training subject(s). At least 2"), ("E5_single", "At least 2 are needed"),
        ("E6_tiny_noroles", "--healthy-unless-masked"), ("E7_maskcolumn", "call it lesion_mask"),
    ],
)  # fmt: skip
def test_too_few_healthy_scans_are_refused_in_words(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    assert cli.main(["prepare", str(inputs / "e2e" / f"{name}.csv"), "--runs", str(tmp_path), *SMALL]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("E2_no_calibration", "no label-free threshold"), ("E3_healthy_test", "mL are marked"),
        ("E4_all_validation", "No subject is in its test split"),
    ],
)  # fmt: skip
def test_a_run_that_lacks_a_role_is_evaluated_and_says_so(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    where = ["--runs", str(tmp_path)]
    table = str(inputs / "e2e" / f"{name}.csv")
    assert cli.main(["fit", table, *where, *SMALL, "--detector", "zscore", "--run-id", "one"]) == 0
    assert cli.main(["score", "one", *where]) == 0
    assert cli.main(["evaluate", "one", *where]) == 0
    assert words in capsys.readouterr().out


def test_weights_of_torchvision_lightning_and_lightly_load(inputs: Path) -> None:
    settings = EncoderSettings(architecture="resnet18_2d", width=64, stem_stride=2, max_pool=True)
    for path in sorted((inputs / "weights_tv").iterdir()):
        notes = load_weights(make_encoder(settings), path)
        assert "three input channels were summed" in notes[0]

"""What the Data page shows: pictures that keep left and right, splits, causes and remedies, leakage, checks."""

import base64
import dataclasses
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from core.detectors import make
from core.fields import field_texts
from core.presentation.cohort_view import (
    check_result,
    facts_rows,
    leakage,
    set_aside_rows,
    split_table,
    subject_row,
    subjects_in,
)
from core.presentation.commands import check_argv
from core.presentation.thumbnails import ENLARGE, LESION_RGB, data_uri, montage, outlined
from core.progress import open_progress
from core.recipes import as_json
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.study import data_source, fitting, preparing
from core.study.data_source import cache_directory
from core.study.places import centre_of
from core.study.run_scans import prepared_of
from data.choices import Choices
from data.errors import BadInput
from data.layout import read_cohort
from data.prepared import Prepared, Preprocessing
from data.reading import check_cohort
from data.volume import Grid, Mask, Volume
from pages._choices import LABELS, choices_from
from tests.study import recommit
from verbs.scans import CheckVerb

ROOT = Path(__file__).resolve().parents[2]
N = 16


def a_scan(subject: str = "s", lesion_at: tuple[slice, slice, slice] | None = None) -> Prepared:
    """A cube of brain whose right, front and top are brighter than its left, back and bottom."""
    grid = Grid((N, N, N), np.diag([2.0, 2.0, 2.0, 1.0]))
    x, y, z = np.meshgrid(*[np.arange(N)] * 3, indexing="ij")
    brain = np.zeros((N, N, N), dtype=bool)
    brain[3:13, 3:13, 3:13] = True
    voxels = np.where(brain, (4.0 * x + 2.0 * y + z) / 100.0, 0.0).astype(np.float32)
    lesion = None
    if lesion_at is not None:
        mask = np.zeros((N, N, N), dtype=bool)
        mask[lesion_at] = True
        lesion = Mask(mask, grid)
    return Prepared(
        Volume(voxels[None], grid, brain, subject, ("T1",)), lesion, grid, Mask(brain, grid), lesion, np.eye(4), (),
        "key", "hash",
    )  # fmt: skip


def test_a_montage_shows_the_subjects_left_on_the_right_and_front_and_top_upwards() -> None:
    picture = montage(a_scan()).astype(int)[..., 0]
    edge = ENLARGE * N
    axial, coronal, sagittal = (picture[:, at : at + edge] for at in (0, edge + 4, 2 * (edge + 4)))
    near, far, middle = ENLARGE * 4, ENLARGE * 12, ENLARGE * 8
    assert axial[middle, near] > axial[middle, far]  # the right side of the subject, brighter, is on the left
    assert axial[near, middle] > axial[far, middle]  # front is up
    assert coronal[middle, near] > coronal[middle, far]
    assert coronal[near, middle] > coronal[far, middle]  # top is up
    assert sagittal[middle, near] > sagittal[middle, far]  # front is on the left
    assert picture.shape == (edge, 3 * edge + 8)


def test_slices_are_cut_where_there_is_most_lesion_else_through_the_middle_of_the_brain() -> None:
    assert centre_of(a_scan()) == (8, 8, 8)
    assert centre_of(a_scan(lesion_at=(slice(4, 5), slice(5, 9), slice(11, 12)))) == (4, 5, 11)
    assert centre_of(a_scan(lesion_at=(slice(0, 0), slice(0, 0), slice(0, 0)))) == (8, 8, 8)


def test_the_lesion_is_outlined_one_pixel_wide_and_its_inside_stays_visible() -> None:
    lesion = np.zeros((10, 10), dtype=bool)
    lesion[3:7, 2:8] = True
    picture = outlined(np.full((10, 10), 0.5, dtype=np.float32), lesion)
    coloured = (picture == LESION_RGB).all(axis=2)
    rows, columns = ENLARGE * 4, ENLARGE * 6
    assert coloured.sum() == 2 * (rows + columns) - 4
    assert coloured[ENLARGE * 3, ENLARGE * 2]
    assert tuple(picture[ENLARGE * 5, ENLARGE * 5]) == (128, 128, 128)


def test_the_picture_of_a_healthy_scan_has_no_outline() -> None:
    assert not (montage(a_scan()) == LESION_RGB).all(axis=2).any()
    ill = a_scan(lesion_at=(slice(5, 9), slice(5, 9), slice(5, 9)))
    assert (montage(ill) == LESION_RGB).all(axis=2).any()


def test_a_message_of_a_set_aside_scan_is_taken_apart_into_cause_and_remedy() -> None:
    record = {
        "subject_id": "a", "path": "/x/a.nii.gz", "code": "E-MASK-NEGATIVE",
        "reason": "E-MASK-NEGATIVE: /x/a.nii.gz: holds negative labels [-1]. Save lesion as 1, rest 0.",
    }  # fmt: skip
    (row,) = set_aside_rows([record])
    assert row["what is wrong"] == "holds negative labels [-1]."
    assert row["what to do"] == "Save lesion as 1, rest 0."
    (short,) = set_aside_rows([{"subject_id": "b", "path": "", "code": "E-READ", "reason": "gone"}])
    assert (short["what is wrong"], short["what to do"]) == ("gone", "")


def test_the_result_of_a_check_is_found_among_lines_of_progress(tmp_path: Path) -> None:
    check = check_cohort(read_cohort(write_cohort(tmp_path)), ("T1",))
    result = json.dumps(as_json(check), indent=1)
    found = check_result(f"Reading scans: 6 to do\n{{broken\nReading scans: 6 done in 1 s\n{result}\nbye\n")
    assert found is not None
    assert [row["subject"] for row in facts_rows(found["facts"])] == ["s1", "s2", "s3", "s4", "s5"]
    assert [one["subject_id"] for one in found["set_aside"]] == ["s6"]
    assert check_result("Reading scans: 6 to do\nError: no such file") is None
    assert check_result(result[: len(result) // 2]) is None


def test_the_command_of_a_check_names_path_layout_and_contrasts(tmp_path: Path) -> None:
    import tyro

    parsed = tyro.cli(CheckVerb, args=check_argv(str(write_cohort(tmp_path)), "table", ["T1", "FLAIR"])[1:])
    said = Choices(healthy_unless_masked=True)
    argv = check_argv(str(write_cohort(tmp_path)), "table", [], said)
    assert tyro.cli(CheckVerb, args=argv[1:]).healthy_unless_masked
    assert (parsed.layout, parsed.contrasts, parsed.json) == ("table", ("T1", "FLAIR"), True)
    assert parsed.cohort == (tmp_path / "cohort.csv").resolve()


def test_splits_subjects_and_leakage_of_a_run(study: Run) -> None:
    rows = {row["split"]: row for row in split_table(study)}
    assert (rows["train"]["healthy"], rows["test"]["with lesions"], rows["all"]["subjects"]) == (3, 1, 5)
    assert [s["subject_id"] for s in subjects_in(study, ["test", "train"])] == ["s5", "s1", "s2", "s3"]
    ill = subject_row(study, subjects_in(study, ["test"])[0])
    assert ill["lesion mL"] == pytest.approx(4**3 * 8.0**3 / 1000)
    assert (ill["site"], ill["age"], ill["healthy"]) == ("B", 61.0, False)
    found = leakage(study, cache_directory(study.directory.parent))
    assert (found.compared, found.pairs, found.missing) == (5, (), ())


def test_the_same_voxels_under_two_ids_are_named_and_a_lost_scan_is_not_called_compared(study: Run) -> None:
    subjects = [dict(s) for s in study.record["cohort"]["subjects"]]
    cache = cache_directory(study.directory.parent)
    subjects[4]["key"], subjects[1]["key"] = "f" * 32, "gone"
    twin = cache / ("f" * 32)
    shutil.copytree(cache / subjects[0]["key"], twin)
    recommit(twin, {"record.json": (twin / "record.json").read_text().replace('"s1"', '"s5"')})
    leaking = SimpleNamespace(record={"cohort": {"subjects": subjects}})
    found = leakage(leaking, cache)  # type: ignore[arg-type]
    shutil.rmtree(twin)
    assert found.pairs == (("s1", "train", "s5", "test"),)
    assert (found.compared, found.missing) == (4, ("s2",))


def test_the_page_shows_counts_pictures_and_what_was_set_aside(study: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    page = open_page(study.directory.parent, monkeypatch)
    numbers = {metric.label: metric.value for metric in page.metric}
    assert numbers == {"Subjects used": "5 of 6", "Healthy": "4", "With lesions": "1", "Set aside": "1"}
    assert any("No leakage found" in box.value for box in page.success)
    assert len(page.get("image")) == 5
    tables = [table.value for table in page.dataframe]
    assert any("what to do" in table.columns and table["subject"].tolist() == ["s6"] for table in tables)


def test_choosing_a_split_shows_its_subjects_only(study: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    page = open_page(study.directory.parent, monkeypatch)
    page.session_state["split"] = "test"
    page.run()
    assert not page.exception
    assert len(page.get("image")) == 1
    assert any(caption.value.startswith("**s5** · test · lesion 32.77 mL") for caption in page.caption)


def test_a_scan_that_left_the_cache_is_said_and_hides_no_other(study: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = cache_directory(study.directory.parent) / study.record["cohort"]["subjects"][1]["key"]
    elsewhere = entry.rename(entry.with_name("elsewhere"))
    try:
        page = open_page(study.directory.parent, monkeypatch)
        assert len(page.get("image")) == 4
        assert any("no longer in the cache" in box.value for box in page.warning)
    finally:
        elsewhere.rename(entry)


def test_without_runs_the_page_says_the_command_that_makes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = open_page(tmp_path, monkeypatch)
    assert any("python cli.py" in info.value for info in page.info)


def write_cohort(folder: Path) -> Path:
    """Five usable scans of 8 mm voxels, one with a lesion, and one file that is no scan."""
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    affine[:3, 3] = (-80.0, -112.0, -74.0)
    lines = ["subject_id,T1,brain_mask,lesion_mask,role,healthy,site,age"]
    for number in range(1, 7):
        values = np.random.default_rng(number).uniform(100, 200, (20, 24, 20)).astype(np.float32)
        brain = np.zeros(values.shape, dtype=np.uint8)
        brain[4:16, 5:19, 4:16] = 1
        lesion = np.zeros(values.shape, dtype=np.uint8)
        lesion[6:10, 8:12, 6:10] = 1
        nib.save(nib.Nifti1Image(values, affine), folder / f"s{number}.nii.gz")
        nib.save(nib.Nifti1Image(brain, affine), folder / f"b{number}.nii.gz")
        nib.save(nib.Nifti1Image(lesion, affine), folder / f"l{number}.nii.gz")
        ill = number == 5
        role = {4: "calibration", 5: "test"}.get(number, "train")
        lines.append(
            f"s{number},s{number}.nii.gz,b{number}.nii.gz,{f'l{number}.nii.gz' if ill else ''},{role},"
            f"{'no' if ill else 'yes'},{'B' if ill else 'A'},{56 + number}"
        )
    (folder / "s6.nii.gz").write_bytes(b"no scan at all")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    return folder / "cohort.csv"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("scans")
    runs = tmp_path_factory.mktemp("runs")
    preprocessing = Preprocessing(("T1",), "none", 8.0)
    source = data_source.DataSource(write_cohort(folder), preprocessing=preprocessing)
    progress = open_progress(stream_is_terminal=False)
    preparing.prepare(runs, source, progress, workers=1)
    run = fitting.fit(runs, source, make("intensity-bright"), progress, name="bright", run_id="bright-1")
    run = open_run(runs, run.run_id)
    assert prepared_of(run, "s1").volume.subject_id == "s1"
    return run


def open_page(runs: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    import streamlit as st

    st.cache_resource.clear()
    monkeypatch.setenv("DICESCOPE_RUNS", str(runs))
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=30).run()
    page = page.switch_page("pages/data.py").run()
    assert not page.exception
    return page


def test_a_picture_inside_its_address_has_the_same_pixels() -> None:
    picture = montage(a_scan())
    kind, _, png = data_uri(picture).partition(",")
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))), picture)


def asked_for(answers: dict[str, object]) -> Choices:
    """The choices of the form when some of its fields are filled in."""

    def form() -> None:
        import streamlit as st

        from pages._choices import ask_choices, choices_from

        ask_choices(lambda name: f"c-{name}")
        st.session_state["made"] = choices_from(lambda name: st.session_state[f"c-{name}"])

    at = AppTest.from_function(form).run()
    assert not at.exception
    assert at.session_state["made"] == Choices()
    for name, value in answers.items():
        {w.key: w for w in (*at.checkbox, *at.text_input, *at.selectbox)}[f"c-{name}"].set_value(value)
    at.run()
    assert not at.exception
    made: Choices = at.session_state["made"]
    return made


def test_the_form_asks_for_every_choice_that_a_verb_has() -> None:
    assert {*LABELS, "healthy_unless_masked", "follow_symlinks"} == {
        field.name for field in dataclasses.fields(Choices)
    }
    made = asked_for(
        {"healthy_unless_masked": True, "controls": "0, sham", "lesion_labels": "1, 3", "ignore_labels": "4",
         "volume": "2", "mask_cut": "0,5", "header_form": "sform", "session": " 02 ", "keep": "a b"}
    )  # fmt: skip
    assert made == Choices(
        healthy_unless_masked=True, controls=("0", "sham"), lesion_labels=(1, 3), ignore_labels=(4,), volume=2,
        mask_cut=0.5, header_form="sform", session="02", keep=("a", "b"),
    )  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [("lesion_labels", "1 two"), ("volume", "1.5"), ("mask_cut", "half")])
def test_what_is_no_number_is_named_with_an_example(name: str, value: str) -> None:
    answers = {field.name: getattr(Choices(), field.name) or "" for field in dataclasses.fields(Choices)}
    with pytest.raises(BadInput, match=f"{LABELS[name]}: .* is no (whole )?number. Give one, as in "):
        choices_from((answers | {name: value}).__getitem__)


def test_texts_of_fields_are_those_of_the_source() -> None:
    assert field_texts(Choices)["run"] == "BIDS: the run to take; the first when not given."
    assert all(field_texts(Choices).values())
    assert field_texts(CheckVerb)["keep"] == field_texts(Choices)["keep"]

"""A cohort.toml: several data sets as one cohort, each with what its user says of it."""

from pathlib import Path

import pytest

from core.study.preparing import draw_split
from data.choices import Choices
from data.cohort import ROLES, check_healthy, split_by_roles
from data.errors import BadInput
from data.folders import BadDataset
from data.layout import read_cohort


def data_sets(root: Path) -> Path:
    for number in range(10):
        (root / "ixi").mkdir(exist_ok=True)
        (root / "ixi" / f"IXI{100 + number}-HH-{number}-T1.nii.gz").touch()
        case = root / "brats" / f"BraTS2021_{number:05d}"
        case.mkdir(parents=True)
        for kind in ("t1", "seg"):
            (case / f"{case.name}_{kind}.nii.gz").touch()
        anat = root / "mine" / f"sub-{number}" / "anat"
        anat.mkdir(parents=True)
        (anat / f"sub-{number}_T1w.nii.gz").touch()
    return root


def joined(root: Path, text: str, choices: Choices | None = None):  # type: ignore[no-untyped-def]
    (root / "cohort.toml").write_text(text)
    return read_cohort(root / "cohort.toml", choices=choices or Choices())


IXI_TO_BRATS = """
name = "IXI to BraTS"
[[source]]
path = "ixi"
role = {train = 0.8, calibration = 0.2}
site = "London"
[[source]]
path = "brats"
role = {validation = 0.4, test = 0.6}
ignore_labels = [2]
"""


def test_ixi_trains_and_brats_tests_without_a_table(tmp_path: Path) -> None:
    cohort = joined(data_sets(tmp_path), IXI_TO_BRATS)
    split = split_by_roles(cohort.subjects)
    assert [len(getattr(split, role)) for role in ROLES] == [8, 2, 4, 6]
    check_healthy(cohort, split)
    assert {s.site for s in cohort.subjects if s.healthy} == {"London"}
    assert {s.ignore_labels for s in cohort.subjects if not s.healthy} == {(2,)}
    assert cohort.name == "IXI to BraTS"
    assert "IXI dataset" in cohort.citation
    assert "Menze" in cohort.citation
    again = split_by_roles(joined(tmp_path, IXI_TO_BRATS).subjects)
    other = split_by_roles(joined(tmp_path, IXI_TO_BRATS.replace('site = "London"', "seed = 1")).subjects)
    assert again == split
    assert other.train != split.train


def test_the_word_on_health_is_that_of_the_file(tmp_path: Path) -> None:
    data_sets(tmp_path)
    for said, healthy in (("healthy = true", True), ("healthy = false", False), ("", None)):
        cohort = joined(tmp_path, f'[[source]]\npath = "mine"\n{said}\n')
        assert {s.healthy for s in cohort.subjects} == {healthy}
        assert bool(said) == all(f"{said} in the cohort.toml" == s.health_from for s in cohort.subjects)
    assert {s.healthy for s in joined(tmp_path, '[[source]]\npath = "brats"\nhealthy = true\n').subjects} == {False}


def test_ill_people_never_train_whatever_the_role_of_their_source(tmp_path: Path) -> None:
    data_sets(tmp_path)
    cohort = joined(tmp_path, '[[source]]\npath = "brats"\nrole = "train"\n')
    with pytest.raises(BadInput, match="with lesions in the train split"):
        check_healthy(cohort, split_by_roles(cohort.subjects))
    unsaid = joined(tmp_path, '[[source]]\npath = "mine"\nrole = "train"\n')
    with pytest.raises(BadInput, match="unknown health in the train split"):
        check_healthy(unsaid, split_by_roles(unsaid.subjects))
    assert draw_split(unsaid.subjects, 0).train == ()


def test_ids_that_two_sources_share_need_a_prefix(tmp_path: Path) -> None:
    data_sets(tmp_path)
    twice = '[[source]]\npath = "mine"\n[[source]]\npath = "mine"\n'
    with pytest.raises(BadDataset, match=r"E-JOINED-IDS.*'sub-0'.*prefix"):
        joined(tmp_path, twice)
    assert len(joined(tmp_path, twice + 'prefix = "b-"\n').subjects) == 20


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[[source", "E-JOINED-TOML"),
        ("", "E-JOINED-FORM"),
        ("[source]\npath = 'ixi'\n", "E-JOINED-FORM"),
        ("[[source]]\nlayout = 'ixi'\n", "E-JOINED-FORM"),
        ("[[source]]\npath = 'ixi'\nhealth = true\n", "E-JOINED-FORM"),
        ("[[source]]\npath = 'ixi'\nrole = 'training'\n", "E-JOINED-FORM"),
        ("[[source]]\npath = 'ixi'\nrole = {train = 0.8, test = 0.8}\n", "E-JOINED-FORM"),
        ("[[source]]\npath = 'ixi'\nhealthy = 'yes'\n", "E-JOINED-FORM"),
        ("[[source]]\npath = 'ixi'\nsession = 3\n", "E-JOINED-FORM"),
        ("[[source]]\npath = 'ixi'\nlesion_labels = 3\n", "E-JOINED-FORM"),
        ("[[source]]\npath = 'ixi'\nlesion_labels = ['1']\n", "E-JOINED-FORM"),
        ("[[source]]\npath = 'ixi'\nlesion_labels = [0]\n", "E-JOINED-FORM"),
        ("[[source]]\npath = 'ixi'\ncontrols = [0]\n", "E-JOINED-FORM"),
        ("[[source]]\npath = 'ixi'\nmask_cut = 7\n", "E-JOINED-FORM"),
        ("[[source]]\npath = 'ixi'\nvolume = -1.5\n", "E-JOINED-FORM"),
        ("[[source]]\npath = 'ixi'\nheader_form = 'foo'\n", "E-JOINED-FORM"),
        ("[[source]]\npath = 'cohort.toml'\n", "E-JOINED-FORM"),
        ("seed = 3\n[[source]]\npath = 'ixi'\n", "E-JOINED-FORM"),
        ("[[source]]\npath = 'nowhere'\n", "E-LAYOUT-PATH"),
    ],
)
def test_what_cannot_be_understood_is_named(tmp_path: Path, text: str, code: str) -> None:
    data_sets(tmp_path)
    with pytest.raises(BadDataset, match=code):
        joined(tmp_path, text)


def test_who_is_kept_is_named_as_in_the_joined_cohort(tmp_path: Path) -> None:
    text = '[[source]]\npath = "ixi"\n[[source]]\npath = "mine"\nprefix = "m-"\n'
    cohort = joined(data_sets(tmp_path), text, Choices(keep=("m-sub-3",)))
    assert [s.subject_id for s in cohort.subjects if s.kept] == ["m-sub-3"]
    with pytest.raises(BadDataset, match="no subject 'sub-3', which --keep names"):
        joined(tmp_path, text, Choices(keep=("sub-3",)))


def test_the_choice_of_a_source_outweighs_that_of_the_command(tmp_path: Path) -> None:
    text = '[[source]]\npath = "brats"\nlesion_labels = [1, 2, 4]\n'
    cohort = joined(data_sets(tmp_path), text, Choices(lesion_labels=(1,)))
    assert {s.lesion_labels for s in cohort.subjects} == {(1, 2, 4)}


def test_a_word_of_the_file_against_that_of_the_data_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("subject_id,T1,healthy\na,a.nii,true\nb,b.nii,\n")
    cohort = joined(tmp_path, '[[source]]\npath = "t.csv"\nhealthy = false\n')
    assert [s.healthy for s in cohort.subjects] == [False, False]
    assert any("a is called healthy by the data set and ill by healthy = false" in note for note in cohort.notes)
    (tmp_path / "t.csv").write_text("subject_id,T1,is_healthy\na,a.nii,no\n")
    assert joined(tmp_path, '[[source]]\npath = "t.csv"\nhealthy = true\n')["a"].healthy is None

"""Layouts on disk become cohorts: names decide, nothing is opened, what is left out is said."""

import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from data.bids import read_bids
from data.brats import read_brats
from data.choices import Choices
from data.cohort import Subject
from data.errors import BadInput
from data.folders import BadDataset, scans_under
from data.ixi import read_ixi
from data.layout import LAYOUTS, read_cohort
from data.table import read_table, write_table

REAL = Path(__file__).parents[2] / ".." / "shared" / "mri"


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def table(tmp_path: Path, text: str, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def test_a_table_names_everything_of_a_subject(tmp_path: Path) -> None:
    touch(tmp_path, "a/t1.nii.gz", "a/fl.nii", "m.nii.gz")
    text = (
        "subject_id,t1,flair,brain_mask,lesion_mask,role,healthy,site,age,sex,lesion_labels,scanner\n"
        'a,a/t1.nii.gz,a/fl.nii,m.nii.gz,,Train,,"Guy\'s, London",61.5,F,,3T\n'
        "b,a/t1.nii.gz,n/a,,m.nii.gz,test,,,n/a,n/a,1;2;4,3T\n"
    )
    cohort = read_cohort(table(tmp_path, text))
    assert cohort["a"] == Subject(
        "a", {"T1": tmp_path / "a/t1.nii.gz", "FLAIR": tmp_path / "a/fl.nii"}, tmp_path / "m.nii.gz",
        healthy=True, role="train", site="Guy's, London", age=61.5, sex="F",
    )  # fmt: skip
    assert cohort["b"] == Subject(
        "b", {"T1": tmp_path / "a/t1.nii.gz"}, None, tmp_path / "m.nii.gz", False, "test", lesion_labels=(1, 2, 4)
    )
    assert cohort.notes == ("Column 'scanner' holds no scans and was left out.",)


@pytest.mark.parametrize(
    "text",
    ["\ufeffsubject_id,t1\r\na,x.nii\r\n\r\n", "subject_id\tt1\na\tx.nii\n", "subject_id;t1\na;x.nii\n",
     " subject_id , t1 \n a , x.nii \n"],
)  # fmt: skip
def test_bom_crlf_tabs_and_blanks_do_no_harm(tmp_path: Path, text: str) -> None:
    touch(tmp_path, "x.nii")
    assert read_table(table(tmp_path, text))["a"].scans == {"T1": tmp_path / "x.nii"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("id,t1\na,x.nii\n", "E-TABLE-COLUMNS"),
        ("subject_id,age\na,3\n", "E-TABLE-COLUMNS"),
        ("subject_id,t1,t1\na,x.nii,y.nii\n", "E-TABLE-COLUMNS"),
        ("subject_id,t1,\na,x.nii,y\n", "E-TABLE-COLUMNS"),
        ("", "E-TABLE-COLUMNS"),
        ("subject_id,t1\n", "E-TABLE-EMPTY"),
        ("subject_id,t1\na,x.nii\na,y.nii\n", "E-TABLE-REPEAT"),
        ("subject_id,t1\na,x.nii\nA,y.nii\n", "E-TABLE-REPEAT"),
        ("subject_id,t1,role\na,x.nii,training\n", "E-TABLE-VALUE"),
        ("subject_id,t1,healthy\na,x.nii,maybe\n", "E-TABLE-VALUE"),
        ("subject_id,t1,age\na,x.nii,old\n", "E-TABLE-VALUE"),
        ("subject_id,t1,lesion_labels\na,x.nii,one\n", "E-TABLE-VALUE"),
        ("subject_id,t1\n,x.nii\n", "E-TABLE-VALUE"),
        ("subject_id,t1\na,x.nii,more\n", "E-TABLE-ROW"),
        ('subject_id,t1\na,"x.nii\n', "E-TABLE-TEXT"),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused(tmp_path: Path, text: str, code: str) -> None:
    with pytest.raises(BadDataset, match=f"^{code}: ") as caught:
        read_table(table(tmp_path, text))
    assert (caught.value.code, caught.value.path) == (code, tmp_path / "t.csv")


def test_a_missing_file_is_noted_and_its_subject_stays(tmp_path: Path) -> None:
    cohort = read_table(table(tmp_path, "subject_id,t1\na,gone.nii\nb,b.nii\n"))
    assert len(cohort.subjects) == 2
    assert "gone.nii does not exist" in cohort.notes[0]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_a_written_table_reads_back_and_moves_with_its_folder(tmp_path: Path, name: str) -> None:
    odd = ['a "b", c', "-x", "é;1", '"><img src=x>', "n/a"]
    old = tmp_path / "old"
    subjects = [
        Subject(i, {"T1": old / f"{n} ü,'\".nii.gz"}, lesion_mask=old / "m.nii.gz", healthy=False, role="test",
                lesion_labels=(1, 4), age=3.5, site="s\tt")
        for n, i in enumerate(odd)
    ]  # fmt: skip
    write_table(old / name, [*subjects, Subject("plain", {"FLAIR": old / "f.nii.gz"}, healthy=True)])
    cohort = read_table(old / name)
    assert [*subjects] == list(cohort.subjects[:-1])
    assert cohort["plain"].healthy
    old.rename(tmp_path / "new")
    moved = read_table(tmp_path / "new" / name)
    assert moved["plain"].scans == {"FLAIR": tmp_path / "new" / "f.nii.gz"}


def test_ixi_names_give_site_mask_and_demographics(tmp_path: Path) -> None:
    touch(
        tmp_path, "T1/IXI012-HH-1211-T1.nii.gz", "T2/IXI012-HH-1211-T2.nii.gz", "IXI013-Guys-1212_T1.nii.gz",
        "IXI013-Guys-1212_dlmuse.nii.gz", "IXI014-IOP-1-T1.nii.gz", "IXI014-IOP-2-T1.nii.gz", "other.nii.gz",
        "IXI015-HH-1-T1_bet_mask.nii.gz",
    )  # fmt: skip
    sheet = 'IXI_ID,"SEX_ID (1=m, 2=f)",AGE\n12,2,38.5\n13,1,\n13,2,70\n'
    table(tmp_path, sheet, "IXI.csv")
    cohort = read_cohort(tmp_path)
    assert [s.subject_id for s in cohort.subjects] == ["IXI012-HH-1211", "IXI013-Guys-1212", "IXI014-IOP-1"]
    first, second, _ = cohort.subjects
    assert (set(first.scans), first.site, first.age, first.sex) == ({"T1", "T2"}, "HH", 38.5, "F")
    assert (second.site, second.age, second.sex) == ("Guys", 70, "M")
    assert second.brain_mask == tmp_path / "IXI013-Guys-1212_dlmuse.nii.gz"
    text = " ".join(cohort.notes)
    assert all(word in text for word in ("other.nii.gz is no IXI", "second visit of IXI014", "IXI015-HH-1: no scan"))


@pytest.mark.parametrize(
    ("name", "kinds", "labels"),
    [
        ("BraTS20_Training_001_{}.nii", ("t1", "t1ce", "t2", "flair", "seg"), (1, 2, 4)),
        ("Brats18_TCIA02_135_1_{}.nii.gz", ("t1", "t1ce", "t2", "flair", "seg"), (1, 2, 4)),
        ("BraTS2021_00000_{}.nii.gz", ("t1", "t1ce", "t2", "flair", "seg"), (1, 2, 4)),
        ("BraTS-GLI-00000-000-{}.nii.gz", ("t1n", "t1c", "t2w", "t2f", "seg"), (1, 2, 3)),
    ],
)
def test_brats_of_every_year_gives_the_same_contrasts(tmp_path: Path, name: str, kinds, labels) -> None:
    touch(tmp_path, *[f"case/{name.format(kind)}" for kind in kinds])
    (one,) = read_cohort(tmp_path).subjects
    want = [tmp_path / "case" / name.format(kind) for kind in kinds]
    assert one.scans == dict(zip(("T1", "T1C", "T2", "FLAIR"), want, strict=False))
    assert (one.lesion_mask, one.lesion_labels, one.healthy) == (want[4], labels, False)
    assert one.subject_id == name[: name.index("{") - 1]


def test_brats_2020_case_355_and_later_time_points(tmp_path: Path) -> None:
    case = "BraTS20_Training_355"
    touch(tmp_path, f"{case}/{case}_t1.nii", f"{case}/W39_1998.09.19_Segm.nii")
    assert read_brats(tmp_path)[case].lesion_mask == tmp_path / case / "W39_1998.09.19_Segm.nii"
    touch(tmp_path, "BraTS-GLI-00007-000-t1n.nii.gz", "BraTS-GLI-00007-001-t1n.nii.gz")
    cohort = read_brats(tmp_path)
    assert [s.subject_id for s in cohort.subjects] == ["BraTS-GLI-00007-000", case]
    assert cohort["BraTS-GLI-00007-000"].lesion_labels is None
    assert any("later time point" in note for note in cohort.notes)


def test_bids_joins_raw_scans_derived_masks_and_participants(tmp_path: Path) -> None:
    anat, derived = "sub-01/ses-1/anat/sub-01_ses-1", "derivatives/seg/sub-01/ses-1/anat/sub-01_ses-1"
    touch(
        tmp_path, f"{anat}_T1w.nii.gz", f"{anat}_ce-gd_T1w.nii.gz", f"{anat}_run-2_FLAIR.nii.gz",
        f"{anat}_run-1_FLAIR.nii.gz", "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz", "sub-02/anat/sub-02_T2w.nii.gz",
        f"{derived}_space-T1w_desc-brain_mask.nii.gz", f"{derived}_label-lesion_mask.nii.gz",
        f"{derived}_desc-preproc_T1w.nii.gz", "derivatives/seg/sub-02/sub-02_space-MNI_desc-brain_mask.nii.gz",
        "derivatives/seg/sub-01/ses-2/anat/sub-01_ses-2_desc-lesion_mask.nii.gz",
    )  # fmt: skip
    people = "participant_id\tage\tsex\trole\tsite\nsub-01\t50\tF\ttest\tX\n03\tn/a\tM\t\t\n"
    table(tmp_path, people, "participants.tsv")
    cohort = read_cohort(tmp_path)
    one, two = cohort.subjects
    assert one == Subject(
        "sub-01",
        {"T1": tmp_path / f"{anat}_T1w.nii.gz", "T1C": tmp_path / f"{anat}_ce-gd_T1w.nii.gz",
         "FLAIR": tmp_path / f"{anat}_run-1_FLAIR.nii.gz"},
        tmp_path / f"{derived}_space-T1w_desc-brain_mask.nii.gz", tmp_path / f"{derived}_label-lesion_mask.nii.gz",
        False, "test", "X", 50.0, "F",
    )  # fmt: skip
    assert (two.subject_id, two.healthy, two.brain_mask) == ("sub-02", None, None)
    text = " ".join(cohort.notes)
    for word in ("session 1 taken, 2 left out", "run-2", "another space", "sub-03 is in", "sub-02 is not in"):
        assert word in text


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_participants_with_bom_windows_lines_and_gaps_are_read(tmp_path: Path, start: str, end: str) -> None:
    touch(tmp_path, *[f"sub-{n}/anat/sub-{n}_T1w.nii.gz" for n in ("01", "02", "03")])
    lines = ["participant_id\tage\tsex\tgroup", "sub-01\tn/a\tn/a\tControl", "02\t89+\tF\tn/a", "", ""]
    table(tmp_path, start + end.join(lines), "participants.tsv")
    cohort = read_bids(tmp_path)
    assert [(s.subject_id, s.age, s.sex, s.healthy) for s in cohort.subjects] == [
        ("sub-01", None, None, True), ("sub-02", 89.0, "F", None), ("sub-03", None, None, None),
    ]  # fmt: skip
    assert "sub-03 is not in participants.tsv." in cohort.notes


def test_bids_groups_roles_and_repeats_in_participants(tmp_path: Path) -> None:
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz")
    table(tmp_path, "participant_id\tgroup\nsub-1\tControl\nsub-2\tstroke\n", "participants.tsv")
    assert [s.healthy for s in read_bids(tmp_path).subjects] == [True, False]
    table(tmp_path, "participant_id\nsub-1\nsub-1\n", "participants.tsv")
    with pytest.raises(BadDataset, match="E-BIDS-PARTICIPANTS"):
        read_bids(tmp_path)
    table(tmp_path, "participant_id\trole\nsub-1\tholdout\n", "participants.tsv")
    with pytest.raises(BadDataset, match="E-BIDS-ROLE"):
        read_bids(tmp_path)


@pytest.mark.parametrize("twin", ["IXI012-HH-1211-T1.nii", "ixi012-hh-1211-t1.nii.gz"])
def test_names_that_collide_are_refused_naming_both(tmp_path: Path, twin: str) -> None:
    touch(tmp_path, "IXI012-HH-1211-T1.nii.gz", twin)
    with pytest.raises(BadDataset, match="E-DATA-TWINS") as caught:
        read_ixi(tmp_path)
    assert twin in str(caught.value)
    assert "IXI012-HH-1211-T1.nii.gz" in str(caught.value)


TWINS = {
    "ixi": (read_ixi, "IXI012-HH-1211-T1.nii.gz"),
    "bids": (read_bids, "sub-Zoë/anat/sub-Zoë_T1w.nii.gz"),
    "brats": (read_brats, "BraTS2021_00000/BraTS2021_00000_flair.nii.gz"),
}


@pytest.mark.parametrize("layout", TWINS)
def test_twins_of_a_name_are_refused_in_every_layout_whatever_makes_them_twins(tmp_path: Path, layout: str) -> None:
    read, name = TWINS[layout]
    folder, _, file = unicodedata.normalize("NFC", name).rpartition("/")
    twins = [f"{folder}/{file.removesuffix('.gz')}", f"{folder}/{file.upper()}", f"{folder.upper()}/{file}"]
    twins += [unicodedata.normalize("NFD", f"{folder}/{file}")]
    for number, twin in enumerate(twin for twin in twins if twin.lstrip("/") != name):
        root = touch(tmp_path / str(number), name, twin.lstrip("/"))
        with pytest.raises(BadDataset, match="E-DATA-TWINS"):
            read(root)


def test_links_that_lead_nowhere_or_in_circles_are_told_and_stop_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "IXI012-HH-1211-T1.nii.gz", "store/deep/x.nii.gz")
    links = {
        "IXI021-HH-1-T1.nii.gz": "IXI021-HH-1-T1.nii.gz",
        "IXI022-HH-1-T1.nii.gz": "IXI023-HH-1-T1.nii.gz",
        "IXI023-HH-1-T1.nii.gz": "IXI022-HH-1-T1.nii.gz",
        "IXI024-HH-1-T1.nii.gz": ".git/annex/objects/none.nii.gz",
        "round": "round",
        "store/deep/up": "../..",
        "etc": "/etc",
        "IXI025-HH-1-T1.nii.gz": "/etc/hostname",
    }
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    files, notes = scans_under(tmp_path)
    assert [f.name for f in files] == ["IXI012-HH-1211-T1.nii.gz", "IXI024-HH-1-T1.nii.gz", "x.nii.gz"]
    assert [n for n in notes if "back to itself" in n] == [
        f"IXI0{number}-HH-1-T1.nii.gz is a link that leads back to itself and was left out." for number in (21, 22, 23)
    ]
    assert sorted(n.split(" ")[0] for n in notes if "leads out of the data set" in n) == [
        "IXI025-HH-1-T1.nii.gz",
        "etc",
    ]
    assert [s.subject_id for s in read_ixi(tmp_path).subjects] == ["IXI012-HH-1211", "IXI024-HH-1"]
    followed, _ = scans_under(tmp_path, follow_symlinks=True)
    assert "IXI025-HH-1-T1.nii.gz" in [f.name for f in followed]
    assert "IXI021-HH-1-T1.nii.gz" not in [f.name for f in followed]


def test_links_out_of_the_folder_are_noted_not_followed_unless_asked(tmp_path: Path) -> None:
    outside = touch(tmp_path / "outside", "IXI020-HH-1-T1.nii.gz")
    inside = touch(tmp_path / "in", "IXI012-HH-1211-T1.nii.gz", "store/x.nii.gz")
    (inside / "IXI021-HH-1-T1.nii.gz").symlink_to(outside / "IXI020-HH-1-T1.nii.gz")
    (inside / "away").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    (inside / "IXI022-HH-1-T1.nii.gz").symlink_to(inside / "store" / "x.nii.gz")
    cohort = read_ixi(inside)
    assert [s.subject_id[:6] for s in cohort.subjects] == ["IXI012", "IXI022"]
    assert sum("leads out of the data set" in note for note in cohort.notes) == 2
    followed = read_ixi(inside, Choices(follow_symlinks=True))
    assert [s.subject_id[:6] for s in followed.subjects] == ["IXI012", "IXI020", "IXI021", "IXI022"]


def test_what_fits_no_layout_or_two_is_explained(tmp_path: Path) -> None:
    touch(tmp_path / "odd", "patient.nii.gz")
    touch(tmp_path / "two", "IXI012-HH-1211-T1.nii.gz", "BraTS2021_00000_flair.nii.gz")
    (tmp_path / "empty").mkdir()
    for name, words in (("odd", "such as patient"), ("two", "fits ixi and brats"), ("empty", "0 NIfTI files"),
                        ("gone", "does not exist")):  # fmt: skip
        with pytest.raises(BadDataset) as caught:
            read_cohort(tmp_path / name)
        assert words in str(caught.value)
        assert all(layout.looks_like in str(caught.value) for layout in LAYOUTS.values())
    with pytest.raises(BadInput, match="auto, table, bids, ixi, brats"):
        read_cohort(tmp_path / "odd", "dicom")
    assert len(read_cohort(tmp_path / "two", "ixi").subjects) == 1
    for name in ("bids", "ixi", "brats"):
        with pytest.raises(BadDataset, match="-EMPTY"):
            read_cohort(tmp_path / "odd", name)


def test_ids_that_nearly_agree_are_noted(tmp_path: Path) -> None:
    cohort = read_cohort(table(tmp_path, "subject_id,t1\nsub-01,x.nii\nsub-001,y.nii\nsub-10,z.nii\n"))
    assert [note for note in cohort.notes if "nearly agree" in note] == [
        "Ids 'sub-01' and 'sub-001' nearly agree: perhaps one person twice."
    ]


def test_a_moved_folder_gives_the_same_cohort(tmp_path: Path) -> None:
    for place in ("a", "b/mask_seg_lesion/derivatives"):
        touch(tmp_path / place, "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_label-lesion_roi.nii.gz")
    one, two = (read_bids(tmp_path / p).subjects[0] for p in ("a", "b/mask_seg_lesion/derivatives"))
    assert replace(one, scans={}, lesion_mask=None) == replace(two, scans={}, lesion_mask=None)
    assert set(one.scans) == set(two.scans) == {"T1"}
    assert two.lesion_mask is not None


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real scans beside the project")
def test_the_real_ixi_folder_is_recognised() -> None:
    cohort = read_cohort(REAL / "ixi_t1_2mm")
    assert len(cohort.subjects) == 143
    assert all(s.brain_mask and s.site == "HH" and s.healthy for s in cohort.subjects)

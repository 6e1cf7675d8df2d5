"""Data sets as they are published: ATLAS, ISLES, ivadomed, nnU-Net, the Decathlon, WMH, BraTS, UPENN-GBM; by names."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from data.bids import natural, read_bids
from data.brats import GENERATIONS, read_brats
from data.challenges import read_cases
from data.choices import Choices
from data.folders import BadDataset
from data.layout import read_cohort
from data.nifti import write_nifti
from data.volume import Grid
from data.wmh_ms import read_wmh

SHAPE = (6, 5, 4)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def volume(path: Path, n: int = 1) -> None:
    import nibabel as nib

    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.Generator(np.random.Philox(1)).normal(5, 1, (*SHAPE, n)).astype(np.float32)
    nib.save(nib.Nifti1Image(values[..., 0] if n == 1 else values, np.eye(4)), path)


BIDS_MASKS = {
    "atlas": ("sub-1/ses-1/anat/sub-1_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz",
              "sub-1/ses-1/anat/sub-1_ses-1_space-MNI152NLin2009aSym_label-L_desc-T1lesion_mask.nii.gz"),
    "isles": ("sub-1/ses-0001/anat/sub-1_ses-0001_FLAIR.nii.gz",
              "derivatives/sub-1/ses-0001/sub-1_ses-0001_msk.nii.gz"),
    "ivadomed": ("sub-1/anat/sub-1_T2w.nii.gz", "derivatives/labels/sub-1/anat/sub-1_T2w_lesion-manual.nii.gz"),
    "ivadomed later": ("sub-1/anat/sub-1_T2w.nii.gz",
                       "derivatives/labels/sub-1/anat/sub-1_T2w_label-lesion_seg.nii.gz"),
    "dseg": ("sub-1/anat/sub-1_T1w.nii.gz", "derivatives/manual/sub-1/anat/sub-1_label-lesion_dseg.nii.gz"),
    "probseg": ("sub-1/anat/sub-1_T1w.nii.gz", "derivatives/x/sub-1/anat/sub-1_label-lesion_probseg.nii.gz"),
    "roi": ("sub-1/anat/sub-1_FLAIR.nii.gz", "sub-1/anat/sub-1_FLAIR_roi.nii.gz"),
    "lesion roi": ("sub-1/anat/sub-1_T1w.nii.gz", "derivatives/lesion_masks/sub-1/anat/sub-1_label-lesion_roi.nii.gz"),
    "other session": ("sub-1/ses-1/anat/sub-1_ses-1_T1w.nii.gz",
                      "derivatives/sub-1/ses-2/sub-1_ses-2_label-lesion_mask.nii.gz"),
    "tumour": ("sub-1/anat/sub-1_T1w.nii.gz", "derivatives/sub-1/anat/sub-1_label-tumor_mask.nii.gz"),
}  # fmt: skip


@pytest.mark.parametrize("name", BIDS_MASKS)
def test_lesion_masks_of_the_field_are_found(tmp_path: Path, name: str) -> None:
    scan, mask = BIDS_MASKS[name]
    touch(tmp_path, scan, mask)
    (one,) = read_cohort(tmp_path).subjects
    assert (one.lesion_mask, one.healthy, one.health_from) == (tmp_path / mask, False, "its lesion mask")
    assert list(one.scans.values()) == [tmp_path / scan]


@pytest.mark.parametrize(
    "other",
    [
        "sub-1_label-GM_probseg.nii.gz", "sub-1_dseg.nii.gz", "sub-1_desc-aparcaseg_dseg.nii.gz",
        "sub-1_space-MNI152NLin6Asym_desc-brain_mask.nii.gz", "sub-1_from-T1w_to-MNI_mode-image_xfm.nii.gz",
        "../func/sub-1_task-rest_desc-brain_mask.nii.gz", "sub-1_desc-preproc_T1w.nii.gz",
    ],
)  # fmt: skip
def test_what_pipelines_write_is_no_lesion_and_no_doubt(tmp_path: Path, other: str) -> None:
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", f"derivatives/fmriprep/sub-1/anat/{other}")
    (one,) = read_bids(tmp_path, Choices(healthy_unless_masked=True)).subjects
    assert (one.lesion_mask, one.brain_mask, one.healthy) == (None, None, True)


def test_a_mask_of_unknown_purpose_is_named_and_label_takes_it(tmp_path: Path) -> None:
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "derivatives/sub-1/anat/sub-1_label-X_mask.nii.gz")
    cohort = read_bids(tmp_path)
    assert cohort.subjects[0].healthy is None
    assert any("sub-1_label-X_mask.nii.gz" in note and "--label" in note for note in cohort.notes)
    (one,) = read_bids(tmp_path, Choices(label="X")).subjects
    assert (one.healthy, one.lesion_mask is not None) == (False, True)


@pytest.mark.parametrize(
    "mask", ["derivatives/manual/sub-1/anat/sub-1_label-lesion_mask.mgz", "derivatives/masks/sub-1/sub-1_roi.nrrd",
             "derivatives/manual/lesion_of_one.nrrd", "sub-1/anat/sub-1_label-lesion_mask.nii.zst"],
)  # fmt: skip
def test_masks_in_formats_that_are_not_read_are_named_and_speak_against_health(tmp_path: Path, mask: str) -> None:
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", mask)
    cohort = read_cohort(tmp_path, choices=Choices(healthy_unless_masked=True))
    assert cohort["sub-1"].healthy is None
    name = mask.rsplit("/", 1)[1]
    told = [note for note in cohort.notes if name in note and ("Convert" in note or "of whom is not clear" in note)]
    assert len(told) == 1


def test_what_freesurfer_writes_is_no_lesion(tmp_path: Path) -> None:
    names = ("mask", "brainmask", "aseg", "wmparc", "aparc.DKTatlas+aseg.deep", "orig")
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", *(f"derivatives/fastsurfer/sub-1/mri/{n}.mgz" for n in names))
    cohort = read_cohort(tmp_path, choices=Choices(healthy_unless_masked=True))
    assert cohort["sub-1"].healthy
    assert not [note for note in cohort.notes if ".mgz" in note]


def test_what_is_no_data_is_not_read_and_said(tmp_path: Path) -> None:
    touch(
        tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sourcedata/sub-1/anat/sub-1_T1w.nii.gz",
        "code/test/sub-9/anat/sub-9_T1w.nii.gz", "derivatives/freesurfer/sub-1/mri/aseg.nii",
        "derivatives/freesurfer/sub-1/mri/aseg.nii.gz",
    )  # fmt: skip
    cohort = read_cohort(tmp_path)
    assert [s.subject_id for s in cohort.subjects] == ["sub-1"]
    assert cohort.subjects[0].scans["T1"] == tmp_path / "sub-1/anat/sub-1_T1w.nii.gz"
    assert any("sourcedata" in note and "not read" in note for note in cohort.notes)


def test_sessions_come_in_numeric_order_baseline_first_and_the_one_with_scan_and_mask_before(tmp_path: Path) -> None:
    for person, sessions in (("a", ("10", "2")), ("b", ("followup", "baseline")), ("c", ("M12", "M00")),
                             ("d", ("post", "pre"))):  # fmt: skip
        touch(tmp_path, *[f"sub-{person}/ses-{s}/anat/sub-{person}_ses-{s}_T1w.nii.gz" for s in sessions])
    touch(tmp_path, "derivatives/sub-d/ses-post/sub-d_ses-post_label-lesion_mask.nii.gz")
    taken = {s.subject_id: s.scans["T1"].parent.parent.name for s in read_bids(tmp_path).subjects}
    assert taken == {"sub-a": "ses-2", "sub-b": "ses-baseline", "sub-c": "ses-M00", "sub-d": "ses-post"}
    cohort = read_bids(tmp_path, Choices(session="ses-10"))
    assert cohort["sub-a"].scans["T1"].parent.parent.name == "ses-10"
    assert any("sub-b: has no session '10'; it has" in note for note in cohort.notes)


def test_runs_acquisitions_and_spaces_are_chosen_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    touch(
        tmp_path, *[f"sub-1/anat/sub-1_{name}_T1w.nii.gz" for name in
                    ("run-10", "run-2", "acq-hires_run-1", "space-MNI_run-1")],
    )  # fmt: skip
    cohort = read_bids(tmp_path)
    assert cohort["sub-1"].scans["T1"].name == "sub-1_run-2_T1w.nii.gz"
    assert sum("left out" in note for note in cohort.notes) == 3
    for choices, name in (
        (Choices(run="10"), "sub-1_run-10_T1w.nii.gz"),
        (Choices(acq="hires"), "sub-1_acq-hires_run-1_T1w.nii.gz"),
        (Choices(space="MNI"), "sub-1_space-MNI_run-1_T1w.nii.gz"),
    ):
        assert read_bids(tmp_path, choices)["sub-1"].scans["T1"].name == name


def test_a_contrast_of_another_session_is_taken_and_said(tmp_path: Path) -> None:
    touch(tmp_path, "sub-1/ses-01/anat/sub-1_ses-01_T1w.nii.gz", "sub-1/ses-02/anat/sub-1_ses-02_FLAIR.nii.gz",
          "derivatives/sub-1/ses-02/sub-1_ses-02_label-lesion_mask.nii.gz")  # fmt: skip
    cohort = read_bids(tmp_path)
    assert set(cohort["sub-1"].scans) == {"T1", "FLAIR"}
    assert cohort["sub-1"].lesion_mask is not None
    assert "sub-1: T1 is of session 01; session 02 has none." in cohort.notes


def test_numbers_within_names_count_as_numbers() -> None:
    assert sorted(["10", "2", "", "a10", "a9"], key=natural) == ["", "2", "10", "a9", "a10"]


@pytest.mark.parametrize(
    ("name", "kinds", "labels", "ignored"),
    [
        ("BRATS2015_pat001_{}", ("t1", "flair", "seg"), (1, 2, 3, 4), ()),
        ("Brats17_TCIA_201_1_{}", ("t1", "flair", "seg"), (1, 2, 4), ()),
        ("BraTS-GLI-02063-100-{}", ("t1n", "t2f", "seg"), (1, 2, 3), (4,)),
        ("BraTS-MET-00001-000-{}", ("t1n", "t2f", "seg"), (1, 2, 3), (4,)),
        ("BraTS-PED-00001-000-{}", ("t1n", "t2f", "seg"), (1, 2, 3, 4), ()),
        ("BraTS-MEN-00001-000-{}", ("t1n", "t2f", "seg"), (1, 2, 3), ()),
        ("BraTS-SSA-00001-000-{}", ("t1n", "t2f", "seg"), (1, 2, 3), ()),
        ("UPENN-GBM-00001_11_{}", ("T1", "FLAIR", "segm"), (1, 2, 4), ()),
    ],
)
def test_every_generation_of_brats_has_its_labels(
    tmp_path: Path, name: str, kinds: tuple[str, ...], labels: tuple[int, ...], ignored: tuple[int, ...]
) -> None:
    touch(tmp_path, *[f"case/{name.format(kind)}.nii.gz" for kind in kinds])
    (one,) = read_cohort(tmp_path).subjects
    assert (one.lesion_labels, one.ignore_labels, one.labels_complete) == (labels, ignored, True)
    assert (set(one.scans), one.healthy) == ({"T1", "FLAIR"}, False)


def test_labels_of_a_generation_have_a_meaning_each() -> None:
    for labels in GENERATIONS.values():
        assert set(labels.meaning) == {*labels.lesion, *labels.ignored}


def test_folders_that_are_called_like_files_count_as_files(tmp_path: Path) -> None:
    touch(tmp_path, "B/BraTS2021_00495_flair.nii/00000001_brain_flair.nii", "B/BraTS2021_00495_seg.nii/0001_seg.nii")
    (one,) = read_brats(tmp_path).subjects
    assert (set(one.scans), one.lesion_mask is not None) == ({"FLAIR"}, True)


def test_the_user_decides_over_labels_of_a_layout(tmp_path: Path) -> None:
    touch(tmp_path, "BraTS-GLI-02063-100-t1n.nii.gz", "BraTS-GLI-02063-100-seg.nii.gz")
    for choices, lesion, ignored in (
        (Choices(ignore_labels=(2, 4)), (1, 3), (2, 4)),
        (Choices(lesion_labels=(1, 2, 3, 4)), (1, 2, 3, 4), ()),
        (Choices(lesion_labels=(3,), ignore_labels=(1, 2)), (3,), (1, 2)),
    ):
        (one,) = read_cohort(tmp_path, choices=choices).subjects
        assert (one.lesion_labels, one.ignore_labels) == (lesion, ignored)


def test_nnunet_cases_have_the_names_of_their_json(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/A_0000.nii.gz", "imagesTr/A_0001.nii.gz", "labelsTr/A.nii.gz", "imagesTs/B_0000.nii.gz",
          "imagesTs/B_0001.nii.gz")  # fmt: skip
    bare = read_cohort(tmp_path)
    assert set(bare["A"].scans) == {"CHANNEL0", "CHANNEL1"}
    assert (bare["A"].healthy, bare["B"].healthy) == (False, None)
    for told in (
        {"channel_names": {"0": "FLAIR", "1": "T1w"}, "labels": {"background": 0, "lesion": 1, "ignore": 2}},
        {"modality": {"0": "flair", "1": "t1"}, "labels": {"0": "background", "1": "lesion", "2": "ignore"}},
    ):
        (tmp_path / "dataset.json").write_text(json.dumps(told))
        one = read_cohort(tmp_path)["A"]
        assert one.scans == {"FLAIR": tmp_path / "imagesTr/A_0000.nii.gz", "T1": tmp_path / "imagesTr/A_0001.nii.gz"}
        assert (one.lesion_labels, one.ignore_labels, one.labels_complete) == ((1,), (2,), True)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(BadDataset, match="E-CASES-JSON"):
        read_cohort(tmp_path)


def test_labels_that_are_called_after_tissue_are_no_lesion(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/A_0000.nii.gz", "labelsTr/A.nii.gz")
    labels = {"background": 0, "GM": 1, "White Matter": 2, "stroke": 3, "edema": 4, "ignore": 5}
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1"}, "labels": labels}))
    cohort = read_cohort(tmp_path)
    assert (cohort["A"].lesion_labels, cohort["A"].ignore_labels) == ((3, 4), (5,))
    assert any("lesion: 3 stroke, 4 edema; as neither (ignored): 5 ignore; as healthy tissue: 1 GM" in n
               for n in cohort.notes), cohort.notes  # fmt: skip


def test_lesions_that_are_called_after_where_they_lie_are_lesions(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/A_0000.nii.gz", "labelsTr/A.nii.gz")
    names = ("white matter hyperintensity", "brain tumor", "intraventricular hemorrhage", "cortical lesion", "Brain")
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "T1"}, "labels": {name: n for n, name in enumerate(names, start=1)}})
    )
    assert read_cohort(tmp_path)["A"].lesion_labels == (1, 2, 3, 4)


def test_cases_with_four_digits_are_cases_and_repeated_ones_are_refused(tmp_path: Path) -> None:
    for name in ("imagesTr/brain_0001", "imagesTr/brain_0002", "labelsTr/brain_0001"):
        volume(tmp_path / f"{name}.nii.gz")
    assert [s.subject_id for s in read_cohort(tmp_path).subjects] == ["brain_0001", "brain_0002"]
    volume(tmp_path / "imagesTs" / "brain_0001.nii.gz")
    with pytest.raises(BadDataset, match="E-CASES-TWICE"):
        read_cohort(tmp_path)


def test_labels_of_another_name_speak_against_health(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/c_001_0000.nii.gz", "imagesTr/c_001_0001.nii.gz", "labelsTr/c_001_seg.nii.gz")
    assert read_cohort(tmp_path, choices=Choices(healthy_unless_masked=True))["c_001"].healthy is None


def test_roots_within_a_layout_are_read_or_named(tmp_path: Path) -> None:
    touch(tmp_path, "Utrecht/0/pre/FLAIR.nii.gz", "Utrecht/0/wmh.nii.gz", "s/flair/1_FLAIR_isovox.nii.gz",
          "training/pre/FLAIR.nii.gz")  # fmt: skip
    assert read_wmh(tmp_path / "Utrecht" / "0" / "pre").subjects[0].subject_id
    assert read_wmh(tmp_path / "training").subjects[0].subject_id
    assert read_cohort(tmp_path / "s" / "flair").subjects[0].subject_id == "1"


def test_decathlon_cases_are_volumes_of_a_4d_file(tmp_path: Path) -> None:
    volume(tmp_path / "imagesTr" / "BRATS_001.nii.gz", 4)
    volume(tmp_path / "labelsTr" / "BRATS_001.nii.gz")
    (one,) = read_cohort(tmp_path).subjects
    assert one.volumes == {"FLAIR": 0, "T1": 1, "T1C": 2, "T2": 3}
    assert (one.lesion_labels, one.healthy) == ((1, 2, 3), False)
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "T2", "1": "T1", "2": "x", "3": "y"}}))
    assert read_cases(tmp_path).subjects[0].volumes == {"T2": 0, "T1": 1, "X": 2, "Y": 3}


def test_wmh_ignores_other_pathology(tmp_path: Path) -> None:
    touch(tmp_path, "Utrecht/0/pre/FLAIR.nii.gz", "Utrecht/0/pre/T1.nii.gz", "Utrecht/0/wmh.nii.gz",
          "Utrecht/0/orig/FLAIR.nii.gz", "training/Amsterdam/GE3T/100/pre/FLAIR.nii.gz")  # fmt: skip
    one, two = read_wmh(tmp_path).subjects
    assert [s.subject_id for s in (one, two)] == ["Utrecht_0", "Amsterdam_GE3T_100"]
    assert (one.site, one.lesion_labels, one.ignore_labels, one.healthy) == ("Utrecht", (1,), (2,), False)
    assert (two.lesion_mask, two.healthy) == (None, False)


def test_msseg_takes_the_preprocessed_scans_and_the_consensus(tmp_path: Path) -> None:
    place = "Testing/Center_01/Patient_03"
    touch(
        tmp_path, f"{place}/Raw_Data/3DFLAIR.nii.gz", f"{place}/Raw_Data/3DT1.nii.gz",
        f"{place}/Masks/Consensus.nii.gz",
        f"{place}/Preprocessed_Data/FLAIR_preprocessed.nii.gz", f"{place}/Masks/ManualSegmentation_1.nii.gz",
        f"{place}/Masks/Brain_Mask.nii.gz",
    )  # fmt: skip
    cohort = read_cohort(tmp_path)
    (one,) = cohort.subjects
    assert (one.subject_id, one.site, one.healthy) == ("Center_01_Patient_03", "Center_01", False)
    assert {kind: path.name for kind, path in one.scans.items()} == {
        "FLAIR": "FLAIR_preprocessed.nii.gz", "T1": "3DT1.nii.gz",
    }  # fmt: skip
    assert (one.lesion_mask.name, one.brain_mask.name) == ("Consensus.nii.gz", "Brain_Mask.nii.gz")
    assert any("ManualSegmentation_1" in note for note in cohort.notes)


def test_shifts_joins_its_folders_by_number(tmp_path: Path) -> None:
    for part in ("dev_in", "eval_in"):
        touch(tmp_path, f"{part}/flair/1_FLAIR_isovox.nii.gz", f"{part}/t1/1_T1_isovox.nii.gz",
              f"{part}/gt/1_gt_isovox.nii.gz", f"{part}/fg_mask/1_isovox_fg_mask.nii.gz")  # fmt: skip
    cohort = read_cohort(tmp_path)
    assert [s.subject_id for s in cohort.subjects] == ["dev_in_1", "eval_in_1"]
    one = cohort.subjects[0]
    assert (set(one.scans), one.site, one.healthy) == ({"FLAIR", "T1"}, "dev_in", False)
    assert (one.lesion_mask.parent.name, one.brain_mask.parent.name) == ("gt", "fg_mask")


def test_camcan_and_oasis_3_are_bids(tmp_path: Path) -> None:
    touch(tmp_path / "camcan", "cc700/mri/pipeline/release004/BIDS/anat/sub-CC110033/anat/sub-CC110033_T1w.nii.gz")
    touch(tmp_path / "oasis", "sub-OAS30001/ses-d0129/anat/sub-OAS30001_ses-d0129_run-01_T1w.nii.gz",
          "sub-OAS30001/ses-d2430/anat/sub-OAS30001_ses-d2430_T1w.nii.gz")  # fmt: skip
    assert [s.subject_id for s in read_cohort(tmp_path / "camcan").subjects] == ["sub-CC110033"]
    (one,) = read_cohort(tmp_path / "oasis").subjects
    assert one.scans["T1"].name == "sub-OAS30001_ses-d0129_run-01_T1w.nii.gz"


def test_a_file_in_the_ixi_folder_that_looks_like_a_lesion_makes_its_head_unknown(tmp_path: Path) -> None:
    touch(tmp_path, "IXI012-HH-1211-T1.nii.gz", "IXI012-HH-1211-T1_lesion.nii.gz", "IXI013-HH-1212-T1.nii.gz")
    assert [s.healthy for s in read_cohort(tmp_path).subjects] == [None, True]


def test_links_out_of_the_data_set_are_followed_when_asked(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    write_nifti(store / "x.nii.gz", np.zeros(SHAPE, np.float32), Grid(SHAPE, np.eye(4)))
    folder = tmp_path / "bids" / "sub-1" / "anat"
    folder.mkdir(parents=True)
    (folder / "sub-1_T1w.nii.gz").symlink_to(store / "x.nii.gz")
    with pytest.raises(BadDataset, match="--follow-symlinks"):
        read_cohort(tmp_path / "bids")
    assert len(read_cohort(tmp_path / "bids", choices=Choices(follow_symlinks=True)).subjects) == 1


HM = Choices(healthy_unless_masked=True)
TWO = ("sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz")
CONTROLS = "participant_id\tgroup\nsub-01\tcontrol\nsub-02\tcontrol\n"
ANAT, DERIVED = "sub-01/anat/sub-01_", "derivatives/x/sub-01/anat/sub-01_"


def written(root: Path, tables: dict[str, str]) -> Path:
    """Two people of one scan each, and tables by their path."""
    touch(root, *TWO)
    for name, text in tables.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    "mask",
    [
        *(f"{ANAT}{name}.nii.gz" for name in ("label-lesion", "desc-lesion", "T1w-lesion", "dseg", "space-orig_dseg")),
        *(f"{ANAT}T1w_{name}.nii.gz" for name in ("les", "laesion", "infarkt", "maschera", "plaque", "cmb", "lacune")),
        *(f"{ANAT}T1w_{name}.nii.gz" for name in ("AVM", "voi", "L\u00e4sion", "tumeur")),
        *(f"{DERIVED}{name}.nii.gz" for name in ("label-wml", "desc-contusion_mask", "desc-tuber", "desc-cyst_mask")),
        "derivatives/labels/sub-01/anat/sub-01_dseg.nii.gz", "derivatives/LST/sub-01/anat/sub-01_FLAIR_ples_lpa.nii",
        "derivatives/manual_segmentation/sub-01/anat/sub-01_space-orig_dseg.nii.gz", "derivatives/lesions/sub-01/a.nii",
        "derivatives/LST/sub-01/ples_lga_0.3_rmFLAIR.nii", "derivatives/LST/sub-01/ples_lpa_mrFLAIR.nii",
        "masks/sub-01.nii.gz", "sub-01/masks/drawn.nii.gz", "sub-01/anat/sub-01_T1w_manualseg.nii.gz",
        "sourcedata/sub-01/sub-01_lesion_mask.nii.gz", "code/masks/sub-01_lesion.nii.gz",
        *(f"{DERIVED}lesion{end}" for end in (".voi", ".mnc", ".nii.bz2", ".npy", ".mat", ".nii.xz", ".nrrd")),
    ],
)  # fmt: skip
def test_masks_in_other_words_places_and_formats_are_named_and_speak_against_health(tmp_path: Path, mask: str) -> None:
    touch(tmp_path, *TWO, mask)
    for choices in (HM, Choices()):
        cohort = read_bids(tmp_path, choices)
        one = cohort["sub-01"]
        assert one.healthy is not True
        assert one.lesion_mask is not None or any(Path(mask).name in note for note in cohort.notes)
        assert cohort["sub-02"].healthy is True
        (tmp_path / "participants.tsv").write_text(CONTROLS)


@pytest.mark.parametrize(
    "file",
    [
        "sub-01/dwi/sub-01_desc-nodif_mask.nii.gz", "derivatives/q/sub-01/dwi/sub-01_dwi_mask.nii.gz",
        *(f"{DERIVED}{name}.nii.gz" for name in (
            "T1w_pve_seg", "label-hipp_mask", "label-amygdala_mask", "label-putamen_mask", "desc-fov_mask",
            "T1w_ss_mask",
            "desc-deface_mask", "T1w_foreground_mask", "label-dGM_probseg", "label-NAWM_mask", "desc-mgdm_seg",
            "desc-wmhfree_T1w", "desc-lesionfilled_T1w", "T1w_lesionfilled")),
        "derivatives/wmh-pipeline/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
        "derivatives/wmh-pipeline/sub-01/anat/sub-01_from-T1w_to-MNI_mode-image_xfm.nii.gz",
        "derivatives/lesions/sub-01/anat/sub-01_desc-brain_mask.nii.gz", "sourcedata/sub-01/dicom/mask001.dcm",
        "sub-stroke01/dwi/sub-stroke01_dwi.nii.gz", "derivatives/brain_masks/sub-01.nii.gz",
        "derivatives/x/sub-01/anat/sub-01_label-leftHippocampus_mask.nii.gz", "derivatives/atlas/labels/AAL.nii.gz",
    ],
)  # fmt: skip
def test_masks_of_tissue_and_scans_in_folders_of_lesions_leave_everybody_healthy(tmp_path: Path, file: str) -> None:
    touch(tmp_path, *TWO, "sub-stroke01/anat/sub-stroke01_T1w.nii.gz", file)
    assert [(s.healthy, s.lesion_mask) for s in read_bids(tmp_path, HM).subjects] == [(True, None)] * 3
    (tmp_path / "participants.tsv").write_text(CONTROLS)
    assert [s.healthy for s in read_bids(tmp_path).subjects] == [True, True, None]


@pytest.mark.parametrize(
    ("link", "healthy"),
    [("derivatives/lesions", [None, None]), ("derivatives/sub-01/lesions", [None, True]), ("derivatives", [None, None]),
     ("sub-01/anat/sub-01_label-lesion_mask.nii.gz", [None, True]), ("derivatives/fmriprep", [True, True])],
)  # fmt: skip
def test_links_out_of_the_data_set_that_may_lead_to_masks_speak_against_health(
    tmp_path: Path, link: str, healthy: list[bool | None]
) -> None:
    touch(tmp_path / "in", *TWO)
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / link).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "in" / link).symlink_to(tmp_path / "out")
    cohort = read_bids(tmp_path / "in", HM)
    assert [s.healthy for s in cohort.subjects] == healthy
    assert any(link in note for note in cohort.notes)


@pytest.mark.parametrize(("folder", "healthy"), [("derivatives/x", [None, None]), ("sub-01/extra", [None, True])])
def test_what_a_folder_holds_that_cannot_be_read_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, healthy: list[bool | None]
) -> None:
    touch(tmp_path, *TWO)
    (tmp_path / folder).mkdir(parents=True)
    scan = os.scandir

    def locked(place: object) -> object:
        if str(place).endswith(folder):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", locked)
    cohort = read_bids(tmp_path, HM)
    assert [s.healthy for s in cohort.subjects] == healthy
    assert any(f"{folder} cannot be read" in note for note in cohort.notes)


def test_a_folder_that_is_a_link_to_another_is_said(tmp_path: Path) -> None:
    touch(tmp_path, *TWO)
    (tmp_path / "sub-03").symlink_to("sub-01")
    assert "sub-03 is the folder sub-01 once more and was left out." in read_bids(tmp_path).notes


@pytest.mark.parametrize(
    ("table", "healthy"),
    [
        ("1\tstroke patient\n2\tcontrol\n", [False, True]), ("sub-1\tMS\nSUB-02\tcontrol\n", [False, True]),
        ("1\tpatient\nsub-01\tcontrol\nsub-02\tcontrol\n", [None, True]),
        ("sub-01\tcontrol\nsub-9\tpatient\n", [True, None]),
    ],
)  # fmt: skip
def test_rows_are_found_under_other_spellings_and_those_of_nobody_are_a_doubt(
    tmp_path: Path, table: str, healthy: list[bool | None]
) -> None:
    cohort = read_bids(written(tmp_path, {"participants.tsv": f"participant_id\tgroup\n{table}"}), HM)
    assert [s.healthy for s in cohort.subjects] == healthy
    touch(tmp_path / "P", "sub-P001/anat/sub-P001_T1w.nii.gz")
    (tmp_path / "P" / "participants.tsv").write_text("participant_id\tgroup\nP_001\tstroke\n")
    assert read_bids(tmp_path / "P", HM)["sub-P001"].healthy is False


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("phenotype/h.tsv", "participant_id\thealthy\nsub-01\tno\n"),
        ("phenotype/h.tsv", "participant_id\tis_healthy\nsub-01\tno\n"),
        ("phenotype/h.tsv", "Participant_ID\tdiagnosis\nsub-01\tMS\n"),
        ("phenotype/h.csv", "participant_id,diagnosis\nsub-01,MS\n"),
        ("phenotype/deep/h.tsv", "participant_id\tdx\n1\tMS\n"),
        ("phenotype/h.tsv", "participant_id\tremarks\nsub-01\tleft stroke\n"),
        ("sub-01/sub-01_sessions.tsv", "session_id\thealthy\nses-1\tyes\nses-2\tfalse\n"),
        ("sub-01/ses-1/sub-01_ses-1_scans.tsv", "filename\tdiagnosis\nanat/x\tstroke\n"),
        ("participants.csv", "participant_id,group\nsub-01,patient\n"),
        ("raw/participants.tsv", "participant_id\tgroup\nsub-01\tpatient\nsub-02\t\n"),
    ],
)  # fmt: skip
def test_every_table_of_a_bids_folder_is_heard(tmp_path: Path, name: str, text: str) -> None:
    cohort = read_bids(written(tmp_path, {name: text}), HM)
    assert [s.healthy is True for s in cohort.subjects] == [False, True]
    assert not any("There is no participants.tsv" in note for note in cohort.notes) or "participants" not in name


def test_tables_of_participants_that_are_no_data_or_tell_of_visits(tmp_path: Path) -> None:
    visits = "participant_id\tsession_id\tgroup\tage\n01\t1\tcontrol\t30\n01\t2\tAD\t31\n02\t1\tcontrol\t>89\n"
    tables = {"participants.tsv": visits, "sourcedata/participants.tsv": CONTROLS}
    cohort = read_bids(written(tmp_path, tables))
    assert [(s.healthy, s.age) for s in cohort.subjects] == [(False, 30.0), (True, 89.0)]


def test_the_sidecar_of_a_sites_table_is_read(tmp_path: Path) -> None:
    tables = {"raw/participants.tsv": CONTROLS.replace("control", "1"),
              "raw/participants.json": '{"group": {"Levels": {"1": "stroke patient"}}}'}  # fmt: skip
    assert [s.healthy for s in read_bids(written(tmp_path, tables)).subjects] == [False, False]


def test_a_mask_in_a_space_without_scans_has_another_way(tmp_path: Path) -> None:
    touch(tmp_path, *TWO, f"{DERIVED}space-MNI_label-lesion_mask.nii.gz")
    (note,) = (note for note in read_bids(tmp_path).notes if "another space" in note)
    assert "--space" not in note
    assert "resample" in note


def test_labels_are_chosen_as_they_are_written_and_one_of_nothing_is_named(tmp_path: Path) -> None:
    touch(tmp_path, *TWO, f"{DERIVED}desc-core_mask.nii.gz", "derivatives/x/sub-02/anat/sub-02_T1w_mask.nii.gz")
    for label, found in (("desc-core", [True, False]), ("core", [True, False]), ("T1w_mask", [False, True])):
        assert [s.lesion_mask is not None for s in read_bids(tmp_path, Choices(label=label)).subjects] == found
    notes = read_bids(tmp_path, Choices(label="nothing")).notes
    assert any("No mask has the label 'nothing'" in note and "desc-core" in note for note in notes)


def test_contrast_agents_in_the_name_of_an_acquisition_and_parts_of_an_image(tmp_path: Path) -> None:
    names = ("1_acq-postcontrast", "2_acq-gad", "3_acq-preGd", "3_inv-1", "4_part-phase")
    touch(tmp_path, *[f"sub-{n[0]}/anat/sub-{n}_T1w.nii.gz" for n in names], "sub-4/anat/sub-4_T2w.nii.gz")
    cohort = read_bids(tmp_path)
    assert [set(s.scans) for s in cohort.subjects] == [{"T1C"}, {"T1C"}, {"T1"}, {"T2"}]
    assert cohort["sub-3"].scans["T1"].name == "sub-3_acq-preGd_T1w.nii.gz"
    assert sum("is taken as T1C" in note or "phases" in note for note in cohort.notes) == 3


IXI = [f"IXI0{n}-HH-12{n}-T1.nii.gz" for n in range(12, 17)]


def test_masks_and_remarks_in_the_ixi_folder_are_heard_in_every_form(tmp_path: Path) -> None:
    touch(tmp_path, *IXI, "IXI012-HH-1212-T1_lesion.nrrd", "IXI013-HH-1213_tumor.mgz", "lesions/014.nii.gz",
          "lesions/of_whom.nii.gz")  # fmt: skip
    (tmp_path / "IXI.csv").write_text("IXI_ID,SEX_ID,AGE,remarks\n15,1,30,\n15,1,30,left stroke\n16,2,40,none\n")
    cohort = read_cohort(tmp_path)
    assert [s.healthy for s in cohort.subjects] == [None, None, None, None, True]
    assert any("lesions/of_whom.nii.gz looks like a lesion mask" in note for note in cohort.notes)


CASES = ("imagesTr/c1_0000.nii.gz", "imagesTr/c1_0001.nii.gz", "imagesTr/c2_0000.nii.gz", "imagesTr/c2_0001.nii.gz",
         "labelsTr/c1.nii.gz")  # fmt: skip


@pytest.mark.parametrize(
    "mask", ["labelsTr/c2.nrrd", "labelsTr/seg_c2.nii.gz", "labelsTr_expert2/c2.nii.gz", "masks/whose.nii.gz"]
)
def test_labels_of_other_names_places_and_formats_speak_against_health(tmp_path: Path, mask: str) -> None:
    touch(tmp_path, *CASES, mask)
    cohort = read_cohort(tmp_path, choices=HM)
    assert [s.healthy for s in cohort.subjects] == [False, None]
    assert any(Path(mask).name in note for note in cohort.notes)


def test_labels_of_tissue_alone_are_no_lesions_and_channels_may_be_a_list(tmp_path: Path) -> None:
    touch(tmp_path, *CASES)
    told = {"channel_names": ["T1", "FLAIR"], "labels": {"background": 0, "Anterior": 1, "Posterior": 2, "healthy": 3}}
    (tmp_path / "dataset.json").write_text(json.dumps(told))
    cohort = read_cohort(tmp_path, choices=HM)
    assert [(s.healthy, s.lesion_mask, set(s.scans)) for s in cohort.subjects] == [(True, None, {"T1", "FLAIR"})] * 2
    assert any("no label of a lesion" in note for note in cohort.notes)


def test_cases_of_training_and_test_that_share_a_number_are_two(tmp_path: Path) -> None:
    touch(tmp_path, "training/Utrecht/0/pre/FLAIR.nii.gz", "test/Utrecht/0/pre/FLAIR.nii.gz")
    assert {s.subject_id for s in read_wmh(tmp_path).subjects} == {"training_Utrecht_0", "test_Utrecht_0"}

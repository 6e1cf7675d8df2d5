"""Who is healthy must be said: words of groups and diagnoses, what outweighs what, and that nobody becomes healthy."""

import random
from pathlib import Path

import pytest

from core.study.preparing import draw_split
from data.bids import read_bids
from data.choices import Choices
from data.cohort import Cohort, Split, Subject, check_healthy
from data.errors import BadInput
from data.health import grouped, health_of, health_summary, meaning
from data.layout import read_cohort
from data.signs import note_on_column
from data.table import read_table

HEALTHY = (
    *("control", "Controls", "HC", "hc ", "CN", "NC", "CTRL", "ctl", "healthy", "Healthy Control"),
    *("healthy_control", "control healthy", "HEALTHY-CONTROLS", "normal", "Normal Control", "healthy volunteer"),
    *("Cognitively Normal", "Nondemented", "typically developing", "neurotypical", "Healthy control (matched)"),
    *("Healthy subjects", "healthy participants", "Control subject", "Healthy Comparison", "healthy elderly"),
    *("age-matched control", "unaffected", "nodisease"),
)
ILL = (
    *("patient", "AD", "MS", "stroke", "MCI", "non-healthy", "not a control", "disease control", "PD", "glioma"),
    *("symptomatic", "HC converted to AD", "unhealthy", "FLE", "Left TLE", "post-stroke", "impaired", "abnormal"),
    *("disease control (matched)", "normal pressure hydrocephalus control", "matched neurological control", "C71.9"),
    *("matched control with aneurysm", "Astrocytoma", "1 (patient)"),
)
UNSAID = ("0", "1", "2", "A", "n", "unknown", "other", "3.0", "-1", "TD", "NL", "con", "no", "control?")


@pytest.mark.parametrize("word", HEALTHY)
def test_the_usual_words_mean_a_healthy_person(word: str) -> None:
    assert meaning(word, {}, ()) is True


@pytest.mark.parametrize("word", ILL)
def test_every_other_word_means_an_ill_one(word: str) -> None:
    assert meaning(word, {}, ()) is False


@pytest.mark.parametrize("word", UNSAID)
def test_numbers_and_letters_say_nothing_until_they_are_declared(word: str) -> None:
    assert meaning(word, {}, ()) is None
    assert meaning(word, {word: "Healthy control"}, ()) is True
    assert meaning(word, {word: "patient with MS"}, ()) is False
    assert meaning(word, {}, (word,)) is True


def test_what_a_sidecar_declares_decides_alone() -> None:
    for cell, declared, healthy in (
        ("NC", "MCI non-converter", False), ("HC", "hydrocephalus", False), ("CN", "cognitively normal", True),
        ("1", "healthy mutation carrier", None), ("NL", "non-lesional epilepsy", False),
    ):  # fmt: skip
        assert meaning(cell, {cell: declared}, ()) is healthy


def test_words_of_the_user_count_as_they_are_written() -> None:
    assert meaning("-1", {}, ("1",)) is None
    assert meaning("0.0", {}, ("0",)) is True
    assert meaning("对照", {}, ("对照",)) is True
    assert said({"group": "1", "status": "0"}, Choices(controls=("0",))) is None
    assert said({"group": "0", "status": "0"}, Choices(controls=("0",))) is True


def test_signs_speak_against_a_group_too() -> None:
    assert said({"group": "control", "stroke": "1"}) is None
    assert said({"group": "control", "lesion_volume_ml": "34.2"}) is None
    assert said({"group": "control", "mask": "1"}) is None
    assert said({"group": "control", "lesion_volume_ml": "0", "stroke": "no"}) is True
    assert said({"primary_diagnosis": "Astrocytoma"}, Choices(healthy_unless_masked=True)) is False
    assert said({"histology": "Oligodendroglioma"}, Choices(healthy_unless_masked=True)) is False
    assert said({"pathology": "normal"}) is None


def said(row: dict[str, str], choices: Choices | None = None, **more: object) -> bool | None:
    return health_of(row, "t.csv", choices or Choices(), **more).healthy  # type: ignore[arg-type]


def test_what_outweighs_what() -> None:
    flag = Choices(healthy_unless_masked=True)
    assert said({}) is None
    assert said({}, flag) is True
    assert said({}, flag, mask="m.nii") is False
    assert said({}, flag, unused=["x_mask.nii"]) is None
    assert said({}, role="train") is True
    assert said({}, role="test") is None
    assert said({}, role="train", unused=["x_mask.nii"]) is None
    assert said({"group": "0"}, flag) is None
    assert said({"group": "0"}, Choices(controls=("0",))) is True
    assert said({"group": "HC"}) is True
    assert said({"group": "HC"}, mask="m.nii") is None
    assert said({"group": "HC", "healthy": "true"}, mask="m.nii") is True
    assert said({"group": "HC", "diagnosis": "AD"}) is False
    assert said({"diagnosis": "AD"}, flag, role="train") is False
    assert said({"diagnosis": "AD", "healthy": "1"}) is None
    assert said({"healthy": "no", "group": "HC"}) is False
    assert said({"arm": "patient"}, flag) is None
    assert said({"stroke": "1"}, flag, role="train") is None
    assert said({"stroke": "0"}, flag) is True


def test_the_summary_says_on_whose_word() -> None:
    people = [
        (True, "group 'HC' in t.csv"),
        (True, "role train in t.csv"),
        (True, "group 'HC' in t.csv"),
        (None, "nobody says"),
    ]
    assert health_summary(people) == (
        "3 healthy: group 'HC' in t.csv (2); role train in t.csv (1). 1 of unknown health: nobody says (1)."
    )
    assert health_summary([]) == ""


def test_notes_that_are_alike_are_told_once() -> None:
    lines = grouped([*((f"s{n}", "the same") for n in range(5)), ("s9", "its own")])
    assert lines == ["s0, s1, s2 and 2 more: the same", "s9: its own"]
    assert (
        grouped([(f"s{n}", f"note {n}") for n in range(30)], most=3)[-1]
        == "27 more notes on subjects, in full: python cli.py check COHORT --json"
    )


def test_the_unknown_neither_train_nor_calibrate_and_are_drawn_into_no_split() -> None:
    people = [Subject(f"s{n:02d}", {}, healthy=(True, False, None)[n % 3]) for n in range(30)]
    split = draw_split(people, 0)
    unknown = {s.subject_id for s in people if s.healthy is None}
    assert not unknown & {*split.train, *split.calibration, *split.validation, *split.test}
    for role in ("train", "calibration"):
        wrong = Split(**{"train": (), "calibration": (), role: ("s02",)})
        with pytest.raises(BadInput, match=rf"unknown health in the {role} split: s02.*--healthy-unless-masked"):
            check_healthy(Cohort("c", tuple(people)), wrong)


GROUPS = ("group", "diagnosis", "dx", "Participant_Group", "DX_GROUP", "clinical diagnosis", "status")
OTHER_COLUMNS = ("arm", "cohort", "label", "stroke", "ms")
MASKS = (
    "label-lesion_mask", "label-lesion_dseg", "label-lesion_probseg", "label-lesion_roi", "desc-lesion_mask", "msk",
    "T1w_lesion-manual", "FLAIR_roi", "space-MNI152NLin2009cAsym_label-lesion_mask", "mask", "seg", "label-L_mask",
    "desc-T1lesion_mask", "label-tumor_seg", "T1w_lesion_mask", "desc-wmh_mask", "acq-x_run-2_label-lesion_mask",
    "label-WMH_seg", "desc-manual_mask", "T2w_label-lesion_seg",
)  # fmt: skip


def random_tree(root: Path, draw: random.Random) -> tuple[dict[str, str], set[str]]:
    """A random BIDS tree: the sign of illness of each person who has one, and whom the column `healthy` calls so."""
    column = draw.choice((*GROUPS, *OTHER_COLUMNS, ""))
    signs: dict[str, str] = {}
    stated: set[str] = set()
    lines = []
    with_healthy = draw.random() < 0.3
    for number in range(draw.randint(1, 5)):
        name = f"sub-{draw.choice(('', 'P', 'r001s'))}{number:02d}"
        sessions = draw.choice(((), ("1",), ("2", "10"), ("baseline", "followup"), ("M00", "M12")))
        space = draw.choice(("", "_space-MNI152NLin2009aSym", "_space-T1w"))
        for session in sessions or ("",):
            folder = root / name / (f"ses-{session}" if session else "") / "anat"
            folder.mkdir(parents=True, exist_ok=True)
            stem = f"{name}{f'_ses-{session}' if session else ''}"
            (folder / f"{stem}{space}_{draw.choice(('T1w', 'FLAIR', 'T2w'))}.nii.gz").touch()
        if draw.random() < 0.5:
            session = draw.choice((*sessions, "9", "")) if sessions else ""
            mask = draw.choice(MASKS)
            place = draw.choice(("", "derivatives", "derivatives/labels", "derivatives/manual_masks/deep"))
            folder = root / place / name / draw.choice(("", "anat", f"ses-{session}/anat" if session else "anat"))
            folder.mkdir(parents=True, exist_ok=True)
            stem = f"{name}{f'_ses-{session}' if session else ''}"
            (folder / f"{stem}_{mask}{draw.choice(('.nii', '.nii.gz'))}").touch()
            signs[name] = mask
        cells = [name]
        if column:
            word = draw.choice((*HEALTHY[:8], "AD", "patient", "MS", "1", "yes", "", "n/a"))
            named = word.strip() in ("AD", "patient", "MS") or (column in ("stroke", "ms") and word in ("1", "yes"))
            if named:
                signs.setdefault(name, f"{column} {word}")
            cells.append(word)
        if with_healthy:
            word = draw.choice(("true", "false", "", "n/a"))
            cells.append(word)
            if word == "true":
                stated.add(name)
        lines.append("\t".join(cells))
    head = "\t".join(["participant_id", *([column] if column else []), *(["healthy"] if with_healthy else [])])
    if draw.random() < 0.8:
        (root / "participants.tsv").write_text("\n".join([head, *lines]) + "\n")
    else:
        signs = {name: sign for name, sign in signs.items() if sign in MASKS}
        stated = set()
    return signs, stated


@pytest.mark.parametrize("seed", range(120))
def test_nobody_with_a_mask_like_file_or_a_diagnosis_is_ever_healthy(tmp_path: Path, seed: int) -> None:
    signs, stated = random_tree(tmp_path, random.Random(seed))
    for choices in (Choices(), Choices(healthy_unless_masked=True)):
        cohort = read_bids(tmp_path, choices)
        for subject in cohort.subjects:
            if subject.subject_id in signs and subject.subject_id not in stated:
                assert subject.healthy is not True, (subject, signs[subject.subject_id])
            if subject.healthy is None:
                assert any(subject.subject_id in note for note in cohort.notes)
            assert subject.health_from
        split = draw_split(cohort.subjects, seed)
        learnt = {*split.train, *split.calibration}
        assert not learnt & (signs.keys() - stated)


def test_a_sidecar_declares_what_numbers_mean(tmp_path: Path) -> None:
    for name in ("sub-1", "sub-2", "sub-3"):
        (tmp_path / name / "anat").mkdir(parents=True)
        (tmp_path / name / "anat" / f"{name}_T1w.nii.gz").touch()
    (tmp_path / "participants.tsv").write_text("participant_id\tgroup\nsub-1\t0\nsub-2\t1\nsub-3\t2\n")
    (tmp_path / "participants.json").write_text(
        '{"group": {"Levels": {"0": "healthy control", "1": {"Description": "stroke patient"}}}}'
    )
    assert [s.healthy for s in read_bids(tmp_path).subjects] == [True, False, None]
    (tmp_path / "participants.json").write_text('{"group": ')
    with pytest.raises(BadInput, match="E-BIDS-JSON"):
        read_bids(tmp_path)


@pytest.mark.parametrize("column", ["mask", "lesion", "seg", "label", "ground_truth", "Lesion_Mask_Path", "roi", "gt"])
def test_a_column_of_masks_under_another_name_is_named_and_never_read_as_healthy(tmp_path: Path, column: str) -> None:
    rows = "".join(f"s{n},s{n}_T1.nii.gz,{f's{n}_m.nii.gz' if n < 2 else ''},train\n" for n in range(4))
    (tmp_path / "t.csv").write_text(f"subject_id,T1,{column},role\n{rows}")
    cohort = read_table(tmp_path / "t.csv", Choices(healthy_unless_masked=True))
    assert [s.healthy for s in cohort.subjects] == [None, None, True, True]
    assert set(cohort.subjects[0].scans) == {"T1"}
    assert any(repr(column) in note and "lesion_mask" in note for note in cohort.notes)


@pytest.mark.parametrize(
    ("column", "ill", "free"),
    [("lesion_volume_ml", "12,5", "0"), ("Lesion count", "3", "0"), ("EDSS", "2.5", ""), ("NIHSS", "4", ""),
     ("disease_duration", "7", ""), ("age_at_onset", "31", ""), ("tumor_grade", "IV", ""), ("stroke side", "left", "")],
)  # fmt: skip
def test_figures_that_only_the_ill_have_speak_against_health(tmp_path: Path, column: str, ill: str, free: str) -> None:
    (tmp_path / "t.csv").write_text(f'subject_id,T1,{column},role\na,a.nii,"{ill}",train\nb,b.nii,{free},train\n')
    cohort = read_table(tmp_path / "t.csv", Choices(healthy_unless_masked=True))
    assert [s.healthy for s in cohort.subjects] == [None, True]
    assert any(repr(column) in note for note in cohort.notes)


@pytest.mark.parametrize(
    "text",
    ["left MCA infarct", "Stroke 2019, right arm", "known epilepsy since 2001", "Gliom WHO II", "small tumour ?"],
)
def test_free_text_that_names_an_illness_speaks_against_health(text: str) -> None:
    row = {"participant_id": "sub-1", "remarks": text}
    found = health_of(row, "participants.tsv", Choices(healthy_unless_masked=True), used=("participant_id",))
    assert found.healthy is None
    assert "'remarks'" in found.word


@pytest.mark.parametrize(
    "text", ["no stroke, no tumour", "family history of epilepsy", "motion in slices", "stroke: 0", "denies seizures"]
)
def test_free_text_that_denies_an_illness_does_not(text: str) -> None:
    row = {"participant_id": "sub-1", "remarks": text}
    assert health_of(row, "participants.tsv", Choices(healthy_unless_masked=True), used=("participant_id",)).healthy


def test_sessions_and_phenotypes_are_heard(tmp_path: Path) -> None:
    for name in ("sub-1", "sub-2", "sub-3"):
        (tmp_path / name / "anat").mkdir(parents=True)
        (tmp_path / name / "anat" / f"{name}_T1w.nii.gz").touch()
    (tmp_path / "sub-1" / "sub-1_sessions.tsv").write_text("session_id\tdiagnosis\nses-1\tCN\nses-2\tAD\n")
    (tmp_path / "phenotype").mkdir()
    (tmp_path / "phenotype" / "clinic.tsv").write_text("participant_id\tdx\nsub-2\tMS\n3\tHC\n")
    cohort = read_bids(tmp_path, Choices(healthy_unless_masked=True))
    assert [s.healthy for s in cohort.subjects] == [False, False, True]


LOST = {
    "another spelling": "derivatives/masks/sub-1/anat/sub-1_desc-lesion_mask.nii.gz",
    "capitals": "derivatives/Sub-01_lesion_mask.nii.gz",
    "id without sub": "derivatives/lesions/01_lesion.nii.gz",
    "id behind": "lesion_masks/lesion_sub-01.nii.gz",
    "folder says": "derivatives/lesion_masks/sub-01/anat/sub-01_dseg.nii.gz",
    "gt": "derivatives/sub-01/anat/sub-01_T1w_gt.nii.gz",
    "truth": "derivatives/sub-01/anat/sub-01_truth.nii.gz",
    "manual": "derivatives/sub-01/anat/sub-01_T1w_manual.nii.gz",
    "dysplasia": "derivatives/sub-01/anat/sub-01_label-corticaldysplasia_mask.nii.gz",
    "white matter change": "derivatives/sub-01/anat/sub-01_desc-whitematterchange_mask.nii.gz",
    "pet": "derivatives/pet/sub-01/sub-01_lesion_mask.nii.gz",
    "mask entity": "sub-01/anat/sub-01_mask-lesion_T1w.nii.gz",
    "metastases": "derivatives/sub-01/anat/sub-01_desc-brainmets_mask.nii.gz",
    "nobody's": "derivatives/lesions/patient_x_lesion.nii.gz",
}


@pytest.mark.parametrize("name", LOST)
def test_no_mask_vanishes_without_a_word(tmp_path: Path, name: str) -> None:
    for person in ("sub-01", "sub-02"):
        (tmp_path / person / "anat").mkdir(parents=True)
        (tmp_path / person / "anat" / f"{person}_T1w.nii.gz").touch()
    (tmp_path / LOST[name]).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / LOST[name]).touch()
    for participants, choices in (("", Choices(healthy_unless_masked=True)), ("Control", Choices())):
        if participants:
            (tmp_path / "participants.tsv").write_text("participant_id\tgroup\nsub-01\tControl\nsub-02\tControl\n")
        if participants and name == "nobody's":
            continue
        cohort = read_bids(tmp_path, choices)
        assert cohort["sub-01"].healthy is not True
        assert cohort["sub-01"].brain_mask is None
        told = " ".join([*cohort.notes, cohort["sub-01"].health_from])
        assert Path(LOST[name]).name in told or cohort["sub-01"].lesion_mask is not None


def test_a_value_of_healthy_that_is_neither_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sub-1" / "anat").mkdir(parents=True)
    (tmp_path / "sub-1" / "anat" / "sub-1_T1w.nii.gz").touch()
    for word in ("ill", "patient", "maybe", "2"):
        (tmp_path / "participants.tsv").write_text(f"participant_id\thealthy\nsub-1\t{word}\n")
        with pytest.raises(BadInput, match="E-BIDS-VALUE"):
            read_bids(tmp_path)
    for word, healthy in (("0.0", False), ("1.0", True), ("No", False)):
        (tmp_path / "participants.tsv").write_text(f"participant_id\thealthy\nsub-1\t{word}\n")
        assert read_bids(tmp_path)["sub-1"].healthy is healthy


def test_one_id_of_two_sites_is_refused_and_tables_of_sites_are_read(tmp_path: Path) -> None:
    for site, name in (("siteA", "sub-1"), ("siteB", "sub-2")):
        (tmp_path / site / name / "anat").mkdir(parents=True)
        (tmp_path / site / name / "anat" / f"{name}_T1w.nii.gz").touch()
        group = "patient" if site == "siteB" else "control"
        (tmp_path / site / "participants.tsv").write_text(f"participant_id\tgroup\n{name}\t{group}\n")
    assert [s.healthy for s in read_bids(tmp_path, Choices(healthy_unless_masked=True)).subjects] == [True, False]
    (tmp_path / "siteB" / "sub-1" / "anat").mkdir(parents=True)
    (tmp_path / "siteB" / "sub-1" / "anat" / "sub-1_T1w.nii.gz").touch()
    with pytest.raises(BadInput, match=r"E-BIDS-TWICE.*siteA and in siteB"):
        read_bids(tmp_path)


@pytest.mark.parametrize("column", ["dseg", "GTV", "les", "segmentationFile", "expert1", "tumorseg", "rater2"])
def test_more_names_of_mask_columns(tmp_path: Path, column: str) -> None:
    (tmp_path / "t.csv").write_text(f"subject_id,T1,{column},group\na,a.nii,x.nii.gz,HC\nb,b.nii,,HC\n")
    cohort = read_table(tmp_path / "t.csv")
    assert set(cohort["a"].scans) == {"T1"}
    assert [s.healthy for s in cohort.subjects] == [None, True]


def test_a_mask_among_the_scans_of_a_contrast_speaks_against_health(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("subject_id,T1,DWI,group\na,a.nii,a_lesion_mask.nii.gz,HC\nb,b.nii,b.nii,HC\n")
    assert [s.healthy for s in read_table(tmp_path / "t.csv").subjects] == [None, True]


def test_two_columns_of_one_contrast_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("subject_id,T1gd,T1ce\na,a.nii,b.nii\n")
    with pytest.raises(BadInput, match="T1gd, T1ce, which are one"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("name", ["T1_stroke_mask", "wmh_mask", "T1_tumourSeg", "T1_lesionseg"])
def test_masks_in_the_ixi_folder_are_no_brain_masks(tmp_path: Path, name: str) -> None:
    (tmp_path / "IXI012-HH-1211-T1.nii.gz").touch()
    (tmp_path / f"IXI012-HH-1211_{name}.nii.gz").touch()
    (tmp_path / "IXI013-HH-1212-T1.nii.gz").touch()
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "IXI014_lesion.nii.gz").touch()
    (tmp_path / "IXI014-HH-1213-T1.nii.gz").touch()
    subjects = read_cohort(tmp_path).subjects
    assert [(s.healthy, s.brain_mask) for s in subjects] == [(None, None), (True, None), (None, None)]


@pytest.mark.parametrize("name", ["lesion.nii.gz", "mask.nii.gz", "tumor_mask.nii", "manual_roi.nii.gz"])
def test_a_mask_that_only_its_folder_gives_an_owner_speaks_against_health(tmp_path: Path, name: str) -> None:
    for person in ("sub-1", "sub-2"):
        (tmp_path / person / "anat").mkdir(parents=True)
        (tmp_path / person / "anat" / f"{person}_T1w.nii.gz").touch()
    (tmp_path / "derivatives" / "masks" / "sub-1").mkdir(parents=True)
    (tmp_path / "derivatives" / "masks" / "sub-1" / name).touch()
    cohort = read_bids(tmp_path, Choices(healthy_unless_masked=True))
    assert cohort["sub-1"].healthy is not True
    assert cohort["sub-2"].healthy is True


def test_a_column_of_diagnoses_under_another_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("subject_id,T1,arm\na,a.nii,HC\nb,b.nii,AD\nc,c.nii,\n")
    cohort = read_cohort(tmp_path / "t.csv", choices=Choices(healthy_unless_masked=True))
    assert [s.healthy for s in cohort.subjects] == [True, None, True]
    assert any("'arm'" in note and "group" in note for note in cohort.notes)


FLAG = Choices(healthy_unless_masked=True)
CONTROL = {"group": "control"}


@pytest.mark.parametrize(
    "column", ["control", "healthy_control", "is_healthy", "HC", "Healthy?", "gesund", "sain", "sano"]
)
@pytest.mark.parametrize("no", ["0", "no", "FALSE", "nein", "non", "0.0"])
def test_a_no_where_health_is_asked_speaks_against_it(column: str, no: str) -> None:
    assert said({column: no}, FLAG) is None
    assert said({column: no}, role="train") is None
    assert said({column: no, **CONTROL}) is None
    assert said({column: no, "healthy": "yes"}) is None
    assert said({column: "yes"}) is True


@pytest.mark.parametrize(
    "text",
    [
        "Left MCA infarct, no hemorrhage", "glioblastoma WHO IV, patient denies headache", "infarct left no hemorrhage",
        "acute stroke; risk factors: hypertension", "glioblastoma, normal pressure", "no aphasia after left infarct",
        "no fever but stroke", "non-smoker with stroke", "Tumor not operated", "mother reports seizures", "MS patients",
        "stroke patient accompanied by wife", "stroke patient negative for HIV", "TBI group", "stroke_2019",
        "MCA-infarct",
        "left_MCA_infarct", "LeftInfarct", "astrocytoma WHO II", "ICH left", "s/p craniotomy", "demyelinating disease",
        "Hirninfarkt links", "Schlaganfall 2019", "L\u00e4sion links", "AVC isch\u00e9mique",
        "tumeur c\u00e9r\u00e9brale",
        "scl\u00e9rose en plaques", "ictus isquemico", "Enfermo de Parkinson", "epilessia",
        "no hemorrhage, infarct left",
        "known MS since 2010", "PD, tremor", "temporal lobectomy", "subarachnoid bleed", "mild cognitive impairment",
    ],
)  # fmt: skip
def test_an_illness_counts_that_its_own_clause_does_not_deny(text: str) -> None:
    for column in ("remarks", "cohort"):
        assert said({column: text}, FLAG) is None
        assert said({column: text, **CONTROL}) is None


@pytest.mark.parametrize(
    "text",
    [
        "never had a stroke", "stroke: none", "lesions: none", "absence of lesions", "brother with epilepsy",
        "stroke-free",
        "grandmother had Alzheimer", "spouse of dementia patient", "control for stroke study", "epilepsy in brother",
        "no stroke, tumour or epilepsy", "no evidence of tumor, infarct or hemorrhage", "kein Schlaganfall",
        "pas d'AVC",
        "sin ictus", "nessuna lesione", "aucune l\u00e9sion", "tumour ruled out", "never diagnosed with epilepsy",
        "Vater mit Schlaganfall", "risk factors for stroke", "screened for epilepsy", "motion in slices",
        "matched to patient 12", "maternal aunt MS", "not a patient", "stroke denied", "history of stroke: no",
    ],
)  # fmt: skip
def test_what_is_denied_or_of_somebody_else_makes_nobody_unknown(text: str) -> None:
    assert said({"remarks": text}, FLAG) is True
    assert said({"remarks": text, **CONTROL}) is True


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("days_post_stroke", "12"), ("time_since_stroke_days", "3"), ("lesioned_hemisphere", "L"), ("KPS", "90"),
        ("stroke_hemisphere", "R"), ("affected_side", "left"), ("HoehnYahr", "2"), ("seizure_frequency", "3/month"),
        ("EDSS", "3.5"), ("stroke", "1"), ("stroke", "left"), ("patient", "ja"), ("patient", "oui"), ("no_lesion", "0"),
        ("lesion_free", "no"), ("age_at_diagnosis", "34"), ("date_of_diagnosis", "2015-03-01"), ("no_lesions", "3"),
        ("years_since_diagnosis", "4"), ("Erkrankungsalter", "34"), ("duree_maladie", "4"), ("brain_tumor", "yes"),
        ("edad_diagnostico", "33"), ("survival_days", "300"), ("mRS_90", "3"), ("stroke_date", "2019-02-02"),
    ],
)  # fmt: skip
def test_figures_and_dates_of_an_illness_outweigh_a_role_and_are_not_to_be_renamed(column: str, cell: str) -> None:
    assert said({column: cell}, FLAG) is None
    assert said({column: cell, **CONTROL}) is None
    assert said({column: cell}, role="train") is None
    assert "call" not in note_on_column(column, [cell], "the table")


def test_an_entry_that_says_nothing_by_itself_outweighs_a_role() -> None:
    assert said({"diagnosis": "1"}, role="train") is None
    assert said({"group": "2"}, role="calibration") is None


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("Gruppe", "Schlaganfall"), ("Krankheit", "Schlaganfall"), ("maladie", "SEP"), ("diagn\u00f3stico", "ictus"),
        ("maladie", "tumeur c\u00e9r\u00e9brale"), ("DX_bl", "AD"), ("diagnosis", "Cavernoma"), ("diagnosis", "G35"),
        ("group", "stroke_patient"), ("dx", "Left infarct, no hemorrhage"), ("status", "stroke"), ("condition",
        "epilepsy"),
    ],
)  # fmt: skip
def test_groups_and_diagnoses_of_other_languages_and_shapes_are_ill(column: str, cell: str) -> None:
    assert said({column: cell}, FLAG) is False


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("status", "complete"), ("population", "Hispanic"), ("condition", "eyes open"), ("diagnostic_quality", "good"),
        ("diagnosis", "No Diagnosis Given"), ("diagnosis", "none known"), ("diagnosis", "unremarkable"),
        ("icd10", "Z00.0"), ("family_history_disorder", "yes"), ("sleep_disorder", "never"), ("mother_stroke", "yes"),
        ("diagnosis_source", "self-report"), *(("EDSS", code) for code in ("-", ".", "-9", "NULL", "#N/A", "nan")),
        ("lesion", "absent"), ("lesion_volume", "-"), ("gender_identity", "cis"), ("education", "MS"), ("us_state",
        "MS"),
        ("country", "PT"), ("rater", "AD"), ("modality", "PD"), ("video", "HD"), ("dicom", "converted"),
        ("wmh_volume_ml", "0.4"), ("mrs_available", "yes"), ("cdr_date", "2019"), ("sleep_onset_time", "23:10"),
        ("stroke_exclusion", "passed"), ("lesion_free", "yes"), ("no_lesion", "1"), ("mask_qc", "pass"),
        ("seg_software", "FreeSurfer 7.1"), ("face_mask", "yes"), ("study", "MS study"), ("autism_quotient", "12"),
        ("institution", "Institute for Stroke and Dementia Research"), ("project", "Stroke X"), ("mmse", "30"),
    ],
)  # fmt: skip
def test_columns_about_other_things_leave_a_control_healthy(column: str, cell: str) -> None:
    assert said({column: cell, **CONTROL}) is True
    if column not in ("diagnosis", "icd10", "sleep_disorder"):
        assert said({column: cell}, FLAG) is True


@pytest.mark.parametrize(
    "word", ["Kontrolle", "gesund", "t\u00e9moin", "sain", "sano", "HC1", "HealthyVolunteer", "normal volunteer",
             "gesunde Kontrolle", "sujet sain", "voluntarios sanos", "healthy (no lesion)",
             "control subject without stroke"],
)  # fmt: skip
def test_healthy_people_of_other_languages_and_spellings(word: str) -> None:
    assert said({"group": word}) is True


@pytest.mark.parametrize("word", ["KG", "CO", "G1", "Group 1", "young", "Non-patient", "blue"])
def test_the_name_of_a_group_that_is_not_known_says_nothing(word: str) -> None:
    assert said({"group": word}) is None
    assert said({"group": word}, FLAG) is None


def test_a_word_that_is_not_known_beside_a_control_is_a_doubt() -> None:
    found = health_of({**CONTROL, "diagnosis": "Foobaritis"}, "t.csv", Choices())
    assert found.healthy is None
    assert "Foobaritis" in found.word


@pytest.mark.parametrize(
    ("cell", "declared", "healthy"),
    [
        ("control", "Participants without neurological disease", True), ("3", "stroke patient", False),
        ("1", "Healthy control, no history of stroke", True), ("4", "blue cohort", None),
        ("2", "Age-matched control participants recruited locally", True),
    ],
)  # fmt: skip
def test_sentences_of_a_sidecar_are_read_clause_by_clause(cell: str, declared: str, healthy: bool | None) -> None:
    levels = {"group": {cell: declared}}
    assert health_of({"group": cell}, "t.tsv", Choices(), levels=levels).healthy is healthy


def test_the_advice_for_a_table_names_no_sidecar(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("subject_id,T1,group\na,a.nii,1\n")
    assert not any("participants.json" in note for note in read_table(tmp_path / "t.csv").notes)


@pytest.mark.parametrize(
    "column", ["stroke", "VOI", "target", "core", "contour", "hyperintensities", "L\u00e4sion", "l\u00e9sion", "Tumeur"]
)
def test_columns_of_masks_in_other_words_are_no_contrasts(tmp_path: Path, column: str) -> None:
    (tmp_path / "t.csv").write_text(f"subject_id,T1,{column},role\na,a.nii,,train\nb,b.nii,x.nii.gz,train\n")
    cohort = read_table(tmp_path / "t.csv")
    assert [s.healthy for s in cohort.subjects] == [True, None]
    assert set(cohort["b"].scans) == {"T1"}


@pytest.mark.parametrize("suffix", [".voi", ".mnc", ".nii.bz2", ".npy", ".mat", ".nii.xz", ".nrrd"])
def test_masks_of_a_table_in_other_formats_speak_against_health(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "t.csv").write_text(f"subject_id,T1,drawn,group\na,a.nii,a_lesion{suffix},HC\nb,b.nii,,HC\n")
    assert [s.healthy for s in read_table(tmp_path / "t.csv").subjects] == [None, True]


def test_a_scan_under_an_unknown_name_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("subject_id,T1,extra\na,a.nii,x.nii\n")
    assert any("'extra' is taken as scans" in note for note in read_table(tmp_path / "t.csv").notes)


def test_cells_of_a_lesion_mask_that_are_no_paths(tmp_path: Path) -> None:
    for cell in ("no", "0", "-", "false", "n/a"):
        (tmp_path / "t.csv").write_text(f"subject_id,T1,lesion_mask\na,a.nii,{cell}\n")
        (one,) = read_table(tmp_path / "t.csv").subjects
        assert (one.lesion_mask, one.healthy) == (None, None)
    (tmp_path / "t.csv").write_text("subject_id,T1,lesion_mask\na,a.nii,yes\n")
    with pytest.raises(BadInput, match="E-TABLE-VALUE"):
        read_table(tmp_path / "t.csv")


def test_a_second_column_of_masks_is_not_to_be_called_as_the_first(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("subject_id,T1,lesion_mask,edema_mask\na,a.nii,x.nii,y.nii\n")
    assert any("one mask" in note and "call it" not in note for note in read_table(tmp_path / "t.csv").notes)


@pytest.mark.parametrize(("cell", "age"), [(">89", 89.0), ("45-50", None), ("unknown", None), ("61 y", 61.0)])
def test_ages_that_are_no_one_number_refuse_no_table(tmp_path: Path, cell: str, age: float | None) -> None:
    (tmp_path / "t.csv").write_text(f"subject_id,T1,age\na,a.nii,{cell}\n")
    cohort = read_table(tmp_path / "t.csv")
    assert cohort["a"].age == age
    assert any("no one number" in note for note in cohort.notes) == (age is None)


def test_two_columns_of_one_meaning_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("subject_id,T1,Healthy,healthy\na,a.nii,no,yes\n")
    with pytest.raises(BadInput, match="Healthy, healthy, which are one"):
        read_table(tmp_path / "t.csv")


def test_who_is_ill_and_shall_train_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("subject_id,T1,lesion_mask,role\na,a.nii,m.nii,train\n")
    assert any("a has role train and is ill" in note for note in read_cohort(tmp_path / "t.csv").notes)


def test_quotation_marks_of_a_tsv_quote_nothing_when_they_stand_apart(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('subject_id\tT1\tnote\na\ta.nii\t"left" hand\n')
    assert len(read_table(tmp_path / "t.tsv").subjects) == 1

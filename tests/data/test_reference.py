"""Whether a scan is what it is filed as: against the template, its contrast and the other scans of its cohort."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from core.progress import Progress
from core.study import data_source, preparing
from core.study.data_source import DataSource
from data import reference
from data.choices import Choices
from data.cohort import Subject
from data.errors import BadInput
from data.layout import read_cohort
from data.nifti import write_nifti
from data.nifti_header import BadScan
from data.prepared import Prepared, Preprocessing
from data.preprocessing import prepare_subject
from data.reading import read_subject
from data.reference import doubts_of_cohort, doubts_of_scan, impression
from data.table import write_table
from data.template import working_grid, working_template
from data.volume import Grid, Mask, Volume

REAL = Path(__file__).resolve().parents[3] / "shared" / "mri" / "ixi_t1_2mm"
SPACING = 4.0


def head(seed: int, *, own: float = 0.12) -> np.ndarray:
    """The template's T1 with an anatomy and a noise of its own, zero outside the brain."""
    brain = working_template(SPACING)
    draw = np.random.Generator(np.random.Philox(seed))
    shape = brain.grid.shape
    change = gaussian_filter(draw.normal(0, 1, shape), 2.5)
    values = brain.voxels[0] * (1 + own * change / change.std()) + 0.02 * draw.normal(0, 1, shape)
    return np.where(brain.brain_mask, np.maximum(values, 0.01), 0).astype(np.float32)


def volume(name: str, values: np.ndarray, contrast: str = "T1") -> Volume:
    brain = values != 0
    return Volume(values[None].astype(np.float32), working_grid(SPACING), brain, name, (contrast,))


def codes(
    values: np.ndarray, contrast: str = "T1", *, native: Mask | None = None, registered: bool = True
) -> list[str]:
    """What is doubted of a scan that lies on the working grid, with the brain as it lies in its own file."""
    made = volume("x", values, contrast)
    own = native or Mask(made.brain_mask, made.grid)
    one = Prepared(made, None, own.grid, own, None, np.eye(4), (), "", "")
    return [doubt.code for doubt in doubts_of_scan(one, registered)]


def turned_front_to_back(values: np.ndarray) -> np.ndarray:
    return np.flip(values, 1)


CHANGES = {
    "back to front": (turned_front_to_back, "E-REF-FLIP"),
    "inverted": (lambda v: np.where(v != 0, v.max() - v + 0.01, 0), "E-REF-CONTRAST"),
    "smooth noise": (
        lambda v: np.where(
            v != 0, 10 + gaussian_filter(np.random.Generator(np.random.Philox(5)).normal(0, 1, v.shape), 2), 0
        ),
        "E-REF-CONTRAST",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_no_upright_t1_is_doubted(name: str) -> None:
    change, code = CHANGES[name]
    assert codes(change(head(1)).astype(np.float32)) == [code]


def test_heads_are_not_doubted_alone_nor_among_others() -> None:
    seen = [impression(volume(f"s{n}", head(n))) for n in range(10)]
    assert [codes(head(n)) for n in range(10)] == [[]] * 10
    assert doubts_of_cohort(seen, [one.subject_id for one in seen]) == ([], [])


def like_t2(seed: int) -> np.ndarray:
    """A head whose fluid is bright and whose tissue is flat."""
    values = head(seed)
    return np.where(values != 0, 1.6 - values, 0).astype(np.float32)


def test_fluid_tells_a_t2_from_a_t1_or_flair_whatever_they_are_filed_as() -> None:
    assert codes(like_t2(1), "T2") == codes(head(1), "FLAIR") == codes(head(1), "T1C") == codes(like_t2(1), "PD") == []
    assert codes(like_t2(1), "FLAIR") == codes(like_t2(1), "T1C") == codes(head(1), "T2") == ["E-REF-CONTRAST"]


def test_a_wrong_second_contrast_is_doubted_too() -> None:
    made = volume("x", head(1))
    both = Volume(np.stack([head(1), like_t2(1)]), made.grid, made.brain_mask, "x", ("T1", "FLAIR"))
    one = Prepared(both, None, made.grid, Mask(made.brain_mask, made.grid), None, np.eye(4), (), "", "")
    [doubt] = doubts_of_scan(one, True)
    assert doubt.code == "E-REF-CONTRAST"
    assert "no FLAIR" in doubt.cause or "like a FLAIR" in doubt.cause


def test_a_brain_of_another_size_or_cut_by_its_scan_is_doubted() -> None:
    brain = working_template(SPACING).brain_mask
    grid = working_grid(SPACING)
    small = Mask(brain, Grid(grid.shape, grid.affine @ np.diag([0.5, 0.5, 0.5, 1.0])))
    middle = brain.shape[2] // 2
    cut = Mask(brain[:, :, middle:], Grid((*grid.shape[:2], brain.shape[2] - middle), grid.affine))
    assert codes(head(1), native=small) == ["E-REF-VOLUME"]
    assert codes(head(1), native=cut) == ["E-REF-FOV"]
    assert codes(head(1), native=cut, registered=False) == ["E-REF-FOV"]


def test_a_brain_that_does_not_cover_the_template_is_doubted_when_it_was_registered() -> None:
    values = head(1)
    lower = np.where(np.indices(values.shape)[2] > 0.55 * values.shape[2], values, 0)
    assert codes(lower) == ["E-REF-OVERLAP"]
    assert codes(lower, registered=False) == []
    assert codes(turned_front_to_back(values), registered=False) == ["E-REF-FLIP"], "it lies on the template"


def test_unregistered_scans_are_one_only_when_they_are_nearly_equal() -> None:
    seen = [impression(volume(f"s{n}", head(n))) for n in range(10)]
    seen.append(impression(volume("again", np.asarray(TWINS["noise"](head(4)), dtype=np.float32))))
    seen.append(impression(volume("odd", head(20, own=1.5))))
    doubts, twins = doubts_of_cohort(seen, [one.subject_id for one in seen], registered=False)
    assert doubts == []
    assert [pair[:2] for pair in twins] == [("s4", "again")]


TWINS = {
    "noise": lambda v: np.where(
        v != 0, v + 0.05 * np.random.Generator(np.random.Philox(9)).normal(0, 1, v.shape), 0
    ),
    "gain": lambda v: np.where(v != 0, 1.7 * v + 0.3, 0),
    "mirror": lambda v: np.concatenate([np.zeros_like(v[:1]), np.flip(v, 0)[:-1]]),
    "crop": lambda v: np.where(np.indices(v.shape)[2] > 9, v, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", TWINS)
def test_the_same_scan_is_known_again(name: str) -> None:
    seen = [impression(volume(f"s{n}", head(n))) for n in range(10)]
    seen.append(impression(volume("again", np.asarray(TWINS[name](head(4)), dtype=np.float32))))
    _, twins = doubts_of_cohort(seen, [])
    assert [pair[:2] for pair in twins] == [("s4", "again")]


def test_an_outlier_among_the_healthy_is_told_by_leaving_it_out() -> None:
    seen = [impression(volume(f"s{n}", head(n))) for n in range(10)]
    seen.append(impression(volume("odd", head(20, own=1.5))))
    doubts, _ = doubts_of_cohort(seen, [one.subject_id for one in seen])
    assert [(d.subject_id, d.code) for d in doubts] == [("odd", "E-REF-OUTLIER")]
    assert doubts_of_cohort(seen, [f"s{n}" for n in range(10)])[0] == []


def test_few_scans_say_nothing_of_one_another() -> None:
    seen = [impression(volume(f"s{n}", head(0))) for n in range(reference.FEWEST - 1)]
    assert doubts_of_cohort(seen, [one.subject_id for one in seen]) == ([], [])


def cohort(folder: Path, change: dict[str, np.ndarray] | None = None) -> Path:
    """Heads on the working grid, of which some are changed; roles by name."""
    subjects = []
    for n in range(9):
        name = f"{'train' if n < 5 else 'calibration' if n < 7 else 'test'}{n}"
        values = (change or {}).get(name, head(n))
        write_nifti(folder / f"{name}.nii.gz", values, working_grid(SPACING))
        subjects.append(Subject(name, {"T1": folder / f"{name}.nii.gz"}, healthy=True, role=name.rstrip("0123456789")))
    write_table(folder / "cohort.csv", subjects)
    return folder / "cohort.csv"


@pytest.fixture
def _no_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scans lie on the template already."""
    monkeypatch.setattr("data.preprocessing.register", lambda volume, method: np.eye(4))


def prepared(table: Path, said: list[str], **choices: object) -> data_source.Study:
    text = io.StringIO()
    source = DataSource(
        table, preprocessing=Preprocessing(spacing_mm=SPACING, intensity="minmax"),
        choices=Choices(**choices),  # type: ignore[arg-type]
    )  # fmt: skip
    study = preparing.prepare(table.parent / "runs", source, Progress(False, text), workers=1)
    said.append(text.getvalue())
    return study


@pytest.mark.usefixtures("_no_registration")
def test_a_doubted_scan_is_set_aside_and_named_unless_it_is_kept(tmp_path: Path) -> None:
    table = cohort(tmp_path, {"train1": np.ascontiguousarray(turned_front_to_back(head(1)))})
    said: list[str] = []
    study = prepared(table, said)
    assert "train1" not in study.split.train
    [aside] = study.prepared.set_aside
    assert (aside.subject_id, aside.code) == ("train1", "E-REF-FLIP")
    assert "back to front" in aside.reason
    assert "--keep train1" in aside.reason
    assert "set aside: train1" in said[0]
    kept = prepared(table, said, keep=("train1",))
    assert "train1" in kept.split.train
    assert "train1 is kept, as was asked" in said[1]
    with pytest.raises(BadInput, match="no subject 'train99', which --keep names"):
        prepared(table, said, keep=("train99",))


@pytest.mark.usefixtures("_no_registration")
def test_one_scan_with_other_noise_in_two_splits_is_leakage(tmp_path: Path) -> None:
    table = cohort(tmp_path, {"test7": np.asarray(TWINS["noise"](head(2)), dtype=np.float32)})
    with pytest.raises(BadInput, match=r"E-LEAKAGE.*'test7' \(test\) and 'train2' \(train\).*--keep test7 train2"):
        prepared(table, [])
    assert len(prepared(table, [], keep=("test7", "train2")).prepared.keys) == 9


@pytest.mark.usefixtures("_no_registration")
def test_one_scan_as_the_second_contrast_of_two_people_is_leakage_and_an_unknown_contrast_is_told(
    tmp_path: Path,
) -> None:
    subjects = []
    for n in range(9):
        name = f"{'train' if n < 5 else 'calibration' if n < 7 else 'test'}{n}"
        for contrast, seed in (("T1", n), ("SWI", 40 + (2 if n == 7 else n))):
            write_nifti(tmp_path / f"{name}-{contrast}.nii.gz", head(seed), working_grid(SPACING))
        scans = {contrast: tmp_path / f"{name}-{contrast}.nii.gz" for contrast in ("T1", "SWI")}
        subjects.append(Subject(name, scans, healthy=True, role=name.rstrip("0123456789")))
    write_table(tmp_path / "cohort.csv", subjects)
    settings = Preprocessing(("T1", "SWI"), spacing_mm=SPACING, intensity="minmax")
    with pytest.raises(BadInput, match=r"E-LEAKAGE.*SWI scans.*'test7' \(test\) and 'train2' \(train\)"):
        preparing.prepare(
            tmp_path / "runs",
            DataSource(tmp_path / "cohort.csv", preprocessing=settings),
            Progress(False, io.StringIO()),
        )
    text = io.StringIO()
    source = DataSource(tmp_path / "cohort.csv", preprocessing=settings, choices=Choices(keep=("test7", "train2")))
    preparing.prepare(tmp_path / "runs", source, Progress(False, text))
    assert "how SWI should look is not known here (known are T1, T1C, FLAIR, T2)" in text.getvalue()


def test_a_ct_is_named_when_it_is_read(tmp_path: Path) -> None:
    values = head(1)
    units = np.where(values != 0, 30 + 10 * values / values.max(), -1024).astype(np.float32)
    write_nifti(tmp_path / "t1.nii.gz", units, working_grid(SPACING))
    write_nifti(tmp_path / "brain.nii.gz", (values != 0).astype(np.uint8), working_grid(SPACING))
    one = Subject("a", {"T1": tmp_path / "t1.nii.gz"}, tmp_path / "brain.nii.gz", healthy=True)
    with pytest.raises(BadScan, match=r"E-REF-CT.*Hounsfield.*--keep a"):
        read_subject(one, ("T1",))
    read_subject(replace(one, kept=True), ("T1",))
    write_table(tmp_path / "t.csv", [one])
    assert read_cohort(tmp_path / "t.csv", choices=Choices(keep=("a",)))["a"].kept


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real scans beside the project")
def test_real_heads_pass_and_what_was_made_of_one_does_not(tmp_path: Path) -> None:
    import nibabel as nib

    scan = sorted(REAL.glob("*_T1.nii.gz"))[40]
    image = nib.as_closest_canonical(nib.load(scan))
    brain = np.asarray(nib.as_closest_canonical(nib.load(str(scan).replace("_T1", "_dlmuse"))).dataobj) > 0
    values = np.where(brain, np.asarray(image.dataobj), 0).astype(np.float32)
    noise = gaussian_filter(np.random.Generator(np.random.Philox(3)).normal(0, 9, brain.shape), 3)
    made = {
        "plain": (values, []),
        "inverted": (np.where(brain, np.percentile(values[brain], 99) - values, 0), ["E-REF-CONTRAST"]),
        "back to front": (values[:, ::-1], ["E-REF-FLIP"]),
        "no brain": (np.where(brain, 9 + noise, 0), ["E-REF-CONTRAST"]),
    }
    for name, (changed, wanted) in made.items():
        path = tmp_path / f"{name}.nii.gz"
        stored = nib.Nifti1Image(np.ascontiguousarray(changed, dtype=np.float32), image.affine)
        stored.header.set_xyzt_units("mm")
        nib.save(stored, path)
        one = prepare_subject(Subject(name, {"T1": path}), Preprocessing(spacing_mm=SPACING), tmp_path / "cache")
        assert [d.code for d in doubts_of_scan(one, registered=True)] == wanted, name


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real scans beside the project")
def test_real_contrasts_are_told_whatever_they_are_filed_as(tmp_path: Path) -> None:
    scans = REAL.parent / "lesions" / "openms_p26"
    filed = {
        ("flair", "FLAIR"): [], ("t2", "T2"): [], ("t1", "T1"): [], ("t2", "FLAIR"): ["E-REF-CONTRAST"],
        ("t2", "T1"): ["E-REF-CONTRAST"], ("flair", "T2"): ["E-REF-CONTRAST"],
    }  # fmt: skip
    for (file, contrast), wanted in filed.items():
        settings = Preprocessing((contrast,), spacing_mm=SPACING)
        subject = Subject(f"{file}-{contrast}", {contrast: scans / f"{file}.nii.gz"})
        one = prepare_subject(subject, settings, tmp_path / "cache")
        assert [d.code for d in doubts_of_scan(one, registered=True)] == wanted, (file, contrast)

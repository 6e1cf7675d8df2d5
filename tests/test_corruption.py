"""Bit rot: one flipped byte in any file that was committed is noticed by whoever reads it, and named with a remedy."""

import json
import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import cli
from core.presentation.browser_volumes import packed_path, volume_content
from core.runs.listing import open_run
from core.runs.run_record import identity_of_record
from core.study.stored_scores import open_scores
from data.json_files import sealed
from tests.study import FIT_FLAGS, SCAN_FLAGS, TinyStudy

SET = "input+stage1+stage2"
NOTICED_BY: dict[str, tuple[str, ...]] = {
    "tiny/run.json": (
        "score",
        "evaluate",
        "compare-layers",
        "diagnose",
        "report",
        "what-if",
        "post-processing",
        "gate",
    ),
    "tiny/evaluation/metrics.json": (
        "runs",
        "compare-layers",
        "diagnose",
        "report",
        "what-if",
        "post-processing",
        "gate",
    ),
    "tiny/evaluation/headline.json": ("runs",),
    "tiny/evaluation/levels.json": ("volume",),
    "tiny/evaluation/manifest.json": ("compare-layers", "diagnose", "report", "what-if", "post-processing", "gate"),
    "tiny/scores/test01/distances.npy": ("evaluate", "export", "gate", "score", "volume"),
    "tiny/scores/test01/manifest.json": ("evaluate", "export", "gate", "score", "volume"),
    "tiny-bank/scores/test01/subject.json": ("rescore", "evaluate-bank"),
    "tiny-intensity/scores/test01/scores.npy": ("evaluate-intensity", "gate"),
    "tiny/detector/detector.json": ("gate", "what-if-again", "limits"),
    "tiny/detector/encoder/encoder.safetensors": ("gate", "what-if-again", "limits"),
    "tiny/detector/features.json": ("evaluate", "diagnose", "report", "export", "gate", "volume"),
    "tiny/detector/features.safetensors": ("evaluate", "diagnose", "report", "export", "gate", "volume"),
    "tiny/detector/gaussian/gaussian.json": ("gate", "what-if-again", "limits"),
    "tiny/detector/gaussian/gaussian.safetensors": ("gate", "what-if-again", "limits"),
    f"tiny/diagnosis/{SET}/healthy/diagnosis.json": ("page Diagnosis",),
    f"tiny/whatifs/{SET}/threshold-grid/result.json": ("diagnose", "page Diagnosis"),
    f"tiny/post-processing/{SET}/result.json": ("diagnose", "page Diagnosis"),
    "tiny-encoder/encoder/encoder.json": ("fit", "visibility"),
    "tiny-encoder/encoder/encoder.safetensors": ("fit", "visibility"),
    "tiny-bank/detector/bank/bank.json": ("neighbours",),
    "tiny-bank/detector/bank/bank.safetensors": ("neighbours",),
    ".cache/prepared/*/voxels.npy": ("evaluate", "export", "volume"),
    ".cache/prepared/*/brain.npy": ("evaluate", "export"),
    ".cache/prepared/*/record.json": ("evaluate", "export"),
    ".cache/prepared/*/native_brain.npy": ("evaluate", "export"),
    ".cache/prepared/*/lesion.npy": ("evaluate", "diagnose-again"),
    ".cache/prepared/*/native_lesion.npy": ("evaluate",),
}
"""One file of each kind, and verbs and pages that read it: `*` is the prepared scan of test01."""
HEALED = ("checkpoints", "diagnosis-reference", "diagnosis-errors", "diagnosis-subjects", "pooled-counts", "visibility")
"""Kept so that it need not be computed twice: a damaged one is computed anew, or an older one is taken."""


@pytest.fixture(scope="module")
def explained(study: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """The tiny study with a memory bank and with all that explains a run. Every test puts back what it changes."""
    mine = study.copy(tmp_path_factory.mktemp("corruption") / "study")
    runs = ["--runs", str(mine.runs)]
    bank = ["--detector", "patchcore", "--encoder", "tiny-encoder", *FIT_FLAGS, "--run-id", "tiny-bank"]
    for argv in (
        ["fit", str(mine.table), *runs, *SCAN_FLAGS, *bank],
        ["score", "tiny-bank", *runs],
        ["evaluate", "tiny-bank", *runs, "--workers", "1"],
        ["what-if", "tiny", "threshold-grid", "--layers", SET, *runs],
        ["post-processing", "tiny", "--layers", SET, "--workers", "1", *runs],
        ["diagnose", "tiny", "--layers", SET, *runs],
    ):
        assert cli.main(argv) == 0, argv
    return mine


def commands(study: TinyStudy, out: Path) -> dict[str, list[str]]:
    runs = ["--runs", str(study.runs)]
    post_processing = ["post-processing", "tiny", "--layers", SET, "--workers", "1", *runs]
    limits = ["--per-cell", "1", "--diameters-mm", "12", "--contrasts-sd", "3"]
    return {
        "runs": ["runs", *runs],
        "compare-layers": ["compare-layers", "tiny", *runs],
        "diagnose": ["diagnose", "tiny", "--layers", SET, *runs],
        "diagnose-again": ["diagnose", "tiny", "--layers", "input", "--protocol", "validation", *runs],
        "report": ["report", "tiny", "--layers", SET, *runs, "--out", str(out / "report.html")],
        "what-if": ["what-if", "tiny", *runs],
        "what-if-threshold": ["what-if", "tiny", "threshold-grid", "--layers", SET, *runs],
        "what-if-again": ["what-if", "tiny", "fewer-scans", "--layers", "input", *runs],
        "limits": ["detection-limits", "tiny", *limits, *runs],
        "evaluate": ["evaluate", "tiny", "--workers", "1", *runs],
        "evaluate-intensity": ["evaluate", "tiny-intensity", "--workers", "1", *runs],
        "evaluate-bank": ["evaluate", "tiny-bank", "--workers", "1", *runs],
        "score": ["score", "tiny", *runs],
        "rescore": ["score", "tiny-bank", *runs],
        "export": ["score", "tiny", *runs, "--export", str(out / "maps")],
        "post-processing": post_processing,
        "export-segmentations": [*post_processing, "--export", str(out / "segmentations")],
        "gate": ["gate", "tiny-intensity", "tiny", "--run-id", f"gated-{out.name}", *runs],
        "fit": ["fit", str(study.table), *SCAN_FLAGS, *runs, "--encoder", "tiny-encoder", *FIT_FLAGS],
        "visibility": ["visibility", "tiny-encoder", *runs],
        "neighbours": ["neighbours", "tiny-bank", "test01", *runs],
    }


def file_of(study: TinyStudy, kind: str) -> Path:
    subjects = json.loads((study.runs / "tiny" / "run.json").read_text())["cohort"]["subjects"]
    key = next(s["key"] for s in subjects if s["subject_id"] == "test01")
    return study.runs / kind.replace("*", key)


def flip(path: Path) -> bytes:
    """Change one bit in the middle; gives back what was there."""
    good = path.read_bytes()
    middle = len(good) // 2
    path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    return good


def page_complaints(study: TinyStudy, title: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DICESCOPE_RUNS", str(study.runs))
    app = AppTest.from_file(str(Path(cli.__file__).parent / "app.py"), default_timeout=120)
    app.query_params["run"] = "tiny"
    app.query_params["layers"] = SET.split("+")
    app.run()
    app.switch_page(f"pages/{title.lower()}.py").run()
    assert not app.exception
    return " ".join(element.value for element in [*app.error, *app.warning])


@pytest.mark.slow
@pytest.mark.parametrize("kind", NOTICED_BY)
def test_a_flipped_byte_is_noticed_by_every_reader_and_named_with_a_remedy(
    explained: TinyStudy, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of(explained, kind)
    good = flip(path)
    try:
        for reader in NOTICED_BY[kind]:
            if reader.startswith("page "):
                said, code = page_complaints(explained, reader.removeprefix("page "), monkeypatch), 4
            elif reader == "volume":
                name = "image-0" if "voxels" in kind else f"score-{SET}"
                code, said = volume_answer(explained, name)
            else:
                code = cli.main(commands(explained, tmp_path)[reader])
                said = capsys.readouterr().err
            assert code == 4, (reader, code, said)
            assert path.name in said, (reader, said)
            assert path.parent.name in said, (reader, said)
            assert any(word in said for word in ("Delete", "repeat", "Put back", "again")), (reader, said)
    finally:
        path.write_bytes(good)


def volume_answer(study: TinyStudy, name: str) -> tuple[int, str]:
    from data.errors import IntegrityError

    for kept in (study.runs / "tiny" / ".browser").glob("*.gz"):
        kept.unlink()
    try:
        packed_path(study.runs, "tiny", "test01", name)
    except IntegrityError as error:
        return 4, str(error)
    return 0, ""


@pytest.mark.slow
def test_every_kind_of_file_of_a_study_is_in_the_sweep(explained: TinyStudy) -> None:
    covered = {kind.split("/")[1] + "/" + Path(kind).name for kind in NOTICED_BY}
    for manifest in explained.runs.rglob("manifest.json"):
        parts = manifest.parent.relative_to(explained.runs).parts
        if parts[:2] == (".cache", "faiss") or parts[1] in HEALED or parts[0].startswith("gated"):
            continue
        for name in json.loads(manifest.read_text())["files"]:
            kind = f"{parts[1]}/{Path(name).name}"
            assert kind in covered or name.startswith("encoder/"), f"no reader of {kind} is tried"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["diagnosis-reference", "diagnosis-errors", "diagnosis-subjects"])
def test_what_is_kept_for_speed_is_computed_anew_when_it_is_damaged(
    explained: TinyStudy, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*commands(explained, tmp_path)["diagnose"], "--json"]
    made = explained.runs / "tiny" / "diagnosis" / SET / "healthy" / "diagnosis.json"
    assert cli.main(argv) == 0
    first = json.loads(capsys.readouterr().out)
    for path in (explained.runs / "tiny" / kind).rglob("*"):
        if path.is_file():
            flip(path)
    for path in [made, made.with_name("manifest.json")]:
        path.unlink()
    made.parent.rmdir()
    assert cli.main(argv) == 0
    assert json.loads(capsys.readouterr().out) == first


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["export-segmentations", "what-if-threshold"])
def test_the_verb_that_makes_a_result_says_that_it_is_damaged_and_makes_it_anew(
    explained: TinyStudy, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = {"export-segmentations": "post-processing", "what-if-threshold": "whatifs"}[verb]
    [path] = (explained.runs / "tiny" / kind / SET).rglob("result.json")
    good = flip(path)
    assert path.read_bytes() != good
    capsys.readouterr()
    assert cli.main(commands(explained, tmp_path)[verb]) == 0
    said = capsys.readouterr().err
    assert str(path) in said
    assert "damaged" in said
    assert path.read_bytes() == good


@pytest.mark.slow
def test_a_damaged_volume_of_the_browser_is_made_anew_from_what_was_verified(explained: TinyStudy) -> None:
    path = packed_path(explained.runs, "tiny", "test01", f"score-{SET}")
    good = flip(path)
    assert path.read_bytes() != good
    assert packed_path(explained.runs, "tiny", "test01", f"score-{SET}").read_bytes() == good


@pytest.mark.slow
def test_an_address_of_a_volume_holds_for_one_content_only(explained: TinyStudy) -> None:
    from data.errors import BadInput

    scores = open_scores(open_run(explained.runs, "tiny"))
    content = volume_content(scores, "test01", "image-0")
    packed_path(explained.runs, "tiny", "test01", "image-0", content)
    with pytest.raises(BadInput, match="Load the page again"):
        packed_path(explained.runs, "tiny", "test01", "image-0", "0" * 32)


EDITS = {
    "a training subject is tested": lambda r: r["split"]["test"].append(r["split"]["train"][0]),
    "a test subject trains": lambda r: r["split"]["train"].append(r["split"]["test"].pop()),
    "an ill subject is called healthy": lambda r: next(s for s in r["cohort"]["subjects"] if not s["healthy"]).update(
        healthy=True
    ),
    "another subject's scan": lambda r: r["cohort"]["subjects"][0].update(key=r["cohort"]["subjects"][1]["key"]),
    "a scan elsewhere": lambda r: r["cohort"]["subjects"][0].update(key="../../../scans"),
    "another recipe": lambda r: r["recipe"].update(kind="Intensity"),
    "another seed": lambda r: r.update(seed=7),
    "a subject less": lambda r: r["split"]["test"].pop(),
    "a list": lambda r: r.update(cohort=[]),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("verb", ["score", "evaluate", "compare-layers", "diagnose"])
def test_an_edited_record_is_refused_by_every_verb(
    explained: TinyStudy, edit: str, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = explained.runs / "tiny" / "run.json"
    good = path.read_bytes()
    record = json.loads(good)
    EDITS[edit](record)
    path.write_text(json.dumps(record, indent=1, sort_keys=True))
    try:
        assert cli.main(commands(explained, tmp_path)[verb]) == 4
        assert "run.json" in capsys.readouterr().err
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize("edit", [name for name in EDITS if name not in ("another recipe", "another seed")])
def test_a_record_without_a_digest_is_still_refused_when_its_split_or_its_scans_cannot_be(
    own_study: TinyStudy, edit: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As an older version wrote it: no digest, no identity, and manifests that name files only."""
    path = as_older(own_study.runs / "tiny")
    record = json.loads(path.read_text())
    assert cli.main(commands(own_study, tmp_path)["compare-layers"]) == 0
    EDITS[edit](record)
    path.write_text(json.dumps(record))
    capsys.readouterr()
    assert cli.main(commands(own_study, tmp_path)["evaluate"]) == 4
    assert "run.json" in capsys.readouterr().err


def as_older(run: Path, manifests: bool = True) -> Path:
    """Rewrite a run as a version without digests wrote it; the path of its record."""
    path = run / "run.json"
    record = json.loads(path.read_text()) | {"schema": 1}
    del record["sha256"], record["identity"]
    path.write_text(json.dumps(record))
    for manifest in run.rglob("manifest.json") if manifests else ():
        say_less(manifest)
    return path


def say_less(manifest: Path) -> None:
    """Rewrite a manifest as one of schema 1, which names files only."""
    manifest.write_text(json.dumps({"schema": 1, "files": json.loads(manifest.read_text())["files"]}))


def test_results_that_name_their_run_are_not_taken_for_those_of_an_older_one(
    own_study: TinyStudy, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    as_older(own_study.runs / "tiny", manifests=False)
    assert cli.main(commands(own_study, tmp_path)["compare-layers"]) == 4
    assert "holds something else: run is" in capsys.readouterr().err


def test_a_manifest_that_says_less_is_not_taken_for_the_runs_own(
    own_study: TinyStudy, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    scores = own_study.runs / "tiny" / "scores"
    shutil.rmtree(scores / "test01")
    shutil.copytree(scores / "test02", scores / "test01")
    say_less(scores / "test01" / "manifest.json")
    assert cli.main(commands(own_study, tmp_path)["evaluate"]) == 4
    assert "test01" in capsys.readouterr().err


def test_a_training_scan_moved_among_the_test_scans_is_refused_however_well_the_record_is_sealed(
    own_study: TinyStudy, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = own_study.runs / "tiny" / "run.json"
    record = json.loads(path.read_text())
    moved = record["split"]["train"].pop()
    record["split"]["test"].append(moved)
    next(s for s in record["cohort"]["subjects"] if s["subject_id"] == moved)["role"] = "test"
    for identity in (record["identity"], identity_of_record(record)):
        del record["sha256"]
        record["identity"] = identity
        record = sealed(record)
        path.write_text(json.dumps(record))
        for verb in ("score", "evaluate", "report"):
            assert cli.main(commands(own_study, tmp_path)[verb]) == 4, (verb, identity)
    capsys.readouterr()


@pytest.mark.parametrize(("stage", "verb"), [("evaluation", "compare-layers"), ("detector", "diagnose")])
def test_a_result_whose_manifest_is_gone_is_damaged_and_not_one_to_come(
    own_study: TinyStudy, stage: str, verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (own_study.runs / "tiny" / stage / "manifest.json").unlink()
    assert cli.main(commands(own_study, tmp_path)[verb]) == 4
    told = capsys.readouterr().err
    assert f"{stage}/manifest.json is missing" in told.replace("\n", "")
    assert "repeat `" in told


def test_scores_of_another_subject_and_of_another_run_are_refused(
    explained: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, aside = explained.runs / "tiny" / "scores", tmp_path / "aside"
    for other in (scores / "test02", explained.runs / "tiny-bank" / "scores" / "test01"):
        (scores / "test01").rename(aside)
        shutil.copytree(other, scores / "test01")
        try:
            assert cli.main(commands(explained, tmp_path)["evaluate"]) == 4
            assert "holds something else" in capsys.readouterr().err
        finally:
            shutil.rmtree(scores / "test01")
            aside.rename(scores / "test01")

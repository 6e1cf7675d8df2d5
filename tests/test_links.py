"""Links and strange files inside a run: nothing that they lead to is moved, deleted or written."""

import json
import os
import shutil
from pathlib import Path

import pytest

import cli
from core.features.layout import feature_stride
from core.presentation.browser_volumes import packed_path
from core.runs.listing import open_run
from data.errors import BadInput
from data.files import committed_directory
from data.template import working_grid
from data.whole_files import remove_unfinished
from models.encoder import make_encoder
from models.settings import EncoderSettings
from tests.study import TinyStudy


def precious(place: Path) -> Path:
    """A folder of somebody, with names such as ours."""
    for name in ("0001/flair.nii.gz", "000001/owner.json", "flair.nii.gz", "step-00000001/state", "lock/000001/x"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("precious")
    (place / "log").write_text('{"kind": "step", "step": 99}\n')
    return place


def everything(place: Path) -> dict[str, bytes]:
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("run_id", "name", "verb"),
    [
        ("tiny-intensity", ".tmp-old-x", "score"),
        ("tiny-intensity", "lock", "score"),
        ("tiny-intensity", ".turn", "diagnose"),
        ("tiny-intensity", ".browser", "evaluate"),
        ("tiny-intensity", "events.jsonl", "evaluate"),
        ("tiny-encoder", "checkpoints", "pretrain"),
    ],
)
def test_what_a_link_in_a_run_leads_to_is_left_alone_and_the_link_is_named(
    own_study: TinyStudy, tmp_path: Path, run_id: str, name: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = precious(tmp_path / "precious")
    before = everything(outside)
    run = own_study.runs / run_id
    link = run / name
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(outside / "log" if name == "events.jsonl" else outside)
    shutil.rmtree(run / ("encoder" if verb == "pretrain" else "scores/test01" if verb == "score" else "none"), True)
    argv = own_study.commands()["pretrain"] if verb == "pretrain" else [verb, run_id, "--runs", str(own_study.runs)]
    assert cli.main(argv) == 2
    told = capsys.readouterr().err
    assert str(link) in told
    assert "link" in told
    assert everything(outside) == before


def test_a_volume_is_not_kept_through_a_link(own_study: TinyStudy, tmp_path: Path) -> None:
    outside = precious(tmp_path / "precious")
    before = everything(outside)
    shutil.rmtree(own_study.runs / "tiny" / ".browser", ignore_errors=True)
    (own_study.runs / "tiny" / ".browser").symlink_to(outside)
    with pytest.raises(BadInput, match="not a place below"):
        packed_path(own_study.runs, "tiny", "test01", "image-0")
    assert everything(outside) == before


def test_scratch_that_is_none_is_cleared_without_what_it_leads_to(tmp_path: Path) -> None:
    outside = precious(tmp_path / "precious")
    before = everything(outside)
    run = tmp_path / "run"
    run.mkdir()
    (run / ".tmp-old-file").write_text("x")
    (run / ".tmp-old-broken").symlink_to(tmp_path / "nowhere")
    (run / ".tmp-old-link").symlink_to(outside)
    (run / ".tmp-link").symlink_to(outside)
    remove_unfinished(run)
    assert list(run.iterdir()) == []
    assert everything(outside) == before


@pytest.mark.parametrize("manifest", ["", "{}", '{"name": "extension", "version": 2}', None])
@pytest.mark.parametrize("kind", ["file", "link", "folder", "pipe"])
def test_a_commit_takes_nothing_along_whatever_the_manifest_says(
    tmp_path: Path, manifest: str | None, kind: str
) -> None:
    target = tmp_path / "run" / "stage"
    target.mkdir(parents=True)
    if manifest is not None:
        (target / "manifest.json").write_text(manifest)
    mine = target / "mine"
    if kind == "file":
        mine.write_text("precious")
    elif kind == "link":
        mine.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        mine.mkdir()
    else:
        os.mkfifo(mine)
    with pytest.raises(BadInput, match="mine"), committed_directory(target, within=tmp_path) as scratch:
        (scratch / "value.json").write_text("1")
    assert mine.is_symlink() or mine.exists()
    assert {p.name for p in target.iterdir()} - {"manifest.json"} == {"mine"}


def test_checkpoints_of_another_training_are_set_aside(own_study: TinyStudy, caplog: pytest.LogCaptureFixture) -> None:
    argv = own_study.commands()["pretrain"]
    assert cli.main([*argv, "--run-id", "other", "--simclr.temperature", "0.7"]) == 0
    mine, other = own_study.runs / "tiny-encoder", own_study.runs / "other"
    wanted = json.loads((mine / "encoder" / "manifest.json").read_text())["files"]
    shutil.rmtree(mine / "checkpoints")
    shutil.copytree(other / "checkpoints", mine / "checkpoints")
    shutil.rmtree(mine / "encoder")
    assert cli.main(argv) == 0
    assert "another training" in caplog.text
    assert json.loads((mine / "encoder" / "manifest.json").read_text())["files"] == wanted


@pytest.mark.parametrize("grid", ["nanmm", "infmm", "-inf", "1e9mm", "0mm", "-4mm", "500mm", "1e-9mm"])
def test_a_feature_grid_that_cannot_be_is_refused_at_once(grid: str) -> None:
    with pytest.raises(BadInput, match="Feature grid"):
        feature_stride(make_encoder(EncoderSettings(width=4)), grid, working_grid(2))


@pytest.mark.parametrize("place", ["tiny/run.json", "tiny/evaluation/metrics.json", "tiny/new.html", ".share-key"])
def test_a_report_is_not_written_over_what_runs_hold(
    own_study: TinyStudy, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_study.runs / ".share-key").write_bytes(b"0" * 32)
    before = everything(own_study.runs)
    out = str(own_study.runs / place)
    assert cli.main(["report", "tiny", "--runs", str(own_study.runs), "--out", out, "--overwrite"]) == 2
    assert "Give a name elsewhere" in capsys.readouterr().err
    assert everything(own_study.runs) == before
    assert open_run(own_study.runs, "tiny").run_id == "tiny"

"""Tensors on disk: one place writes and reads them, and what goes wrong is an error of Python's."""

import ast
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from models import tensor_files
from models.tensor_files import load_tensors, save_tensors, tensor_bytes, tensor_shapes

ROOT = Path(__file__).resolve().parents[2]
TENSORS = {"a.weight": torch.arange(60.0).reshape(3, 4, 5), "b": torch.tensor(7), "c": torch.zeros(0, 2)}


def test_what_is_saved_is_loaded_with_every_bit_and_its_size_is_known_before(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS)
    loaded = load_tensors(path)
    assert loaded.keys() == TENSORS.keys()
    assert all(
        torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype for name, value in TENSORS.items()
    )
    assert load_tensors(path, leave_out=("b", "c")).keys() == {"a.weight"}
    assert tensor_shapes(path) == {"a.weight": (3, 4, 5), "b": (), "c": (0, 2)}
    assert tensor_bytes(TENSORS) == pytest.approx(path.stat().st_size, rel=0.2)


def test_a_file_of_tensors_has_the_rights_of_any_other_new_file(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", TENSORS)
    (tmp_path / "other").touch()
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "other").stat().st_mode
    )


@pytest.mark.parametrize("number", [28, 122, 30, 5, 13, 27])
def test_every_refusal_of_the_disk_is_an_os_error_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(tensors: object, path: Path) -> None:
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")

    monkeypatch.setattr(tensor_files, "save_file", refuse)
    path = tmp_path / "x.safetensors"
    with pytest.raises(OSError, match=r"x\.safetensors") as found:
        save_tensors(path, TENSORS)
    assert (found.value.errno, found.value.filename) == (number, str(path))
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"nothing", b"\xff" * 64, b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_damaged_file_is_a_value_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    for read in (load_tensors, tensor_shapes):
        with pytest.raises(ValueError, match=r"x\.safetensors is no readable safetensors file"):
            read(path)


def test_a_missing_file_is_told_by_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_tensors(tmp_path / "nowhere")


@pytest.mark.parametrize("folder", ["data", "models", "core", "pages", "verbs", "benchmarks"])
def test_nothing_else_writes_or_reads_safetensors(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        if path != ROOT / "models" / "tensor_files.py":
            assert "safetensors" not in {name.split(".")[0] for name in modules}, path

"""The FAISS index of a memory bank: candidates, exact distances to them, and a cache that is never trusted blindly."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from core.memory_bank import one_patch
from core.memory_bank.bank import MemoryBank
from core.memory_bank.index import open_index
from core.memory_bank.index_audit import Audit
from core.memory_bank.settings import BankSettings
from tests.core.memory_bank.test_memory_bank import CHANNELS, LAYOUT, SETS, SUBJECTS, TEST, TRAIN, build

KINDS = ["ivf", "hnsw"]


def bank_of(search: str, **changed: object) -> MemoryBank:
    return build(subset="all", search=search, **changed)


@pytest.mark.parametrize("search", KINDS)
@pytest.mark.parametrize("position", ["anywhere", "weighted"])
def test_an_approximate_distance_is_never_below_the_exact_one_and_mostly_equal(search: str, position: str) -> None:
    exact = build(subset="all", position=position).search(TEST, SETS)
    bank = bank_of(search, position=position, nprobe=4, candidates=4)
    found = bank.search(TEST, SETS)
    assert (found.distance >= exact.distance * (1 - 1e-6)).all()
    hit = found.distance <= exact.distance * (1 + 1e-5)
    assert hit.mean() > 0.7
    for entry, distance in zip(found.entry[-1, 0, ::20], found.distance[-1, 0, ::20], strict=True):
        assert 0 <= entry < len(bank)
        assert distance > 0


@pytest.mark.parametrize("search", KINDS)
def test_the_distance_belongs_to_the_named_entry(search: str) -> None:
    bank = bank_of(search)
    found = bank.search(TEST[:1], SETS)
    for position in (0, 30, 80):
        every = one_patch.nearest(bank, TEST[0], position, ("fine", "coarse"), len(bank))
        where = int(np.flatnonzero(every.entry == found.entry[SETS.index(("fine", "coarse")), 0, position])[0])
        expected = every.distance[where]
        assert found.distance[SETS.index(("fine", "coarse")), 0, position] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("position", ["anywhere", "weighted"])
def test_visiting_every_list_is_exact_for_the_full_set_and_for_single_layers(position: str) -> None:
    exact = build(subset="all", position=position).distances(TEST, SETS)
    found = bank_of("ivf", position=position, nprobe=1000, candidates=1).distances(TEST, SETS)
    for number, layers in enumerate(SETS):
        if len(layers) in (1, len(CHANNELS)):
            np.testing.assert_allclose(found[number], exact[number], rtol=1e-5)
    assert (found >= exact * (1 - 1e-6)).all()


def test_all_entries_as_candidates_are_exact_for_every_layer_set() -> None:
    exact = build(subset="all").distances(TEST, SETS)
    few = bank_of("ivf", nprobe=1000, candidates=10_000).distances(TEST, SETS)
    np.testing.assert_allclose(few, exact, rtol=1e-5)


@pytest.mark.parametrize("search", KINDS)
def test_equal_seeds_give_equal_indices(search: str, tmp_path: Path) -> None:
    for name in ("first", "second"):
        bank_of(search).open_index(tmp_path / name)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
    np.testing.assert_array_equal(bank_of(search).distances(TEST, SETS), bank_of(search).distances(TEST, SETS))


@pytest.mark.parametrize("search", KINDS)
def test_the_cache_is_read_again_and_gives_the_same_distances(search: str, tmp_path: Path) -> None:
    first, second = bank_of(search), bank_of(search)
    assert "built" in first.open_index(tmp_path / "index").note
    assert second.open_index(tmp_path / "index").note == "Index read from disk."
    assert second.index is not None
    assert first.index is not None
    assert second.index.audit == first.index.audit
    np.testing.assert_array_equal(second.distances(TEST, SETS), first.distances(TEST, SETS))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(bytes(whole))


def header(path: Path) -> None:
    path.write_bytes(b"IxXX" + path.read_bytes()[4:])


@pytest.mark.parametrize("damage", [truncated, flipped, header, Path.unlink])
@pytest.mark.parametrize("name", ["view-0.faiss", "view-2.faiss", "index.json"])
def test_a_damaged_index_is_rebuilt_with_a_note_and_never_read(
    damage: Callable[[Path], None], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = bank_of("ivf")
    expected = bank.distances(TEST, SETS)
    bank.open_index(tmp_path / "index")
    damage(tmp_path / "index" / name)
    with monkeypatch.context() as patch:
        patch.setattr(faiss, "read_index", lambda path: pytest.fail("a damaged index was read"))
        again = bank_of("ivf")
        index = again.open_index(tmp_path / "index")
    assert index.note.startswith("Index rebuilt: ")
    assert name in index.note
    np.testing.assert_array_equal(again.distances(TEST, SETS), expected)
    assert bank_of("ivf").open_index(tmp_path / "index").note == "Index read from disk."


def test_the_index_of_another_bank_or_of_other_settings_is_not_used(tmp_path: Path) -> None:
    bank_of("ivf").open_index(tmp_path / "index")
    moved = [{layer: values + 0.5 * (layer == "fine") for layer, values in rows.items()} for rows in TRAIN]
    settings = BankSettings(subset="all", search="ivf")
    other = MemoryBank.build([*moved[:2], *TRAIN[2:]], SUBJECTS, LAYOUT, settings)
    assert "another bank" in other.open_index(tmp_path / "index").note
    assert "another bank" in bank_of("ivf", nprobe=3).open_index(tmp_path / "index").note


def test_the_audit_says_recall_and_error_and_what_to_do(tmp_path: Path) -> None:
    heard: dict[str, float] = {}
    audit = bank_of("ivf", nprobe=1, candidates=1).open_index(monitor=lambda _, values: heard.update(values)).audit
    assert heard["recall"] == audit.recall < 0.99
    assert audit.mean_error > 0
    assert audit.p99_error >= audit.mean_error
    assert set(audit.recall_of) == {"+".join(layers) for layers in SETS}
    assert "raise nprobe" in audit.text
    good = bank_of("ivf", nprobe=1000, candidates=300).open_index().audit
    assert good.recall == 1.0
    assert good.p99_error < 1e-5
    assert "raise nprobe" not in good.text
    assert Audit(10, 0.5, {}, 0.1, 0.2).text.startswith("For 10 patches of one healthy subject")


def test_the_audit_foretells_the_recall_of_a_new_subject_and_never_compares_a_subject_with_itself() -> None:
    bank = bank_of("ivf", nprobe=1, candidates=2)
    audit = bank.open_index().audit
    real = bank.distances(TEST, SETS)[-1] <= build(subset="all").distances(TEST, SETS)[-1] * (1 + 1e-5)
    assert abs(audit.recall - real.mean()) < 0.2
    bank.settings = replace(bank.settings, candidates=50)
    assert bank.open_index().audit.mean_error < audit.mean_error
    alone = MemoryBank.build(TRAIN[:1], SUBJECTS[:1], LAYOUT, BankSettings(subset="all", search="ivf"))
    assert 0 <= alone.open_index().audit.recall <= 1


def test_a_flat_index_finds_what_the_exact_search_finds() -> None:
    bank = build(subset="all")
    index = open_index(bank.patches(bank.layers), bank.subject_of, bank.settings)
    assert index.audit.recall == 1.0
    assert index.audit.recall_of["fine"] == 1.0


def test_where_the_cache_cannot_be_written_the_index_stays_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    index = bank_of("ivf").open_index(tmp_path / "file" / "index")
    assert "could not be kept" in index.note


def test_an_index_goes_to_the_graphics_card_when_faiss_sees_one(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(
        faiss, "index_cpu_to_gpu", lambda resources, card, index: moved.append(card) or index, raising=False
    )
    bank_of("ivf").open_index()
    assert set(moved) == {0}
    moved.clear()
    bank_of("hnsw").open_index()
    assert not moved


def test_a_bank_on_disk_is_searched_through_an_index_too(tmp_path: Path) -> None:
    bank = bank_of("ivf")
    bank.save(tmp_path / "bank")
    loaded = MemoryBank.load(tmp_path / "bank", memory_bytes=0)
    np.testing.assert_array_equal(loaded.distances(TEST, SETS), bank.distances(TEST, SETS))
    assert torch.is_tensor(loaded.rows["fine"])

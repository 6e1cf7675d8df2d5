"""Numbers out of range are refused by every verb before any work: what, given, allowed, and which flag."""

import copy
import dataclasses
import io
import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro

import cli
from core.detectors import make
from core.memory_bank.settings import BankSettings
from core.memory_plan import GaussianSettings
from core.pretraining.simclr import SimclrSettings
from core.progress import Progress
from core.study.data_source import DataSource
from core.study.evaluation import check_rule
from core.study.fitting import fit
from core.study.training import pretrain
from data.errors import BadInput
from data.prepared import Preprocessing
from data.ranges import RANGES, refuse_out_of_range

NEEDED = {
    "check": ["nowhere.csv"], "prepare": ["nowhere.csv"], "pretrain": ["nowhere.csv"], "fit": ["nowhere.csv"],
    "gate": ["one", "two"], "compare-pretraining": ["nowhere.csv"], "ceiling": ["nowhere.csv"],
    "neighbours": ["run", "subject"], "visibility-before": ["nowhere.csv"], "plant": ["nowhere.csv", "shapes", "out"],
}  # fmt: skip
"""Positional arguments that a verb cannot do without; none of them is there."""
HOSTILE = (0, -1, math.nan, math.inf, -math.inf, 10**12)
NOTHING_IS_FINE = {
    "median_voxels", "smoothing_mm", "prior_smoothing_mm", "radius_mm", "position_weight", "fp_ml", "seed", "seeds",
    "split_seed", "bank_seed", "feature_seed", "warmup_steps", "weight_decay", "gradient_clip", "geometric",
    "photometric", "tone", "slot_momentum", "key_momentum", "positive_prior", "class_weight", "apart_mm", "voxel",
    "simclr.memory_gb", "volume", "contrast", "contrasts", "fp_ml_per_scan",
}  # fmt: skip
"""Settings that may be 0: it switches them off, it is the first of a count, or no false positive at all."""
NEGATIVE_IS_FINE = {"contrasts_sd"}


def numbers(kind: Any, prefix: str = "") -> Iterator[tuple[str, bool, int]]:
    """Dotted name, whether whole, and how many values, of every numeric field of a verb."""
    hints = typing.get_type_hints(kind, include_extras=False)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from numbers(hint, f"{prefix}{field.name}.")
            continue
        inner = [h for h in (*typing.get_args(hint), hint) if h is not type(None)]
        flat = [g for h in inner for g in (*typing.get_args(h), h)]
        if int in flat or float in flat:
            sizes = [len(typing.get_args(h)) for h in (hint, *inner) if typing.get_origin(h) is tuple]
            many = [h for h in (hint, *inner) if typing.get_origin(h) is tuple and Ellipsis in typing.get_args(h)]
            yield (
                prefix + field.name.removeprefix("setting__").replace("__", "."),
                float not in flat,
                1 if many or not sizes else sizes[0],
            )


def asked(verb: str) -> list[str]:
    """The words of a verb with what it cannot do without."""
    name, *more = verb.split()
    return [name, *NEEDED.get(name, []), *more]


FITS = [f"fit --detector {name}" for name in ("gaussian", "patchcore", "zscore", "intensity-dark")]
VERBS = [*(verb for verb in cli.VERBS if verb != "fit"), *FITS]
"""What `fit` takes depends on the detector."""
FIELDS = [(verb, *found) for verb in VERBS for found in numbers(cli.kind_of(verb.split()[0], asked(verb)))]


def replaced(settings: Any, path: str, value: Any) -> Any:
    """The dataclass with one field, of it or of one inside it, set to a value that its own check does not see."""
    changed = copy.copy(settings)
    if hasattr(changed, flat := "setting__" + path.replace(".", "__")):
        object.__setattr__(changed, flat, value)
        return changed
    first, _, rest = path.partition(".")
    object.__setattr__(changed, first, replaced(getattr(settings, first), rest, value) if rest else value)
    return changed


def fine(path: str, value: float) -> bool:
    name = path.rpartition(".")[2]
    if value == 0:
        return bool({name, path} & NOTHING_IS_FINE)
    return value == -1 and name in NEGATIVE_IS_FINE


def test_every_numeric_field_of_every_verb_has_a_range() -> None:
    assert len(FIELDS) > 80
    assert {path.rpartition(".")[2] for _, path, _, _ in FIELDS} <= set(RANGES)


@pytest.mark.parametrize("verb", sorted({verb for verb, *_ in FIELDS}))
def test_hostile_numbers_are_refused_with_name_and_range_or_are_known_to_be_fine(verb: str) -> None:
    name, *words = asked(verb)
    usual = tyro.cli(cli.kind_of(name, words), args=words)
    for _, path, whole, count in (one for one in FIELDS if one[0] == verb):
        for value in HOSTILE:
            if whole and not math.isfinite(value):
                continue
            given = replaced(usual, path, (value,) * count if count > 1 else value)
            if fine(path, value):
                refuse_out_of_range(given, flags=True)
                continue
            with pytest.raises(BadInput, match=rf"--{path} is .*Allowed: "):
                refuse_out_of_range(given, flags=True)


@pytest.mark.parametrize(("verb", "path", "whole", "count"), FIELDS, ids=lambda value: str(value))
def test_a_verb_ends_with_exit_2_and_writes_nothing(
    verb: str,
    path: str,
    whole: bool,
    count: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    flag = "--" + path.replace("_", "-")
    word = str(10**12) if whole else "nan"
    assert cli.main([*asked(verb), flag, *[word] * count]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert path.rpartition(".")[2] in err.replace("-", "_")
    assert "Allowed: " in err
    assert not list(tmp_path.iterdir())


def test_an_empty_list_of_contrasts_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", "nowhere.csv", "--preprocessing.contrasts"]) == 2
    assert cli.main(["prepare", "nowhere.csv", "--preprocessing.contrasts", "T1", "t1"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_library_refuses_them_too(tmp_path: Path) -> None:
    source, quiet = DataSource(tmp_path / "nowhere.csv"), Progress(False, io.StringIO())
    for kind, name, value in (
        (Preprocessing, "spacing_mm", 0), (Preprocessing, "spacing_mm", math.nan), (BankSettings, "pool", 0),
        (BankSettings, "coreset_ratio", math.inf), (GaussianSettings, "ridge", math.nan),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=rf"^{name} is .*Allowed: "):
            kind(**{name: value})
    with pytest.raises(BadInput, match="smoothing_mm is -1"):
        fit(tmp_path, source, make("zscore", {"smoothing_mm": -1}), quiet, name="x")
    with pytest.raises(BadInput, match="lr is nan"):
        pretrain(tmp_path, source, SimclrSettings(lr=math.nan), quiet)
    with pytest.raises(BadInput, match="quantile is 1"):
        check_rule(1, None, 2)
    with pytest.raises(BadInput, match="workers is 0"):
        check_rule(0.99, None, 0)
    assert not list(tmp_path.iterdir())


def test_a_range_says_in_words_what_it_holds() -> None:
    assert RANGES["coreset_ratio"].text() == "above 0, at most 1"
    assert RANGES["quantile"].text() == "above 0, below 1"
    assert RANGES["spacing_mm"].text() == "0.5 and above, at most 8 mm"
    assert RANGES["neighbourhood"].text() == "1 and above, at most 31 cells, odd"
    assert RANGES["median_voxels"].text() == "0 and above, at most 31 voxels, odd or 0 for none"
    assert [n for n in range(8) if RANGES["median_voxels"].holds(n)] == [0, 1, 3, 5, 7]

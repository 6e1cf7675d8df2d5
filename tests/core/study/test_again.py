"""The command that makes a stored thing again is parsed by the command line back to the recipe that was stored."""

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import tyro
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import cli
from core.detectors import CATALOGUE, recipe_json
from core.detectors.feature_gaussian import FeatureGaussian
from core.detectors.patchcore import PatchCore
from core.detectors.voxel_zscore import VoxelZScore
from core.diagnosis.limits.bench import LimitSettings
from core.features.settings import FeatureSettings
from core.memory_bank.settings import BankSettings, Subset
from core.memory_plan import GaussianSettings
from core.presentation.commands import in_shell
from core.pretraining.checkpoints import Optimisation
from core.pretraining.simclr import NegativesSettings, SimclrSettings
from core.pretraining.simclr_settings import Kind
from core.pretraining.view_settings import VIEW_SETS, ViewSettings
from core.pretraining.visibility.settings import VisibilitySettings
from core.recipes import as_json
from core.runs.run_record import Run
from core.runs.store import create_run
from core.study.again import (
    Place,
    argv_of,
    comparison_argv,
    detector_words,
    limits_argv,
    post_processing_argv,
    rule_words,
    visibility_argv,
    what_if_argv,
)
from core.study.pretraining_comparison import VARIANTS, ComparisonPlan
from data.errors import BadInput
from data.prepared import Preprocessing
from data.ranges import RANGES, SEED_MOST
from models.settings import Architecture, EncoderSettings
from verbs.fit import detector_of

HYPOTHESIS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
HERE = Place("scans/cohort.csv", "table", "split.json", "elsewhere")
SEEDS = st.integers(0, SEED_MOST)
NAMES = st.one_of(
    st.sampled_from(["-x", "--json", "two\nlines", 'it\'s "q" $HOME `ls` *', "a=b", " ", "ü/脳", "--name=y"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30),
)


def number(name: str) -> st.SearchStrategy[float]:
    """Every float that the table allows for a setting."""
    allowed = RANGES[name]
    return st.floats(allowed.least, allowed.most).filter(allowed.holds)


def whole(name: str) -> st.SearchStrategy[int]:
    """Every whole number that the table allows for a setting."""
    allowed = RANGES[name]
    return st.integers(int(allowed.least), int(allowed.most)).filter(allowed.holds)


def built(made: Callable[..., Any], **fields: Any) -> st.SearchStrategy[Any]:
    """The dataclass with such fields, as far as it accepts their combination."""

    def build(values: dict[str, Any]) -> Any:
        try:
            return made(**values)
        except BadInput:
            assume(False)

    return st.fixed_dictionaries(fields).map(build)


LAYERS = st.lists(st.sampled_from(["input", "stage0", "stage1", "layer2"]), min_size=1, max_size=4, unique=True)
ENCODERS = built(
    EncoderSettings, architecture=st.sampled_from(get_args(Architecture)), width=whole("width"),
    strides=st.lists(whole("strides"), min_size=5, max_size=5).map(tuple), stem_stride=whole("stem_stride"),
    max_pool=st.booleans(), seed=SEEDS,
)  # fmt: skip
FEATURES = built(
    FeatureSettings, layers=LAYERS.map(tuple), grid=st.sampled_from(["4mm", "2.5", "stage1"]),
    reduction=st.sampled_from(["none", "draw", "pca"]), max_channels=whole("max_channels"), seed=SEEDS,
    neighbourhood=st.sampled_from([1, 3, 5]),
)  # fmt: skip
GAUSSIANS = built(
    GaussianSettings, form=st.sampled_from(["auto", "dual", "primal"]),
    covariance=st.sampled_from(["full", "diagonal", "shared"]),
    shrinkage=st.sampled_from(["ridge", "ledoit_wolf", "oas"]), ridge=number("ridge"),
    accumulate=st.sampled_from(["float64", "float32"]),
)  # fmt: skip
BANKS = built(
    BankSettings, subset=st.sampled_from(get_args(Subset)), coreset_ratio=number("coreset_ratio"), pool=whole("pool"),
    projection=whole("projection"), scaling=st.sampled_from(["layer", "none"]),
    position=st.sampled_from(["anywhere", "weighted", "restricted"]), position_weight=number("position_weight"),
    radius_mm=number("radius_mm"), search=st.sampled_from(["exact", "ivf", "hnsw"]), nprobe=whole("nprobe"),
    candidates=whole("candidates"), neighbours=whole("neighbours"), precision=st.sampled_from(["float32", "float16"]),
    seed=SEEDS,
)  # fmt: skip
MAPS = {"smoothing_mm": number("smoothing_mm"), "median_voxels": st.sampled_from([0, 1, 3, 31])}
CONTRASTS = st.lists(st.sampled_from(["T1", "T2", "FLAIR", "PD w"]), min_size=1, unique=True).map(tuple)
PREPARATIONS = built(
    Preprocessing, contrasts=CONTRASTS, registration=st.sampled_from(["affine", "centroid", "none"]),
    spacing_mm=number("spacing_mm"), intensity=st.sampled_from(["minmax", "percentile", "histogram"]),
    resample_masks=st.booleans(),
)  # fmt: skip


def own_settings(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Settings of an entry of the catalogue, each left as it is or changed."""
    entry = CATALOGUE[name].recipe
    fields: dict[str, Any] = dict(MAPS)
    if isinstance(entry, VoxelZScore):
        fields |= {"prior_smoothing_mm": number("prior_smoothing_mm"), "floor": number("floor")}
    elif isinstance(entry, FeatureGaussian | PatchCore):
        fields |= {"encoder": ENCODERS, "features": FEATURES, "memory_gb": number("memory_gb")}
        fields |= {"bank": BANKS} if isinstance(entry, PatchCore) else {"gaussian": GAUSSIANS}
    else:
        fields |= {"contrast": whole("contrast")}
    return st.fixed_dictionaries({}, optional=fields)


def a_run(directory: Path, recipe: dict[str, Any], name: str = "mine", **fields: Any) -> Run:
    """A record as `create_run` writes it, without a disk."""
    record = {"run_id": directory.name, "name": name, "recipe": recipe, "parents": {}, **fields}
    record.setdefault("preprocessing", as_json(Preprocessing()))
    return Run(directory, record)


def parsed(argv: list[str]) -> Any:
    """The verb's arguments, as `main` gets them from a shell."""
    typed = shlex.split(in_shell(argv))
    assert typed == ["python", "cli.py", *argv]
    return tyro.cli(cli.kind_of(argv[0], argv[1:]), args=argv[1:])


@pytest.mark.parametrize("entry", list(CATALOGUE))
@HYPOTHESIS
@given(data=st.data())
def test_fit_gets_every_detector_back_with_any_settings(entry: str, data: st.DataObject, tmp_path: Path) -> None:
    preparation = data.draw(PREPARATIONS)
    detector = dataclasses.replace(CATALOGUE[entry].recipe, **data.draw(own_settings(entry)))
    encoder = ""
    if isinstance(detector, FeatureGaussian | PatchCore):
        channels = dataclasses.replace(detector.encoder, in_channels=len(preparation.contrasts))
        detector = dataclasses.replace(detector, encoder=channels)
        if data.draw(st.booleans()):
            encoder = str(tmp_path / "weights.safetensors")
            Path(encoder).touch()
            detector = dataclasses.replace(detector, weights=encoder)
    name = data.draw(NAMES)
    recipe = recipe_json(detector)
    argv = argv_of(a_run(tmp_path / "again", recipe, name, preprocessing=as_json(preparation)), HERE)
    arguments = parsed(argv)
    made, encoder_run = detector_of(arguments)
    assert recipe_json(made) == recipe
    assert encoder_run is None
    assert arguments.preprocessing == preparation
    assert (arguments.name, arguments.run_id) == (name, "again")
    assert (arguments.cohort, arguments.layout) == (Path("scans/cohort.csv"), "table")
    assert (arguments.split, arguments.runs) == (Path("split.json"), Path("elsewhere"))


@pytest.mark.parametrize("entry", ["gaussian", "padim", "patchcore-position"])
def test_fit_names_the_run_that_its_encoder_is_from(entry: str, tmp_path: Path) -> None:
    create_run(tmp_path, kind="encoder", name="e", recipe={"kind": "SimCLR"}, run_id="enc-1")
    recipe = recipe_json(CATALOGUE[entry].recipe)
    run = a_run(tmp_path / "again", recipe | {"weights": "enc-1/encoder"}, parents={"encoder": "enc-1"})
    made, encoder_run = detector_of(parsed(argv_of(run, dataclasses.replace(HERE, runs=str(tmp_path)))))
    assert encoder_run is not None
    assert encoder_run.run_id == "enc-1"
    assert recipe_json(made) == recipe


def test_a_recipe_that_fit_cannot_be_asked_for_is_refused_in_words() -> None:
    recipe = recipe_json(CATALOGUE["intensity-bright"].recipe) | {"polarity": "sideways"}
    with pytest.raises(BadInput, match="Intensity"):
        detector_words(recipe)


VIEWS = built(
    ViewSettings, geometric=number("geometric"), photometric=number("photometric"), tone=number("tone"),
    crop_voxels=st.none() | st.tuples(*[whole("crop_voxels")] * 3), first_view_clean=st.booleans(),
)  # fmt: skip
PAIRS = {name: st.tuples(number(name), number(name)) for name in ("blob_strength", "blob_mm")}
SHARES = {
    name: number(name) for name in ("slot_momentum", "key_momentum", "positive_prior", "class_weight", "apart_mm")
}
NEGATIVES = built(
    NegativesSettings, kind=st.sampled_from(get_args(Kind)), bank_size=whole("bank_size"), hardest=whole("hardest"),
    shifts=whole("shifts"), layer=st.sampled_from(["stage1", "stage3"]), positions=whole("positions"),
    other_subjects=st.sampled_from(["anywhere", "apart"]), **PAIRS, **SHARES,
)  # fmt: skip
BUDGET = {
    name: whole(name) if isinstance(getattr(SimclrSettings, name), int) else number(name)
    for name in (f.name for f in dataclasses.fields(Optimisation))
    if name not in ("schedule", "precision")
}
TRAININGS = built(
    SimclrSettings, encoder=ENCODERS, views=VIEWS, negatives=NEGATIVES, temperature=number("temperature"),
    batch=whole("batch"), schedule=st.sampled_from(["cosine", "constant"]), memory_gb=number("memory_gb"), seed=SEEDS,
    precision=st.sampled_from(["auto", "float32", "bfloat16"]), **BUDGET,
)  # fmt: skip


@HYPOTHESIS
@given(training=TRAININGS, preparation=PREPARATIONS, name=NAMES)
def test_pretrain_gets_every_kind_of_training_back(
    training: SimclrSettings, preparation: Preprocessing, name: str, tmp_path: Path
) -> None:
    recipe = {"kind": "SimCLR", **as_json(training)}
    arguments = parsed(argv_of(a_run(tmp_path / "e", recipe, name, preprocessing=as_json(preparation)), HERE))
    assert arguments.simclr == training
    assert arguments.preprocessing == preparation
    assert (arguments.name, arguments.run_id, arguments.split) == (name, "e", Path("split.json"))


RULES = st.one_of(
    st.fixed_dictionaries({"quantile": number("quantile"), "fp_ml_per_scan": st.none()}),
    st.fixed_dictionaries({"quantile": number("quantile"), "fp_ml_per_scan": number("fp_ml")}),
)


@HYPOTHESIS
@given(
    rule=RULES, cut=st.sampled_from(["healthy", "validation"]), first=LAYERS | st.just([]), second=LAYERS | st.just([])
)
def test_gate_gets_cut_layers_and_rule_back(
    rule: dict[str, Any], cut: str, first: list[str], second: list[str], tmp_path: Path
) -> None:
    recipe = {"kind": "Gated", "threshold_from": cut, "gate_layers": first, "second_layers": second}
    run = a_run(tmp_path / "g", recipe, "-odd\nname", parents={"gate": "one", "second": "two"})
    arguments = parsed(argv_of(run, HERE, metrics=rule))
    assert (arguments.gate, arguments.second, arguments.cut) == ("one", "two", cut)
    assert (arguments.layers, arguments.second_layers) == ("+".join(first), "+".join(second))
    assert (arguments.name, arguments.run_id, arguments.runs) == ("-odd\nname", "g", Path("elsewhere"))
    assert arguments.fp_ml == rule["fp_ml_per_scan"]
    assert arguments.fp_ml is not None or arguments.quantile == rule["quantile"]


@HYPOTHESIS
@given(rule=RULES)
def test_evaluate_gets_its_rule_back_to_the_last_bit(rule: dict[str, Any]) -> None:
    arguments = parsed(["evaluate", "mine", *rule_words(rule)])
    assert arguments.fp_ml == rule["fp_ml_per_scan"]
    assert arguments.fp_ml is not None or arguments.quantile == rule["quantile"]


def lists(name: str) -> st.SearchStrategy[tuple[float, ...]]:
    return st.lists(number(name), min_size=1, max_size=5).map(tuple)


LIMITS = built(
    LimitSettings, diameters_mm=lists("diameters_mm"), contrasts_sd=lists("contrasts_sd"),
    sites=st.lists(st.sampled_from(["grey", "white", "deep", "brain"]), min_size=1, unique=True).map(tuple),
    per_cell=whole("per_cell"), fp_ml_per_scan=lists("fp_ml_per_scan"), seed=SEEDS,
)  # fmt: skip


@HYPOTHESIS
@given(limits=LIMITS, scans=st.none() | st.lists(st.sampled_from(["sub 1", "ü", "3"]), min_size=1, unique=True))
def test_detection_limits_get_every_setting_back(limits: LimitSettings, scans: list[str] | None) -> None:
    arguments = parsed(limits_argv("mine", "a+b", {"settings": as_json(limits), "scans_asked": scans}))
    for field in ("diameters_mm", "contrasts_sd", "sites", "per_cell", "fp_ml_per_scan", "seed"):
        assert getattr(arguments, field) == getattr(limits, field)
    assert (arguments.run, arguments.layers, arguments.scans) == ("mine", "a+b", tuple(scans or ()))


VISIBILITIES = built(
    VisibilitySettings, scans=whole("scans"), window_voxels=whole("window_voxels"), draws=whole("draws"),
    whole_views=whole("whole_views"), diameters_mm=lists("diameters_mm"), contrasts=lists("contrasts"),
    places=whole("places"), seed=SEEDS,
)  # fmt: skip


@HYPOTHESIS
@given(visibility=VISIBILITIES)
def test_visibility_gets_every_setting_back(visibility: VisibilitySettings) -> None:
    arguments = parsed(visibility_argv("mine", {"settings": as_json(visibility)}))
    assert all(getattr(arguments, f.name) == getattr(visibility, f.name) for f in dataclasses.fields(visibility))


PLANS = built(
    ComparisonPlan, name=st.sampled_from(["a", "b-1"]),
    variants=st.lists(st.sampled_from(VARIANTS), min_size=1).map(tuple),
    views=st.lists(st.sampled_from(list(VIEW_SETS)), min_size=1).map(tuple),
    also=st.lists(st.sampled_from(["moco/none", "in-batch/both"])).map(tuple),
    seeds=st.lists(SEEDS, min_size=1).map(tuple), simclr=TRAININGS, features=FEATURES, memory_gb=number("memory_gb"),
)  # fmt: skip


@HYPOTHESIS
@given(plan=PLANS, preparation=PREPARATIONS)
def test_a_comparison_gets_its_plan_back(plan: ComparisonPlan, preparation: Preprocessing) -> None:
    from verbs.pretraining import plan_of

    found = {"plan": as_json(plan), "source": {"preprocessing": as_json(preparation)}}
    arguments = parsed(comparison_argv(found, HERE))
    assert plan_of(arguments) == plan
    assert (arguments.preprocessing, arguments.split) == (preparation, Path("split.json"))


def test_what_ifs_and_post_processing_keep_layers_and_protocol() -> None:
    arguments = parsed(what_if_argv("mine", "erode-mask", "a+b", "validation"))
    assert (arguments.run, arguments.names, arguments.layers) == ("mine", ("erode-mask",), "a+b")
    assert arguments.protocol == "validation"
    assert parsed(post_processing_argv("mine", "a+b")).layers == "a+b"


def test_a_cohort_that_begins_with_a_dash_is_still_a_path() -> None:
    place = Place("-scans/c.csv", split="-s.json", runs="-runs")
    run = a_run(Path("r"), recipe_json(CATALOGUE["zscore"].recipe))
    arguments = parsed(argv_of(run, place))
    assert (arguments.cohort, arguments.split) == (Path("-scans/c.csv"), Path("-s.json"))
    assert arguments.runs == Path("-runs")

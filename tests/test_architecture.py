"""The folder names are the architecture: imports point one way, and nothing dangerous is used anywhere."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("data", "models", "core", "pages", "verbs", "app", "asgi", "cli", "tests", "benchmarks")
MAY_IMPORT = {
    "data": {"data"},
    "models": {"models"},
    "core": {"data", "models", "core"},
    "pages": {"data", "core", "pages"},
    "app": {"pages", "core", "data"},
    "asgi": {"pages", "core", "data"},
    "verbs": {"core", "data", "verbs"},
    "cli": {"core", "data", "verbs"},
}
NEVER = {
    "data": {"streamlit", "torch", "plotly", "faiss"},
    "models": {"streamlit", "plotly", "nibabel", "faiss", "numpy"},
    "core": {"streamlit"},
    "pages": {"torch", "nibabel", "faiss", "scipy", "sklearn", "ants", "nilearn", "monai", "safetensors"},
    "app": {"torch", "nibabel", "faiss", "scipy", "sklearn", "ants"},
    "asgi": {"torch", "nibabel", "faiss", "scipy", "sklearn", "ants"},
    "verbs": {"streamlit", "plotly"},
    "cli": {"streamlit", "plotly"},
}
ORDER: list[str] = """
types fields door distributed randomness memory_plan shrinkage recipes progress provenance journal lock record_shape
remembered store sharing versions evaluated summary
bootstrap curves calibration decision lesions metrics distributions verdict_advice verdict
view_settings views contrastive disk_plan training simclr_settings
simclr.settings simclr.scans simclr.parts simclr.banks simclr.whole simclr.ccd simclr.blobs simclr.dense
simclr.atlas simclr
gaussian_dual gaussian_primal gaussian_files gaussian_conditional gaussian_block gaussian
feature_settings features scoring
memory_bank.settings memory_bank.coreset memory_bank.walk memory_bank.search memory_bank.restricted
memory_bank.registered memory_bank.pool
memory_bank.plan memory_bank.files memory_bank.index memory_bank.bank memory_bank
detectors.intensity detectors.voxel_zscore detectors.feature_gaussian detectors.patchcore detectors.gated detectors
again
doubts experiment content run_scores subject_level
diagnosis diagnosis.cases diagnosis.reference diagnosis.shapley diagnosis.categories diagnosis.error_map
visibility visibility.settings visibility.changes visibility.measure visibility.intensity visibility.trained
visibility.words visibility.runs
packed evaluation gating export
two_level pooled_counts pretraining_table pretraining_comparison
diagnosis.placement diagnosis.ceiling diagnosis.lesion_table diagnosis.ladder diagnosis.likelihood
diagnosis.variants diagnosis.paired diagnosis.bench diagnosis.whatif_maps diagnosis.whatif_scans diagnosis.whatif_fits
diagnosis.whatif diagnosis.postprocessing diagnosis.applied
diagnosis.planted_lesions diagnosis.limit_tables diagnosis.detection_limits
diagnosis.verdict diagnosis.causes diagnosis.subject_facts diagnosis.strata
diagnosis.diagnose diagnosis_view
demo jobs training_view commands cohort_view thumbnails patch_pictures neighbours neighbour_words
report_parts report_parts.markup report_parts.style report_parts.words report_parts.source report_parts.charts
report_parts.pictures report_parts.commands report_parts.about report_parts.results report_parts.limits
report_parts.explained report_parts.cases report
figures figures_diagnosis figures_limits figures_comparison figures_visibility figures_training
""".split()  # noqa: SIM905
"""Each module of core imports only modules that stand before it here. A new module gets its place in this list."""


def sources(*folders: str) -> list[str]:
    paths = [ROOT / f"{name}.py" for name in ("app", "asgi", "cli") if name in folders]
    for folder in folders:
        paths += sorted((ROOT / folder).rglob("*.py"))
    return [path.relative_to(ROOT).as_posix() for path in paths]


def imports(file: str) -> set[str]:
    """Full dotted names: `from core import store` gives core.store, `from core.store import lock` core.store.lock."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def core_modules(file: str) -> set[str]:
    """Names in ORDER of the core modules that a file imports."""
    found = set()
    for name in imports(file):
        if name.startswith("core."):
            inner = name.removeprefix("core.")
            while inner not in ORDER and "." in inner:
                inner = inner.rsplit(".", 1)[0]
            found.add(inner)
    return found


def module_of(file: str) -> str:
    return file.removeprefix("core/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


ALL = sources("data", "models", "core", "pages", "verbs", "app", "asgi", "cli")


@pytest.mark.parametrize("file", ALL)
def test_imports_point_one_way(file: str) -> None:
    package = file.split("/")[0].removesuffix(".py")
    tops = {name.split(".")[0] for name in imports(file)}
    assert not (tops & set(OURS)) - MAY_IMPORT[package]
    assert not tops & NEVER[package]
    if not file.startswith("core/figures"):
        assert "plotly" not in tops


@pytest.mark.parametrize("file", [f for f in sources("core") if f != "core/__init__.py"])
def test_a_core_module_imports_only_what_stands_before_it(file: str) -> None:
    module = module_of(file)
    assert module in ORDER, f"core/{module} has no place in ORDER"
    later = set(ORDER[ORDER.index(module) :])
    assert not core_modules(file) & later
    assert core_modules(file) <= set(ORDER)


def test_the_order_names_only_modules_that_exist() -> None:
    there = {module_of(f) for f in sources("core")}
    assert set(ORDER) <= there
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("file", [f for f in sources("core/detectors") if not f.endswith("__init__.py")])
def test_detectors_never_import_one_another(file: str) -> None:
    assert not {m for m in core_modules(file) if m.startswith("detectors")}


@pytest.mark.parametrize("file", [*ALL, *sources("benchmarks")])
def test_nothing_is_unpickled_and_no_html_is_trusted(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert not {name.split(".")[0] for name in imports(file)} & {"pickle", "cPickle", "dill", "joblib", "shelve"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {k.arg: k.value for k in node.keywords}
        assert called != "torch.save", f"line {node.lineno}"
        if called == "torch.load":  # other people's checkpoints: tensors and plain containers, nothing that runs
            plain = keywords.get("weights_only")
            assert isinstance(plain, ast.Constant), f"line {node.lineno} does not say weights_only=True"
            assert plain.value is True
            assert file == "models/foreign.py"
        if called in ("np.load", "numpy.load"):
            allowed = keywords.get("allow_pickle")
            assert isinstance(allowed, ast.Constant), f"line {node.lineno} does not say allow_pickle=False"
            assert allowed.value is False
        assert "unsafe_allow_html" not in keywords, f"line {node.lineno}"


def test_the_law_sees_a_forbidden_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "types.py").write_text("def f():\n    import streamlit\n    from core import store\n")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    with pytest.raises(AssertionError):
        test_imports_point_one_way("core/types.py")
    with pytest.raises(AssertionError):
        test_a_core_module_imports_only_what_stands_before_it("core/types.py")

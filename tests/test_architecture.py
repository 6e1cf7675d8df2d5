"""The folder names are the architecture: imports point one way, and nothing dangerous is used anywhere."""

import ast
from pathlib import Path

import pytest

from core.detectors import kinds

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
ROOMS = {
    "": "words that everybody uses",
    "runs": "directories, locks, jobs",
    "features": "encoder taps to maps",
    "metrics": "judging maps",
    "gaussian": "the Gaussian",
    "memory_bank": "the bank",
    "pretraining": "learning an encoder",
    "detectors": "recipes",
    "study": "use-cases on runs",
    "diagnosis": "why Dice is low",
    "presentation": "what screens and reports say",
}
"""The rooms of core, from the ground up: each imports only from rooms that stand before it here, and from itself."""
LARGEST = 15 * 1024
"""Bytes of a file of core: one idea each."""


def sources(*folders: str) -> list[str]:
    paths = [ROOT / f"{name}.py" for name in ("app", "asgi", "cli") if name in folders]
    for folder in folders:
        paths += sorted((ROOT / folder).rglob("*.py"))
    return [path.relative_to(ROOT).as_posix() for path in paths]


def imports(file: str) -> set[str]:
    """Full dotted names: `from core.runs import store` gives core.runs.store, as `from core.runs.store import lock`
    gives core.runs.store.lock."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module_of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def modules_of_core() -> dict[str, str]:
    """Dotted name of every module of core and its file."""
    return {module_of(file): file for file in sources("core")}


def imported_modules(file: str) -> set[str]:
    """The modules of core that a file imports, without the packages on the way."""
    known, found = modules_of_core(), set()
    for name in imports(file):
        while name.startswith("core.") and name not in known:
            name = name.rpartition(".")[0]
        if name.startswith("core."):
            found.add(name)
    return found - {module_of(file)}


def room_of(module: str) -> str:
    """The room of a module of core; "" for what lies at its root."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or (ROOT / "core" / parts[1]).is_dir() else ""


ALL = sources("data", "models", "core", "pages", "verbs", "app", "asgi", "cli")


@pytest.mark.parametrize("file", ALL)
def test_imports_point_one_way(file: str) -> None:
    package = file.split("/")[0].removesuffix(".py")
    tops = {name.split(".")[0] for name in imports(file)}
    assert not (tops & set(OURS)) - MAY_IMPORT[package]
    assert not tops & NEVER[package]
    if not file.startswith("core/presentation/figures"):
        assert "plotly" not in tops


@pytest.mark.parametrize("file", [f for f in sources("core") if f != "core/__init__.py"])
def test_rooms_import_only_rooms_that_stand_before_them(file: str) -> None:
    order = list(ROOMS)
    own = room_of(module_of(file))
    assert own in ROOMS, f"core/{own} is no room: give it a place in ROOMS"
    later = {name for name in imported_modules(file) if order.index(room_of(name)) > order.index(own)}
    assert not later, f"{file} imports from a room above its own: {', '.join(sorted(later))}"


def test_rooms_are_packages_that_say_what_they_are_for() -> None:
    there = {path.parent.name for path in (ROOT / "core").glob("*/__init__.py")}
    assert there == set(ROOMS) - {""}
    for path in (ROOT / "core").rglob("__init__.py"):
        assert path.parent.name == "core" or ast.get_docstring(ast.parse(path.read_text())), f"{path} says nothing"


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle of imports, if there is any."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            found = walk(other, [*way, name])
            if found:
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := walk(name, []))), [])


def test_imports_within_core_go_in_no_circle() -> None:
    graph = {name: imported_modules(file) for name, file in modules_of_core().items()}
    assert circle(graph) == []


def test_a_circle_is_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("file", sources("core"))
def test_a_file_of_core_holds_one_idea(file: str) -> None:
    size = (ROOT / file).stat().st_size
    assert size <= LARGEST, f"{file} has {size} bytes: part it"


@pytest.mark.parametrize("file", sources("core", "data", "models", "verbs"))
def test_what_one_module_takes_from_another_is_public(file: str) -> None:
    taken = {name for name in imports(file) if name.split(".")[0] in OURS and name.rpartition(".")[2].startswith("_")}
    assert not taken, f"{file} takes what is private elsewhere: {', '.join(sorted(taken))}"


@pytest.mark.parametrize("file", [f for f in sources("core/detectors") if not f.endswith("__init__.py")])
def test_detectors_never_import_one_another(file: str) -> None:
    shared = {"core.detectors.capabilities"}
    assert not {name for name in imported_modules(file) if name.startswith("core.detectors")} - shared


@pytest.mark.parametrize("file", [f for f in ALL if not f.startswith("core/detectors/")])
def test_nobody_asks_for_the_class_of_a_detector(file: str) -> None:
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            named = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
            assert not named & set(kinds()), f"{file}:{node.lineno}: ask for a capability: can(detector, LayerSets)"
        if isinstance(node, ast.Compare):
            said = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            assert not {word for word in said if isinstance(word, str)} & set(kinds()), f"{file}:{node.lineno}"


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
    for room in ("runs", "study"):
        (tmp_path / "core" / room).mkdir(parents=True)
        (tmp_path / "core" / room / "__init__.py").write_text("")
    (tmp_path / "core" / "__init__.py").write_text("")
    (tmp_path / "core" / "types.py").write_text("def f():\n    import streamlit\n    from core.runs import store\n")
    (tmp_path / "core" / "runs" / "store.py").write_text("from core.study.fitting import fit\n")
    (tmp_path / "core" / "study" / "fitting.py").write_text("from core.runs import store\n")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    with pytest.raises(AssertionError):
        test_imports_point_one_way("core/types.py")
    for file in ("core/types.py", "core/runs/store.py"):
        with pytest.raises(AssertionError, match="from a room above its own"):
            test_rooms_import_only_rooms_that_stand_before_them(file)
    test_rooms_import_only_rooms_that_stand_before_them("core/study/fitting.py")
    with pytest.raises(AssertionError):
        test_imports_within_core_go_in_no_circle()

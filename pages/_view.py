"""What the slice viewer needs to know of a subject: addresses of its volumes, thresholds, and where to stand."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import streamlit as st

from core.diagnosis.errors.category_table import CATEGORIES, CODES, HIT
from core.metrics.protocols import judged
from core.presentation.browser_volumes import DEPLOYED, volume_content
from core.runs.evaluated import read_levels
from core.runs.run_record import Run
from core.study.stored_scores import RunScores, set_id
from data.errors import BadInput
from data.names import folder_name
from pages._door import base_path
from pages._shared import in_words

PROTOCOLS = (("healthy", "healthy", False), ("validation", "validation", False), ("oracle_set", "oracle", True))
PLANES = ("axial", "coronal", "sagittal")


def subject_order(scores: RunScores, metrics: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Test subjects with the lowest Dice first, then healthy test scans, then validation; and their labels."""
    figures = metrics["sets"][metrics["headline"]]["native"]
    told = judged(figures)
    rows = {row["subject_id"]: row for row in told["subjects"]}
    alarms = told["false_positive_ml_by_healthy_scan"]
    ill = sorted(rows, key=lambda i: rows[i]["dice"])
    healthy = sorted(alarms, key=lambda i: -alarms[i])
    labels = {i: f"{i} · Dice {rows[i]['dice']:.2f} · {rows[i]['lesion_ml']:.1f} mL" for i in ill}
    labels |= {i: f"{i} · healthy · FP {alarms[i]:.1f} mL" for i in healthy}
    validation = scores.subjects("validation")
    labels |= {i: f"{i} · validation" for i in validation}
    return [*ill, *healthy, *validation], labels


def opening_subject(metrics: Mapping[str, Any]) -> str | None:
    """Who to open with: of the half of the test subjects with the lowest Dice, the one with the median lesion volume.

    The very worst is mostly a lesion of a few voxels, which no threshold finds and which teaches little. Healthy
    subjects have no Dice; None when there is no other.
    """
    figures = metrics["sets"][metrics["headline"]]["native"]
    told = judged(figures)["subjects"]
    rows = sorted(told, key=lambda row: (row["dice"], row["subject_id"]))
    low = sorted(rows[: (len(rows) + 1) // 2], key=lambda row: (row["lesion_ml"], row["subject_id"]))
    return str(low[len(low) // 2]["subject_id"]) if low else None


@in_words()
def view_data(
    run: Run,
    scores: RunScores,
    metrics: Mapping[str, Any],
    subject_id: str,
    set_names: Sequence[str],
) -> dict[str, Any]:
    """The viewer's JSON: volumes by address, maps with levels and thresholds, and the view of the address bar."""
    prepared = scores.prepared(subject_id)
    grid = prepared.volume.grid
    levels = read_levels(run)

    def address(name: str) -> str:
        content = volume_content(scores, subject_id, name)
        place = f"{quote(run.run_id)}/{quote(folder_name(subject_id))}/{quote(name)}/{content}"
        return f"{base_path()}/api/volume/{place}"

    lesion_voxels = 0 if prepared.lesion is None else int(prepared.lesion.voxels.sum())
    reachable = 0 if prepared.lesion is None else int((prepared.lesion.voxels & prepared.volume.brain_mask).sum())
    return {
        "dims": list(grid.shape),
        "spacing_mm": list(grid.spacing_mm),
        "affine": grid.affine.tolist(),
        "subject_id": subject_id,
        "image_url": address("image-0"),
        "brain_url": address("brain"),
        "lesion_url": None if prepared.lesion is None else address("lesion"),
        "maps": [_map(name, address, levels, metrics, scores.unit) for name in set_names],
        "layers": [_layer(layer, address, levels) for layer in scores.layers] if len(scores.layers) > 1 else [],
        "lesion_unreachable": lesion_voxels - reachable,
        "reported": {name: _reported(metrics["sets"][name]["working"], subject_id) for name in set_names},
        "categories": _categories(set_names[0], address, metrics) if len(set_names) == 1 else None,
        "state": state_from_address(grid.shape),
    }


def state_from_address(shape: tuple[int, int, int]) -> dict[str, Any]:
    """Cross-hair and threshold of a shared link; what is missing or wrong there is left to the viewer."""
    state: dict[str, Any] = {}
    for axis, size in zip("xyz", shape, strict=True):
        value = _number(st.query_params.get(axis))
        if value is not None and 0 <= value < size:
            state[axis] = int(value)
    threshold = st.query_params.get("threshold")
    value = _number(threshold)
    if value is not None:
        state["threshold"] = value
    elif threshold in {key for key, _, _ in PROTOCOLS}:
        state["threshold"] = threshold
    if st.query_params.get("convention") in ("radiological", "neurological"):
        state["convention"] = st.query_params["convention"]
    if st.query_params.get("plane") in PLANES:
        state["plane"] = st.query_params["plane"]
    if st.query_params.get("categories") == "1":
        state["categories"] = True
        if st.query_params.get("category") in {"hit", *CODES}:
            state["category"] = st.query_params["category"]
    return state


def remember(view: Mapping[str, Any] | None) -> None:
    """Put the viewer's state into the address, so that a finding is a link.

    All of it at once and only when it differs: each update is a step of the browser's Back.
    """
    if not view:
        return
    wanted = {key: str(view[key]) for key in ("x", "y", "z", "convention", "plane") if view.get(key) is not None}
    for key, value in (("categories", "1" if view.get("categories") else None), ("category", view.get("category"))):
        if value:
            wanted[key] = value
        elif key in st.query_params:
            del st.query_params[key]
    threshold = view.get("threshold")
    if threshold is not None:
        wanted["threshold"] = threshold if isinstance(threshold, str) else f"{threshold:.6g}"
    if any(st.query_params.get(key) != value for key, value in wanted.items()):
        st.query_params.update(wanted)


def _map(
    name: str, address: Any, levels: Mapping[str, list[float]], metrics: Mapping[str, Any], unit: str
) -> dict[str, Any]:
    if name not in levels:
        raise BadInput(f"Layer set {name!r} was not evaluated. Evaluate the run again.")
    protocols = metrics["sets"][name]["working"]["protocols"]
    return {
        "id": name,
        "label": name.replace("+", " + "),
        "url": address(f"score-{name}"),
        "levels": levels[name],
        "unit": unit,
        "thresholds": [
            {
                "id": key,
                "label": label,
                "value": protocols[key]["threshold"],
                "rule": protocols[key]["rule"],
                "oracle": oracle,
            }
            for key, label, oracle in PROTOCOLS
            if key in protocols
        ],
    }


def _categories(name: str, address: Any, metrics: Mapping[str, Any]) -> dict[str, Any]:
    # Hits are a category too: where the map is right.
    protocols = metrics["sets"][name]["working"]["protocols"]
    labels = {key: label for key, label, _ in PROTOCOLS}
    hits = {"id": "hit", "code": HIT, "kind": "tp", "title": "Found lesion", "definition": "", "advice": ""}
    return {
        "volumes": [
            {"protocol": key, "label": labels[key], "value": protocols[key]["threshold"],
             "url": address(f"categories-{name}-{key}")}
            for key in DEPLOYED
            if protocols.get(key, {}).get("threshold") is not None
        ],
        "list": [
            *(
                {"id": c.id, "code": CODES[c.id], "kind": c.kind, "title": c.title, "definition": c.definition,
                 "advice": c.advice}
                for c in CATEGORIES
            ),
            hits,
        ],
    }  # fmt: skip


def _layer(layer: str, address: Any, levels: Mapping[str, list[float]]) -> dict[str, Any]:
    name = set_id((layer,))
    return {"id": name, "label": layer, "url": address(f"score-{name}"), "levels": levels[name]}


def _reported(figures: Mapping[str, Any], subject_id: str) -> dict[str, Any]:
    found = {}
    for key, _, _ in PROTOCOLS:
        for row in figures["protocols"].get(key, {}).get("subjects", []):
            if row["subject_id"] == subject_id:
                found[key] = {"dice": row["dice"], "text": f"In the evaluation: {row['dice']:.3f}"}
    return found


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None

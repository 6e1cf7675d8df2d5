"""Look at one subject in three planes under a score map, a threshold and the true lesion."""

import streamlit as st

from core.detectors.capabilities import KeepsPatches, can
from core.diagnosis.neighbour_questions import start_voxel
from core.metrics.protocols import first_protocol
from core.study.stored_scores import set_id
from pages._neighbours import show_neighbours
from pages._shared import (
    PROTOCOL_LABELS,
    metrics_or_stop,
    pick_layers,
    pick_run,
    pick_subject,
    protocol_label,
    protocol_text,
    scores_of,
)
from pages._text import plain
from pages._view import opening_subject, remember, subject_order, view_data
from pages._viewer import viewer

st.title("Slices")
run = pick_run()
metrics = metrics_or_stop(run)
scores = scores_of(run)
order, labels = subject_order(scores, metrics)
subject_id = pick_subject(run, order, labels, opening_subject(metrics))
layers = pick_layers(scores, metrics["headline"])
name = set_id(layers)

data = view_data(run, scores, metrics, subject_id, [name])
banked = can(scores.detector, KeepsPatches)
if banked:  # what stands below needs a place before the first click
    data["state"] = dict(zip("xyz", start_voxel(scores.prepared(subject_id)), strict=True)) | data["state"]
view = viewer(data, key="slices")
remember(view)

figures = metrics["sets"][name]["working"]
rows = {
    protocol: row
    for protocol in PROTOCOL_LABELS
    for row in figures["protocols"].get(protocol, {}).get("subjects", [])
    if row["subject_id"] == subject_id
}
if rows:
    numbers = [
        f"{plain(protocol_label(protocol, figures['protocols'][protocol]))} **{row['dice']:.3f}**"
        for protocol, row in rows.items()
    ]
    st.markdown("Exact Dice of this subject on the working grid: " + " · ".join(numbers))
elif scores.is_healthy(subject_id):
    st.markdown("This scan is healthy: Dice is undefined, and every segmented voxel is a false positive.")
first = first_protocol(figures["protocols"])
st.caption(
    f"{f'Layer set {plain(name)}. ' if len(scores.layers) > 1 else ''}All test subjects at the threshold from "
    f"{plain(protocol_label(first, figures['protocols'][first]))}, working grid: mean Dice "
    f"{protocol_text(figures['protocols'][first])}. How to read it: drag the threshold and watch where false "
    "positives appear first. Edges of the brain and ventricles speak of alignment, whole slices of intensity, "
    "scattered dots of noise."
    + (" Read-outs of single layers do not add up to a joint one: each has its own nearest patch." if banked else "")
)
if banked:
    place = data["state"] | {key: value for key, value in (view or {}).items() if value is not None}
    show_neighbours(
        run, scores, subject_id, layers, [place[axis] for axis in "xyz"], place.get("convention", "radiological")
    )

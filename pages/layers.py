"""Compare every combination of the fitted layers in numbers and in maps, without refitting."""

import streamlit as st

from core.detectors.capabilities import LayerSets, can
from core.presentation.figures.results import contribution_bars, layer_scatter
from core.study.content import content_of
from core.study.run_summary import layer_contributions
from core.study.stored_scores import set_id
from pages._shared import (
    dice_text,
    every_row,
    layered_rows,
    metrics_or_stop,
    pick_run,
    pick_subject,
    scores_of,
    table_of,
)
from pages._text import cells, plain, prose
from pages._view import opening_subject, remember, subject_order, view_data
from pages._viewer import viewer

MOST = 4


def choose(names: list[str]) -> None:
    """Show the maps of these layer sets, put away those that are shown; the oldest gives way to a fifth."""
    shown = list(st.session_state.get("sets", []))
    for name in names:
        shown = [s for s in shown if s != name] if name in shown else [*shown, name]
    st.session_state["sets"] = shown[-MOST:]


def choose_points() -> None:
    """What was clicked in the scatter."""
    points = st.session_state["layer-scatter"]["selection"]["points"]
    choose([point["customdata"][0] for point in points])


def choose_rows() -> None:
    """The rows that are ticked in the table are the sets that are shown."""
    ticked = st.session_state["layer-table"]["selection"]["rows"]
    if ticked:
        st.session_state["sets"] = [rows[i]["layers"] for i in ticked[:MOST]]


def show(run_id: str) -> None:
    """Another run, as if it had been picked in the sidebar."""
    st.session_state["run"] = run_id


st.title("Layers")
run = pick_run(layered=True)
metrics = metrics_or_stop(run)
scores = scores_of(run)
content = content_of(run)
order, labels = subject_order(scores, metrics)
subject_id = pick_subject(run, order, labels, opening_subject(metrics))
rows = sorted(table_of(run.run_id, content), key=lambda r: -(r["auprc"] or 0.0))

if len(rows) == 1:
    st.info(
        f"{plain(run.name)} scores voxels directly, without an encoder: it has no layers to compare. "
        "Layers belong to runs that model the features of an encoder."
    )
    others = layered_rows(every_row("detector"))
    if others:
        st.markdown("Runs with layers, best on validation first:")
        for other in others[:5]:
            st.button(
                plain(f"{other['name']} · {other['run_id']}"),
                key=f"open-{other['run_id']}",
                on_click=show,
                args=(other["run_id"],),
            )
    else:
        st.markdown("There is none here yet. Fit one: `python cli.py fit COHORT --detector gaussian`")
    st.stop()
names = [row["layers"] for row in rows]
single = [set_id((layer,)) for layer in scores.layers]
start = list(dict.fromkeys([metrics["headline"], names[0], set_id(scores.layers), min(single, key=names.index)]))[:MOST]
chosen = st.multiselect(
    f"Layer sets to look at, up to {MOST}",
    names,
    default=start,
    max_selections=MOST,
    key="sets",
    bind="query-params",
    persist_state="session",
    help="Their maps stand below side by side, on the same slice.",
)

best = rows[0]
st.markdown(
    f"{len(rows)} layer sets from one fit. Highest AUPRC: **{plain(best['layers'])}** ({best['auprc']:.3f}). "
    f"Headline, {prose(metrics['headline_rule'])}: **{plain(metrics['headline'])}**."
)
left, right = st.columns([3, 2])
with left:
    st.plotly_chart(
        layer_scatter(rows, chosen),
        key="layer-scatter",
        alt="AUPRC and Dice of every layer set",
        on_select=choose_points,
        selection_mode="points",
    )
    st.caption("Click a point to see its maps below; click it again to put them away.")
with right:
    st.plotly_chart(
        contribution_bars(layer_contributions(rows, scores.layers)), key="layer-bars", alt="What each layer adds"
    )
    st.caption("A layer that scores well alone and adds nothing says what others say too; below zero it costs.")

if can(scores.detector, LayerSets) and (exactness := scores.detector.exactness(run.record["settings"])):
    st.caption(prose(exactness))

st.subheader("Maps side by side")
if chosen:
    remember(viewer(view_data(run, scores, metrics, subject_id, chosen), key="layer-maps"))
    strides = {layer: scores.layer_spacing_mm(layer) for layer in scores.layers}
    st.caption(
        "Native resolution: " + " · ".join(f"{plain(layer)} {mm:g} mm" for layer, mm in strides.items()) + ". "
        "Every map is shown at its own threshold of the chosen protocol."
    )
else:
    st.info("Choose at least one layer set above.")

st.subheader("Every layer set")
st.dataframe(
    cells(
        [
            {
                "layers": row["layers"],
                "AUPRC": row["auprc"],
                "its mean": row["mean_auprc"],
                "⌈Dice⌉ oracle": row["ceil_dice"],
                "Dice, healthy": dice_text(row["healthy"]),
                "Dice, validation": dice_text(row["validation"]),
                "on validation": row["validation_mean_dice"],
            }
            for row in rows
        ]
    ),
    key="layer-table",
    on_select=choose_rows,
    selection_mode="multi-row",
    hide_index=True,
    height=min(35 * (len(rows) + 1) + 3, 420),
    column_config={
        "AUPRC": st.column_config.NumberColumn(format="%.3f", help="Pooled over the voxels of all test subjects."),
        "its mean": st.column_config.NumberColumn(format="%.3f", help="AUPRC of each test subject, then the mean."),
        "⌈Dice⌉ oracle": st.column_config.NumberColumn(
            format="%.3f", help="Best pooled Dice over all thresholds: an oracle, chosen on the test labels."
        ),
        "Dice, healthy": st.column_config.TextColumn(
            help="Mean test Dice at the threshold from healthy scans, with its 95 % interval."
        ),
        "Dice, validation": st.column_config.TextColumn(
            help="Mean test Dice at the threshold from validation labels, with its 95 % interval."
        ),
        "on validation": st.column_config.NumberColumn(
            format="%.3f", help="Mean Dice on the validation subjects: the one to choose a layer set by."
        ),
    },
)
st.caption(
    "Tick up to four rows to see their maps above. All on the working grid, so that sets can be compared with each "
    "other; headline numbers in native space stand on the Overview. "
    "Choosing the best row by its test Dice would be an oracle: choose by the column “on validation”."
)

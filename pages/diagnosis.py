"""Why Dice is what it is: ceilings, error map, what-ifs, the subjects and lesions behind each bar."""

import streamlit as st

from core.study.stored_scores import set_id
from pages._diagnosis.causes import show_causes
from pages._diagnosis.costs import show_costs
from pages._diagnosis.decisions import show_decisions
from pages._diagnosis.lesions import show_ceilings, show_groups, show_lesions
from pages._diagnosis.limits import show_limits
from pages._diagnosis.load import diagnosis_of, limits_of
from pages._diagnosis.post_processing import show_post_processing
from pages._shared import dice_text, metrics_or_stop, pick_layers, pick_protocol, pick_run, protocol_label, scores_of
from pages._text import plain, prose

SECTIONS = ("Where it is lost", "Causes and what-ifs", "Decision rules", "Detection limits", "Lesions and groups")

st.title("Diagnosis")
run = pick_run()
metrics = metrics_or_stop(run)
layers = pick_layers(scores_of(run), metrics["headline"])
name = set_id(layers)
protocols = metrics["sets"][name]["working"]["protocols"]
protocol = pick_protocol(protocols)

if not protocols[protocol]["subjects"]:
    st.info("No test subject of this run has a lesion: there is no Dice to explain yet. What can be known now:")
    show_limits(run, limits_of(run, name), name)
    st.stop()
found = diagnosis_of(run, name, protocol)
from_where = protocol_label(protocol, protocols[protocol])

head, verdict = st.columns([1, 4], vertical_alignment="center")
head.metric(
    "Dice, native space",
    dice_text(found["dice"]).split(" ")[0],
    help=f"Mean over {found['n']:d} test subjects with lesions, threshold from {plain(from_where)}.",
)
head.caption(f"{dice_text(found['dice']).partition(' ')[2]}, n = {found['n']:d}")
sure = (found["verdict"]["low"] or 0.0) > 0
(verdict.success if sure else verdict.info)(f"**{prose(found['verdict']['sentence'])}**", icon=":material/lightbulb:")

for problem in found.get("damaged", ()):
    st.error(plain(problem), icon=":material/error:")

tabs = st.tabs(SECTIONS, key="section", on_change="rerun", bind="query-params")
for tab, section in zip(tabs, SECTIONS, strict=True):
    if not tab.open:
        continue
    with tab:
        if section == "Where it is lost":
            show_costs(found)
        elif section == "Causes and what-ifs":
            show_causes(run, found)
        elif section == "Decision rules":
            show_decisions(found, protocols)
            show_post_processing(run, found["post_processing"], name, protocol)
        elif section == "Detection limits":
            show_limits(run, limits_of(run, name), name)
        elif section == "Lesions and groups":
            show_lesions(found)
            show_groups(found)
            show_ceilings(found)

st.caption(
    f"{plain(found['name'])}, layers {plain(name)}. Threshold from {plain(from_where)}. The ladder goes step by step, "
    "the error map shares one loss out, each cause is one change at a time: three views that are not added up. "
    + prose(" ".join(found["notes"]))
)

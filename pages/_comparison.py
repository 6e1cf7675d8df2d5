"""Finished comparisons of trainings, as a section of the Training page: verdict, table, and one figure."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from core.metrics.two_level import number_text, span_text
from core.presentation.commands import compare_again_argv, in_shell
from core.presentation.figures.comparison import TRAINING_TITLES, training_against_dice
from core.study.pretraining_comparison import list_comparisons, read_comparison
from core.study.pretraining_table import CHOICE_TITLES, CHOICES, FIGURE_TITLES, FIGURES
from pages._shared import in_words, runs_directory
from pages._text import cells, plain, prose

AXES = {"top1": "top-1", "loss_share": "loss / chance"}


def show_comparison() -> None:
    """What `compare-pretraining` found; how to make one when there is none yet."""
    names = list_comparisons(runs_directory())
    st.subheader("Ways of training compared", anchor=False)
    if not names:
        st.caption(
            "A low loss need not mean that lesions are found. To compare ways of training under one detector: "
            "`python cli.py compare-pretraining COHORT --variants in-batch moco --views geometric strong --seeds 0 1`"
        )
        return
    name = names[0]
    if len(names) > 1:
        name = str(st.selectbox("Comparison", names, key="comparison", help="Newest first."))
    with in_words():
        found = read_comparison(runs_directory(), name)
    _verdict(found)
    choice, figure, training = _pickers(found)
    st.plotly_chart(
        training_against_dice(
            found["rows"],
            found["controls"],
            training="top1" if training == "top1" else "loss_share",
            figure=figure,
            title=FIGURE_TITLES[figure],
            choice=choice,
        ),
        key="comparison-figure",
    )
    said = [c["text"] for c in found["correlation"] if c["training"] == training and c["figure"] == figure]
    st.caption(f"{TRAINING_TITLES[training]}. {prose(' '.join(said))}")
    st.dataframe(cells(_rows(found, choice)), hide_index=True, key="comparison-table")
    st.caption(prose(_legend(found, choice)))
    with st.expander("Make it again"), in_words():
        st.code(in_shell(compare_again_argv(runs_directory(), found)), language="bash", wrap_lines=True)
    if not found["controls"][0]["layers"]:
        return
    with st.expander("One layer at a time"):
        st.dataframe(cells(_layer_rows(found)), hide_index=True, key="comparison-layers")
        st.caption("⌈Dice⌉ (pooled oracle) of a single layer; in brackets the difference to the untrained encoder.")


def _verdict(found: Mapping[str, Any]) -> None:
    say = st.success if found["verdict"]["won"] else st.info
    say(prose(found["verdict"]["text"]), icon=":material/balance:")
    for failure in found["failed"]:
        told = f"{failure['variant']}, views {failure['views']}, seed {failure['seed']}: {failure['error']}"
        st.warning(plain(told))


def _pickers(found: Mapping[str, Any]) -> tuple[str, str, str]:
    figures = [f for f in FIGURES if found["controls"][0]["choices"]["headline"]["figures"][f]]
    columns = st.columns(3)
    choice = columns[0].selectbox("Layers", CHOICES, format_func=CHOICE_TITLES.__getitem__, key="comparison-choice")
    opening = figures.index("validation") if "validation" in figures else 0
    figure = columns[1].selectbox(
        "Figure", figures, index=opening, format_func=FIGURE_TITLES.__getitem__, key="comparison-measure"
    )
    training = columns[2].selectbox("Against", list(AXES), format_func=AXES.__getitem__, key="comparison-axis")
    return str(choice), str(figure), str(training)


def _rows(found: Mapping[str, Any], choice: str) -> list[dict[str, Any]]:
    rows = []
    measured = any(row["visibility"] for row in found["rows"])
    for row in (*found["rows"], *found["controls"]):
        end, own = row["contrastive"] or {}, row["choices"][choice]
        rows.append(
            {
                "encoder": row["title"],
                "seeds": str(len(row["seeds"]) or "–"),
                "loss / chance": number_text(end.get("loss_share"), 2),
                "top-1": number_text(end.get("top1"), 2),
                "among": number_text(end.get("candidates"), 0),
                **({"visibility": number_text((row["visibility"] or {}).get("trained"), 2)} if measured else {}),
                **{FIGURE_TITLES[f]: span_text(own["figures"][f]) for f in FIGURES},
                "minus untrained (validation)": span_text(own["minus_untrained"].get("validation"), signed=True),
                "minus |z| (validation)": span_text(own["minus_zscore"].get("validation"), signed=True),
                "SD between seeds (validation)": number_text((own["figures"]["validation"] or {}).get("seed_sd"), 3),
            }
        )
    return rows


def _layer_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for row in (found["controls"][0], *found["rows"]):
        cells = {}
        for layer, own in row["layers"].items():
            gain = span_text(own["minus_untrained"], signed=True)
            cells[layer] = number_text(own["ceil_dice"]["mean"], 3) + (f" ({gain})" if gain else "")
        rows.append({"encoder": row["title"], **cells})
    return rows


def _legend(found: Mapping[str, Any], choice: str) -> str:
    seeds = found["plan"]["seeds"]
    measured = any(row["visibility"] for row in found["rows"])
    visibility = (
        " Visibility: movement of the features under planted lesions divided by that under the run's own views, mean "
        "over the fitted layers."
    )
    return (
        f"Scans' own space, {CHOICE_TITLES[choice]}. Mean over {len(seeds)} seed{'s' if len(seeds) > 1 else ''}; 95 % "
        f"interval over {found['n_subjects']} lesion-bearing test subjects"
        f"{' and over seeds' if len(seeds) > 1 else '; one seed says nothing about another training'}. Healthy "
        f"threshold: the {found['quantile']:g} quantile of healthy calibration voxels. Differences are paired, against "
        "the untrained encoder of the same seed. Oracle columns chose their threshold on test labels. `among`: "
        "candidates of which one is the positive. Intervals are of a two-level bootstrap, over subjects and, with "
        "several, seeds; Overview's are over subjects alone, by another bootstrap, so they differ a little."
        f"{visibility if measured else ''}"
    )

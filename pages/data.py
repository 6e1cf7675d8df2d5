"""Which scans, which splits, what is wrong with which file, and whether anything leaks."""

from typing import Any

import streamlit as st

from core.presentation.cohort_view import (
    Leakage,
    leakage,
    on_whose_word,
    preprocessing_rows,
    set_aside_rows,
    split_table,
    subject_row,
    subjects_in,
)
from core.presentation.commands import in_shell, prepare_argv
from core.presentation.thumbnails import data_uri, montage
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.study.content import scans_content, subject_content
from core.study.data_source import cache_directory
from core.study.run_scans import prepared_of
from data.cohort import ROLES
from data.errors import BadInput, IntegrityError
from data.health import is_unknown
from pages._check import check_form
from pages._shared import pick_run, runs_directory
from pages._text import cells, code, plain

PER_PAGE = 12


@st.cache_resource(max_entries=4096, show_spinner=False)
def row_of(run_id: str, content: str, subject_id: str) -> dict[str, Any]:
    """The table row of a subject; a scan that cannot be read says so in its notes."""
    run = open_run(runs_directory(), run_id)
    subject = next(s for s in run.record["cohort"]["subjects"] if s["subject_id"] == subject_id)
    try:
        return subject_row(run, subject)
    except (OSError, BadInput, IntegrityError) as problem:
        known = {"subject": subject_id, "split": subject["role"], "healthy": bool(subject["healthy"])}
        return known | {"notes": f"The prepared scan cannot be read: {problem}"}


@st.cache_resource(max_entries=512, show_spinner=False)
def picture_of(run_id: str, content: str, subject_id: str) -> str:
    """The three slices of a subject, in the address itself: a page that is left leaves no request for them behind."""
    return data_uri(montage(prepared_of(open_run(runs_directory(), run_id), subject_id)))


@st.cache_resource(max_entries=32, show_spinner=False)
def leakage_of(run_id: str, content: str) -> Leakage:
    """What the voxel hashes of a run say."""
    return leakage(open_run(runs_directory(), run_id), cache_directory(runs_directory()))


def show_head(run: Run) -> None:
    """The cohort in a line, its counts, where it comes from."""
    cohort = run.record["cohort"]
    subjects = cohort["subjects"]
    healthy = sum(bool(s["healthy"]) for s in subjects)
    unknown = sum(is_unknown(s) for s in subjects)
    st.subheader("Cohort" if cohort["name"] == "cohort" else f"Cohort {plain(cohort['name'])}", anchor=False)
    columns = st.columns(4)
    columns[0].metric("Subjects used", f"{len(subjects)} of {cohort['n_total']:d}")
    columns[1].metric("Healthy", f"{healthy:d}")
    columns[2].metric(
        "With lesions" if not unknown else "Ill / of unknown health",
        f"{len(subjects) - healthy - unknown:d}" + (f" / {unknown:d}" if unknown else ""),
    )
    columns[3].metric("Set aside", len(cohort["set_aside"]))
    st.code(cohort["path"], language=None)
    if cohort["citation"]:
        st.caption(f"Cite: {plain(cohort['citation'])}")
    for note in cohort["notes"]:
        st.info(plain(note), icon=":material/info:")


def show_leakage(run: Run) -> None:
    """One sentence on whether the same scan stands in two places."""
    found = leakage_of(run.run_id, scans_content(run))
    if found.pairs:
        named = "; ".join(
            f"{code(a)} ({plain(role_a)}) and {code(b)} ({plain(role_b)})" for a, role_a, b, role_b in found.pairs
        )
        st.error(
            f"**The same scan under two names:** {named}. Numbers on them are too good or counted twice. Remove one "
            "id of each pair and make the run anew.",
            icon=":material/content_copy:",
        )
    else:
        st.success(
            f"**No leakage found.** The voxels of all {found.compared:d} scans were compared by hash, whatever their "
            "names and headers: none is there twice. Every subject is in one split only.",
            icon=":material/verified:",
        )
    if found.missing:
        st.warning(
            f"{len(found.missing)} prepared scan(s) are no longer in the cache and were not compared: "
            f"{plain(', '.join(found.missing[:5]))}. "
            f"Prepare them again: {code(in_shell(prepare_argv(runs_directory(), run)))}",
            icon=":material/warning:",
        )


def show_splits(run: Run) -> None:
    """Who is where, and how the scans were prepared."""
    left, right = st.columns(2)
    left.markdown("**Splits**")
    left.dataframe(cells(split_table(run)), hide_index=True, alt="Subjects per split, healthy and with lesions")
    left.caption(
        "Train and calibration are healthy, so nothing is learnt from a lesion, nor the label-free threshold. On whose "
        f"word: {plain(on_whose_word(run))}."
    )
    right.markdown("**Preparation**")
    right.dataframe(
        cells({"setting": name, "value": value} for name, value in preprocessing_rows(run)),
        hide_index=True,
        alt="Preprocessing settings",
    )
    right.caption("The same for every scan. Score maps go back to each scan's own space in one resampling.")


def show_set_aside(run: Run) -> None:
    """Scans that could not be used, with cause and remedy."""
    rows = set_aside_rows(run.record["cohort"]["set_aside"])
    st.subheader("Set aside", anchor=False)
    if not rows:
        st.caption("None: every scan of the cohort could be read and prepared.")
        return
    st.dataframe(cells(rows), hide_index=True, row_height=52, alt="Subjects set aside with cause and remedy")
    st.caption("They are in no split and in no number. Repair them and make a new run.")


def show_subjects(run: Run, roles: list[str]) -> None:
    """The subjects of the chosen splits."""
    rows = [row_of(run.run_id, subject_content(run, i), i) for s in subjects_in(run, roles) for i in [s["subject_id"]]]
    st.dataframe(
        cells(rows).dropna(axis=1, how="all"),
        hide_index=True,
        height=min(38 * (len(rows) + 1), 420),
        column_config={
            "subject": st.column_config.TextColumn(width=140),
            "split": st.column_config.TextColumn(width=90),
            "brain mL": st.column_config.NumberColumn(format="%.0f"),
            "lesion mL": st.column_config.NumberColumn(format="%.2f"),
            "age": st.column_config.NumberColumn(format="%.0f"),
            "notes": st.column_config.TextColumn(width="large"),
        },
        placeholder="–",
        alt="Subjects of the chosen splits",
    )


def show_pictures(run: Run, roles: list[str]) -> None:
    """Twelve subjects at a time in three planes."""
    subjects = subjects_in(run, roles)
    pages = -(-len(subjects) // PER_PAGE)
    page = st.pagination(pages, key=f"pictures-{'-'.join(roles)}") if pages > 1 else 1
    shown = subjects[PER_PAGE * (page - 1) : PER_PAGE * page]
    columns = st.columns(3)
    for number, subject in enumerate(shown):
        subject_id = subject["subject_id"]
        content = subject_content(run, subject_id)
        row = row_of(run.run_id, content, subject_id)
        column = columns[number % 3]
        try:
            column.image(
                picture_of(run.run_id, content, subject_id),
                width="stretch",
                alt=f"Axial, coronal and sagittal slice of {subject_id}",
            )
        except (OSError, BadInput, IntegrityError) as problem:
            column.warning(plain(problem))
        lesion = row.get("lesion mL")
        known = (
            "health unknown"
            if is_unknown(subject)
            else "healthy"
            if subject["healthy"]
            else "no lesion mask"
            if lesion is None
            else f"lesion {lesion:.2f} mL"
        )
        column.caption(f"**{plain(subject_id)}** · {plain(subject['role'])} · {known}")
    st.caption(
        "Prepared scans on the working grid, as detectors see them: axial, coronal, sagittal; the subject's left is on "
        "the right. Cut where there is most lesion (outlined in magenta), else through the middle of the brain."
    )


st.title("Data")
run = pick_run(evaluated=False)
show_head(run)
show_leakage(run)
show_splits(run)
show_set_aside(run)

st.subheader("Subjects", anchor=False)
filled = [role for role in ROLES if run.record["split"].get(role)]
role = st.segmented_control(
    "Split",
    ["all", *filled],
    default="all",
    required=True,
    format_func=plain,
    key="split",
    bind="query-params",
    persist_state="session",
)
chosen = filled if role == "all" else [str(role)]
with st.spinner("Reading the prepared scans"):
    show_subjects(run, chosen)
show_pictures(run, chosen)

st.subheader("Check another cohort", anchor=False)
check_form()

"""The verb behind the picture: which healthy patches of a memory bank are nearest to one place of a scan."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.markup import escape
from rich.table import Table

from core.runs.listing import open_run
from core.runs.run_record import Run
from verbs.shared import EXIT_OK, RUNS, Verbs, console, print_json, tell_versions


@dataclass(frozen=True)
class NeighboursVerb:
    """The healthy patches that are nearest to one place of a scan: whose, where, how far. Runs with a memory bank.

    Example: python cli.py neighbours latest sub-007 --voxel 40 52 38
    """

    run: tyro.conf.Positional[str]
    """Run id, the beginning of one, a path, or latest."""
    subject: tyro.conf.Positional[str]
    """Subject of the run."""
    voxel: tuple[int, int, int] | None = None
    """Place on the working grid, as the Slices page shows it; the middle of the largest lesion when not given."""
    layers: str = ""
    """Layer set, joined by +; all layers when not given."""
    count: int = 3
    """Neighbours to list."""
    picture: Path | None = None
    """PNG to write: the place and its neighbours, below each other, in three planes each."""
    runs: Path = RUNS
    """Directory that holds the runs."""
    json: bool = False
    """Print JSON."""


def _neighbours(arguments: NeighboursVerb) -> int:
    from core.diagnosis.neighbour_questions import refuse_no_brain, start_voxel
    from core.diagnosis.neighbours import open_bank
    from core.presentation.neighbour_pictures import save_sheet
    from core.presentation.neighbour_words import row_labels, sentences
    from core.recipes import as_json
    from core.study.run_scans import prepared_of

    run = _checked_run(arguments)
    prepared = prepared_of(run, arguments.subject)
    voxel = arguments.voxel or start_voxel(prepared)
    refuse_no_brain(prepared.volume, voxel)
    search = open_bank(run)
    layers = tuple(arguments.layers.split("+")) if arguments.layers else search.bank.layers
    view = search.at(prepared.volume, search.features(prepared.volume), voxel, layers, arguments.count)
    if arguments.picture is not None:
        save_sheet(arguments.picture, run, view, row_labels(view))
    if arguments.json:
        print_json(as_json(view))
        return EXIT_OK
    console().print(_table(view))
    for line in sentences(view):
        print(line)
    return EXIT_OK


def _checked_run(arguments: NeighboursVerb) -> Run:
    """The run, once every argument that its record can judge is right: before anything large is read."""
    from core.diagnosis.neighbour_questions import refuse_no_bank, refuse_unknown_layers, refuse_unknown_subject
    from core.presentation.neighbour_pictures import refuse_unwritable

    if arguments.picture is not None:
        refuse_unwritable(arguments.picture)
    run = open_run(arguments.runs, arguments.run, "detector")
    tell_versions(run)
    refuse_no_bank(run)
    refuse_unknown_subject(run, arguments.subject)
    if arguments.layers:
        refuse_unknown_layers(run, arguments.layers.split("+"))
    return run


def _table(view: Any) -> Table:
    from core.presentation.neighbour_words import apart_text, distance_text, mm_text, share_text

    x, y, z = view.voxel
    table = Table(
        "",
        "subject",
        "distance",
        "how far",
        "position",
        "voxel",
        "layers",
        title=f"{escape(view.subject_id)}, voxel ({x}, {y}, {z}), {mm_text(view.position_mm)}, {'+'.join(view.layers)}",
        caption=f"Distance: {view.unit}. Layers: what each makes up of the squared distance.",
    )
    rows = [(str(n), one) for n, one in enumerate(view.nearest, start=1)]
    if view.other is not None:
        rows.append(("anywhere" if view.other_radius_mm is None else f"within {view.other_radius_mm:g} mm", view.other))
    for title, one in rows:
        table.add_row(
            title,
            escape(one.subject_id),
            distance_text(one.distance),
            apart_text(one.apart_mm),
            mm_text(one.position_mm),
            " ".join(map(str, one.voxel)),
            share_text(one.shares),
        )
    return table


VERBS: Verbs = {"neighbours": (NeighboursVerb, _neighbours)}

"""Verbs that say what an encoder was, or would be, taught to ignore: visibility and visibility-before."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.table import Table

from core.pretraining.view_settings import VIEW_SETS, ViewSettings, check_crop
from core.pretraining.visibility.settings import VisibilitySettings
from core.progress import open_progress
from core.recipes import as_json
from core.runs.listing import open_run
from data.errors import BadInput
from data.template import working_grid
from verbs.scans import Scans, source_of
from verbs.shared import (
    EXIT_OK,
    OneRun,
    TakeOver,
    Verbs,
    console,
    interval_text,
    number_text,
    print_json,
    tell_versions,
)

_RATIO_WORDS = (
    "How far a change moves the features after training, divided by before. Views below 1: the encoder has learned to "
    "ignore them. Lesions below 1: it reacts to them less than before."
)
Architecture = Literal["cnn3d", "resnet10_3d", "resnet18_3d", "resnet10_2d", "resnet18_2d"]


@dataclass(frozen=True)
class VisibilityVerb(OneRun):
    """What an encoder has been taught to ignore: how far its features move under views and under planted lesions.

    Example: python cli.py visibility latest --scans 6
    """

    scans: int = 6
    """Healthy training scans to look at; lesions are planted into copies of them."""
    window_voxels: int = VisibilitySettings.window_voxels
    """Edge of the part in the middle of the scan that the network sees; a training crop that is smaller is used."""
    draws: int = VisibilitySettings.draws
    """Views of each kind and scan."""
    whole_views: int = VisibilitySettings.whole_views
    """Views of each scan as training draws them."""
    diameters_mm: tuple[float, ...] = VisibilitySettings.diameters_mm
    """Of the planted lesions."""
    contrasts: tuple[float, ...] = VisibilitySettings.contrasts
    """Of the planted lesions, 0 to 1."""
    places: int = VisibilitySettings.places
    """Lesions planted together into a scan, at least 32 mm apart, as far as there is room."""
    seed: int = 0
    """Of scans, views, places and textures."""
    take_over: TakeOver = False


@dataclass(frozen=True)
class VisibilityBeforeVerb(Scans):
    """Before training: what a set of views does to healthy scans beside what lesions do, so what it would teach.

    Only the healthy training scans of the cohort are looked at.

    Example: python cli.py visibility-before scans/cohort.csv --view-set strong
    """

    view_set: str = ""
    """A named set of views (none, geometric, toneless, mild, strong, both); its strengths replace those of views."""
    views: ViewSettings = field(default_factory=ViewSettings)
    architecture: Architecture = "cnn3d"
    """Of the untrained encoder whose features are looked at too."""
    width: int = 16
    """Channels of its first stage."""
    scans: int = 6
    """Healthy training scans to look at."""
    seed: int = 0
    """Of the encoder's weights, and of scans, views, places and textures."""


def _visibility(arguments: VisibilityVerb) -> int:
    from core.pretraining.visibility.changes import check_settings
    from core.study.visibility import visibility_of_run

    settings = VisibilitySettings(
        scans=arguments.scans,
        window_voxels=arguments.window_voxels,
        draws=arguments.draws,
        whole_views=arguments.whole_views,
        diameters_mm=arguments.diameters_mm,
        contrasts=arguments.contrasts,
        places=arguments.places,
        seed=arguments.seed,
    )
    check_settings(settings)
    run = open_run(arguments.runs, arguments.run, "encoder")
    tell_versions(run)
    found = visibility_of_run(run, open_progress(), settings)
    if arguments.json:
        print_json(found)
        return EXIT_OK
    _print_layers(found, ("untrained", "trained"), run.run_id)
    _print_families(found)
    _print_sentences(found)
    return EXIT_OK


def _visibility_before(arguments: VisibilityBeforeVerb) -> int:
    from core.pretraining.visibility.changes import check_settings
    from core.study.preparing import prepare
    from core.study.visibility import encoder_settings, visibility_before

    settings = VisibilitySettings(scans=arguments.scans, seed=arguments.seed)
    check_settings(settings)  # before minutes of preparing
    views = _views(arguments)
    check_crop(views, working_grid(arguments.preprocessing.spacing_mm).shape)
    encoder = encoder_settings(arguments.architecture, arguments.width, arguments.seed)
    source = source_of(arguments)
    progress = open_progress()
    study = prepare(arguments.runs, source, progress)
    found = visibility_before(
        study.volumes("train"),
        views,
        encoder,
        settings,
        progress,
    )
    if arguments.json:
        print_json(found)
        return EXIT_OK
    _print_brightness(found)
    _print_layers(found, ("untrained",), f"{arguments.architecture}, width {arguments.width}")
    _print_sentences(found)
    return EXIT_OK


def _views(arguments: VisibilityBeforeVerb) -> ViewSettings:
    if not arguments.view_set:
        return arguments.views
    if arguments.view_set not in VIEW_SETS:
        raise BadInput(f"No set of views {arguments.view_set!r}. There are: {', '.join(VIEW_SETS)}.")
    chosen = as_json(VIEW_SETS[arguments.view_set]) | {"crop_voxels": arguments.views.crop_voxels}
    return ViewSettings(**chosen)


def _print_layers(found: Mapping[str, Any], networks: tuple[str, ...], title: str) -> None:
    heading = [f"{what}, {name}" for name in networks for what in ("views move it", "lesions move it", "visibility")]
    table = Table("layer", *heading, title=title, caption="Movement in healthy SDs; 95 % intervals over scans.")
    for rows in zip(*(found[name]["layers"] for name in networks), strict=True):
        cells = [(one["view"]["mean"], one["lesion"]["mean"], one["visibility"]) for one in rows]
        table.add_row(rows[0]["layer"], *(interval_text(cell) or "–" for row in cells for cell in row))
    console().print(table)


def _print_families(found: Mapping[str, Any]) -> None:
    layers = [one["layer"] for one in found["trained"]["layers"] if one["layer"] != "input"]
    changes = dict.fromkeys(row["change"] for row in found["compared"] if "contrast" not in row["change"])
    at = {(row["layer"], row["change"]): row["ratio"] for row in found["compared"]}
    table = Table("trained / untrained", *layers, caption=_RATIO_WORDS)
    for change in changes:
        table.add_row(change, *(interval_text(at.get((layer, change))) or "–" for layer in layers))
    console().print(table)


def _print_brightness(found: Mapping[str, Any]) -> None:
    table = Table("change", "of the brightness range", "share of views", "gamma or bias field could have made it")
    alike = {one["name"]: one for one in found["intensity"]["likeness"]}
    for one in (*found["intensity"]["views"], *found["intensity"]["lesions"]):
        like = alike.get(one["change"])
        said = f"{number_text(like['inside']['mean'], 2)} inside, " if like else ""
        said += f"{number_text(like['with_surround']['mean'], 2)} with 8 mm around it" if like else ""
        table.add_row(one["change"], interval_text(one["of_range"]), number_text(one["share"], 2), said)
    console().print(table)


def _print_sentences(found: Mapping[str, Any]) -> None:
    for sentence in found["sentences"]:
        print(sentence)


VERBS: Verbs = {
    "visibility": (VisibilityVerb, _visibility),
    "visibility-before": (VisibilityBeforeVerb, _visibility_before),
}

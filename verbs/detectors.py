"""The catalogue of detectors on a terminal."""

from dataclasses import dataclass

from rich.table import Table

from verbs.shared import EXIT_OK, Verbs, console, print_json


@dataclass(frozen=True)
class DetectorsVerb:
    """The catalogue of detectors and their settings.

    Example: python cli.py detectors --json
    """

    json: bool = False
    """Print JSON."""


def _detectors(arguments: DetectorsVerb) -> int:
    from core.detectors import CATALOGUE, DESCRIPTIONS, recipe_json

    if arguments.json:
        print_json(
            {name: {"description": DESCRIPTIONS[name], **recipe_json(recipe)} for name, recipe in CATALOGUE.items()}
        )
        return EXIT_OK
    table = Table("name", "what it is")
    for name in CATALOGUE:
        table.add_row(name, DESCRIPTIONS[name])
    console().print(table)
    return EXIT_OK


VERBS: Verbs = {
    "detectors": (DetectorsVerb, _detectors),
}

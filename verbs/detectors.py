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
    from core.detectors import CATALOGUE, recipe_json

    if arguments.json:
        print_json(
            {name: {"description": row.description, **recipe_json(row.recipe)} for name, row in CATALOGUE.items()}
        )
        return EXIT_OK
    table = Table("name", "what it is")
    for name, row in CATALOGUE.items():
        table.add_row(name, row.description)
    console().print(table)
    return EXIT_OK


VERBS: Verbs = {
    "detectors": (DetectorsVerb, _detectors),
}

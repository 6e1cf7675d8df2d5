"""The verb that compares ways of training an encoder: compare-pretraining."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from core.features.settings import FeatureSettings
from core.pretraining.simclr_settings import SimclrSettings
from core.progress import open_progress
from core.runs.run_record import runs_flag
from verbs.scans import Scans, source_of
from verbs.shared import EXIT_OK, TakeOver, Verbs, console, print_json

if TYPE_CHECKING:
    from core.study.pretraining_comparison import ComparisonPlan


@dataclass(frozen=True)
class ComparePretrainingVerb(Scans):
    """Train encoders in several ways with one budget, fit the same Gaussian on each, and table what it finds.

    Beside the untrained encoder of each seed, voxel-wise |z| and intensity. Repeat the command to go on.

    Example: python cli.py compare-pretraining scans/cohort.csv --variants in-batch moco --views geometric strong
    """

    name: str = "pretraining"
    """What to call the comparison; its runs are cmp-NAME-VARIANT-VIEWS-sSEED."""
    variants: tuple[str, ...] = ("in-batch",)
    """Kinds of negatives: in-batch, queue, slots, moco, hard, ccd, dense, dense-shift, atlas, atlas-shift."""
    views: tuple[str, ...] = ("strong",)
    """Sets of views: none, geometric, toneless, mild, strong, both; every variant is trained with each."""
    also: tuple[str, ...] = ()
    """Further pairs to train, such as in-batch/geometric."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds; with several, intervals include the spread between trainings."""
    simclr: SimclrSettings = field(default_factory=SimclrSettings)
    layers: tuple[str, ...] = FeatureSettings.layers
    """Layers of the Gaussian; 'input' is the intensity itself."""
    grid: str = FeatureSettings.grid
    """Feature grid: millimetres such as 4mm, or a layer's name."""
    reduction: Literal["none", "draw", "pca"] = FeatureSettings.reduction
    """How channels become fewer."""
    max_channels: int = FeatureSettings.max_channels
    """Channels kept per layer when reduced."""
    neighbourhood: int = FeatureSettings.neighbourhood
    """Edge of the cube of a layer's own cells whose mean makes a feature; 1: the cell alone."""
    feature_seed: int = FeatureSettings.seed
    """Of the channels that --reduction draw keeps."""
    memory: float = 6.0
    """Peak memory for fitting and scoring, GB."""
    workers: int = 2
    """Processes that evaluate."""
    visibility: bool = False
    """Also measure how visible lesions are to each encoder; what is measured already is tabled in any case."""
    take_over: TakeOver = False


def plan_of(arguments: ComparePretrainingVerb) -> "ComparisonPlan":
    """What is to be compared, and with which budget."""
    from core.study.pretraining_comparison import ComparisonPlan

    return ComparisonPlan(
        name=arguments.name,
        variants=arguments.variants,
        views=arguments.views,
        also=arguments.also,
        seeds=arguments.seeds,
        simclr=arguments.simclr,
        features=FeatureSettings(
            layers=arguments.layers,
            grid=arguments.grid,
            reduction=arguments.reduction,
            max_channels=arguments.max_channels,
            seed=arguments.feature_seed,
            neighbourhood=arguments.neighbourhood,
        ),
        memory_gb=arguments.memory,
    )


def _compare_pretraining(arguments: ComparePretrainingVerb) -> int:
    from core.study.pretraining_comparison import compare_pretraining
    from core.study.pretraining_table import correlation_lines
    from verbs.pretraining_tables import comparison_tables

    found = compare_pretraining(
        arguments.runs,
        source_of(arguments),
        plan_of(arguments),
        open_progress(),
        workers=arguments.workers,
        visibility=arguments.visibility,
    )
    if arguments.json:
        print_json(found)
        return EXIT_OK
    for table in comparison_tables(found):
        console().print(table)
    for failure in found["failed"]:
        print(f"failed: {failure['variant']}, views {failure['views']}, seed {failure['seed']}: {failure['error']}")
    for line in (*correlation_lines(found["correlation"]), found["verdict"]["text"]):
        print(line)
    print(f"See it on the Training page: python cli.py app{runs_flag(arguments.runs)}")
    return EXIT_OK


VERBS: Verbs = {
    "compare-pretraining": (ComparePretrainingVerb, _compare_pretraining),
}

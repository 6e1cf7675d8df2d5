"""Does any way of pretraining help to find planted strokes in real heads? Makes docs/results/pretraining.md.

    python -m benchmarks.pretraining_study --scans ../shared/mri --runs runs-real --seeds 0 1

The cohort, its split and its planted lesions are those of `benchmarks.real_study`. Every variant gets the same budget
of steps, crop, batch and width, and the same Gaussian. Repeat the command to go on where it stopped; what is finished
is used again, so seeds and variants can be added later.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.pretraining_real import real_cases, real_section
from benchmarks.pretraining_report import write_report
from benchmarks.pretraining_sizes import size_section
from benchmarks.real_study import PREPROCESSING, build_tables
from core.features.settings import FeatureSettings
from core.pretraining.simclr import SimclrSettings
from core.pretraining.view_settings import VIEW_SETS, ViewSettings
from core.progress import open_progress
from core.study.data_source import DataSource
from core.study.pretraining_comparison import VARIANTS, ComparisonPlan, compare_pretraining
from data.cohort import ROLES
from data.json_files import write_json
from data.table import read_table
from models.settings import EncoderSettings

LAYERS = ("stage0", "stage1", "stage2", "stage3")


def main() -> None:
    """Build what is not there yet, then write the report."""
    given = _arguments()
    planted, real = build_tables(given.scans, given.runs)
    source = DataSource(
        planted, layout="table", split=_split(planted, given.runs, given.train), preprocessing=PREPROCESSING
    )
    plan = ComparisonPlan(
        name=given.name,
        variants=tuple(given.variants),
        views=tuple(given.views),
        also=tuple(given.also),
        seeds=tuple(given.seeds),
        simclr=SimclrSettings(
            encoder=EncoderSettings(width=given.width, strides=tuple(given.strides)),
            views=ViewSettings(crop_voxels=(given.crop,) * 3),
            steps=given.steps,
            batch=given.batch,
            lr=given.lr,
            temperature=given.temperature,
        ),
        features=FeatureSettings(layers=tuple(given.layers), grid="4mm"),
    )
    found = compare_pretraining(
        given.runs, source, plan, open_progress(), workers=given.workers, visibility=given.visibility
    )
    pairs = [(a, b) for a, _, b in (pair.partition("/") for pair in given.real)]
    cases = DataSource(real, layout="table", preprocessing=PREPROCESSING)
    judged = real_cases(given.runs, cases, plan, pairs, open_progress()) if pairs else {}
    sections = [size_section(given.runs, plan, pairs)] if pairs else []
    sections += [real_section(judged)] if judged else []
    names = {str(given.scans): "SCANS", str(given.runs): given.runs.name}  # no path of this machine
    words = [names.get(word, word) for word in sys.argv[1:]]
    write_report(
        given.report,
        found,
        " ".join(["python -m benchmarks.pretraining_study", *words]),
        "\n\n".join(sections),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, required=True, help="folder with ixi_t1_2mm, lesions, stroke_masks_mni")
    parser.add_argument("--runs", type=Path, default=Path("runs-real"))
    parser.add_argument("--name", default="heads", help="of the comparison; another budget needs another name")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--views", nargs="+", choices=tuple(VIEW_SETS), default=["strong"])
    parser.add_argument("--also", nargs="*", default=[], metavar="VARIANT/VIEWS", help="further pairs")
    parser.add_argument(
        "--real", nargs="*", default=[], metavar="VARIANT/VIEWS", help="by size and on real lesions too"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--width", type=int, default=8, help="channels of the encoder's first stage")
    parser.add_argument("--strides", type=int, nargs=5, default=(1, 2, 2, 1, 1), help="of the encoder's stages")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--crop", type=int, default=40, help="edge of the training crops, 2 mm voxels")
    parser.add_argument("--train", type=int, default=None, help="train on so many heads only, first by id")
    parser.add_argument("--layers", nargs="+", default=list(LAYERS))
    parser.add_argument(
        "--visibility", action="store_true", help="also measure how visible lesions are to each encoder"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that evaluate")
    parser.add_argument("--report", type=Path, default=Path("docs/results/pretraining.md"))
    return parser.parse_args()


def _split(table: Path, runs: Path, train: int | None) -> Path | None:
    """The table's own roles, or a split file with fewer training heads."""
    if train is None:
        return None
    by_role: dict[str, list[str]] = {role: [] for role in ROLES}
    for subject in read_table(table).subjects:
        by_role[subject.role or "train"].append(subject.subject_id)
    by_role["train"] = sorted(by_role["train"])[:train]
    path = runs / ".cohort" / f"planted-{train}-train.json"
    write_json(path, by_role)
    return path


if __name__ == "__main__":
    main()

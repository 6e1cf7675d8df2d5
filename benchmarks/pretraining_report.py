"""The report of a comparison of trainings: every number is read from it, every sentence is computed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.metrics.two_level import number_text, said, span_text
from core.study.pretraining_table import CHOICE_TITLES, CHOICES, FIGURE_TITLES, FIGURES, correlation_lines

Found = Mapping[str, Any]


def write_report(path: Path, found: Found, command: str, real: str = "") -> None:
    """Write the Markdown file; `real` is a section of its own."""
    parts = [
        _head(found, command),
        "## Which training won\n\n" + _plain(found["verdict"]["text"]) + "\n\n" + _everyone(found),
        *(_dice(found, choice) for choice in CHOICES),
        *(_differences(found, choice) for choice in CHOICES),
        _layers(found),
        _correlation(found),
        _training(found),
        *([real] if real else []),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _head(found: Found, command: str) -> str:
    plan, split = found["plan"], found["split"]
    simclr, features = plan["simclr"], plan["features"]
    seeds = plan["seeds"]
    lines = [
        "# Ways of pretraining, compared under one detector",
        "",
        f"Made by `{command}`",
        "",
        f"Budget of every training: {simclr['steps']} steps of {simclr['batch']} heads, crops of "
        f"{simclr['views']['crop_voxels']} voxels, {simclr['encoder']['architecture']} of width "
        f"{simclr['encoder']['width']} and strides {' '.join(map(str, simclr['encoder']['strides']))}, learning rate "
        f"{simclr['lr']:g}, temperature {simclr['temperature']:g}, "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}; "
        f"{_duration(_total_seconds(found))} of training in all.",
        f"Detector on each: full Gaussian per position over {', '.join(features['layers'])} on a {features['grid']} "
        "grid, same settings for all. The untrained encoder of a seed has the initial weights of the trained ones.",
        "",
        f"{split['train']} heads train encoders and Gaussians, {split['calibration']} calibrate, {split['validation']} "
        f"with planted lesions validate, {found['n_subjects']} with planted lesions and {found['n_healthy_subjects']} "
        "healthy ones test. Scans, split and planting: docs/results/real_scans.md.",
        "",
        "Numbers are in the scans' own space, raw maps, mean over seeds. Intervals are 95 % of a two-level bootstrap "
        "(subjects and training seeds resampled together, Owen 2007); with one seed subjects alone, so they say "
        "nothing about another training, and two or three seeds understate the spread between trainings. The healthy "
        f"threshold is the {found['quantile']:g} quantile of healthy calibration voxels. *Oracle* columns chose their "
        "threshold on test labels: bounds, not results. |z| and intensity have no seed.",
    ]
    lines += [f"\nFailed: {f['variant']}, views {f['views']}, seed {f['seed']}: {f['error']}" for f in found["failed"]]
    return "\n".join(lines)


def _everyone(found: Found) -> str:
    """How many trainings beat what, on test, whoever was chosen: the honest count beside the choice."""
    texts = []
    for side, name in (("minus_untrained", "the untrained encoder"), ("minus_zscore", "|z|")):
        gains = [row["choices"]["headline"][side].get("validation") for row in found["rows"]]
        words = [said(gain) for gain in gains if gain]
        texts.append(f"{words.count('better')} better and {words.count('worse')} worse than {name}")
    return (
        f"Of {len(found['rows'])} ways of training, by their own intervals at the validation threshold, uncorrected "
        f"for their number: {'; '.join(texts)}."
    )


def _dice(found: Found, choice: str) -> str:
    rows = []
    for row in (*found["rows"], *found["controls"]):
        end, figures = row["contrastive"] or {}, row["choices"][choice]["figures"]
        rows.append(
            [
                row["title"],
                number_text(end.get("loss_share"), 2),
                number_text(end.get("top1"), 2),
                number_text(end.get("candidates"), 0),
                number_text((row["visibility"] or {}).get("trained"), 2),
                *(span_text(figures[figure]) for figure in FIGURES),
                number_text((figures["validation"] or {}).get("seed_sd"), 3),
            ]
        )
    titles = [
        "encoder",
        "loss / chance",
        "top-1",
        "among",
        "visibility",
        *(FIGURE_TITLES[f] for f in FIGURES),
        "seed SD",
    ]
    note = (
        "`among`: candidates of which one is the positive. Seed SD: of Dice at the validation threshold. Visibility: "
        "movement of features under planted lesions divided by that under the run's own views, mean over the fitted "
        "layers."
    )
    return f"## Dice, {CHOICE_TITLES[choice]}\n\n{note}\n\n{_table(titles, rows)}"


def _differences(found: Found, choice: str) -> str:
    told = ("validation", "healthy", "ceil_dice")
    titles = ["encoder"]
    titles += [f"{FIGURE_TITLES[f]}: minus {other}" for other in ("untrained", "|z|") for f in told]
    rows = []
    for row in (*found["rows"], found["controls"][0]):
        own = row["choices"][choice]
        gains = [own[side].get(f) for side in ("minus_untrained", "minus_zscore") for f in told]
        rows.append([row["title"], *(_marked(gain) for gain in gains)])
    return (
        f"## Differences, {CHOICE_TITLES[choice]}\n\nPaired on the same subjects, with the untrained encoder of the "
        f"same seed, and with |z|. Bold: the interval leaves zero out.\n\n{_table(titles, rows)}"
    )


def _layers(found: Found) -> str:
    untrained = found["controls"][0]
    layers = list(untrained["layers"])
    rows = [[untrained["title"], *(number_text(untrained["layers"][x]["ceil_dice"]["mean"], 3) for x in layers)]]
    for row in found["rows"]:
        cells = [
            f"{number_text(row['layers'][x]['ceil_dice']['mean'])} ({_marked(row['layers'][x]['minus_untrained'])})"
            for x in layers
        ]
        rows.append([row["title"], *cells])
    return (
        "## One layer alone\n\n⌈Dice⌉ (pooled oracle), and in brackets the difference to the untrained encoder.\n\n"
        + _table(["encoder", *layers], rows)
    )


def _correlation(found: Found) -> str:
    lines = [f"- {line}" for line in correlation_lines(found["correlation"])]
    return "## Does the training loss say anything about localisation?\n\n" + "\n".join(lines)


def _training(found: Found) -> str:
    rows = []
    for row in found["rows"]:
        ends = row["contrastive"]["by_seed"].values()
        seconds = [end["seconds"] for end in ends if end["seconds"] is not None]
        rows.append(
            [
                row["title"],
                ", ".join(row["contrastive"]["states"]),
                ", ".join(sorted(set(row["headline_layers"].values()))),
                number_text(row["validation_dice"], 3),
                number_text(sum(seconds) / len(seconds) if seconds else None, 0),
            ]
        )
    titles = [
        "encoder",
        "verdict on training",
        "layers chosen on validation",
        "validation Dice",
        "seconds per training",
    ]
    return f"## Training\n\n{_table(titles, rows)}"


def _total_seconds(found: Found) -> float:
    ends = [end for row in found["rows"] for end in row["contrastive"]["by_seed"].values()]
    return float(sum(end["seconds"] or 0 for end in ends))


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---", *["--:"] * (len(titles) - 1)], *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Bars of |z| would end a cell."""
    return text.replace("|", "\\|")


def _marked(gain: Mapping[str, Any] | None) -> str:
    text = span_text(gain, signed=True)
    return f"**{text}**" if gain and said(gain) in ("better", "worse") else text

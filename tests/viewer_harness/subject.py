"""A synthetic brain: an ellipsoid with two lesions, one of them faint, and two score maps; all from one seed."""

import numpy as np
from numpy.random import Generator, Philox

DIMS = (60, 72, 60)
SPACING_MM = (3.0, 3.0, 3.0)
LESIONS = (((20, 44, 34), 5.0), ((40, 26, 30), 3.0))  # centre voxel, radius in voxels; the second is hard to find
BRIGHT_FALSE = (38, 50, 22)
NAMES = ("image", "brain", "lesion", "score-a", "score-b", "categories")
KINDS = (("left_alarm", "fp"), ("right_alarm", "fp"), ("never", "fn"), ("quiet_lesion", "fn"), ("hit", "tp"))
"""Error categories at the healthy threshold, codes from 1: alarms by side, missed lesion, found lesion."""


def volumes() -> dict[str, np.ndarray]:
    """uint8 volumes by name; scores as bytes on `levels()`."""
    grid = np.stack(np.meshgrid(*map(np.arange, DIMS), indexing="ij")).astype(np.float64)
    brain = _ball(grid, (29.5, 35.5, 29.5), (24.0, 31.0, 25.0)) <= 1
    noise = Generator(Philox(key=7)).normal(size=(2, *DIMS))
    lesion = np.zeros(DIMS, bool)
    for centre, radius in LESIONS:
        lesion |= _ball(grid, centre, (radius,) * 3) <= 1
    lesion &= brain
    score = _quantised(_scores(grid, noise[0], faint=0.35), brain)
    alarm, right = (score >= 150) & ~lesion, grid[0] >= 30
    return {
        "image": np.where(brain, np.clip(_anatomy(grid) + 4 * noise[0] + 40 * lesion, 1, 255), 0).astype(np.uint8),
        "brain": brain.astype(np.uint8),
        "lesion": lesion.astype(np.uint8),
        "score-a": score,
        "score-b": _quantised(_scores(grid, noise[1], faint=0.9), brain),
        "categories": np.select(
            [alarm & ~right, alarm & right, lesion & (score < 150), lesion], [1, 2, 4, 5], 0
        ).astype(np.uint8),
    }


def levels() -> list[float]:
    """255 ascending score levels."""
    return [float(v) for v in np.linspace(0.2, 51.0, 255)]


def protocol_score(step: int) -> float:
    """The score at which step `step` cuts."""
    return levels()[step - 1]


def data(prefix: str, maps: tuple[str, ...] = ("a",), healthy: bool = False) -> dict[str, object]:
    """What the viewer is given."""
    thresholds = [
        {"id": "healthy", "label": "healthy 99.5 %", "value": protocol_score(150), "oracle": False},
        {"id": "validation", "label": "validation Dice", "value": protocol_score(130), "oracle": False},
        {"id": "oracle", "label": "oracle Dice", "value": protocol_score(110), "oracle": True},
    ]
    return {
        "dims": DIMS,
        "spacing_mm": SPACING_MM,
        "affine": [[3.0, 0, 0, -90.0], [0, 3.0, 0, -126.0], [0, 0, 3.0, -72.0], [0, 0, 0, 1.0]],
        "subject_id": "phantom-healthy" if healthy else "phantom",
        "image_url": f"{prefix}/image",
        "brain_url": f"{prefix}/brain",
        "lesion_url": None if healthy else f"{prefix}/lesion",
        "maps": [
            {"id": m, "label": f"layer set {m}", "url": f"{prefix}/score-{m}", "levels": levels(),
             "unit": "Mahalanobis distance", "thresholds": thresholds}
            for m in maps
        ],
        "layers": [{"id": "b", "label": "layer b", "url": f"{prefix}/score-b", "levels": levels()}],
        "lesion_unreachable": 0,
        "categories": None if len(maps) > 1 else {
            "volumes": [{"protocol": "healthy", "label": "healthy", "value": protocol_score(150),
                         "url": f"{prefix}/categories"}],
            "list": [
                {"id": name, "code": code, "kind": kind, "title": name.replace("_", " "), "definition": "",
                 "advice": ""}
                for code, (name, kind) in enumerate(KINDS, start=1)
            ],
        },
        "reported": {"a": {"healthy": {"dice": 0.5, "text": "Exact, native 1 mm grid: Dice 0.512"}}},
        "state": {"threshold": "healthy"},
    }  # fmt: skip


def _ball(grid: np.ndarray, centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True))


def _anatomy(grid: np.ndarray) -> np.ndarray:
    depth = _ball(grid, (29.5, 35.5, 29.5), (24.0, 31.0, 25.0))
    folds = np.sin(grid[0] / 2.1) * np.sin(grid[1] / 2.4) * np.sin(grid[2] / 2.2)
    ventricle = sum(np.exp(-4 * _ball(grid, (x, 37, 33), (5, 12, 7))) for x in (25, 34))
    return 165 - 50 * (depth + 0.18 * folds > 0.72) - 110 * np.clip(ventricle, 0, 1)


def _scores(grid: np.ndarray, noise: np.ndarray, faint: float) -> np.ndarray:
    bumps = [(*LESIONS[0], 1.0), (*LESIONS[1], faint), (BRIGHT_FALSE, 3.0, 1.05), ((18, 18, 30), 4.0, 0.75)]
    bright = sum(40 * a * np.exp(-0.8 * _ball(grid, c, (r,) * 3)) for c, r, a in bumps)
    return 4 + 1.2 * np.abs(noise) + bright


def _quantised(scores: np.ndarray, brain: np.ndarray) -> np.ndarray:
    return np.where(brain, np.searchsorted(levels(), scores, side="right"), 0).astype(np.uint8)

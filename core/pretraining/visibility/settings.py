"""How much is looked at to see what an encoder was taught to ignore, and which lesions are planted for it."""

from dataclasses import dataclass

from data.planted_texture import Polarity


@dataclass(frozen=True)
class LesionKind:
    """A ball of one size whose intensities are moved by `data.planting.plant`."""

    polarity: Polarity
    diameter_mm: float
    contrast: float
    """Share of the way from the tissue's own intensity to that of fluid (hypo) or of the brightest tissue (hyper)."""

    @property
    def name(self) -> str:
        """As people say it: dark, 8 mm, contrast 0.4."""
        return f"{'dark' if self.polarity == 'hypo' else 'bright'}, {self.diameter_mm:g} mm, contrast {self.contrast:g}"


@dataclass(frozen=True)
class VisibilitySettings:
    """How much is looked at."""

    scans: int = 6
    """Healthy training scans, the first in order of a seeded draw."""
    window_voxels: int = 48
    """Edge of the part in the middle of the scan that the network sees; a training crop that is smaller is used."""
    draws: int = 2
    """Views of each kind and scan."""
    whole_views: int = 4
    """Views of each scan as training draws them."""
    diameters_mm: tuple[float, ...] = (4.0, 8.0, 16.0)
    """Of the planted lesions."""
    contrasts: tuple[float, ...] = (0.2, 0.4)
    """Of the planted lesions, 0 to 1."""
    places: int = 3
    """Lesions planted together into a scan, at least 32 mm apart, as far as there is room."""
    seed: int = 0
    """Of scans, views, places and textures."""

    def kinds(self) -> tuple[LesionKind, ...]:
        """Every lesion that is planted."""
        both: tuple[Polarity, ...] = ("hypo", "hyper")
        return tuple(LesionKind(p, float(d), float(c)) for p in both for d in self.diameters_mm for c in self.contrasts)

    def example(self) -> LesionKind:
        """The lesion that sentences speak of: dark, of the middle size, of the highest contrast."""
        ordered = sorted(self.diameters_mm)
        return LesionKind("hypo", float(ordered[len(ordered) // 2]), float(max(self.contrasts)))

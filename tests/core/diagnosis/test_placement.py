"""Places are named, and the template's brain is laid over scans, only where scans lie in MNI152 space."""

import io

import numpy as np
import pytest

from core.diagnosis.ceiling import subject_ceilings
from core.diagnosis.layer_cells import voxel_cells
from core.diagnosis.lesion_table import lesion_table
from core.diagnosis.placement import in_template_space, template_dice
from core.diagnosis.what_if import of_maps
from core.diagnosis.what_if.bench import Bench
from core.progress import Progress
from core.runs.listing import open_run
from core.study.cases import Case
from core.study.stored_scores import open_scores
from data.errors import BadInput
from data.template import working_template
from data.volume import Grid, Volume
from tests.study import TinyStudy


def shifted(voxels: int) -> Volume:
    """The template's brain at 4 mm, moved to the right."""
    brain = np.roll(working_template(4.0).brain_mask, voxels, axis=0)
    image = brain.astype(np.float32)[None]
    return Volume(image, working_template(4.0).grid, brain, f"shifted by {voxels}", ("T1",))


def test_a_brain_is_in_template_space_when_registered_or_when_it_overlaps_the_template() -> None:
    assert template_dice(shifted(0)) == 1
    assert in_template_space(shifted(1), "none")
    assert template_dice(shifted(5)) < 0.9
    assert not in_template_space(shifted(5), "none")
    assert in_template_space(shifted(5), "affine")
    other = Volume(
        np.ones((1, 8, 8, 8), np.float32), Grid((8, 8, 8), np.eye(4)), np.ones((8, 8, 8), bool), "x", ("T1",)
    )
    with pytest.raises(BadInput, match="not on the working grid"):
        template_dice(other)


def test_a_lesion_outside_template_space_has_no_region() -> None:
    volume = shifted(0)
    lesion = np.zeros(volume.grid.shape, dtype=bool)
    lesion[24:27, 24:27, 20:23] = True
    scores = np.where(volume.brain_mask, np.float32(1), np.float32(np.nan))
    case, layers = Case("sub-1", False, volume, lesion, scores), [voxel_cells("zscore", volume.grid)]
    given = (case, subject_ceilings(case, layers), layers, 0.5, scores * 0, scores * 0, {"zscore": scores})
    assert lesion_table(*given)[0]["region"]
    assert lesion_table(*given, in_mni=False)[0]["region"] is None


def bench_of(study: TinyStudy) -> Bench:
    scores = open_scores(open_run(study.runs, "tiny-intensity"))
    quiet = Progress(False, io.StringIO())
    return Bench(scores.run, scores, scores.layer_sets[-1], 0.99, None, quiet, n_bootstrap=50)


def test_the_template_mask_is_tried_only_in_template_space(study: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    found = of_maps.erode_mask(bench_of(study))
    assert [v["settings"]["mask"] for v in found.variants] == ["own"] * 3 + ["template"] * 4
    assert all("Euclidean" in v["title"] for v in found.variants)
    monkeypatch.setattr(of_maps, "template_dice", lambda volume: 0.5)
    elsewhere = of_maps.erode_mask(bench_of(study))
    assert [v["settings"]["mask"] for v in elsewhere.variants] == ["own"] * 3
    assert "do not lie in MNI152 space" in elsewhere.notes[0]

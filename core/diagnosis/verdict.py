"""The one sentence: what would raise Dice most, among changes that can be deployed, chosen on validation subjects."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.diagnosis.what_if.catalogue import best_deployable

_SHOWN_MM3 = "components of at least {0:g} mm³"


def verdict(
    counted: Mapping[str, Any],
    causes: Sequence[Mapping[str, Any]],
    what_ifs: Sequence[Mapping[str, Any]],
    post_processing: Mapping[str, Any] | None,
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """The deployable change with the highest gain on validation, and what it gives on test.

    Test gains play no part in the choice. `gain` is None when nothing that was measured gains on validation, or when
    nothing was measured yet; the sentence then says what to start.
    """
    protocol = counted["protocol"]
    offers = [
        offer
        for offer in (
            _from_what_ifs(what_ifs, protocol),
            _from_post_processing(post_processing, protocol),
            _from_layers(counted, causes, metrics),
        )
        if offer is not None
    ]
    loss = _largest_loss(counted)
    if not offers:
        measured = [r["title"] for r in what_ifs] + (["post-processing"] if post_processing else [])
        said = (
            f"None of what was measured ({', '.join(measured)}) gains on validation."
            if measured
            else "What would raise it is not measured yet: start what-ifs and post-processing."
        )
        return {**_NOTHING, "sentence": f"{loss} {said}"}
    best = max(offers, key=lambda offer: float(offer["validation_gain"]))
    return {**best, "chosen_on": "validation", "sentence": f"{loss} {_sentence(best)}"}


_NOTHING: dict[str, Any] = {
    "gain": None,
    "low": None,
    "high": None,
    "n": 0,
    "what_if": None,
    "variant": None,
    "chosen_on": "validation",
}


def settings_text(settings: Mapping[str, Any]) -> str:
    """A post-processing setting in words."""
    parts = []
    if settings["smoothing_mm"]:
        parts.append(f"Gaussian of {settings['smoothing_mm']:g} mm")
    if settings["median_voxels"]:
        parts.append(f"median of {settings['median_voxels']} voxels")
    if settings["erosion_voxels"]:
        layers = settings["erosion_voxels"]
        parts.append(f"brain less {layers} layer{'s' if layers > 1 else ''} of voxels")
    if settings["min_component_mm3"]:
        parts.append(_SHOWN_MM3.format(settings["min_component_mm3"]))
    return ", ".join(parts) or "none"


def _sentence(best: Mapping[str, Any]) -> str:
    span = "" if best["low"] is None else f" [{best['low']:+.3f}, {best['high']:+.3f}]"
    sure = "" if best["low"] is None or best["low"] > 0 or best["high"] < 0 else " The interval holds 0: not certain."
    return (
        f"Biggest deployable gain, chosen on validation ({best['validation_gain']:+.3f} there): {best['title']}. "
        f"On test Dice {best['before']:.3f} → {best['after']:.3f}, gain {best['gain']:+.3f}{span} "
        f"(n = {best['n']}, working grid).{sure}"
    ).replace("-0.", "−0.")


def _largest_loss(counted: Mapping[str, Any]) -> str:
    worst = max(counted["rungs"][1:], key=lambda rung: float(rung["cost"]))
    return (
        f"Of the {1 - counted['dice']['mean']:.3f} that Dice lacks, {worst['cost']:.3f} are lost because "
        f"{_BECAUSE[worst['id']]} (step “{worst['title'].lower()}”)."
    )


_BECAUSE = {
    "reachable": "lesions lie outside the scored brain",
    "feature_grid": "feature cells are too coarse for the lesions",
    "subject_threshold": "normal voxels score as high as lesion voxels: no threshold parts them",
    "set_threshold": "subjects would need different thresholds",
    "deployed_threshold": "the deployed threshold is not the best one",
    "native_space": "maps lose by the way to the scan's own space",
}


def _from_what_ifs(what_ifs: Sequence[Mapping[str, Any]], protocol: str) -> dict[str, Any] | None:
    best = best_deployable(what_ifs, protocol)
    if best is None:
        return None
    return {
        "what_if": best["what_if"],
        "variant": best["variant"],
        "title": best["title"],
        "validation_gain": best["validation"]["gain"],
        "before": best["baseline"],
        "after": best["with_variant"],
        **{key: best[key] for key in ("gain", "low", "high", "n")},
    }


def _from_post_processing(result: Mapping[str, Any] | None, protocol: str) -> dict[str, Any] | None:
    best = ((result or {}).get("best_on_validation") or {}).get(protocol)
    shipped = ((result or {}).get("shipped") or {}).get(protocol)
    if not best or not shipped or best["validation_dice"] - shipped["validation_dice"] <= 0:
        return None
    return {
        "what_if": "post-processing",
        "variant": settings_text(best["settings"]),
        "title": f"post-processing: {settings_text(best['settings'])}",
        "validation_gain": best["validation_dice"] - shipped["validation_dice"],
        "before": shipped["dice"],
        "after": best["dice"],
        "gain": best["gain"],
        "low": best["gain_low"],
        "high": best["gain_high"],
        "n": best["n"],
    }


def _from_layers(
    counted: Mapping[str, Any], causes: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Another layer set of the same fit: only its validation Dice at the validation threshold is known."""
    if counted["protocol"] != "validation":
        return None
    rated = {name: found["working"].get("validation_mean_dice") for name, found in metrics["sets"].items()}
    known = {name: value for name, value in rated.items() if value is not None}
    here = counted["layer_set"]
    if here not in known:
        return None
    best = max(known, key=lambda name: (known[name], -name.count("+")))
    cause = next(c for c in causes if c["id"] == "R15")
    if known[best] <= known[here] or cause["cost"] is None:
        return None
    before, after = (
        metrics["sets"][name]["working"]["protocols"][counted["protocol"]]["mean_dice"] for name in (here, best)
    )
    return {
        "what_if": "layers",
        "variant": best,
        "title": f"layers {best} in the place of {here}",
        "validation_gain": known[best] - known[here],
        "before": before,
        "after": after,
        "gain": cause["cost"],
        **{key: cause[key] for key in ("low", "high", "n")},
    }

"""The slice viewer: volumes drawn, thresholded and counted in the browser.

Python names the volumes by address and says where to start; the browser fetches them once and answers every
drag itself.
"""

import functools
from collections.abc import Callable
from typing import Any

import streamlit as st

from pages._door import base_path
from pages._viewer.assets import stylesheet, version

_LOADER = """
export default function (component) {
  const root = component.parentElement;
  const waiting = { component, cleanup: null, gone: false };
  import(new URL("BASE/api/viewer/VERSION/viewer.js", window.location.origin).href).then(
    (module) => { if (!waiting.gone) waiting.cleanup = module.default(waiting.component); },
    () => {
      const message = document.createElement("p");
      message.setAttribute("role", "alert");
      message.textContent = "The viewer could not be loaded. Start the dashboard with: python cli.py app";
      root.replaceChildren(message);
    },
  );
  return () => { waiting.gone = true; waiting.cleanup?.(); };
}
"""


def viewer(data: dict[str, Any], key: str, on_view: Callable[[], None] = lambda: None) -> dict[str, Any] | None:
    """Show linked planes of one score map, or one plane each of two to four; returns the view once the user rests.

    `data`: dims, spacing_mm, affine (voxel to RAS+ mm), subject_id; addresses image_url, brain_url, lesion_url of uint8
    volumes in C order; `maps` with url, 255 ascending `levels` (a byte q says how many levels are at or below the
    score) and `thresholds`; `layers` for the cross-hair; `reported` exact numbers by map and protocol; `state`.
    `categories`, of one map: `volumes` (protocol, label, value, url of a uint8 label map) and the `list` of what its
    codes mean (id, code, kind fp, fn or tp, title, definition, advice); the label map is fetched when first looked at.
    A field of `state` is applied when it differs from what Python gave before, so an echo never fights the user.
    The view is {x, y, z, threshold, opacity, window, convention, plane, show, categories, category}; None before the
    first change. `on_view` runs when it arrives; there, read `st.session_state[key]["view"]`.
    """
    result = _component()(key=key, data=data, on_view_change=on_view)
    view: dict[str, Any] | None = result.view
    return view


@functools.cache
def _component() -> Callable[..., Any]:
    loader = _LOADER.replace("VERSION", version()).replace("BASE", base_path())
    return st.components.v2.component("dicescope_viewer", js=loader, css=stylesheet())

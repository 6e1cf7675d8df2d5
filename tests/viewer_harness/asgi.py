"""The harness as an app: the viewer's modules, and the synthetic volumes packed once."""

import gzip

import streamlit as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pages._viewer.assets import viewer_route
from tests.viewer_harness.subject import volumes

_PACKED = {name: gzip.compress(voxels.tobytes(), 1) for name, voxels in volumes().items()}


async def volume(request: Request) -> Response:
    """One packed volume by name."""
    packed = _PACKED.get(request.path_params["name"])
    if packed is None:
        return PlainTextResponse("No such volume in this run.", status_code=404)
    headers = {"Content-Encoding": "gzip", "Cache-Control": "private, max-age=31536000, immutable"}
    return Response(packed, media_type="application/octet-stream", headers=headers)


app = st.App("page.py", routes=[Route("/api/volume/{run}/{subject}/{name}", volume), viewer_route()])

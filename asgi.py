"""The dashboard as one ASGI app: streamlit run asgi.py

Streamlit's pages, plus two routes: score volumes, compressed once, and the viewer's own modules.
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import streamlit as st
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from streamlit.runtime.pages_manager import PagesManager

from core.presentation.browser_volumes import packed_path
from core.presentation.door import HOSTS, NO_TOKEN, TOKEN, addresses, door_of, is_local
from data.errors import BadInput, EnvironmentProblem, IntegrityError
from pages._door import Guard, OnlyRoot, base_path
from pages._viewer.assets import viewer_route

__all__ = ["app", "is_local"]
_LOG = logging.getLogger(__name__)
KEPT = "private, max-age=31536000, immutable"
"""For addresses that contain a hash of the content."""


async def volume(request: Request) -> Response:
    """One uint8 volume of a run, already gzip-compressed. Unknown names are 404, without a word about paths."""
    ids = request.path_params
    runs = Path(os.environ.get("DICESCOPE_RUNS", "runs"))
    try:
        path = await run_in_threadpool(packed_path, runs, ids["run"], ids["subject"], ids["name"], ids.get("content"))
    except BadInput:
        return PlainTextResponse("No such volume in this run.", status_code=404)
    except (EnvironmentProblem, IntegrityError) as problem:
        _LOG.error("Volume %s of %s in run %s: %s", ids["name"], ids["subject"], ids["run"], problem)
        return PlainTextResponse("The volume could not be read. The server's log says why.", status_code=500)
    return FileResponse(
        path,
        media_type="application/octet-stream",
        headers={"Content-Encoding": "gzip", "Cache-Control": KEPT if "content" in ids else "no-store"},
    )


@asynccontextmanager
async def greet(_: st.App) -> AsyncIterator[None]:
    """Say where to open the dashboard when the token was made here, so that nobody else could."""
    if DOOR.token is not None and not TOLD:
        print(*addresses(DOOR, int(st.get_option("server.port"))), sep="\n", flush=True)
    yield


# A page that is opened before the front door would otherwise run by itself, outside st.navigation.
PagesManager.uses_pages_directory = False

DOOR = door_of(os.environ, base_path())
TOLD = os.environ.get(TOKEN) == DOOR.token
for name in (TOKEN, NO_TOKEN, HOSTS):  # no job that this server starts needs to know
    os.environ.pop(name, None)

app = st.App(
    "app.py",
    routes=[
        Route(f"{DOOR.base_path}/api/volume/{{run}}/{{subject}}/{{name}}/{{content}}", volume),
        Route(f"{DOOR.base_path}/api/volume/{{run}}/{{subject}}/{{name}}", volume),
        viewer_route(DOOR.base_path),
    ],
    middleware=[Middleware(Guard, door=DOOR), Middleware(OnlyRoot, door=DOOR)],
    lifespan=greet,
)

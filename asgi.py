"""The dashboard as one ASGI app: streamlit run asgi.py

Streamlit's pages, plus two routes: score volumes, compressed once, and the viewer's own modules.
"""

import logging
import os
from pathlib import Path

import streamlit as st
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit.runtime.pages_manager import PagesManager

from core.packed import packed_path
from data.errors import BadInput, EnvironmentProblem, IntegrityError
from pages._viewer.assets import viewer_route

_LOG = logging.getLogger(__name__)
KEPT = "private, max-age=31536000, immutable"
"""For addresses that contain a hash of the content."""
_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


class LocalOnly:
    """Answer only requests that name this machine as their host, so no web page can reach in by DNS rebinding."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a foreign Host (HTTP 403, WebSocket closed); mark every answer `nosniff`."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif not is_local(Headers(scope=scope).get("host", "")):
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1008})
            else:
                await PlainTextResponse("This server answers only localhost.", status_code=403)(scope, receive, send)
        else:
            await self.app(scope, receive, _nosniff(send))


class OnlyRoot:
    """Say quietly that the app is not below a page's address.

    Streamlit's browser asks /slices/_stcore/health before /_stcore/health and takes the first success as the app's
    address, so no success may be given here. Unlike Streamlit's 404, a 300 is not reported as an error by browsers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """HTTP 300 for health and host-config below a page's address; all else passes."""
        if scope["type"] == "http":
            page, below, question = scope["path"].strip("/").partition("/_stcore/")
            if below and question in ("health", "host-config") and "/" not in page:
                answer = PlainTextResponse("The app is at the root of this server.", status_code=300)
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)


def is_local(host: str) -> bool:
    """Whether a Host header names this machine: localhost, 127.0.0.1 or [::1], with or without a port."""
    name, separator, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if not separator:
        return host.lower() in _LOCAL_HOSTS
    return name.lower() in _LOCAL_HOSTS and port.isdecimal()


def _nosniff(send: Send) -> Send:
    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]
        await send(message)

    return marked


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


# A page that is opened before the front door would otherwise run by itself, outside st.navigation.
PagesManager.uses_pages_directory = False

app = st.App(
    "app.py",
    routes=[
        Route("/api/volume/{run}/{subject}/{name}/{content}", volume),
        Route("/api/volume/{run}/{subject}/{name}", volume),
        viewer_route(),
    ],
    middleware=[Middleware(LocalOnly), Middleware(OnlyRoot)],
)

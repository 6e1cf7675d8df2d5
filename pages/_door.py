"""The door before every answer of the dashboard: foreign hosts and origins, and whoever has no token, stay outside."""

import base64
import hashlib
import re
import threading
from pathlib import Path

import streamlit as st
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.presentation.door import Door, cookie_name, cookies, tokens_in

STANDING = threading.Event()
"""Set once a door stands before the pages of this process."""
_SAFE = ("GET", "HEAD", "OPTIONS")
_OWN_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_NO_KEY = (
    "This dashboard opens only to whoever started it.\n\n"
    "Open the address that was printed when it was started: it ends in ?token=... and is a new one at every start. "
    "The browser then remembers it until it is closed.\n"
    "To serve without a token: python cli.py app --no-token"
)
_AGAIN = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0"><title>Dicescope</title>'
"""A link on another site is followed without the cookie, which is SameSite=Strict; the page itself asks with it."""


class Guard:
    """Lets in who may come in, and marks every answer so that no other site can frame, sniff or be told of it.

    Refused are foreign Host headers (DNS rebinding), unsafe methods and WebSockets from a foreign Origin, and, when
    there is a token, everything but the health question without it.
    """

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app = app
        self.door = door
        self.policy = content_policy(_streamlit_page())
        STANDING.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer for the app (HTTP 403, 404 or a redirect, WebSocket closed), or pass on."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        answer = self._instead(scope)
        if answer is None:
            await self.app(_same_origin(scope), receive, self._marked(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            answer.headers["Cache-Control"] = "no-store"
            await answer(scope, receive, self._marked(send))

    def _instead(self, scope: Scope) -> Response | None:
        headers, door = Headers(scope=scope), self.door
        host, path = headers.get("host", ""), scope["path"]
        if len(headers.getlist("host")) != 1 or not door.answers_to(host):
            names = ", ".join(("localhost", *door.hosts))
            return PlainTextResponse(f"This server answers only to {names}.", status_code=403)
        acts = scope["type"] == "websocket" or scope["method"] not in _SAFE
        if acts and not door.serves(headers.get("origin", ""), host):
            return PlainTextResponse("Asked from another site. Only the dashboard's own pages may.", status_code=403)
        if door.base_path and path != door.base_path and not path.startswith(door.base_path + "/"):
            return PlainTextResponse(f"Nothing is here. The dashboard is at {door.base_path}/", status_code=404)
        if scope["type"] == "http" and path == f"{door.base_path}/_stcore/health" and scope["method"] in _SAFE:
            return None  # for supervisors: it says that a server runs, which the open port says too
        return self._without_key(scope, headers)

    def _without_key(self, scope: Scope, headers: Headers) -> Response | None:
        door, name = self.door, cookie_name((scope.get("server") or ("", 0))[1] or 0)
        if door.token is None:
            return None
        known = door.opens(cookies(headers.getlist("cookie"), name))
        tokens, query = tokens_in(scope["query_string"].decode("latin-1"))
        if tokens and scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            fits = door.opens(tokens)
            if fits or known:
                answer = RedirectResponse(_address(scope, query), status_code=303)
                if fits:
                    answer.set_cookie(
                        name,
                        door.token,
                        path=door.base_path or "/",
                        httponly=True,
                        samesite="strict",
                        secure=scope["scheme"] == "https",
                    )
                return answer
        if known:
            return None
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") == "navigate":
            return HTMLResponse(_AGAIN, status_code=403)
        return PlainTextResponse(_NO_KEY, status_code=403)

    def _marked(self, send: Send) -> Send:
        marks = (
            (b"content-security-policy", self.policy.encode()),
            (b"x-frame-options", b"DENY"),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"same-origin"),
            (b"cross-origin-resource-policy", b"same-origin"),
        )
        names = {name for name, _ in marks}

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name, value) for name, value in message.get("headers", []) if name.lower() not in names]
                message["headers"] = [*own, *marks]
            await send(message)

        return marked


class OnlyRoot:
    """Say quietly that the app is not below a page's address.

    Streamlit's browser asks /slices/_stcore/health before /_stcore/health and takes the first success as the app's
    address, so no success may be given here. Unlike Streamlit's 404, a 300 is not reported as an error by browsers.
    """

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app = app
        self.door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """HTTP 300 for health and host-config below a page's address; all else passes."""
        if scope["type"] == "http":
            page, below, question = scope["path"].removeprefix(self.door.base_path).strip("/").partition("/_stcore/")
            if below and question in ("health", "host-config") and "/" not in page:
                answer = PlainTextResponse("The app is at the root of this server.", status_code=300)
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)


def content_policy(page: bytes) -> str:
    """The Content-Security-Policy: nothing from elsewhere, no frame around us, no script in a page but its own.

    `page` is the HTML that Streamlit serves; its inline scripts are allowed by their hashes.
    """
    hashes = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _OWN_SCRIPT.findall(page)]
    scripts = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'self'; script-src 'self' blob: {scripts}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
        "worker-src 'self' blob:; frame-src 'self' data: blob:; object-src 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    )


def base_path() -> str:
    """Where this server lies below its host, as the start of an address: /dicescope, or nothing."""
    path = str(st.get_option("server.baseUrlPath") or "").strip("/")
    return f"/{path}" if path else ""


def left_open() -> bool:
    """Whether a browser looks at pages that no door stands before: they were started without asgi.py."""
    return bool(st.context.headers) and not STANDING.is_set()


def _streamlit_page() -> bytes:
    return (Path(st.__file__).parent / "static" / "index.html").read_bytes()


def _same_origin(scope: Scope) -> Scope:
    """Of a proxy that writes its own Host header, the Origin as Streamlit expects it: it was judged already."""
    headers = Headers(scope=scope)
    if "origin" not in headers or scope["type"] != "websocket":
        return scope
    own = (b"origin", b"http://" + headers.get("host", "").encode("latin-1"))
    return {**scope, "headers": [*((k, v) for k, v in scope["headers"] if k.lower() != b"origin"), own]}


def _address(scope: Scope, query: str) -> str:
    """This address on this host with another query; two leading slashes would lead to another host."""
    raw = scope.get("raw_path") or scope["path"].encode()
    path = "/" + raw.decode("latin-1").lstrip("/\\")
    return f"{path}?{query}" if query else path

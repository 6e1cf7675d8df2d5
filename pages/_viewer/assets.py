"""The viewer's own files, under an address that changes with their content, so a browser may keep them for good."""

import functools
import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

_FOLDER = Path(__file__).parent / "static"
_MODULES = ("viewer.js", "panel.js", "planes.js", "colours.js", "counts.js", "volumes.js", "categories.js")


@functools.cache
def version() -> str:
    """Sixteen hex digits of the content of all modules."""
    digest = hashlib.sha256(b"".join((_FOLDER / name).read_bytes() for name in _MODULES))
    return digest.hexdigest()[:16]


def stylesheet() -> str:
    """The style sheet, for the component's shadow root."""
    return (_FOLDER / "viewer.css").read_text(encoding="utf-8")


def viewer_route(base: str = "") -> Route:
    """Serve the modules below `base`; other names and stale versions are 404."""
    return Route(f"{base}/api/viewer/{{version}}/{{name}}", _module)


async def _module(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _MODULES or request.path_params["version"] != version():
        return PlainTextResponse("No such file. Reload the page.", status_code=404)
    return Response(
        (_FOLDER / name).read_bytes(),
        media_type="text/javascript",
        headers={"Cache-Control": "private, max-age=31536000, immutable"},
    )

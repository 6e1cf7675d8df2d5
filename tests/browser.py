"""The browser that the page tests drive."""

import os
import shutil

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str:
    """Path of Chromium: $CHROMIUM, else the first of the usual names on PATH. Raises when there is none."""
    given = os.environ.get("CHROMIUM")
    found = shutil.which(given) if given else next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        raise RuntimeError(
            f"No browser for the page tests. Looked for: {given or ', '.join(_NAMES)}. "
            "Install Chromium (apt-get install chromium) or set CHROMIUM to its path."
        )
    return found

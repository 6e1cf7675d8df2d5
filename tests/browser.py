"""The browser that the page tests drive, and the app that they drive it on."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

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
_ROOT = Path(__file__).resolve().parents[1]
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


@contextmanager
def serve(script: Path, **environment: str) -> Iterator[str]:
    """Run a Streamlit app on a free local port; yields its address, and stops that one process at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(script)]
    options = ["--server.address", "127.0.0.1", "--server.port", str(port), "--server.fileWatcherType", "none"]
    paths = {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            command + options, cwd=_ROOT, env=os.environ | paths | environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            _await_health(server, port, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=20)


def _await_health(server: "subprocess.Popen[bytes]", port: int, log: IO[bytes], patience_s: float = 60) -> None:
    deadline = time.monotonic() + patience_s
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    log.seek(0)
    raise RuntimeError(f"The app did not start on port {port}:\n{log.read().decode(errors='replace')[-2000:]}")

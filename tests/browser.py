"""The browser that the page tests drive, and the app that they drive it on."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from playwright.sync_api import sync_playwright

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
_INSTALLERS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("apt-get", "update", "-qq"), ("apt-get", "install", "-y", "-qq", "chromium")),
    ((sys.executable, "-m", "playwright", "install", "chromium"),),
)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str:
    """Path of Chromium: $CHROMIUM, else the first of the usual names on PATH. Raises when there is none."""
    given = os.environ.get("CHROMIUM")
    found = shutil.which(given) if given else next(filter(None, map(shutil.which, _NAMES)), None) or _playwrights_own()
    if found is None:
        raise RuntimeError(
            f"No browser for the page tests. Looked for: {given or ', '.join(_NAMES)}. "
            "Install Chromium (apt-get install chromium) or set CHROMIUM to its path."
        )
    return found


def ensure_chromium() -> str:
    """`find_chromium`, after trying to install one where this machine lets us: as root by apt, else by Playwright."""
    try:
        return find_chromium()
    except RuntimeError:
        print("No Chromium here yet; installing one.", flush=True)
    for commands in _INSTALLERS if hasattr(os, "geteuid") and os.geteuid() == 0 else _INSTALLERS[1:]:
        if all(_succeeds(command) for command in commands):
            with contextlib.suppress(RuntimeError):
                return find_chromium()
    return find_chromium()


@contextmanager
def serve(script: Path, *, log: Path | None = None, **environment: str) -> Iterator[str]:
    """Run a Streamlit app on a free local port; yields its address, and stops that one process at the end.

    Without a token, unless DICESCOPE_NO_TOKEN="" is given; `log` keeps what the server prints.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(script)]
    options = ["--server.address", "127.0.0.1", "--server.port", str(port), "--server.fileWatcherType", "none"]
    paths = {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", "DICESCOPE_NO_TOKEN": "1"}
    with tempfile.TemporaryFile() if log is None else log.open("w+b") as printed:
        server = subprocess.Popen(
            command + options, cwd=_ROOT, env=os.environ | paths | environment, stdout=printed, stderr=subprocess.STDOUT
        )
        try:
            _await_health(server, port, printed)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=20)


def _succeeds(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, timeout=400, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _playwrights_own() -> str | None:
    with sync_playwright() as playwright:
        path = Path(playwright.chromium.executable_path)
    return str(path) if path.is_file() else None


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


if __name__ == "__main__":
    try:
        print(f"Browser for the page tests: {ensure_chromium()}")
    except RuntimeError as problem:
        sys.exit(str(problem))

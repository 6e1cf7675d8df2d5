"""The dashboard, served on this machine."""

import errno
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from core.presentation.door import LOCAL_HOSTS, Door, addresses, base_path, host_name, new_token, told
from data.errors import EnvironmentProblem, Interrupted
from verbs.shared import EXIT_ENVIRONMENT, EXIT_OK, RUNS, Verbs


@dataclass(frozen=True)
class AppVerb:
    """Serve the dashboard on this machine only, to whoever has the address that is printed: it holds a fresh token.

    Example: python cli.py app --port 8501
    """

    runs: Path = RUNS
    """Directory that holds the runs."""
    port: int = 8501
    """TCP port on 127.0.0.1."""
    no_token: bool = False
    """Let in whoever reaches the port, other accounts of this machine too."""
    allow_host: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Another name to answer to, as a proxy before it is called; may be given several times."""
    base_path: str = ""
    """Path to serve under, as a proxy hands it on, such as /dicescope."""


def _app(arguments: AppVerb) -> int:
    door = Door(
        None if arguments.no_token else new_token(),
        tuple(dict.fromkeys(map(host_name, arguments.allow_host))),
        base_path(arguments.base_path),
    )
    _claim_port(arguments.port)
    root = Path(__file__).resolve().parent.parent
    names = sorted(LOCAL_HOSTS) + [name.partition(":")[0] for name in door.hosts]
    command = [
        *(sys.executable, "-m", "streamlit", "run", str(root / "asgi.py")),
        *("--server.address", "127.0.0.1", "--server.port", str(arguments.port), "--server.headless", "true"),
        *("--server.baseUrlPath", door.base_path),
        *(word for name in names for word in ("--server.allowedHosts", name)),
    ]
    environment = {**os.environ, "DICESCOPE_RUNS": str(arguments.runs.resolve()), **told(door)}
    here, *elsewhere = addresses(door, arguments.port)
    print(f"Dicescope on {here}  (Ctrl-C ends it)", flush=True)
    for address in elsewhere:
        print(f"Through a proxy: {address}", flush=True)
    server = subprocess.Popen(command, env=environment, cwd=root)
    try:
        return EXIT_OK if server.wait() in (0, -signal.SIGTERM, -signal.SIGINT) else EXIT_ENVIRONMENT
    except (KeyboardInterrupt, Interrupted):
        return EXIT_OK
    finally:
        server.terminate()
        server.wait()


def _claim_port(port: int) -> None:
    # Before anything is printed: an address that leads to someone else's server is worse than none.
    if _is_free(port):
        return
    nearby = next((p for p in range(port + 1, min(port + 100, 65536)) if _is_free(p)), None)
    raise EnvironmentProblem(f"Port {port} is in use, try --port {nearby}" if nearby else f"Port {port} is in use.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a closed one is no hindrance
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise EnvironmentProblem(f"Port {port} cannot be used: {error.strerror}. Try --port 8501") from error
            return False
    return True


VERBS: Verbs = {
    "app": (AppVerb, _app),
}

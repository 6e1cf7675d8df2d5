"""Who may speak to the dashboard: the names it answers to, the path it lies under, and the secret of one launch."""

import hmac
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_plus, urlsplit

from data.errors import BadInput

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
TOKEN, NO_TOKEN, HOSTS = "DICESCOPE_TOKEN", "DICESCOPE_NO_TOKEN", "DICESCOPE_HOSTS"
"""Environment variables by which the launcher tells the server: other accounts read arguments, not these."""
SHORTEST = 16
"""Characters of the shortest token: 96 bits in base 64."""
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_BASE = re.compile(r"(/[A-Za-z0-9][A-Za-z0-9._~-]*)+")


@dataclass(frozen=True)
class Door:
    """What one launch lets in."""

    token: str | None
    """Secret that opens the dashboard; None lets in whoever reaches the port."""
    hosts: tuple[str, ...] = ()
    """Names beside localhost that it answers to, as a proxy is called: name or name:port."""
    base_path: str = ""
    """Where it lies below the host, such as /dicescope; empty at the root."""

    def answers_to(self, host: str) -> bool:
        """Whether a Host header names this machine or one of `hosts`, with or without a port."""
        if is_local(host):
            return True
        name, port = _parted(host.lower())
        return (not port or port.isdecimal()) and name in {_parted(one)[0] for one in self.hosts}

    def serves(self, origin: str, host: str) -> bool:
        """Whether an Origin header is the address that was served: the host that is asked, or one of `hosts`."""
        try:
            scheme, place = urlsplit(origin)[:2]
        except ValueError:
            return False
        if scheme not in ("http", "https") or f"{scheme}://{place}" != origin:
            return False
        return place.lower() in {host.lower(), *self.hosts}

    def opens(self, offered: Iterable[str]) -> bool:
        """Whether the token is among what was offered; each is compared in constant time. No token opens to all."""
        if self.token is None:
            return True
        secret = self.token.encode()
        return any(hmac.compare_digest(secret, one.encode("utf-8", "surrogateescape")) for one in offered)


def is_local(host: str) -> bool:
    """Whether a Host header names this machine: localhost, 127.0.0.1 or [::1], with or without a port."""
    name, port = _parted(host.lower())
    return name in LOCAL_HOSTS and (port.isdecimal() if name != host.lower() else True)


def new_token() -> str:
    """A fresh secret of 256 bits that can stand in an address."""
    return secrets.token_urlsafe(32)


def host_name(text: str) -> str:
    """A name that a proxy is called by, in lower case: name or name:port; BadInput for anything else."""
    name, port = _parted(text.strip().lower())
    fits = _NAME.fullmatch(name) is not None and len(name) <= 253
    if not fits or (":" in text and not (port.isdecimal() and 0 < int(port) < 65536)):
        raise BadInput(
            f"--allow-host {text!r} is not the name of a host. Give the name alone, without http:// and path, such as "
            "brain.example.org or brain.example.org:8443; no wildcard is allowed."
        )
    return f"{name}:{int(port)}" if port else name


def base_path(text: str) -> str:
    """A path to lie under with a leading and no trailing slash; empty for the root. BadInput for anything else."""
    path = "/" + text.strip("/") if text.strip("/") else ""
    if path and (_BASE.fullmatch(path) is None or len(path) > 200):
        raise BadInput(
            f"--base-path {text!r} is not a path to serve under. Give letters, digits, '.', '_', '~' and '-', parts "
            "divided by '/', each beginning with a letter or digit, such as /dicescope."
        )
    return path


def door_of(environment: Mapping[str, str], path: str) -> Door:
    """The door that the environment describes, below `path`; without a word about a token it makes its own.

    BadInput for a token that is guessed too easily, and for names that are none.
    """
    hosts = tuple(host_name(name) for name in environment.get(HOSTS, "").split(",") if name.strip())
    if environment.get(NO_TOKEN) == "1":
        return Door(None, hosts, base_path(path))
    token = environment.get(TOKEN) or new_token()
    if len(token) < SHORTEST or re.fullmatch(r"[A-Za-z0-9_-]+", token) is None:
        raise BadInput(
            f"{TOKEN} has {len(token)} characters. Allowed are {SHORTEST} or more letters, digits, '-' and '_'; leave "
            "it out and one is made."
        )
    return Door(token, hosts, base_path(path))


def told(door: Door) -> dict[str, str]:
    """The environment variables, all of them, that make `door_of` give the same door again, but for its path."""
    return {TOKEN: door.token or "", NO_TOKEN: "1" if door.token is None else "", HOSTS: ",".join(door.hosts)}


def addresses(door: Door, port: int) -> list[str]:
    """Where to open the dashboard: on this machine, then through each allowed name."""
    key = "" if door.token is None else f"?token={door.token}"
    places = [f"http://127.0.0.1:{port}", *(f"https://{name}" for name in door.hosts)]
    return [f"{place}{door.base_path}/{key}" for place in places]


def cookie_name(port: int) -> str:
    """Cookies ignore ports, so the port stands in the name: two dashboards of one machine do not shut each other."""
    return f"dicescope-{port}"


def cookies(headers: Sequence[str], name: str) -> list[str]:
    """Every value of a cookie in Cookie headers; two paths of one host may both give one."""
    pairs = (pair.strip().partition("=") for header in headers for pair in header.split(";"))
    return [value for key, _, value in pairs if key == name]


def tokens_in(query: str) -> tuple[list[str], str]:
    """The values of `token` in a query, and the query without them; what is left keeps its bytes."""
    parts = [part for part in query.split("&") if part]
    named = [part.partition("=") for part in parts]
    tokens = [unquote_plus(value) for key, _, value in named if unquote_plus(key) == "token"]
    rest = [part for part, (key, _, _) in zip(parts, named, strict=True) if unquote_plus(key) != "token"]
    return tokens, "&".join(rest)


def _parted(host: str) -> tuple[str, str]:
    """Name and port; the port is empty when there is none. An IPv6 address keeps its brackets."""
    if host.endswith("]") or ":" not in host:
        return host, ""
    name, _, port = host.rpartition(":")
    return name, port

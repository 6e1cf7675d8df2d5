"""Nobody gets in without the token, from another site or under another name; who has it sees everything."""

import asyncio
import http.server
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

import cli
from core.presentation.door import (
    HOSTS,
    NO_TOKEN,
    TOKEN,
    Door,
    addresses,
    base_path,
    cookies,
    door_of,
    host_name,
    is_local,
    new_token,
    tokens_in,
    told,
)
from data.errors import BadInput
from pages._door import Guard, OnlyRoot
from tests.browser import FLAGS, find_chromium, serve
from tests.study import TinyStudy

ROOT = Path(__file__).parents[2]
SECRET = "a-secret-of-this-launch-0123456789"
KEY = f"dicescope-8501={SECRET}"
HERE = "127.0.0.1:8501"
GIVEN_AWAY = (
    "/",
    "/slices",
    "/api/volume/tiny/test01/image-0",
    "/api/viewer/v/viewer.js",
    "/media/x.png",
    "/static/js/index.js",
    "/_stcore/host-config",
    "/_stcore/metrics",
    "/component/x",
    "/nothing",
)


def ask(
    path: str = "/",
    *,
    door: Door | None = None,
    kind: str = "http",
    method: str = "GET",
    query: str = "",
    scheme: str = "http",
    **headers: str,
) -> tuple[int, dict[str, str], str]:
    """What the door answers: status (101: a WebSocket was let in), headers, text; 200 "inside" is the app's own."""
    given = {"host": HERE} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope: dict[str, Any] = {
        "type": kind,
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(k.encode(), v.encode("latin-1")) for k, v in given.items()],
        "server": ("127.0.0.1", 8501),
        "scheme": scheme,
        "http_version": "1.1",
    }
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Frame-Options", b"ALLOWALL")]})
        await send({"type": "http.response.body", "body": b"inside"})

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect" if kind == "websocket" else "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    own = Door(SECRET) if door is None else door
    asyncio.run(Guard(OnlyRoot(app, own), own)(scope, receive, send))
    if kind == "websocket":
        return (101 if sent[0]["type"] == "websocket.accept" else 403), {}, ""
    told = {k.decode().lower(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], told, b"".join(m.get("body", b"") for m in sent[1:]).decode()


@pytest.mark.parametrize("path", GIVEN_AWAY)
@pytest.mark.parametrize(
    "cookie",
    [
        "",
        "dicescope-8501=",
        "dicescope-8501=wrong",
        f"dicescope-8502={SECRET}",
        f"other={SECRET}",
        f"dicescope-8501={SECRET[:-1]}",
        f"dicescope-8501={SECRET}x",
    ],
)
def test_without_the_token_every_address_is_closed(path: str, cookie: str) -> None:
    status, _, text = ask(path, cookie=cookie)
    assert status == 403
    assert "address that was printed" in text
    assert SECRET not in text


def test_the_cookie_opens_and_the_wrong_one_beside_it_does_no_harm() -> None:
    assert ask(cookie=KEY)[2] == "inside"
    assert ask(cookie=f"a=b; dicescope-8501=wrong; {KEY}; c=d")[2] == "inside"
    assert ask(cookie="dicescope-8501=\xff\xfe")[0] == 403


def test_a_websocket_needs_the_cookie_and_the_served_origin() -> None:
    def socket_of(**headers: str) -> int:
        return ask("/_stcore/stream", kind="websocket", **headers)[0]

    own = f"http://{HERE}"
    assert socket_of(cookie=KEY, origin=own) == 101
    assert socket_of(origin=own) == 403
    assert ask("/_stcore/stream", kind="websocket", query=f"token={SECRET}", origin=own)[0] == 403
    assert socket_of(cookie=KEY) == 403
    for foreign in (
        "null",
        "",
        "http://localhost:8501",
        "http://127.0.0.1:9999",
        "http://127.0.0.1",
        "https://evil.org",
        f"http://{HERE}.evil.org",
        f"http://evil@{HERE}",
        f"file://{HERE}",
        f"{own}/",
        "http://[::1",
    ):
        assert socket_of(cookie=KEY, origin=foreign) == 403, foreign


def test_without_a_token_by_choice_the_origin_still_counts() -> None:
    door = Door(None)
    assert ask("/", door=door)[2] == "inside"
    assert ask("/_stcore/stream", door=door, kind="websocket", origin=f"http://{HERE}")[0] == 101
    assert ask("/_stcore/stream", door=door, kind="websocket", origin="https://evil.org")[0] == 403
    assert ask("/", door=door, host="evil.org")[0] == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"])
def test_an_unsafe_method_is_taken_from_the_served_origin_only(method: str) -> None:
    path = "/_stcore/upload_file/session/file"
    assert ask(path, method=method, cookie=KEY, origin="https://evil.org")[0] == 403
    assert ask(path, method=method, cookie=KEY)[0] == 403
    assert ask(path, method=method, cookie=KEY, origin=f"http://{HERE}")[2] == "inside"
    assert ask(path, method=method, origin=f"http://{HERE}")[0] == 403


def test_the_right_token_becomes_a_cookie_and_leaves_the_address() -> None:
    status, headers, _ = ask("/slices", query=f"run=a%20b&token={SECRET}&layers=x&layers=y%2Bz")
    assert (status, headers["location"]) == (303, "/slices?run=a%20b&layers=x&layers=y%2Bz")
    cookie = headers["set-cookie"].lower()
    assert headers["set-cookie"].startswith(f"{KEY};")
    assert {"httponly", "path=/", "samesite=strict"} <= set(cookie.split("; "))
    assert "max-age" not in cookie
    assert "expires" not in cookie
    assert headers["cache-control"] == "no-store"
    assert "secure" in ask("/", query=f"token={SECRET}", scheme="https")[1]["set-cookie"].lower()


def test_a_wrong_token_opens_nothing_and_an_old_one_is_dropped_by_who_is_in() -> None:
    assert ask(query="token=wrong")[0] == 403
    assert ask(query="token=")[0] == 403
    status, headers, _ = ask("/data", query="token=old&run=x", cookie=KEY)
    assert (status, headers["location"]) == (303, "/data?run=x")
    assert "set-cookie" not in headers
    assert ask(query=f"token={SECRET}", method="POST", origin=f"http://{HERE}")[0] == 403


@pytest.mark.parametrize("path", ["//evil.org/x", "/\\evil.org", "///evil.org", "/\\/evil.org"])
def test_a_redirect_stays_on_this_host(path: str) -> None:
    location = ask(path, query=f"token={SECRET}")[1]["location"]
    assert re.match(r"/[^/\\]", location)


@pytest.mark.parametrize(
    ("case", "headers"),
    [
        ("inside", {"cookie": KEY}),
        ("no key", {}),
        ("foreign host", {"host": "evil.org"}),
        ("redirect", {"query": f"token={SECRET}"}),
        ("from elsewhere", {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}),
    ],
)
def test_every_answer_forbids_frames_sniffing_and_referrers(case: str, headers: dict[str, str]) -> None:
    found = ask(**headers)[1]
    assert "frame-ancestors 'none'" in found["content-security-policy"]
    assert found["x-frame-options"] == "DENY"
    assert found["x-content-type-options"] == "nosniff"
    assert found["referrer-policy"] == "same-origin"
    assert found["cross-origin-resource-policy"] == "same-origin"


def test_a_link_on_another_site_is_asked_again_from_here_and_then_needs_the_cookie() -> None:
    elsewhere = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    status, _, text = ask("/slices", query="run=x", **elsewhere)
    assert status == 403
    assert 'http-equiv="refresh"' in text
    assert "http-equiv" not in ask("/slices", query="run=x", sec_fetch_site="same-origin", sec_fetch_mode="navigate")[2]
    assert "http-equiv" not in ask("/media/x.png", sec_fetch_site="cross-site", sec_fetch_mode="no-cors")[2]


def test_only_the_health_question_is_open() -> None:
    assert ask("/_stcore/health")[2] == "inside"
    assert ask("/_stcore/health", method="POST", origin=f"http://{HERE}")[0] == 403
    assert ask("/_stcore/health/", host="evil.org")[0] == 403
    assert ask("/_stcore/health/../host-config")[0] == 403


@pytest.mark.parametrize(
    "host",
    [
        "evil.org",
        "127.0.0.1.evil.org",
        "127.0.0.1:8501@evil.org",
        "",
        "localhost:",
        "0.0.0.0",
        "brain.example.org",
        "localhost:80:80",
        "[::1]:x",
    ],
)
def test_a_foreign_host_is_refused_even_with_the_cookie(host: str) -> None:
    assert ask(host=host, cookie=KEY)[0] == 403


def test_an_allowed_name_is_answered_with_its_own_origin_and_still_the_token() -> None:
    door = Door(SECRET, (host_name("Brain.Example.org"), "other.example.org:8443"))
    for host in ("brain.example.org", "BRAIN.example.org:443", "other.example.org:8443", "127.0.0.1:8501"):
        assert ask(door=door, host=host, cookie=KEY)[2] == "inside"
        assert ask(door=door, host=host)[0] == 403

    def socket_of(host: str, origin: str) -> int:
        return ask("/_stcore/stream", door=door, kind="websocket", cookie=KEY, host=host, origin=origin)[0]

    assert socket_of("brain.example.org", "https://brain.example.org") == 101
    assert socket_of("127.0.0.1:8501", "https://brain.example.org") == 101  # a proxy that writes its own Host
    assert socket_of("127.0.0.1:8501", "https://other.example.org:8443") == 101
    assert socket_of("127.0.0.1:8501", "https://other.example.org") == 403
    assert socket_of("127.0.0.1:8501", "https://brain.example.org:9999") == 403
    assert socket_of("brain.example.org", "https://x.brain.example.org") == 403


def test_below_a_path_only_that_path_answers_and_the_cookie_is_its_own() -> None:
    door = Door(SECRET, base_path="/dicescope")
    assert ask("/dicescope/slices", door=door, cookie=KEY)[2] == "inside"
    assert ask("/dicescope", door=door, cookie=KEY)[2] == "inside"
    assert ask("/dicescope/_stcore/health", door=door)[2] == "inside"
    for outside in ("/", "/slices", "/dicescopes", "/_stcore/stream", "/_stcore/health"):
        assert ask(outside, door=door, cookie=KEY)[0] == 404
    status, headers, _ = ask("/dicescope/slices", door=door, query=f"token={SECRET}&run=x")
    assert (status, headers["location"]) == (303, "/dicescope/slices?run=x")
    assert "Path=/dicescope;" in headers["set-cookie"] + ";"
    assert ask("/dicescope/slices/_stcore/health", door=door, cookie=KEY)[0] == 300
    assert ask("/dicescope/_stcore/host-config", door=door, cookie=KEY)[2] == "inside"


@pytest.mark.parametrize(
    "name",
    [
        "*",
        "*.example.org",
        "https://example.org",
        "example.org/x",
        "a b",
        "",
        "-a.org",
        "a..b",
        "example.org:",
        "example.org:0",
        "example.org:99999",
        "a,b",
        "exämple.org",
        "a" * 300,
        "user@example.org",
        "example.org:80:80",
    ],
)
def test_a_host_that_is_no_name_is_refused_in_words(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match="not the name of a host"):
        host_name(name)
    assert cli.main(["app", f"--allow-host={name}"]) == 2
    assert "brain.example.org" in capsys.readouterr().err


@pytest.mark.parametrize(
    "path",
    [
        "/a/../b",
        "/..",
        "/a b",
        "/a?b",
        "/a#b",
        "/a//b",
        "https://x",
        "/ä",
        "/%2e",
        "/_stcore",
        "/a/_b",
        "/a\\b",
        "/'",
        '/"',
        "/" + "a" * 300,
        "/a\n",
    ],
)
def test_a_path_that_is_none_is_refused_in_words(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match="not a path to serve under"):
        base_path(path)
    assert cli.main(["app", f"--base-path={path}"]) == 2
    assert "/dicescope" in capsys.readouterr().err


def test_paths_and_names_are_written_one_way() -> None:
    assert [base_path(p) for p in ("", "/", "/a", "a/", "/lab/dice-scope.1/")] == [
        "",
        "",
        "/a",
        "/a",
        "/lab/dice-scope.1",
    ]
    assert [host_name(n) for n in ("Node7", " a.b ", "10.0.0.5:80")] == ["node7", "a.b", "10.0.0.5:80"]


def test_the_environment_gives_the_same_door_again_and_an_inherited_one_opens_nothing() -> None:
    for door in (Door(SECRET), Door(None, ("a.org",)), Door(new_token(), ("a.org:1", "b.org"), "/x")):
        outer = {TOKEN: "0" * 40, NO_TOKEN: "1", HOSTS: "evil.org"}
        assert door_of(outer | told(door), door.base_path) == door
    assert len({door_of({}, "").token for _ in range(5)}) == 5
    assert all(len(door_of({}, "").token or "") >= 43 for _ in range(5))
    with pytest.raises(BadInput, match="16 or more"):
        door_of({TOKEN: "short"}, "")
    with pytest.raises(BadInput, match="not the name of a host"):
        door_of({HOSTS: "a.org,*"}, "")


def test_queries_cookies_and_addresses_are_read_to_the_letter() -> None:
    assert tokens_in("a=1&to%6ben=x%2By&&token=&b=%F0%9F") == (["x+y", ""], "a=1&b=%F0%9F")
    assert cookies(["a=1; k=v=w", "k=2"], "k") == ["v=w", "2"]
    assert addresses(Door("t" * 20, ("a.org",), "/x"), 80) == [
        f"{p}/x/?token={'t' * 20}" for p in ("http://127.0.0.1:80", "https://a.org")
    ]
    assert addresses(Door(None), 8501) == ["http://127.0.0.1:8501/"]
    assert is_local("[::1]")


@contextmanager
def launched(runs: Path, *words: str) -> Iterator[tuple[str, int]]:
    """`cli.py app` as its user starts it; yields the first printed address and the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, str(ROOT / "cli.py"), "app", "--runs", str(runs), "--port", str(port), *words]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {NO_TOKEN: "1"})
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        yield line.split()[2], port
    finally:
        server.terminate()
        server.wait(timeout=30)


def status_of(url: str, **headers: str) -> int:
    request = urllib.request.Request(url, headers={k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def await_health(url: str) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=5):
                return
        except OSError:
            threading.Event().wait(0.2)
    raise AssertionError("The app did not start.")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def another_site(link: str) -> Iterator[str]:
    """A page elsewhere that links to us and frames us; yields its address. localhost is another site than 127.0.0.1."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f'<a href="{link}">look</a><iframe src="{link}"></iframe>'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()


@pytest.mark.browser
def test_the_printed_address_opens_everything_and_nothing_else_does(study: TinyStudy, browser: Browser) -> None:
    with launched(study.runs, "--base-path", "/lab/dicescope", "--allow-host", "brain.example.org") as (address, port):
        root = f"http://127.0.0.1:{port}/lab/dicescope"
        assert address.startswith(f"{root}/?token=")
        await_health(root)
        token = address.partition("token=")[2]
        assert status_of(f"{root}/") == 403
        assert status_of(f"{root}/api/volume/tiny/test01/brain") == 403
        cookie = f"dicescope-{port}={token}"
        assert status_of(f"{root}/", Cookie=cookie) == 200
        assert status_of(f"{root}/", Cookie=cookie, Host="brain.example.org") == 200
        assert status_of(f"{root}/", Cookie=cookie, Host="evil.example.org") == 403
        request = urllib.request.Request(f"{root}/_stcore/host-config", headers={"Cookie": cookie})
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert '"allowedOrigins":[]' in answer.read().decode()

        context = browser.new_context(viewport={"width": 1280, "height": 1000})
        page = context.new_page()
        complaints: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        expect(page.get_by_role("heading", level=1, name="Overview")).to_be_visible(timeout=120_000)
        assert "token" not in page.url
        assert page.evaluate("() => document.cookie").find("dicescope") == -1
        page.get_by_test_id("stSidebarNavLink").filter(has_text="Slices").click()
        page.wait_for_selector('[data-testid=panel][data-ready="1"]', timeout=120_000)
        assert page.url.startswith(f"{root}/slices")
        with page.expect_download() as download:
            page.get_by_test_id("stSidebarNavLink").filter(has_text="Report").click()
            page.get_by_test_id("stDownloadButton").get_by_role("button").click(timeout=120_000)
        assert download.value.suggested_filename.endswith(".html")
        assert complaints == []
        assert {url.split("/")[2] for url in asked if url.startswith("http")} == {f"127.0.0.1:{port}"}
        assert not [url for url in asked[1:] if token in url]

        with another_site(f"{root}/data?run=tiny") as elsewhere:
            page.goto(elsewhere)
            page.wait_for_timeout(500)
            assert any("frame" in text.lower() for text in complaints)
            page.get_by_role("link", name="look").click()
            expect(page.get_by_role("heading", level=1, name="Data")).to_be_visible(timeout=120_000)
            stranger = browser.new_context()
            unknown = stranger.new_page()
            unknown.goto(elsewhere)
            unknown.get_by_role("link", name="look").click()
            expect(unknown.get_by_text("opens only to whoever started it")).to_be_visible()
            stranger.close()
        context.close()


@pytest.mark.browser
def test_started_by_hand_the_server_makes_its_own_token_and_without_the_door_it_shows_nothing(
    study: TinyStudy, browser: Browser, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with serve(ROOT / "asgi.py", log=log, DICESCOPE_RUNS=str(study.runs), DICESCOPE_NO_TOKEN="") as address:
        found = re.search(rf"{address}/\?token=([\w-]+)", log.read_text())
        assert found is not None
        port = address.rpartition(":")[2]
        assert status_of(f"{address}/") == 403
        assert status_of(f"{address}/", Cookie=f"dicescope-{port}={found[1]}") == 200
    with serve(ROOT / "app.py", DICESCOPE_RUNS=str(study.runs)) as address:
        page = browser.new_page()
        page.goto(address)
        expect(page.get_by_text("python cli.py app")).to_be_visible(timeout=120_000)
        assert "tiny" not in page.inner_text("body")
        page.close()

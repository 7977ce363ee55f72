"""What the app refuses, over a socket: each attack has its rejection."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import bcrypt
import httpx
import pytest
from web import bands, serving, write_scans

from segapp.web import guard as guard_module
from segapp.web.app import Service
from segapp.web.session import private_root
from segapp.web.uploads import PartHeaders, Uploads


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving({"hands": bands()}) as service:
        yield service


@pytest.fixture
def browser(service) -> Iterator[httpx.Client]:
    """A browser that has opened the page, and has its cookie."""
    with httpx.Client(base_url=service.url, timeout=60) as client:
        yield opened(client)


@pytest.fixture
def stranger(service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=60) as client:
        yield opened(client)


def opened(client: httpx.Client) -> httpx.Client:
    assert client.get("/").status_code == 200
    assert len(client.cookies["segapp"]) == 43
    return client


def upload(client: httpx.Client, path: Path) -> str:
    answer = client.post("/gradio_api/upload", files={"files": (path.name, path.read_bytes())})
    assert answer.status_code == 200
    return answer.json()[0]


def status_of(client: httpx.Client, path: str, method: str = "GET") -> int:
    """The answer to a path as it is, not as a client would tidy it up."""
    where = urlsplit(str(client.base_url))
    wire = HTTPConnection(where.hostname or "", where.port, timeout=30)
    wire.request(method, path, headers={"Cookie": f"segapp={client.cookies['segapp']}"})
    with closing(wire):
        return wire.getresponse().status


def file_data(path: str, **more) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def call(client: httpx.Client, files: list, tab: str = "tab1") -> httpx.Response:
    body = {"data": [files, "hands"], "session_hash": tab}
    return client.post("/gradio_api/call/segment", json=body)


def result_of(client: httpx.Client, started: httpx.Response) -> list:
    """What a call ends with: label files, summary."""
    assert started.status_code == 200, started.text
    event = started.json()["event_id"]
    text = client.get(f"/gradio_api/call/segment/{event}").text
    assert "event: complete" in text
    return json.loads(text.strip().rsplit("data: ", 1)[1])


def test_the_usual_way_works(browser, tmp_path):
    path = upload(browser, write_scans(tmp_path)[0])
    outputs, summary = result_of(browser, call(browser, [file_data(path)]))
    assert summary["results"][0]["status"] == "ok"
    answer = browser.get(urlsplit(outputs[0]["url"]).path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example"])
def test_other_names_of_this_machine_are_refused(browser, host):
    """Against DNS rebinding: a page of evil.example that makes its name mean 127.0.0.1."""
    for path in ("/", "/config", "/gradio_api/info", "/reader/static/reader.js"):
        assert browser.get(path, headers={"Host": host}).status_code == 421


def test_two_hosts_or_none_are_refused(service):
    where = urlsplit(service.url)
    for hosts in (b"", b"Host: 127.0.0.1\r\nHost: evil.example\r\n"):
        with socket.create_connection((where.hostname, where.port), timeout=10) as wire:
            wire.sendall(b"GET / HTTP/1.1\r\n" + hosts + b"Connection: close\r\n\r\n")
            assert b" 400 " in wire.recv(1000).split(b"\r\n")[0]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", ""])
def test_other_sites_pages_are_refused(browser, origin):
    for method, path in (("GET", "/config"), ("POST", "/gradio_api/queue/join")):
        answer = browser.request(method, path, headers={"Origin": origin})
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_its_own_page_is_answered(service, browser):
    own = service.url.rstrip("/")
    assert browser.get("/config", headers={"Origin": own}).status_code == 200
    answer = browser.get("/config", headers={"Origin": own})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_other_sites_may_link_but_not_embed_or_fetch(browser):
    def get(mode: str, dest: str, site: str = "cross-site") -> int:
        names = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}
        return browser.get("/", headers=names).status_code

    assert get("navigate", "document") == 200
    assert get("navigate", "iframe") == 403
    assert get("no-cors", "image") == 403
    assert get("cors", "empty", "same-site") == 403
    assert get("cors", "empty", "same-origin") == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/gradio_api/proxy=https://huggingface.co/x",
        "/gradio_api/stream/1",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/deep_link",
        "/gradio_api/vibe-code/",
        "/gradio_api/component_server",
        "/gradio_api/custom_component/1/client/component/index.js",
        "/gradio_api/dev/reload",
        "/gradio_api/runs",
        "/gradio_api/openapi.json",
        "/monitoring",
        "/login",
        "/docs",
        "/openapi.json",
        "/static/../../app.py",
        "/reader/static/..%2fapp.py",
        "/reader/static/%2e%2e/app.py",
        "/assets/..%2f..%2froutes.py",
    ],
)
def test_nothing_else_is_there(browser, path):
    assert status_of(browser, path) == 404
    assert status_of(browser, path, "POST") == 404


@pytest.mark.parametrize("method", ["PUT", "PATCH", "OPTIONS", "TRACE"])
def test_no_other_method_is_answered(browser, method):
    assert browser.request(method, "/config").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "../../../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "https://example.com/x.png",
        "http://169.254.169.254/latest/meta-data",
        "/proc/self/environ",
        "a" * 3000,
        "%00",
    ],
)
def test_no_file_of_the_server_is_served(browser, path):
    url = httpx.URL(str(browser.base_url)).copy_with(raw_path=f"/gradio_api/file={path}".encode())
    assert browser.get(url).status_code == 404


def test_no_file_beside_the_results_is_served(browser, service, tmp_path):
    path = upload(browser, write_scans(tmp_path)[0])
    result_of(browser, call(browser, [file_data(path)]))
    session = service.sessions.all()[-1]
    image = next(session.folder.glob("scan*/image.bin"))
    output = next(session.folder.glob("out/*.png"))
    link = session.folder / "out" / "link.png"
    link.symlink_to("/etc/hosts")
    for inside in (image, Path(path), private_root() / "lock", link):
        assert inside.exists()
        assert browser.get(f"/gradio_api/file={inside}").status_code == 404
    crooked = f"{session.folder}/scan1/../out/{output.name}"
    assert status_of(browser, f"/gradio_api/file={crooked}") == 404
    assert browser.get(f"/gradio_api/file={output}").status_code == 200


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:1/x.png", "https://example.com/x.png", "file:///etc/passwd", "/etc/passwd"],
)
def test_nothing_is_fetched_for_a_visitor(browser, address, tmp_path):
    """Server-side request forgery: an address where a file is expected."""
    own = upload(browser, write_scans(tmp_path)[0])
    for data in (file_data(address), file_data(own, url=address), {"path": address}):
        assert call(browser, [data]).status_code == 403
        nested = {"data": [{"x": [{"y": data}]}], "fn_index": 0, "session_hash": "t"}
        for path in ("queue/join", "run/predict"):
            assert browser.post(f"/gradio_api/{path}", json=nested).status_code == 403
    assert call(browser, [file_data(5)]).status_code == 400  # type: ignore[arg-type]


def test_what_is_not_json_is_refused(browser):
    url = "/gradio_api/queue/join"
    assert browser.post(url, content=b"{").status_code == 400
    assert browser.post(url, content=b"[" * 100_000).status_code == 400
    assert browser.post(url, content=b" " * (1 << 20) + b"{}").status_code == 413


def test_browsers_cannot_see_each_others_files(browser, stranger, service, tmp_path):
    """Every address that the app ever showed to one browser, asked for by another one."""
    path = upload(browser, write_scans(tmp_path)[1])
    outputs, _ = result_of(browser, call(browser, [file_data(path)], "mine"))
    session = service.sessions.all()[-1]
    reader = f"/reader/{session.token}/0/"
    shown = ["", "meta.json", "image.bin", "labels.bin", "confidence.bin", "measures.json"]
    shown += ["download/same", "download/csv"]
    addresses = [urlsplit(outputs[0]["url"]).path, *(reader + name for name in shown)]
    for address in addresses:
        assert browser.get(address).status_code == 200, address
        assert stranger.get(address).status_code == 404, address
        with httpx.Client(base_url=str(browser.base_url)) as nobody:
            assert nobody.get(address).status_code == 404, address
    assert stranger.post(reader + "labels", content=b"").status_code == 404
    assert stranger.delete(reader + "labels").status_code == 404
    assert stranger.post(reader + "case").status_code == 404
    assert call(stranger, [file_data(path)]).status_code == 403

    # the tab's name does not help either, and nobody can close another's tab
    body = {"data": [0, 1, 0.5], "session_hash": "mine"}
    event = stranger.post("/gradio_api/call/slice", json=body).json()["event_id"]
    said = stranger.get(f"/gradio_api/call/slice/{event}").text
    assert "event: error" in said
    with stranger.stream("GET", "/gradio_api/heartbeat/mine"):
        pass
    time.sleep(0.5)
    assert not session.closed
    assert browser.get(reader + "meta.json").status_code == 200


def test_who_claims_to_be_another_browser_is_not(browser, stranger, service, tmp_path):
    path = upload(browser, write_scans(tmp_path)[0])
    result_of(browser, call(browser, [file_data(path)]))
    session = service.sessions.all()[-1]
    address = f"/reader/{session.token}/0/meta.json"
    claim = {"X-Segapp-Browser": session.owner}
    assert stranger.get(address, headers=claim).status_code == 404
    assert stranger.get(address, headers={"Cookie": f"segapp={session.owner}"}).status_code == 404


def test_a_client_without_cookies_is_served(service, tmp_path):
    """As curl: who knows the address, which nobody can guess, may use it."""
    with httpx.Client(base_url=service.url, timeout=60) as client:
        path = upload(client, write_scans(tmp_path)[0])
        outputs, _ = result_of(client, call(client, [file_data(path)]))
        assert not client.cookies
        assert client.get(urlsplit(outputs[0]["url"]).path).status_code == 200


def test_a_name_of_50_mb_is_refused_at_once(service):
    where = urlsplit(service.url)
    before = loose_files()
    head = (
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 52430000\r\n"
        b"Content-Type: multipart/form-data; boundary=B\r\n\r\n"
        b'--B\r\nContent-Disposition: form-data; name="files"; filename="'
    )
    began = time.monotonic()
    with socket.create_connection((where.hostname, where.port), timeout=30) as wire:
        wire.sendall(head)
        answer = b""
        with suppress(OSError):  # it was hung up on
            for _ in range(50):
                wire.sendall(b"a" * (1 << 20))
        with suppress(OSError):
            answer = wire.recv(1000)
    assert b" 400 " in answer or not answer
    assert time.monotonic() - began < 10
    assert loose_files() == before
    with httpx.Client(base_url=service.url) as client:
        name = "a" * 50_000
        answer = client.post("/gradio_api/upload", files={"files": (f"{name}.png", b"x")})
        assert answer.status_code == 400


def loose_files() -> list[str]:
    return sorted(path.name for path in private_root().iterdir() if path.is_file())


def test_too_large_an_upload_leaves_nothing(monkeypatch, tmp_path):
    from segapp.web import app

    monkeypatch.setattr(app, "MAX_UPLOAD", 1 << 20)
    with serving({"hands": bands()}) as service, httpx.Client(base_url=service.url) as client:
        before = set(private_root().rglob("*"))
        big = b"x" * (3 << 20)
        assert client.post("/gradio_api/upload", files={"files": ("a.png", big)}).status_code == 413
        pieces = (b"x" * 65536 for _ in range(40))  # without a Content-Length
        kind = {"Content-Type": "multipart/form-data; boundary=B"}
        head = b'--B\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        answer = client.post("/gradio_api/upload", content=_joined(head, pieces), headers=kind)
        assert answer.status_code == 413
        service.uploads.sweep(-1, 1e9)
        assert set(private_root().rglob("*")) <= before


def _joined(head: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from pieces


def test_every_answer_is_closed_to_other_sites(browser):
    for path in ("/", "/config", "/reader/static/reader.css", "/nothing"):
        headers = browser.get(path).headers
        policy = headers["content-security-policy"]
        assert "frame-ancestors 'self'" in policy
        assert "http" not in policy  # no foreign host
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers
    assert (
        "unsafe" not in browser.get("/reader/static/reader.css").headers["content-security-policy"]
    )


@pytest.fixture
def locked(monkeypatch) -> Iterator[Service]:
    monkeypatch.setattr(guard_module, "_WRONG_S", 0.2)
    hashed = bcrypt.hashpw("open sesame é".encode(), bcrypt.gensalt(4))
    with serving({"hands": bands()}, users={"anna": hashed, "bert": hashed}) as service:
        yield service


def test_nothing_is_served_without_the_password(locked):
    with httpx.Client(base_url=locked.url) as client:
        for path in ("/", "/config", "/reader/static/reader.js", "/gradio_api/heartbeat/x"):
            answer = client.get(path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Basic")
        for name, password in (("anna", "wrong"), ("nobody", "open sesame é"), ("", "")):
            began = time.monotonic()
            assert client.get("/", auth=(name, password)).status_code == 401
            assert time.monotonic() - began >= 0.2
        for header in ("Basic !!", "Basic", "Bearer abc", "Basic " + "A" * 5000):
            assert client.get("/", headers={"Authorization": header}).status_code == 401


def test_with_the_password_everything_is(locked, tmp_path):
    from gradio_client import Client, handle_file

    who = ("anna", "open sesame é")
    with httpx.Client(base_url=locked.url, auth=who) as client:
        assert client.get("/", headers={"Host": "segapp.example"}).status_code == 200
        foreign = {"Host": "segapp.example", "Origin": "http://evil.example"}
        assert client.get("/", headers=foreign).status_code == 403
    client = Client(locked.url, verbose=False, httpx_kwargs={"auth": who})
    scan = handle_file(write_scans(tmp_path)[0])
    outputs, summary = client.predict([scan], api_name="/segment")
    assert summary["results"][0]["status"] == "ok"
    assert Path(outputs[0]).exists()
    client.close()


def test_another_name_is_another_browser(locked, tmp_path):
    """Two people at one computer, with one cookie."""
    with httpx.Client(base_url=locked.url, timeout=60) as client:
        client.auth = ("anna", "open sesame é")
        client.get("/")
        path = upload(client, write_scans(tmp_path)[0])
        outputs, _ = result_of(client, call(client, [file_data(path)]))
        address = urlsplit(outputs[0]["url"]).path
        assert client.get(address).status_code == 200
        client.auth = ("bert", "open sesame é")
        assert client.get(address).status_code == 404
        assert call(client, [file_data(path)]).status_code == 403


def test_names_and_passwords_stay_out_of_the_log(locked, caplog):
    with httpx.Client(base_url=locked.url) as client:
        client.get("/", auth=("anna", "a wrong password"))
    assert "was not let in" in caplog.text
    assert "anna" not in caplog.text
    assert "wrong password" not in caplog.text.replace("unknown name or wrong password", "")


def test_uploads_go_when_nobody_needs_them(tmp_path):
    uploads = Uploads(tmp_path)
    path = tmp_path / "abc" / "a.png"
    path.parent.mkdir()

    def send(browser: str) -> None:
        path.write_text("x")
        uploads.add([str(path)], browser)

    send("anna")
    send("bert")  # the same content
    assert uploads.belongs_to(str(path), "bert")
    assert not uploads.belongs_to(str(path), "carl")
    uploads.use([str(path)], "anna/1")
    uploads.leave("anna/1")
    assert path.exists()  # bert has done nothing with it yet
    uploads.use([str(path)], "bert/1")
    uploads.use([str(path)], "bert/1")  # twice on the list
    uploads.drop([path], "bert/1")
    assert path.exists()
    uploads.drop([path], "bert/1")
    assert not path.parent.exists()
    assert not uploads.belongs_to(str(path), "bert")

    path.parent.mkdir()
    send("anna")
    (tmp_path / "tmpabc_1").write_text("half an upload")
    uploads.sweep(100, 100)
    assert path.exists()
    uploads.sweep(-1, 100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [1, 3, 7, 1000, 10**6])
def test_part_headers_are_measured_however_they_are_cut(size):
    def too_long(body: bytes) -> bool:
        watch = PartHeaders("multipart/form-data; boundary=B")
        pieces = (body[n : n + size] for n in range(0, len(body), size))
        found = [watch.too_long(piece) for piece in pieces]
        return any(found)

    part = b"--B\r\nContent-Disposition: form-data; name=f\r\n\r\n%b\r\n"
    fine = part % (b"x" * 30_000) + part % b"--B no header\n\n" + b"--B--\r\n"
    assert not too_long(fine)
    long = part.replace(b"name=f", b"name=" + b"f" * 20_000)
    assert too_long(long % b"x")
    assert too_long(part % b"x" + long % b"x")
    assert PartHeaders("multipart/form-data").too_long(b"x")

"""The guard before the web app: each way in that is closed, and what goes on working."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import bcrypt
import gradio_client
import httpx
import pytest
from browser import open_page
from guarded import LIMIT, Served, serve_guarded

from segapp.web.browsers import browser_of, cookie_secret, credentials, new_cookie
from segapp.web.headers import policy
from segapp.web.uploads import Tabs, Uploads

UPLOAD, FILE, JOIN = "/gradio_api/upload", "/gradio_api/file=", "/gradio_api/queue/join"
CALL = "/gradio_api/call/measure"
PASSWORD = ("jörg", "correct horse")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """A folder that Gradio keeps its files in."""
    path = tmp_path_factory.mktemp("guard")
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(path / "root")
    yield path
    del os.environ["GRADIO_TEMP_DIR"]
    if before is not None:
        os.environ["GRADIO_TEMP_DIR"] = before


@pytest.fixture(scope="module")
def served(folder) -> Iterator[Served]:
    with serve_guarded(folder) as served:
        yield served


@pytest.fixture(scope="module")
def locked(folder) -> Iterator[Served]:
    """The same with users."""
    from segapp.web.users import Users

    name, password = PASSWORD
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
    file = folder / "users"
    file.write_text(f"{name}:{hashed}\nanna:{hashed}\n", encoding="utf-8")
    file.chmod(0o600)
    with serve_guarded(folder, Users(file, failure_seconds=0.1)) as served:
        yield served


@pytest.fixture
def browser(served) -> Iterator[httpx.Client]:
    """A client with the cookie of a browser."""
    with new_browser(served) as client:
        yield client


@contextmanager
def new_browser(served: Served, **options) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=20, **options) as client:
        assert client.get("/config").status_code == 200
        assert client.cookies["segapp"]
        yield client


def upload(client: httpx.Client, content: bytes = b"voxels", name: str = "scan.bin") -> str:
    answer = client.post(UPLOAD, files=[("files", (name, content))])
    assert answer.status_code == 200, answer.text
    return answer.json()[0]


def file_data(path: object, **more: object) -> dict[str, object]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def call(client: httpx.Client, file: object) -> tuple[int, str]:
    """POST and GET of a call as curl makes them: the status, and the last event."""
    answer = client.post(CALL, json={"data": [file]})
    if answer.status_code != 200:
        return answer.status_code, answer.text
    events = client.get(f"{CALL}/{answer.json()['event_id']}").text
    return 200, events.strip().split("\n\n")[-1]


def raw(served: Served, request: bytes) -> int:
    """The status of the answer to bytes on a socket; 0 where the connection was just closed."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(request)
        answer = connection.recv(100)
    return int(answer.split()[1]) if answer else 0


# Host and origin


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:{port}", "[::1]:1234", "LOCALHOST:99"])
def test_this_machines_names_are_answered(served, host):
    assert httpx.get(served.url, headers={"host": host.format(port=served.port)}).is_success


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "10.0.0.1"]
)
def test_another_host_name_is_refused(served, host):
    answer = httpx.get(f"{served.url}/config", headers={"host": host})
    assert answer.status_code == 421
    assert "localhost" in answer.text


@pytest.mark.parametrize(
    "hosts", ["", "Host: localhost\r\nHost: evil.example\r\n", "Host: localhost/@evil.example\r\n"]
)
def test_one_plain_host_header_is_needed(served, hosts):
    assert raw(served, f"GET / HTTP/1.1\r\n{hosts}\r\n".encode()) == 400
    assert raw(served, f"GET / HTTP/1.0\r\n{hosts}\r\n".encode()) == 400


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "file://", "http:"],
)
def test_another_origin_is_refused(served, browser, origin):
    for method, path in (("POST", UPLOAD), ("GET", "/config"), ("DELETE", "/reader/1/0/labels")):
        answer = browser.request(method, path, headers={"origin": origin})
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_own_origin_is_answered_without_sharing(served, browser):
    answer = browser.get("/config", headers={"origin": served.url})
    assert answer.is_success
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_origin_behind_a_proxy_that_speaks_tls(served):
    headers = {"host": "localhost", "origin": "https://localhost", "x-forwarded-proto": "https"}
    answer = httpx.get(served.url, headers=headers)
    assert answer.is_success
    assert "; Secure" in answer.headers["set-cookie"]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_fetches_of_other_sites_are_refused_and_links_are_not(served, site):
    link = {"sec-fetch-site": site, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert httpx.get(served.url, headers=link).is_success
    assert httpx.post(served.url + CALL, headers=link, json={"data": []}).status_code == 403
    for change in ({"sec-fetch-mode": "no-cors"}, {"sec-fetch-dest": "iframe"}):
        assert httpx.get(served.url, headers=link | change).status_code == 403


# Routes


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=http://127.0.0.1/",
        "/gradio_api/proxy=https://huggingface.co/x",
        "/gradio_api/openapi.json",
        "/gradio_api/stream/a/0/0/playlist.m3u8",
        "/gradio_api/deep_link?session_hash=a",
        "/gradio_api/custom_component/a/client/component/index.js",
        "/gradio_api/vibe-code",
        "/gradio_api/dev/reload",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/token",
        "/gradio_api/app_id",
        "/gradio_api/runs",
        "/monitoring",
        "/monitoring/summary",
        "/pwa_icon",
        "/svelte/x",
        "/login",
        "/logout",
        "/docs",
        "/static/..%2f..%2froutes.py",
        "/static/%2e%2e/%2e%2e/routes.py",
        "/assets/..%5c..%5croutes.py",
        "/reader/..%2fconfig",
        "//config",
        "/gradio_api/info/x",
        "/gradio_api/queue/status",
    ],
)
def test_what_the_page_does_not_need_is_not_there(served, path):
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert raw(served, request.encode()) == 404


@pytest.mark.parametrize(
    "path",
    [
        "api/measure",
        "component_server",
        "process_recording",
        "vibe-edit",
        "undo-vibe-edit",
        "stream/a",
        "login",
        "file=/etc/passwd",
        "info",
    ],
)
def test_what_the_page_does_not_need_cant_be_posted_to(served, browser, path):
    assert browser.post(f"/gradio_api/{path}", json={"data": []}).status_code == 404
    assert browser.post("/login", data={"username": "a", "password": "b"}).status_code == 404


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "PATCH", "TRACE", "CONNECTED"])
def test_other_methods_are_refused(browser, method):
    answer = browser.request(method, "/config")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD, POST, DELETE"


def test_the_page_and_its_parts_are_there(browser):
    for path in ("/", "/config", "/theme.css", "/robots.txt", "/manifest.json", "/favicon.ico"):
        assert browser.get(path).is_success, path
    for path in ("/gradio_api/info", "/gradio_api/startup-events", "/gradio_api/theme.css"):
        assert browser.get(path).is_success, path
    assert browser.head("/").is_success


# Browsers


def test_a_browser_keeps_its_cookie(served):
    first = httpx.get(served.url)
    cookie = first.headers["set-cookie"]
    assert cookie.endswith("; HttpOnly; SameSite=Lax; Path=/")
    with new_browser(served) as client:
        assert "set-cookie" not in client.get("/").headers
        assert "set-cookie" not in httpx.get(f"{served.url}/theme.css").headers
        for odd in ("", "x" * 42, "x" * 43 + "!"):
            again = httpx.get(served.url, headers={"cookie": f"segapp={odd}"})
            assert "set-cookie" in again.headers


def test_the_id_is_the_same_everywhere_and_not_the_secret(served, browser):
    upload_path = upload(browser)
    assert call(browser, file_data(upload_path))[0] == 200
    here = browser.post("/reader/length", content=b"12345").json()
    assert here["length"] == 5
    assert here["browser"] == served.browsers[-1] == browser_of(browser_headers(browser))
    assert len(here["browser"]) == 64
    assert browser.cookies["segapp"] not in here["browser"]


def browser_headers(client: httpx.Client) -> dict[str, str]:
    return {"cookie": f"a=b; segapp={client.cookies['segapp']}"}


def test_browser_of():
    secret = new_cookie(secure=True).partition("=")[2].partition(";")[0]
    cookie = {"cookie": f"x=1;segapp={secret}; y=2"}
    users = [
        {"authorization": "Basic " + base64.b64encode(f"{name}:pw".encode()).decode()}
        for name in ("anna", "bert")
    ]
    ids = {browser_of(h) for h in (cookie, cookie | users[0], cookie | users[1], *users)}
    assert len(ids) == 5
    assert browser_of({}) == browser_of({"cookie": "segapp=short"}) == ""
    assert browser_of(SimpleNamespace(headers=cookie)) == browser_of(cookie)
    assert cookie_secret(cookie["cookie"]) == secret
    assert credentials("Basic " + base64.b64encode(b"a:b:c").decode()) == ("a", "b:c")


# Files


def test_a_call_with_an_upload_and_its_result(served, browser):
    path = upload(browser, b"12345")
    status, event = call(browser, file_data(path))
    assert status == 200
    assert event.startswith("event: complete")
    result = json.loads(event.partition("data: ")[2])[1]["path"]
    answer = browser.get(FILE + result)
    assert answer.text == "5 bytes"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert browser.get(FILE + path).status_code == 404  # not even the own upload
    with new_browser(served) as other:
        assert other.get(FILE + result).status_code == 404
    assert httpx.get(served.url + FILE + result).status_code == 404


def test_pictures_are_shown(served, browser):
    picture = served.results / "slice.png"
    picture.write_bytes(b"\x89PNG")
    served.owners[picture] = browser_of(browser_headers(browser))
    answer = browser.get(FILE + str(picture))
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"].startswith("inline")
    page = picture.with_suffix(".svg")
    page.write_text("<svg/>")
    served.owners[page] = browser_of(browser_headers(browser))
    assert browser.get(FILE + str(page)).headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "//etc/passwd",
        "etc/passwd",
        "../../../../etc/passwd",
        "%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "{root}/../../../../../../etc/passwd",
        "{root}/%2e%2e/users",
        "{root}%2f..%2fusers",
        "{root}",
        "{root}/results/none.txt",
        "{root}/results/%00",
        "http://127.0.0.1:1/x",
        "https://huggingface.co/x",
        "file:///etc/passwd",
        "%5c%5chost%5cshare",
        "~/.ssh/id_rsa",
        "/proc/self/environ",
    ],
)
def test_files_of_the_server_are_not_given_out(served, locked, path):
    text = path.format(root=served.root)
    request = f"GET {FILE}{text} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert raw(served, request.encode()) == 404


def test_a_link_out_of_the_folder_leads_nowhere(served, browser):
    link = served.results / "link.txt"
    link.symlink_to("/etc/passwd")
    served.owners[link] = browser_of(browser_headers(browser))
    assert browser.get(FILE + str(link)).status_code == 404


@pytest.mark.parametrize("route", [CALL, JOIN, CALL.replace("call/", "call/v2/")])
def test_a_call_names_only_uploads_of_its_browser(served, browser, route):
    own, result = upload(browser), served.results / "a.txt"
    result.write_text("a session's")
    with new_browser(served) as other:
        others = upload(other, b"another patient's")
    wrong: list[object] = [file_data(others), file_data(str(result)), file_data("/etc/passwd")]
    wrong += [file_data("http://127.0.0.1:1/x"), file_data("https://huggingface.co/x")]
    wrong += [file_data(f"{own}/../../users"), file_data([own]), file_data({"path": own})]
    wrong += [{"url": "http://127.0.0.1:1/x"}, file_data(None, url="http://127.0.0.1:1/x")]
    wrong += [{"a": [[{"b": file_data(others)}]]}, [file_data(own), file_data(others)]]
    for file in wrong:
        body = {"data": [file], "fn_index": 0, "session_hash": "abc"}
        answer = browser.post(route, json=body)
        assert (answer.status_code, "upload it" in answer.json()["detail"]) == (403, True), file
    assert browser.post(route, json={"event_data": file_data(others)}).status_code == 403


def test_an_upload_without_a_cookie_serves_whoever_knows_it(served, browser):
    with httpx.Client(base_url=served.url) as nobody:
        path = upload(nobody, b"no cookie")
        assert call(nobody, file_data(path))[1].startswith("event: complete")
        assert call(browser, file_data(path))[1].startswith("event: complete")
        own = upload(browser, b"with a cookie")
        assert call(nobody, file_data(own))[0] == 403


def test_two_browsers_may_upload_the_same(served, browser):
    path = upload(browser, b"the same")
    with new_browser(served) as other:
        assert call(other, file_data(path))[0] == 403
        assert upload(other, b"the same") == path
        assert call(other, file_data(path))[0] == 200
    assert call(browser, file_data(path))[0] == 200


def test_an_address_in_a_call_is_never_followed(served, browser):
    """The file is read from its path; nobody asks the address."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x"
        path = upload(browser, b"1234567")
        status, event = call(browser, file_data(path, url=url))
        assert (status, "7 bytes" in read_result(browser, event)) == (200, True)
        assert call(browser, file_data(url, url=url))[0] == 403
        with pytest.raises(TimeoutError):
            trap.accept()


def read_result(client: httpx.Client, event: str) -> str:
    return client.get(FILE + json.loads(event.partition("data: ")[2])[1]["path"]).text


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"\xff", b"[" * 100_000])
def test_a_call_that_is_no_json_object_is_refused(browser, body):
    answer = browser.post(CALL, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400


# Limits


def form(headers: bytes, content: bytes = b"x", end: bytes = b"\r\n--XX--\r\n") -> bytes:
    return b"--XX\r\n" + headers + b"\r\n\r\n" + content + end


def post_form(served: Served, body: bytes, promised: int | None = None) -> int:
    head = (
        f"POST {UPLOAD} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {promised or len(body)}\r\n"
        "Content-Type: multipart/form-data; boundary=XX\r\n\r\n"
    )
    return raw(served, head.encode() + body)


NAMED = b'Content-Disposition: form-data; name="files"; filename="%s"'


def test_an_upload_as_large_as_allowed(served, browser):
    path = upload(browser, b"x" * (LIMIT - 1000))
    assert Path(path).stat().st_size == LIMIT - 1000


@pytest.mark.parametrize("route", [UPLOAD, "/reader/length"])
def test_a_larger_one_is_refused_and_nothing_kept(served, browser, route):
    before = served.stored()
    content = form(NAMED % b"a.bin", b"x" * LIMIT)
    kind = {"content-type": "multipart/form-data; boundary=XX"}
    assert browser.post(route, content=content, headers=kind).status_code == 413
    chunks = (content[i : i + 50_000] for i in range(0, len(content), 50_000))  # no Content-Length
    answer = browser.post(route, content=chunks, headers=kind)
    assert (answer.status_code, "3 MB" in answer.text) == (413, True)
    assert served.stored() == before


@pytest.mark.parametrize("size", [5_000, 100_000])
def test_an_endless_file_name_is_refused_quickly(served, size):
    before, began = served.stored(), time.monotonic()
    head = (
        f"POST {UPLOAD} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        "Content-Type: multipart/form-data; boundary=XX\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(head.encode())
        for chunk in (b"--XX\r\n" + (NAMED % b"")[:-1], b"a" * size):
            connection.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        assert connection.recv(100).startswith(b"HTTP/1.1 400")  # the name has not ended
    assert time.monotonic() - began < 5
    assert served.stored() == before


@pytest.mark.parametrize(
    "body",
    [
        form(NAMED % (b"a" * (50 << 10))),
        form(NAMED % (b"a" * 256)),
        form(NAMED % ("ß" * 128).encode()),
        form(NAMED % b"a.bin" + b"\r\nX: " + b"x" * (64 << 10)),
        form(NAMED % b"a.bin" + b"".join(b"\r\nX-%d: 1" % i for i in range(10_000))),
        form((NAMED % b"a.bin").replace(b"files", b"other")),
        form(NAMED % b"a.bin", end=b""),
        form(b"X: 1"),
        b"not a form",
    ],
)
def test_a_form_that_is_not_right_is_refused_and_nothing_kept(served, body):
    before = served.stored()
    assert post_form(served, body) == 400
    assert served.stored() == before


def test_a_file_name_as_long_as_allowed(served, browser):
    assert Path(upload(browser, name="ß" * 125 + ".bin")).name.endswith(".bin")
    assert post_form(served, form(NAMED % b"../../../evil.bin")) == 200
    assert sorted(p.parent.parent for p in served.root.rglob("evil.bin")) == [served.root]


def test_an_upload_that_breaks_off_leaves_nothing(served):
    before = served.stored()
    body = form(NAMED % b"a.bin", b"x" * 100_000)
    head = (
        f"POST {UPLOAD} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: multipart/form-data; boundary=XX\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(head.encode() + body[:-50_000])
        _wait_until(lambda: served.stored() != before)  # Gradio has begun to write it
    _wait_until(lambda: served.stored() == before)


def _wait_until(holds) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.02)


@pytest.mark.parametrize("path", [CALL, JOIN, "/gradio_api/cancel", "/gradio_api/reset"])
def test_other_bodies_may_have_a_megabyte(browser, path):
    body = b'{"data": ["' + b"x" * (1 << 20) + b'"]}'
    kind = {"content-type": "application/json"}
    assert browser.post(path, content=body, headers=kind).status_code == 413
    chunks = iter([body[:500_000], body[500_000:]])
    assert browser.post(path, content=chunks, headers=kind).status_code == 413


# Headers


@pytest.mark.parametrize(
    "path", ["/", "/config", "/theme.css", "/reader/none", "/nothing", FILE + "/etc/passwd"]
)
def test_every_answer_says_what_a_browser_may_do(browser, path):
    headers = browser.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"
    assert "camera=()" in headers["permissions-policy"]
    assert "server" not in headers
    rules = headers.get_list("content-security-policy")
    assert len(rules) == 1
    assert "frame-ancestors 'self'" in rules[0]
    script = next(rule for rule in rules[0].split("; ") if rule.startswith("script-src"))
    assert "unsafe-inline" not in script


def test_files_of_the_program_may_be_kept(browser):
    page = browser.get("/").text
    asset = page.partition('src="./assets/')[2].partition('"')[0]
    assert browser.get(f"/assets/{asset}").headers["cache-control"] == "no-cache"


def test_the_readers_page_is_held_tighter():
    assert "unsafe" not in policy("/reader/0/1/")
    assert policy("/reader/0/1/", b"<script>1</script>") != policy("/reader/0/1/")


# Passwords


def test_without_the_password_nothing_is_answered(locked):
    for path in ("/", "/config", "/theme.css", "/assets/x", "/reader/1/0/", "/nothing"):
        answer = httpx.get(locked.url + path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'Basic realm="segapp", charset="UTF-8"'
        assert "set-cookie" not in answer.headers
    for wrong in (("jörg", "wrong horse"), ("nobody", PASSWORD[1]), ("", "")):
        began = time.monotonic()
        assert httpx.get(locked.url, auth=wrong).status_code == 401
        assert time.monotonic() - began >= 0.1
    assert httpx.post(locked.url + UPLOAD, files={"files": b"x"}).status_code == 401


def test_with_the_password_any_host_name_does(locked):
    headers = {"host": "scans.example", "origin": "https://scans.example"}
    assert httpx.get(locked.url, auth=PASSWORD, headers=headers).is_success
    headers["origin"] = "https://evil.example"
    assert httpx.get(locked.url, auth=PASSWORD, headers=headers).status_code == 403


def test_another_user_with_the_same_cookie_is_another_browser(locked):
    with new_browser(locked, auth=PASSWORD) as client:
        path = upload(client, b"of one user")
        assert call(client, file_data(path))[0] == 200
        client.auth = ("anna", PASSWORD[1])
        assert call(client, file_data(path))[0] == 403


@pytest.mark.slow
@pytest.mark.parametrize("way", ["headers", "httpx_kwargs"])
def test_the_api_client_with_a_password(locked, tmp_path, way):
    token = base64.b64encode(":".join(PASSWORD).encode()).decode()
    given = {
        "headers": {"headers": {"Authorization": f"Basic {token}"}},
        "httpx_kwargs": {"httpx_kwargs": {"auth": httpx.BasicAuth(*PASSWORD)}},
    }[way]
    assert use_client(locked, tmp_path, **given) == "4 bytes"


def use_client(served: Served, folder: Path, **options) -> str:
    scan = folder / "scan.bin"
    scan.write_bytes(b"1234")
    client = gradio_client.Client(
        served.url, verbose=False, download_files=str(folder), analytics_enabled=False, **options
    )
    try:
        _, output = client.predict(gradio_client.handle_file(str(scan)), api_name="/measure")
        return Path(output).read_text()
    finally:
        client.close()


# What goes on working


def test_the_api_client(served, tmp_path):
    assert use_client(served, tmp_path) == "4 bytes"


def test_the_api_client_can_cancel(served):
    client = gradio_client.Client(served.url, verbose=False, analytics_enabled=False)
    job = client.submit(30, api_name="/wait")
    _wait_until(lambda: job.status().code.name in ("PROCESSING", "PROGRESS"))
    assert job.cancel()
    _wait_until(job.done)
    client.close()


def test_the_end_of_a_client_is_noticed(served, browser):
    ended = len(served.unloaded)
    with browser.stream("GET", "/gradio_api/heartbeat/abc") as beats:
        assert next(beats.iter_lines()) == "data: ALIVE"
    _wait_until(lambda: len(served.unloaded) > ended)
    assert served.unloaded[-1] == browser_of(browser_headers(browser))


@pytest.mark.browser
def test_the_page_in_a_browser(served, tmp_path):
    scan = tmp_path / "scan.bin"
    scan.write_bytes(b"12345")
    ended = len(served.unloaded)
    with open_page(lambda url: url.startswith((served.url, "data:", "blob:"))) as page:
        page.goto(served.url)
        page.set_input_files("#scan input[type=file]", str(scan))
        page.wait_for_selector("#result")
        with page.expect_download() as download:
            page.click("#result")
        assert download.value.path().read_text() == "5 bytes"
        page.click("text=Start")
        page.wait_for_selector(".progress-level-inner")  # the job's: it is known by its number
        page.click("text=Stop")
        page.wait_for_selector(".progress-level-inner", state="detached")
        page.goto("about:blank")
        _wait_until(lambda: len(served.unloaded) > ended)


@pytest.mark.browser
def test_a_script_that_got_into_the_page_does_not_run(served):
    seen: list[object] = []

    def inject() -> None:
        with open_page(lambda _: True) as page:
            page.goto(served.url)
            page.wait_for_selector("#scan")
            tag = "<img src='data:,' onerror='window.ran = 1'>"
            page.evaluate("tag => document.body.insertAdjacentHTML('beforeend', tag)", tag)
            page.wait_for_timeout(300)
            seen.append(page.evaluate("[window.ran, document.cookie]"))

    with pytest.raises(AssertionError):  # the console tells of it
        inject()
    assert seen == [[None, ""]]


# Sweeping


def kept(folder: Path, name: str) -> Path:
    path = folder / name / "scan.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    return path


def test_uploads_go_when_nobody_needs_them(tmp_path):
    uploads, file = Uploads(tmp_path), kept(tmp_path, "a")
    for browser in ("anna", "bert"):  # the same content and name
        uploads.record([str(file)], browser)
    assert uploads.may_use(str(file), "bert")
    assert not uploads.may_use(str(file), "carl")
    uploads.use([str(file)], "anna/1")
    uploads.leave("anna/1")
    assert file.exists()  # bert has done nothing with it yet
    uploads.use([str(file)], "bert/1")
    uploads.use([str(file)], "bert/1")  # twice on the list
    uploads.drop([file], "bert/1")
    assert file.exists()
    uploads.drop([file], "bert/1")
    assert not file.parent.exists()
    assert not uploads.may_use(str(file), "bert")


def test_the_sweep_deletes_what_nobody_uses(tmp_path):
    uploads = Uploads(tmp_path)
    old, used, fresh = (kept(tmp_path, name) for name in ("old", "used", "fresh"))
    (tmp_path / "tmpabc_1").write_text("half an upload")
    uploads.record([str(old), str(used)], "a")
    uploads.use([str(used)], "a/1")
    time.sleep(0.05)
    uploads.record([str(fresh)], "a")
    uploads.sweep(0.04, 3600)
    assert [old.parent.exists(), used.exists(), fresh.exists()] == [False, True, True]
    assert not (tmp_path / "tmpabc_1").exists()
    assert not uploads.may_use(str(old), "a")
    assert uploads.may_use(str(fresh), "a")
    uploads.sweep(3600, 0.04)  # a tab that never said goodbye
    assert [used.exists(), fresh.exists()] == [False, True]


def test_an_upload_that_can_not_be_deleted_stays_known_to_the_sweep(tmp_path, monkeypatch, caplog):
    uploads = Uploads(tmp_path)
    files = [tmp_path / name / "CANARY.png" for name in "ab"]
    for file in files:
        file.parent.mkdir()
        file.touch()
    uploads.record(map(str, files), "ann")
    unlink = Path.unlink

    def refused(self, missing_ok=False):
        if self == files[0]:
            raise PermissionError(13, "Permission denied", str(self))
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)
    uploads.sweep(-1, -1)
    assert [file.exists() for file in files] == [True, False]
    assert "can't be deleted (Permission denied)" in caplog.text
    assert "CANARY" not in caplog.text
    monkeypatch.undo()
    uploads.sweep(-1, -1)
    assert not files[0].exists()


def test_the_sweep_waits_while_an_upload_arrives(tmp_path):
    uploads, file = Uploads(tmp_path), kept(tmp_path, "a")
    uploads.record([str(file)], "a")
    with uploads.settling():
        uploads.sweep(-1, -1)
    assert file.exists()
    (file.parent / "same content, other name").write_bytes(b"x")
    uploads.sweep(-1, -1)
    assert not file.exists()
    assert file.parent.exists()


def test_a_tab_is_of_the_browser_that_used_it_first():
    tabs = Tabs(most=2)
    assert tabs.claim("t", "anna")
    assert tabs.claim("t", "anna")
    assert not tabs.claim("t", "bert")
    assert tabs.claim("free", "")  # of a client without cookies
    assert tabs.claim("free", "bert")
    tabs.claim("u", "anna")
    assert tabs.claim("t", "bert")  # so long ago that it is forgotten


def test_a_swept_upload_can_be_uploaded_again(served, browser):
    path = upload(browser, b"again")
    served.uploads.sweep(-1, -1)
    assert not Path(path).exists()
    assert call(browser, file_data(path))[0] == 403
    assert upload(browser, b"again") == path
    assert call(browser, file_data(path))[0] == 200

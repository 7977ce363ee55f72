"""The app as it is, over a socket: what one browser has, no other one gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from secrets import token_hex
from urllib.parse import urlsplit

import httpx
import pytest
from web import bands, serving, write_scans

from segapp.web.app import Service
from segapp.web.session import private_root


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


def call(client: httpx.Client, files: list, tab: str = "") -> httpx.Response:
    body = {"data": [files, "hands"], "session_hash": tab or token_hex(8)}
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
    assert stranger.post("/gradio_api/call/slice", json=body).status_code == 404
    for address in ("heartbeat/mine", "queue/data?session_hash=mine"):
        assert stranger.get(f"/gradio_api/{address}").status_code == 404
    cancel = {"session_hash": "mine", "fn_index": 0, "event_id": "x"}
    assert stranger.post("/gradio_api/cancel", json=cancel).status_code == 404
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

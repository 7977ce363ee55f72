"""What stands between the network and the app: who may ask for what, and how much they may send.

Gradio is made to be open to the world; scans are not. So the guard lets through the addresses that
the page and gradio_client use and no others, ties uploads and results to the browser that sent
them, and refuses what other sites' pages ask for.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segapp.web.uploads import PartHeaders, Uploads
from segapp.web.users import Door

_COOKIE, _TOKEN = "segapp", re.compile(r"[A-Za-z0-9_-]{43}")
_BROWSER = "x-segapp-browser"  # a header that the guard alone sets: see browser_of
_MOST_JSON = 1 << 20  # bytes of what is no file
_WRONG_S = 1.0  # seconds until a wrong password is answered
_OWN = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)
_API = "/gradio_api/"
_ASKED = {  # addresses that the page and gradio_client use
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(assets|static)/.+"
        r"|/gradio_api/(info/?|queue/data|upload_progress|startup-events|theme\.css|app_id/?"
        r"|heartbeat/\w+|call/\w+/\w+|file=.+)|/reader/.+"
    ),
    "POST": re.compile(
        r"/gradio_api/(upload|queue/join|cancel|reset/?|run/\w+/?|call/\w+/?)|/reader/.+"
    ),
    "DELETE": re.compile(r"/reader/.+"),
}
_ASKED["HEAD"] = _ASKED["GET"]
_SHOWN = (".png", ".jpg", ".jpeg")  # files that a browser may show instead of saving them
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_READER_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
)
_PAGE_POLICY = (  # Gradio puts scripts and styles into its page, and makes functions of strings
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "worker-src 'self' blob:; object-src 'none'; frame-ancestors 'self'; base-uri 'self'; "
    "form-action 'self'"
)


def browser_of(request: Any) -> str:
    """Which browser a request (of Gradio or Starlette) came from: a hash of its cookie, and with
    passwords of the name; "" for a client that keeps no cookies."""
    return request.headers.get(_BROWSER, "")


class _Refused(Exception):
    def __init__(self, status: int, said: str, **headers: str):
        super().__init__(said)
        self.response = PlainTextResponse(said, status, headers)


class Guard:
    """The ASGI app around the app.

    may_read: whether a file may go to a browser, see `browser_of`. max_upload: bytes of a file.
    users: names and bcrypt hashes; None lets in whoever reaches the server, which must then listen
    to its own machine alone.
    """

    def __init__(
        self,
        app: ASGIApp,
        uploads: Uploads,
        may_read: Callable[[Path, str], bool],
        max_upload: int,
        users: Mapping[str, bytes] | None = None,
    ):
        self.app, self.uploads, self.may_read = app, uploads, may_read
        self.max_upload = max_upload
        self.door = None if users is None else Door(users)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # neither page nor client speaks anything else
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope)
        path, cookie = scope["path"], ""
        try:
            _check_origin(request, open_to_all=self.door is None)
            user = await self._user(request)
            asked = _ASKED.get(request.method)
            if asked is None or not asked.fullmatch(path) or ".." in path.split("/"):
                raise _Refused(404, "Not found.")
            token = request.cookies.get(_COOKIE, "")
            if not _TOKEN.fullmatch(token):
                token = ""
                if path in ("/", "/config", "/config/"):
                    token = cookie = secrets.token_urlsafe(32)
            browser = hashlib.sha256(f"{user}/{token}".encode()).hexdigest()[:32] if token else ""
            if user and not token:
                browser = hashlib.sha256(f"{user}/".encode()).hexdigest()[:32]
            headers = [h for h in scope["headers"] if h[0] != _BROWSER.encode()]
            scope["headers"] = [*headers, (_BROWSER.encode(), browser.encode())]
            receive = await self._body(request, receive, browser)
        except _Refused as refused:
            await refused.response(scope, receive, _with_headers(send, path, {}))
            return
        extra = {}
        if cookie:
            secure = "https" in (scope["scheme"], request.headers.get("x-forwarded-proto"))
            extra["set-cookie"] = f"{_COOKIE}={cookie}; HttpOnly; SameSite=Strict; Path=/"
            extra["set-cookie"] += "; Secure" if secure else ""
        send = _with_headers(send, path, extra)
        if path == f"{_API}upload":
            await self._upload(scope, receive, send, browser)
        else:
            await self.app(scope, receive, send)

    async def _user(self, request: Request) -> str:
        """The name of who asks, "" where nobody is asked for one. Raises _Refused."""
        if self.door is None:
            return ""
        given = request.headers.get("authorization", "")
        if name := self.door.known(given):
            return name
        if given:
            if name := await run_in_threadpool(self.door.check, given):
                return name
            await asyncio.sleep(_WRONG_S)
        challenge = {"www-authenticate": 'Basic realm="segapp", charset="UTF-8"'}
        raise _Refused(401, "This needs a name and a password.", **challenge)

    async def _body(self, request: Request, receive: Receive, browser: str) -> Receive:
        """What the app gets to read: nothing too large, no files but the browser's own uploads."""
        path = request.url.path
        if path.startswith(f"{_API}file="):
            self._check_file(request.scope["path"].removeprefix(f"{_API}file="), browser)
        if request.method != "POST" or path == f"{_API}upload":
            return receive
        if path.startswith("/reader/"):
            return _limited(receive, self.max_upload)
        body = await _whole(receive, _MOST_JSON)
        try:
            sent = json.loads(body) if body else {}
        except (ValueError, RecursionError):
            raise _Refused(400, "Expected JSON.") from None
        paths = list(_paths(sent))
        if not all(self.uploads.belongs_to(path, browser) for path in paths):
            raise _Refused(403, "A file in it is not one that you sent here: upload it first.")
        if isinstance(sent, dict) and paths:
            self.uploads.use(paths, tab_key(str(sent.get("session_hash") or ""), browser))
        return _replayed(body, receive)

    def _check_file(self, given: str, browser: str) -> None:
        path = Path(given)
        try:
            real = path.resolve(strict=True)
            if path.is_absolute() and real == path and self.may_read(real, browser):
                return
        except (OSError, ValueError):  # there is none, or its name is none
            pass
        raise _Refused(404, "Not found.")

    async def _upload(self, scope: Scope, receive: Receive, send: Send, browser: str) -> None:
        """Files come in: watched for their size, and noted as the browser's."""
        kind = Request(scope).headers.get("content-type", "")
        headers, refused, taken = PartHeaders(kind), [], 0
        started, body = [], b""

        async def watched() -> Message:
            nonlocal taken
            message = await receive()
            chunk = message.get("body", b"")
            taken += len(chunk)
            if taken > self.max_upload:
                most = f"{self.max_upload / 2**20:,.0f} MB"
                refused.append(_Refused(413, f"This is more than the {most} that are taken."))
            elif message["type"] == "http.request" and headers.too_long(chunk):
                refused.append(_Refused(400, "The name of a file is too long."))
            # the parser cleans up after a client that is gone
            return {"type": "http.disconnect"} if refused else message

        async def noted(message: Message) -> None:
            nonlocal body
            if refused:
                return
            if message["type"] == "http.response.start":
                started.append(message)
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            if started[0]["status"] == 200:
                self.uploads.add(json.loads(body), browser)
            await send(started[0])
            await send({"type": "http.response.body", "body": body})

        try:
            await self.app(scope, watched, noted)
        except Exception:
            if not refused:
                raise
        if refused:
            await refused[0].response(scope, receive, send)


def tab_key(tab: str, browser: str) -> str:
    """A tab of a browser: Gradio's session hash alone can be made up by others."""
    return f"{browser}/{tab}"


def _check_origin(request: Request, open_to_all: bool) -> None:
    """Refuse other sites' pages, and names for this machine that others gave it."""
    hosts = request.headers.getlist("host")
    if len(hosts) != 1:
        raise _Refused(400, "Expected one Host header.")
    if open_to_all and not _OWN.fullmatch(hosts[0]):
        raise _Refused(421, "The app is for this machine alone: open it at 127.0.0.1.")
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != hosts[0].lower():
        raise _Refused(403, "Requests of other sites' pages are not answered.")
    if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        mode, target = (request.headers.get(f"sec-fetch-{n}") for n in ("mode", "dest"))
        if (request.method, mode, target) != ("GET", "navigate", "document"):
            raise _Refused(403, "Requests of other sites' pages are not answered.")


def _paths(sent: Any) -> Iterator[str]:
    """What is named as a file anywhere in a JSON value. Raises _Refused where it is on the net."""
    if isinstance(sent, dict):
        if "path" in sent:
            path, url = sent["path"], sent.get("url")
            if not isinstance(path, str):
                raise _Refused(400, "A file's path is text.")
            if url is not None and not (isinstance(url, str) and url.endswith(f"file={path}")):
                raise _Refused(403, "Nothing is fetched from other addresses: upload the file.")
            yield path
        sent = list(sent.values())
    if isinstance(sent, list):
        for value in sent:
            yield from _paths(value)


async def _whole(receive: Receive, most: int) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > most:
            raise _Refused(413, "This is too much.")
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A body once more, then whatever comes."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _limited(receive: Receive, most: int) -> Receive:
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        return {"type": "http.disconnect"} if taken > most else message

    return counted


def _with_headers(send: Send, path: str, extra: Mapping[str, str]) -> Send:
    """Adds what every response carries, and takes out what opens it to other sites."""
    is_reader = path.startswith("/reader/")
    own = {**_HEADERS, **extra}
    own["content-security-policy"] = _READER_POLICY if is_reader else _PAGE_POLICY
    fixed = path.startswith(("/assets/", "/static/", "/reader/static/"))
    own["cache-control"] = "no-cache" if fixed else "no-store"
    if path.startswith(f"{_API}file=") and not path.lower().endswith(_SHOWN):
        own["content-disposition"] = "attachment"

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            names = {name.encode() for name in own if name != "set-cookie"}
            kept = [
                (name, value)
                for name, value in message.get("headers", [])
                if name.lower() not in names and not name.lower().startswith(b"access-control-")
            ]
            added = [(name.encode(), value.encode()) for name, value in own.items()]
            message = {**message, "headers": [*kept, *added]}
        await send(message)

    return with_headers

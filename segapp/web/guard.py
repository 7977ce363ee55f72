"""The door of the web app: what gets in, and what leaves.

`Guard` stands before everything else as an ASGI app. Each step below refuses with a Refusal; what
passes all of them reaches Gradio or our own routes. Run it with uvicorn's `server_header=False`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segapp.progress import log_bug
from segapp.web.browsers import browser_of, cookie_secret, new_cookie
from segapp.web.headers import secured
from segapp.web.limits import SMALL_BODY, Body, FormCheck, Refusal, check_length, replay
from segapp.web.origin import check_host, check_origin
from segapp.web.uploads import Tabs, Uploads, check_call, tab_key
from segapp.web.users import Users

FILE, UPLOAD = "/gradio_api/file=", "/gradio_api/upload"
_LEAST_FREE = 256 << 20  # bytes of the disk that stay free beside an upload
_PAGES = ("/", "/config", "/config/")
_NAME = r"[A-Za-z0-9_.-]+"
_JOB = re.compile(rf"/gradio_api/(queue/join|call/(v2/)?{_NAME})/?")
_CALL = re.compile(rf"{_JOB.pattern}|/gradio_api/(run/{_NAME}|cancel|reset)/?")
_TAB = re.compile(rf"/gradio_api/(?:heartbeat|call/(?:v2/)?{_NAME})/({_NAME})")
_GET = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(assets|static)/.+|"
    r"/gradio_api/(info/?|upload_progress|queue/data|startup-events|theme\.css|file=.+|"
    rf"heartbeat/{_NAME}|call/(v2/)?{_NAME}/{_NAME})"
)
_POST = re.compile(rf"{_CALL.pattern}|/gradio_api/upload")
_EVENT = re.compile(rb'"event_id":\s*"(\w+)"')
_PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


class Guard:
    """An ASGI app around `app`.

    may_read: whether a browser (as `browser_of` names it) may get a file; it is asked about
    resolved paths of existing files. Uploads are never given out, whatever it says.
    upload_limit: bytes that an upload or a body for /reader/ may have.
    users: who may use the app; None: everybody at this machine.
    tab_is_there: a context that is open as long as a tab of a browser keeps its connection.
    Answers: 400 malformed, 401 no password, 403 another site's or browser's, 404 not there or not
    this browser's, 405 other methods, 413 too large, 421 under another host name.
    """

    def __init__(
        self,
        app: ASGIApp,
        uploads: Uploads,
        may_read: Callable[[Path, str], bool],
        upload_limit: int,
        users: Users | None = None,
        tab_is_there: Callable[[str, str], AbstractContextManager] = lambda *_: nullcontext(),
    ):
        self._app, self._uploads, self._may_read = app, uploads, may_read
        self._upload_limit, self._users = upload_limit, users
        self._tabs, self._tab_is_there = Tabs(), tab_is_there

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "websocket":  # nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        cookie = _cookie_to_set(scope, headers)
        waiting: Message | None = None
        answered = False

        async def send_secured(message: Message) -> None:
            nonlocal waiting, answered
            answered = True
            if message["type"] == "http.response.start" and path == "/":
                waiting = message  # the page's policy names the scripts in it
            elif message["type"] == "http.response.start":
                await start(message, b"")
            else:
                if waiting is not None:
                    first, waiting = waiting, None
                    await start(first, message.get("body", b""))
                await send(message)

        async def start(message: Message, page: bytes) -> None:
            kept = secured(message.get("headers", ()), path, page)
            if cookie and message["status"] == 200:
                kept.append((b"set-cookie", cookie.encode()))
            await send({**message, "headers": kept})

        try:
            host = check_host(headers, any_host=self._users is not None)
            check_origin(headers, scope["method"], host)
            if self._users is not None:
                await _check_user(self._users, headers)
            check_route(scope["method"], path)
            await self._pass_on(scope, headers, receive, send_secured)
        except Refusal as refusal:
            await _refused(refusal, scope)(scope, receive, send_secured)
        except Exception as error:  # its message may hold names of files
            log_bug("answering a request", error)
            if not answered:
                said = PlainTextResponse(f"This went wrong ({type(error).__name__}).", 500)
                await said(scope, receive, send_secured)

    async def _pass_on(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        method, path, browser = scope["method"], scope["path"], browser_of(headers)
        is_big = method == "POST" and (path == UPLOAD or path.startswith("/reader/"))
        limit = self._upload_limit if is_big else SMALL_BODY
        check_length(headers.get("content-length"), limit)
        if path.startswith(FILE):
            response = self._file(path.removeprefix(FILE), browser)
            await response(scope, receive, send)
        elif method == "POST" and path == UPLOAD:
            await self._upload(scope, headers, receive, send, browser)
        elif method == "POST" and _CALL.fullmatch(path):
            body = await Body(receive, limit).read()
            await self._call(scope, body, receive, send, browser)
        else:
            beating = self._require_own_tab(scope, browser)
            if path in _PAGES:
                scope = _with_headers(scope, {"accept-encoding": "identity"})  # it is read here
                scope["query_string"] = b""  # no deep links
            with self._tab_is_there(beating, browser) if beating else nullcontext():
                await _run(self._app, scope, Body(receive, limit), send)

    async def _call(
        self, scope: Scope, body: bytes, receive: Receive, send: Send, browser: str
    ) -> None:
        """Pass a call on with nothing but the browser's own files and tab in it."""
        call = check_call(body, self._uploads, browser)
        if call.tab and not self._tabs.claim(call.tab, browser):
            raise Refusal(404, "This is not your tab.")
        if _JOB.fullmatch(scope["path"]):
            self._uploads.use(call.paths, tab_key(call.tab, browser))

        async def send_noted(message: Message) -> None:
            # the event's number is the key to its results
            if found := _EVENT.search(message.get("body", b"")):
                self._tabs.claim(found[1].decode(), browser)
            await send(message)

        headers = {"content-length": str(len(call.body)), "accept-encoding": "identity"}
        await self._app(_with_headers(scope, headers), replay(call.body, receive), send_noted)

    def _require_own_tab(self, scope: Scope, browser: str) -> str | None:
        """Raises Refusal for the messages of another browser's tab or call. Returns the tab whose
        heartbeat this is; None for anything else."""
        tabs = [match[1]] if (match := _TAB.fullmatch(scope["path"])) else []
        if scope["path"].startswith("/gradio_api/"):
            tabs += QueryParams(scope["query_string"]).getlist("session_hash")
        if not all(self._tabs.claim(tab, browser) for tab in tabs):
            raise Refusal(404, "This is not your tab.")
        is_beat = scope["path"].startswith("/gradio_api/heartbeat/") and scope["method"] == "GET"
        return tabs[0] if tabs and is_beat else None

    def _file(self, text: str, browser: str) -> Response:
        """A file this browser may have; a refusal never tells whether another one exists."""
        gone = Refusal(404, "There is no such file here, or it is no longer kept.")
        # Two slashes would be another machine's on Windows: asking for it is a request to there.
        if not Path(text).is_absolute() or text.startswith(("//", "\\\\", "\\/", "/\\")):
            raise gone
        try:
            path = Path(text).resolve(strict=True)
            is_file = path.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL
            raise gone from error
        if not is_file or self._uploads.holds(path) or not self._may_read(path, browser):
            raise gone
        kind = _PICTURES.get(path.suffix.lower())
        return FileResponse(
            path,
            media_type=kind or "application/octet-stream",
            filename=path.name,
            content_disposition_type="inline" if kind else "attachment",
        )

    async def _upload(
        self, scope: Scope, headers: Headers, receive: Receive, send: Send, browser: str
    ) -> None:
        """Pass an upload on to Gradio and record what it stored before the client learns of it."""
        if shutil.disk_usage(self._uploads.root).free < self._upload_limit + _LEAST_FREE:
            raise Refusal(507, "The server's disk is full. Try again later.")
        check_form = FormCheck(headers.get("content-type", ""))
        with ExitStack() as stack:

            def check(chunk: bytes, last: bool) -> None:
                check_form(chunk, last)
                if last:
                    stack.enter_context(self._uploads.settling())

            held: list[Message] = []

            async def hold(message: Message) -> None:
                held.append(message)

            # The answer is read here, so it must not come compressed.
            scope = _with_headers(scope, {"accept-encoding": "identity"})
            await _run(self._app, scope, Body(receive, self._upload_limit, check), hold)
            if held and held[0].get("status") == 200:
                answer = b"".join(message.get("body", b"") for message in held)
                self._uploads.record(json.loads(answer), browser)
        for message in held:
            await send(message)


def check_route(method: str, path: str) -> None:
    """Raises Refusal: 405 for a method nothing here has, 404 for a path that the app does not need.

    Gradio has more routes than that: requests to other hosts, recordings, code, monitoring.
    """
    if method not in ("GET", "HEAD", "POST", "DELETE"):
        raise Refusal(405, "Only GET, HEAD, POST and DELETE.", {"allow": "GET, HEAD, POST, DELETE"})
    is_odd = "\\" in path or "\0" in path or ".." in path.split("/")
    if path.startswith(FILE):
        known = method in ("GET", "HEAD")
    elif path.startswith("/reader/"):
        known = not is_odd
    else:
        routes = {"GET": _GET, "HEAD": _GET, "POST": _POST}.get(method)
        known = routes is not None and bool(routes.fullmatch(path)) and not is_odd
    if not known:
        raise Refusal(404, "There is nothing here.")


async def _check_user(users: Users, headers: Headers) -> None:
    given = headers.getlist("authorization")
    if len(given) > 1 or not await users.admits(given[0] if given else ""):
        challenge = 'Basic realm="segapp", charset="UTF-8"'
        raise Refusal(401, "Name and password are needed.", {"www-authenticate": challenge})


async def _run(app: ASGIApp, scope: Scope, body: Body, send: Send) -> None:
    """Run the app on a body that may be refused half-way. Raises Refusal in place of its answer."""
    started = False

    async def send_unless_refused(message: Message) -> None:
        nonlocal started
        if body.refusal is None or started:
            started = True
            await send(message)

    with suppress(Refusal):  # it is kept in `body`
        await app(scope, body, send_unless_refused)
    if body.refusal is not None and not started:
        raise body.refusal


def _refused(refusal: Refusal, scope: Scope) -> Response:
    """The answer to a refused request: JSON where a program asks, a sentence elsewhere."""
    path = scope["path"]
    is_json = path.startswith("/reader/") or bool(_CALL.fullmatch(path))
    if is_json:
        content = {"detail": refusal.message}
        return JSONResponse(content, refusal.status, headers=refusal.headers)
    return PlainTextResponse(refusal.message, refusal.status, headers=refusal.headers)


def _cookie_to_set(scope: Scope, headers: Headers) -> str:
    """A Set-Cookie header for a browser that has none, where it asks for the page; else ""."""
    if scope["method"] != "GET" or scope["path"] not in _PAGES:
        return ""
    if cookie_secret(headers.get("cookie", "")):
        return ""
    forwarded = headers.get("x-forwarded-proto", "").split(",")[0].strip().lower()
    return new_cookie(secure="https" in (scope.get("scheme"), forwarded))


def _with_headers(scope: Scope, headers: dict[str, str]) -> Scope:
    changed = MutableHeaders(raw=list(scope["headers"]))
    for name, value in headers.items():
        changed[name] = value
    del changed["transfer-encoding"]  # a body that was read is passed on whole
    return {**scope, "headers": changed.raw}

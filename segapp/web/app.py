"""The web app as a server: `launch` is the command's part, `start` puts everything together."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gradio as gr
import psutil
import uvicorn
from fastapi import FastAPI

from segapp.errors import ConfigError
from segapp.formats import Entry
from segapp.formats.source import BYTES_PER_PIXEL, limit_memory
from segapp.machine import end_cleanly
from segapp.predict import Predictor
from segapp.progress import log_bug
from segapp.web.folders import FolderHandlers
from segapp.web.guard import Guard
from segapp.web.handlers import Handlers
from segapp.web.inputs import find_examples
from segapp.web.page import HERE, build_page, theme
from segapp.web.reader import Keeper, reader_routes
from segapp.web.session import PAGE_SECONDS, Sessions, private_root
from segapp.web.uploads import Uploads
from segapp.web.users import Users

log = logging.getLogger("segapp")

MAX_UPLOAD = 2 << 30  # bytes of a file
_PORTS = range(7860, 7960)
_UNUSED_UPLOADS = 3600.0  # seconds until an upload that no job was started for is deleted
_AWAY_S = 5.0
_SWEEP = 30.0  # seconds between two looks for what nobody needs any more


def launch(
    models: Sequence[Path],
    host: str = "127.0.0.1",
    port: int | None = None,
    auth_file: Path | None = None,
    roots: Sequence[Path] = (),
) -> None:
    """Load the models, serve them and block until interrupted. Port 0 or None: the first free one.

    Raises ModelFileError, and ConfigError for a host that others can reach without an auth file, a
    port in use, a root that is no folder, or two models of one name.
    """
    if not is_loopback(host) and auth_file is None:
        raise ConfigError(
            f"{host}: others could reach the app there, so it needs to know them: --auth-file FILE "
            "(python -m segapp.web.users FILE NAME makes one); or leave --host at 127.0.0.1"
        )
    users = Users(auth_file) if auth_file else None
    for root in roots:
        if not root.is_dir():
            raise ConfigError(f"--root {root}: no such folder")
    named: dict[str, Path] = {}
    for path in models:
        model = path.resolve()
        name = model.name if model.is_dir() else model.parent.name
        if name in named:
            raise ConfigError(f"{path}: there is another model called {name}; rename its folder")
        named[name] = path
    loaded = {name: Predictor.load(path) for name, path in named.items()}
    limit_memory_to_what_is_free(loaded.values())
    logging.getLogger("segapp").setLevel(logging.WARNING)  # the rest tells which folders hold what
    examples = [
        (name, entry)
        for name, predictor in loaded.items()
        for entry in find_examples(predictor, own_data=is_loopback(host))
    ]
    service = start(loaded, named, examples, host, port, users, roots)
    if not is_loopback(host):
        log.warning(
            "passwords and scans go over the network as they are; put a proxy with TLS in front "
            "that keeps the Host header"
        )
    try:
        with suppress(KeyboardInterrupt), end_cleanly():
            print(f"segapp is at {service.url}  (Ctrl+C stops it)", flush=True)
            while service.thread.is_alive():
                service.thread.join(1)
    finally:
        service.close()


@dataclass
class Service:
    """A running server. close() stops it and deletes what its visitors had."""

    url: str
    server: uvicorn.Server
    thread: threading.Thread
    sessions: Sessions
    uploads: Uploads
    stopping: threading.Event

    def close(self) -> None:
        self.stopping.set()
        self.server.should_exit = True
        self.thread.join(10)
        self.sessions.close_all()


def start(
    models: Mapping[str, Predictor],
    paths: Mapping[str, Path] | None = None,
    examples: Sequence[tuple[str, Entry]] = (),
    host: str = "127.0.0.1",
    port: int | None = None,
    users: Users | None = None,
    roots: Sequence[Path] = (),
) -> Service:
    """Serve models by their names, in a thread. paths: where they lie, for fine-tuning them.

    users: who is let in; None: everybody who reaches the host. roots: folders on the
    server that visitors may segment, the first of which also gets the corrections they keep; none
    given, these go below the working directory where only this machine reaches the host. Raises
    ConfigError where the host and port can't be listened on.
    """
    root = private_root()
    uploads = Uploads(root)
    place_of_sessions = Path(tempfile.mkdtemp(prefix="sessions-", dir=root))  # mode 0700
    sessions = Sessions(place_of_sessions, uploads)
    handlers = Handlers(models, examples, sessions)
    page = build_page(handlers, FolderHandlers(handlers, roots))
    place = roots[0] if roots else Path() if is_loopback(host) else None
    folder = None if place is None else place.resolve() / "corrections"
    several = len(models) > 1  # whose classes differ
    keepers = {
        name: Keeper(folder / name if folder and several else folder, name, (paths or {}).get(name))
        for name in models
    }
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    api.include_router(reader_routes(sessions, keepers))
    gr.mount_gradio_app(
        api,
        page,
        "/",
        server_name=host,
        footer_links=["api"],
        run_history=False,
        show_error=True,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        i18n=gr.I18n(en={"common.complete": "Done"}),  # Gradio says this, and has no word for it
        css_paths=[HERE / "style.css"],
        head='<script src="/reader/static/page.js"></script>',  # inline ones don't run
    )
    guard = Guard(api, uploads, sessions.may_read, MAX_UPLOAD, users, tab_is_there(sessions, page))
    listener = _listen(host, port)
    number = listener.getsockname()[1]
    config = uvicorn.Config(
        guard,
        log_level="warning",
        access_log=False,  # addresses hold the keys to results
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    logging.getLogger("uvicorn.error").addFilter(_cut_connections_are_no_errors)
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="segapp-web", daemon=True
    )
    thread.start()
    while not server.started and thread.is_alive():
        thread.join(0.02)
    shown = f"[{host}]" if ":" in host else host
    service = Service(
        f"http://{shown}:{number}/", server, thread, sessions, uploads, threading.Event()
    )
    threading.Thread(target=_sweep, args=(service,), name="segapp-sweep", daemon=True).start()
    return service


def limit_memory_to_what_is_free(predictors: Iterable[Predictor]) -> None:
    """Refuse scans that would take most of the memory that is free now."""
    engines = [predictor.engine for predictor in predictors]
    at_once = max((e.calls_at_once * e.batch_size for e in engines), default=1)
    limit_memory(0.8 * psutil.virtual_memory().available, at_once * BYTES_PER_PIXEL)


def tab_is_there(
    sessions: Sessions, page: gr.Blocks
) -> Callable[[str, str], AbstractContextManager[None]]:
    """The context of a connection that a tab keeps open: some seconds after the last of them has
    ended, as a network may be away for a moment, what the tab has is deleted, and what Gradio keeps
    of its components (some 80 kB a tab, of the last 200 of them)."""

    def leave(tab: str, owner: str) -> None:
        if sessions.leave(tab, owner):
            with page.state_holder.lock:
                page.state_holder.session_data.pop(tab, None)
                page.state_holder.time_last_used.pop(tab, None)

    @contextmanager
    def there(tab: str, owner: str) -> Iterator[None]:
        sessions.arrive(tab, owner)
        try:
            yield
        finally:
            sessions.depart(tab, owner)
            timer = threading.Timer(_AWAY_S, leave, (tab, owner))
            timer.daemon = True
            timer.start()

    return there


def _sweep(service: Service) -> None:
    sweeps = (
        service.sessions.sweep,
        partial(service.uploads.sweep, _UNUSED_UPLOADS, PAGE_SECONDS),
    )
    while not service.stopping.wait(_SWEEP):
        for sweep in sweeps:
            try:
                sweep()
            except OSError as error:  # what is left is tried again; no name gets into the log
                log.error("not all that nobody needs could be deleted (%s)", error.strerror)
            except Exception as error:
                log_bug("deleting what nobody needs", error)


def _cut_connections_are_no_errors(record: logging.LogRecord) -> bool:
    """Pages keep a connection open, which is cut when the server stops."""
    cut = bool(record.exc_info) and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cut and "timeout graceful shutdown" not in record.getMessage()


def _listen(host: str, port: int | None) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in [port] if port else _PORTS:
        # told that it is TCP, or asyncio holds small answers back (TCP_NODELAY), 40 ms each
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, number))
            listener.listen(128)
            return listener
        except (OSError, OverflowError):
            listener.close()
    where = f"{host}, port {port}" if port else host
    raise ConfigError(
        f"{where}: can't listen there; is the port in use? 0 takes the first free one"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

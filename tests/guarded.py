"""A small Gradio app with everything ours uses, served by uvicorn behind the guard."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request

from segapp.web.browsers import browser_of
from segapp.web.guard import Guard
from segapp.web.uploads import Uploads
from segapp.web.users import Users

LIMIT = 3 << 20  # bytes of an upload


@dataclass
class Served:
    """A running app: its port, its folders, and what it noticed."""

    port: int
    root: Path  # Gradio's uploads
    results: Path
    uploads: Uploads
    browsers: list[str] = field(default_factory=list)  # of each call
    owners: dict[Path, str] = field(default_factory=dict)
    unloaded: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stored(self) -> list[str]:
        """Names of all files below Gradio's folder."""
        return sorted(path.name for path in self.root.rglob("*") if path.is_file())


def small_app(served: Served) -> gr.Blocks:
    def measure(path: str, calls: int, request: gr.Request, progress=gr.Progress()):
        browser = browser_of(request)
        served.browsers.append(browser)
        progress(0.5, "half")
        result = served.results / f"{len(served.browsers)}.txt"
        result.write_text(f"{len(Path(path).read_bytes())} bytes")
        served.owners[result] = browser
        return gr.DownloadButton(value=str(result), visible=True), str(result), calls + 1

    def wait(seconds: float, progress=gr.Progress()) -> float:
        for step in range(int(seconds * 10)):
            progress(step / seconds / 10)
            time.sleep(0.1)
        return seconds

    def unload(request: gr.Request) -> None:
        served.unloaded.append(browser_of(request))

    with gr.Blocks(analytics_enabled=False) as blocks:
        calls = gr.State(0)
        scan = gr.File(label="Scan", elem_id="scan")
        result = gr.DownloadButton("Result", visible=False, elem_id="result")
        shown = gr.File(label="Output", elem_id="output")
        scan.upload(measure, [scan, calls], [result, shown, calls], api_name="measure")
        seconds = gr.Number(5, label="Seconds")
        start, stop = gr.Button("Start"), gr.Button("Stop")
        running = start.click(wait, seconds, seconds, api_name="wait")
        stop.click(None, cancels=[running])
        blocks.unload(unload)
    return blocks


@contextmanager
def serve_guarded(folder: Path, users: Users | None = None) -> Iterator[Served]:
    """Serve the small app on a free port. $GRADIO_TEMP_DIR must be `folder`/root: Gradio gives out
    files that lie there as they are, and copies others."""
    served = Served(0, folder / "root", folder / "root/results", Uploads(folder / "root"))
    for path in (served.root, served.results):
        path.mkdir(exist_ok=True)
    server = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @server.post("/reader/length")
    async def length(request: Request) -> dict[str, str | int]:
        return {"length": len(await request.body()), "browser": browser_of(request)}

    blocks = small_app(served)
    server = gr.mount_gradio_app(
        server, blocks, "/", run_history=False, footer_links=["api"], ssr_mode=False
    )
    guard = Guard(
        server, served.uploads, lambda path, who: served.owners.get(path) == who, LIMIT, users
    )
    # asyncio turns off Nagle's delays (40 ms an answer) on sockets that say they are TCP only.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    served.port = listener.getsockname()[1]
    config = uvicorn.Config(guard, log_level=logging.WARNING, server_header=False)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, args=([listener],), daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield served
    running.should_exit = running.force_exit = True
    thread.join(10)

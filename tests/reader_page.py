"""The reader's page over a server that knows hand-made results, for tests in a real browser."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from browser import open_page

STATIC = Path(__file__).parents[1] / "segapp" / "web" / "static"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'"
)
CLASSES = [
    {"name": "background", "value": 0, "colour": "#000000"},
    {"name": "bone", "value": 100, "colour": "#ff0000"},
    {"name": "<b>skin</b>", "value": 200, "colour": "#00ff00"},
]
BONE, SKIN = 1, 2
AGREEMENT = (55, 126, 107)  # faint green, 45 % of (0, 158, 115), over a grey of 100

# Refuses one address in the page itself: a 4xx over the wire is a console error in Chromium.
REFUSE = """(() => {
    const known = window.fetch;
    window.restore = () => { window.fetch = known; };
    window.fetch = async (address, options) => address === "%s"
        ? new Response(JSON.stringify({detail: "%s"}), {status: %s}) : known(address, options);
})()"""


class Fake:
    """One result at /reader/t/0/: what it answers, and what it was asked."""

    def __init__(self, image: np.ndarray, labels: np.ndarray | None = None, **meta: Any) -> None:
        shape = image.shape[:3]
        self.meta = {
            "name": "<i>scan</i>.nii.gz",
            "stem": "scan",
            "model": "brain",
            "shape": shape,
            "rgb": image.ndim == 4,
            "dtype": str(image.dtype),
            "spacing_mm": [1, 1, 1],
            "to_voxel": np.eye(4).tolist(),
            "affine": np.diag([-1.0, -1, 1, 1]).tolist(),
            "main": "axial",
            "start": [n // 2 for n in shape],
            "window": [0, 255],
            "ct": False,
            "classes": [] if labels is None else CLASSES,
            "status": "ok",
            "reason": "",
            "warnings": ["<u>Careful</u>"],
            "facts": [["Size", " × ".join(map(str, shape))]],
            "corrected": False,
            "has_confidence": labels is not None,
            "downloads": [{"kind": "csv", "label": "Measurements (CSV)"}],
            "can_keep": True,
            "keep_note": "kept in corrections/",
        } | meta
        self.image = np.ascontiguousarray(image)
        self.labels = None if labels is None else np.ascontiguousarray(labels, np.uint8)
        self.reference = np.zeros(shape, np.uint8)
        self.confidence = np.full(shape, 255, np.uint8)
        self.posted: list[tuple[str, bytes]] = []
        self.asked: list[str] = []

    def measures(self) -> dict[str, Any]:
        assert self.labels is not None
        figures = {"size": 1.5, "low": 1.0, "high": 2.0, "components": 3, "mean": 45.2}
        counts = [(self.labels == n).sum().item() for n in (BONE, SKIN)]
        classes = [
            {"name": c["name"], "voxels": n, **figures}
            for c, n in zip(CLASSES[1:], counts, strict=True)
        ]
        return {"unit": "ml", "note": "Small: a range", "classes": classes}

    def get(self, path: str) -> tuple[int, str, bytes]:
        if path == "/frame":
            page = '<link rel="icon" href="data:,"><p>Above</p><iframe src="/reader/t/0/"></iframe>'
            return 200, "text/html", page.encode()
        if path.startswith("/reader/static/"):
            file = STATIC / Path(path).name
            return 200, KINDS[file.suffix], file.read_bytes()
        name = path.removeprefix("/reader/t/0/")
        arrays = {"image": self.image, "labels": self.labels, "reference": self.reference}
        arrays["confidence"] = self.confidence
        if name == "":
            return 200, "text/html", (STATIC / "reader.html").read_bytes()
        if name == "meta.json":
            return 200, "application/json", json.dumps(self.meta).encode()
        if name == "measures.json":
            return 200, "application/json", json.dumps(self.measures()).encode()
        array = arrays.get(name.removesuffix(".bin"))
        if array is None:
            return 404, "application/json", b'{"detail": "unknown"}'
        return 200, "application/octet-stream", array.tobytes()

    def change(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        name = path.removeprefix("/reader/t/0/")
        self.posted.append((f"{method} {name}", body))
        answer: dict[str, Any] = {}
        if name == "labels":
            if method == "POST":
                shape = self.meta["shape"]
                self.labels = np.frombuffer(body, np.uint8).reshape(shape)
            answer = self.measures() | {"corrected": method == "POST"}
        elif name.startswith("reference"):
            answer = {"name": "<s>m</s>.png", "dice": {"bone": 0.5, "<b>skin</b>": None}}
            answer["warnings"] = []
        elif name == "case":
            answer = {"folder": "corrections/brain", "case": "a", "cases": 3, "note": "A note."}
            answer["command"] = "segapp train data.root=corrections/brain"
        return 200, "application/json", json.dumps(answer).encode()


@contextmanager
def served(fake: Fake) -> Iterator[str]:
    """The address of the fake's page."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if self.path.startswith("/reader/"):
                self.send_header("Content-Security-Policy", POLICY)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            fake.asked.append(self.path)
            self.answer(*fake.get(self.path))

        def change(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.answer(*fake.change(self.command, self.path, body))

        do_POST = do_DELETE = change

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/reader/t/0/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def is_from(address: str) -> Callable[[str], bool]:
    origin = address.removesuffix("reader/t/0/")
    return lambda url: url.startswith((origin, "data:", "blob:"))


@contextmanager
def reader(fake: Fake, **size: int) -> Iterator[Any]:
    """The page, once everything is loaded; fails on any console error or foreign request."""
    with served(fake) as address, open_page(is_from(address)) as page:
        page.set_viewport_size({"width": 1280, "height": 800} | size)
        page.goto(address)
        page.wait_for_selector("html[data-state=ready]", state="attached")
        if fake.labels is not None:
            page.wait_for_selector("html[data-complete=true]", state="attached")
        settle(page)
        yield page


def settle(page: Any) -> None:
    """Until what was asked for has been drawn."""
    page.evaluate("() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")


class View:
    """Where a pane's voxels are on the screen: fitted, not zoomed, isotropic by default."""

    def __init__(self, page: Any, plane: str, rows: int, cols: int, down=1.0, across=1.0) -> None:
        self.page, self.plane = page, plane
        self.box = page.locator(f"canvas[data-plane={plane}]").bounding_box()
        width, height = self.box["width"], self.box["height"]
        fit = min(width / (cols * across), height / (rows * down))
        self.down, self.across = fit * down, fit * across
        self.top = (height - rows * self.down) / 2
        self.left = (width - cols * self.across) / 2

    def inside(self, row: float, col: float) -> tuple[float, float]:
        """x, y within the canvas of the centre of a voxel."""
        return self.left + (col + 0.5) * self.across, self.top + (row + 0.5) * self.down

    def at(self, row: float, col: float) -> tuple[float, float]:
        x, y = self.inside(row, col)
        return self.box["x"] + x, self.box["y"] + y

    def hover(self, row: float, col: float) -> dict[str, str]:
        """What the readout says of a voxel."""
        self.page.mouse.move(*self.at(row, col))
        settle(self.page)
        return self.page.eval_on_selector("#readout", "e => ({...e.dataset})")

    def colour(self, row: float, col: float) -> list[int]:
        settle(self.page)
        script = """([plane, x, y]) => {
            const canvas = document.querySelector(`canvas[data-plane=${plane}]`);
            const scale = canvas.width / canvas.clientWidth;
            const at = [Math.floor(x * scale), Math.floor(y * scale), 1, 1];
            return [...canvas.getContext('2d').getImageData(...at).data].slice(0, 3);
        }"""
        return self.page.evaluate(script, [self.plane, *self.inside(row, col)])

    @property
    def slice(self) -> int:
        settle(self.page)
        selector = f"canvas[data-plane={self.plane}]"
        return int(self.page.eval_on_selector(selector, "e => e.dataset.slice"))


def near(colour: list[int], expected: tuple[int, ...], tolerance: int = 3) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(colour, expected, strict=True))


def two_classes() -> Fake:
    """(6, 12, 16): grey 100; on slice 3 bone in rows 2–5, columns 2–5, skin in columns 8–11."""
    image = np.full((6, 12, 16), 100, np.int16)
    labels = np.zeros(image.shape, np.uint8)
    labels[3, 2:6, 2:6], labels[3, 2:6, 8:12] = BONE, SKIN
    return Fake(image, labels)


def set_opacity(page: Any, percent: int) -> None:
    page.locator("#opacity").fill(str(percent))

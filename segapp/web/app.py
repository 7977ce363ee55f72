"""The Gradio app: `build_app` lays it out, `serve` starts it, `launch` is the command's part."""

from __future__ import annotations

import ipaddress
import logging
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Base
from PIL import Image

from segapp.errors import ConfigError, OutputError, ScanError
from segapp.formats import Entry, find_scans, is_scan_file, stem
from segapp.predict import Predictor
from segapp.web.session import Session, SessionClosed, group_uploads, private_root, shown_name
from segapp.web.view import EMPTY_VIEW, draw, facts_html, failures_html, view_html

log = logging.getLogger("segapp")

KEPT_SECONDS = 12 * 3600  # results of a tab that stays open; a closed one loses them at once
_HERE = Path(__file__).parent
_GONE = "This result is no longer kept. Drop the scan again."
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}
_INSTANT: dict[str, Any] = {
    **_PRIVATE,
    "queue": False,  # a prediction of somebody else must not hold up scrolling
    "show_progress": "hidden",
    "trigger_mode": "always_last",
}


def launch(models: list[Path], host: str = "127.0.0.1", port: int | None = None) -> None:
    """Load the model, serve it and block until interrupted. Port 0 or None: the first free one.

    Raises ModelFileError, and ConfigError for anything but one model or a port in use.
    """
    if len(models) != 1:
        raise ConfigError(f"segapp app takes exactly one model, got {len(models)}")
    predictor = Predictor.load(models[0])
    model = models[0].resolve()
    examples = find_examples(predictor, own_data=_is_loopback(host))
    app = build_app(predictor, model.name if model.is_dir() else model.parent.name, examples)
    if not _is_loopback(host):
        log.warning("%s: anybody who can reach this machine can use the app", host)
    serve(app, host, port, block=True)


def build_app(predictor: Predictor, title: str, examples: Sequence[Entry] = ()) -> gr.Blocks:
    """The app around a predictor. `examples` are scans that a click segments."""
    private_root()
    handlers = _Handlers(predictor, examples)
    with gr.Blocks(
        title=f"{title} – segapp",
        analytics_enabled=False,
        delete_cache=(600, KEPT_SECONDS),
        fill_width=True,
    ) as app:
        session = gr.State(None, time_to_live=KEPT_SECONDS, delete_callback=_close)
        found = ", ".join(escape(c.name) for c in predictor.classes[1:])
        gr.HTML(f'<header class="sa-header"><h1>{escape(title)}</h1><p>Finds {found}</p></header>')
        with gr.Row(elem_classes="sa-columns"):
            with gr.Column(scale=5, min_width=260):
                files = gr.File(label="Scans", file_count="multiple", height=170, elem_id="scans")
                gr.HTML('<p class="sa-note">PNG, JPEG, BMP, TIFF or NIfTI; several at once.</p>')
                samples = gr.Dataset(
                    label="Examples",
                    components=["textbox"],
                    samples=[[shown_name(entry)] for entry in examples],
                    type="index",
                    visible=bool(examples),
                    elem_id="examples",
                )
                failures = gr.HTML(elem_id="failures")
                chosen = gr.Radio(label="Results", visible=False, elem_id="results")
            with gr.Column(scale=11, min_width=400):
                view = gr.HTML(EMPTY_VIEW, elem_id="view")
                number = gr.Slider(
                    1, 2, 1, step=1, label="Slice", visible=False, precision=0, elem_id="slice"
                )
                opacity = gr.Slider(
                    0, 100, 50, step=5, label="Overlay opacity (%)", precision=0, elem_id="opacity"
                )
            with gr.Column(scale=6, min_width=280):
                facts = gr.HTML('<div class="sa-facts"></div>', elem_id="facts")
                download = gr.DownloadButton(
                    "Download segmentation", visible=False, variant="primary", elem_id="download"
                )
                download_all = gr.DownloadButton(
                    "Download all (zip)", visible=False, elem_id="download-all"
                )
        gr.HTML('<footer class="sa-footer">Research use only, not a medical device.</footer>')

        # What the API speaks; the page itself goes through the same endpoint.
        outputs = gr.File(label="Segmentations", file_count="multiple", visible=False)
        summary = gr.JSON(label="Summary", visible=False)
        shown = [chosen, number, view, facts, download]
        after = [files, failures, download_all, *shown]
        prediction: dict[str, Any] = {
            "outputs": [outputs, summary, session],
            "concurrency_limit": 1,
            "concurrency_id": "engine",
            "show_progress_on": view,
        }
        for event in (
            files.upload(
                handlers.segment,
                [files, session],
                api_name="segment",
                api_description="Segment scans. Returns their label files, and a summary of each.",
                **prediction,
            ),
            samples.click(handlers.segment_example, [samples, session], **prediction, **_PRIVATE),
        ):
            event.then(handlers.show_all, [session, opacity], after, queue=False, **_PRIVATE)
        chosen.input(handlers.show, [session, chosen, opacity], shown, **_INSTANT)
        gr.on(
            [number.input, opacity.input],
            handlers.view,
            [session, chosen, number, opacity],
            view,
            **_INSTANT,
        )
        _slice_endpoint(handlers, session)
        app.unload(handlers.unload)
    return app


def serve(app: gr.Blocks, host: str, port: int | None, block: bool) -> str:
    """Start the server, print and return its URL. Raises ConfigError where it can't start."""
    try:
        app.queue(default_concurrency_limit=1)
        _, url, _ = app.launch(
            server_name=host,
            server_port=port or None,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            footer_links=["api"],
            allowed_paths=[],
            theme=Base(
                primary_hue="teal",
                neutral_hue="slate",
                font=["system-ui", "sans-serif"],
                font_mono=["ui-monospace", "monospace"],
            ),
            css_paths=[_HERE / "style.css"],
            head=f"<script>{(_HERE / 'wheel.js').read_text(encoding='utf-8')}</script>",
        )
    except OSError as error:
        raise ConfigError(f"--port {port}: {error}") from error
    print(f"segapp is at {url}  (Ctrl+C stops it)", flush=True)
    if block:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        app.block_thread()
    return url


def find_examples(predictor: Predictor, own_data: bool = True) -> list[Entry]:
    """A few scans of the model's data, if they are here: three of the test images, the volumes.

    `own_data` allows those the model was trained on, wherever they are; they may show patients, so
    only to whoever sits at this machine. data/brain, if it is what the model knows, is free.
    """
    roots = [Path(predictor.info.data.root)] if own_data and predictor.info else []
    brain = Path("data/brain")
    with suppress(OSError):
        if (brain / "classes.txt").read_text("utf-8").split() == [
            c.name for c in predictor.classes
        ]:
            roots.append(brain)
    root = next((root for root in roots if root.is_dir()), None)
    if root is None:
        return []
    count = predictor.preprocessing.channel_files
    folders = ("test/images", "test/imagesTs", "imagesTs", "images", "imagesTr", "train/images")
    folder = next((root / name for name in folders if (root / name).is_dir()), None)
    try:
        scans = find_scans(folder, count) if folder else []
        alone = [Entry(stem(p), (p,)) for p in sorted(root.iterdir()) if is_scan_file(p)]
    except (ScanError, OSError):
        return []
    spread = [scans[i] for i in sorted({len(scans) // 6, len(scans) // 2, len(scans) * 5 // 6})]
    return (spread if scans else []) + (alone[:2] if count == 1 else [])


class _Handlers:
    """What the events call. Holds the predictor and, by tab, the open sessions."""

    def __init__(self, predictor: Predictor, examples: Sequence[Entry]):
        self.predictor = predictor
        self.examples = list(examples)
        self.open: dict[str, Session] = {}

    def segment(
        self,
        files: list[str] | None,
        session: Session | None,
        request: gr.Request,
        progress=gr.Progress(),
    ):
        paths = [Path(file) for file in files or []]
        entries = group_uploads(paths, self.predictor.preprocessing.channel_files)
        return self._segment(entries, session, request, progress)

    def segment_example(
        self,
        index: int,
        session: Session | None,
        request: gr.Request,
        progress=gr.Progress(),
    ):
        return self._segment([self.examples[index]], session, request, progress)

    def _segment(
        self,
        entries: list[Entry],
        previous: Session | None,
        request: gr.Request,
        progress: gr.Progress,
    ) -> tuple[list[str], dict[str, Any], Session]:
        _close(previous)
        session = self.open[request.session_hash or ""] = Session(private_root())
        try:
            session.segment(self.predictor, entries, lambda part, what: progress(part, desc=what))
        except SessionClosed as error:
            raise gr.Error("The page was closed.", print_exception=False) from error
        except (OSError, OutputError) as error:
            session.close()
            log.error("a session's folder can't be written (%s)", type(error).__name__)
            raise gr.Error("The server can't store results now.", print_exception=False) from error
        summary = {"results": [r.summary(index) for index, r in enumerate(session.results)]}
        return [str(path) for path in session.outputs], summary, session

    def unload(self, request: gr.Request) -> None:
        _close(self.open.pop(request.session_hash or "", None))

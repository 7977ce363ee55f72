"""The Gradio app: `build_app` lays it out, `serve` starts it, `launch` is the command's part."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import threading
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Base

from segapp.errors import ConfigError
from segapp.formats import Entry
from segapp.predict import Predictor
from segapp.web.handlers import Handlers, close
from segapp.web.inputs import find_examples, shown_name
from segapp.web.session import private_root
from segapp.web.view import EMPTY_VIEW

log = logging.getLogger("segapp")

KEPT_SECONDS = 12 * 3600  # results of a tab that stays open; a closed one loses them at once
_HERE = Path(__file__).parent
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
    handlers = Handlers(predictor, examples)
    with gr.Blocks(
        title=f"{title} – segapp",
        analytics_enabled=False,
        delete_cache=(600, KEPT_SECONDS),
        fill_width=True,
    ) as app:
        session = gr.State(None, time_to_live=KEPT_SECONDS, delete_callback=close)
        found = ", ".join(escape(c.name) for c in predictor.classes[1:])
        gr.HTML(f'<header class="sa-header"><h1>{escape(title)}</h1><p>Finds {found}</p></header>')
        with gr.Row(elem_classes="sa-columns"):
            with gr.Column(scale=5, min_width=260):
                files = gr.File(
                    label="Images, NIfTI, DICOM, zip",
                    file_count="multiple",
                    height=170,
                    elem_id="scans",
                )
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
                with gr.Row(visible=False) as controls:
                    number = gr.Slider(
                        1, 2, 1, step=1, precision=0, scale=3, buttons=[], elem_id="slice"
                    )
                    opacity = gr.Slider(
                        0,
                        100,
                        50,
                        step=5,
                        precision=0,
                        scale=2,
                        label="Opacity (%)",
                        buttons=[],
                        elem_id="opacity",
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
        shown = [controls, number, view, facts, download]
        after = [files, failures, download_all, chosen, *shown]
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
    for name in (
        "NO_PROXY",
        "no_proxy",
    ):  # Gradio calls itself once, not through a proxy
        others = [os.environ[name]] if os.environ.get(name) else []
        os.environ[name] = ",".join([*others, "localhost", "127.0.0.1", host])
    try:
        app.queue(default_concurrency_limit=1)
        _, url, _ = app.launch(
            server_name=host,
            server_port=port or None,
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            share=False,
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            footer_links=["api"],
            allowed_paths=[],
            theme=_theme(),
            css_paths=[_HERE / "style.css"],
            head=f"<script>{(_HERE / 'wheel.js').read_text(encoding='utf-8')}</script>",
        )
    except OSError as error:
        where = f"{host}, port {port}" if port else host
        raise ConfigError(
            f"{where}: can't listen there; is the port in use? 0 takes the first free one"
        ) from error
    print(f"segapp is at {url}  (Ctrl+C stops it)", flush=True)
    if block:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        app.block_thread()
    return url


def _theme() -> Base:
    """Fonts of the reader's system; greys and the button dark enough to read (4.5 to 1)."""
    theme = Base(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        slider_color="*primary_600",
    )


def _slice_endpoint(handlers: Handlers, session: gr.State) -> None:
    """The named endpoint /slice; its components are there for the API only."""
    result = gr.Number(0, label="Result, counted from 0", precision=0, visible=False)
    number = gr.Number(1, label="Slice, counted from 1", precision=0, visible=False)
    opacity = gr.Number(0.5, label="Opacity of the overlay, 0 to 1", visible=False)
    picture = gr.Image(label="Picture", type="filepath", format="png", visible=False)
    gr.Button(visible=False).click(
        handlers.slice,
        [result, number, opacity, session],
        picture,
        queue=False,
        api_name="slice",
        api_description="Draw a slice of a result of this client's last /segment as a PNG.",
    )


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""The Gradio page: what stands where, and what calls what."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Base

from segapp.formats.listing import FORMATS
from segapp.web.expects import expected_scans
from segapp.web.folders import FolderHandlers
from segapp.web.handlers import Handlers
from segapp.web.inputs import shown_name
from segapp.web.view import EMPTY

HERE = Path(__file__).parent
WAITING = 200  # jobs in the queue; the next one is asked to come later
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}
_INSTANT: dict[str, Any] = {
    **_PRIVATE,
    "queue": False,  # a prediction of somebody else must not hold up reading
    "show_progress": "hidden",
    "trigger_mode": "always_last",
}
_ENGINE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "engine"}
_HOW_TO_TRAIN = (
    "<p>No model was given, so scans are shown as they are. To train one on scans and masks of "
    "your own:</p><pre>segapp check DIR\nsegapp train data.root=DIR train.budget_minutes=10\n"
    "segapp app runs/DIR</pre>"
)


def build_page(handlers: Handlers, folders: FolderHandlers) -> gr.Blocks:
    """The page around its handlers."""
    models = list(handlers.models)
    title = ", ".join(models) or "Reading room"
    with gr.Blocks(title=f"{title} – segapp", analytics_enabled=False, fill_width=True) as page:
        page.state_session_capacity = WAITING  # type: ignore[assignment]
        gr.HTML(f'<header class="sa-header"><h1>{escape(title)}</h1>{_found(handlers)}</header>')
        model = gr.Dropdown(
            models,
            value=models[0] if models else None,
            label="Model",
            visible=len(models) > 1,
            elem_id="model",
        )
        with gr.Tab("Read", id="read"):
            _read_tab(handlers, model)
        if models:
            with gr.Tab("Batch", id="batch"):
                _batch_tab(folders, model)
        gr.HTML('<footer class="sa-footer">Research use only, not a medical device.</footer>')
        page.unload(lambda: None)  # makes pages say that they are there: see app.tab_is_there
    page.queue(default_concurrency_limit=1, max_size=WAITING, api_open=False)
    return page


def _found(handlers: Handlers) -> str:
    if not handlers.models:
        return _HOW_TO_TRAIN
    lines = []
    for name, predictor in handlers.models.items():
        finds = "Finds" if len(handlers.models) == 1 else f"{name} finds"
        said = [f"{finds} {', '.join(c.name for c in predictor.classes[1:])}"]
        said += filter(None, [expected_scans(predictor.info)])
        lines += said if len(handlers.models) == 1 else [". ".join(said)]
    return f"<div>{''.join(f'<p>{escape(line)}</p>' for line in lines)}</div>"


def _read_tab(handlers: Handlers, model: gr.Dropdown) -> None:
    with gr.Row(elem_classes="sa-columns"):
        with gr.Column(scale=1, min_width=230, elem_classes="sa-side-column"):
            files = gr.File(
                label="Scans",
                file_count="multiple",
                height=150,
                elem_id="scans",
            )
            gr.HTML(f"<p class='sa-note'>{escape(FORMATS)}; zip archives, folders.</p>")
            folder = gr.UploadButton(
                "Choose a folder", file_count="directory", size="sm", elem_id="folder"
            )
            samples = gr.Dataset(
                label="Examples",
                components=["textbox"],
                samples=[[shown_name(entry)] for _, entry in handlers.examples],
                type="index",
                visible=bool(handlers.examples),
                elem_id="examples",
            )
            status = gr.HTML(elem_id="status")
            stopped = gr.HTML(visible=False, elem_id="stopped")
            stop = gr.Button("Stop", visible=False, variant="stop", size="sm", elem_id="stop")
            worklist = gr.Radio(label="Worklist", visible=False, elem_id="worklist")
            clear = gr.Button("Clear the list", visible=False, size="sm", elem_id="clear")
            relist = gr.Button("Renew the list", elem_id="relist")  # clicked by page.js, not shown
        with gr.Column(scale=5, min_width=480):
            view = gr.HTML(handlers.reader_html(None, None), elem_id="view")

    after = [files, folder, status, stop, clear, worklist, view]
    events = []
    for source, handler, inputs in (
        (files.upload, handlers.read, [files, model]),
        (folder.upload, handlers.read, [folder, model]),
        (samples.click, handlers.read_example, [samples]),
    ):
        source(_waiting, None, [status, stopped, stop], **_INSTANT)
        event = source(
            handler,
            inputs,
            after,
            show_progress_on=status,
            trigger_mode="multiple",  # what is dropped while others are read waits
            **_ENGINE,
            **_PRIVATE,
        )
        events.append(event)
    stop.click(
        handlers.stop,
        None,
        [files, folder, status, stopped, stop, clear, worklist],
        cancels=events,
        **_INSTANT,
    )
    clear.click(
        handlers.clear,
        None,
        [status, stopped, stop, clear, worklist, view],
        cancels=events,
        **_INSTANT,
    )
    worklist.input(handlers.show, worklist, view, **_INSTANT)
    relist.click(handlers.relist, None, worklist, **_INSTANT)
    _endpoints(handlers, model)


def _waiting() -> tuple[gr.HTML, gr.HTML, gr.Button]:
    """Room for Gradio's word on the place in the queue, and a way out of it: (status, stopped,
    stop)."""
    waiting = gr.HTML("<p class='sa-note sa-waiting'>Waiting</p>", visible=True)
    return waiting, gr.HTML(visible=False), gr.Button(visible=True)


def _endpoints(handlers: Handlers, model: gr.Dropdown) -> None:
    """/segment and /slice; their components are there for programs only."""
    scans = gr.File(label="Scans", file_count="multiple", visible=False)
    outputs = gr.File(label="Segmentations", file_count="multiple", visible=False)
    summary = gr.JSON(label="Summary", visible=False)
    gr.Button(visible=False).click(
        handlers.segment,
        [scans, model],
        [outputs, summary],
        api_name="segment",
        api_description="Segment scans. Returns their label files, and a summary of each.",
        **_ENGINE,
    )
    result = gr.Number(0, label="Result, counted from 0", precision=0, visible=False)
    number = gr.Number(1, label="Slice, counted from 1", precision=0, visible=False)
    opacity = gr.Number(0.5, label="Opacity of the overlay, 0 to 1", visible=False)
    picture = gr.Image(label="Picture", type="filepath", format="png", visible=False)
    gr.Button(visible=False).click(
        handlers.slice,
        [result, number, opacity],
        picture,
        queue=False,
        api_name="slice",
        api_description="Draw a slice of a result of this client's last /segment as a PNG.",
    )


def _batch_tab(folders: FolderHandlers, model: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=230):
            place = gr.Dropdown(
                folders.choices(),
                value=None,
                label="Folder on the server",
                info="Type one below these, if it is not in the list.",
                allow_custom_value=True,
                visible=bool(folders.roots),
                elem_id="batch-folder",
            )
            files = gr.File(
                label="Or drop scans" if folders.roots else "Scans",
                file_count="multiple",
                height=150,
                elem_id="batch-scans",
            )
            start = gr.Button("Segment all", variant="primary", elem_id="batch-start")
            stop = gr.Button("Stop", visible=False, variant="stop", elem_id="batch-stop")
            status = gr.HTML(elem_id="batch-status")
            stopped = gr.HTML(visible=False, elem_id="batch-stopped")
            download = gr.DownloadButton(
                "Download all (zip)", visible=False, elem_id="batch-download"
            )
        with gr.Column(scale=4, min_width=480):
            table = gr.HTML(EMPTY.format("Results appear here as a table."), elem_id="batch-table")
    start.click(_waiting, None, [status, stopped, stop], **_INSTANT)
    event = start.click(
        folders.run,
        [place, files, model],
        [files, status, stop, table, download],
        show_progress_on=status,
        **_ENGINE,
        **_PRIVATE,
    )
    after_stop = [status, stopped, stop, table, download]
    stop.click(folders.stop, None, after_stop, cancels=[event], **_INSTANT)
    zipped = gr.File(label="Results (zip)", visible=False)
    summary = gr.JSON(label="Summary", visible=False)
    scans = gr.File(label="Scans", file_count="multiple", visible=False)
    below = gr.Textbox("", label="Folder on the server, or empty", visible=False)
    gr.Button(visible=False).click(
        folders.batch,
        [scans, below, model],
        [zipped, summary],
        api_name="batch",
        api_description="Segment many scans, or a folder on the server. Returns one zip with the "
        "label files and predictions.csv, and how many scans went how.",
        **_ENGINE,
    )


def theme() -> Base:
    """Fonts of the reader's system; greys and the button dark enough to read (4.5 to 1)."""
    return Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
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

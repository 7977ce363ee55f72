"""The commands that use a model: segment, measure, describe, serve, export, prune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from segapp.cli_start import command_line, quick_start, quiet_torch, start_logging
from segapp.ranks import this_process

Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="A run folder, a model.safetensors or an exported folder."
    ),
]
Data = Annotated[Path, typer.Argument(metavar="DATA", help="A data set, as for train.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Engine = Annotated[
    Literal["auto", "torch", "openvino", "onnx"],
    typer.Option(
        help="What runs the network. auto: on a CPU the export in the run folder, where there is "
        "one, else torch."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, errors too.")]


def predict(
    model: Model,
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT", help="Scans: files, folders, DICOM folders, zip archives."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")],
    output_format: Annotated[
        Literal["same", "nifti", "png", "dicomseg"],
        typer.Option(
            "--format",
            help="same: as the scan came, but PNG for JPEG and BMP, NIfTI for DICOM. dicomseg: a "
            "DICOM segmentation that refers to its DICOM series.",
        ),
    ] = "same",
    engine: Engine = "auto",
    device: Device = "auto",
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Also write a picture of each result.")
    ] = False,
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing",
            help="Leave results that are there, of the same scan and the same model, as their "
            "checksums in predictions.csv tell, and edited ones; also to go on with what was "
            "stopped.",
        ),
    ] = False,
    allow_gaps: Annotated[
        bool,
        typer.Option("--allow-gaps", help="Fill missing slices of a DICOM series, with a warning."),
    ] = False,
    max_memory_mb: Annotated[
        float | None,
        typer.Option(
            "--max-memory-mb", min=1, help="Refuse scans that would take more than this in all."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Segment scans; results mirror their names under DIR, beside predictions.csv.

    Formats are told by content: PNG, JPEG, BMP, TIFF, NIfTI, NRRD, MetaImage and DICOM, whose
    files are grouped into series. Results lie on each scan's own grid and hold the values of the
    training masks. A scan that can't be segmented is named in predictions.csv with the reason; the
    others go on. A result that the model itself has reason to doubt has the status review there.
    Files of a folder that are no scans are named in left-out.csv. Results of an earlier run are
    made again, unless --skip-existing is given; one that somebody edited is kept as NAME.bak.

    Several processes, also on several machines that share DIR, share the work where a launcher sets
    RANK and WORLD_SIZE, e.g. torchrun --no-python --nproc-per-node 4 segapp predict …
    """
    start_logging()
    with quick_start():
        from segapp.cli_batch import TABLE, batch_text, predict_all

    counts = predict_all(
        *(model, inputs, out, device, engine, max_memory_mb),
        output_format=output_format,
        overlay=overlay,
        skip_existing=skip_existing,
        allow_gaps=allow_gaps,
    )
    if counts is None:  # the first of several processes tells, and fails, for all
        return
    if as_json:
        typer.echo(json.dumps({**counts, "csv": str(out / TABLE)}))
    else:
        typer.echo(batch_text(counts, out))
    raise typer.Exit(1 if counts["failed"] else 0)


def evaluate(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the figures and report.html go.")],
    split: Annotated[
        Literal["all", "train", "val", "test"] | None,
        typer.Option(help="Default: test, else val, else all."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Another model, to be compared on the same cases."),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0, help="Of the surface Dice (NSD), in mm; in pixels where the spacing is unknown."
        ),
    ] = 2.0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a model on labelled cases.

    mIoU is the mean over all classes, background included, of the IoU of the summed confusion;
    Dice the mean over the foreground classes. Each has a 95 % interval, by resampling patients.
    cases.csv has the figures of each case, distances between surfaces among them; report.html
    shows all of it, with pictures, in one file.
    """
    start_logging()
    from segapp.cli_text import evaluation_table
    from segapp.evaluate import evaluate_model

    asked = (model, data, split, out, device, against, tolerance, command_line())
    if this_process().count > 1:
        quiet_torch()
        from segapp.together import joined

        with joined() as together:
            result = evaluate_model(*asked, together)
        if not together.first:
            return  # the first process speaks for all
    else:
        result = evaluate_model(*asked)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        typer.echo(evaluation_table(result))
        typer.echo(f"each case: {out / 'cases.csv'}   this table: {out / 'summary.json'}")
        if (out / "report.html").is_file():
            typer.echo(f"all of it, with pictures: {out / 'report.html'}")
    raise typer.Exit(1 if result["n_failed"] else 0)


def info(
    model: Model,
    card: Annotated[
        bool, typer.Option("--card", help="Print the model card, in Markdown.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Measure its validation cases again and compare mIoU."),
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Show what a model file says about itself.

    --verify compares the weights with their checksum, looks for the validation cases in the data
    that the file names (a relative path counts from the working directory), and exits with 2 where
    the weights are others or mIoU is not the recorded one within 0.005.
    """
    if verify:
        raise typer.Exit(_verify(model, device, as_json))
    from segapp.card import card_text
    from segapp.checkpoint import read_info
    from segapp.cli_text import info_text
    from segapp.exported import is_exported, read_export

    record = read_info(model)
    if as_json:
        typer.echo(record.model_dump_json())
    elif card:
        typer.echo(card_text(record), nl=False)
    else:
        typer.echo(info_text(record, model))
        if is_exported(model):
            export = read_export(model)
            typer.echo(f"{'export:':20}{export.engine}, {export.precision}; {export.parity}")


def _verify(model: Path, device: str, as_json: bool) -> int:
    """The exit code of info --verify."""
    start_logging()
    from segapp.cli_text import verification_text
    from segapp.verify import verify_model

    found = verify_model(model, device)
    typer.echo(json.dumps(found) if as_json else verification_text(found))
    return 0 if found["verified"] else 2


def export(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A run folder or a model.safetensors.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the export goes. Default: RUN/openvino, which predict, evaluate and app "
            "use by themselves on a CPU; or RUN/onnx.",
        ),
    ] = None,
    to: Annotated[
        Literal["openvino", "onnx"], typer.Option(help="What is to run it.")
    ] = "openvino",
    int8: Annotated[
        bool, typer.Option("--int8", help="8-bit weights and activations; needs --calibrate.")
    ] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="A labelled data set that ranges are taken from and parity is measured on; its "
            "train and val splits where it has splits.",
        ),
    ] = None,
    unequal: Annotated[
        bool, typer.Option("--unequal", help="Write it even where it segments differently.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a model for another engine, which answers sooner and needs no torch.

    The export is compared with the model on the same scans, through everything that predict does:
    99.9 % of the voxels must get the same class, with --int8 99 %, or mIoU within 0.005. DIR then
    serves as MODEL. It needs pip install "segapp[openvino]" or "segapp[onnx]".
    """
    start_logging()
    from segapp.export import export_model

    out = out or (model if model.is_dir() else model.parent) / to
    record = export_model(model, out, to, int8, calibrate, unequal)
    if as_json:
        typer.echo(record.model_dump_json())
    else:
        typer.echo(f"export: {out}\nparity: {record.parity}")


def prune(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A run folder or a model.safetensors.")
    ],
    data: Annotated[
        Path, typer.Option(metavar="DATA", help="A data set to train on, best the model's own.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where runs, curve and model go.")],
    amounts: Annotated[
        str, typer.Option(metavar="A,B,…", help="Shares to cut, one after another.")
    ] = "0.1,0.2,0.3,0.5",
    minutes: Annotated[float, typer.Option(help="Length of the run after each cut.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Make a model smaller: cut it step by step, train on after each cut, measure what it costs.

    Cut are a share of each layer's channels, which makes a network faster, and in other runs a
    share of all weights, the smallest, which become zeros and only pack better. DIR gets curve.csv,
    curve.png and, as model.safetensors, the fastest network that loses at most 0.01 of val mIoU;
    DIR then serves as MODEL. The same command again goes on where the last one stopped. It needs
    pip install "segapp[prune]", and for channels a convolutional network such as the default one.
    """
    start_logging()
    from segapp.cli_text import pruning_table, shares
    from segapp.prune import prune_model

    result = prune_model(model, data, out, shares(amounts), minutes)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        typer.echo(pruning_table(result))
        typer.echo(f"picture: {out / 'curve.png'}   model: {result['model']}")


def web_app(
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="MODEL",
            help="Run folders, model.safetensors or exported folders. None: scans are only shown.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that others reach needs --auth-file.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes the first free one from 7860.")] = 0,
    auth_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Names and bcrypt hashes of who may use the app, as htpasswd -B writes them; "
            "python -m segapp.web.users FILE NAME adds one.",
        ),
    ] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="A folder that visitors may have segmented on the server; may be given again. "
            "Corrections are kept in DIR/corrections of the first one (of several models in "
            "corrections/MODEL), without any in ./corrections (with another --host nowhere).",
        ),
    ] = None,
) -> None:
    """Open the web app: drop scans, read and correct them, measure, download, segment folders.

    It listens to this machine alone unless told otherwise, and asks nothing of the network. What a
    visitor dropped and got is deleted when the tab is closed.
    """
    start_logging()
    from segapp.web.app import launch

    launch(models or [], host, port, auth_file, root or [])

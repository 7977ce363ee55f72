"""The command line. Each command parses, calls one function, and prints."""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer

from segapp.errors import SegappError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Train a segmentation model on your scans and masks, measure it, use it.\n\n"
    "Start with:  segapp train data.root=DIR  then  segapp predict RUN SCANS --out RESULTS",
    epilog="Exit codes: 0 all done, 1 some inputs or runs failed, 2 any other error, "
    "130 stopped by Ctrl-C or SIGTERM.",
)


Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A run folder or a model.safetensors.")
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [KEY=VALUE ...]",
        help="A YAML file first, then settings that override it, e.g. data.root=DIR "
        "train.budget_minutes=10. Without a file and data.root: configs/brain.yaml.",
    ),
]
Data = Annotated[Path, typer.Argument(metavar="DATA", help="A data set, as for train.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


@app.command()
def train(
    words: Words = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with an interrupted run.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print every setting and its value, then stop.")
    ] = False,
    find_lr: Annotated[
        bool,
        typer.Option(
            "--find-lr",
            help="Try learning rates over 100 steps: print a suggestion, save a plot.",
        ),
    ] = False,
) -> None:
    """Train a model.

    The data set (data.root=DIR) is known by its layout: images/ + masks/ with the same file names,
    nnU-Net's imagesTr/ + labelsTr/ + dataset.json, either below train/ val/ test/, or a cases.csv
    with image,mask,patient,split. Ctrl-C saves the run; --resume goes on with it.
    """
    from segapp.config import load_settings, run_config

    config, words = _config_and_words(words)
    if resume:
        if config or words or find_lr:
            raise typer.BadParameter("--resume takes the run's own settings; give none beside it")
        settings = load_settings(run_config(resume), [])
    else:
        settings = load_settings(config, words)
    if print_config:
        typer.echo(settings.to_yaml(), nl=False)
        return
    _start_logging()
    if find_lr:
        from segapp.train import find_rate

        rate, plot = find_rate(settings)
        typer.echo(f"suggested optim.max_lr: {rate:.1e}\nplot: {plot}")
        return
    from segapp.plan import open_run, reopen_run

    if resume:
        settings.train.out = resume
    plan = reopen_run(settings) if resume else open_run(settings)
    if plan:  # torch takes seconds to import, and bad data is known before
        from segapp.train import run_plan

        run_plan(plan, _command_started())
    out = settings.train.out
    assert out is not None
    typer.echo(f"model: {out / 'model.safetensors'}")
    typer.echo(f"next:  segapp evaluate {out} {settings.data.root} --out {out / 'evaluation'}")


@app.command()
def compare(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where runs, table and plots go.")],
    words: Words = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2",
            help="A setting and its values; the first is the baseline. Given again: every "
            "combination. Replaces what the config's compare: section varies.",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs of each variant. Default: the config's, else 3.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train variants with several seeds each, measure them, and say what made a difference.

    Each run has the budget of the config and a process of its own. DIR gets comparison.md, .csv
    and .png after every run. The same command again goes on where the last one stopped.
    """
    from segapp.variants import read_comparison

    config, words = _config_and_words(words)
    comparison = read_comparison(config, words, vary or [], seeds, out)
    _start_logging()
    from segapp.compare import run_comparison
    from segapp.report.comparison import table_text

    result = run_comparison(comparison, out)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        typer.echo(table_text(result["variants"]))
        typer.echo(f"what the columns mean: {result['page']}")
    raise typer.Exit(1 if result["n_failed"] else 0)


@app.command()
def check(
    data: Data,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Else runs/check-DATA.")] = None,
    as_json: Json = False,
) -> None:
    """Look for everything that is wrong with a data set, before training on it.

    Lists missing, damaged, flipped and odd files, leaks between splits, rare classes, and what
    training would need. DIR gets findings.csv, report.json, sheet.png. Exit code 2: errors found.
    """
    _start_logging()
    from segapp.doctor import report_on

    lines, code = report_on(data, out or Path("runs") / f"check-{data.resolve().name}", as_json)
    typer.echo("\n".join(lines))
    raise typer.Exit(code)


@app.command()
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
    device: Device = "auto",
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Also write a picture of each result.")
    ] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave scans that have a result.")
    ] = False,
    allow_gaps: Annotated[
        bool,
        typer.Option("--allow-gaps", help="Fill missing slices of a DICOM series, with a warning."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Segment scans; results mirror their names under DIR, beside predictions.csv.

    Formats are told by content: PNG, JPEG, BMP, TIFF, NIfTI, NRRD, MetaImage and DICOM, whose
    files are grouped into series. Results lie on each scan's own grid and hold the values of the
    training masks. A scan that can't be segmented is named in predictions.csv with the reason; the
    others go on.
    """
    _start_logging()
    from segapp.cli_text import predict_all

    counts = predict_all(
        *(model, inputs, out, device),
        output_format=output_format,
        overlay=overlay,
        skip_existing=skip_existing,
        allow_gaps=allow_gaps,
    )
    table = out / "predictions.csv"
    if as_json:
        typer.echo(json.dumps({**counts, "csv": str(table)}))
    else:
        said = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
        typer.echo(f"{said}; see {table}")
    raise typer.Exit(1 if counts["failed"] else 0)


@app.command()
def evaluate(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where cases.csv, summary.json go.")],
    split: Annotated[
        Literal["all", "train", "val", "test"] | None,
        typer.Option(help="Default: test, else val, else all."),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a model on labelled cases.

    mIoU is the mean over all classes, background included, of the IoU of the summed confusion;
    Dice the mean over the foreground classes. cases.csv has the figures of each case.
    """
    _start_logging()
    from segapp.cli_text import evaluation_table
    from segapp.evaluate import evaluate_model

    result = evaluate_model(model, data, split, out, device)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        typer.echo(evaluation_table(result))
        typer.echo(f"each case: {out / 'cases.csv'}   this table: {out / 'summary.json'}")
    raise typer.Exit(1 if result["n_failed"] else 0)


@app.command()
def info(model: Model, as_json: Json = False) -> None:
    """Show what a model file says about itself."""
    from segapp.checkpoint import model_path, read_info
    from segapp.cli_text import info_text

    record = read_info(model)
    if as_json:
        typer.echo(record.model_dump_json())
        return
    typer.echo(info_text(record, model_path(model)))


@app.command(name="app")
def web_app(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL", help="A run folder or a model.safetensors; exactly one."),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than 127.0.0.1 let the network in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes the first free one from 7860.")] = 0,
) -> None:
    """Open the web app: drop scans, look at the result slice by slice, download it."""
    _start_logging()
    from segapp.web.app import launch

    launch(models, host, port)


def _config_and_words(words: list[str] | None) -> tuple[Path | None, list[str]]:
    words = words or []
    return (Path(words[0]), words[1:]) if words and "=" not in words[0] else (None, words)


def _start_logging() -> None:
    from segapp.progress import log_to_console

    log_to_console()


def _command_started() -> float:
    """When this process began, so that a budget also pays for the imports."""
    import psutil

    return min(time.time(), psutil.Process().create_time())


def main() -> None:
    """Entry point: errors made for users end in one line and their exit code."""
    try:
        app(standalone_mode=True)
    except SegappError as error:
        print(f"segapp: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # a folder that can't be entered, a disk that is gone
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"segapp: {what}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == 130:  # what the parser makes of Ctrl-C
            print("segapp: stopped", file=sys.stderr)
        raise
    except Exception:  # a bug of ours: show where, but 1 means that some inputs failed
        traceback.print_exc()
        sys.exit(2)


if __name__ == "__main__":
    main()

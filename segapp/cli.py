"""The command line. Each command parses, calls one function, and prints."""

from __future__ import annotations

import io
import json
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import segapp
from segapp.cli_models import (
    Data,
    Device,
    Json,
    evaluate,
    export,
    info,
    predict,
    prune,
    web_app,
)
from segapp.cli_start import (
    command_line,
    forgiving,
    quiet_torch,
    start_logging,
    torch_trouble,
    with_home,
)
from segapp.errors import SegappError
from segapp.machine import end_cleanly
from segapp.ranks import refuse_several, spoken_by, this_process

_EXIT_CODES = (
    "Exit codes: 0 all done, 1 some inputs or runs failed, 2 any other error, "
    "130 stopped by Ctrl-C or SIGTERM (app: 0)."
)
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Train a segmentation model on your scans and masks, measure it, use it.\n\n"
    "Start with:  segapp train data.root=DIR  then  segapp predict RUN SCANS --out RESULTS",
    epilog=_EXIT_CODES,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"segapp {segapp.__version__}")
        raise typer.Exit


@app.callback()
def _start(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it, stop."),
    ] = False,
) -> None:
    command = context.invoked_subcommand
    if command not in ("train", "predict", "evaluate") and "--help" not in sys.argv:
        refuse_several(command or "")


Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [KEY=VALUE ...]",
        help="A YAML file first, then settings that override it, e.g. data.root=DIR "
        "train.budget_minutes=10. Without a file and data.root: configs/brain.yaml.",
    ),
]


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
    data: Annotated[str | None, typer.Option("--data", hidden=True)] = None,
) -> None:
    """Train a model.

    The data set (data.root=DIR) is known by its layout: images/ + masks/ with the same file names,
    nnU-Net's imagesTr/ + labelsTr/ + dataset.json, either below train/ val/ test/, or a cases.csv
    with image,mask,patient,split. Ctrl-C saves the run; --resume goes on with it.
    """
    from segapp.config import load_settings, run_config

    if data:
        raise typer.BadParameter(f"the data set is a setting: write data.root={data}")
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
    start_logging()
    if find_lr:
        refuse_several("train --find-lr")
        from segapp.train import find_rate

        rate, plot = find_rate(settings)
        typer.echo(f"suggested optim.max_lr: {rate:.1e}\nplot: {plot}")
        return
    from segapp.engines import can_export

    exports = settings.train.export != "none" and can_export(settings.train.export)
    if resume:
        settings.train.out = resume
    out = settings.train.out
    assert out is not None
    if not _train_settings(settings, bool(resume)):
        return  # the first process speaks for all
    typer.echo(f"model: {out / 'model.safetensors'}")
    if (out / "report.html").is_file():  # older runs have none
        typer.echo(f"report: {out / 'report.html'}")
    if exports:
        from segapp.export import export_beside

        typer.echo(f"export: {export_beside(out)}")
    typer.echo(f"next:  segapp evaluate {out} {settings.data.root} --out {out / 'evaluation'}")


def _train_settings(settings: Any, resume: bool) -> bool:
    """Train, alone or with the processes that a launcher started beside this one; whether this is
    the first of them."""
    if this_process().count > 1:
        quiet_torch()
        from segapp.launch import open_together
        from segapp.together import joined
        from segapp.train import run_plan

        with joined() as together:
            if plan := open_together(settings, resume, together):
                run_plan(replace(plan, command=command_line()), _command_started(), together)
        return together.first
    from segapp.plan import open_run, reopen_run

    plan = reopen_run(settings) if resume else open_run(settings)
    if plan:  # torch takes seconds to import, and bad data is known before
        from segapp.train import run_plan

        run_plan(replace(plan, command=command_line()), _command_started())
    return True


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
    start_logging()
    from segapp.compare import run_comparison
    from segapp.report.comparison import table_text

    result = run_comparison(comparison, out)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        typer.echo(table_text(result["variants"]))
        typer.echo(f"what the columns mean: {result['page']}")
    raise typer.Exit(1 if result["n_failed"] else 0)


def check(
    data: Data,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Else runs/check-DATA.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="Also rank the masks by how suspect this model finds them. Best a run with "
            "train.folds, where each mask is judged by a fold that was not trained on it.",
        ),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Look for everything that is wrong with a data set, before training on it.

    Lists missing, damaged, flipped and odd files, leaks between splits, rare classes, and what
    training would need. DIR gets findings.csv, report.json, sheet.png. Exit code 2: errors found.

    With --model, masks that a trained model contradicts come first in suspects.csv, each with what
    is different: classes swapped, a hole, the worst ones also shifted. suspects.png shows the worst
    beside the model's result. Which of the two is wrong is for you to see; the exit code does not
    depend on it.
    """
    start_logging()
    out = out or Path("runs") / f"check-{data.resolve().name}"
    if model:
        from segapp.suspects import check_with_model

        raise typer.Exit(check_with_model(data, model, out, as_json, typer.echo, device))
    from segapp.doctor import report_on

    lines, code = report_on(data, out, as_json)
    typer.echo("\n".join(lines))
    raise typer.Exit(code)


for _command in (train, compare, check, predict, evaluate, info, export, prune):
    app.command(epilog=_EXIT_CODES)(with_home(_command))
app.command(name="app", epilog=_EXIT_CODES)(with_home(web_app))


def _config_and_words(words: list[str] | None) -> tuple[Path | None, list[str]]:
    words = words or []
    return (Path(words[0]), words[1:]) if words and "=" not in words[0] else (None, words)


def _command_started() -> float:
    """When this process began, so that a budget also pays for the imports."""
    import psutil

    return min(time.time(), psutil.Process().create_time())


def main() -> None:
    """Entry point: errors made for users end in one line and their exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be UTF-8
        sys.stdout.reconfigure(errors="surrogateescape")
    sys.stderr = forgiving(sys.stderr)
    try:
        with end_cleanly():
            app(standalone_mode=True)
    except SegappError as error:
        _end(str(error), error.exit_code)
    except OSError as error:  # a folder that can't be entered, a disk that is gone
        _end(f"{error.filename}: {error.strerror}" if error.filename else str(error), 2)
    except SystemExit as stop:
        if stop.code == 130:  # what the parser makes of Ctrl-C
            _end("stopped", 130)
        if usage := getattr(stop.__context__, "format_message", None):  # it has printed that
            _print_error(usage(), 2)
        raise
    except Exception as error:  # a bug of ours: show where, but 1 means that some inputs failed
        if said := torch_trouble(error):
            _end(said, 2)
        traceback.print_exc()
        _print_error(f"unexpected {type(error).__name__}: {error}", 2)
        sys.exit(2)


def _end(said: str, code: int) -> NoReturn:
    print(f"{spoken_by()}segapp: {' '.join(said.splitlines())}", file=sys.stderr)
    _print_error(said, code)
    sys.exit(code)


def _print_error(said: str, code: int) -> None:
    """Who asked for one JSON object on stdout gets one of an error too."""
    if code in (2, 130) and "--json" in sys.argv and not spoken_by():
        typer.echo(json.dumps({"error": " ".join(said.splitlines())}))


if __name__ == "__main__":
    main()

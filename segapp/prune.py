"""`segapp prune`: networks with fewer channels, or more zeros, trained on after each cut.

Channels: whole filters, with all that depends on them (Fang et al. 2023, "DepGraph"; the weakest by
the norm of their group's weights). Weights: the smallest of all convolutions (Han et al. 2015).
Each amount starts from the network of the one before (gradually, as Zhu & Gupta 2017).
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from segapp.checkpoint import (
    MODEL_NAME,
    Cut,
    ModelInfo,
    Pruned,
    model_path,
    read_info,
    read_weights,
    save_model,
)
from segapp.config import settings_of
from segapp.engines import EXPORTED_NAME, can_export, require_installed, slices_at_once
from segapp.engines.torch import choose_device, choose_precision, load_network
from segapp.errors import ConfigError, DataError, Interrupted, ModelFileError, OutputError
from segapp.evaluate import evaluate_cases
from segapp.export import export_beside, export_model
from segapp.exported import is_exported
from segapp.files import atomic_path, require_writable, sha256, write_table, write_text
from segapp.plan import Plan, make_plan, open_run, reopen_run
from segapp.predict import Predictor
from segapp.progress import track
from segapp.report.pruning import draw_curve
from segapp.settings import Settings
from segapp.train import run_plan

log = logging.getLogger("segapp")

MIOU_LOSS = 0.01  # that the chosen network may have
_RATE = 0.3  # of the model's own learning rate, for what is trained on
_ROUND_TO = 8  # channels: what processors compute at once
_SIDE = 256  # pixels of the slice that networks are timed on, where training saw whole slices
_CALLS = 15  # of each network, in turns, whose median is its time
_RECORD = "prune.json"  # of which model and data a folder is a pruning
METHODS: tuple[Cut, ...] = ("channels", "weights")


@dataclass(frozen=True)
class Point:
    """A network of the trade-off curve. sparsity: share of the original's weights that are gone or
    zero; ms: median time of one slice; miou: of the val split."""

    method: str
    amount: float
    sparsity: float
    parameters: int
    megabytes: float
    ms: float
    miou: float
    model: str


def prune_model(
    model: Path, data: Path, out: Path, amounts: Sequence[float], minutes: float
) -> dict[str, Any]:
    """Prune a model by each of the amounts and go on training for some minutes each time.

    amounts: of each layer's channels and of all weights, above 0 and below 1. minutes: of a whole
    run, the preparing of its slices included. `out` gets a run folder for each, curve.csv,
    curve.png, and the model that `choose` finds. The same call again goes on where the last one
    stopped. Returns what --json prints.

    Raises ConfigError for an ensemble, a pruned model and an architecture whose channels can't be
    cut, OutputError for a folder that holds something else, DataError for data that can't be
    trained on or measured, all of which is looked at before anything is written, and what training
    raises."""
    require_installed("prune", "segapp prune")
    info = read_info(model)
    if info.architecture.members > 1:
        raise ConfigError(f"{model}: is an ensemble; name one of its folds")
    if info.pruned:
        raise ConfigError(f"{model}: is pruned already; name the model that was pruned")
    file = model_path(model)
    own = {"model": sha256(file), "data": str(data.resolve()), "minutes": minutes}
    begun = _is_own(out, file, data, own)
    settings = _settings(info, data, out, file, minutes)
    plan = make_plan(settings, lambda cases: track(cases, "reading the data"))
    if not begun:
        with tempfile.TemporaryDirectory() as folder:  # whether its channels can be cut at all
            _write_cut("channels", min(amounts), file, file, Path(folder) / MODEL_NAME)
        require_writable(out)
        write_text(out / _RECORD, json.dumps(own, indent=2) + "\n")
    original = out / "original"
    _copy_model(model, original)
    runs = {("original", 0.0): original}
    for method in METHODS:
        before = original
        for amount in sorted(amounts):
            run = out / f"{method}-{amount:g}"
            if not (run / "metrics.json").is_file():
                log.info("%g of the %s cut, then a run of %g minutes", amount, method, minutes)
                settings = _settings(info, data, run, _start_of(run), minutes)
                _cut_and_train(method, amount, before, settings, original)
            _start_of(run).unlink(missing_ok=True)
            before = runs[method, amount] = run
    points = _measure(runs, plan)
    chosen = choose(points)
    _copy_model(Path(chosen.model), out)
    if _runs_exported():
        try:
            export_beside(out)
        except ModelFileError as error:
            log.warning("the chosen model has no export: %s", error)
    write_table(out / "curve.csv", list(asdict(chosen)), map(asdict, points))
    draw_curve(points, chosen, points[0].miou - MIOU_LOSS, out / "curve.png")
    return {
        "points": [asdict(p) for p in points],
        "chosen": asdict(chosen),
        "model": str(out / MODEL_NAME),
    }


def _is_own(out: Path, model: Path, data: Path, own: dict[str, Any]) -> bool:
    """Whether a pruning of this record has begun in `out`; False where nothing is there yet. Raises
    OutputError where `out` is not a place for it."""
    if model.resolve().is_relative_to(out.resolve()) or out.resolve() == data.resolve():
        raise OutputError(f"{out}: holds the model or the data; choose another folder")
    if (out / "config.yaml").exists():
        raise OutputError(f"{out}: is a run folder; choose another one")
    record = out / _RECORD
    if not record.is_file():
        names = [p.name for p in out.iterdir() if p.name[0] != "."] if out.is_dir() else []
        if names:
            raise OutputError(f"{out}: holds other files, such as {min(names)}; choose another")
        return False
    with suppress(OSError, ValueError):
        if json.loads(record.read_text(encoding="utf-8")) == own:
            return True
    raise OutputError(f"{out}: holds a pruning of another model, data set or length")


def choose(points: Sequence[Point]) -> Point:
    """The fastest of the original (the first point) and those with fewer channels whose mIoU is at
    most 0.01 below its own."""
    least = points[0].miou - MIOU_LOSS
    usable = [p for p in points if p.method != "weights" and p.miou >= least]
    return min(usable, key=lambda p: p.ms)


def _settings(info: ModelInfo, data: Path, run: Path, start: Path, minutes: float) -> Settings:
    """The model's own settings, to go on from `start` with in the run folder `run`."""
    tree = {**info.settings, "train": {**info.settings["train"], "epochs": None}}
    precision = info.settings["train"]["precision"]
    usable = ("fp32", choose_precision("auto", choose_device("auto")))
    changes = {
        "data.root": data,
        "data.workers": "auto",
        "model.encoder_weights": "none",
        "model.init_from": start,
        "optim.max_lr": _RATE * info.settings["optim"]["max_lr"],
        "optim.freeze_encoder": 0,
        "train.out": run,
        "train.budget_minutes": minutes,
        "train.precision": precision if precision in usable else "auto",
        "train.progressive": None,
        "train.deterministic": False,  # a run of some minutes can't be
        "train.export": "none",
    }
    return settings_of(tree, list(changes.items()), None)


def _start_of(run: Path) -> Path:
    return run.with_name(f".{run.name}.safetensors")


def _cut_and_train(
    method: Cut, amount: float, before: Path, settings: Settings, original: Path
) -> None:
    run, start = settings.train.out, settings.model.init_from
    assert run is not None
    assert start is not None
    if not (run / "log.txt").is_file():
        _write_cut(method, amount, before, original, start)
    plan = reopen_run(settings) if (run / "log.txt").is_file() else open_run(settings)
    assert plan is not None
    try:
        run_plan(plan)
    except Interrupted as error:
        raise Interrupted("stopped and saved; the same command goes on") from error


def _write_cut(method: Cut, amount: float, before: Path, original: Path, start: Path) -> None:
    """The network of the run before, with `amount` of the original's channels or weights gone, as a
    model file. Raises ConfigError where its channels can't be cut."""
    info = read_info(before)
    cut = info.model_copy(update={"pruned": Pruned(what=method, amount=amount)})
    network = load_network(before, info)
    inputs = info.preprocessing.inputs
    try:
        if method == "channels":
            cut_channels(network, load_network(original, read_info(original)), amount, inputs)
        else:
            cut_weights(network, amount)
        weights = {n: t.detach().numpy() for n, t in network.state_dict().items()}
        save_model(start, weights, cut)
        with torch.inference_mode():
            load_network(start, cut).eval()(torch.zeros(1, inputs, 64, 96))
    except OutputError:
        raise
    except Exception as error:  # what can't be cut shows in many ways
        start.unlink(missing_ok=True)
        if method != "channels":
            raise
        a = info.architecture
        raise ConfigError(
            f"the channels of a {a.name} over {a.encoder} can't be cut ({type(error).__name__}); "
            "those of a unet over a ResNet can"
        ) from error


def cut_channels(network: nn.Module, original: nn.Module, amount: float, inputs: int) -> None:
    """Leave out the weakest channels of each layer, but of the input and the classes, until a share
    `amount` of the original's is gone; what is left is the nearest multiple of 8, at least 8."""
    import torch_pruning

    network.eval()
    ratios = {}
    for name, layer in network.named_modules():
        whole = original.get_submodule(name)
        if isinstance(layer, nn.Conv2d) and isinstance(whole, nn.Conv2d):
            width = (1 - amount) * whole.out_channels
            width = max(_ROUND_TO, round(width / _ROUND_TO) * _ROUND_TO)
            # it rounds down; half a channel more keeps a rounding error from costing a whole one
            ratios[layer] = max(0.0, 1 - (width + 0.5) / layer.out_channels)
    pruner = torch_pruning.pruner.BasePruner(
        network,
        torch.zeros(1, inputs, 64, 96),
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio_dict=ratios,
        ignored_layers=[network.get_submodule("segmentation_head")],
    )
    pruner.step()


def cut_weights(network: nn.Module, share: float) -> None:
    """Set the smallest weights of all convolutions, a share of them, to zero."""
    convolutions = [(m, "weight") for m in network.modules() if isinstance(m, nn.Conv2d)]
    torch_prune.global_unstructured(convolutions, torch_prune.L1Unstructured, amount=share)
    for convolution, name in convolutions:
        torch_prune.remove(convolution, name)


def _runs_exported() -> bool:
    """Whether models are run by OpenVINO here."""
    return choose_device("auto").type == "cpu" and can_export("openvino", "prune")


def _measure(runs: dict[tuple[str, float], Path], plan: Plan) -> list[Point]:
    """A point for each run, all timed in turns on the engine that would segment with it here.
    Raises DataError for a val case that can't be measured."""
    exports = _runs_exported()
    predictors, scores = [], []
    for run in runs.values():
        if exports and not is_exported(run / EXPORTED_NAME):
            export_model(run, run / EXPORTED_NAME, unequal=True)  # each is measured as it is
        predictors.append(Predictor.load(run, single=True))
        cases = track(plan.dataset.split("val"), f"measuring {run.name}")
        result = evaluate_cases(predictors[-1], cases, plan.ignore, plan.merged)
        if failed := result.failed():
            raise DataError(failed[0].error)
        scores.append(result.miou)
    # the slice that training saw patches of, or one like it
    side, stride = _SIDE, 2 * plan.preprocessing.stride
    if isinstance(plan.settings.optim.patch, int):
        side = stride * math.ceil(plan.settings.optim.patch / stride)
    engines = [p.engine for p in predictors]
    count = slices_at_once(engines[0], side, side)
    batch = np.zeros((count, plan.preprocessing.inputs, side, side), np.float32)
    times = in_turns([lambda engine=engine: engine(batch) for engine in engines], _CALLS)
    kept = [_weights(run) for run in runs.values()]
    before = np.count_nonzero(kept[0])
    return [
        Point(
            *(method, amount, float(1 - np.count_nonzero(weights) / before), len(weights)),
            *(model_path(run).stat().st_size / 1e6, ms / count, score, str(run)),
        )
        for ((method, amount), run), weights, ms, score in zip(
            runs.items(), kept, times, scores, strict=True
        )
    ]


def in_turns(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median time in ms of each call; they take turns, so that all meet the same machine."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 2):  # the first ones are slow
        for call, own in zip(calls, times, strict=True):
            began = time.perf_counter()
            call()
            if number >= 2:
                own.append(1000 * (time.perf_counter() - began))
    return [statistics.median(own) for own in times]


def _weights(run: Path) -> np.ndarray:
    """What training learned, which statistics of batch norms are not: (n,) float32."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    weights = read_weights(run).items()
    return np.concatenate([w.ravel() for name, w in weights if not name.endswith(statistics)])


def _copy_model(model: Path, folder: Path) -> None:
    with atomic_path(folder / MODEL_NAME) as temporary:
        shutil.copyfile(model_path(model), temporary)

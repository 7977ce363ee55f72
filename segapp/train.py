"""Training. Read `fit` from top to bottom: it is the recipe."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segapp import resume
from segapp.augment import Augmentation
from segapp.checkpoint import MODEL_NAME, Architecture, ModelInfo, read_weights, save_model
from segapp.config import Settings
from segapp.data import Samples, SliceCache, make_batches, pass_length
from segapp.engines.torch import TorchEngine, choose_device, choose_precision
from segapp.errors import ConfigError, DataError, Interrupted, OutputError, TrainingError
from segapp.evaluate import summary
from segapp.files import write_text
from segapp.history import figures_text, record_epoch
from segapp.machine import catch_interrupt, end_cleanly, keep_freed_memory, log_file
from segapp.model import build_network, load_encoder_weights
from segapp.optim import OneCycle, make_optimizer
from segapp.pace import Clock, Pace
from segapp.plan import Plan, open_run, reopen_run
from segapp.predict import Predictor
from segapp.progress import TrainingBar, clock_text, track
from segapp.report.training import write_augmentations, write_curves, write_history, write_overlays
from segapp.resume import State
from segapp.step import make_accelerator, peak_memory_mb, training_step
from segapp.validation import Validation

log = logging.getLogger("segapp")

_LEAST_STEPS = 40  # an epoch of fewer steps validates more than it trains
_SAVE_EVERY_S = 60
_OVERLAYS = 8


def train(settings: Settings, started: float | None = None) -> Path:
    """Train a model as `settings` say; returns the run folder.

    started: time.time() when the command began (a budget counts from there); now if None.
    Raises what `open_run` and `run_plan` raise.
    """
    return run_plan(open_run(settings), started)


def resume_run(settings: Settings, started: float | None = None) -> Path:
    """Go on with the run in train.out; one that is finished is left as it is."""
    plan = reopen_run(settings)
    assert settings.train.out is not None
    return run_plan(plan, started) if plan else settings.train.out


def run_plan(plan: Plan, started: float | None = None) -> Path:
    """Train what is planned, from the run's saved state where it has one; returns its folder.

    Raises ConfigError for settings that this machine or the network can't follow (nothing is left
    behind then), DataError where the data changed since an interrupted run began, TrainingError
    for a loss that is not finite, Interrupted on Ctrl-C or SIGTERM (after saving).
    """
    keep_freed_memory()
    s, out = plan.settings, plan.out
    resuming = resume.has_state(out / "last")
    write_text(out / "config.yaml", s.to_yaml())  # from here on --resume finds the run
    with end_cleanly(), log_file(out / "log.txt"):
        for line in plan.reasons:
            log.info("%s", line)
        for line in plan.warnings:
            log.warning("%s", line)
        cache = SliceCache(out / ".cache", plan.preprocessing.channels)
        try:
            device = choose_device("auto")
            s.train.precision = choose_precision(s.train.precision, device)
            architecture, network = _build(plan)
            origin = "" if resuming else _load_starting_weights(s, architecture, network)
            cases = track(plan.dataset.split("train"), "preparing slices")
            cache.fill(cases, plan.preprocessing, plan.classes, plan.ignore)
            _resolve(s, cache, device)
            write_text(out / "config.yaml", s.to_yaml())
            fit(plan, cache, architecture, network, origin, device, started or time.time())
        except ConfigError:
            if plan.fresh:  # the corrected command must find the folder as it was
                shutil.rmtree(out / ".cache", ignore_errors=True)
                for name in ("config.yaml", "log.txt"):
                    (out / name).unlink(missing_ok=True)
                with suppress(OSError):  # somebody else's file is in it by now
                    out.rmdir()
            raise
        except OSError as error:
            raise OutputError(f"{out}: can't be written ({error.strerror or error})") from error
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"out of memory with batches of {s.optim.batch_size} × {s.optim.patch}²; "
                "set a smaller optim.batch_size or optim.patch"
            ) from error
        finally:
            shutil.rmtree(out / ".cache", ignore_errors=True)
    return out


def fit(
    plan: Plan,
    cache: SliceCache,
    architecture: Architecture,
    network: nn.Module,
    starting_weights: str,
    device: torch.device,
    started: float,
) -> None:
    """The recipe: step, validate and save until the schedule has ended."""
    s, out = plan.settings, plan.out
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(network, s.optim.max_lr, s.optim.weight_decay)
    state = State(data=plan.record.model_dump(), starting_weights=starting_weights)
    best: dict[str, torch.Tensor] = {}
    resuming = resume.has_state(out / "last")
    if resuming:
        state = resume.load_state(out / "last", network, optimizer)
        if state.data != plan.record.model_dump():
            raise DataError(f"{s.data.root}: the data changed since {out} began; start a new run")
        if state.best_epoch:
            best = {name: torch.from_numpy(a) for name, a in read_weights(out).items()}
        log.info("resuming %s at step %d of epoch %d", out, state.step, state.epoch + 1)
    schedule = OneCycle(optimizer, s.optim.max_lr, state.done)
    accelerator = make_accelerator(s.train.precision, device)
    network, optimizer = accelerator.prepare(network, optimizer)
    engine = TorchEngine(network, device, s.train.precision)
    predictor = Predictor(engine, plan.preprocessing, plan.classes)

    size = int(s.optim.batch_size)
    per_epoch = int(s.train.steps_per_epoch)
    samples = Samples(cache, _augmentation(plan, cache), s.train.seed)
    if not resuming:
        write_augmentations(samples, plan.classes, out / "augmentations.png")
    clock = Clock(started, state.elapsed, s.train.budget_minutes)
    pace = Pace(clock, per_epoch, (s.train.epochs or 0) * per_epoch)
    validation = Validation(predictor, plan)
    if s.train.budget_minutes:
        validation.estimate()
    batches = make_batches(samples, size, int(s.data.workers), first_step=state.step)

    def save() -> None:
        state.done, state.elapsed = schedule.done, clock.elapsed()
        if best:
            weights = {name: tensor.numpy() for name, tensor in best.items()}
            save_model(out / MODEL_NAME, weights, _model_info(plan, architecture, state))
        resume.save_state(out / "last", network, optimizer, state)

    stop = "the schedule has ended" if schedule.done >= 1 else ""  # only the pictures were missing
    saved_at = time.time()
    with catch_interrupt() as interrupted, TrainingBar() as bar:
        while not stop:
            epoch_began, trained = clock.elapsed(), 0
            network.train()
            pace.resume_timing()
            for images, masks, indices in batches:
                loss, taken = training_step(
                    accelerator, network, optimizer, s.loss, images, masks, s.optim.clip_norm
                )
                value = loss.item()
                if not math.isfinite(value):
                    names = ", ".join(cache.names[i] for i in indices.tolist())
                    raise TrainingError(f"the loss became {value} on a batch of these: {names}")
                state.step, trained = state.step + 1, trained + 1
                state.loss_sum, state.loss_steps = state.loss_sum + value, state.loss_steps + 1
                pace.step_done()
                if taken:
                    schedule.advance(pace.steps_left(state.step, validation.seconds))
                bar.show(
                    state.epoch + 1,
                    schedule.done,
                    figures_text(state, size, pace, validation.seconds, peak_memory_mb()),
                )
                if interrupted or schedule.done >= 1 or state.step % per_epoch == 0:
                    break
            if interrupted and state.step % per_epoch:  # in the middle of an epoch
                break
            speed = trained * size / (clock.elapsed() - epoch_began)
            state.epoch += 1
            if schedule.done >= 1:
                stop = "the schedule has ended"
            result = None
            if stop or validation.due(clock):
                result = validation.run(clock)
                if not result.failed() and state.judge(result.miou):
                    state.best_metrics = summary(result, "val")
                    best = {
                        n: t.detach().to("cpu", copy=True) for n, t in network.state_dict().items()
                    }
                elif s.train.patience and state.epoch - state.best_epoch >= s.train.patience:
                    stop = f"no better val mIoU for {s.train.patience} epochs"
            record_epoch(state, result, plan.classes, schedule.lr, speed, clock, peak_memory_mb())
            write_history(state.history, out / "history.csv")
            if interrupted and not stop:
                break
            if stop or time.time() - saved_at > _SAVE_EVERY_S:
                save()
                saved_at = time.time()
    if interrupted and not stop:
        save()
        raise Interrupted(f"stopped and saved; go on with: segapp train --resume {out}")
    if not best:
        raise TrainingError(f"no epoch could be validated; see {out / 'log.txt'}")
    log.info("%s; the model is written after %s", stop, clock_text(clock.elapsed()))
    network.load_state_dict(best)
    _write_results(state, predictor, validation, plan, clock)


def _build(plan: Plan) -> tuple[Architecture, nn.Module]:
    """The network that the settings name, its weights drawn with the run's seed."""
    torch.manual_seed(plan.settings.train.seed)
    architecture = Architecture(
        name=plan.settings.model.architecture,
        encoder=plan.settings.model.encoder,
        in_channels=plan.preprocessing.channels,
        classes=len(plan.classes),
        residual=plan.settings.model.residual,
    )
    return architecture, build_network(**architecture.model_dump())


def _load_starting_weights(s: Settings, architecture: Architecture, network: nn.Module) -> str:
    origin = load_encoder_weights(
        network, s.model.encoder, architecture.in_channels, s.model.encoder_weights
    )
    log.info("encoder weights: %s", origin)
    if s.model.encoder_weights == "auto":
        s.model.encoder_weights = "imagenet" if origin.startswith("imagenet") else "none"
    return origin


def _resolve(settings: Settings, cache: SliceCache, device: torch.device) -> None:
    """Decide what depends on the machine and on the number of slices."""
    if settings.data.workers == "auto":
        # On a CPU the step needs every core, and a sample costs less than a hundredth of it.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        settings.data.workers = 0 if device.type == "cpu" else min(8, max(1, (cores or 2) - 1))
    if settings.train.steps_per_epoch == "auto":
        one_pass = math.ceil(pass_length(cache.empty) / int(settings.optim.batch_size))
        settings.train.steps_per_epoch = max(_LEAST_STEPS, one_pass)
    log.info(
        "training: %d slices, batches of %s, %s steps an epoch, %s on %s",
        len(cache),
        settings.optim.batch_size,
        settings.train.steps_per_epoch,
        settings.train.precision,
        device,
    )


def _augmentation(plan: Plan, cache: SliceCache) -> Augmentation:
    patch = plan.settings.optim.patch
    if patch == "full":  # one size for all, so that slices fit into a batch
        stride = plan.preprocessing.stride
        largest = np.max(cache.sizes, axis=0)
        height, width = np.maximum(-(-largest // stride), 2) * stride  # see network_input
        size = (int(height), int(width))
    else:
        size = (int(patch), int(patch))
    return Augmentation(plan.settings.augment, plan.preprocessing.channels, size)


def _model_info(plan: Plan, architecture: Architecture, state: State) -> ModelInfo:
    return ModelInfo(
        architecture=architecture,
        preprocessing=plan.preprocessing,
        classes=plan.classes,
        ignore=plan.ignore,
        settings=plan.settings.model_dump(mode="json"),
        metrics={"epoch": state.best_epoch, **state.best_metrics},
        starting_weights=state.starting_weights,
        data=plan.record,
        training=plan.training,
    )


def _write_results(
    state: State, predictor: Predictor, validation: Validation, plan: Plan, clock: Clock
) -> None:
    """Pictures, then metrics.json, whose being there says that the run is finished."""
    out = plan.out
    write_curves(state.history, plan.classes, out / "curves.png")
    shown = np.unique(np.linspace(0, len(validation.cases) - 1, _OVERLAYS).round().astype(int))
    validation.cases = tuple(validation.cases[n] for n in shown)
    results: list[Any] = []
    validation.run(clock, on_segmentation=lambda *result: results.append(result))
    write_overlays(results, plan.preprocessing.slice_axis, out / "overlays")
    figures = {
        "best_epoch": state.best_epoch,
        "epochs": state.epoch,
        "steps": state.step,
        "seconds": round(clock.elapsed(), 1),
        "starting_weights": state.starting_weights,
        "val": state.best_metrics,
    }
    write_text(out / "metrics.json", json.dumps(figures, indent=2) + "\n")
    miou = state.best_metrics["miou"]
    log.info("the model is that of epoch %d: val mIoU %.4f", state.best_epoch, miou)

"""Training. Read `fit` from top to bottom: it is the recipe."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from contextlib import nullcontext
from itertools import count
from pathlib import Path

import numpy as np
import torch

from segapp import resume
from segapp.assemble import Batches, Parts, assemble, batches_at, make_samples
from segapp.checkpoint import MODEL_NAME, save_model
from segapp.closing import model_info, write_results
from segapp.config import load_settings
from segapp.data import stage_scale
from segapp.engines.torch import TorchEngine
from segapp.errors import ConfigError, DataError, Interrupted, TrainingError
from segapp.figures import summary
from segapp.files import require_writable, write_table, write_text
from segapp.history import figures_text, record_epoch
from segapp.kfold import run_folds
from segapp.locks import alone_in, left_of_a_run
from segapp.losses import make_loss
from segapp.machine import catch_signals, end_cleanly, keep_freed_memory, log_file
from segapp.metrics import selection_score
from segapp.mix import Mixed, mix_batch
from segapp.optim import Average, Schedule, make_optimizer
from segapp.pace import Clock, Pace
from segapp.plan import Plan, make_plan, withdraw_run
from segapp.predict import Predictor
from segapp.progress import clock_text, inessential, track, training_bar
from segapp.rangetest import STEPS, range_test, write_range_test
from segapp.report.timeline import Timeline
from segapp.report.training import write_augmentations
from segapp.resume import State
from segapp.safeguards import explained, leave_out, refuse_changes, require_run
from segapp.settings import Settings
from segapp.step import deterministic, make_accelerator, peak_memory_mb, training_step
from segapp.together import ALONE, Together
from segapp.validation import Validation
from segapp.weights import freeze

log = logging.getLogger("segapp")


def run_plan(plan: Plan, started: float | None = None, together: Together = ALONE) -> Path:
    """Train what is planned, from the run's saved state where it has one; returns its folder.

    started: time.time() when the command began (a budget counts from there); now if None.
    together: the processes that train it with this one; the first of them writes.
    Raises ConfigError for settings that this machine or the network can't follow (nothing is left
    behind then), DataError where the data changed since an interrupted run began, TrainingError
    for losses that are not finite or too little memory, OutputError where the run folder can't be
    written or is another process's, Interrupted on Ctrl-C or SIGTERM (after saving).
    """
    started = started or time.time()
    if plan.settings.train.folds and not plan.settings.train.fold:
        with end_cleanly():
            return run_folds(plan, run_plan, started)
    keep_freed_memory()
    s, out = plan.settings, plan.out
    alone = alone_in(out, left_of_a_run) if together.first else nullcontext()
    with alone, end_cleanly(), deterministic(s.train.deterministic):
        together.wait()  # for what the first has swept away
        resuming = bool(together.of_first(bool(resume.saved_states(out / "last")))[0])
        if resuming and s.model.encoder_weights == "auto":  # a fold's own file knows better
            decided = load_settings(out / "config.yaml", [])
            s.model.encoder_weights = decided.model.encoder_weights
        together.wait()  # until all have read it
        if not together.first:
            with explained(plan):
                fit(assemble(plan, out / ".cache", not resuming, together), started)
            return out
        write_text(out / "config.yaml", s.to_yaml())  # from here on --resume finds the run
        with log_file(out / "log.txt"):
            plan = resume.first_sitting(plan)
            for line in plan.reasons:
                log.info("%s", line)
            for line in plan.warnings:
                log.warning("%s", line)
            try:
                with explained(plan):
                    parts = assemble(plan, out / ".cache", not resuming, together)
                    write_text(out / "config.yaml", s.to_yaml())
                    fit(parts, started)
            except ConfigError:
                shutil.rmtree(out / ".cache", ignore_errors=True)
                withdraw_run(plan)  # the corrected command must find the folder as it was
                raise
            finally:
                shutil.rmtree(out / ".cache", ignore_errors=True)
    return out


def fit(parts: Parts, started: float) -> None:
    """The recipe: step, validate and save until the schedule has ended."""
    plan, network, device, together = parts.plan, parts.network, parts.device, parts.together
    s, out = plan.settings, plan.out
    encoder = network.get_submodule("encoder")
    optimizer = make_optimizer(network, s.optim)
    average = Average(network, s.optim.ema) if s.optim.ema else None
    state = State(data=plan.record.model_dump(), starting_weights=parts.starting_weights)
    best: dict[str, torch.Tensor] = {}
    resuming = bool(together.of_first(bool(resume.saved_states(out / "last")))[0])
    if resuming:
        state, best = resume.load_state(out / "last", network, optimizer, average, together.first)
        refuse_changes(parts, state)
        log.info("resuming %s at step %d of epoch %d", out, state.step, state.epoch + 1)
    together.require_same("the saved state", str(state.step))
    schedule = Schedule(optimizer, s.optim, state.done)
    loss_function = make_loss(s.loss, len(plan.classes), together.total)
    accelerator = make_accelerator(s.train.precision, device, together)
    trained_network, optimizer = accelerator.prepare(network, optimizer)
    if accelerator.scaler and state.scaler:
        accelerator.scaler.load_state_dict(state.scaler)
    judged = average.module if average else network  # the weights that are validated and kept
    engine = TorchEngine(judged, device, s.train.precision)
    predictor = Predictor(engine, plan.preprocessing, plan.classes, flips=plan.flips)

    per_step = int(s.optim.batch_size) * s.optim.accumulate
    per_epoch = int(s.train.steps_per_epoch)
    if not together.first:
        pass  # the first one writes
    elif not resuming:
        with inessential("augmentations.png"):
            write_augmentations(make_samples(parts), plan.classes, out / "augmentations.png")
    elif state.history:  # what was written after the state was saved, is trained again
        write_table(out / "history.csv", list(state.history[0]), state.history)
    clock = Clock(started, state.elapsed, s.train.budget_minutes)
    validation = Validation(predictor, plan, together)
    total_steps = (s.train.epochs or 0) * per_epoch
    pace = Pace(clock, per_epoch, total_steps, validation.closing_passes)
    if s.train.budget_minutes:
        validation.fit_into(60 * s.train.budget_minutes, state.every)
    state.every = validation.every
    axis = plan.preprocessing.slice_axis
    timeline = Timeline(out / "overlays" / "progress", validation.cases, axis, validation.every)
    scale = stage_scale(s.train.progressive, schedule.done)
    batches = batches_at(parts, scale, state.step)
    saved_at, written = time.time(), 0  # when, and the epoch whose weights the model file has
    unusable = 0  # steps in a row

    def save() -> None:
        nonlocal saved_at, written
        saved_at = time.time()
        if not together.first:
            return
        require_run(out)
        state.done, state.elapsed = schedule.done, clock.elapsed()
        state.scaler = accelerator.scaler.state_dict() if accelerator.scaler else {}
        if best and state.best_epoch != written:
            save_model(out / MODEL_NAME, _arrays(best), model_info(parts, state))
            written = state.best_epoch
        resume.save_state(out / "last", network, optimizer, state, average, best)
        saved_at = time.time()

    def heed_signals() -> bool:
        """Save where that is due or asked for; whether to stop. All processes do as one is told."""
        late = together.first and time.time() - saved_at >= 60 * s.train.save_minutes
        stop, due = together.most(signals.stop, signals.save or late)
        if due and not stop:
            signals.save = False
            save()
        return stop

    with catch_signals() as signals, training_bar() as show:
        stop = False
        while not (state.ended or stop):
            epoch_began, trained = clock.elapsed(), 0
            frozen = schedule.done < s.optim.freeze_encoder
            network.train()
            freeze(encoder, frozen)
            pace.resume_timing()
            # a run that was stopped while it validated has no step left here
            while state.step < (state.epoch + 1) * per_epoch and schedule.done < 1:
                if frozen and schedule.done >= s.optim.freeze_encoder:
                    frozen = False
                    network.train()
                    freeze(encoder, frozen)
                if stage_scale(s.train.progressive, schedule.done) != scale:
                    scale = stage_scale(s.train.progressive, schedule.done)
                    batches = batches_at(parts, scale, state.step)
                    log.info("step %d: slices at %g of their size", state.step, scale)
                together.own_chance(s.train.seed, state.step)
                micro, indices = _micro_batches(batches, s, state.step)
                step = training_step(
                    *(accelerator, trained_network, optimizer, loss_function, micro),
                    *(s.optim.clip_norm, state.pieces, together),
                )
                state.step, trained, state.pieces = state.step + 1, trained + 1, step.pieces
                if step.finite:
                    unusable = 0
                    state.loss_sum += step.loss
                    state.loss_steps += 1
                else:
                    unusable += 1
                    own = "\n".join(parts.cache.names[i] for i in indices)
                    names = "\n".join(together.texts(own)).split("\n")
                    leave_out(state.step, step, unusable, names)
                if average and step.taken:
                    average.update(network)
                pace.step_done()
                (left,) = together.of_first(pace.steps_left(state.step, validation.seconds))
                if step.taken:
                    schedule.advance(left)
                show(
                    state.epoch + 1,
                    schedule.done,
                    figures_text(state, per_step, pace, validation.seconds, peak_memory_mb()),
                )
                before = saved_at
                if stop := heed_signals():
                    break
                if saved_at != before:
                    pace.resume_timing()
            if stop := stop or heed_signals():
                break
            require_run(out)
            speed = trained * per_step / (clock.elapsed() - epoch_began) if trained else None
            result = None
            (due,) = together.of_first(validation.due(clock))
            if schedule.done >= 1 or due:
                picture = timeline.at(schedule.done, state.epoch + 1)
                try:
                    # of several processes none may leave the others alone
                    checked = {} if together.several else {"on_slab": signals.check}
                    result = validation.run(clock, on_segmentation=picture, **checked)
                except Interrupted:
                    break
                except DataError:
                    save()  # the steps are good, and the run goes on with this validation
                    raise
            state.epoch += 1
            if schedule.done >= 1:
                state.ended = "the schedule has ended"
            if result:
                if not result.failed() and state.judge(
                    selection_score(result.matrix), schedule.done, result.loss
                ):
                    state.best_metrics = summary(result, "val") | {"every": validation.every}
                    best = {
                        n: t.detach().to("cpu", copy=True) for n, t in judged.state_dict().items()
                    }
                if s.train.patience and state.epoch - state.highest_epoch >= s.train.patience:
                    state.ended = f"no better val mIoU for {s.train.patience} epochs"
            require_run(out)
            record_epoch(state, result, plan.classes, schedule.lr, speed, clock, peak_memory_mb())
            if together.first:
                write_table(out / "history.csv", list(state.history[0]), state.history)
            if state.ended:
                save()
            else:
                stop = heed_signals()
    if not state.ended:
        save()
        together.wait()  # a launcher ends all as soon as one has ended
        raise Interrupted(f"stopped and saved; go on with: segapp train --resume {out}")
    if not best:
        raise TrainingError(f"no epoch could be validated; see {out / 'log.txt'}")
    log.info("%s; the model is written after %s", state.ended, clock_text(clock.elapsed()))
    judged.load_state_dict(best)
    require_run(out)
    if together.first:
        write_results(parts, state, _arrays(best), predictor, validation, timeline, clock)
    together.wait()


def _arrays(weights: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in weights.items()}


def _micro_batches(batches: Batches, s: Settings, step: int) -> tuple[list[Mixed], list[int]]:
    """The batches of an optimiser step, mixed as the settings say, and their slices' indices."""
    micro, indices = [], []
    for n in range(s.optim.accumulate):
        images, masks, drawn = next(batches)
        micro.append(mix_batch(images, masks, s.augment, (s.train.seed, step, n)))
        indices += drawn.tolist()
    return micro, indices


def find_rate(settings: Settings) -> tuple[float, Path]:
    """Try rising learning rates on the data and the network that `settings` name (Smith 2017).

    Returns a suggestion for optim.max_lr and the plot, in a folder beside the run's. Trains nothing
    that is kept. Raises what `make_plan` and `assemble` raise, and TrainingError where no rate made
    the loss fall.
    """
    assert settings.train.out is not None, "load_settings makes sure of it"
    out = settings.train.out.parent / f"{settings.train.out.resolve().name}-find-lr"
    plan = make_plan(settings, lambda cases: track(cases, "reading the data"))
    require_writable(out)
    keep_freed_memory()
    s = plan.settings
    with end_cleanly(), tempfile.TemporaryDirectory(dir=out) as folder:
        parts = assemble(plan, Path(folder))
        optimizer = make_optimizer(parts.network, s.optim)
        accelerator = make_accelerator(s.train.precision, parts.device)
        network, optimizer = accelerator.prepare(parts.network, optimizer)
        loss_function = make_loss(s.loss, len(plan.classes))
        batches = batches_at(parts, stage_scale(s.train.progressive, 0.0), 0)
        network.train()
        numbers = count()

        def step(rate: float) -> float:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
            number = next(numbers)
            show(1, number / STEPS, f"learning rate {rate:.1e}")
            micro, _ = _micro_batches(batches, s, number)
            return training_step(
                accelerator, network, optimizer, loss_function, micro, s.optim.clip_norm
            ).loss

        with training_bar() as show:
            result = range_test(step)
    write_range_test(result, out)
    return result.suggestion, out / "learning_rates.png"

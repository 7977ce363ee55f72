"""When something goes wrong with a training its end is clear, and what was done stays."""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import history, resume, run, whole  # noqa: F401

import segapp.train as training
from segapp import step
from segapp.checkpoint import read_weights
from segapp.errors import DataError, Interrupted, OutputError, TrainingError
from segapp.locks import alone_in, left_of_a_run
from segapp.machine import catch_signals, log_file
from segapp.mix import Mixed
from segapp.resume import saved_states
from segapp.validation import Validation

pytestmark = pytest.mark.usefixtures("no_pictures")
OFTEN = "train.save_minutes=0"


def same_weights(one: Path, other: Path) -> bool:
    a, b = read_weights(one), read_weights(other)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def before_step(
    monkeypatch: pytest.MonkeyPatch, number: int, do: Callable[[list[Mixed]], None]
) -> None:
    """Do something to the batches, or the world, before the `number`-th step (from 1) is taken."""
    real, count = training.training_step, 0

    def counted(*args):
        nonlocal count
        count += 1
        if count == number:
            do(args[4])
        return real(*args)

    monkeypatch.setattr(training, "training_step", counted)


def spoil(batches: list[Mixed]) -> None:
    for batch in batches:
        batch.images[0, 0, 0, 0] = float("nan")


# -- losses that are not finite ------------------------------------------------------------------


def test_a_spoilt_batch_is_left_out_and_named(png_dataset, tmp_path, monkeypatch, caplog):
    before_step(monkeypatch, 2, spoil)
    out = run(png_dataset, tmp_path / "run")
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert any("step 2: the loss became nan" in line and "left out" in line for line in said)
    assert any("case" in line for line in said if line.startswith("step 2"))
    assert all(np.isfinite(array).all() for array in read_weights(out).values())
    assert [np.isfinite(float(row["train_loss"])) for row in history(out)] == [True, True]
    assert [row["step"] for row in history(out)] == ["3", "6"]


@pytest.mark.slow
def test_the_third_in_a_row_ends_the_run_which_keeps_its_last_good_state(
    whole,  # noqa: F811
    png_dataset,
    tmp_path,
    monkeypatch,
):
    with monkeypatch.context() as patch:
        real, count = training.training_step, 0

        def spoilt(*args):
            nonlocal count
            count += 1
            if count > 2:
                spoil(args[4])
            return real(*args)

        patch.setattr(training, "training_step", spoilt)
        with pytest.raises(TrainingError, match=r"step 5: .*case\d.*3 times in a row"):
            run(png_dataset, tmp_path / "run", OFTEN)
    assert not (tmp_path / "run" / "metrics.json").exists()
    newest = saved_states(tmp_path / "run" / "last")[0]
    assert newest.name == "step-000000004.safetensors"
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    newest.unlink()
    saved_states(tmp_path / "run" / "last")[0].unlink()
    resume(tmp_path / "run")
    assert same_weights(tmp_path / "run", whole)


def test_an_epoch_whose_loss_is_not_a_number_is_never_the_best(png_dataset, tmp_path, monkeypatch):
    real, count = Validation.run, 0

    def measured(self, *args, **kwargs):
        nonlocal count
        count += 1
        result = real(self, *args, **kwargs)
        if count == 2:
            result.cases[0].nll = float("nan")
        return result

    monkeypatch.setattr(Validation, "run", measured)
    out = run(png_dataset, tmp_path / "run")
    assert '"best_epoch": 1' in (out / "metrics.json").read_text()


# -- memory --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_too_little_memory_is_met_with_smaller_parts_also_after_a_resume(
    png_dataset, tmp_path, monkeypatch, caplog
):
    real = step._loss

    def small(device, network, loss, batch):
        if len(batch.images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(device, network, loss, batch)

    with monkeypatch.context() as patch:
        patch.setattr(step, "_loss", small)
        in_parts = run(png_dataset, tmp_path / "whole")
        assert "each batch of 4 goes through the network in 2 parts" in caplog.text
        before_step(patch, 4, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            run(png_dataset, tmp_path / "run")
    resume(tmp_path / "run")  # there is memory now, and the run stays what it was
    assert same_weights(tmp_path / "run", in_parts)


def test_too_little_memory_for_any_part_says_what_to_do(png_dataset, tmp_path, monkeypatch):
    def none(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step, "_loss", none)
    with pytest.raises(TrainingError, match=r"out of memory.*optim\.patch.*--resume"):
        run(png_dataset, tmp_path / "run")


# -- signals -------------------------------------------------------------------------------------


def test_sigusr1_saves_and_the_run_goes_on(png_dataset, tmp_path, monkeypatch):
    before_step(monkeypatch, 2, lambda _: os.kill(os.getpid(), signal.SIGUSR1))
    states = []
    save = training.resume.save_state
    monkeypatch.setattr(
        training.resume, "save_state", lambda *args: (states.append(args[3].step), save(*args))
    )
    out = run(png_dataset, tmp_path / "run")
    assert states == [2, 6]
    assert len(history(out)) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_validation_stops_it_and_it_is_made_again(
    whole,  # noqa: F811
    png_dataset,
    tmp_path,
    monkeypatch,
    number,
):
    real = Validation.run

    def disturbed(self, *args, **kwargs):
        os.kill(os.getpid(), number)
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Validation, "run", disturbed)
        with pytest.raises(Interrupted, match="--resume"):
            run(png_dataset, tmp_path / "run")
    assert saved_states(tmp_path / "run" / "last")[0].name == "step-000000003.safetensors"
    resume(tmp_path / "run")
    assert same_weights(whole, tmp_path / "run")
    rows = history(tmp_path / "run")
    assert [row["val_loss"] for row in rows] == [row["val_loss"] for row in history(whole)]
    assert [bool(row["images_per_second"]) for row in rows] == [False, True]


def test_the_second_signal_stops_at_once():
    with catch_signals() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


# -- the disk ------------------------------------------------------------------------------------


def test_a_full_disk_ends_the_run_with_its_last_state(
    whole,  # noqa: F811
    png_dataset,
    tmp_path,
    monkeypatch,
):
    real, count = training.resume.save_file, 0

    def full(*args):
        nonlocal count
        count += 1
        if count == 3:
            Path(args[1]).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training.resume, "save_file", full)
        with pytest.raises(OutputError, match=r"step-000000003.*No space left.*--resume"):
            run(png_dataset, tmp_path / "run", OFTEN)
    out = tmp_path / "run"
    assert [path.name for path in sorted((out / "last").iterdir())] == [
        "step-000000001.safetensors",
        "step-000000002.safetensors",
    ]
    assert not list(out.rglob(".partial-*"))
    resume(out)
    assert same_weights(out, whole)


@pytest.mark.slow
def test_a_fault_in_a_fold_is_gone_on_from_with_the_whole_run(png_dataset, tmp_path, monkeypatch):
    def full(path: str, *_):
        raise OSError(28, "No space left on device", path)

    out = tmp_path / "folds"
    with monkeypatch.context() as patch:
        patch.setattr(training.resume, "save_file", lambda arrays, path, *_: full(path))
        with pytest.raises(OutputError, match=rf"--resume {re.escape(str(out))} \("):
            run(png_dataset, out, "train.folds=2")
    resume(out)
    assert (out / "model.safetensors").is_file()


def test_a_run_folder_that_is_taken_away_is_not_made_anew(png_dataset, tmp_path, monkeypatch):
    out = tmp_path / "disk" / "run"
    before_step(monkeypatch, 2, lambda _: shutil.rmtree(out.parent))
    with pytest.raises(OutputError, match="the run folder is gone"):
        run(png_dataset, out, OFTEN)
    assert not out.exists()


def test_a_log_that_can_not_be_written_is_said_once(tmp_path, capsys):
    log = logging.getLogger("segapp")
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    log.addHandler(handler)
    with log_file(tmp_path / "log.txt"):
        stream = next(h for h in log.handlers if isinstance(h, logging.FileHandler)).stream
        os.dup2(os.open("/dev/full", os.O_WRONLY), stream.fileno())
        for number in range(3):
            log.info("line %d", number)
    assert [line for line in heard if "can't be written" in line] == [
        f"{tmp_path / 'log.txt'}: can't be written "
        "([Errno 28] No space left on device); lines of it are lost"
    ]
    assert "Traceback" not in capsys.readouterr().err


def test_validation_data_that_vanish_end_the_run_before_the_next_epoch(
    whole,  # noqa: F811
    png_dataset,
    tmp_path,
    monkeypatch,
):
    away = tmp_path / "away"
    with monkeypatch.context() as patch:
        before_step(patch, 2, lambda _: (png_dataset / "images").rename(away))
        with pytest.raises(DataError, match="none of the validation cases can be read"):
            run(png_dataset, tmp_path / "run")
    away.rename(png_dataset / "images")
    assert saved_states(tmp_path / "run" / "last")[0].name == "step-000000003.safetensors"
    resume(tmp_path / "run")
    assert same_weights(whole, tmp_path / "run")


# -- two at once ---------------------------------------------------------------------------------


HOLD = "import sys, pathlib; from segapp.locks import alone_in\n"
HOLD += "with alone_in(pathlib.Path(sys.argv[1]), lambda _: ()): print('in', flush=True)"
HOLD += "; sys.stdin.read()"


@pytest.mark.slow
def test_two_processes_never_train_in_one_folder(tmp_path):
    left = tmp_path / "overlays" / ".partial-0123.png"
    other_left = tmp_path / "last" / ".tmpaB3x9Z"  # as safetensors calls its own
    for path in (left, other_left):
        path.parent.mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], **pipes)
    assert other.stdout
    assert other.stdout.readline() == b"in\n"
    left.touch()  # the other one writes it right now
    other_left.touch()
    with pytest.raises(OutputError, match="another process"), alone_in(tmp_path, left_of_a_run):
        pass
    assert left.exists()
    other.kill()
    other.wait()
    with alone_in(tmp_path, left_of_a_run):
        assert not left.exists(), "what a killed process leaves is swept"
        assert not other_left.exists()


def test_a_worker_does_not_hold_the_folder_of_a_killed_training(tmp_path):
    """A forked child lives on; the next training must not wait for it."""
    with alone_in(tmp_path, left_of_a_run):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    try:
        with alone_in(tmp_path, left_of_a_run):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

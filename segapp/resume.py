"""The state of a run, saved so that it goes on as if it had never stopped: tensors as safetensors,
the rest as JSON in the same file, and a checksum over both."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from segapp.checkpoint import weights_digest
from segapp.errors import ModelFileError, OutputError
from segapp.files import atomic_path, write_text
from segapp.optim import Average
from segapp.plan import BEGAN_NAME, Plan

log = logging.getLogger("segapp")

_KEPT = 2  # saved states
_NEW_SHARE = 0.3  # of the newest epoch in the running mean
_SETTLED = 0.75  # share of a run from which on the newest epoch is taken
_FAR = 0.05  # of mIoU, by which the score may then be below the best


@dataclass
class State:
    """Where a run is: what the tensors of its saved state don't say."""

    step: int = 0  # optimiser steps tried
    epoch: int = 0  # epochs completed
    done: float = 0.0  # share of the run; the learning rate follows it
    pieces: int = 1  # in so many parts a batch goes through the network, for want of memory
    elapsed: float = 0.0  # seconds of all sittings up to the last save
    loss_sum: float = 0.0  # of the epoch under way
    loss_steps: int = 0
    score: float = 0.0  # running mean of the val mIoU
    best_score: float = -1.0
    best_epoch: int = 0
    highest: float = -1.0  # val mIoU of an epoch, and which
    highest_epoch: int = 0
    ended: str = ""  # why there are no more steps; only the results may be missing then
    best_metrics: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)  # the gradient scaler's, for fp16
    starting_weights: str = ""
    data: dict[str, Any] = field(default_factory=dict)  # file hashes by split
    history: list[dict[str, Any]] = field(default_factory=list)
    every: int = 0  # see Validation.every; 0: not recorded

    def judge(self, miou: float, done: float = 0.0, loss: float = 0.0) -> bool:
        """Take in the val mIoU (see `selection_score`) of an epoch that ends when the share `done`
        of the run is done; True (and it becomes the best) where the score is not lower. An epoch
        whose mIoU or loss is not a number never does.

        In the last quarter, where the learning rate runs out, it becomes the best unless the score
        has fallen 0.05 below the highest: a network that still takes large steps may suit a few
        validation cases by chance, and be worse on new scans (nnU-Net always takes the last epoch).

        The score is a running mean, as in nnU-Net (Isensee et al. 2021): on few validation cases
        the mIoU of a network that still learns fast jumps by several points between epochs, and
        the epoch of a lucky jump is worse on new scans than the end of the schedule. It starts at
        0, unlike there: a first epoch whose luck the mean has nothing to weigh against never wins,
        and a run of a few epochs ends with its last, unless that is far worse.
        """
        if math.isnan(miou) or not math.isfinite(loss):
            return False
        if miou > self.highest:
            self.highest, self.highest_epoch = miou, self.epoch
        self.score += _NEW_SHARE * (miou - self.score)
        if self.score < self.best_score - (_FAR if done >= _SETTLED else 0):
            return False
        self.best_score, self.best_epoch = max(self.score, self.best_score), self.epoch
        return True


def first_sitting(plan: Plan) -> Plan:
    """The plan with the reasons, the warnings and the command of the run's first sitting, which are
    kept in its folder from then on: one that goes on finds every `auto` decided, without a reason.

    Warnings that are new are added. Raises OutputError where the folder can't be written.
    """
    path = plan.out / BEGAN_NAME
    try:
        began = json.loads(path.read_text(encoding="utf-8"))
        reasons, warnings = began["reasons"], [*began["warnings"], *plan.warnings]
        command = began["command"]
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or of a run that is older
        said = {"command": plan.command, "reasons": plan.reasons, "warnings": plan.warnings}
        write_text(path, json.dumps(said, indent=2) + "\n")
        return plan
    warnings = tuple(dict.fromkeys(warnings))
    return replace(plan, reasons=tuple(reasons), warnings=warnings, command=command)


def save_state(
    folder: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: State,
    average: Average | None = None,
    best: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write all of it, and torch's random state, to one file, atomically; it and the one before
    stay, older ones go. best: the weights of `state.best_epoch`. Raises OutputError.
    """
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in (best or {}).items()}
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    of_optimizer = optimizer.state_dict()
    scalars: dict[str, Any] = {}
    for index, values in of_optimizer["state"].items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                scalars[f"{index}.{key}"] = value
    tensors["rng.torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    meta = {"run": asdict(state), "groups": of_optimizer["param_groups"], "scalars": scalars}
    text = json.dumps(meta)
    tensors = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    path = folder / f"step-{state.step:09}.safetensors"
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, {"state": text, "sha256": _digest(tensors, text)})
        except SafetensorError as error:  # its word for a full disk
            raise OutputError(f"{path}: can't be written ({error})") from error
    _remove_older(folder)


def _remove_older(folder: Path) -> None:
    for older in saved_states(folder)[_KEPT:]:
        older.unlink(missing_ok=True)


def saved_states(folder: Path) -> list[Path]:
    """The files of a run's saved states, the newest first; none where the folder is not there."""
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def load_state(
    folder: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None = None,
    tidy: bool = True,
) -> tuple[State, dict[str, torch.Tensor]]:
    """Restore what `save_state` wrote last; the run's state, and the weights of its best epoch.

    A file whose content is not what was written is left out with a warning, and removed where
    `tidy`: the one before it counts. Parameters that had no optimiser state yet (a frozen
    encoder's) have none afterwards. Raises ModelFileError where no file is sound, or where it holds
    no average and one is asked for.
    """
    for path in saved_states(folder):
        try:
            tensors, meta = _read(path)
            break
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            log.warning("%s: this saved state is damaged (%s) and is not used", path, error)
    else:
        raise ModelFileError(
            f"{folder}: every saved state is damaged; delete the folder to start the run again"
        )
    for damaged in saved_states(folder) if tidy else ():
        if damaged > path:  # it would push sound ones out
            damaged.unlink(missing_ok=True)
    if tidy:
        _remove_older(folder)  # a kill may have left one
    network.load_state_dict(_below("network.", tensors))
    if average is not None:
        if "average.n_averaged" not in tensors:
            raise ModelFileError(
                f"{path}: the run began without an average of the weights, and optim.ema asks for "
                "one; set it to 0 or start a new run"
            )
        average.load_state_dict(_below("average.", tensors))
    torch.set_rng_state(tensors["rng.torch"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    state: dict[int, dict[str, Any]] = {}
    named = {**_below("optimizer.", tensors), **meta["scalars"]}
    for name, value in named.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": meta["groups"]})
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape:  # fused steps pair both element by element as they
                values[key] = torch.empty_like(parameter).copy_(value)  # lie in memory
    return State(**meta["run"]), _below("best.", tensors)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and the rest. Raises ValueError and others for what is not as it was written."""
    with safe_open(path, framework="pt") as file:
        kept = file.metadata()
    tensors = load_file(path)
    if _digest(tensors, kept["state"]) != kept["sha256"]:
        raise ValueError("its checksum is another")
    return tensors, json.loads(kept["state"])


def _digest(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    return weights_digest({name: value.numpy() for name, value in tensors.items()}, text)


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

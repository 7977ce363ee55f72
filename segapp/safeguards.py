"""What keeps a run safe: steps that are left out, and what a fault means for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from segapp.assemble import Parts
from segapp.errors import DataError, OutputError, SegappError, TrainingError
from segapp.plan import Plan
from segapp.resume import State, saved_states
from segapp.step import Step, is_out_of_memory
from segapp.together import is_lost, lost

log = logging.getLogger("segapp")

_MOST_UNUSABLE = 3  # steps in a row


def leave_out(number: int, step: Step, unusable: int, names: Sequence[str]) -> None:
    """Say that step `number` changed nothing, as its loss or gradient is not finite.

    unusable: how many in a row now; names: the slices of its batches. Raises TrainingError at the
    third, of which more would follow.
    """
    what = f"the loss became {step.loss:g}"
    if abs(step.loss) < float("inf"):
        what = "the gradient was not finite"
    said = f"step {number}: {what} on a batch of these: {', '.join(names)}"
    if unusable >= _MOST_UNUSABLE:
        raise TrainingError(
            f"{said}; so it was {unusable} times in a row: look at these scans, or start again with"
            " a smaller optim.max_lr"
        )
    log.warning("%s; the step is left out", said)


def refuse_changes(parts: Parts, state: State) -> None:
    """Raise DataError where the data or the model to start from are not those `state` is of."""
    s, out = parts.plan.settings, parts.plan.out
    if state.data != parts.plan.record.model_dump():
        raise DataError(f"{s.data.root}: the data changed since {out} began; start a new run")
    if parts.starting_weights not in ("", state.starting_weights):
        changed = f"the model of model.init_from changed since {out} began"
        raise DataError(f"{s.model.init_from}: {changed}; start a new run")


def require_run(out: Path) -> None:
    """Raise OutputError where the run folder was taken away: writing would make a new one, maybe
    on another disk."""
    if not (out / "config.yaml").is_file():
        raise OutputError(f"{out}: the run folder is gone, or its disk is")


@contextmanager
def explained(plan: Plan) -> Iterator[None]:
    """Faults of the machine become errors for the user. Raises OutputError, TrainingError,
    ProcessLost; what is none of them, as it came."""
    try:
        yield
    except (OSError, OutputError, RuntimeError, MemoryError) as error:
        said = explain(error, plan)
        if said is None:  # a bug
            raise
        raise said from error


def explain(error: Exception, plan: Plan) -> SegappError | None:
    """A fault of the machine as an error for the user, with what to do; None for anything else."""
    s, out = plan.settings, plan.out
    run = out  # the one to go on with
    if out.name == f"fold{s.train.fold}" and (out.parent / "config.yaml").is_file():
        run = out.parent
    then = f"then go on with: segapp train --resume {run}"
    if not saved_states(out / "last"):
        then = f"then start again with: segapp train --resume {run} (nothing was saved yet)"
    if not (run / "config.yaml").is_file():
        then = "then start it again"
    if isinstance(error, RuntimeError) and is_lost(error):  # in the middle of a step
        return lost(error)
    if isinstance(error, OutputError):
        return OutputError(f"{error}; make sure it can, {then}")
    if isinstance(error, OSError):
        return OutputError(f"{error.filename or out}: {error.strerror or error}; mend it, {then}")
    if is_out_of_memory(error):
        return TrainingError(
            f"out of memory, even with parts of batches of {s.optim.batch_size} × {s.optim.patch}²;"
            f" set a smaller optim.patch or preprocess.size in {out / 'config.yaml'}, {then}"
        )
    if "deterministic" in str(error):
        first = str(error).partition(". ")[0]
        return TrainingError(f"train.deterministic: {first}; leave it out, or train on a CPU")
    return None

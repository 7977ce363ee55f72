"""The learning-rate range test: at which rate does this network learn fast from these data?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segapp.errors import TrainingError
from segapp.files import atomic_path, write_table

_SMOOTHING = 0.9  # share of the old value in the running mean of the loss
STEPS = 100
_LAG = round(_SMOOTHING / (1 - _SMOOTHING))  # steps by which that mean follows a falling loss
_DIVERGED = 4.0  # × the least smoothed loss
_LEAST_FALL = 0.05  # of the first loss; less may be chance
_FLOOR = 0.05  # share of the whole fall within which a loss is as good as the least


@dataclass(frozen=True)
class RangeTest:
    """What a range test met, step by step, and the peak of the learning rate that it suggests."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float


def range_test(
    step: Callable[[float], float],
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = STEPS,
) -> RangeTest:
    """Learning-rate range test (Smith 2017), as fastai's lr_find.

    step: takes one optimiser step at the rate it is given and returns its loss; `steps` (2 or more)
    times at rates that rise by one factor from `lowest` to `highest`, fewer where the loss stops
    being finite or its running mean passes 4 × its least. Raises what `suggest` raises.
    """
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    running = 0.0
    for i in range(steps):
        lr = lowest * (highest / lowest) ** (i / (steps - 1))
        loss = step(lr)
        if not math.isfinite(loss):
            break
        running = _SMOOTHING * running + (1 - _SMOOTHING) * loss
        rates.append(lr)
        losses.append(loss)
        smoothed.append(running / (1 - _SMOOTHING ** (i + 1)))  # as if it had begun at the mean
        if smoothed[-1] > _DIVERGED * min(smoothed):
            break
    return RangeTest(tuple(rates), tuple(losses), tuple(smoothed), suggest(rates, smoothed))


def suggest(rates: Sequence[float], smoothed: Sequence[float]) -> float:
    """The least rate at which the loss gets about as low as it can: to 1/20 of its whole fall.

    That is for the peak of a schedule, which is passed but once; the steepest descent (Smith 2017)
    comes earlier. A share of the rate at the minimum, or where the loss rises again, is chance:
    with AdamW, BatchNorm and clipped gradients the bottom of the curve is flat over one or two
    decades. As the running mean lags nine steps behind the loss, the rate is that of nine steps
    before.

    Raises TrainingError where the loss fell by less than 5 % of its first value.
    """
    least = min(smoothed, default=math.inf)
    first = smoothed[0] if smoothed else math.inf
    if not first - least > _LEAST_FALL * abs(first):
        tried = f"from {rates[0]:.1g} to {rates[-1]:.1g}" if rates else "at all"
        raise TrainingError(
            f"the loss never fell at learning rates {tried}, so none can be suggested; set "
            "optim.max_lr yourself, and look for errors in the masks with: segapp check DATA"
        )
    bottom = least + _FLOOR * (first - least)
    start = next(i for i, loss in enumerate(smoothed) if loss <= bottom)
    return rates[max(0, start - _LAG)]


def write_range_test(result: RangeTest, out: Path) -> None:
    """out/learning_rates.csv, a line a step, and its picture out/learning_rates.png."""
    columns = ["learning_rate", "loss", "smoothed"]
    steps = zip(result.rates, result.losses, result.smoothed, strict=True)
    rows = (dict(zip(columns, step, strict=True)) for step in steps)
    write_table(out / "learning_rates.csv", columns, rows)

    from matplotlib.figure import Figure  # half a second that only the end of a test pays

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(result.rates, result.losses, label="loss of a step", color="#BBBBBB", linewidth=1)
    axes.plot(result.rates, result.smoothed, label="running mean", color="#444444", linewidth=2)
    suggested = f"suggested: {result.suggestion:.2g}"
    axes.axvline(result.suggestion, label=suggested, color="#D55E00", linestyle="--")
    axes.set(title="Learning-rate range test", xscale="log", xlabel="learning rate", ylabel="loss")
    # one wild step at the end must not flatten the rest
    axes.set_ylim(0, 1.2 * max(result.smoothed[0], *result.smoothed))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with atomic_path(out / "learning_rates.png") as temporary:
        figure.savefig(temporary, format="png", dpi=110)

"""The learning rate: torch's OneCycleLR is the oracle; skipped steps must not move it."""

import pytest
import torch

from segapp.config import LossSettings
from segapp.optim import OneCycle, make_optimizer, one_cycle
from segapp.step import make_accelerator, training_step


def test_one_cycle_equals_torch() -> None:
    steps, max_lr = 1001, 2e-3
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter])
    # torch ends the rise at pct_start × total - 1 steps; this makes it step 300 of 0…1000
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr, total_steps=steps, pct_start=301 / steps, cycle_momentum=False
    )
    for step in range(steps):
        assert one_cycle(step / 1000, max_lr) == pytest.approx(oracle.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if step < steps - 1:
            oracle.step()


def test_one_cycle_by_hand() -> None:
    assert one_cycle(0, 1.0) == pytest.approx(1 / 25)
    assert one_cycle(0.3, 1.0) == pytest.approx(1.0)
    assert one_cycle(0.65, 1.0) == pytest.approx(0.5, abs=1e-5)  # half-way down
    assert one_cycle(1, 1.0) == pytest.approx(4e-6)


def test_exact_counts_advance_linearly_and_end_at_one() -> None:
    schedule = OneCycle(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), 1.0)
    shares = []
    for step in range(4):
        schedule.advance(steps_left=4 - step)
        shares.append(schedule.done)
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert schedule.lr == pytest.approx(4e-6)


def test_estimates_that_change_never_go_back_and_still_end() -> None:
    schedule = OneCycle(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), 1.0)
    before = 0.0
    for left in (float("inf"), 100, 3, 50, 2, 1):
        schedule.advance(left)
        assert before <= schedule.done <= 1
        before = schedule.done
    assert schedule.done == 1


def test_a_step_skipped_by_the_gradient_scaler_does_not_move_the_schedule() -> None:
    """The very step of training, with torch's CPU scaler whose scale first overflows float32."""
    torch.manual_seed(0)
    accelerator = make_accelerator("fp32", torch.device("cpu"))
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**122)
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    network, optimizer = accelerator.prepare(network, make_optimizer(network, 1e-2, 0.0))
    # Accelerate unscales before clipping in fp16 mode only, which a CPU doesn't have
    accelerator.unscale_gradients = lambda: accelerator.scaler.unscale_(optimizer.optimizer)
    schedule = OneCycle(optimizer, 1e-2)
    images, masks = 1e4 * torch.randn(2, 1, 8, 8), torch.randint(0, 2, (2, 8, 8))
    taken_count = 0
    for _ in range(12):
        rate, weights = schedule.lr, network.weight.detach().clone()
        _, taken = training_step(accelerator, network, optimizer, LossSettings(), images, masks, 5)
        if taken:
            schedule.advance(steps_left=100)
        assert (schedule.lr != rate) == taken
        assert torch.equal(network.weight, weights) == (not taken)
        taken_count += taken
    assert 0 < taken_count < 12, "the scale must overflow first, and then have come down"


def test_norms_and_biases_are_not_decayed() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    decayed, others = make_optimizer(network, 1e-3, 0.1).param_groups
    assert decayed["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    assert [p.ndim for p in decayed["params"]] == [4]
    assert [p.ndim for p in others["params"]] == [1, 1, 1]

import math

import numpy as np
import pytest
import torch

from segapp.losses import IGNORE, SMOOTH, cross_entropy_loss, dice_ce_loss


def logits_of(probabilities):
    """(H, W, C) nested lists of probabilities → logits (1, C, H, W)."""
    return torch.tensor(probabilities).log().movedim(-1, 0)[None]


def test_two_pixels_by_hand():
    logits = logits_of([[[0.25, 0.75], [0.5, 0.5]]])  # pixels of class 1 and 0
    target = torch.tensor([[[1, 0]]])
    cross_entropy = -(math.log(0.75) + math.log(0.5)) / 2
    dice = 2 * 0.75 / (0.75 + 0.5 + 1)  # overlap; predicted mass and true pixels of class 1
    assert cross_entropy_loss(logits, target).item() == pytest.approx(cross_entropy, rel=1e-5)
    assert dice_ce_loss(logits, target).item() == pytest.approx(cross_entropy + 1 - dice, rel=1e-4)
    half = dice_ce_loss(logits, target, dice_weight=0.5).item()
    assert half == pytest.approx(cross_entropy + (1 - dice) / 2, rel=1e-4)
    assert dice_ce_loss(logits, target, dice_weight=0).item() == pytest.approx(cross_entropy)


def test_batch_against_numpy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 5, 6))
    target = rng.choice([0, 1, 3, IGNORE], size=(3, 5, 6))  # class 2 is absent
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    probs, truth = probs.transpose(0, 2, 3, 1)[target != IGNORE], target[target != IGNORE]
    cross_entropy = -np.log(probs[np.arange(len(truth)), truth]).mean()
    dice = [
        (2 * probs[truth == c, c].sum() + SMOOTH)
        / (probs[:, c].sum() + (truth == c).sum() + SMOOTH)
        for c in (1, 3)
    ]
    got = dice_ce_loss(torch.tensor(logits), torch.tensor(target))
    assert got.item() == pytest.approx(cross_entropy + 1 - np.mean(dice), rel=1e-5)
    assert got.dtype == torch.float32


def test_uint8_and_int64_targets_agree():
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    target[0, 0, 0] = IGNORE
    assert torch.equal(dice_ce_loss(logits, target), dice_ce_loss(logits, target.to(torch.uint8)))


def test_perfect_prediction_costs_nothing():
    target = torch.tensor([[[0, 1], [2, 1]]])
    logits = 50.0 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    assert dice_ce_loss(logits, target).item() == pytest.approx(0, abs=1e-5)


def test_class_absent_from_the_target_adds_no_dice_term():
    logits, target = torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
    assert torch.equal(dice_ce_loss(logits, target), cross_entropy_loss(logits, target))


@pytest.mark.parametrize("loss", [dice_ce_loss, cross_entropy_loss])
def test_ignored_pixels_count_nowhere(loss):
    logits = torch.randn(1, 3, 2, 4, requires_grad=True)
    target = torch.tensor([[[0, 1, IGNORE, IGNORE], [2, 1, IGNORE, IGNORE]]])
    whole = loss(logits, target)
    whole.backward()
    assert torch.allclose(whole, loss(logits[..., :2], target[..., :2]))
    assert logits.grad is not None
    assert (logits.grad[..., 2:] == 0).all()
    assert (logits.grad[..., :2] != 0).all()


@pytest.mark.parametrize("loss", [dice_ce_loss, cross_entropy_loss])
def test_everything_ignored_is_zero_with_zero_gradients(loss):
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    value = loss(logits, torch.full((1, 2, 2), IGNORE, dtype=torch.uint8))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("loss", [dice_ce_loss, cross_entropy_loss])
def test_huge_logits_stay_finite(loss, dtype):
    logits = torch.full((2, 3, 4, 4), -1e4, dtype=dtype)
    logits[:, 1] = 1e4
    logits.requires_grad_()
    target = torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    value = loss(logits, target)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_float32_under_autocast():
    logits, target = torch.randn(1, 2, 8, 8), torch.randint(0, 2, (1, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        inside = dice_ce_loss(logits, target)
    assert torch.equal(inside, dice_ce_loss(logits, target))


def test_descending_the_loss_learns_the_target():
    target = torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    logits = torch.zeros(1, 3, 8, 8, requires_grad=True)
    optimiser = torch.optim.SGD([logits], lr=20.0)
    for _ in range(50):
        optimiser.zero_grad()
        dice_ce_loss(logits, target).backward()
        optimiser.step()
    assert torch.equal(logits.argmax(1), target)

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from segapp.errors import ConfigError
from segapp.losses import IGNORE, SMOOTH, make_loss
from segapp.settings import LossSettings

NAMES = ["ce", "dice_ce", "focal_ce", "tversky_ce"]


def loss_of(logits, target, **settings):
    return make_loss(LossSettings(**settings), logits.shape[1])(logits, target)


def logits_of(probabilities):
    """(H, W, C) nested lists of probabilities → logits (1, C, H, W)."""
    return torch.tensor(probabilities).log().movedim(-1, 0)[None]


def random_batch(classes=4):
    """Logits (3, classes, 5, 6) float32, and a target with class 2 absent and pixels ignored."""
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(3, classes, 5, 6)), dtype=torch.float32)
    return logits, torch.tensor(rng.choice([0, 1, 3, IGNORE], size=(3, 5, 6)))


# --- the terms by hand -------------------------------------------------------------------------

TWO_PIXELS = logits_of([[[0.25, 0.75], [0.5, 0.5]]])
OF_CLASSES_1_AND_0 = torch.tensor([[[1, 0]]])
CROSS_ENTROPY = -(math.log(0.75) + math.log(0.5)) / 2


def second_term(**settings):
    return loss_of(TWO_PIXELS, OF_CLASSES_1_AND_0, **settings).item() - CROSS_ENTROPY


def test_cross_entropy_and_dice_of_two_pixels():
    assert second_term(name="ce") == pytest.approx(0, abs=1e-6)
    dice = 2 * 0.75 / (0.75 + 0.5 + 1)  # overlap; predicted mass and true pixels of class 1
    assert second_term(name="dice_ce") == pytest.approx(1 - dice, rel=1e-4)
    assert second_term(name="dice_ce", weight=0.5) == pytest.approx((1 - dice) / 2, rel=1e-4)


def test_tversky_of_two_pixels():
    # of class 1: 0.75 found, 0.25 missed, 0.5 found where it isn't
    index = 0.75 / (0.75 + 0.8 * 0.25 + 0.2 * 0.5)
    term = second_term(name="tversky_ce", tversky_beta=0.8)
    assert term == pytest.approx(1 - index, rel=1e-4)
    term = second_term(name="tversky_ce", tversky_beta=0.8, weight=3)
    assert term == pytest.approx(3 * (1 - index), rel=1e-4)


def test_a_larger_tversky_beta_makes_misses_dearer_and_false_finds_cheaper():
    missed = logits_of([[[0.5, 0.5], [1 - 1e-6, 1e-6]]])
    false = logits_of([[[1e-6, 1 - 1e-6], [0.5, 0.5]]])
    terms = {
        beta: [
            loss_of(x, OF_CLASSES_1_AND_0, name="tversky_ce", tversky_beta=beta).item()
            for x in (missed, false)
        ]
        for beta in (0.3, 0.7)
    }
    assert terms[0.7][0] > terms[0.3][0]
    assert terms[0.7][1] < terms[0.3][1]


def test_tversky_with_half_is_dice():
    logits, target = random_batch()
    tversky = loss_of(logits, target, name="tversky_ce", tversky_beta=0.5, weight=0.7)
    assert torch.equal(tversky, loss_of(logits, target, name="dice_ce", weight=0.7))


@pytest.mark.parametrize("gamma", [0.5, 2])
def test_focal_of_two_pixels(gamma):
    term = second_term(name="focal_ce", focal_gamma=gamma, weight=3)
    by_hand = -(0.25**gamma * math.log(0.75) + 0.5**gamma * math.log(0.5)) / 2
    assert term == pytest.approx(3 * by_hand, rel=1e-4)


def test_class_weights_of_two_pixels():
    mean = -(3 * math.log(0.75) + 1 * math.log(0.5)) / 4  # the pixel of class 1 weighs 3
    weighted = loss_of(TWO_PIXELS, OF_CLASSES_1_AND_0, name="ce", class_weights=[1, 3])
    assert weighted.item() == pytest.approx(mean, rel=1e-5)
    focal = -(3 * 0.25**2 * math.log(0.75) + 1 * 0.5**2 * math.log(0.5)) / 4
    weighted = loss_of(TWO_PIXELS, OF_CLASSES_1_AND_0, name="focal_ce", class_weights=[1, 3])
    assert weighted.item() == pytest.approx(mean + focal, rel=1e-5)


def test_class_weights_and_smoothing_leave_the_dice_term_alone():
    logits, target = random_batch()
    of_all = {"class_weights": [1, 2, 3, 4], "label_smoothing": 0.1}
    plain = loss_of(logits, target, name="dice_ce") - loss_of(logits, target, name="ce")
    with_both = loss_of(logits, target, name="dice_ce", **of_all)
    torch.testing.assert_close(with_both - loss_of(logits, target, name="ce", **of_all), plain)


def test_wrong_number_of_class_weights():
    settings = LossSettings(class_weights=[1, 2, 3])
    with pytest.raises(ConfigError, match=r"loss\.class_weights has 3 .* there are 4 classes"):
        make_loss(settings, 4)


# --- against others ----------------------------------------------------------------------------


@pytest.mark.parametrize("class_weights", ["none", [0.5, 2, 1, 7]])
@pytest.mark.parametrize("label_smoothing", [0, 0.1, 0.9])
def test_cross_entropy_is_torchs(class_weights, label_smoothing):
    logits, target = random_batch()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = loss_of(
        ours, target, name="ce", class_weights=class_weights, label_smoothing=label_smoothing
    )
    expected = F.cross_entropy(
        theirs,
        target,
        weight=None if class_weights == "none" else torch.tensor(class_weights),
        ignore_index=IGNORE,
        label_smoothing=label_smoothing,
    )
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_dice_of_a_batch_is_numpys():
    logits, target = random_batch()
    probs = logits.softmax(1).numpy().transpose(0, 2, 3, 1)[target.numpy() != IGNORE]
    truth = target.numpy()[target.numpy() != IGNORE]
    dice = [
        (2 * probs[truth == c, c].sum() + SMOOTH)
        / (probs[:, c].sum() + (truth == c).sum() + SMOOTH)
        for c in (1, 3)
    ]
    got = loss_of(logits, target, name="dice_ce") - loss_of(logits, target, name="ce")
    assert got.item() == pytest.approx(1 - np.mean(dice), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 2])
def test_gradient_of_focal_is_that_of_finite_differences(gamma):
    loss = make_loss(LossSettings(name="focal_ce", focal_gamma=gamma), 3)
    logits = torch.tensor([0.3, -1.0, 0.8]).reshape(1, 3, 1, 1).requires_grad_()
    target = torch.tensor([[[2]]])
    loss(logits, target).backward()
    step = 1e-2
    for c in range(3):
        shift = torch.zeros(1, 3, 1, 1)
        shift[0, c] = step
        slope = (loss(logits + shift, target) - loss(logits - shift, target)) / (2 * step)
        assert logits.grad is not None
        assert logits.grad[0, c].item() == pytest.approx(slope.item(), abs=1e-3)


# --- what holds for all ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_uint8_and_int64_targets_agree(name):
    logits, target = random_batch()
    ours = loss_of(logits, target, name=name)
    assert torch.equal(ours, loss_of(logits, target.to(torch.uint8), name=name))


@pytest.mark.parametrize("name", NAMES)
def test_perfect_prediction_costs_nothing(name):
    target = torch.tensor([[[0, 1], [2, 1]]])
    logits = 50.0 * F.one_hot(target, 3).movedim(-1, 1)
    assert loss_of(logits, target, name=name).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["dice_ce", "tversky_ce"])
def test_class_absent_from_the_target_adds_no_dice_term(name):
    logits, target = torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
    cross_entropy = loss_of(logits, target, name="ce")
    assert torch.equal(loss_of(logits, target, name=name), cross_entropy)


VARIANTS = [{"name": name} for name in NAMES]
VARIANTS += [{"name": n, "class_weights": [1, 2, 3], "label_smoothing": 0.1} for n in NAMES]


@pytest.mark.parametrize("settings", VARIANTS)
def test_ignored_pixels_count_nowhere(settings):
    logits = torch.randn(1, 3, 2, 4, requires_grad=True)
    target = torch.tensor([[[0, 1, IGNORE, IGNORE], [2, 1, IGNORE, IGNORE]]])
    whole = loss_of(logits, target, **settings)
    whole.backward()
    torch.testing.assert_close(whole, loss_of(logits[..., :2], target[..., :2], **settings))
    assert logits.grad is not None
    assert (logits.grad[..., 2:] == 0).all()
    assert (logits.grad[..., :2] != 0).all()


@pytest.mark.parametrize("settings", VARIANTS)
def test_everything_ignored_is_zero_with_zero_gradients(settings):
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    value = loss_of(logits, torch.full((1, 2, 2), IGNORE, dtype=torch.uint8), **settings)
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("settings", [*VARIANTS, {"name": "focal_ce", "focal_gamma": 0.5}])
def test_huge_logits_stay_finite(settings, dtype):
    logits = torch.full((2, 3, 4, 4), -1e4, dtype=dtype)
    logits[:, 1] = 1e4
    logits.requires_grad_()
    target = torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    value = loss_of(logits, target, **settings)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_float32_under_autocast(name):
    logits, target = torch.randn(1, 2, 8, 8), torch.randint(0, 2, (1, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss_of(logits, target, name=name)
    assert torch.equal(inside, loss_of(logits, target, name=name))


@pytest.mark.parametrize("settings", VARIANTS)
def test_descending_the_loss_learns_the_target(settings):
    target = torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    logits = torch.zeros(1, 3, 8, 8, requires_grad=True)
    optimiser = torch.optim.SGD([logits], lr=20.0)
    for _ in range(50):
        optimiser.zero_grad()
        loss_of(logits, target, **settings).backward()
        optimiser.step()
    assert torch.equal(logits.argmax(1), target)

"""One optimiser step: what it minimises, what it leaves alone, and when it is skipped."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from segapp.mix import Mixed
from segapp.optim import Schedule, make_optimizer
from segapp.settings import OptimSettings
from segapp.step import deterministic, make_accelerator, training_step

SETTINGS = OptimSettings(max_lr=1e-2, weight_decay=0.1)


def cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, masks.long())


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.decoder = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x).relu())


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Network()


def data(count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 8, 8, generator=generator)
    return images, torch.randint(0, 2, (count, 8, 8), generator=generator).to(torch.uint8)


def take_step(model: nn.Module, batches: list[Mixed], clip_norm: float = 5.0) -> float:
    accelerator = make_accelerator("fp32", torch.device("cpu"))
    model, optimizer = accelerator.prepare(model, make_optimizer(model, SETTINGS))
    step = training_step(accelerator, model, optimizer, cross_entropy, batches, clip_norm)
    assert step.taken
    assert step.finite
    return step.loss


def gradients(model: nn.Module, batches: list[Mixed], clip_norm: float = 1e9) -> list[Tensor]:
    """The gradients with which a step is taken, from SGD's: the weights before - those after."""
    before = [p.detach().clone() for p in model.parameters()]
    accelerator = make_accelerator("fp32", torch.device("cpu"))
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    model, optimizer = accelerator.prepare(model, sgd)
    training_step(accelerator, model, optimizer, cross_entropy, batches, clip_norm)
    return [old - new.detach() for old, new in zip(before, model.parameters(), strict=True)]


def test_two_batches_of_four_are_one_of_eight() -> None:
    """With the norms in evaluation mode; in training each batch has statistics of its own."""
    images, masks = data(8)
    whole, parts = network().double().eval(), network().double().eval()
    images = images.double()
    one = take_step(whole, [Mixed(images, masks)])
    two = take_step(parts, [Mixed(images[:4], masks[:4]), Mixed(images[4:], masks[4:])])
    assert one == pytest.approx(two, rel=1e-6)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    untouched = network().double()
    assert not torch.equal(whole.decoder.weight, untouched.decoder.weight)


def test_the_second_batch_counts() -> None:
    images, masks = data(8)
    first, second = Mixed(images[:4], masks[:4]), Mixed(images[4:], masks[4:])
    both = gradients(network().eval(), [first, second])
    alone = [gradients(network().eval(), [batch]) for batch in (first, second)]
    for mean, a, b in zip(both, *alone, strict=True):
        torch.testing.assert_close(mean, (a + b) / 2, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(mean, a)


def test_gradients_are_clipped_once_and_together() -> None:
    images, masks = data(8)
    batches = [Mixed(images[:4], masks[:4]), Mixed(images[4:], masks[4:])]
    free = torch.cat([g.flatten() for g in gradients(network().eval(), batches)])
    clipped = torch.cat([g.flatten() for g in gradients(network().eval(), batches, 0.01)])
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm(), rtol=1e-3, atol=1e-4)


def test_a_mixture_has_the_losses_of_both_masks_by_their_shares() -> None:
    """Logits (0, ln 3) for every pixel: -ln 3/4 where the mask is 1, -ln 1/4 where it is 0."""
    model = nn.Conv2d(1, 2, 1)
    model.load_state_dict({"weight": torch.zeros(2, 1, 1, 1), "bias": torch.tensor([1, 3]).log()})
    images, ones = torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2, dtype=torch.uint8)
    of_one, of_zero = (-torch.tensor(share).log().item() for share in (0.75, 0.25))
    for share in (0.7, 0.2):
        batch = Mixed(images, ones, other_masks=1 - ones, share=share)
        loss = take_step(deepcopy(model), [batch])
        assert loss == pytest.approx(share * of_one + (1 - share) * of_zero)
    assert take_step(deepcopy(model), [Mixed(images, ones)]) == pytest.approx(of_one)


def test_a_frozen_encoder_stays_bit_for_bit() -> None:
    """Weight decay too leaves it alone; the decoder learns."""
    model = network()
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(False)
    model.encoder.eval()
    before = deepcopy(model.state_dict())
    take_step(model, [Mixed(*data(4))])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("encoder."), name


def test_a_thawed_encoder_learns_again() -> None:
    model = network()
    model.encoder.requires_grad_(False)
    accelerator = make_accelerator("fp32", torch.device("cpu"))
    model, optimizer = accelerator.prepare(model, make_optimizer(model, SETTINGS))
    frozen = model.encoder[0].weight.detach().clone()
    batch = [Mixed(*data(4))]
    training_step(accelerator, model, optimizer, cross_entropy, batch, 5)
    assert torch.equal(model.encoder[0].weight, frozen)
    model.encoder.requires_grad_(True)
    training_step(accelerator, model, optimizer, cross_entropy, batch, 5)
    assert not torch.equal(model.encoder[0].weight, frozen)


def test_a_step_skipped_by_the_gradient_scaler_does_not_move_the_schedule() -> None:
    """The very step of training, with torch's CPU scaler whose scale first overflows float32."""
    torch.manual_seed(0)
    accelerator = make_accelerator("fp32", torch.device("cpu"))
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**122)
    settings = OptimSettings(max_lr=1e-2, weight_decay=0)
    model = nn.Conv2d(1, 2, 3, padding=1)
    model, optimizer = accelerator.prepare(model, make_optimizer(model, settings))
    # Accelerate unscales before clipping in fp16 mode only, which a CPU doesn't have
    accelerator.unscale_gradients = lambda: accelerator.scaler.unscale_(optimizer.optimizer)
    schedule = Schedule(optimizer, settings)
    images, masks = data(4)
    batches = [Mixed(1e4 * images[:2], masks[:2]), Mixed(images[2:], masks[2:])]
    taken_count = 0
    for _ in range(12):
        rate, weights = schedule.lr, model.weight.detach().clone()
        taken = training_step(accelerator, model, optimizer, cross_entropy, batches, 5).taken
        if taken:
            schedule.advance(steps_left=100)
        assert (schedule.lr != rate) == taken
        assert torch.equal(model.weight, weights) == (not taken)
        taken_count += taken
    assert 0 < taken_count < 12, "the scale must overflow first, and then have come down"


class Small(Network):
    """Has memory for so many images at once."""

    most = 2

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


def prepared(model: nn.Module) -> tuple:
    accelerator = make_accelerator("fp32", torch.device("cpu"))
    return accelerator, *accelerator.prepare(model, make_optimizer(model, SETTINGS))


def test_out_of_memory_halves_what_goes_through_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """Without normalisation layers, whose statistics are of the parts, the step is the same."""
    torch.manual_seed(0)
    small, large = Small(), Network()
    for model in (small, large):
        model.encoder[1] = nn.Identity()
        model.load_state_dict(small.state_dict())
    batches = [Mixed(*data(8)), Mixed(*data(8, seed=2), data(8, seed=3)[1], 0.3)]
    accelerator, network, optimizer = prepared(small)
    step = training_step(accelerator, network, optimizer, cross_entropy, batches, 5)
    assert (step.taken, step.pieces) == (True, 4)
    assert [r.getMessage() for r in caplog.records] == [
        f"out of memory: each batch of 8 goes through the network in {n} parts from now on"
        for n in (2, 4)
    ]
    assert step.loss == pytest.approx(take_step(large, batches), rel=1e-5)
    for one, other in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    caplog.clear()
    again = training_step(accelerator, network, optimizer, cross_entropy, batches, 5, step.pieces)
    assert (again.pieces, caplog.records) == (4, [])


def test_where_no_part_is_small_enough_the_error_is_raised() -> None:
    small = Small()
    small.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        take_step(small, [Mixed(*data(4))])


def test_a_bug_is_not_taken_for_want_of_memory() -> None:
    with pytest.raises(RuntimeError, match="channels"):
        take_step(network(), [Mixed(torch.zeros(2, 3, 8, 8), data(2)[1])])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_without_a_finite_loss_changes_nothing(value: float) -> None:
    """Running statistics neither: with a NaN in them validation would see nothing else again."""
    accelerator, model, optimizer = prepared(network())
    images, masks = data(4)
    training_step(accelerator, model, optimizer, cross_entropy, [Mixed(images, masks)], 5)
    weights, moments = deepcopy(model.state_dict()), deepcopy(optimizer.state_dict()["state"])
    images[1, 0, 2, 3] = value
    step = training_step(accelerator, model, optimizer, cross_entropy, [Mixed(images, masks)], 5)
    assert (step.taken, step.finite) == (False, False)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    for key, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(state[name], moments[key][name]) for name in state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_gradient_that_is_not_finite_is_no_step_either() -> None:
    """The square root's slope at 0 is infinite, times 0."""
    accelerator, model, optimizer = prepared(network())
    weights = deepcopy(model.state_dict())
    batch = [Mixed(*data(4))]
    step = training_step(
        accelerator, model, optimizer, lambda x, _: (0 * x).pow(0.5).sum(), batch, 5
    )
    assert step.loss == 0
    assert (step.taken, step.finite) == (False, False)
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items())


def test_deterministic_kernels_are_asked_for_and_no_longer() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    for wanted in (False, True):
        with deterministic(wanted):
            assert torch.are_deterministic_algorithms_enabled() == (wanted or before)
        assert torch.are_deterministic_algorithms_enabled() == before

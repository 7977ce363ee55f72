"""The learning rate: torch's schedulers are the oracle. Groups, and the average, by hand."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from segapp.optim import Average, Schedule, make_optimizer, rate
from segapp.settings import OptimSettings
from segapp.step import make_accelerator


def settings(**given) -> OptimSettings:
    return OptimSettings(**{"max_lr": 1.0, **given})


def schedule_of(**given) -> Schedule:
    return Schedule(make_optimizer(nn.Linear(1, 1), settings(**given)), settings(**given))


class Model(nn.Module):
    """An encoder of five convolutions with biases and one norm, and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Conv2d(2, 2, 1)
        self.encoder = nn.Sequential(*(nn.Conv2d(2, 2, 3, padding=1) for _ in range(5)))
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.decoder(self.encoder(x)))


def test_one_cycle_equals_torch() -> None:
    steps, s = 1001, settings(max_lr=2e-3)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    # torch ends the rise at pct_start × total - 1 steps; this makes it step 300 of 0…1000
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, s.max_lr, total_steps=steps, pct_start=301 / steps, cycle_momentum=False
    )
    for step in range(steps):
        assert rate(step / 1000, s) == pytest.approx(oracle.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if step < steps - 1:
            oracle.step()


def test_one_cycle_by_hand() -> None:
    assert rate(0, settings()) == pytest.approx(1 / 25)
    assert rate(0.3, settings()) == pytest.approx(1.0)
    assert rate(0.65, settings()) == pytest.approx(0.5, abs=1e-5)  # half-way down
    assert rate(1, settings()) == pytest.approx(4e-6)


@pytest.mark.parametrize(
    ("name", "make_fall"),
    [
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 900)),
        ("poly", lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 900, power=0.9)),
    ],
)
def test_cosine_and_poly_equal_torch(name, make_fall) -> None:
    """100 steps of torch's linear rise, then 900 of its fall."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2e-3)
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 25, total_iters=100)
    s = settings(max_lr=2e-3, schedule=name, warm_up=0.1)
    for step in range(100):
        assert rate(step / 1000, s) == pytest.approx(rise.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        rise.step()
    fall = make_fall(optimizer)
    for step in range(900):
        assert rate(0.1 + step / 1000, s) == pytest.approx(fall.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        fall.step()
    assert rate(1, s) == 0


def test_the_schedules_half_way_down_by_hand() -> None:
    half = {"onecycle": 0.65, "cosine": 0.525, "poly": 0.525}  # of the rise of 0.3, 0.05 and 0.05
    expected = {"onecycle": 0.5, "cosine": 0.5, "poly": 0.5**0.9}
    for name, value in expected.items():
        assert rate(half[name], settings(schedule=name)) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("name", ["onecycle", "cosine", "poly"])
def test_warm_up_is_where_the_peak_stands(name) -> None:
    s = settings(schedule=name, warm_up=0.4)
    shares = [i / 100 for i in range(101)]
    assert max(shares, key=lambda done: rate(done, s)) == 0.4
    assert rate(0.4, s) == 1
    assert rate(0, s) == pytest.approx(1 / 25)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert rate(0, settings(schedule="poly", warm_up=0)) == 1


def test_exact_counts_advance_linearly_and_end_at_one() -> None:
    schedule = schedule_of()
    shares = []
    for step in range(4):
        schedule.advance(steps_left=4 - step)
        shares.append(schedule.done)
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert schedule.lr == pytest.approx(4e-6)


def test_estimates_that_change_never_go_back_and_still_end() -> None:
    schedule = schedule_of()
    before = 0.0
    for left in (float("inf"), 100, 3, 50, 2, 1):
        schedule.advance(left)
        assert before <= schedule.done <= 1
        before = schedule.done
    assert schedule.done == 1


def test_a_run_that_goes_on_has_the_rate_it_stopped_with() -> None:
    optimizer = make_optimizer(nn.Linear(1, 1), settings())
    schedule = Schedule(optimizer, settings(), done=0.65)
    assert schedule.lr == pytest.approx(0.5, abs=1e-5)
    assert optimizer.param_groups[0]["lr"] == schedule.lr


def test_norms_and_biases_are_not_decayed() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    decayed, others = make_optimizer(network, settings(weight_decay=0.1)).param_groups
    assert decayed["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    assert [p.ndim for p in decayed["params"]] == [4]
    assert [p.ndim for p in others["params"]] == [1, 1, 1]
    assert decayed["lr_scale"] == others["lr_scale"] == 1


def test_an_encoders_rates_rise_with_its_depth() -> None:
    """Two parameters, one decayed, in each fifth: 1/32, 1/16, 1/8, 1/4, 1/2, then the decoder."""
    network, s = Model(), settings(encoder_lr=1 / 32, weight_decay=0.1)
    optimizer = make_optimizer(network, s)
    schedule = Schedule(optimizer, s, done=0.3)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for i, convolution in enumerate(network.encoder):
        for parameter, decay in ((convolution.weight, 0.1), (convolution.bias, 0)):
            assert groups[id(parameter)]["lr"] == pytest.approx(2 ** (i - 5))
            assert groups[id(parameter)]["weight_decay"] == decay
    for parameter in (*network.decoder.parameters(), *network.norm.parameters()):
        assert groups[id(parameter)]["lr"] == 1
    assert len(groups) == len(list(network.parameters()))
    assert schedule.lr == 1


def test_an_encoders_fifths_are_equal_in_number() -> None:
    network = nn.Module()
    network.encoder = nn.ParameterList([torch.zeros(1) for _ in range(12)])
    optimizer = make_optimizer(network, settings(encoder_lr=0.5))
    sizes = [len(g["params"]) for g in optimizer.param_groups if g["params"]]
    assert sorted(sizes) == [2, 2, 2, 3, 3]


def test_adamws_first_step_is_the_rate_times_the_scale() -> None:
    """A first AdamW step is lr × the gradient's sign."""
    network, s = Model(), settings(max_lr=1e-3, encoder_lr=1 / 32, weight_decay=0)
    optimizer = make_optimizer(network, s)
    Schedule(optimizer, s, done=0.3)
    before = deepcopy(network)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = [
        (old.weight - new.weight).abs().mean().item()
        for old, new in zip(before.encoder, network.encoder, strict=True)
    ]
    assert moved == pytest.approx([1e-3 * 2.0 ** (i - 5) for i in range(5)], rel=1e-2)


def one_weight(value: float) -> nn.Module:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, value)
    return network


def test_the_average_of_three_updates_by_hand() -> None:
    """It keeps min(decay, 2/11), then min(decay, 3/12) of what it was, after the first."""
    for decay, second, third in ((0.9, 2 / 11, 3 / 12), (0.2, 2 / 11, 0.2), (0.1, 0.1, 0.1)):
        network = one_weight(5)
        average = Average(network, decay)
        values = []
        for value in (10.0, 20.0, 40.0):
            nn.init.constant_(network.weight, value)
            average.update(network)
            values.append(average.module.get_parameter("weight").item())
        after_second = second * 10 + (1 - second) * 20
        expected = [10, after_second, third * after_second + (1 - third) * 40]
        assert values == pytest.approx(expected)
        assert average.updates == 3


def test_after_the_warm_up_the_decay_is_what_was_asked_for() -> None:
    network = one_weight(0)
    average = Average(network, 0.9)
    for _ in range(100):
        average.update(network)
    nn.init.constant_(network.weight, 1)
    for t in range(1, 4):
        average.update(network)
        assert average.module.get_parameter("weight").item() == pytest.approx(1 - 0.9**t)


def test_statistics_of_norms_are_averaged_and_counts_copied() -> None:
    norm = nn.BatchNorm2d(1, momentum=1.0)
    average = Average(norm, 0.5)
    for value in (1.0, 3.0):
        norm(torch.full((1, 1, 2, 2), value))
        average.update(norm)
    assert average.module.get_buffer("running_mean").item() == pytest.approx(
        2 / 11 * 1 + 9 / 11 * 3
    )
    assert average.module.get_buffer("num_batches_tracked").item() == 2


def test_the_average_follows_a_network_that_accelerate_prepared() -> None:
    """In channels-last memory, under the same names, and the network stays as it is."""
    torch.manual_seed(0)
    network = Model().to(memory_format=torch.channels_last)
    average = Average(network, 0.9)
    accelerator = make_accelerator("bf16", torch.device("cpu"))
    network, optimizer = accelerator.prepare(network, make_optimizer(network, settings()))
    x = torch.randn(2, 2, 8, 8).to(memory_format=torch.channels_last)
    for _ in range(3):
        accelerator.backward(network(x).square().sum())
        optimizer.step()
        before = deepcopy(network.state_dict())
        average.update(network)
    mine, its = average.module.state_dict(), network.state_dict()
    assert list(mine) == list(its)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), its.values(), strict=True))
    assert not torch.equal(mine["decoder.weight"], its["decoder.weight"])
    for name, parameter in average.module.named_parameters():
        assert parameter.stride() == network.get_parameter(name).stride(), name
        assert parameter.dtype == torch.float32
        assert not parameter.requires_grad
    network.load_state_dict(mine)
    assert torch.equal(network.eval()(x).float(), average_output(average, x))


def average_output(average: Average, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return average.module.eval()(x).float()


def test_the_average_of_weights_that_stand_still_is_bit_for_bit_these() -> None:
    torch.manual_seed(0)
    network = Model()
    average = Average(network, 0.999)
    for _ in range(20):
        average.update(network)
    for a, b in zip(average.module.parameters(), network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_encoder_that_names_its_stages_is_ordered_by_them() -> None:
    """As MiT: all patch embeddings are registered before all blocks."""
    encoder = torch.nn.Module()
    for name in ("patch_embed1", "patch_embed2", "block1", "block2"):
        encoder.add_module(name, torch.nn.Linear(1, 1, bias=False))
    network = torch.nn.Module()
    network.add_module("encoder", encoder)
    optimizer = make_optimizer(network, settings(encoder_lr=0.5))
    scale = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    of = {name.split(".")[0]: scale[id(p)] for name, p in encoder.named_parameters()}
    first, second = {of["patch_embed1"], of["block1"]}, {of["patch_embed2"], of["block2"]}
    assert max(first) < min(second)

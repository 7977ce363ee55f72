"""The state of a run: what comes back is what was saved, element by element."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from segapp.errors import ModelFileError
from segapp.optim import Average, make_optimizer
from segapp.resume import State, load_state, save_state, saved_states
from segapp.settings import OptimSettings

SETTINGS = OptimSettings(max_lr=1e-2, weight_decay=0.1)


def network_and_optimizer(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    network = network.to(memory_format=torch.channels_last)
    return network, make_optimizer(network, SETTINGS)


def step(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    (network(x) - x[:, :1, 1:-1, 1:-1]).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_a_restored_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Also in channels-last, where moments must lie in memory as their parameters do."""
    network, optimizer = network_and_optimizer(0)
    step(network, optimizer)
    assert not saved_states(tmp_path)
    save_state(tmp_path, network, optimizer, State(step=1, done=0.5, history=[{"epoch": 1}]))
    assert saved_states(tmp_path)
    step(network, optimizer)
    other, other_optimizer = network_and_optimizer(1)
    state, _ = load_state(tmp_path, other, other_optimizer)
    assert (state.step, state.done, state.history) == (1, 0.5, [{"epoch": 1}])
    step(other, other_optimizer)
    assert equal(network, other)


def test_a_state_without_what_is_newer_is_read(tmp_path: Path) -> None:
    network, optimizer = network_and_optimizer(0)
    older = State(step=3)
    del older.__dict__["every"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segapp.resume.asdict", lambda state: dict(state.__dict__))
        save_state(tmp_path, network, optimizer, older)
    assert load_state(tmp_path, network, optimizer)[0] == State(step=3, every=0)


def test_the_average_of_the_weights_comes_back_bit_for_bit(tmp_path: Path) -> None:
    network, optimizer = network_and_optimizer(0)
    average = Average(network, 0.9)
    for _ in range(3):
        step(network, optimizer)
        average.update(network)
    save_state(tmp_path, network, optimizer, State(), average)
    other, other_optimizer = network_and_optimizer(1)
    other_average = Average(other, 0.9)
    load_state(tmp_path, other, other_optimizer, other_average)
    assert other_average.updates == 3
    assert equal(average, other_average)
    average.update(network)
    other_average.update(other)
    assert equal(average, other_average)
    assert not torch.equal(average.module[0].weight, network[0].weight)
    assert other_average.module[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_an_average_that_was_never_saved_is_missed(tmp_path: Path) -> None:
    network, optimizer = network_and_optimizer(0)
    save_state(tmp_path, network, optimizer, State())
    with pytest.raises(ModelFileError, match=r"optim\.ema"):
        load_state(tmp_path, network, optimizer, Average(network, 0.9))


def test_a_state_without_a_frozen_encoders_moments_comes_back_as_it_was(tmp_path: Path) -> None:
    """Frozen at first, it has moments only from the step on at which it is thawed."""
    network, optimizer = network_and_optimizer(0)
    network[0].requires_grad_(False)
    step(network, optimizer)
    save_state(tmp_path, network, optimizer, State())
    other, other_optimizer = network_and_optimizer(1)
    load_state(tmp_path, other, other_optimizer)
    assert set(other_optimizer.state) == set(other[1].parameters())
    for model, its_optimizer in ((network, optimizer), (other, other_optimizer)):
        model[0].requires_grad_(True)
        torch.manual_seed(2)
        step(model, its_optimizer)
        step(model, its_optimizer)
    assert equal(network, other)


def test_the_scales_of_the_rates_come_back(tmp_path: Path) -> None:
    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        network = torch.nn.Sequential()
        network.add_module("encoder", torch.nn.Linear(1, 1))
        return network, make_optimizer(network, OptimSettings(encoder_lr=0.1))

    network, optimizer = make()
    save_state(tmp_path, network, optimizer, State())
    other, other_optimizer = make()
    for group in other_optimizer.param_groups:
        group["lr_scale"] = 7
    load_state(tmp_path, other, other_optimizer)
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    assert [group["lr_scale"] for group in other_optimizer.param_groups] == scales
    assert len(set(scales)) == 6


def test_the_newest_two_states_are_kept(tmp_path: Path) -> None:
    network, optimizer = network_and_optimizer(0)
    best = {"weight": torch.arange(3.0)}
    for number in (1, 5, 12):
        save_state(tmp_path, network, optimizer, State(step=number), best=best)
    assert [path.name for path in saved_states(tmp_path)] == [
        "step-000000012.safetensors",
        "step-000000005.safetensors",
    ]
    assert len(list(tmp_path.iterdir())) == 2
    state, found = load_state(tmp_path, network, optimizer)
    assert state.step == 12
    assert torch.equal(found["weight"], best["weight"])


def flip(path: Path, place: int) -> None:
    """One bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "empty": lambda path: path.write_bytes(b""),
    "a bit of a weight": lambda path: flip(path, -1),
    "a bit of the text": lambda path: flip(path, path.read_bytes().index(b"elapsed") + 3),
    "another's": lambda path: save_file({"a": torch.zeros(1)}, path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_skipped_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    network, optimizer = network_and_optimizer(0)
    for number in (1, 2):
        step(network, optimizer)
        save_state(tmp_path, network, optimizer, State(step=number))
        if number == 1:
            earlier = {name: value.clone() for name, value in network.state_dict().items()}
    newest = saved_states(tmp_path)[0]
    DAMAGE[damage](newest)
    state, _ = load_state(tmp_path, network, optimizer)
    assert state.step == 1
    assert all(torch.equal(value, earlier[name]) for name, value in network.state_dict().items())
    assert newest.name in caplog.text
    assert "damaged" in caplog.text
    save_state(tmp_path, network, optimizer, State(step=2))
    assert len(saved_states(tmp_path)) == 2, "the damaged one must not push the sound one out"
    assert load_state(tmp_path, network, optimizer)[0].step == 2


def test_where_every_state_is_damaged_the_run_is_refused(tmp_path: Path) -> None:
    network, optimizer = network_and_optimizer(0)
    for number in (1, 2):
        save_state(tmp_path, network, optimizer, State(step=number))
        flip(saved_states(tmp_path)[0], -1)
    with pytest.raises(ModelFileError, match="every saved state is damaged"):
        load_state(tmp_path, network, optimizer)


def test_an_epoch_without_a_finite_loss_is_never_the_best() -> None:
    state = State(epoch=1)
    assert not state.judge(0.9, loss=float("nan"))
    assert not state.judge(float("nan"))
    assert (state.best_epoch, state.best_score) == (0, -1.0)
    assert state.judge(0.1, loss=2.0)


def test_one_lucky_epoch_is_not_the_best() -> None:
    state = State()
    chosen = []
    for state.epoch, miou in enumerate((0.50, 0.60, 0.80, 0.74, 0.76, 0.77), start=1):
        if state.judge(miou):
            chosen.append(state.epoch)
    assert chosen == [1, 2, 3, 4, 5, 6]


def test_a_decline_that_lasts_is_seen() -> None:
    state = State()
    for state.epoch, miou in enumerate([0.8] * 10 + [0.6, 0.5, 0.4], start=1):
        state.judge(miou)
    assert state.best_epoch == 10


def test_in_the_last_quarter_the_newest_epoch_is_taken() -> None:
    """0.815 is a lucky score of large steps."""
    state = State()
    for state.epoch in range(1, 76):
        state.judge(0.815 if state.epoch == 60 else 0.7, state.epoch / 101)
    assert state.best_epoch == 60
    for state.epoch in range(76, 102):
        assert state.judge(0.71 - state.epoch / 10_000, state.epoch / 101)


def test_a_collapse_in_the_last_quarter_is_seen() -> None:
    state = State()
    for state.epoch in range(1, 101):
        state.judge(0.8 if state.epoch < 70 else 0.5, state.epoch / 100)
    assert state.best_epoch == 69


def test_a_lucky_first_epoch_is_not_the_best() -> None:
    """0.182, 0.25, 0.361, 0.424, 0.466: begun at 0, the mean only rises."""
    state = State()
    for state.epoch, miou in enumerate((0.607, 0.407, 0.622, 0.571, 0.564), start=1):
        state.judge(miou)
    assert state.best_epoch == 5
    assert state.best_score == pytest.approx(0.466, abs=5e-4)


def test_the_highest_epoch_is_that_of_the_miou_and_not_of_its_running_mean() -> None:
    state = State()
    for miou in (0.3, 0.5, 0.4, 0.5):
        state.epoch += 1
        state.judge(miou)
    assert (state.highest, state.highest_epoch) == (0.5, 2)
    assert state.best_epoch == 4


def test_a_score_that_is_no_number_changes_nothing() -> None:
    state = State(epoch=1)
    assert state.judge(0.5)
    assert not state.judge(float("nan"))
    assert state.score == pytest.approx(0.15)

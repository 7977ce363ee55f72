"""The state of a run: what comes back is what was saved, element by element."""

from pathlib import Path

import pytest
import torch

from segapp.errors import ModelFileError
from segapp.optim import make_optimizer
from segapp.resume import State, has_state, load_state, save_state


def network_and_optimizer(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    network = network.to(memory_format=torch.channels_last)
    return network, make_optimizer(network, 1e-2, 0.1)


def step(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    (network(x) - x[:, :1, 1:-1, 1:-1]).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_restored_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Also in channels-last, where moments must lie in memory as their parameters do."""
    network, optimizer = network_and_optimizer(0)
    step(network, optimizer)
    assert not has_state(tmp_path)
    save_state(tmp_path, network, optimizer, State(step=1, done=0.5, history=[{"epoch": 1}]))
    assert has_state(tmp_path)
    step(network, optimizer)
    other, other_optimizer = network_and_optimizer(1)
    state = load_state(tmp_path, other, other_optimizer)
    assert (state.step, state.done, state.history) == (1, 0.5, [{"epoch": 1}])
    step(other, other_optimizer)
    for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    network, optimizer = network_and_optimizer(0)
    save_state(tmp_path, network, optimizer, State())
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelFileError, match="damaged"):
        load_state(tmp_path, network, optimizer)


def test_one_lucky_epoch_is_not_the_best() -> None:
    state = State()
    chosen = []
    for state.epoch, miou in enumerate((0.50, 0.60, 0.80, 0.74, 0.76, 0.77), start=1):
        if state.judge(miou):
            chosen.append(state.epoch)
    assert chosen == [1, 2, 3, 4, 5, 6]


def test_a_decline_that_lasts_is_seen() -> None:
    state = State()
    for state.epoch, miou in enumerate((0.7, 0.8, 0.8, 0.6, 0.5, 0.4), start=1):
        state.judge(miou)
    assert state.best_epoch == 3


def test_a_score_that_is_no_number_changes_nothing() -> None:
    state = State(epoch=1)
    assert state.judge(0.5)
    assert not state.judge(float("nan"))
    assert state.score == 0.5

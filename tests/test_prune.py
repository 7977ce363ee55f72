"""Pruned networks: what is cut, that zeros stay zero, and what is chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from batches import outcomes_of
from conftest import without_pictures, write_png_dataset
from test_train import interrupt_at
from torch import nn

from segapp.batch import list_inputs
from segapp.checkpoint import Architecture, Pruned, read_info, read_weights, save_model
from segapp.cli_text import pruning_table, shares
from segapp.config import load_settings
from segapp.engines.torch import load_network
from segapp.errors import ConfigError, DataError, Interrupted, ModelFileError, OutputError
from segapp.model import build_network
from segapp.plan import open_run, reopen_run
from segapp.predict import Predictor
from segapp.prune import Point, choose, cut_channels, cut_weights, prune_model
from segapp.settings import Settings
from segapp.train import run_plan
from segapp.weights import hold_zeros

ARCHITECTURE = Architecture(
    name="unet",
    encoder="resnet18",
    in_channels=1,
    classes=3,
    residual=True,
    full_resolution=True,
    encoder_depth=3,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training's run folder; its data lies beside it."""
    folder = tmp_path_factory.mktemp("prune")
    data = write_png_dataset(folder / "data", count=8)
    words = [f"data.root={data}", f"train.out={folder / 'run'}", "train.epochs=2"]
    words += ["train.steps_per_epoch=4", "model.encoder=resnet18", "model.encoder_weights=none"]
    with without_pictures():
        return run_plan(open_run(load_settings(None, words)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_network(**ARCHITECTURE.model_dump()).eval()


def sizes(net: nn.Module) -> list[int]:
    return [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)]


def test_half_of_the_channels_are_cut_and_the_file_builds_what_is_left(
    run: Path, tmp_path: Path
) -> None:
    net, whole = network(), network()
    for amount in (0.1, 0.3, 0.5):  # rounding must not add up
        cut_channels(net, whole, amount, inputs=1)
    before, after = sizes(whole), sizes(net)
    assert all(n == max(8, b // 2) for n, b in zip(after[:-1], before[:-1], strict=True)), after
    assert after[-1] == before[-1] == 3
    weights = {name: t.detach().numpy() for name, t in net.state_dict().items()}
    info = read_info(run).model_copy(
        update={"architecture": ARCHITECTURE, "pruned": Pruned(what="channels", amount=0.5)}
    )
    save_model(tmp_path / "model.safetensors", weights, info)
    loaded = load_network(tmp_path, read_info(tmp_path)).eval()
    x = torch.randn(2, 1, 64, 96)
    with torch.inference_mode():
        assert torch.equal(loaded(x), net(x))
    info = info.model_copy(update={"pruned": None})
    save_model(tmp_path / "model.safetensors", weights, info)
    with pytest.raises(ModelFileError, match="do not fit"):
        load_network(tmp_path, info)


def test_depthwise_convolutions_are_cut_and_built_again() -> None:
    from segapp.model import narrow

    torch.manual_seed(0)
    net = build_network("unet", "resnet18", 1, 3, separable=True).eval()
    again = build_network("unet", "resnet18", 1, 3, separable=True).eval()
    cut_channels(net, again, 0.25, inputs=1)
    state = net.state_dict()
    narrow(again, {name: t.numpy() for name, t in state.items()}, 1)
    again.load_state_dict(state)
    x = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        assert torch.equal(again(x), net(x))


def test_the_smallest_weights_become_zero_and_stay_so_in_training() -> None:
    net = network().train()
    cut_weights(net, 0.3)
    convolutions = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d)]
    total = sum(w.numel() for w in convolutions)
    zeros = [(w == 0).clone() for w in convolutions]
    assert sum(int(z.sum()) for z in zeros) == round(0.3 * total)
    smallest_kept = min(float(w.detach()[w != 0].abs().min()) for w in convolutions)
    whole = [m.weight for m in network().modules() if isinstance(m, nn.Conv2d)]
    cut = max(
        float(w.detach()[z].abs().max()) for w, z in zip(whole, zeros, strict=True) if z.any()
    )
    assert cut <= smallest_kept
    hold_zeros(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(2, 1, 64, 64)).square().mean().backward()
        optimizer.step()
    assert all(bool((w[z] == 0).all()) for w, z in zip(convolutions, zeros, strict=True))
    assert all(bool((w[~z] != 0).any()) for w, z in zip(convolutions, zeros, strict=True))


def test_the_fastest_of_those_with_fewer_channels_within_a_hundredth_is_chosen() -> None:
    def point(method: str, ms: float, miou: float) -> Point:
        return Point(method, 0.5, 0.5, 1, 1.0, ms, miou, method)

    original = point("original", 10, 0.8)
    good, slow = point("channels", 5, 0.791), point("channels", 6, 0.9)
    bad, zeros = point("channels", 3, 0.789), point("weights", 1, 0.8)
    assert choose([original, slow, good, bad, zeros]) == good
    assert choose([original, bad, zeros]) == original


@pytest.mark.parametrize("text", ["", "a", "0", "1", "0.1,,0.2", "0.1;0.2", "-0.1", "nan"])
def test_amounts_are_shares(text: str) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        shares(text)


@pytest.mark.slow
def test_the_curve_of_a_model(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "pruned"
    result = prune_model(run, run.parent / "data", out, [0.5], minutes=0.05)
    assert [(p["method"], p["amount"]) for p in result["points"]] == [
        ("original", 0.0),
        ("channels", 0.5),
        ("weights", 0.5),
    ]
    original, channels, weights = result["points"]
    assert channels["parameters"] < 0.4 * original["parameters"]
    assert weights["parameters"] == original["parameters"]
    assert weights["sparsity"] == pytest.approx(0.5, abs=0.02)
    held = read_weights(out / "weights-0.5")
    assert sum((w == 0).sum() for w in held.values()) >= 0.48 * original["parameters"]
    assert read_info(out / "channels-0.5").pruned == Pruned(what="channels", amount=0.5)
    table = pruning_table(result)
    assert table.count("← chosen") == 1
    assert (out / "curve.csv").read_text().count("\n") == 4
    assert (out / "curve.png").stat().st_size > 10_000
    assert not list(out.glob(".*")), "what runs started from is gone"
    images = sorted((run.parent / "data" / "images").iterdir())
    (outcome, *_) = outcomes_of(Predictor.load(out), list_inputs(images), tmp_path / "masks")
    assert outcome.status == "review", "two validation cases vouch for nothing"
    trained = (out / "channels-0.5" / "model.safetensors").stat().st_mtime_ns
    assert prune_model(run, run.parent / "data", out, [0.5], minutes=0.05)["points"]
    assert (out / "channels-0.5" / "model.safetensors").stat().st_mtime_ns == trained


@pytest.mark.slow
def test_an_interrupted_run_keeps_its_zeros_and_goes_on_learning(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, net = read_info(run), load_network(run, read_info(run))
    cut_weights(net, 0.5)
    weights = {name: t.detach().numpy() for name, t in net.state_dict().items()}
    start = tmp_path / "start.safetensors"
    zeros = info.model_copy(update={"pruned": Pruned(what="weights", amount=0.5)})
    save_model(start, weights, zeros)

    def settings(name: str) -> Settings:
        words = [f"data.root={run.parent / 'data'}", f"model.init_from={start}"]
        words += [f"train.out={tmp_path / name}", "train.epochs=2", "train.steps_per_epoch=2"]
        return load_settings(None, words)

    whole = run_plan(open_run(settings("whole")))
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        with pytest.raises(Interrupted):
            run_plan(open_run(settings("part")))
    plan = reopen_run(settings("part"))
    assert plan is not None
    part = run_plan(plan)
    one, other = read_weights(whole), read_weights(part)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    convolutions = [name for name, w in one.items() if w.ndim == 4]
    assert all(np.array_equal(one[n] == 0, weights[n] == 0) for n in convolutions)
    assert all(not np.array_equal(one[n], weights[n]) for n in convolutions)
    assert read_info(part).pruned == zeros.pruned


def test_folders_that_hold_something_else_are_refused(run: Path, tmp_path: Path) -> None:
    data = run.parent / "data"
    for out in (run, run.parent, data):
        with pytest.raises(OutputError, match="another"):
            prune_model(run, data, out, [0.5], 0.05)
    for record in ("{}", "no JSON"):
        (tmp_path / "prune.json").write_text(record)
        with pytest.raises(OutputError, match="another model, data set or length"):
            prune_model(run, data, tmp_path, [0.5], 0.05)
        assert (tmp_path / "prune.json").read_text() == record


def test_another_model_is_not_written_over(run: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("somebody's")
    with pytest.raises(OutputError, match=r"holds other files, such as model\.safetensors; choose"):
        prune_model(run, run.parent / "data", tmp_path, [0.5], 0.05)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_text() == "somebody's"


def test_the_data_are_looked_at_before_a_folder_is_made(run: Path, tmp_path: Path) -> None:
    data = write_png_dataset(tmp_path / "data", count=8)
    (data / "masks" / "case3.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"case3\.png"):
        prune_model(run, data, tmp_path / "out", [0.5], 0.05)
    with pytest.raises(DataError, match="no such folder"):
        prune_model(run, tmp_path / "nowhere", tmp_path / "out", [0.5], 0.05)
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_taken_and_the_same_call_goes_on_in_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise Interrupted("stopped")

    monkeypatch.setattr("segapp.prune._cut_and_train", stopped)
    data, out = run.parent / "data", tmp_path / "out"
    out.mkdir()
    (out / ".DS_Store").touch()
    for _ in range(2):
        with pytest.raises(Interrupted):
            prune_model(run, data, out, [0.5], 0.05)
        assert {p.name for p in out.iterdir()} == {".DS_Store", "original", "prune.json"}
    with pytest.raises(OutputError, match="another model, data set or length"):
        prune_model(run, data, out, [0.5], 0.06)


def test_channels_that_cant_be_cut_are_said_to_be_so(run: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    architecture = Architecture(
        name="segformer", encoder="mit_b0", in_channels=1, classes=3, residual=False
    )
    net = build_network(**architecture.model_dump())
    info = read_info(run)
    prep = info.preprocessing.model_copy(update={"stride": 32})
    tree = {**info.settings, "model": {**info.settings["model"], "architecture": "segformer"}}
    tree["model"] |= {"encoder": "mit_b0", "residual": False, "full_resolution": False}
    tree["model"] |= {"encoder_depth": 5}
    changed = {"architecture": architecture, "preprocessing": prep, "settings": tree}
    weights = {name: t.detach().numpy() for name, t in net.state_dict().items()}
    save_model(tmp_path / "model.safetensors", weights, info.model_copy(update=changed))
    with pytest.raises(ConfigError, match="segformer over mit_b0 can't be cut"):
        prune_model(tmp_path, run.parent / "data", tmp_path / "out", [0.5], 0.05)
    assert not (tmp_path / "out").exists()


def test_what_is_pruned_already_is_not_pruned(run: Path, tmp_path: Path) -> None:
    info = read_info(run).model_copy(update={"pruned": Pruned(what="weights", amount=0.5)})
    save_model(tmp_path / "model.safetensors", read_weights(run), info)
    with pytest.raises(ConfigError, match="pruned already"):
        prune_model(tmp_path, run.parent / "data", tmp_path / "out", [0.5], 0.05)

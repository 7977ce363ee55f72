import contextlib
import functools
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

from segapp.errors import ConfigError
from segapp.model import ResidualBlock, build_network, load_encoder_weights

ARCHITECTURES = {"unet": smp.Unet, "unetplusplus": smp.UnetPlusPlus}


def adapted(weight, channels):
    """What smp makes of a first convolution of 3 channels."""
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return torch.stack([weight[:, i % 3] for i in range(channels)], 1) * (3 / channels)


def assert_carries(state, given, channels, first="conv1.weight"):
    assert state.keys() == given.keys()
    for name, tensor in given.items():
        expected = adapted(tensor, channels) if name == first else tensor
        torch.testing.assert_close(state[name], expected, msg=name)


@functools.cache
def resnet18_network(channels):
    """Shared by tests that load all of its encoder, or fail to."""
    return build_network("unet", "resnet18", channels, 2)


@functools.cache
def random_encoder(name):
    """State dict of an smp encoder, BatchNorm's statistics random as well."""
    state = smp.encoders.get_encoder(name).state_dict()
    return {k: torch.rand_like(v) if v.is_floating_point() else v + 7 for k, v in state.items()}


# --- the network -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (3, 5), (4, 2), (7, 5)])
def test_shapes(name, channels, classes):
    network = build_network(name, "resnet18", channels, classes).eval()
    with torch.inference_mode():
        assert network(torch.rand(2, channels, 64, 96)).shape == (2, classes, 64, 96)


@pytest.mark.parametrize(("name", "count"), [("unet", 5), ("unetplusplus", 11)])
def test_every_decoder_block_is_residual(name, count):
    network = build_network(name, "resnet34", 1, 2)
    decoder = network.get_submodule("decoder")
    blocks = list(decoder.get_submodule("blocks").children())
    assert [type(b.conv1) for b in blocks] == [ResidualBlock] * count
    assert [type(b.conv2) for b in blocks] == [torch.nn.Identity] * count
    assert not [m for m in decoder.modules() if isinstance(m, smp.base.modules.Conv2dReLU)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_without_residual_it_is_plain_smp(name):
    plain = ARCHITECTURES[name]("resnet18", encoder_weights=None, in_channels=1, classes=2)
    network = build_network(name, "resnet18", 1, 2, residual=False)
    assert list(network.state_dict()) == list(plain.state_dict())


def test_block_with_a_zero_branch_is_its_identity():
    block = ResidualBlock(4, 4)
    block.branch[0].weight.data.zero_()
    block.branch[3].weight.data.zero_()
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), x.relu())


def test_block_with_a_zero_branch_is_its_projection():
    block = ResidualBlock(4, 2).eval()  # BatchNorm's statistics are 0 and 1
    block.branch[4].weight.data.zero_()  # gamma
    block.shortcut[0].weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, -2]])[..., None, None]
    x = torch.randn(2, 4, 6, 6)
    expected = torch.stack([x[:, 0], -2 * x[:, 3]], 1).relu()
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_block_adds_its_branch():
    block = ResidualBlock(1, 1).eval()
    centre = torch.zeros(1, 1, 3, 3)
    centre[..., 1, 1] = 1
    block.branch[0].weight.data, block.branch[3].weight.data = 2 * centre, 3 * centre
    x = torch.tensor([1.0, 4.0, -5.0]).reshape(1, 1, 1, 3)
    expected = torch.tensor([7.0, 28.0, 0.0]).reshape(1, 1, 1, 3)  # 3 · relu(2x) + x, then relu
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=0)


def test_new_layers_start_as_smp_starts_its_own():
    block = build_network("unet", "resnet18", 1, 2).get_submodule("decoder.blocks.0.conv1")
    weight = block.get_parameter("branch.0.weight")
    bound = (6 / (weight.shape[1] * 9)) ** 0.5  # kaiming_uniform_, fan_in, relu
    assert 0.95 * bound < weight.abs().max() <= bound


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_exportable(name):
    network = build_network(name, "resnet18", 1, 2).eval()
    x = torch.rand(2, 1, 32, 64)
    exported = torch.export.export(network, (x,)).module()
    torch.testing.assert_close(exported(x), network(x))


def test_unknown_encoder_names_the_nearest():
    with pytest.raises(ConfigError, match=r"model\.encoder='resent34'.*'resnet34'.*get_encoder_na"):
        build_network("unet", "resent34", 1, 2)
    with pytest.raises(ConfigError, match=r"model\.encoder='tu-nothing'.*Unknown model"):
        build_network("unet", "tu-nothing", 1, 2)


def test_encoder_that_the_architecture_refuses():
    with pytest.raises(ConfigError, match=r"model\.encoder='mit_b0' can't be used in a unetpluspl"):
        build_network("unetplusplus", "mit_b0", 3, 2)


# --- encoder weights from a file --------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "prefix", "channels"),
    [
        (".safetensors", "", 1),
        (".safetensors", "encoder.", 3),
        (".pth", "", 4),
        (".pt", "encoder.", 1),
    ],
)
def test_file(tmp_path, suffix, prefix, channels):
    given = random_encoder("resnet18")
    state = {prefix + k: v for k, v in given.items()}
    if prefix:
        state["decoder.something"] = torch.ones(1)
    path = tmp_path / f"encoder{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    network = resnet18_network(channels)
    origin = load_encoder_weights(network, "resnet18", channels, str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert origin == f"file encoder{suffix} sha256:{digest[:16]}"
    assert_carries(network.get_submodule("encoder").state_dict(), given, channels)


def test_file_with_torchvision_names(tmp_path):
    given = torchvision.models.resnet34(weights=None).state_dict()
    torch.save(given, tmp_path / "resnet34.pth")
    network = build_network("unetplusplus", "resnet34", 1, 2)
    load_encoder_weights(network, "resnet34", 1, str(tmp_path / "resnet34.pth"))
    given = {k: v for k, v in given.items() if not k.startswith("fc.")}
    assert_carries(network.get_submodule("encoder").state_dict(), given, 1)


def test_file_that_already_has_the_channels(tmp_path):
    given = build_network("unet", "resnet18", 4, 2).state_dict()  # a whole residual network
    save_file(given, tmp_path / "model.safetensors")
    network = build_network("unetplusplus", "resnet18", 4, 3)
    load_encoder_weights(network, "resnet18", 4, str(tmp_path / "model.safetensors"))
    for name, tensor in network.get_submodule("encoder").state_dict().items():
        assert torch.equal(tensor, given[f"encoder.{name}"])


def test_file_may_lack_only_the_batch_counts(tmp_path):
    given = {k: v for k, v in random_encoder("resnet18").items() if "num_batches" not in k}
    path = tmp_path / "encoder.safetensors"
    save_file(given, path)
    network = resnet18_network(3)
    load_encoder_weights(network, "resnet18", 3, str(path))
    del given["bn1.running_mean"]
    given["extra"] = torch.ones(1)
    save_file(given, path)
    with pytest.raises(ConfigError) as caught:
        load_encoder_weights(network, "resnet18", 3, str(path))
    assert "extra is unknown; bn1.running_mean is missing." in str(caught.value)
    assert "num_batches" not in str(caught.value)


def test_file_of_another_encoder(tmp_path):
    save_file(random_encoder("resnet34"), tmp_path / "encoder.safetensors")
    problem = r"layer1\.2\.\S+ is unknown; .*; .* and \d+ more"
    with pytest.raises(ConfigError, match=problem):
        load_encoder_weights(
            resnet18_network(3), "resnet18", 3, str(tmp_path / "encoder.safetensors")
        )


def test_file_with_a_tensor_of_another_shape(tmp_path):
    given = random_encoder("resnet18") | {"layer1.0.conv2.weight": torch.ones(64, 32, 3, 3)}
    save_file(given, tmp_path / "encoder.safetensors")
    network = resnet18_network(3)
    problem = r"layer1\.0\.conv2\.weight has shape \(64, 32, 3, 3\), expected \(64, 64, 3, 3\)\."
    with pytest.raises(ConfigError, match=problem):
        load_encoder_weights(network, "resnet18", 3, str(tmp_path / "encoder.safetensors"))


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_pickled_code_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Bomb()}, "encoder.pth")
    with pytest.raises(ConfigError, match=r"would run code"):
        load_encoder_weights(resnet18_network(3), "resnet18", 3, "encoder.pth")
    assert not Path("exploded").exists()


def test_files_that_hold_no_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = resnet18_network(3)
    torch.save([1, 2], "list.pth")
    torch.save({0: torch.ones(1)}, "numbers.pth")
    Path("junk.safetensors").write_bytes(b"junk")
    Path("junk.pth").write_bytes(b"")
    Path("weights.h5").touch()
    for source, problem in [
        ("list.pth", "no state dict"),
        ("numbers.pth", "no state dict"),
        ("junk.safetensors", "damaged"),
        ("junk.pth", "damaged"),
        ("weights.h5", r"expected a \.safetensors"),
        ("imagnet", "neither auto, imagenet or none nor a file"),
    ]:
        with pytest.raises(ConfigError, match=rf"model\.encoder_weights={source}.*{problem}"):
            load_encoder_weights(network, "resnet18", 3, source)


def test_none_leaves_the_encoder_alone():
    network = resnet18_network(3)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert load_encoder_weights(network, "resnet18", 3, "none") == "none"
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


# --- encoder weights from the hub: a server on loopback, and the absence of one ---------------

RESNET34 = ("smp-hub/resnet34.imagenet", "7a57b34f723329ff020b3f8bc41771163c519d0c")
COMMIT = "0123456789abcdef0123456789abcdef01234567"  # what the branch main of timm's repo is at


@contextlib.contextmanager
def hub_server(repos):
    """Serves {(repo, revision): (commit, {file: bytes})} as the hub does; yields the endpoint."""
    files = {
        f"/{repo}/resolve/{revision}/{name}": (commit, content, hashlib.sha256(content).hexdigest())
        for (repo, revision), (commit, contents) in repos.items()
        for name, content in contents.items()
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            commit, content, digest = files.get(self.path, (None, b"", ""))
            self.send_response(200 if commit else 404)
            self.send_header("Content-Length", str(len(content)))
            if commit:
                self.send_header("ETag", f'"{digest}"')
                self.send_header("X-Repo-Commit", commit)
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(files.get(self.path, (None, b"", ""))[1])

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def mute_server(drip: bool):
    """Accepts connections, then says nothing, or a byte of an endless header now and then."""
    stop = threading.Event()

    def serve(connection):
        with contextlib.suppress(OSError), connection:
            while not stop.wait(0.2):
                if drip:
                    connection.send(b"H")

    def accept(listener):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        stop.set()


def refused_endpoint():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


# loads each encoder:channels:source; prints one line each, saves what the encoder was given
LOADER = """
import sys, time, logging
from safetensors.torch import save_file
from segapp.errors import ConfigError
from segapp.model import build_network, load_encoder_weights
logging.basicConfig(format="%(name)s %(levelname)s %(message)s", level=logging.WARNING)
out, *tasks = sys.argv[1:]
for task in tasks:
    encoder, channels, source = task.split(":")
    network = build_network("unet", encoder, int(channels), 2)
    start = time.monotonic()
    try:
        origin = load_encoder_weights(network, encoder, int(channels), source)
    except ConfigError as error:
        origin = f"ConfigError {error}"
    print(f"{time.monotonic() - start:.2f} {origin}")
    if origin.startswith("imagenet"):
        save_file(network.encoder.state_dict(), f"{out}/{encoder}-{channels}.safetensors")
"""


def load_in_subprocess(tmp_path, endpoint, *tasks):
    """Runs LOADER with the hub's cache under tmp_path; [(seconds, origin)], standard error."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env = {k: v for k, v in ours.items() if not k.lower().endswith("_proxy")}
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    env["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(tmp_path), *tasks],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = (line.split(maxsplit=1) for line in done.stdout.splitlines())
    return [(float(seconds), origin) for seconds, origin in lines], done.stderr


def test_imagenet_weights_from_the_hub_then_from_its_cache(tmp_path):
    given = random_encoder("resnet34")
    save_file(given, tmp_path / "model.safetensors")
    timm_given = timm.create_model("resnet18", num_classes=2).state_dict()
    save_file(timm_given, tmp_path / "timm.safetensors")
    smp_files = {
        "config.json": b"{}",
        "model.safetensors": (tmp_path / "model.safetensors").read_bytes(),
    }
    timm_files = {"model.safetensors": (tmp_path / "timm.safetensors").read_bytes()}
    repos = {
        RESNET34: (RESNET34[1], smp_files),
        ("timm/resnet18.a1_in1k", "main"): (COMMIT, timm_files),
    }
    origin = "imagenet (smp-hub/resnet34.imagenet@7a57b34)"
    timm_origin = "imagenet (timm/resnet18.a1_in1k@0123456)"

    def check(channels):
        state = load_file(tmp_path / f"resnet34-{channels}.safetensors")
        assert_carries(state, given, channels)

    with hub_server(repos) as endpoint:
        results, errors = load_in_subprocess(
            tmp_path,
            endpoint,
            *("resnet34:1:imagenet", "resnet34:3:auto", "resnet34:4:imagenet"),
            *("tu-resnet18:1:auto", "resnet18:3:auto"),
        )
    assert [o for _, o in results[:4]] == [origin, origin, origin, timm_origin]
    assert results[4][1] == "none (the hub answered with status 404)"
    assert all(line.startswith("segapp WARNING") for line in errors.splitlines())
    for channels in (1, 3, 4):
        check(channels)
        (tmp_path / f"resnet34-{channels}.safetensors").unlink()
    timm_given = {f"model.{k}": v for k, v in timm_given.items() if not k.startswith("fc.")}
    timm_state = load_file(tmp_path / "tu-resnet18-1.safetensors")
    assert_carries(timm_state, timm_given, 1, first="model.conv1.weight")

    # the server is gone
    tasks = ("resnet34:1:auto", "tu-resnet18:1:imagenet")
    results, errors = load_in_subprocess(tmp_path, endpoint, *tasks)
    assert [o for _, o in results] == [origin, timm_origin]
    assert errors == ""
    check(1)


def test_unreachable_hubs(tmp_path):
    def load(name, endpoint, *sources):
        folder = tmp_path / name
        folder.mkdir()
        results, errors = load_in_subprocess(
            folder, endpoint, *(f"resnet18:1:{s}" for s in sources)
        )
        seconds, origin = results[0]  # of auto
        assert origin == "none (hub unreachable)", name
        assert seconds < 3.5, name
        assert "segapp WARNING THE ENCODER STARTS FROM RANDOM WEIGHTS" in errors, name
        assert len(errors.splitlines()) == 1, name
        return results

    refused = refused_endpoint()
    with mute_server(drip=False) as mute, mute_server(drip=True) as dripping:
        with ThreadPoolExecutor(2) as pool:  # two at a time, so that their clocks stay fair
            runs = [
                pool.submit(load, "no name", "http://nohost.invalid", "auto"),
                pool.submit(load, "refused", refused, "auto", "imagenet"),
                pool.submit(load, "mute", mute, "auto"),
                pool.submit(load, "dripping", dripping, "auto"),
            ]
        _, with_imagenet, *waited = [run.result() for run in runs]
    assert all(results[0][0] > 2 for results in waited)
    seconds, message = with_imagenet[1]
    assert seconds < 3
    assert message.startswith("ConfigError model.encoder_weights: ")
    for remedy in ("model.encoder_weights=none", "FILE", "HF_HOME", "HF_ENDPOINT", refused):
        assert remedy in message


def test_offline_by_choice(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    network = resnet18_network(1)
    start = time.monotonic()
    origin = load_encoder_weights(network, "resnet18", 1, "auto")
    assert origin == "none (hub unreachable, HF_HUB_OFFLINE is set)"
    with pytest.raises(ConfigError, match="without HF_HUB_OFFLINE=1"):
        load_encoder_weights(network, "resnet18", 1, "imagenet")
    assert time.monotonic() - start < 1


def test_name_resolution_that_hangs(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.getaddrinfo", lambda *a, **k: time.sleep(8))
    network = resnet18_network(1)
    start = time.monotonic()
    origin = load_encoder_weights(network, "resnet18", 1, "auto")
    assert time.monotonic() - start < 3.5
    assert origin == "none (hub unreachable)"


def test_damaged_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    revision = smp.encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]["revision"]
    folder = tmp_path / "models--smp-hub--resnet18.imagenet/snapshots" / revision
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"half a fi")
    problem = "the file in the hub's cache is damaged, delete it"
    assert load_encoder_weights(resnet18_network(1), "resnet18", 1, "auto") == f"none ({problem})"
    with pytest.raises(ConfigError, match=problem):
        load_encoder_weights(resnet18_network(1), "resnet18", 1, "imagenet")


def test_encoder_without_imagenet_weights():
    network = resnet18_network(1)  # stands in for a large one
    encoder = "resnext101_32x48d"
    assert (
        load_encoder_weights(network, encoder, 1, "auto") == "none (there are none from ImageNet)"
    )
    with pytest.raises(ConfigError, match=rf"for {encoder}: there are none from ImageNet"):
        load_encoder_weights(network, encoder, 1, "imagenet")

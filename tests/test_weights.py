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

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

from segapp.errors import ConfigError
from segapp.model import build_network
from segapp.weights import freeze, load_encoder_weights, transfer


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


def test_file_of_a_whole_encoder_for_a_short_one(tmp_path):
    given = random_encoder("resnet18")
    save_file(given, tmp_path / "encoder.safetensors")
    network = build_network("unet", "resnet18", 1, 2, encoder_depth=3)
    load_encoder_weights(network, "resnet18", 1, str(tmp_path / "encoder.safetensors"))
    given = {k: v for k, v in given.items() if not k.startswith(("layer3.", "layer4."))}
    assert_carries(network.get_submodule("encoder").state_dict(), given, 1)


def test_file_of_a_short_encoder_for_a_whole_one(tmp_path):
    given = {k: v for k, v in random_encoder("resnet18").items() if not k.startswith("layer4.")}
    save_file(given, tmp_path / "encoder.safetensors")
    problem = r"layer4\.\S+ is missing; .* and \d+ more"
    with pytest.raises(ConfigError, match=problem):
        load_encoder_weights(
            resnet18_network(3), "resnet18", 3, str(tmp_path / "encoder.safetensors")
        )


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
from segapp.model import build_network
from segapp.weights import load_encoder_weights
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_offline_by_choice(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    network = resnet18_network(1)
    start = time.monotonic()
    origin = load_encoder_weights(network, "resnet18", 1, "auto")
    assert origin == "none (hub unreachable, HF_HUB_OFFLINE is set)"
    assert "HF_HUB_OFFLINE is set. To start from pretrained ones: set " in caplog.text
    assert "encoder_weights=none" not in caplog.text, "that is what happens already"
    with pytest.raises(ConfigError, match="without HF_HUB_OFFLINE=1"):
        load_encoder_weights(network, "resnet18", 1, "imagenet")
    assert time.monotonic() - start < 1


@pytest.mark.slow
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


# --- a whole model -----------------------------------------------------------------------------

CLASSES = ["background", "liver", "tumour"]


def model_of(classes, channels=1, name="unet", seed=0):
    torch.manual_seed(seed)
    return build_network(name, "resnet18", channels, len(classes), residual=name == "unet").eval()


def arrays(network):
    """As `read_weights` gives them: a scalar comes back as an array of one."""
    state = network.state_dict().items()
    return {k: np.ascontiguousarray(v.numpy()).copy() for k, v in state}


def logits(network, channels=1):
    x = torch.rand(1, channels, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network(x)


@pytest.mark.parametrize("name", ["unet", "segformer"])
def test_the_same_classes_give_the_same_logits(name):
    old, new = model_of(CLASSES, name=name), model_of(CLASSES, name=name, seed=1)
    assert not torch.equal(logits(new), logits(old))
    assert transfer(new, arrays(old), CLASSES, CLASSES, 1) == CLASSES
    assert torch.equal(logits(new), logits(old))
    assert all(torch.equal(v, old.state_dict()[k]) for k, v in new.state_dict().items())


def test_classes_in_another_order_give_logits_in_that_order():
    old, new = model_of(CLASSES), model_of(CLASSES, seed=1)
    order = ["background", "tumour", "liver"]
    assert transfer(new, arrays(old), CLASSES, order, 1) == order
    torch.testing.assert_close(logits(new), logits(old)[:, [0, 2, 1]])


def test_new_classes_start_afresh_beside_the_old_ones():
    old, order = model_of(CLASSES), ["background", "spleen", "tumour", "kidney"]
    new = model_of(order, seed=1)
    fresh = new.get_parameter("segmentation_head.0.weight").detach().clone()
    assert transfer(new, arrays(old), CLASSES, order, 1) == ["background", "tumour"]
    torch.testing.assert_close(logits(new)[:, [0, 2]], logits(old)[:, [0, 2]])
    assert torch.equal(new.get_parameter("segmentation_head.0.weight")[[1, 3]], fresh[[1, 3]])


def test_as_many_classes_of_other_names_keep_none_but_the_background():
    old, new = model_of(CLASSES), model_of(CLASSES, seed=1)
    fresh = new.get_parameter("segmentation_head.0.weight").detach().clone()
    order = ["background", "spleen", "kidney"]
    assert transfer(new, arrays(old), CLASSES, order, 1) == ["background"]
    assert torch.equal(new.get_parameter("segmentation_head.0.weight")[1:], fresh[1:])


def test_a_first_convolution_of_other_channels_is_adapted():
    old, new = model_of(CLASSES), model_of(CLASSES, channels=3, seed=1)
    transfer(new, arrays(old), CLASSES, CLASSES, 3)
    x = torch.rand(1, 1, 64, 64)
    with torch.no_grad():  # three times the one channel: the same answer
        torch.testing.assert_close(new(x.expand(-1, 3, -1, -1)), old(x), rtol=1e-3, atol=1e-3)


def test_a_model_of_another_architecture_does_not_fit():
    old, new = model_of(CLASSES, name="fpn"), model_of(CLASSES)
    before = logits(new)
    problem = r"model\.init_from doesn't fit the network: decoder\.\S+ is unknown; .* and \d+ more"
    with pytest.raises(ConfigError, match=problem):
        transfer(new, arrays(old), CLASSES, CLASSES, 1)
    assert torch.equal(logits(new), before)


def test_a_model_with_a_tensor_of_another_shape_does_not_fit():
    given = arrays(model_of(CLASSES))
    given["decoder.blocks.4.conv1.first.0.weight"] = np.zeros((8, 32, 3, 3), np.float32)
    problem = r"first\.0\.weight has shape \(8, 32, 3, 3\), expected \(16, 32, 3, 3\)\."
    with pytest.raises(ConfigError, match=problem):
        transfer(model_of(CLASSES), given, CLASSES, CLASSES, 1)


# --- freezing ----------------------------------------------------------------------------------


def test_a_frozen_encoder_stays_as_it_is_until_it_is_freed():
    network = model_of(CLASSES)
    encoder = network.get_submodule("encoder")

    def changed(frozen):
        """Names in the network's state that one step changes."""
        before = {k: v.clone() for k, v in network.state_dict().items()}
        network.train()
        freeze(encoder, frozen)
        optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.1)
        network(torch.rand(2, 1, 64, 64)).square().mean().backward()
        optimiser.step()
        return {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}

    while_frozen = changed(True)
    assert {name.partition(".")[0] for name in while_frozen} == {"decoder", "segmentation_head"}
    in_encoder = {f"encoder.{name}" for name in encoder.state_dict()}
    assert in_encoder <= changed(False)
    assert network.get_submodule("decoder").training

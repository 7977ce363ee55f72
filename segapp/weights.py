"""What a network starts from: an encoder's pretrained weights, or a whole model's; and freezing."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub as hub
import numpy as np
import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from safetensors.torch import load_file
from torch import Tensor, nn

from segapp.errors import ConfigError
from segapp.files import sha256

log = logging.getLogger("segapp")


def load_encoder_weights(network: nn.Module, encoder: str, in_channels: int, source: str) -> str:
    """Loads pretrained weights into `network.encoder`; returns what the model file records.

    source: `none`; `imagenet`, from the hub's cache or the hub; `auto`, the same, but within 3
    seconds of an unreachable hub it warns and leaves the encoder as it is; or the path of a
    .safetensors or .pth file with the encoder's, a whole smp model's or torchvision's names. A
    first convolution of other channels is adapted as smp does. Raises ConfigError.
    """
    if source == "none":
        return "none"
    if source in ("auto", "imagenet"):
        try:
            # auto's limit leaves half a second of the promised three for starting the client
            state, origin = _read_pretrained(encoder, in_channels, 2.5 if source == "auto" else 10)
        except _NoPretrainedError as error:
            if source == "imagenet":
                raise
            log.warning(
                "THE ENCODER STARTS FROM RANDOM WEIGHTS and will need more data and time. "
                "%s: no pretrained weights for %s: %s. To start from pretrained ones: %s.",
                *("model.encoder_weights", encoder, error.reason, error.ways),
            )
            return f"none ({error.reason})"
    else:
        state, origin = _read_weights_file(Path(source))
    _load_state(network.get_submodule("encoder"), state, in_channels, origin)
    return origin


class _NoPretrainedError(ConfigError):
    def __init__(self, reason: str, encoder: str, repo: str | None = None):
        self.reason = reason
        ways = "set model.encoder_weights to a .safetensors or .pth FILE of its weights"
        if repo:
            ways += (
                f", or bring {repo} to the hub's cache ({hub.constants.HF_HUB_CACHE}, moved by "
                f"HF_HOME), or point HF_ENDPOINT (now {hub.constants.ENDPOINT}) at a mirror, "
                "without HF_HUB_OFFLINE=1"
            )
        self.ways = ways
        super().__init__(
            f"model.encoder_weights: no pretrained weights for {encoder}: {reason}. Remedies: "
            f"{ways}; or do without them: model.encoder_weights=none."
        )


def _read_pretrained(
    encoder: str, in_channels: int, limit_s: float
) -> tuple[dict[str, Tensor], str]:
    """State dict of the encoder's ImageNet weights, from the cache or the hub, and their origin."""
    if encoder.startswith("tu-"):
        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        repo, revision = config.hf_hub_id if config else None, None
    else:
        config = smp.encoders.encoders[encoder]["pretrained_settings"].get("imagenet", {})
        repo, revision = config.get("repo_id"), config.get("revision")
    if not repo:
        raise _NoPretrainedError("there are none from ImageNet", encoder)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hub.utils.disable_progress_bars()
        hub.logging.set_verbosity_error()
        # hf_hub_download(local_files_only=True) would ask the hub who is calling, patiently
        path = hub.try_to_load_from_cache(repo, "model.safetensors", revision=revision)
        if not isinstance(path, str):
            reason = _why_unreachable(repo, revision, limit_s)
            if reason:
                raise _NoPretrainedError(reason, encoder, repo)
            log.info("Downloading %s from %s", repo, hub.constants.ENDPOINT)
            try:
                path = hub.hf_hub_download(repo, "model.safetensors", revision=revision)
            except Exception as error:  # any of two HTTP clients', the disk's, the protocol's
                log.info("Download of %s failed: %s", repo, error)
                raise _NoPretrainedError("the download failed", encoder, repo) from error
        try:
            if encoder.startswith("tu-"):  # timm maps its files to its modules and channels itself
                overlay = {"file": path}
                donor = smp.encoders.get_encoder(
                    encoder, in_channels, weights=True, pretrained_cfg_overlay=overlay
                )
                state = donor.state_dict()
            else:
                state = load_file(path)
        except Exception as error:  # a damaged file fails in as many ways as there are bytes
            log.info("%s: %s", path, error)
            raise _NoPretrainedError(
                "the file in the hub's cache is damaged, delete it", encoder, repo
            ) from error
    return state, f"imagenet ({repo}@{Path(path).parent.name[:7]})"


def _why_unreachable(repo: str, revision: str | None, limit_s: float) -> str:
    """Asks the hub for a file's metadata; "" if it answers, else why not, after `limit_s` at most.

    The client's own timeouts don't cover name resolution, nor an answer that trickles in; hence a
    thread that is left behind. Its retries, some 24 s, are the download's and not this request's.
    """
    outcome = ["hub unreachable"]

    def ask() -> None:
        try:
            url = hub.hf_hub_url(repo, "model.safetensors", revision=revision)
            hub.get_hf_file_metadata(url, timeout=limit_s)
            outcome[0] = ""
        except OfflineModeIsEnabled:
            outcome[0] = "hub unreachable, HF_HUB_OFFLINE is set"
        except HfHubHTTPError as error:
            outcome[0] = f"the hub answered with status {error.response.status_code}"
        except Exception as error:  # recorded: the thread must not print a traceback
            log.debug("The hub can't be reached: %r", error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(limit_s)
    return outcome[0]


def _read_weights_file(path: Path) -> tuple[dict[str, Tensor], str]:
    """State dict of an encoder from a local file, and what the model file records about it."""
    key = f"model.encoder_weights={path}"
    if not path.is_file():
        raise ConfigError(f"{key} is neither auto, imagenet or none nor a file that exists.")
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ConfigError(f"{key}: expected a .safetensors, .pth or .pt file.")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise ConfigError(
            f"{key} can't be read: it is damaged, or holds more than tensors, which would run code "
            "when opened. Save the encoder's state dict alone, best as .safetensors."
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise ConfigError(f"{key} holds no state dict (names → tensors). Save that alone.")
    if any(name.startswith("encoder.") for name in state):  # a whole smp model
        state = {k.removeprefix("encoder."): v for k, v in state.items() if k[:8] == "encoder."}
    return dict(state), f"file {path.name} sha256:{sha256(path)[:16]}"


def transfer(
    network: nn.Module,
    weights: dict[str, np.ndarray],
    old_classes: Sequence[str],
    new_classes: Sequence[str],
    in_channels: int,
) -> list[str]:
    """Loads a whole model's weights into `network`; returns the classes that kept theirs.

    weights: as `read_weights` gives them, of the same architecture. A class that the model has
    under the same name gets its outputs; others stay as they are. A first convolution of other
    channels than `in_channels` is adapted as smp does. Raises ConfigError where anything else
    differs; the network is then as it was.
    """
    expected = network.state_dict()
    state = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
    for name, fresh in expected.items():
        given = state.get(name)
        if given is None:
            continue
        if fresh.ndim == 0 and given.numel() == 1:  # model files hold a scalar as an array of one
            state[name] = given.reshape(())
        elif "segmentation_head." in name and given.shape == (len(old_classes), *fresh.shape[1:]):
            state[name] = fresh.clone()
            for index, class_name in enumerate(new_classes):
                if class_name in old_classes:
                    state[name][index] = given[list(old_classes).index(class_name)]
    _adapt_first_convolutions(network, state, in_channels)
    problems = _misfits(state, expected)
    if problems:
        raise ConfigError(
            f"model.init_from doesn't fit the network: {problems}. Set model.architecture, encoder,"
            " encoder_depth, residual, full_resolution and separable as that model has them."
        )
    network.load_state_dict(state)
    return [name for name in new_classes if name in old_classes]


def hold_zeros(network: nn.Module) -> None:
    """Keep the convolutions' weights that are zero at zero: they get no gradient, so no step."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            # looked at in each step, as a resumed run gets its weights later
            layer.weight.register_hook(lambda g, weight=layer.weight: g * (weight.detach() != 0))


def freeze(module: nn.Module, frozen: bool) -> None:
    """Whether training leaves `module` as it is: no gradients, no new statistics, nothing dropped.

    network.train() undoes the latter two: call this after it.
    """
    module.requires_grad_(not frozen)
    if frozen:
        module.eval()


def _load_state(module: nn.Module, state: dict[str, Tensor], in_channels: int, origin: str) -> None:
    """Loads `state` into an encoder, but for stages that were left out of it (see encoder_depth);
    only BatchNorm's num_batches_tracked may be missing."""
    _adapt_first_convolutions(module, state, in_channels)
    left_out = tuple(f"{n}." for n, m in module.named_children() if isinstance(m, nn.Identity))
    state = {k: v for k, v in state.items() if not k.startswith(left_out)}
    try:
        module.load_state_dict(state)  # smp's encoders drop the classifier's keys from `state`
    except RuntimeError as error:
        counts = "num_batches_tracked"
        given = {k: v for k, v in state.items() if not k.endswith(counts)}
        expected = {k: v for k, v in module.state_dict().items() if not k.endswith(counts)}
        raise ConfigError(
            f"model.encoder_weights ({origin}) doesn't fit model.encoder: "
            f"{_misfits(given, expected) or error}."
        ) from error


def _misfits(given: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """In words, in which names and shapes two state dicts differ; "" if in none."""
    problems = [f"{k} is unknown" for k in given if k not in expected]
    problems += [f"{k} is missing" for k in expected if k not in given]
    problems += [
        f"{k} has shape {tuple(given[k].shape)}, expected {tuple(v.shape)}"
        for k, v in expected.items()
        if k in given and given[k].shape != v.shape
    ]
    return "; ".join(problems[:3]) + (f" and {len(problems) - 3} more" if problems[3:] else "")


def _adapt_first_convolutions(
    module: nn.Module, state: dict[str, Tensor], in_channels: int
) -> None:
    """Changes the weights in `state` of the convolutions that read the network's input."""
    for name, conv in module.named_modules():
        weight = state.get(f"{name}.weight")
        reads_input = isinstance(conv, nn.Conv2d) and conv.in_channels == in_channels
        if reads_input and conv.groups == 1 and weight is not None and weight.ndim == 4:
            state[f"{name}.weight"] = _adapt_input_channels(weight, in_channels)


def _adapt_input_channels(weight: Tensor, channels: int) -> Tensor:
    """(out, c, h, w) → (out, channels, h, w), answering alike to alike channels.

    As smp's patch_first_conv: one channel gets the sum, others repeat the given ones, scaled.
    """
    given = weight.shape[1]
    if given == channels:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(channels) % given] * (given / channels)

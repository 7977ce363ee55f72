"""The torch engine: the network as it was trained, on a CPU or a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from segapp.ahead import processors
from segapp.checkpoint import ModelInfo, model_path, read_weights
from segapp.engines import slices_at_once
from segapp.errors import ConfigError, ModelFileError
from segapp.model import build_network, narrow
from segapp.ranks import this_process

# Slices a batch. Four are an eighth faster on a CPU, but a single image would pay for all of them.
_BATCH_SIZE = {"cpu": 1, "cuda": 8}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """Runs a live network. `precision` is what autocast computes in; logits come back as float32.

    The network is put into evaluation mode at each call, so that training can validate with it.
    """

    def __init__(self, network: nn.Module, device: torch.device, precision: str = "fp32"):
        self.network = network
        self.device = device
        self.precision = precision
        self.dtype = _DTYPES[precision]
        self.batch_size = _BATCH_SIZE.get(device.type, 1)
        self.calls_at_once = 1  # torch has threads of its own

    @torch.inference_mode()
    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """(n, C, H, W) float32 → logits (n, classes, H, W) float32."""
        self.network.eval()
        missing = slices_at_once(self, *batch.shape[2:]) - len(batch)
        full = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch
        x = torch.from_numpy(full).to(self.device, memory_format=torch.channels_last)
        lower = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype if lower else None, enabled=lower):
            logits = self.network(x)
        return logits[: len(batch)].float().contiguous().cpu().numpy()


def load_torch_engine(model: Path, info: ModelInfo, device: str = "auto") -> TorchEngine:
    """The network of a model file on a device. Raises ModelFileError; ConfigError for a device
    that isn't there."""
    where = choose_device(device)
    if this_process().local_count > 1 and where.type == "cpu":
        torch.set_num_threads(processors())  # torchrun's default is one, the others' all
    network = load_network(model, info)
    network = network.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained_in = info.settings.get("train", {}).get("precision")
    precision = choose_precision("auto", where)
    if trained_in == "fp32" or (precision == "fp16" and trained_in != "fp16"):
        precision = "fp32"  # fp16 overflows where a network never had to stay in its range
    return TorchEngine(network, where, precision)


def load_network(model: Path, info: ModelInfo) -> nn.Module:
    """Build the network that a model file describes and load its weights.

    Raises ModelFileError where weights don't fit the architecture.
    """
    network = build_network(**info.architecture.model_dump())
    arrays = read_weights(model)
    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    try:
        if info.pruned:
            narrow(network, arrays, info.architecture.in_channels)
        network.load_state_dict(weights)
    except (RuntimeError, IndexError) as error:
        raise ModelFileError(
            f"{model_path(model)}: its weights do not fit the network it describes"
        ) from error
    return network


def choose_device(device: str) -> torch.device:
    """auto: CUDA where there is one. Of several processes on a machine each takes a GPU of its own
    for auto and cuda, as far as there are enough. Raises ConfigError for a device that can't be
    used."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        ranks = this_process()
        own = f":{ranks.local % torch.cuda.device_count()}" if ranks.count > 1 else ""
        return torch.device(f"cuda{own}")
    if device == "auto":
        return torch.device("cpu")
    try:
        where = torch.device(device)
        torch.zeros(1, device=where).item()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"--device {device}: not available here; use cpu, cuda, cuda:N or auto"
        ) from error
    return where


def choose_precision(
    precision: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device
) -> Literal["fp32", "bf16", "fp16"]:
    """auto: bf16 where the hardware computes in it, fp16 on older GPUs, else fp32.

    Raises ConfigError for fp16 on a CPU, whose kernels are missing or slow.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("train.precision=fp16 needs a GPU; use bf16, fp32 or auto on a CPU")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if has_native_bf16() else "fp32"


def has_native_bf16() -> bool:
    """Whether this CPU multiplies in bfloat16 itself (AVX512_BF16 or AMX). Emulation is slow."""
    if not hasattr(torch.cpu, "get_capabilities"):  # torch 2.10
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))

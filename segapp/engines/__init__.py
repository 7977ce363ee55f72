"""What runs a network: NumPy in, NumPy out, whatever is behind it."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from segapp.ahead import processors
from segapp.checkpoint import ModelInfo, model_path
from segapp.errors import ConfigError, ModelFileError
from segapp.exported import NETWORKS, ExportRecord, is_exported, read_export
from segapp.files import sha256

log = logging.getLogger("segapp")
# OpenVINO and NNCF report their use to their maker through this module, and do without it
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

EngineChoice = Literal["auto", "torch", "openvino", "onnx"]
EXPORTED_NAME = "openvino"  # folder of a run that holds its export
_PIXELS = 1 << 20  # at once: the default network holds some 0.4 kB for each, in bf16
_PACKAGES = {"openvino": "openvino", "onnx": "onnxruntime", "prune": "torch_pruning"}
_DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


class Engine(Protocol):
    """Runs batches of up to `batch_size` slices, of fewer where these are large.

    A slice's result never depends on what shares its batch, or on how much does: an engine whose
    kernels depend on the batch's size fills it up to a constant one (kernels are chosen by shape,
    and sums by kernel).

    calls_at_once: so many threads may call it at the same time, and are faster so.
    precision: what it computes in, fp32, bf16 or fp16.
    """

    batch_size: int
    calls_at_once: int
    precision: str

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """(n, C, H, W) float32 → logits (n, classes, H, W) float32."""
        ...


def slices_at_once(engine: Engine, rows: int, columns: int) -> int:
    """Slices that go through an engine at once: its number, less where they are large. It depends
    on their size alone, so that no result depends on the others."""
    return max(1, min(engine.batch_size, _PIXELS // (rows * columns)))


def load_engine(
    model: Path,
    info: ModelInfo,
    device: str = "auto",
    engine: EngineChoice = "auto",
    single: bool = False,
) -> Engine:
    """The engine of a model; imports torch only where that is the engine.

    auto: an exported folder is run by what it was exported for. So is a run folder with an export
    of its model in it, where the device is no GPU and OpenVINO is installed. Else torch.
    single: there is one slice to segment, which then gets all threads. Raises ModelFileError,
    ConfigError.
    """
    found = _export_of(model, device, engine)
    if found:
        return open_export(*found, precision_for(info), single)
    from segapp.engines.shared import SharedBatches
    from segapp.engines.torch import load_torch_engine

    loaded = load_torch_engine(model, info, device)
    return SharedBatches(loaded) if loaded.batch_size > 1 else loaded


def _export_of(model: Path, device: str, engine: EngineChoice) -> tuple[Path, ExportRecord] | None:
    """The exported folder to run, verified; None for torch. Raises ConfigError, ModelFileError."""
    if is_exported(model):
        record = read_export(model)
        if engine not in ("auto", record.engine):
            raise ConfigError(f"--engine {engine}: {model} was exported for {record.engine}")
        if device not in ("auto", "cpu"):
            raise ConfigError(f"--device {device}: exports run on the CPU")
        return model, record
    beside = (model if model.is_dir() else model.parent) / EXPORTED_NAME
    usable = is_exported(beside) and device in ("auto", "cpu")
    if engine == "torch" or (engine == "auto" and not usable):
        return None
    if engine == "auto" and not (find_spec("openvino") and (device == "cpu" or not _has_gpu())):
        return None
    if engine == "onnx" or not usable:
        raise ConfigError(
            f"--engine {engine}: export the model first (segapp export {model} --to {engine} "
            "--out DIR) and give DIR as the model; exports run on the CPU"
        )
    try:
        record = read_export(beside)
        if record.source != sha256(model_path(model)):
            raise ModelFileError(f"{beside}: is of another model file; export the model again")
        return beside, record
    except ModelFileError as error:
        if engine == "openvino":
            raise
        log.warning("%s. It is not used", error)
        return None


def require_installed(engine: str, what: Path | str, also: tuple[str, ...] = ()) -> None:
    """Raises ConfigError where what runs an engine's networks is missing, or another package that
    `what` needs."""
    for package in (_PACKAGES[engine], *also):
        if find_spec(package) is None:
            extra = f'pip install "segapp[{engine}]"'
            raise ConfigError(f"{what}: needs {package}, which is missing: {extra}")


def can_export(engine: str, what: str = "train.export") -> bool:
    """Whether an engine's exports can be made; where not, a warning for `what` says so: a model is
    worth having without."""
    try:
        require_installed(engine, f"{what}={engine}")
    except ConfigError as error:
        log.warning("%s", error)
        return False
    return True


def _has_gpu() -> bool:
    """Whether torch finds a GPU; asked only where there is a driver, as torch takes seconds."""
    if sys.platform == "linux" and not any(Path(path).exists() for path in _DRIVERS):
        return False
    from segapp.engines.torch import choose_device

    return choose_device("auto").type != "cpu"


def precision_for(info: ModelInfo) -> Literal["fp32", "auto"]:
    """What an export is computed in: fp32 where the network never had to do with less."""
    return "fp32" if info.settings.get("train", {}).get("precision") == "fp32" else "auto"


def open_export(
    folder: Path, record: ExportRecord, precision: str = "auto", single: bool = False
) -> Engine:
    """The engine of an exported folder. precision: fp32, or auto: bf16 where the processor computes
    in it. Raises ConfigError where what runs it is not installed; ModelFileError."""
    require_installed(record.engine, folder)
    network = folder / NETWORKS[record.engine][0]
    if record.engine == "onnx":
        from segapp.engines.onnx import OnnxEngine

        engine = OnnxEngine.load(network)
    else:
        from segapp.engines.openvino import OpenVinoEngine

        engine = OpenVinoEngine.load(network, precision, 1 if single else processors())
    engine.exported = record.model_dump_json()
    return engine

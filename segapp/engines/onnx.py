"""The ONNX Runtime engine: an exported network on the CPU, without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from segapp.ahead import processors
from segapp.errors import ModelFileError
from segapp.ranks import this_process


class OnnxEngine:
    """Runs slices one by one, each on all threads, in float32 but for quantised layers."""

    batch_size = 1
    exported = ""  # what the exported folder says of itself, where it is of one
    calls_at_once = 1
    precision = "fp32"

    def __init__(self, session: ort.InferenceSession):
        self._session = session
        self._input = session.get_inputs()[0].name

    @classmethod
    def load(cls, network: Path | bytes) -> OnnxEngine:
        """The engine of an .onnx file or of what it holds. Raises ModelFileError."""
        options = ort.SessionOptions()
        if this_process().local_count > 1:  # else its own choice, which also binds them
            options.intra_op_num_threads = processors()
        try:
            session = ort.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have nothing but Exception in common
            what = network if isinstance(network, Path) else "the network"
            raise ModelFileError(f"{what}: ONNX Runtime can't run it") from error
        return cls(session)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """(n, C, H, W) float32 → logits (n, classes, H, W) float32."""
        return np.asarray(self._session.run(None, {self._input: batch})[0])

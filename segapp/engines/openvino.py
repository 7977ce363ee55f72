"""The OpenVINO engine: an exported network on the CPU, without torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

import numpy as np
import openvino as ov

from segapp.ahead import processors
from segapp.errors import ModelFileError
from segapp.ranks import this_process

_FIRST_CALL = Lock()
_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoEngine:
    """Runs slices one by one, on as many at once as there are streams.

    A stream has threads of its own, so that several slices at once take less time than one after
    the other; with one stream a slice has all threads.
    """

    batch_size = 1
    exported = ""  # what the exported folder says of itself, where it is of one

    def __init__(self, compiled: ov.CompiledModel, precision: str = "fp32", streams: int = 1):
        self.precision = precision
        self.calls_at_once = streams
        self._has_run = False
        self._requests: SimpleQueue[ov.InferRequest] = SimpleQueue()
        for _ in range(streams):
            self._requests.put(compiled.create_infer_request())

    @classmethod
    def load(
        cls, network: Path | ov.Model, precision: str = "auto", streams: int = 1
    ) -> OpenVinoEngine:
        """The engine of a .xml file or a graph. precision: bf16, fp32, or auto: bf16 where the
        processor computes in it. Raises ModelFileError for what OpenVINO can't read."""
        core, has_bf16 = _core()
        if precision == "auto":
            precision = "bf16" if has_bf16 else "fp32"
        settings = {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": max(streams, processors()),
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
        }
        if this_process().local_count > 1:  # all would bind themselves to the same processors
            settings["ENABLE_CPU_PINNING"] = False
        try:
            return cls(core.compile_model(network, "CPU", settings), precision, streams)
        except RuntimeError as error:
            raise ModelFileError(f"{network}: OpenVINO can't run it") from error

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """(n, C, H, W) float32 → logits (n, classes, H, W) float32; for several threads at once."""
        if self._has_run:
            return self._infer(batch)
        # OpenVINO's binding sets itself up in the first call, where two threads wait for each other
        with _FIRST_CALL:
            logits = self._infer(batch)
        self._has_run = True
        return logits

    def _infer(self, batch: np.ndarray) -> np.ndarray:
        request = self._requests.get()
        try:
            request.infer([np.ascontiguousarray(batch)], share_inputs=True, share_outputs=True)
            return request.get_output_tensor(0).data.astype(np.float32)  # a copy: it is used again
        finally:
            self._requests.put(request)


@cache
def _core() -> tuple[ov.Core, bool]:
    """OpenVINO, and whether this processor computes in bf16.

    One for as long as the process lives: its CPU plugin gives the thread that loads it a stack for
    signals, and frees that whichever thread unloads it; the next signal then ends the process.
    """
    core = ov.Core()
    return core, "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")

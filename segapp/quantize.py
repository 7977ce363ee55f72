"""Networks with 8-bit weights and activations: NNCF's post-training quantisation."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np

from segapp import metrics
from segapp.cases import Case
from segapp.check import read_case
from segapp.checkpoint import ModelInfo
from segapp.engines import Engine
from segapp.errors import ConfigError, DataError, ScanError
from segapp.evaluate import evaluate_cases
from segapp.predict import Predictor
from segapp.preprocess import Preprocessing
from segapp.scan import Scan
from segapp.selection import spread_over
from segapp.validation import every_nth, slice_direction

log = logging.getLogger("segapp")

MIOU_LOSS = 0.005  # of the cases that a network is quantised on
_SLICES = 300  # whose activations are seen: NNCF's default
_BYTES = 1 << 28  # that they may take
_CASES = 24  # labelled cases that mIoU is measured on


def quantize(
    graph: Any,
    make_engine: Callable[[Any], Engine],
    info: ModelInfo,
    cases: Sequence[Case],
    input_name: str = "",
) -> Any:
    """A graph with 8-bit weights and activations, whose ranges are seen on `cases`.

    graph: OpenVINO's, or ONNX's with the name of its input. make_engine: runs it, or what is
    compiled of it. Where 8 bits lose more than 0.005 of the cases' mIoU, the layers that lose most
    stay in float, in OpenVINO. Raises ConfigError where NNCF is not installed, DataError where no
    case can be read.
    """
    try:
        import nncf
    except ImportError as error:
        raise ConfigError('--int8 needs NNCF: pip install "segapp[openvino]"') from error
    # nncf.set_log_level would silence the handlers of its logger too, which may be anybody's
    logging.getLogger("nncf").setLevel(logging.ERROR)
    few = spread_over(cases, _CASES)

    def miou(network: Any, cases: Iterable[Any] = few) -> tuple[float, list[float]]:
        result = evaluate_cases(
            *(Predictor.of(make_engine(network), info), cases, info.ignore, info.merged),
            read=lambda case: few_slices(*read_case(case), info.preprocessing),
        )
        return result.miou, [metrics.mean_iou(r.matrix) for r in result.cases]

    inputs = network_inputs(info.preprocessing, cases)
    log.info("8 bits: ranges are taken from %d slices", len(inputs))
    seen = nncf.Dataset(inputs, (lambda x: {input_name: x}) if input_name else None)
    with redirect_stdout(StringIO()):  # where NNCF draws bars
        # the slower correction of biases: half a minute more for a U-Net, and less error; of ONNX
        # graphs it makes some that can't be loaded (NNCF 3.4)
        how = {"subset_size": _SLICES, "fast_bias_correction": bool(input_name)}
        plain = nncf.quantize(graph, seen, **how)
        lost = miou(graph)[0] - miou(plain)[0]
        if input_name or not lost > MIOU_LOSS:
            return plain
        log.info("8 bits cost %.4f of mIoU; looking for the layers that lose most", lost)
        return nncf.quantize_with_accuracy_control(
            *(graph, seen, nncf.Dataset(few)),
            validation_fn=miou,
            max_drop=MIOU_LOSS,
            **how,
        )


def network_inputs(preprocessing: Preprocessing, cases: Sequence[Case]) -> list[np.ndarray]:
    """Single slices as the network sees them, spread over the cases: (1, inputs, H, W) each."""
    inputs: list[np.ndarray] = []
    taken = spread_over(cases, _SLICES)
    error = None
    for case in taken:
        try:
            prepared = preprocessing.prepare(read_case(case)[0])
        except ScanError as e:
            error = e
            continue
        each = math.ceil(len(prepared) * len(taken) / _SLICES)
        inputs += [prepared.network_input(k, k + 1) for k in range(each // 2, len(prepared), each)]
        if sum(x.nbytes for x in inputs) > _BYTES:
            break
    if not inputs:
        raise DataError(f"none of the {len(taken)} cases can be read: {error}")
    return inputs


def few_slices(
    scan: Scan, mask: Scan, preprocessing: Preprocessing, most: int = 8
) -> tuple[Scan, Scan]:
    """A volume and its mask thinned out to about `most` slices; whole where the network looks at
    neighbours."""
    along = slice_direction(scan, preprocessing.slice_axis)
    step = 1 if preprocessing.context else math.ceil(scan.shape[along] / most)
    return every_nth(scan, along, step), every_nth(mask, along, step)

"""A model file → a folder for another engine, and the proof that both segment alike."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from segapp import metrics
from segapp.card import card_text
from segapp.cases import Case, find_cases
from segapp.check import read_case
from segapp.checkpoint import INFO_NAME, ModelInfo, model_path, read_info
from segapp.engines import EXPORTED_NAME, Engine, open_export, precision_for, require_installed
from segapp.engines.torch import TorchEngine, load_network, load_torch_engine
from segapp.errors import ConfigError, DataError, ModelFileError, OutputError, SegappError
from segapp.evaluate import evaluate_cases
from segapp.exported import (
    NETWORKS,
    EngineName,
    ExportRecord,
    Parity,
    holds_nothing_else,
    is_exported,
    read_export,
    write_sums,
)
from segapp.files import sha256, write_text
from segapp.formats.quiet import without_warnings
from segapp.predict import Predictor
from segapp.quantize import MIOU_LOSS, few_slices, quantize
from segapp.resample import resize
from segapp.scan import Scan, Segmentation
from segapp.selection import spread_over

log = logging.getLogger("segapp")

_CPU = torch.device("cpu")
_AGREEMENT = {"fp32": 0.999, "int8": 0.99}  # of the labels
_AS_RUN = 0.99  # where this machine computes in bf16
_CASES, _SLICES = 24, 8  # labelled cases that parity is measured on, and slices of a volume
_WRITERS = {"openvino": (), "onnx": ("onnx", "onnxscript")}  # packages beside the engine
_SYNTHETIC = ((256, 256), (200, 312), (64, 96), (384, 384), (320, 256), (256, 192))


def export_model(
    model: Path,
    out: Path,
    to: EngineName = "openvino",
    int8: bool = False,
    calibrate: Path | None = None,
    unequal: bool = False,
) -> ExportRecord:
    """Write a model for another engine into the folder `out`, which must be new or an export.

    int8: weights and activations are quantised (NNCF), with ranges seen on cases of the data set
    `calibrate`; where that costs more than 0.005 of mIoU, layers go back to float until it does
    not. The export must segment as the model file does: 99.9 % of the voxels alike (int8: 99 %, or
    at most 0.005 of mIoU lost), on cases of `calibrate` or on synthetic scans. unequal: write it
    even where it does not. Raises ConfigError, DataError, ModelFileError, OutputError.
    """
    if int8 and calibrate is None:
        raise ConfigError("--int8 needs --calibrate DATA, cases to take the network's ranges from")
    require_installed(to, f"--to {to}", also=_WRITERS[to])
    out = out.resolve()
    if out.exists() and not (out.is_dir() and holds_nothing_else(out)):
        raise OutputError(f"{out}: exists and is not just an export; choose another folder")
    info = read_info(model)
    cases = _labelled(calibrate, info) if calibrate else ()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as temporary:
        folder = Path(temporary) / "export"
        folder.mkdir()
        _write_network(folder, to, model, info, cases if int8 else ())
        write_text(folder / INFO_NAME, info.model_dump_json(indent=2) + "\n")
        precision = "int8" if int8 else "fp32"
        record = ExportRecord(engine=to, precision=precision, source=sha256(model_path(model)))
        record.parity = parity(model, folder, record, cases, calibrate)
        if not unequal:
            _require_equal(record, model)
        write_sums(folder, record, card_text(info) + _export_text(record))
        if out.exists():
            out.replace(Path(temporary) / "old")
        folder.replace(out)
    return record


def export_beside(run: Path) -> Path:
    """The export of a run's model in the run's own folder, written where there is none of it.
    Raises what `export_model` raises."""
    out = run / EXPORTED_NAME
    try:
        if is_exported(out) and read_export(out).source == sha256(model_path(run)):
            return out
    except ModelFileError:
        log.warning("%s: damaged, and written anew", out)
    log.info("parity: %s", export_model(run, out).parity)
    return out


def _labelled(data: Path, info: ModelInfo) -> tuple[Case, ...]:
    """Cases of a data set that have a mask: train and val, where it has splits."""
    dataset = find_cases(data)
    cases = dataset.split("train") + dataset.split("val") or dataset.cases
    if not cases:
        raise DataError(f"{data}: holds no cases to calibrate on")
    return cases


def _write_network(
    folder: Path, to: EngineName, model: Path, info: ModelInfo, cases: tuple[Case, ...]
) -> None:
    """The network in the engine's own files, for any number and size of slices; quantised where
    there are `cases`."""
    network = load_network(model, info).eval()
    write = _write_openvino if to == "openvino" else _write_onnx
    try:
        write(network, folder / NETWORKS[to][0], info, cases)
    except SegappError:
        raise
    except Exception as error:  # what a converter can't do it says in many ways
        raise ModelFileError(
            f"{model}: its {info.architecture.name} over {info.architecture.encoder} can't be "
            f"written for {to} ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error


def _write_openvino(
    network: nn.Module, path: Path, info: ModelInfo, cases: tuple[Case, ...]
) -> None:
    import openvino as ov

    from segapp.engines.openvino import OpenVinoEngine

    def engine(graph: ov.Model | ov.CompiledModel) -> Engine:
        if isinstance(graph, ov.CompiledModel):
            return OpenVinoEngine(graph)
        return OpenVinoEngine.load(graph, "fp32")

    channels = info.preprocessing.inputs
    with torch.inference_mode(), without_warnings():
        graph = ov.convert_model(
            network,
            example_input=torch.zeros(1, channels, 64, 96),
            input=[ov.PartialShape([-1, channels, -1, -1])],
        )
    if cases:
        graph = quantize(graph, engine, info, cases)
    ov.save_model(graph, path, compress_to_fp16=False)


def _write_onnx(network: nn.Module, path: Path, info: ModelInfo, cases: tuple[Case, ...]) -> None:
    import onnx

    from segapp.engines.onnx import OnnxEngine

    with without_warnings():  # of torch's own making
        torch.onnx.export(
            *(network, (torch.zeros(2, info.preprocessing.inputs, 64, 96),), path),
            dynamic_shapes=({0: "n", 2: "rows", 3: "columns"},),
            external_data=False,
            verbose=False,
        )
    if cases:

        def engine(graph: onnx.ModelProto) -> Engine:
            return OnnxEngine.load(graph.SerializeToString())

        graph = onnx.load(path)
        onnx.save(quantize(graph, engine, info, cases, graph.graph.input[0].name), path)


def parity(
    model: Path, folder: Path, record: ExportRecord, cases: tuple[Case, ...], data: Path | None
) -> Parity:
    """Segment the same scans with the model file and with an export, whatever its checksums say.

    cases: labelled, a few of them are taken, with a few slices of each volume; none: synthetic
    scans of the intensities that the training scans had. Raises what reading and predicting raise.
    """
    info = read_info(model)
    reference = Predictor.of(TorchEngine(load_network(model, info), _CPU, "fp32"), info)
    tally = _Tally(
        plain=Predictor.of(open_export(folder, record, "fp32", single=True), info),
        as_run=Predictor.of(open_export(folder, record, precision_for(info), single=True), info),
        as_trained=Predictor.of(load_torch_engine(model, info, "cpu"), info),
    )
    if not cases:
        for scan in synthetic_scans(info):
            tally.add(reference(scan))
        scans, miou = f"{tally.scans} synthetic scans", None
    else:
        few = spread_over(cases, _CASES)
        result = evaluate_cases(
            *(reference, few, info.ignore, info.merged),
            read=lambda case: few_slices(*read_case(case), info.preprocessing, _SLICES),
            on_segmentation=lambda _, segmentation, truth: tally.add(segmentation, truth),
        )
        for failed in result.failed():
            log.warning("%s", failed.error)
        if not tally.scans:
            raise DataError(f"{data}: none of its cases can be compared; see the warnings above")
        scans = f"{tally.scans} cases of {data.name if data else 'the data'}"
        miou = (result.miou, metrics.mean_iou(tally.matrix))
    return Parity(
        scans=scans,
        voxels=tally.voxels,
        agreement=tally.same / tally.voxels,
        miou=miou,
        as_run=tally.as_run.engine.precision,
        agreement_as_run=tally.same_as_run / tally.voxels,
        speed_ratio=tally.seconds["torch"] / tally.seconds["export"],
    )


class _Tally:
    """How often an export gives the labels of the reference, and the time it takes."""

    def __init__(self, plain: Predictor, as_run: Predictor, as_trained: Predictor):
        self.plain, self.as_run, self.as_trained = plain, as_run, as_trained
        self.scans = self.voxels = self.same = self.same_as_run = 0
        self.seconds = {"torch": 0.0, "export": 0.0}
        classes = len(plain.classes)
        self.matrix = np.zeros((classes, classes), np.int64)

    def add(self, reference: Segmentation, truth: np.ndarray | None = None) -> None:
        """Compare what the reference made of a scan with what the others make of it."""
        scan, labels = reference.scan, self.plain(reference.scan).labels
        self._timed("torch", self.as_trained, scan)
        as_run = self._timed("export", self.as_run, scan).labels
        self.scans += 1
        self.voxels += labels.size
        self.same += int((labels == reference.labels).sum())
        self.same_as_run += int((as_run == reference.labels).sum())
        if truth is not None:
            self.matrix += metrics.confusion(truth, labels, len(self.matrix))

    def _timed(self, name: str, predictor: Predictor, scan: Scan) -> Segmentation:
        predictor(scan)  # the first time at a size is slow
        began = time.perf_counter()
        segmentation = predictor(scan)
        self.seconds[name] += time.perf_counter() - began
        return segmentation


def _require_equal(record: ExportRecord, model: Path) -> None:
    found, least = record.parity, _AGREEMENT[record.precision]
    assert found is not None
    if found.agreement >= least and found.agreement_as_run >= _AS_RUN:
        return
    if record.precision == "int8" and found.miou and found.miou[0] - found.miou[1] <= MIOU_LOSS:
        return
    raise ModelFileError(
        f"{model}: its export segments differently: {found}; at least {100 * least:g} % must be "
        "the same. Nothing was written; --unequal writes it all the same"
    )


def synthetic_scans(info: ModelInfo) -> Iterator[Scan]:
    """Single slices of several sizes, smooth noise in an ellipse, in the type and with the
    intensities that the training scans had (0…255 where the model file doesn't know); the same
    ones every time."""
    known, channels = info.training, info.preprocessing.channels
    low, high = np.array(known.intensities if known else [(0.0, 255.0)] * channels).T
    dtype = np.dtype(known.dtypes[0] if known else np.uint8)
    rng = np.random.default_rng(0)
    for width, height in _SYNTHETIC:
        x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height), indexing="ij")
        inside = (x / 0.8) ** 2 + (y / 0.9) ** 2 < 1
        noise = np.zeros((channels, width, height))
        for scale in (2, 6, 18):  # pixels: detail, structures, shading
            coarse = rng.normal(size=(1, channels, width // scale + 1, height // scale + 1))
            noise += scale**0.5 * resize(coarse, (width, height))[0]
        share = 0.5 + noise / (6 * noise.std())
        voxels = np.where(inside, low[:, None, None] + share * (high - low)[:, None, None], 0)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            voxels = np.clip(np.rint(voxels), limits.min, limits.max)
        yield Scan(voxels.astype(dtype)[..., None], None, Path(f"synthetic-{width}x{height}"))


def _export_text(record: ExportRecord) -> str:
    return (
        "\n## This export\n\n"
        f"For {record.engine}, in {record.precision}. Compared with the model file it came from: "
        f"{record.parity}.\n"
    )

"""The model file: weights as safetensors, and beside them, as JSON, all that prediction needs."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import segapp
from segapp.cases import Dataset, file_hash, image_hash
from segapp.errors import ModelFileError, OutputError
from segapp.files import atomic_path
from segapp.likeness import TrainingRange
from segapp.preprocess import Flip, Preprocessing
from segapp.quality import Quality
from segapp.scan import SegClass

MODEL_NAME = "model.safetensors"
INFO_NAME = "info.json"  # the JSON part alone, in an exported folder
_KEY = "segapp"
_FORMAT = 1
_COUNTING = ("torch", "segmentation-models-pytorch", "albumentations", "opencv-python-headless")
_COUNTING += ("accelerate", "numpy", "scipy")  # packages that results depend on


class Architecture(BaseModel):
    """What builds the network; `segapp.model.build_network` takes exactly these."""

    model_config = ConfigDict(extra="forbid")

    name: str
    encoder: str
    in_channels: int
    classes: int
    residual: bool
    separable: bool = False
    full_resolution: bool = False
    encoder_depth: int = Field(default=5, ge=3, le=5)
    members: int = Field(default=1, ge=1)  # networks whose probabilities are averaged


class DataRecord(BaseModel):
    """Which data the model saw: file hashes by split, so that evaluation can tell what is new, and
    how many patients.

    No file names: they may name patients, and the model file travels.
    """

    root: str
    images: dict[str, list[str]] = Field(default_factory=dict)  # split → SHA-256 of each case
    masks: dict[str, list[str]] = Field(default_factory=dict)
    earlier: list[str] = Field(default_factory=list)  # of the model it went on from, and so on
    patients: dict[str, int] = Field(default_factory=dict)  # split → number; {}: not recorded


def record_of(dataset: Dataset, earlier: list[str]) -> DataRecord:
    """The hashes of all files by split. earlier: see DataRecord."""
    record = DataRecord(root=str(dataset.root), earlier=earlier)
    for case in dataset.cases:
        record.images.setdefault(case.split, []).append(image_hash(case))
        record.masks.setdefault(case.split, []).append(file_hash(case.mask))
    for split in record.images:
        record.patients[split] = len({c.patient for c in dataset.split(split)})
    return record


Cut = Literal["channels", "weights"]


class Pruned(BaseModel):
    """What was cut from a network: a share of its channels, or of its weights, which are zero."""

    model_config = ConfigDict(extra="forbid")

    what: Cut
    amount: float = Field(gt=0, lt=1)


class ModelInfo(BaseModel):
    """The JSON part of a model file."""

    model_config = ConfigDict(extra="forbid")

    format: int = _FORMAT
    architecture: Architecture
    pruned: Pruned | None = None
    preprocessing: Preprocessing
    classes: tuple[SegClass, ...]
    ignore: int | None = None
    merged: tuple[int, ...] = ()  # mask values of other classes, which count as the background
    flips: tuple[Flip, ...] = ()  # predictions are averaged over these and their combination
    settings: dict[str, Any]
    metrics: dict[str, Any]
    starting_weights: str
    data: DataRecord
    training: TrainingRange | None = None  # None: not recorded
    temperature: float = Field(default=1.0, gt=0)
    quality: Quality | None = None  # None: results are not judged
    # "": not recorded, as it would make files differ that are equal otherwise
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    versions: dict[str, str] = Field(default_factory=lambda: current_versions())
    machine: dict[str, str | int] = Field(default_factory=dict)  # that it was trained on
    weights_sha256: str = ""  # see `weights_digest`; "": not recorded
    licence_notes: str = (
        "The weights derive from the training data and the starting weights named here; their "
        "licences apply. Research use, not a medical device."
    )

    @model_validator(mode="after")
    def _consistent(self) -> ModelInfo:
        if self.architecture.classes != len(self.classes):
            raise ValueError(f"{self.architecture.classes} outputs, {len(self.classes)} classes")
        if self.architecture.in_channels != self.preprocessing.inputs:
            raise ValueError("the network and the preprocessing differ in channels")
        ranges = (self.training.intensities, self.training.narrowest) if self.training else ()
        if any(len(of_channels) != self.preprocessing.channels for of_channels in ranges):
            raise ValueError("the network and the training range differ in channels")
        return self


def current_versions() -> dict[str, str]:
    """Of segapp, Python and the packages that results depend on, as installed here."""
    found = {"segapp": segapp.__version__, "python": platform.python_version()}
    for package in _COUNTING:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def save_model(path: Path, weights: dict[str, np.ndarray], info: ModelInfo) -> None:
    """Write a model file atomically. weights: parameter name → array, as the network names them.

    Raises OutputError where the folder can't be written.
    """
    # safetensors writes memory as it lies: a channels-last array would come back scrambled
    weights = {name: np.ascontiguousarray(array) for name, array in weights.items()}
    info = info.model_copy(update={"weights_sha256": weights_digest(weights)})
    with atomic_path(path) as temporary:
        try:
            save_file(weights, temporary, metadata={_KEY: info.model_dump_json()})
        except SafetensorError as error:  # its word for a full disk
            raise OutputError(f"{path}: can't be written ({error})") from error


def weights_digest(weights: Mapping[str, np.ndarray], text: str = "") -> str:
    """Hex SHA-256 of every array's name, type, shape and bytes, in the order of their names, and of
    `text`."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def model_path(model: Path) -> Path:
    """The model file behind a MODEL argument: a run folder or the file itself."""
    path = model / MODEL_NAME if model.is_dir() else model
    if not path.is_file() and (model / "config.yaml").is_file():  # stopped before the first one
        raise ModelFileError(f"{model}: no model yet; go on with: segapp train --resume {model}")
    if not path.is_file():
        what = f"holds no {MODEL_NAME}" if model.is_dir() else "no such file"
        raise ModelFileError(f"{model}: {what}; expected a run folder or a model file")
    return path


def read_info(model: Path) -> ModelInfo:
    """The JSON part of a run folder's, a file's or an exported folder's model.

    Raises ModelFileError.
    """
    if (model / INFO_NAME).is_file() and not (model / MODEL_NAME).is_file():
        path = model / INFO_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFileError(f"{path}: can't be read ({error})") from error
        return _parse(text, path)
    path = model_path(model)
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path}: not a readable safetensors file ({error})") from error
    if text is None:
        raise ModelFileError(f"{path}: safetensors, but not written by segapp (no metadata)")
    return _parse(text, path)


def _parse(text: str, path: Path) -> ModelInfo:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: damaged metadata: not JSON ({error})") from error
    found = tree.get("format") if isinstance(tree, dict) else None
    if found != _FORMAT:
        raise ModelFileError(
            f"{path}: model format {found!r}, this segapp reads {_FORMAT}; "
            "use the segapp version that wrote it"
        )
    try:
        return ModelInfo.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        problem = f"{where}: {first['msg']}" if where else first["msg"]
        raise ModelFileError(f"{path}: damaged metadata: {problem}") from error


def read_weights(model: Path) -> dict[str, np.ndarray]:
    """Every weight by its name, as stored. Raises ModelFileError, also where they are no longer
    those that were written."""
    path = model_path(model)
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(_KEY, "{}")
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path}: not a readable safetensors file ({error})") from error
    recorded = _parse(text, path).weights_sha256
    if recorded and weights_digest(weights) != recorded:
        raise ModelFileError(
            f"{path}: its weights are not those that were written (their checksum differs): the "
            "file is damaged or was edited; take it from where it was trained"
        )
    return weights

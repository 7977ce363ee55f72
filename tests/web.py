"""What tests of the web app share: an engine to reckon with, scans, and an app in a thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import nibabel as nib
import numpy as np
from PIL import Image

from segapp.predict import Predictor
from segapp.preprocess import Preprocessing
from segapp.scan import make_classes
from segapp.web.app import Service, start

CLASSES = make_classes(["background", "bone", "skin"], [0, 100, 200])


class Bands:
    """An engine to reckon with: below 50 background, below 150 bone, above it skin."""

    batch_size, calls_at_once, precision = 4, 1, "fp32"

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        band = np.digitize(batch[:, 0], (50, 150))
        return 10 * np.eye(3, dtype=np.float32)[band].transpose(0, 3, 1, 2)


def bands(engine: Any = None) -> Predictor:
    as_it_is = Preprocessing(
        channels=1, stride=1, normalisation="imagenet", shift=(0.0,), scale=(1.0,)
    )
    return Predictor(engine or Bands(), as_it_is, CLASSES)


def write_scans(folder: Path) -> tuple[Path, Path, Path]:
    """A PNG of 8 × 6 with 4 pixels of bone and 2 of skin, a volume, and a text named like a PNG.

    The volume has 8 × 6 × 5 voxels of 10 × 10 × 20 mm = 2 ml: 6 of skin on slice 4, 1 on slice 2.
    """
    folder.mkdir(exist_ok=True, parents=True)
    pixels = np.zeros((6, 8), np.uint8)
    pixels[1, :4], pixels[4, 2:4] = 100, 200
    Image.fromarray(pixels).save(folder / "hand.png")
    voxels = np.zeros((8, 6, 5), np.uint8)
    voxels[1:4, 2:4, 3], voxels[0, 0, 1] = 200, 200
    nib.save(nib.Nifti1Image(voxels, np.diag([-10.0, -10, 20, 1])), folder / "head.nii.gz")
    (folder / "notes.png").write_text("not an image")
    return folder / "hand.png", folder / "head.nii.gz", folder / "notes.png"


def request(tab: str, name: str = "") -> gr.Request:
    """What a handler is told of who calls it. name: of a browser, "" for one without a cookie."""
    headers = {"cookie": f"segapp={name:x<43}"} if name else {}
    return SimpleNamespace(session_hash=tab, headers=headers)  # type: ignore[return-value]


def last(events: Iterator[Any]) -> Any:
    """What a handler yields in the end."""
    *_, found = events
    return found


def untrained_model(run: Path) -> Path:
    """A run folder with an untrained network."""
    import torch

    from segapp.checkpoint import Architecture, DataRecord, ModelInfo, save_model
    from segapp.model import build_network

    torch.manual_seed(2)  # finds a good deal of each class in noise
    architecture = Architecture(
        name="unet", encoder="resnet18", in_channels=1, classes=3, residual=True, encoder_depth=3
    )
    network = build_network(**architecture.model_dump())
    info = ModelInfo(
        architecture=architecture,
        preprocessing=Preprocessing(channels=1, normalisation="zscore"),
        classes=CLASSES,
        settings={},
        metrics={},
        starting_weights="none",
        data=DataRecord(root="none"),
    )
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    save_model(run / "model.safetensors", weights, info)
    return run


def noise_scans(folder: Path) -> tuple[Path, Path]:
    """A PNG and a volume, of noise: an untrained network finds every class in it somewhere."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 48), np.uint8)).save(folder / "slice.png")
    voxels = rng.integers(0, 255, (48, 64, 9)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, -1, 3, 1])), folder / "volume.nii.gz")
    return folder / "slice.png", folder / "volume.nii.gz"


@contextmanager
def serving(models: dict[str, Predictor], **how: Any) -> Iterator[Service]:
    """An app in a thread."""
    service = start(models, **how)
    try:
        yield service
    finally:
        service.close()

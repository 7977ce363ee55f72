"""An exported folder: a network for another engine, and beside it all that prediction needs.

network.xml, network.bin   for OpenVINO; network.onnx for ONNX Runtime
info.json                  what the model file says about itself
export.json                what was exported, and how it compares with the model file
README.md                  the model card
SHA256SUMS                 of all of these, for `sha256sum --check`
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from segapp.checkpoint import INFO_NAME, MODEL_NAME
from segapp.errors import ModelFileError
from segapp.files import sha256, write_text

EngineName = Literal["openvino", "onnx"]
NETWORKS: dict[EngineName, tuple[str, ...]] = {
    "openvino": ("network.xml", "network.bin"),
    "onnx": ("network.onnx",),
}
SUMS_NAME = "SHA256SUMS"
_RECORD_NAME, _CARD_NAME = "export.json", "README.md"
_AGAIN = "export the model again with segapp export"


class Parity(BaseModel):
    """The same scans through the model file, in float32, and through the export.

    agreement: share of the voxels that get the same class. miou: of the model file and of the
    export where the scans have masks. as_run: precision that this machine computes the export in,
    and seconds a scan then takes, against those of the model file as this machine runs it.
    """

    model_config = ConfigDict(extra="forbid")

    scans: str
    voxels: int
    agreement: float
    miou: tuple[float, float] | None
    as_run: str
    agreement_as_run: float
    speed_ratio: float

    def __str__(self) -> str:
        said = f"{100 * self.agreement:.3f} % of {self.voxels:,} voxels the same ({self.scans})"
        if self.agreement_as_run != self.agreement:
            said += f", {100 * self.agreement_as_run:.3f} % in {self.as_run}"
        if self.miou:
            said += f", mIoU {self.miou[1]:.4f} against {self.miou[0]:.4f}"
        return f"{said}, {self.speed_ratio:.1f} times as fast as PyTorch here"


class ExportRecord(BaseModel):
    """export.json. source: SHA-256 of the model file."""

    model_config = ConfigDict(extra="forbid")

    engine: EngineName
    precision: Literal["fp32", "int8"]
    source: str
    parity: Parity | None = None


def is_exported(model: Path) -> bool:
    """Whether a folder is an export; one with a model file in it is a run."""
    return (model / _RECORD_NAME).is_file() and not (model / MODEL_NAME).exists()


def holds_nothing_else(folder: Path) -> bool:
    """Whether a folder is empty, or holds an export and nothing that somebody put beside it."""
    found = {path.name for path in folder.iterdir()}
    known = {SUMS_NAME, *(name for engine in NETWORKS for name in _parts(engine))}
    return not found or (is_exported(folder) and found <= known)


def write_sums(folder: Path, record: ExportRecord, card: str) -> None:
    """Write export.json, README.md and the checksums of a folder that holds the rest."""
    write_text(folder / _RECORD_NAME, record.model_dump_json(indent=2) + "\n")
    write_text(folder / _CARD_NAME, card)
    lines = (f"{sha256(folder / name)}  {name}\n" for name in _parts(record.engine))
    write_text(folder / SUMS_NAME, "".join(lines))


def read_export(folder: Path) -> ExportRecord:
    """What an exported folder says about itself, its parts verified. Raises ModelFileError."""
    try:
        record = ExportRecord.model_validate_json((folder / _RECORD_NAME).read_bytes())
        lines = (folder / SUMS_NAME).read_text(encoding="utf-8").splitlines()
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{folder}: not a whole export; {_AGAIN}") from error
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in _parts(record.engine):
        path = folder / name
        if not path.is_file():
            raise ModelFileError(f"{path}: missing from the export; {_AGAIN}")
        if sums.get(name) != sha256(path):
            raise ModelFileError(f"{path}: changed since it was exported; {_AGAIN}")
    return record


def _parts(engine: EngineName) -> tuple[str, ...]:
    return (*NETWORKS[engine], INFO_NAME, _RECORD_NAME, _CARD_NAME)

"""Which scans a model is for, in a line: by what its file records of those it was trained on."""

from __future__ import annotations

from segapp.checkpoint import ModelInfo
from segapp.likeness import low_high
from segapp.modality import UNKNOWN


def expected_scans(info: ModelInfo | None) -> str:
    """As in "Trained on axial CT slices, pixels of 0.6–0.9 mm"; "" where nothing is recorded."""
    if info is None or info.training is None:
        return ""
    known, prepared = info.training, info.preprocessing
    modality = "" if known.modality == UNKNOWN else known.modality
    volumes = bool(known.slice_mm or prepared.context)  # else nobody knows which way images lie
    kind = [prepared.slice_axis if volumes else "", modality]
    said = [" ".join(filter(None, [*kind, "slices" if volumes else "images"]))]
    if prepared.channel_files > 1:
        said.append(f"{prepared.channel_files} files to a scan, one a channel")
    elif prepared.channels > 1:
        said.append(f"{prepared.channels} channels")
    if known.pixel_mm:
        said.append(f"pixels of {low_high(known.pixel_mm)} mm")
    if known.slice_mm:
        said.append(f"slices {low_high(known.slice_mm)} mm apart")
    if len(known.intensities) == 1:  # of several channels it would be no short line
        unit = " HU" if modality == "CT" and prepared.normalisation == "ct" else ""
        said.append(f"intensities {low_high(known.intensities[0], ' to ')}{unit}")
    return f"Trained on {', '.join(said)}"

"""What a TIFF of several pages says of them: the metadata of ImageJ and of OME-TIFF."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from segapp.errors import OutputError, ScanError
from segapp.formats.geometry import from_spacing, mm_per

_RESOLUTIONS = (282, 283)  # XResolution, YResolution: pixels in a unit


def declared_stack(
    path: Path, tif: tifffile.TiffFile, page: tifffile.TiffPage
) -> tuple[int, list[float] | None]:
    """The number of slices that the file declares, with one channel and one time, 0 for another
    kind of stack; and the spacing (x, y, z) in mm, None where it is not wholly known."""
    if tif.imagej_metadata:
        return _imagej(tif.imagej_metadata, page)
    description = tif.ome_metadata
    return _ome(path, description, page) if description else (0, None)


def stack_options(path: Path, affine: np.ndarray | None) -> dict[str, Any]:
    """Arguments for tifffile to write an ImageJ stack with the spacing of `affine`. Raises
    OutputError where reading the stack would give another affine."""
    options: dict[str, Any] = {"imagej": True, "metadata": {"axes": "ZYX"}}
    if affine is not None:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if not np.allclose(affine, from_spacing(path, spacing), rtol=0, atol=1e-6 * spacing.min()):
            raise OutputError(
                f"{path}: a TIFF stack can't hold this volume's place in space; write it as NIfTI"
            )
        x, y, z = spacing.tolist()
        options["resolution"] = (1 / x, 1 / y)
        options["metadata"] |= {"spacing": z, "unit": "mm"}
    return options


def _imagej(metadata: dict[str, Any], page: tifffile.TiffPage) -> tuple[int, list[float] | None]:
    slices, channels, frames = (metadata.get(key, 1) for key in ("slices", "channels", "frames"))
    if (channels, frames) != (1, 1):
        return 0, None
    pixels_per_unit = [page.tags.valueof(tag, (0, 1)) for tag in _RESOLUTIONS]
    sizes = [below / above if above else 0 for above, below in pixels_per_unit]
    unit = str(metadata.get("unit", ""))
    return slices, _spacing_mm([*sizes, metadata.get("spacing", 0)], [unit] * 3)


def _ome(path: Path, description: str, page: tifffile.TiffPage) -> tuple[int, list[float] | None]:
    if "<!DOCTYPE" in description or "<!ENTITY" in description:  # entities that grow without end
        raise ScanError(path, "its OME-XML is not plain; save it as an ImageJ stack")
    try:
        images = ElementTree.fromstring(description).findall("{*}Image/{*}Pixels")
    except ElementTree.ParseError as error:
        raise ScanError(path, "its OME-XML is damaged; save it as an ImageJ stack") from error
    if len(images) != 1:
        return 0, None
    pixels = images[0].attrib
    channels = int(pixels.get("SizeC", 1)) // page.samplesperpixel
    in_order = all(
        data.get("IFD", "0") == data.get("FirstZ", "0") for data in images[0].findall("{*}TiffData")
    )
    if (channels, int(pixels.get("SizeT", 1))) != (1, 1) or not in_order:
        return 0, None
    sizes = [float(pixels.get(f"PhysicalSize{axis}", 0)) for axis in "XYZ"]
    units = [pixels.get(f"PhysicalSize{axis}Unit", "µm") for axis in "XYZ"]
    return int(pixels.get("SizeZ", 1)), _spacing_mm(sizes, units)


def _spacing_mm(sizes: list[float], units: list[str]) -> list[float] | None:
    factors = [mm_per(unit) or 0 for unit in units]
    spacing = [abs(float(n)) * factor for n, factor in zip(sizes, factors, strict=True)]
    return spacing if all(0 < n < np.inf for n in spacing) else None

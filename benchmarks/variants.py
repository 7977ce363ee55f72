"""Six data sets made from data/brain that differ from it in one thing each, to try a recipe on.

    python benchmarks/variants.py DIR

few      12 training slices and no val split
two      white matter against everything else
rgb      colour images: the T1's inverse, its square root and itself
odd      16-bit TIFF, each slice with a gain and an offset of its own, so that outside is not 0
thick    slices of 5 mm: the mean of five neighbours, with the mask of the middle one; they overlap
         in test only
large    1024 × 1024 pixels, enlarged

Each has train/ and test/, with images/ and masks/ in them; the test slices are data/brain's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

BRAIN = Path(__file__).parents[1] / "data/brain"
Slices = Iterator[tuple[str, str, np.ndarray, np.ndarray]]  # split, name, image, mask


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="DIR")
    out: Path = parser.parse_args().out
    for make in (few, two, rgb, odd, thick, large):
        count = 0
        suffix = ".tif" if make is odd else ".png"
        for split, name, image, mask in make():
            for kind, pixels in (("images", image), ("masks", mask)):
                folder = out / make.__name__ / split / kind
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / f"{name}{suffix}"), pixels)
            count += 1
        print(f"{out / make.__name__}: {count} slices")


def brain() -> Slices:
    for split in ("train", "val", "test"):
        for path in sorted((BRAIN / split / "images").glob("*.png")):
            mask = path.parents[1] / "masks" / path.name
            yield split, path.stem, np.asarray(Image.open(path)), np.asarray(Image.open(mask))


def few() -> Slices:
    train = [s for s in brain() if s[0] == "train"]
    yield from (train[n] for n in np.linspace(0, len(train) - 1, 12).round().astype(int))
    yield from (s for s in brain() if s[0] == "test")


def two() -> Slices:
    for split, name, image, mask in brain():
        yield split, name, image, (mask == 3).astype(np.uint8)


def rgb() -> Slices:
    for split, name, image, mask in brain():
        root = np.sqrt(image / 255) * 255  # blue first, as OpenCV writes
        yield split, name, np.dstack([image, root, 255 - image]).astype(np.uint8), mask


def odd() -> Slices:
    rng = np.random.default_rng(0)
    for split, name, image, mask in brain():
        gain, offset = rng.uniform(20, 150), rng.uniform(500, 3000)
        yield split, name, (image * gain + offset).astype(np.uint16), mask


def thick() -> Slices:
    slices = list(brain())
    last = -5  # the first slice of the newest thick one
    for first in range(len(slices) - 4):
        five = slices[first : first + 5]
        split, name, _, mask = five[2]
        side_by_side = int(five[-1][1][1:]) - int(five[0][1][1:]) == 4
        if side_by_side and (split == "test" or first - last >= 5):
            mean = np.mean([image for _, _, image, _ in five], axis=0)
            yield split, name, mean.round().astype(np.uint8), mask
            last = first


def large() -> Slices:
    for split, name, image, mask in brain():
        factor = 1024 / max(mask.shape)
        size = [round(n * factor) for n in mask.shape[::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        around = [((1024 - n) // 2, 1024 - n - (1024 - n) // 2) for n in mask.shape]
        yield split, name, np.pad(image, around), np.pad(mask, around)


if __name__ == "__main__":
    main()

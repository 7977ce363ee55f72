"""How well a model knows when it doesn't know: its doubts about altered copies of test cases.

    python benchmarks/gate.py [RUN] [--data data/brain] [--also SCAN ...]

RUN is a run folder, runs/brain unless told; DATA has a test split of grey 8-bit slices. Each is
altered in ways that the model was never fitted to; the first table says how well its unlikeness
tells these from the test slices as they are (area under the ROC curve), and how many are marked for
review. SCAN are volumes of something else, cut into slices as they lie. The second table grades
milder damage; at its end stands the rank correlation of estimated with true Dice over all its
slices.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from measure import BRAIN, table
from scipy.stats import rankdata, spearmanr

from segapp.cases import find_cases, labels_to_indices
from segapp.check import read_case
from segapp.formats import read_scan
from segapp.metrics import confusion, mean_dice
from segapp.predict import Predictor
from segapp.preprocess import to_slices
from segapp.scan import Scan, Segmentation

NOISE = 40  # standard deviation in grey levels of 255
SLICES = 24  # of each other volume, evenly spaced over its middle
Alter = Callable[[np.ndarray, np.random.Generator], np.ndarray]

SHIFTS: dict[str, Alter] = {
    "inverted intensities": lambda x, _: 255 - x,
    "another modality: bright for dark inside the head": lambda x, _: np.where(x > 0, 255 - x, 0),
    f"heavy noise, sd {NOISE} of 255": lambda x, rng: x + rng.normal(0, NOISE, x.shape),
    "wrong axis: rows for columns": lambda x, _: x.T,
    "upside down": lambda x, _: x[:, ::-1],
}


def blurred(x: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(x, (0, 0), sigma)


def shaded(x: np.ndarray, share: float) -> np.ndarray:
    """Brighter on one side, as by the coil of an MR scanner."""
    return x * (1 + share * np.linspace(-1, 1, len(x), dtype=np.float32)[:, None])


def grades() -> Iterator[tuple[str, Alter]]:
    yield "as it is", lambda x, _: x
    for sd in (2, 5, 10, 20):
        yield f"noise, sd {sd}", lambda x, rng, sd=sd: x + rng.normal(0, sd, x.shape)
    for sigma in (0.7, 1.5, 3, 6):
        yield f"blur of {sigma} pixels", lambda x, _, s=sigma: blurred(x, s)
    for gamma in (0.5, 0.75, 1.5, 2.5):
        yield f"gamma {gamma}", lambda x, _, g=gamma: 255 * (x / 255) ** g
    for share in (0.1, 0.3, 0.6):
        yield f"shading ±{share:.0%}", lambda x, _, s=share: shaded(x, s)


def altered(scan: Scan, alter: Alter) -> Scan:
    """A copy of an 8-bit slice (1, I, J, 1)."""
    plane = scan.voxels[0, :, :, 0].astype(np.float32)
    plane = np.asarray(alter(plane, np.random.default_rng(0)))
    voxels = np.clip(plane, 0, 255).round().astype(np.uint8)[None, :, :, None]
    return Scan(voxels, scan.affine, scan.source)


def slices_of(path: Path, axis: str) -> Iterator[Scan]:
    """Slices of a volume as pictures of 8 bits, laid out as a viewer shows them."""
    scan = read_scan((path,))
    planes = to_slices(scan.voxels, scan.affine, axis)[:, 0]  # type: ignore[arg-type]
    white = float(np.percentile(planes, 99.9))
    for k in np.linspace(0.25, 0.75, SLICES) * (len(planes) - 1):
        shown = np.clip(planes[round(k)].astype(np.float32) * (255 / white), 0, 255)
        yield Scan(shown.round().astype(np.uint8).T[None, :, :, None], None, path)


def unlikeness(found: Segmentation) -> float:
    assert found.assessment
    assert found.assessment.unlikeness is not None
    return found.assessment.unlikeness


def auroc(inside: list[float], outside: list[float]) -> float:
    """The probability that one of `outside` is above one of `inside` (Mann & Whitney)."""
    ranks = rankdata([*inside, *outside])[len(inside) :].sum()
    n, m = len(inside), len(outside)
    return float((ranks - m * (m + 1) / 2) / (n * m))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/brain"))
    parser.add_argument("--data", type=Path, default=BRAIN)
    parser.add_argument("--also", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    predictor = Predictor.load(args.run)
    info = predictor.info
    if info is None or info.quality is None:
        parser.error(f"{args.run}: was trained before models judged their results")
    # what it estimates is measured also where predict would believe none of it
    quality = info.quality.model_copy(update={"bias": None, "cases": max(5, info.quality.cases)})
    predictor.info = info = info.model_copy(update={"quality": quality})
    cases = [read_case(case) for case in find_cases(args.data).split("test")]
    if not cases or any(
        s.voxels.dtype != np.uint8 or s.voxels.shape[::3] != (1, 1) for s, _ in cases
    ):
        parser.error(f"{args.data}: needs a test split of single grey slices of 8 bits")
    inside = [unlikeness(predictor(scan)) for scan, _ in cases]

    rows = []
    sets = {name: [altered(scan, alter) for scan, _ in cases] for name, alter in SHIFTS.items()}
    if args.data == BRAIN:
        for axis in ("sagittal", "coronal"):
            sets[f"wrong axis: {axis} slices"] = list(slices_of(BRAIN / "t1.nii.gz", axis))
    for path in args.also:
        sets[path.name] = list(slices_of(path, "axial"))
    for name, scans in sets.items():
        found = [predictor(scan) for scan in scans]
        marked = sum(bool(f.assessment and f.assessment.review) for f in found)
        area = auroc(inside, [unlikeness(f) for f in found])
        rows.append((name, f"{area:.3f}", f"{marked} of {len(found)}"))
    print(f"{len(cases)} test slices as they are: unlikeness up to {max(inside):.2f}\n")
    print(table(("altered slices", "AUROC", "marked for review"), rows))

    rows, pairs = [], []
    for name, alter in grades():
        of_grade = []
        for scan, mask in cases:
            found = predictor(altered(scan, alter))
            truth = labels_to_indices(mask.voxels, info.classes, info.ignore, info.merged)[0]
            dice = mean_dice(confusion(truth, found.labels, len(predictor.classes)))
            estimate = found.assessment.estimated_dice if found.assessment else None
            of_grade.append((0.0 if estimate is None else estimate, dice))
        pairs += of_grade
        estimated, true = np.mean(of_grade, axis=0)
        rows.append((name, f"{estimated:.3f}", f"{true:.3f}"))
    print("\n" + table(("damage", "estimated Dice", "true Dice"), rows))
    correlation = spearmanr(*zip(*pairs, strict=True)).statistic  # type: ignore[attr-defined]
    print(f"\nrank correlation over {len(pairs)}: {correlation:.3f}")


if __name__ == "__main__":
    main()

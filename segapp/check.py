"""Read every case once before anything is trained: everything that can sink a run is found here.

`segapp train` refuses what is found here; `segapp check` lists it beside what doctor.py looks for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from segapp.errors import ScanError
from segapp.finding import Finding, finding_of, refuse, sinking, warning_of
from segapp.fingerprint import CaseFacts, measure
from segapp.formats import NOT_FINITE, read_labels, read_scan
from segapp.layout import SPLITS, Case, Dataset
from segapp.preprocess import orientation
from segapp.scan import Scan, SegClass

_TOLERANCE = 0.1  # voxels between the corners of two grids that are meant to be one
_WHITE = (255, 65535)  # "on" in masks that were saved as pictures


def survey(
    dataset: Dataset,
    progress: Callable[[Iterable[Case]], Iterable[Case]] = iter,
    ignore: int | None = None,
    look: Callable[[Case, Scan, Scan], None] = lambda *_: None,
) -> tuple[list[CaseFacts], list[Finding]]:
    """Read all cases once: the facts of each usable one, and what is wrong with files.

    `ignore` is the mask value that stands for nothing. `look` gets each usable case, its scan and
    its mask as they pass.
    """
    facts: list[CaseFacts] = []
    findings: list[Finding] = []
    for case in progress(dataset.cases):
        try:
            scan, mask = read_case(case)
            _require_finite(scan)
            measured = measure(case, scan, mask.voxels, ignore)
        except ScanError as error:
            findings.append(finding_of(error))
            continue
        findings += (warning_of(case.images[0], w) for w in scan.warnings)
        findings += (warning_of(case.mask, w) for w in mask.warnings)
        facts.append(measured)
        look(case, scan, mask)
    return facts, findings


def _require_finite(scan: Scan) -> None:
    """Prediction gets by with a warning, but nothing should be learnt from such voxels."""
    for warning in scan.warnings:
        if NOT_FINITE in warning:
            raise ScanError(scan.source, warning.partition(";")[0], "not-finite")


def inspect(
    dataset: Dataset,
    progress: Callable[[Iterable[Case]], Iterable[Case]] = iter,
    ignore: int | None = None,
) -> tuple[list[CaseFacts], dict[int, Path], list[str]]:
    """Facts of every case, each mask value with a mask that holds it, and the readers' warnings.

    Raises DataError that names the first unusable file and counts the others: an unreadable file,
    an image and a mask of different size or place, an image with voxels that are not finite.
    """
    facts, findings = survey(dataset, progress, ignore)
    refuse(findings, "more that can't be used")
    first_seen: dict[int, Path] = {}
    for f in facts:
        for value in f.mask_counts:
            first_seen.setdefault(value, f.case.mask)
    return facts, first_seen, [str(f) for f in findings]


def read_case(case: Case) -> tuple[Scan, Scan]:
    """The scan (C, I, J, K) and its mask values (1, I, J, K), proven to be on the same grid.

    Raises ScanError where either can't be read, or where they are not.
    """
    scan, mask = read_scan(case.images), read_labels(case.mask)
    image = case.images[0]
    if scan.shape != mask.shape:
        problem = f"is {_size(mask)} but its image {image.name} is {_size(scan)}"
        raise ScanError(case.mask, problem, "size-differs")
    if scan.affine is not None and mask.affine is not None:
        # Two grids agree when their corners do; an affine's entries alone have mixed units.
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
        corners[:, :3] *= np.array(scan.shape) - 1
        apart = np.abs(corners @ (scan.affine - mask.affine).T).max()
        if apart > _TOLERANCE * min(scan.spacing_mm or (0,)):
            kind, how = _difference(scan, mask)
            problem = f"lies elsewhere in space than its image {image.name}: {how} (corners up to "
            raise ScanError(case.mask, f"{problem}{apart:.3g} mm apart)", kind)
    return scan, mask


def _difference(scan: Scan, mask: Scan) -> tuple[str, str]:
    """The kind of difference between two affines, and words for it."""
    assert scan.affine is not None
    assert mask.affine is not None
    axes, image_axes = _axes(mask.affine), _axes(scan.affine)
    if axes != image_axes:
        return "orientation-differs", f"its axes run to {axes}, the image's to {image_axes}"
    spacing, image_spacing = (np.array(s.spacing_mm, float) for s in (mask, scan))
    drift = np.abs(spacing - image_spacing) * np.array(scan.shape)
    if (drift > _TOLERANCE * image_spacing).any():
        mm, image_mm = ("×".join(f"{v:.4g}" for v in s) for s in (spacing, image_spacing))
        return "spacing-differs", f"its voxels are {mm} mm, the image's {image_mm} mm"
    return "affine-differs", "moved or rotated"


def _axes(affine: np.ndarray) -> str:
    """Where the voxel axes lead, such as "RAS"."""
    return "".join(
        "RAS"[world] if sign > 0 else "LPI"[world]
        for world, sign in zip(*orientation(affine), strict=True)
    )


def _size(scan: Scan) -> str:
    return "×".join(str(n) for n in (scan.shape if scan.shape[2] > 1 else scan.shape[:2]))


def no_foreground(
    training: Sequence[CaseFacts], classes: Sequence[SegClass], root: Path
) -> list[Finding]:
    """The finding that no training mask holds anything but the background, if that is so."""
    seen = set().union(*(f.mask_counts for f in training))
    if seen & {c.value for c in classes[1:]}:
        return []
    problem = "no training mask holds any foreground"
    return [sinking("class-missing", root, problem, "nothing to learn")]


def nothing_counted(facts: Sequence[CaseFacts], ignore: int | None, root: Path) -> list[Finding]:
    """The finding that validation would have no voxel to count, if that is so."""
    val = [f for f in facts if f.case.split == "val"]
    if not val or any(set(f.mask_counts) - {ignore} for f in val):
        return []
    return [sinking("val-ignored", root, f"every voxel of the val masks is ignored ({ignore})")]


def other_channels(facts: Sequence[CaseFacts], channels: int, channel_files: int) -> list[Finding]:
    """Cases whose channels a model of `channels` can't take; grey and RGB adapt."""
    return [
        sinking(
            "channels-differ",
            f.case.images[0],
            f"has {f.channels} channel(s), most training images {channels}",
            "bring all images to the same channels",
        )
        for f in facts
        if f.channels != channels and not (channel_files == 1 and {f.channels, channels} == {1, 3})
    ]


def odd_masks(
    facts: Sequence[CaseFacts], allowed: set[int] | None, ignore: int | None
) -> list[Finding]:
    """Masks that write their classes as other numbers than most do, such as 255 among masks of 1.

    Masks that share a foreground value are of one kind; what shares none with the largest kind is
    odd if it holds no `allowed` value or, where nothing is declared (None), if one side is a
    picture's white and the other counts from 1, or its values are far beyond 1…n.
    """
    groups: list[tuple[set[int], list[CaseFacts]]] = []
    for f in facts:
        values, members = set(f.mask_counts) - {0, ignore}, [f]
        if not values:
            continue
        for group in [g for g in groups if g[0] & values]:
            values, members = values | group[0], group[1] + members
            groups.remove(group)
        groups.append((values, members))
    if len(groups) < 2:
        return []
    groups.sort(key=lambda g: (-len(g[1]), max(g[0])))
    most = groups[0][0] & allowed if allowed else groups[0][0]
    return [
        Finding(
            "error",
            "mask-values-differ",
            f.case.mask,
            f"holds the values {_listed(set(f.mask_counts))}, most masks {_listed(most | {0})}",
            "save it with the values that the others use",
        )
        for values, members in groups[1:]
        if (not values & allowed if allowed else _another_code(values, most))
        for f in members
    ]


def _another_code(values: set[int], most: set[int]) -> bool:
    count = len(most)
    return (
        (max(values) in _WHITE and max(most) < 128)
        or (max(most) in _WHITE and max(values) <= count)
        or (most == set(range(1, count + 1)) and min(values) > 2 * count + 1)
    )


def _listed(values: Iterable[int]) -> str:
    ordered = sorted(values)
    return ", ".join(map(str, ordered[:6])) + (", …" if len(ordered) > 6 else "")


def shared_patients(
    cases: Iterable[Case], owner: Callable[[Case], str]
) -> dict[tuple[str, str], list[str]]:
    """Whose cases lie in two splits: (split, later split) → owners; "" is nobody."""
    owners = {s: Counter(owner(c) for c in cases if c.split == s) for s in SPLITS}
    both = {
        (a, b): sorted((owners[a].keys() & owners[b].keys()) - {""})
        for a, b in combinations(SPLITS, 2)
    }
    return {pair: found for pair, found in both.items() if found}

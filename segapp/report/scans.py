"""What the scans of an evaluation are like, noted while they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from segapp.cases import Case
from segapp.fingerprint import percentiles
from segapp.likeness import TrainingRange, low_high
from segapp.report.findings import commonest
from segapp.scan import Scan


@dataclass(frozen=True)
class ScanFacts:
    """shape: (I, J, K); spacing_mm: along these, None where unknown; intensities: of each channel,
    see `fingerprint.percentiles`."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    dtype: str
    intensities: tuple[tuple[float, float], ...]


def noting(
    read: Callable[[Case], tuple[Scan, Scan]], notes: dict[str, ScanFacts]
) -> Callable[[Case], tuple[Scan, Scan]]:
    """`read`, which also notes what each scan is like, under its case's name."""

    def read_and_note(case: Case) -> tuple[Scan, Scan]:
        scan, mask = read(case)
        notes[case.name] = ScanFacts(
            scan.shape, scan.spacing_mm, str(scan.voxels.dtype), percentiles(scan)
        )
        return scan, mask

    return read_and_note


def fingerprint_rows(
    facts: Iterable[ScanFacts], training: TrainingRange | None
) -> list[tuple[str, str, str]]:
    """(what, in these scans, in the training scans), for a table; [] without a scan."""
    known = list(facts)
    if not known:
        return []
    no = "not recorded"
    sizes = (" × ".join(map(str, f.shape if f.shape[2] > 1 else f.shape[:2])) for f in known)
    rows = [("size in voxels", commonest(Counter(sizes)), no)]
    spaced = [f for f in known if f.spacing_mm]
    pixels = [v for f in spaced for v in _in_plane(f)]
    between = [max(f.spacing_mm or ()) for f in spaced if 1 not in f.shape]
    theirs = training.pixel_mm if training else None
    unknown = len(known) - len(spaced)
    said = f"{_range(pixels)} mm" if pixels else "unknown"
    said += f" (unknown in {unknown})" if pixels and unknown else ""
    in_training = f"{_range(theirs)} mm" if theirs else "unknown" if training else no
    rows.append(("pixel size", said, in_training))
    if between or (training and training.slice_mm):
        theirs = training.slice_mm if training else None
        said = f"{_range(between)} mm" if between else "no volumes"
        rows.append(("slice distance", said, f"{_range(theirs)} mm" if theirs else no))
    dtypes = commonest(Counter(f.dtype for f in known))
    rows.append(("stored as", dtypes, ", ".join(training.dtypes) if training else no))
    for n in range(max(len(f.intensities) for f in known)):
        own = [v for f in known for v in f.intensities[n : n + 1]]
        ends = (min(low for low, _ in own), max(high for _, high in own))
        theirs = training.intensities[n : n + 1] if training else ()
        name = "intensities" if n == 0 else f"channel {n + 1}"
        rows.append((name, _range(ends, " … "), _range(theirs[0], " … ") if theirs else no))
    return rows


def _in_plane(f: ScanFacts) -> tuple[float, ...]:
    """The two smaller spacings of a volume; of a slice the ones of its pixels."""
    assert f.spacing_mm is not None
    return f.spacing_mm[:2] if f.shape[2] == 1 else tuple(sorted(f.spacing_mm)[:2])


def _range(values: Iterable[float], between: str = "–") -> str:
    values = list(values)
    return low_high((min(values), max(values)), between).replace("-", "−")


def training_rows(training: TrainingRange) -> list[tuple[str, str]]:
    """(what, in the training scans), as facts."""
    rows = [("stored as", ", ".join(training.dtypes))]
    for name, pair in (("pixel size", training.pixel_mm), ("slice distance", training.slice_mm)):
        rows += [(name, f"{_range(pair)} mm")] if pair else []
    rows += [] if training.pixel_mm else [("pixel size", "unknown")]
    for n, pair in enumerate(training.intensities):
        rows.append(("intensities" if n == 0 else f"channel {n + 1}", _range(pair, " … ")))
    return rows

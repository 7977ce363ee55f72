"""What `segapp check` says: on the screen, as a table, as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segapp.files import write_table, write_text
from segapp.finding import Finding, counted

_COLUMNS = ["level", "kind", "path", "message", "remedy", "sinks"]
_PER_KIND = 10
ORIGINS = {  # see `patients_from`
    "declared": "as declared",
    "guessed": "guessed from names",
    "one_a_case": "each image counted as a patient of its own",
}


def report_of(
    findings: Sequence[Finding], facts: dict[str, Any], sheet: Path | None
) -> dict[str, Any]:
    """What report.json and --json hold; `sinks` says whether segapp train would refuse the data set
    for a finding."""
    rows = [{**asdict(f), "path": str(f.path)} for f in findings]
    return {
        "errors": sum(f.level == "error" for f in findings),
        "warnings": sum(f.level == "warning" for f in findings),
        "findings": rows,
        "facts": facts,
        "sheet": str(sheet) if sheet else None,
    }


def write_report(report: dict[str, Any], out: Path) -> None:
    """Write out/findings.csv and out/report.json. Raises OutputError."""
    write_table(out / "findings.csv", _COLUMNS, report["findings"])
    write_text(out / "report.json", json.dumps(report) + "\n")


def findings_text(findings: Sequence[Finding], out: Path) -> Iterator[str]:
    """A line each, up to ten of a kind."""
    kinds: dict[str, list[Finding]] = {}
    width = max((len(f.kind) for f in findings), default=0)
    for f in findings:
        kinds.setdefault(f"{f.level:<8} {f.kind:<{width}}", []).append(f)
    for kind, found in kinds.items():
        for f in found[:_PER_KIND]:
            yield f"{kind}  {' '.join(str(f).split())}"
        if len(found) > _PER_KIND:
            yield f"{kind}  and {len(found) - _PER_KIND} more; all in {out / 'findings.csv'}"
    errors = sum(f.level == "error" for f in findings)
    warnings = len(findings) - errors
    yield f"{counted(errors, 'error')}, {counted(warnings, 'warning')}"


def facts_text(facts: dict[str, Any]) -> Iterator[str]:
    """What the data set is like, in aligned lines."""
    for name, lines in _facts(facts):
        for n, line in enumerate(lines):
            yield f"{name + ':' if n == 0 else '':<14}{line}"


def _facts(facts: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    cases = facts["cases"]
    yield "cases", [", ".join(f"{n} {split}" for split, n in cases.items())]
    said = f"{facts['patients']}, {ORIGINS[facts['patients_from']]}"
    if fewer := facts["patients_by_name"]:  # beside what it calls in question
        said += f", but the names look like {fewer}: see patients-alike below"
    yield "patients", [said]
    if facts["notes"]:
        yield "notes", facts["notes"]
    if "sizes" not in facts:
        return
    yield "size", [commonest(facts["sizes"], "voxels" if "×" in next(iter(facts["sizes"])) else "")]
    spacing = facts["spacing_mm"]
    if spacing:
        low, high = ("×".join(f"{v:.3g}" for v in mm) for mm in spacing)
        yield "spacing", [f"{low} mm" if low == high else f"{low} to {high} mm"]
    else:
        yield "spacing", ["unknown"]
    i = facts["intensities"]
    said = f"{i['minimum']:g} to {i['maximum']:g}, mostly {i['percentile_0.5']:.4g} to "
    said += (
        f"{i['percentile_99.5']:.4g}, {i['zero_share']:.0%} zeros; {commonest(facts['dtypes'])}, "
    )
    channels = commonest(facts["channels"])
    yield "intensities", [f"{said}{channels} channel{'' if channels == '1' else 's'}"]
    if classes := facts.get("classes"):
        names = [f"{c['value']} {c['name']}" for c in classes]
        width = max(map(len, names))
        shares = (f"{share_text(c['share']):>7} of the voxels" for c in classes)
        cases = (f"in {counted(c['cases'], 'case')}" for c in classes)
        rows = zip(names, shares, cases, strict=True)
        yield "classes", [f"{name:<{width}}  {share}, {where}" for name, share, where in rows]
    if "preprocessing" in facts:
        yield "preparation", facts["preprocessing"]
    if cost := facts.get("training"):
        said = f"{counted(cost['slices'], 'slice')}; an epoch ({cost['steps_per_epoch']} steps) "
        said += f"takes about {_seconds(cost['seconds_per_epoch'])} on this CPU, "
        said += f"{cost['memory_mb'] / 1000:.1f} GB of memory, "
        said += f"{cost['disk_mb'] / 1000:.1f} GB of disk"
        yield "training", [said, "(the default network; estimated within a factor of two)"]


def commonest(counts: Mapping[str, int], unit: str = "") -> str:
    """ "uint8" or "uint8 (97), uint16 (3)", the commonest three."""
    if len(counts) == 1:
        return f"{next(iter(counts))} {unit}".strip()
    shown = ", ".join(f"{name} ({n})" for name, n in Counter(counts).most_common(3))
    return shown + (f" and {len(counts) - 3} others" if len(counts) > 3 else "")


def share_text(share: float) -> str:
    """12.3%, and 0.004% for what would read as nothing."""
    return f"{share:.1%}" if share >= 1e-3 or not share else f"{100 * share:.1g}%"


def _seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.{1 if seconds < 10 else 2}g} s"
    return f"{seconds / 60:.2g} min" if seconds < 5400 else f"{seconds / 3600:.2g} h"
